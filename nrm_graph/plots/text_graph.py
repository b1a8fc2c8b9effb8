"""The graph of a text: its tokens below, layers above each other, the output on top."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.network.topology import BIAS, PRUNED, PSEUDO_UNITS, REMAINDER, STABILIZER, UNWATCHED
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
from nrm_graph.plots.graph_layout import columns_of, shares_of
from nrm_graph.plots.graph_marks import draw_edges, draw_legend
from nrm_graph.plots.graph_parts import drawn_notes, own_text, short_names
from nrm_graph.plots.token_strip import drawable

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import networkx as nx
    import numpy.typing as npt
    from matplotlib.axes import Axes

_ABREAST = 8  # units of a token and layer in one line
_NARROW, _UNIT = 0.55, 0.8  # of columns: of a token without units, and what a unit takes
_ALONE = 1.1  # between units of no token
_COLUMN, _ROW = 0.42, 0.62  # inches of a column's width of 1, and of a row
_LARGEST = 110.0  # area of the most relevant unit, in square points
_SHOWN = 40  # tokens; of a longer text those without units are left out
_ENDS = (BIAS, STABILIZER, REMAINDER, PRUNED, UNWATCHED)


@dataclass(frozen=True)
class _Layout:
    """Where everything is: rows in steps of 1 from below, columns from the left.

    Attributes
    ----------
    rows : dict of str to list of node
        Nodes of every layer, from the input.
    places : dict of node to (float, float)
        Column and row of every node.
    columns : dict of int to (float, float)
        Where the column of every token that is shown begins and ends.
    ends : dict of int to float
        Column of every kind of pseudo-unit, left of the tokens.
    right : float
        Where the columns end.
    """

    rows: dict[str, list[Hashable]]
    places: dict[Hashable, tuple[float, float]]
    columns: dict[int, tuple[float, float]]
    ends: dict[int, float]
    right: float


def tells_tokens(graph: nx.DiGraph) -> bool:
    """Whether the units of a graph belong to one token of its text each.

    Those of its last layers may not: a model answers with the hidden states of one position.
    """
    count = len(graph.graph.get("tokens", ()))
    told: dict[int, bool] = {}
    for _, data in graph.nodes(data=True):
        if data["unit"] >= 0:
            told.setdefault(data["depth"], True)
            told[data["depth"]] &= 0 <= data.get("token_index", -1) < count
    rows = [told[depth] for depth in sorted(told)]
    return sum(rows) > len(rows) / 2 and rows == sorted(rows, reverse=True)


def draw_text_graph(graph: nx.DiGraph, ax: Axes | None) -> Axes:
    """Draw a graph whose units tell the tokens of a text apart; see :func:`tells_tokens`."""
    layout = _layout(graph)
    if ax is None:
        height = 1.9 + _ROW * len(layout.rows)
        ax = new_axes(min(24.0, max(5.0, 1.2 + _COLUMN * layout.right)), min(14.0, height))
    ax.set_xlim(min(layout.ends.values(), default=0.0) - 0.8, layout.right + 0.3)
    ax.set_ylim(-0.75, len(layout.rows) - 0.4)
    draw_edges(ax, graph, lambda src, dst: _curve(layout.places[src], layout.places[dst]))
    _draw_nodes(ax, graph, layout)
    _label(ax, graph, layout)
    return ax


def _layout(graph: nx.DiGraph) -> _Layout:
    rows = columns_of(graph, list(graph))
    cells: dict[tuple[int, int], list[Hashable]] = defaultdict(list)  # by row and token
    lone: list[tuple[int, Hashable]] = []
    for y, nodes in enumerate(rows.values()):
        for node in nodes:
            data = graph.nodes[node]
            if data["unit"] >= 0 and "token_index" in data:
                cells[y, data["token_index"]].append(node)
            elif data["unit"] >= 0:
                lone.append((y, node))
    most: dict[int, int] = defaultdict(int)
    for (_, token), nodes in cells.items():
        most[token] = max(most[token], min(len(nodes), _ABREAST))
    count = len(graph.graph["tokens"])
    kinds = [kind for kind in _ENDS if any(unit == kind for _, unit in graph.nodes(data="unit"))]
    x = 0.75 * len(kinds) + (0.5 if kinds else 0.0)
    columns: dict[int, tuple[float, float]] = {}
    for token in range(count):
        if most[token] or count <= _SHOWN:
            width = max(1.0, _UNIT * most[token]) if most[token] else _NARROW
            columns[token] = x, x + width
            x += width + 0.25
    ends = {kind: 0.75 * i for i, kind in enumerate(kinds)}
    places: dict[Hashable, tuple[float, float]] = {}
    for (y, token), nodes in cells.items():
        for node, (across, up) in zip(nodes, _cell(len(nodes)), strict=True):
            places[node] = sum(columns[token]) / 2.0 + across, y + up
    for row, group in groupby(lone, key=itemgetter(0)):
        alone = [node for _, node in group]
        places |= {node: (_above(graph, node, places, x / 2.0), float(row)) for node in alone}
        _apart(alone, places)
    for y, nodes in enumerate(rows.values()):
        for node in nodes:
            unit = graph.nodes[node]["unit"]
            if unit < 0:  # a little below, because the relevance that ends there comes from it
                places[node] = ends[unit], y - 0.3
    right = max([x, *(column + 0.5 for column, _ in places.values())])
    return _Layout(rows, places, columns, ends, right)


def _cell(count: int) -> list[tuple[float, float]]:
    """Places of the units of one token and layer, in lines of at most :data:`_ABREAST`."""
    lines = -(-count // _ABREAST)
    places = []
    for i in range(count):
        line, place = divmod(i, _ABREAST)
        abreast = min(_ABREAST, count - line * _ABREAST)
        up = 0.0 if lines == 1 else 0.3 - 0.6 * line / (lines - 1)
        places.append((_UNIT * (place - (abreast - 1) / 2.0), up))
    return places


def _above(
    graph: nx.DiGraph,
    node: Hashable,
    places: Mapping[Hashable, tuple[float, float]],
    middle: float,
) -> float:
    """Column of a unit of no token: above what leads to it."""
    pulls = [
        (abs(data["relevance"]), places[src][0])
        for src, _, data in graph.in_edges(node, data=True)
        if src in places
    ]
    whole = sum(weight for weight, _ in pulls)
    return sum(weight * x for weight, x in pulls) / whole if whole else middle


def _apart(nodes: Sequence[Hashable], places: dict[Hashable, tuple[float, float]]) -> None:
    """Move units of a row apart that stand upon each other, to both sides alike."""
    order = sorted(nodes, key=lambda node: places[node][0])
    wanted = np.array([places[node][0] for node in order])
    steps = _ALONE * np.arange(len(order))
    columns = np.maximum.accumulate(wanted - steps) + steps
    columns += (wanted - columns).mean()
    for node, x in zip(order, columns.tolist(), strict=True):
        places[node] = x, places[node][1]


def _curve(
    start: tuple[float, float], end: tuple[float, float], points: int = 24
) -> npt.NDArray[np.float64]:
    """Line of an edge, (points, 2), upright at its ends, and beside rows that it passes."""
    (x0, y0), (x1, y1) = start, end
    t = np.linspace(0.0, 1.0, points)
    x = x0 + (x1 - x0) * t * t * (3.0 - 2.0 * t)
    aside = 0.4 * min(abs(y1 - y0) - 1.0, 2.0) if abs(y1 - y0) > 1.5 else 0.0
    return np.column_stack([x + aside * 4.0 * t * (1.0 - t), y0 + (y1 - y0) * t])


def _draw_nodes(ax: Axes, graph: nx.DiGraph, layout: _Layout) -> None:
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


def _label(ax: Axes, graph: nx.DiGraph, layout: _Layout) -> None:
    """Name tokens below, layers to the left, and say what is drawn."""
    tokens = graph.graph["tokens"]
    names = [drawable(str(tokens[token])) for token in layout.columns]
    middles = [(left + right) / 2.0 for left, right in layout.columns.values()]
    step = size_in_points(ax)[0] / max(ax.get_xlim()[1] - ax.get_xlim()[0], 1e-9)
    gaps = np.diff(middles).min(initial=np.inf)
    slant = max(map(len, names), default=0) * 8.0 * CHARACTER > 0.95 * gaps * step
    summed = any("text" in data for _, data in graph.nodes(data=True))  # all that a layer absorbs
    kinds = {UNWATCHED: "inputs"} | ({BIAS: "absorbed"} if summed else {})
    marks = {x: kinds.get(kind, PSEUDO_UNITS[kind]) for kind, x in layout.ends.items()}
    ax.set_xticks(
        [*marks, *middles],
        [*marks.values(), *names],
        parse_math=False,
        rotation=40 if slant or marks else 0,
        ha="right" if slant or marks else "center",
        rotation_mode="anchor",
        fontsize=8,
    )
    for label in ax.get_xticklabels()[: len(marks)]:
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
    lines = drawn_notes(graph, list(layout.rows), past=False)
    lines[0] = lines[0].replace("input → output", "from the tokens, below, to the output")
    if len(names) < len(tokens):
        lines.append(f"{len(names)} of {len(tokens)} tokens: those with units")
    width = size_in_points(ax)[0]
    note = "\n".join(wrapped(part, width, 7.0) for part in (*lines, graph_notes(graph.graph)))
    ax.set_xlabel(note.strip(), fontsize=7, color="#444444")
    longest = max((len(name) for name in (*names, *marks.values())), default=0)
    upright = 8.0 * CHARACTER * longest * 0.64 if slant or marks else 8.0
    draw_legend(ax, graph, 22.0 + upright + 10.0 * note.count("\n"))
