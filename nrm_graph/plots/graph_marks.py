"""Edges and the legend of a picture of a graph, wherever its nodes stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from nrm_graph.plots.common import NEGATIVE, NEUTRAL, POSITIVE, add_legend
from nrm_graph.plots.graph_parts import doubtful, ends_text, reach

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import networkx as nx
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes


def draw_edges(
    ax: Axes,
    graph: nx.DiGraph,
    line: Callable[[Hashable, Hashable], npt.NDArray[np.float64]],
) -> None:
    """Draw all edges, the strongest on top; ``line`` gives the points of each, (points, 2)."""
    edges = sorted(graph.edges(data=True), key=lambda edge: abs(edge[2]["relevance"]))
    largest = max((abs(data["relevance"]) for *_, data in edges), default=0.0) or 1.0
    lines, colours, widths, bands, styles = [], [], [], [], []
    for src, dst, data in edges:
        relevance = data["relevance"]
        share = abs(relevance) / largest
        lines.append(line(src, dst))
        absorbed = graph.nodes[src]["unit"] < 0
        colour = NEUTRAL if absorbed else POSITIVE if relevance >= 0 else NEGATIVE
        colours.append(to_rgba(colour, 0.3 + 0.6 * share**0.5))
        widths.append(0.3 + 3.2 * share)
        low, high = reach(data)
        bands.append(widths[-1] + 1.6 * (high - low) / largest)
        styles.append((0.0, (2.0, 1.5)) if doubtful(data) else "solid")
    if any("stderr" in data or "low" in data for *_, data in edges):
        pale = [to_rgba(colour, 0.16) for colour in colours]
        ax.add_collection(LineCollection(lines, colors=pale, linewidths=bands, zorder=0.9))
    ax.add_collection(
        LineCollection(lines, colors=colours, linewidths=widths, linestyles=styles, zorder=1)
    )


def draw_legend(ax: Axes, graph: nx.DiGraph, below: float) -> None:
    """Say so many points below the axes what colours and marks stand for."""
    kinds = [("positive", POSITIVE, "o"), ("negative", NEGATIVE, "o")]
    if any(unit < 0 for _, unit in graph.nodes(data="unit")):
        kinds.append((ends_text(graph), NEUTRAL, "s"))
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=2, label=text)
        for text, colour, marker in kinds
    ]
    if any(is_cut for _, is_cut in graph.nodes(data="cut")):
        ring: dict[str, Any] = {"markerfacecolor": "none", "linewidth": 0, "markersize": 6}
        handles.append(Line2D([], [], color="black", marker="o", label="cut here", **ring))
    add_legend(ax, handles, below)
