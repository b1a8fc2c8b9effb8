"""Circuits: the graph of a group of inputs, and beside it how sure its strongest edges are."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator

from nrm_graph.errors import InputError
from nrm_graph.plots.common import (
    TEXT,
    colour,
    graph_notes,
    hide_frame,
    new_figure,
    percent,
    save_figure,
    without_biases,
    wrapped,
)
from nrm_graph.plots.graph_parts import (
    checked,
    doubtful,
    layer_name,
    most_units,
    picture_height,
    reach,
    unit_text,
)
from nrm_graph.plots.subgraph import plot_subgraph

if TYPE_CHECKING:
    import os
    from collections.abc import Hashable, Sequence

    import networkx as nx
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = 30  # edges with whiskers, of all pairs of layers together
_PAIRS = 10
_WIDTH = 4.6  # inches of the edges with whiskers
_FONT = 6.5
_COLUMNS = (30.0, 58.0, 90.0)  # points to the right of the whiskers


def plot_circuit(
    graph: nx.DiGraph,
    *,
    classes: Sequence[str] | None = None,
    image: npt.NDArray[Any] | None = None,
) -> Figure:
    r"""Draw a circuit: its graph, and its strongest edges with their standard errors.

    Parameters
    ----------
    graph : networkx.DiGraph
        As ``Database.circuit`` gives it.
    classes : sequence of str, optional
        Names of the outputs, instead of those that the store of the circuit has.
    image : ndarray, (H, W) or (H, W, 3), optional
        A picture shown below the input's neurons, such as the group's mean input.

    Returns
    -------
    matplotlib.figure.Figure
        ``savefig`` writes it.

    Raises
    ------
    InputError
        If the graph is empty, lacks an attribute, or is of a single input's measure.

    Notes
    -----
    To the left the graph as :func:`nrm_graph.plots.plot_subgraph` draws it: widths are
    \|mean\|, the pale band around an edge is two standard errors wider, and edges of which the
    mean is less than two standard errors from 0 are dotted.  Where some inputs have no row of an
    edge, the bounds of its mean, ``low`` and ``high``, stand in their place.  To the right the
    strongest edges of each pair of layers: mean and whiskers, on a scale of each pair,
    centred at zero; the share of the inputs in which the edge is not 0; the share of those that
    have the sign of the mean; and the share of inputs of which it is among their own strongest.
    A group of one input has neither whiskers nor shares.

    The edges were chosen by the inputs that their errors are computed from: the strongest are
    overestimated, and whiskers that keep from 0 are no test.

    Examples
    --------
    >>> import networkx as nx
    >>> graph = nx.DiGraph(inputs=20, share=0.5, absorbed=0.25, top=1, target=3)
    >>> graph.add_node(("x", 0), layer="x", unit=0, relevance=0.5, depth=0)
    >>> graph.add_node(("fc", 3), layer="fc", unit=3, relevance=1.0, depth=1)
    >>> graph.add_edge(("x", 0), ("fc", 3), relevance=0.5, stderr=0.1, agreement=1.0,
    ...                top_share=0.9)
    >>> len(plot_circuit(graph).axes)
    2
    """
    checked(graph)
    if "inputs" not in graph.graph:
        raise InputError("this graph is of one input: draw it with plot_subgraph")
    pairs = _pairs(graph)
    rows = sum(map(len, pairs.values()))
    columns = len({layer_name(graph, node) for node in graph})
    width = max(4.8, 1.4 + (1.2 if columns <= 12 else 0.9) * columns)
    maps = any(len(shape) == 3 for shape in graph.graph.get("shapes", {}).values())
    graph_height = picture_height(most_units(graph), maps)
    height = max(graph_height, 0.9 + 0.17 * rows + 0.42 * len(pairs))
    title, note = (
        circuit_title(graph, classes),
        f"{circuit_note(graph)}\n{graph_notes(graph.graph)}".strip(),
    )
    note = _wrapped(note, width + _WIDTH, 7.5)
    height += 0.75 + 0.13 * note.count("\n")
    figure = new_figure(width + _WIDTH, height)
    figure.suptitle(_wrapped(title, width + _WIDTH, 10.0), fontsize=10)
    figure.supxlabel(note, fontsize=7.5, color=TEXT)
    if not pairs:
        plot_subgraph(_untitled(graph), figure.subplots(), image=image)
        return figure
    halves: Any = figure.subfigures(1, 2, width_ratios=[width, _WIDTH], wspace=0.02)
    graph_side, edge_side = halves
    plot_subgraph(_untitled(graph), graph_side.subplots(), image=image)
    # Half a row for each pair's title and scale.
    ratios = [len(edges) + 1.2 for edges in pairs.values()]
    axes = edge_side.subplots(len(pairs), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for ax, (pair, edges) in zip(axes, pairs.items(), strict=True):
        _draw_pair(ax, graph, pair, edges)
    if any("agreement" in data for _, _, data in graph.edges(data=True)):
        _head(axes[0], graph)
    return figure


def save_subgraph(
    graph: nx.DiGraph, path: str | os.PathLike[str], *, image: npt.NDArray[Any] | None = None
) -> None:
    """Write the picture of a subgraph or circuit; the suffix of the path names the format.

    Raises
    ------
    InputError
        If the file cannot be written.
    NrmError
        If the disk is full or fails.  A file that was there before is as it was.
    """
    if "inputs" in graph.graph:
        figure: Any = plot_circuit(graph, image=image)
    else:
        figure = plot_subgraph(graph, image=image).get_figure(root=True)
    save_figure(figure, Path(path))


def _untitled(graph: nx.DiGraph) -> nx.DiGraph:
    view = graph.copy(as_view=True)
    omitted = ("title", "meaning", "flags")  # which the whole picture says
    view.graph = {name: value for name, value in graph.graph.items() if name not in omitted}
    return view


def _pairs(
    graph: nx.DiGraph,
) -> dict[tuple[str, str], list[tuple[Hashable, Hashable, dict[str, Any]]]]:
    """Strongest edges of each pair of layers, the pairs from the output to the input.

    What pseudo-units absorb takes no edge's place.
    """
    by_pair: dict[tuple[str, str], list[tuple[Hashable, Hashable, dict[str, Any]]]] = defaultdict(
        list
    )
    depth: dict[tuple[str, str], tuple[int, int]] = {}
    for src, dst, data in graph.edges(data=True):
        if min(int(graph.nodes[end]["unit"]) for end in (src, dst)) < 0:
            continue
        pair = layer_name(graph, src), layer_name(graph, dst)
        by_pair[pair].append((src, dst, data))
        depth[pair] = -int(graph.nodes[dst]["depth"]), -int(graph.nodes[src]["depth"])
    strength = {
        pair: sum(abs(data["relevance"]) for *_, data in edges) for pair, edges in by_pair.items()
    }
    drawn = sorted(by_pair, key=lambda pair: -strength[pair])[:_PAIRS]
    each = max(2, _ROWS // max(len(drawn), 1))
    return {
        pair: sorted(by_pair[pair], key=lambda edge: -abs(edge[2]["relevance"]))[:each]
        for pair in sorted(drawn, key=lambda pair: (*depth[pair], pair))
    }


def _draw_pair(
    ax: Axes,
    graph: nx.DiGraph,
    pair: tuple[str, str],
    edges: list[tuple[Hashable, Hashable, dict[str, Any]]],
) -> None:
    """Draw means and whiskers of one pair of layers, the strongest on top."""
    bound = max(abs(end) for *_, d in edges for end in reach(d)) or 1.0
    ax.axvline(0.0, color="#999999", linewidth=0.6)
    for y, (*_, data) in enumerate(edges):
        mean = data["relevance"]
        shade = colour(mean)
        ax.plot(reach(data), [y, y], color=shade, linewidth=1.1, zorder=2)
        fill = "white" if doubtful(data) else shade
        ax.plot(
            [mean], [y], marker="o", markersize=4.5, color=shade, markerfacecolor=fill, zorder=3
        )
        for x, text in zip(_COLUMNS, _shares(data, graph.graph["inputs"]), strict=True):
            ax.annotate(
                text, (1.0, y), xycoords=("axes fraction", "data"), xytext=(x, 0.0),
                textcoords="offset points", ha="right", va="center", fontsize=_FONT, color=TEXT,
            )  # fmt: skip
    labels = [" → ".join(unit_text(graph.nodes[node]) for node in edge[:2]) for edge in edges]
    ax.set_yticks(range(len(edges)), labels, fontsize=_FONT, parse_math=False)
    ax.set(xlim=(-1.08 * bound, 1.08 * bound), ylim=(len(edges) - 0.5, -0.5))
    ax.xaxis.set_major_locator(_ticks(bound))
    ax.tick_params(axis="x", labelsize=6, length=2, pad=1)
    ax.tick_params(axis="y", length=0)
    names = (name if len(name) <= 28 else f"{name[:27]}…" for name in pair)
    ax.set_title(" → ".join(names), fontsize=7, loc="left", pad=3, parse_math=False)
    hide_frame(ax, "top", "right", "left")
    ax.spines["bottom"].set(edgecolor="#999999", linewidth=0.5)


def _ticks(bound: float) -> FixedLocator:
    """Zero and a round number to both sides."""
    step = 10.0 ** np.floor(np.log10(bound))
    step *= next(f for f in (5.0, 2.0, 1.0) if f * step <= bound)
    return FixedLocator([-step, 0.0, step])


def _head(ax: Axes, graph: nx.DiGraph) -> None:
    """Write what the numbers beside the whiskers are."""
    top = graph.graph.get("top")
    heads = ("not 0", "same\nsign", "in own\ntop" + ("" if top is None else f" {top:,}"))
    for x, text in zip(_COLUMNS, heads, strict=True):
        ax.annotate(
            text, (1.0, 1.0), xycoords="axes fraction", xytext=(x, 12.0),
            textcoords="offset points", ha="right", va="bottom", fontsize=_FONT - 0.5, color=TEXT,
        )  # fmt: skip


def _shares(data: dict[str, Any], count: int) -> tuple[str, str, str]:
    if count == 1:
        return "", "", ""
    if "missing" in data:
        return "", "", f"{data['missing']:,} unknown"
    present = data["inputs"] / count if "inputs" in data else None
    shares = (present, data.get("agreement"), data.get("top_share"))
    first, second, third = ("" if share is None else percent(share) for share in shares)
    return first, second, third


def circuit_title(graph: nx.DiGraph, classes: Sequence[str] | None = None) -> str:
    """Title of a circuit or contrast: of which inputs and target, under which condition."""
    facts = graph.graph
    if "title" in facts:
        return str(facts["title"])
    count = facts["inputs"]
    kind = "Contrast" if facts.get("contrast") else "Circuit"
    text = f"{kind} of {count:,} input{'s' if count != 1 else ''}"
    if facts.get("where") is not None:
        text += f" where {textwrap.shorten(str(facts['where']), 80, placeholder=' ...')}"
    target = facts.get("target")
    if target is None:
        text += ", of different targets"
    elif isinstance(target, str):  # the text of weights
        text += f", target {target if len(target) <= 60 else target[:56] + ' ...'}"
    else:
        named = classes is not None and 0 <= target < len(classes)
        words = facts.get("target_text", target)
        text += f", target {classes[target]!r}" if classes and named else f", target {words}"
    if facts.get("given") is not None:
        text += f", given {textwrap.shorten(str(facts['given']), 60, placeholder=' ...')}"
    return text + without_biases(facts.get("reading", "absorbed"))


def circuit_note(graph: nx.DiGraph, kept: bool = True) -> str:
    """Write below a circuit how many inputs it is of and what its numbers are.

    ``kept`` says which share it keeps, too.
    """
    facts = graph.graph
    parts = [f"N = {facts['inputs']:,}"]
    if kept:
        share = f"kept share of the sum of |mean|: {percent(facts['share'])}"
        if "share_strongest" in facts:
            share += f" (the strongest: {percent(facts['share_strongest'])})"
        parts.append(share)
    weight = facts.get("weight", "unit")
    if "absorbed" in facts:
        absorbed = facts["absorbed"]
        parts.append(f"absorbed: {percent(absorbed) if weight == 'unit' else f'{absorbed:.3g}'}")
    if facts.get("pruned"):
        parts.append(f"pruned: {facts['pruned']:.3g}")
    if facts.get("undefined"):
        parts.append(f"undefined: {facts['undefined']:,} inputs")
    unit = "relevance R" if weight == "unit" else "R times logit"
    parts.append(f"means of {unit}")
    parts.append("whiskers: 2 standard errors" if facts["inputs"] > 1 else "no standard errors")
    if any("low" in data for *_, data in graph.edges(data=True)):
        parts.append("or, of edges that some inputs lack, what the mean lies between")
    return "; ".join(parts)


def _wrapped(text: str, inches: float, font: float) -> str:
    return wrapped(text.replace("$", r"\$"), 72.0 * (inches - 0.4), font)
