"""What pictures of graphs read of them: layers, units, texts and how sure an edge is."""

from __future__ import annotations

import math
from collections import Counter
from numbers import Real
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.network.topology import BIAS, PSEUDO_UNITS, REMAINDER, UNWATCHED
from nrm_graph.plots.common import percent
from nrm_graph.plots.token_strip import NAME, drawable, drawn_words

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import networkx as nx

_LONG_NAME = 20
_FAINT = 1e-3  # of the largest node: what a layer absorbs of less is not drawn


def checked(graph: nx.DiGraph) -> list[Hashable]:
    """Return the nodes of a graph that can be drawn.

    Raises
    ------
    InputError
        If the graph is empty, lacks an attribute, or a relevance is no finite number.
    """
    nodes: list[Hashable] = list(graph)
    if not nodes:
        raise InputError("there is nothing to draw: the graph has no nodes")
    for node, data in graph.nodes(data=True):
        for name in ("layer", "unit", "relevance", "depth"):
            if name not in data:
                raise InputError(f"node {node!r} of the graph has no attribute {name!r}")
        _check_finite(data["relevance"], f"node {node!r:.100}")
    for src, dst, data in graph.edges(data=True):
        if "relevance" not in data:
            raise InputError(f"edge {src!r} -> {dst!r} of the graph has no attribute 'relevance'")
        _check_finite(data["relevance"], f"edge {src!r:.100} -> {dst!r:.100}")
    return nodes


def _check_finite(relevance: object, whose: str) -> None:
    if not isinstance(relevance, Real) or not math.isfinite(relevance):
        raise InputError(
            f"the relevance of {whose} of the graph must be a finite number: {relevance!r}"
        )


def with_absorbed(graph: nx.DiGraph, nodes: list[Hashable]) -> nx.DiGraph:
    """Add a pseudo-unit to every layer of a connected graph that has none, for what it absorbs."""
    if not graph.graph.get("connected"):
        return graph
    depths = {layer_name(graph, node): int(graph.nodes[node]["depth"]) for node in nodes}
    taken = {layer_name(graph, node) for node in nodes if graph.nodes[node]["unit"] < 0}
    largest = max(abs(float(graph.nodes[node]["relevance"])) for node in nodes)
    graph = graph.copy()
    for name, value in graph.graph.get("absorbed_in", {}).items():
        if name in depths and name not in taken and abs(value) > _FAINT * largest:
            square = {"layer": name, "unit": BIAS, "relevance": value, "depth": depths[name]}
            graph.add_node((name, BIAS), text=f"{value:.2g}", **square)
    return graph


def picture_height(busiest: int, maps: bool) -> float:
    """Inches of a graph whose largest column has so many nodes, with or without maps below."""
    return min(11.0, max(4.2, 2.2 + 0.12 * busiest)) + (1.3 if maps else 0.0)


def most_units(graph: nx.DiGraph) -> int:
    """Return how many units the largest column has; pseudo-units stand below and take no place."""
    counts = Counter(layer_name(graph, node) for node in graph if graph.nodes[node]["unit"] >= 0)
    return max(counts.values(), default=0)


def layer_name(graph: nx.DiGraph, node: Hashable) -> str:
    """Name of a node's layer; the attribute of a pseudo node may hold its kind as well."""
    return str(node[0] if isinstance(node, tuple) else graph.nodes[node]["layer"])


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Leave out the path that most names begin with, where it makes names long; say which.

    Examples
    --------
    >>> short_names(["x", "encoder.layers.one.mlp.0", "encoder.layers.two.mlp.0", "head"])
    (['x', 'one.mlp.0', 'two.mlp.0', 'head'], 'encoder.layers.')
    """
    if max(map(len, names), default=0) <= _LONG_NAME:
        return list(names), ""
    paths = Counter(
        name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."
    )
    common = [path for path, count in paths.items() if 2 * count >= len(names) and count > 1]
    left_out = max(common, key=len, default="")
    return [name.removeprefix(left_out) for name in names], left_out


def unit_text(
    data: Mapping[str, Any],
    name: Callable[[str], str] = lambda text: drawn_words(text, NAME),
    token: Callable[[str], str] = drawable,
) -> str:
    """Label of a unit: its name, its number, channel and place of a neuron, or its token.

    ``name`` and ``token`` make texts of strangers fit to be drawn.
    """
    if "own_name" in data:
        return name(str(data["own_name"]))
    if "output" in data:
        return token(str(data["output"]))
    if "token" in data:
        which = _of_token(data)
        return token(str(data["token"])) + (f": {which}" if which else "")
    channel, comma, rest = str(data.get("position", "")).partition(", ")
    return f"{channel}: {rest.replace(' ', '')}" if comma else str(int(data["unit"]))


def own_text(data: Mapping[str, Any], token: Callable[[str], str] = drawable) -> str:
    """Label of a unit below which its token stands: its name, its head, as ``H3``, or feature."""
    named = "own_name" in data or "token" not in data
    return unit_text(data, token=token) if named else _of_token(data).replace("head ", "H")


def _of_token(data: Mapping[str, Any]) -> str:
    """Which of a token's units it is; empty of the token itself."""
    head, _, place = str(data.get("name", "")).partition(", token ")
    *others, feature = str(data.get("position", "")).split(", ")
    # Of (head, token, feature) the first and the last.
    return head if place else ", ".join([*others[:-1], feature])


def pseudo_text(data: Mapping[str, Any]) -> str:
    """Label of a pseudo-unit: what it is, or how much a layer absorbs."""
    unit = int(data["unit"])
    usual = "inputs" if unit == UNWATCHED else PSEUDO_UNITS.get(unit, str(unit))
    return str(data.get("text", usual))


def ends_text(graph: nx.DiGraph) -> str:
    """Say in a legend what the squares of a graph stand for."""
    data = [graph.nodes[node] for node in graph]
    rest = any(node["unit"] == REMAINDER or "text" in node for node in data)
    listed = "bias, stabiliser or remainder" if rest else "bias or stabiliser"
    return ("ends: input not watched, " if of_steps(graph) else "absorbed by ") + listed


def of_steps(graph: nx.DiGraph) -> bool:
    """Whether edges are steps between chosen neurons."""
    return bool(graph.graph.get("reduced") or graph.graph.get("tables"))


def drawn_notes(graph: nx.DiGraph, columns: Sequence[str], past: bool) -> list[str]:
    """Lines below a picture: what is drawn and what is not, and how to read it.

    ``past`` says that edges are arched over layers.
    """
    kind = "steps" if of_steps(graph) else "edges"
    note = f"input → output; {graph.number_of_edges():,} {kind}"
    if "share" in graph.graph:
        mean = "mean " if "inputs" in graph.graph else ""
        share = percent(float(graph.graph["share"]))
        note += f" with {share} of the sum over all of |{mean}relevance|"
    if "share_strongest" in graph.graph:
        note += f" (the strongest: {percent(float(graph.graph['share_strongest']))})"
    if past:
        note += "; arched: past layers that stand between"
    lines = [note]
    if any("stderr" in data for *_, data in graph.edges(data=True)):
        lines.append("pale: 2 standard errors wider; dotted: less than 2 standard errors from 0")
    if any("low" in data for *_, data in graph.edges(data=True)):
        lines.append("pale or dotted, of edges that some inputs lack: what the mean lies between")
    if left_out := short_names(columns)[1]:
        lines.append(f"names of layers without {left_out}")
    return lines


def doubtful(data: Mapping[str, Any]) -> bool:
    """Whether a mean is within two of its standard errors of 0, or of what it is known to."""
    low, high = reach(data)
    return bool(low < 0.0 < high)


def reach(data: Mapping[str, Any]) -> tuple[float, float]:
    """Return two standard errors to both sides of a mean, or the bounds that it lies between."""
    mean, around = float(data["relevance"]), 2.0 * data.get("stderr", 0.0)
    return data.get("low", mean - around), data.get("high", mean + around)
