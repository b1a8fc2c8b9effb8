"""Where a picture of a graph puts nodes and edges, and how large and of which colour they are."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.plots.common import SIGNED
from nrm_graph.plots.graph_parts import layer_name

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import networkx as nx
    import numpy.typing as npt

    Place = tuple[float, float]

FLOOR = -1.22
"""Where pseudo-units stand; units lie between -1 and 1."""

_ARCH, _OUTSIDE = 0.35, 1.06  # how high edges rise that pass layers, and how far out


def columns_of(graph: nx.DiGraph, nodes: Sequence[Hashable]) -> dict[str, list[Hashable]]:
    """Nodes of each layer, layers in the order of their depth."""
    depth: dict[str, tuple[int, str]] = {}
    columns: dict[str, list[Hashable]] = defaultdict(list)
    for node in nodes:
        name = layer_name(graph, node)
        depth[name] = (int(graph.nodes[node]["depth"]), name)
        columns[name].append(node)
    return {name: columns[name] for name in sorted(columns, key=depth.__getitem__)}


def places_of(
    graph: nx.DiGraph, columns: dict[str, list[Hashable]], rows: int | None = None
) -> dict[Hashable, tuple[float, float]]:
    """Put every node near the mean height of what it feeds, so that few edges cross."""
    places: dict[Hashable, tuple[float, float]] = {}
    for x, column in reversed(list(enumerate(columns.values()))):
        units = [node for node in column if graph.nodes[node]["unit"] >= 0]
        pseudo = [node for node in column if graph.nodes[node]["unit"] < 0]

        def height(node: Hashable) -> tuple[float, int]:
            pulls = [
                (abs(data["relevance"]), places[dst][1])
                for _, dst, data in graph.out_edges(node, data=True)
                if dst in places
            ]
            weight = sum(w for w, _ in pulls)
            mean = sum(w * y for w, y in pulls) / weight if weight else 0.0
            return -mean, int(graph.nodes[node]["unit"])

        units.sort(key=height)
        for y, node in zip(_spread(len(units), rows), units, strict=True):
            places[node] = (float(x), float(y))
        # Left of their column, because the relevance they absorb comes from it.
        for rank, node in enumerate(sorted(pseudo, key=lambda n: -int(graph.nodes[n]["unit"]))):
            places[node] = (x - 0.3 - 0.2 * rank, FLOOR)
    return places


def _spread(count: int, rows: int | None) -> npt.NDArray[np.float64]:
    """Heights of the nodes of a column, from top to bottom; few nodes stay near the middle.

    With ``rows`` they are as far apart as so many nodes would be.
    """
    reach = min(1.0, 0.1 * max(count - 1, 0) + 0.1) if rows is None else (count - 1) / rows
    return np.linspace(reach, -reach, count) if count > 1 else np.zeros(count)


def passes(graph: nx.DiGraph, columns: Sequence[str], src: Hashable, dst: Hashable) -> bool:
    """Whether other columns stand between the two of an edge."""
    return columns.index(layer_name(graph, dst)) - columns.index(layer_name(graph, src)) > 1


def curve(start: Place, end: Place, past: bool, points: int = 24) -> npt.NDArray[np.float64]:
    """Line of an edge, (points, 2), which leaves and arrives horizontally.

    ``past`` arches it, outside of the layers that stand between.
    """
    (x0, y0), (x1, y1) = start, end
    t = np.linspace(0.0, 1.0, points)
    y = y0 + (y1 - y0) * t * t * (3.0 - 2.0 * t)
    if past:
        outwards = 1.0 if (y0 + y1) / 2.0 >= 0 else -1.0
        arch = 4.0 * t * (1.0 - t)
        rise = _ARCH - max(0.0, (outwards * y + _ARCH * arch).max() - _OUTSIDE)
        y += outwards * rise * arch
    return np.column_stack([x0 + (x1 - x0) * t, y])


def shares_of(
    graph: nx.DiGraph, shown: Sequence[Hashable]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sizes from 0 to 1 and colours of nodes, on one scale for all layers."""
    values = np.array([float(graph.nodes[node]["relevance"]) for node in shown])
    # The scale is that of units in company: the target holds 1, and one bias may hold many
    # times any unit's relevance.
    lone = defaultdict(list)
    for i, node in enumerate(shown):
        if graph.nodes[node]["unit"] >= 0:
            lone[layer_name(graph, node)].append(i)
    groups = [rows for rows in lone.values() if len(rows) > 1] or list(lone.values())
    largest = max((float(np.abs(values[rows]).max()) for rows in groups), default=0.0) or 1.0
    # Roots, because relevance falls by orders of magnitude from dense layers to pixels.
    shares = np.sqrt(np.clip(np.abs(values) / largest, 0.0, 1.0))
    # Even the faintest node shows its sign.
    shades = SIGNED(0.5 + 0.5 * np.sign(values) * (0.35 + 0.65 * shares))
    return shares, np.asarray(shades, dtype=np.float64)
