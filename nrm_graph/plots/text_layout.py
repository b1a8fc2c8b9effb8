"""Where the graph of a text stands: tokens side by side, a row a layer, the output on top."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.network.topology import BIAS, PSEUDO_UNITS, UNWATCHED
from nrm_graph.plots.graph_layout import columns_of
from nrm_graph.plots.graph_parts import drawn_notes

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import networkx as nx
    import numpy.typing as npt

_ABREAST = 8  # units of a token and layer in one line
_NARROW, _UNIT = 0.55, 0.8  # of columns: of a token without units, and what a unit takes
_ALONE = 1.1  # between units of no token
_SHOWN = 40  # tokens; of a longer text those without units are left out


@dataclass(frozen=True)
class TextLayout:
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
    left, right : float
        Where everything begins and ends.
    """

    rows: dict[str, list[Hashable]]
    places: dict[Hashable, tuple[float, float]]
    columns: dict[int, tuple[float, float]]
    ends: dict[int, float]
    left: float
    right: float

    def names(self, graph: nx.DiGraph) -> dict[float, str]:
        """Return what stands below columns: of pseudo-units their kind, of tokens their text."""
        tokens = graph.graph["tokens"]
        summed = any("text" in data for _, data in graph.nodes(data=True))  # all of a layer
        kinds = {UNWATCHED: "inputs"} | ({BIAS: "absorbed"} if summed else {})
        usual = {kind: PSEUDO_UNITS.get(kind, str(kind)) for kind in self.ends}
        names = {x: kinds.get(kind, usual[kind]) for kind, x in self.ends.items()}
        return names | {
            (left + right) / 2.0: str(tokens[token])
            for token, (left, right) in self.columns.items()
        }


def tells_tokens(graph: nx.DiGraph) -> bool:
    """Whether the units of a graph belong to one token of its text each.

    Those of its last layers may not: a model answers with the hidden states of one position.
    """
    count = _tokens(graph)
    told: dict[int, bool] = {}
    for _, data in graph.nodes(data=True):
        if data["unit"] >= 0:
            told.setdefault(data["depth"], True)
            told[data["depth"]] &= _is_of_token(data, count)
    rows = [told[depth] for depth in sorted(told)]
    return sum(rows) > len(rows) / 2 and rows == sorted(rows, reverse=True)


def _tokens(graph: nx.DiGraph) -> int:
    """How many tokens the text of a graph has; 0 where it is of none."""
    tokens = graph.graph.get("tokens")
    return len(tokens) if isinstance(tokens, tuple | list) else 0


def _is_of_token(data: Mapping[str, Any], count: int) -> bool:
    place = data.get("token_index")
    return isinstance(place, int) and 0 <= place < count


def text_layout(graph: nx.DiGraph) -> TextLayout:
    """Place a graph whose units tell the tokens of a text apart; see :func:`tells_tokens`."""
    rows, count = columns_of(graph, list(graph)), _tokens(graph)
    cells: dict[tuple[int, int], list[Hashable]] = defaultdict(list)  # by row and token
    lone: list[tuple[int, Hashable]] = []
    for y, nodes in enumerate(rows.values()):
        for node in nodes:
            data = graph.nodes[node]
            if data["unit"] >= 0 and _is_of_token(data, count):
                cells[y, data["token_index"]].append(node)
            elif data["unit"] >= 0:
                lone.append((y, node))
    most: dict[int, int] = defaultdict(int)
    for (_, token), nodes in cells.items():
        most[token] = max(most[token], min(len(nodes), _ABREAST))
    kinds = sorted({unit for _, unit in graph.nodes(data="unit") if unit < 0}, reverse=True)
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
    taken = [column for column, _ in places.values()]
    return TextLayout(rows, places, columns, ends, min([0.0, *taken]) - 0.8, max([x, *taken]) + 0.5)


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


def text_notes(graph: nx.DiGraph, layout: TextLayout) -> list[str]:
    """Lines below a picture: what is drawn and what is not, and how to read it."""
    lines = drawn_notes(graph, list(layout.rows), past=False)
    lines[0] = lines[0].replace("input → output", "from the tokens, below, to the output")
    names = {str(name).partition(" ")[0] for _, name in graph.nodes(data="name")}
    kinds = {"head": "H0: head 0", "neuron": "numbers: features"}
    lines += [text] if (text := "; ".join(kinds[kind] for kind in kinds if kind in names)) else []
    shown, count = len(layout.columns), len(graph.graph["tokens"])
    return lines if shown == count else [*lines, f"{shown} of {count} tokens: those with units"]


def text_curve(
    start: tuple[float, float], end: tuple[float, float], points: int = 24
) -> npt.NDArray[np.float64]:
    """Line of an edge, (points, 2), upright at its ends, and beside rows that it passes."""
    (x0, y0), (x1, y1) = start, end
    t = np.linspace(0.0, 1.0, points)
    x = x0 + (x1 - x0) * t * t * (3.0 - 2.0 * t)
    aside = 0.4 * min(abs(y1 - y0) - 1.0, 2.0) if abs(y1 - y0) > 1.5 else 0.0
    return np.column_stack([x + aside * 4.0 * t * (1.0 - t), y0 + (y1 - y0) * t])
