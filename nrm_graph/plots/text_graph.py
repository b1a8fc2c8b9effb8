"""Pictures of graphs of texts, upright: see :mod:`nrm_graph.plots.text_layout`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.plots.common import (
    CHARACTER,
    HALO,
    NEUTRAL,
    TEXT,
    graph_notes,
    new_axes,
    size_in_points,
    wrapped,
)
from nrm_graph.plots.graph_layout import shares_of
from nrm_graph.plots.graph_marks import draw_edges, draw_legend
from nrm_graph.plots.graph_parts import own_text, short_names
from nrm_graph.plots.text_layout import TextLayout, text_curve, text_layout, text_notes
from nrm_graph.plots.token_strip import drawable

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

_COLUMN, _ROW = 0.42, 0.62  # inches of a column's width of 1, and of a row
_LARGEST = 110.0  # area of the most relevant unit, in square points


def draw_text_graph(graph: nx.DiGraph, ax: Axes | None) -> Axes:
    """Draw a graph whose units tell the tokens of a text apart, on new axes or those given."""
    layout = text_layout(graph)
    if ax is None:
        height = 1.9 + _ROW * len(layout.rows)
        ax = new_axes(min(24.0, max(5.0, 1.2 + _COLUMN * layout.right)), min(14.0, height))
    ax.set_xlim(layout.left, layout.right)
    ax.set_ylim(-0.75, len(layout.rows) - 0.4)
    draw_edges(ax, graph, lambda src, dst: text_curve(layout.places[src], layout.places[dst]))
    _draw_nodes(ax, graph, layout)
    _label(ax, graph, layout)
    return ax


def _draw_nodes(ax: Axes, graph: nx.DiGraph, layout: TextLayout) -> None:
    shown = list(layout.places)
    shares, shades = shares_of(graph, shown)
    xy = np.array([layout.places[node] for node in shown])
    ends = np.array([graph.nodes[node]["unit"] < 0 for node in shown])
    line: dict[str, Any] = {"linewidths": 0.5, "edgecolors": TEXT, "zorder": 2}
    sizes = _LARGEST * np.maximum(shares, 0.06)
    ax.scatter(xy[~ends, 0], xy[~ends, 1], s=sizes[~ends], c=shades[~ends], **line)
    ax.scatter(xy[ends, 0], xy[ends, 1], s=0.6 * sizes[ends], c=NEUTRAL, marker="s", **line)
    top = len(layout.rows) - 1
    for node, size in zip(shown, sizes, strict=True):
        data = graph.nodes[node]
        above = layout.places[node][1] == top  # where no edge leads
        # What a pseudo-unit is stands below its column.
        text = own_text(data) if data["unit"] >= 0 else str(data.get("text", ""))
        ax.annotate(
            text,
            layout.places[node],
            xytext=(0.0, (1.0 if above else -1.0) * (float(np.sqrt(size)) / 2.0 + 1.0)),
            textcoords="offset points",
            parse_math=False,
            ha="center",
            va="bottom" if above else "top",
            fontsize=8 if above else 6,
            color=TEXT,
            path_effects=HALO,
            zorder=3,
        )


def _label(ax: Axes, graph: nx.DiGraph, layout: TextLayout) -> None:
    """Name tokens below, layers to the left, and say what is drawn."""
    names = {x: drawable(text) for x, text in layout.names(graph).items()}
    gaps = np.diff([*names]).min(initial=np.inf)
    step = size_in_points(ax)[0] / (layout.right - layout.left)
    longest = max(map(len, names.values()), default=0) * 8.0 * CHARACTER
    slant = longest > 0.95 * gaps * step
    ax.set_xticks(
        [*names],
        [*names.values()],
        parse_math=False,
        rotation=40 if slant else 0,
        ha="right" if slant else "center",
        rotation_mode="anchor",
        fontsize=8,
    )
    for label in ax.get_xticklabels()[: len(layout.ends)]:
        label.set(fontsize=6, color="#777777")
    layers, _ = short_names(list(layout.rows))
    ax.set_yticks(range(len(layers)), layers, fontsize=7, parse_math=False)
    ax.tick_params(length=0)
    ax.hlines(range(len(layers)), *ax.get_xlim(), colors="#EEEEEE", linewidths=0.6, zorder=0)
    for left, right in layout.columns.values():
        ax.axvspan(left, right, facecolor="#F6F6F6", zorder=-1)
    for side in ax.spines.values():
        side.set_visible(False)
    if "title" in graph.graph:
        ax.set_title(str(graph.graph["title"]), fontsize=9, pad=8)
    lines = text_notes(graph, layout)
    width = size_in_points(ax)[0]
    note = "\n".join(wrapped(part, width, 7.0) for part in (*lines, graph_notes(graph.graph)))
    ax.set_xlabel(note.strip(), fontsize=7, color="#444444")
    draw_legend(ax, graph, 22.0 + (0.64 * longest if slant else 8.0) + 10.0 * note.count("\n"))
