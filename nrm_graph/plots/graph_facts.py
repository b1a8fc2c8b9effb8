"""What is known of a unit or an edge of a graph, as lines of a name and a value."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.plots.common import percent
from nrm_graph.plots.graph_parts import layer_name

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import networkx as nx

_SAID = {
    "layer",
    "unit",
    "relevance",
    "depth",
    "name",
    "own_name",
    "output",
    "text",
    "event",
    "cut",
    "token_index",
    "steps_over",
}
_WORDS = {
    "activation": "mean activation",
    "conditional": "R(source given destination)",
    "std": "standard deviation",
    "stderr": "standard error",
    "inputs": "inputs where it is not 0",
    "agreement": "of these, with the mean's sign",
    "top_share": "inputs where it is among the strongest",
    "missing": "inputs without a row",
    "low": "the mean is at least",
    "high": "the mean is at most",
    "mean_a": "mean of the first group",
    "mean_b": "mean of the second group",
}
_LISTED = 12


@dataclass(frozen=True)
class Facts:
    """What is known of a unit or an edge, as plain text.

    Attributes
    ----------
    title : str
        Which it is.
    lines : tuple of (str, str)
        What is known, and its value.
    """

    title: str
    lines: tuple[tuple[str, str], ...]


def unit_title(graph: nx.DiGraph, node: Hashable) -> str:
    """Name a unit in words, behind its layer: ``features.28: channel 12``."""
    data = graph.nodes[node]
    unit = int(data["unit"])
    usual = PSEUDO_UNITS.get(unit, f"unit {unit}")
    absorbed = "text" in data  # a square for all that a layer absorbs
    name = "biases, stabilizer and remainder" if absorbed else data.get("name", usual)
    return f"{layer_name(graph, node)}: {name}"


def facts_of_units(graph: nx.DiGraph) -> dict[Hashable, Facts]:
    """Facts of all units and pseudo-units."""
    drawn: dict[str, float] = defaultdict(float)
    for node, data in graph.nodes(data=True):
        if data["unit"] >= 0:
            drawn[layer_name(graph, node)] += abs(float(data["relevance"]))
    return {node: _of_unit(graph, node, drawn[layer_name(graph, node)]) for node in graph}


def _of_unit(graph: nx.DiGraph, node: Hashable, drawn: float) -> Facts:
    data = graph.nodes[node]
    relevance = float(data["relevance"])
    lines = [("expression", str(data["event"]))] if "event" in data else []
    lines.append((relevance_word(graph), number(relevance)))
    if data["unit"] >= 0 and drawn:
        lines.append(("share of the |R| drawn in its layer", percent(abs(relevance) / drawn)))
    if data.get("cut"):
        lines.append(("cut here", "no drawn edge leads on from it"))
    return Facts(unit_title(graph, node), (*lines, *other_facts(data)))


def edge_facts(graph: nx.DiGraph, src: Hashable, dst: Hashable) -> Facts:
    """Facts of an edge."""
    relevance = number(float(graph.edges[src, dst]["relevance"]))
    shares = [
        (f"share of the {end}'s", share)
        for end, node in (("source", src), ("destination", dst))
        if (share := share_of(graph, src, dst, node))
    ]
    lines = [(relevance_word(graph), relevance), *shares, *other_facts(graph.edges[src, dst])]
    return Facts(f"{unit_title(graph, src)} → {unit_title(graph, dst)}", tuple(lines))


def share_of(graph: nx.DiGraph, src: Hashable, dst: Hashable, end: Hashable) -> str:
    """Write which share an edge is of what one of its ends has; nothing of a pseudo-unit."""
    whole = float(graph.nodes[end]["relevance"])
    if graph.nodes[end]["unit"] < 0 or not whole:
        return ""
    return percent(float(graph.edges[src, dst]["relevance"]) / whole)


def number(value: float) -> str:
    """Write a number with six digits."""
    return f"{value:.6g}"


def relevance_word(graph: nx.DiGraph) -> str:
    """Name what a graph holds as relevance."""
    facts = graph.graph
    name = "R x logit" if facts.get("weight") == "logit" else "R"
    if facts.get("contrast"):
        return f"difference of means of {name}"
    return f"mean of {name}" if "inputs" in facts else name


def other_facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what an object carries beside its relevance, under its own name where none is known."""
    over = [("passes over", value_text(data["steps_over"]))] if data.get("steps_over") else []
    return over + [
        (_WORDS.get(name, str(name).replace("_", " ")), value_text(value))
        for name, value in data.items()
        if name not in _SAID and value is not None
    ]


def value_text(value: Any) -> str:
    """Write what an attribute holds."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        return number(float(value))
    if isinstance(value, list | tuple):
        more = ["..."] if len(value) > _LISTED else []
        return ", ".join([*map(str, value[:_LISTED]), *more])
    return str(value)
