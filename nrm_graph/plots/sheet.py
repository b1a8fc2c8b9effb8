"""Where an interactive figure puts what a graph has: in columns, heights in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_hex

from nrm_graph.plots.graph_layout import FLOOR, columns_of, curve, passes, places_of, shares_of
from nrm_graph.plots.graph_parts import most_units
from nrm_graph.plots.text_layout import TextLayout, tells_tokens, text_curve, text_layout

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import networkx as nx
    import numpy.typing as npt

WIDTH = 860
"""Pixels that texts are laid out for; a figure takes the width that it is given."""

BELOW = 46.0
"""Pixels from the lowest unit down to the ends."""

NARROWEST = 26.0
"""Pixels that a column takes, at least."""

_ROW, _PICTURED = 17.0, 50.0  # pixels of height that a unit takes, and one with a map
_SIDE, _LARGEST = 44.0, 17.0  # of the largest map, and of the mark of the most relevant unit
_POINTS = 17  # of the line of an edge
_FROM_MIDDLE = sorted(range(1, _POINTS - 1), key=lambda i: abs(i - _POINTS // 2))
_CLEAR = 8.0  # pixels between the mark of a unit and where one points at an edge
_LOWEST = 130.0  # half the height of a graph, at least
_LAYER = 58.0  # pixels between the layers of a text


@dataclass(frozen=True)
class Sheet:
    """A graph and where everything is.

    Attributes
    ----------
    graph : networkx.DiGraph
        The graph.
    images : mapping of node to ndarray, (H, W)
        Maps that are shown in the place of marks.
    columns : mapping of str to list of node
        Nodes of every layer, from the input.
    places : mapping of node to (float, float)
        Column and height, which is 1 at the top of the largest column.
    half : float
        Pixels of a height of 1.
    edges : tuple of (node, node)
        Those that are drawn, from the weakest to the strongest.
    text : TextLayout or None
        Of a text, whose graph stands upright: tokens are its columns, and layers its rows.
    """

    graph: nx.DiGraph
    images: Mapping[Hashable, npt.NDArray[np.float64]]
    columns: dict[str, list[Hashable]]
    places: Mapping[Hashable, tuple[float, float]]
    half: float
    edges: tuple[tuple[Hashable, Hashable], ...]
    text: TextLayout | None = None

    @property
    def step(self) -> float:
        """Pixels of a column's width of 1, about."""
        if self.text is not None:
            return max(NARROWEST, WIDTH / (self.text.right - self.text.left))
        return max(NARROWEST, WIDTH / (len(self.columns) + 0.5))

    @property
    def has_ends(self) -> bool:
        """Whether pseudo-units stand below."""
        return self.text is None and any(y <= FLOOR for _, y in self.places.values())

    @cached_property
    def sizes(self) -> dict[Hashable, float]:
        """Diameters of marks and sides of maps; areas grow with shares."""
        shares, _ = shares_of(self.graph, list(self.graph))
        row = 2.0 * self.half / max(most_units(self.graph), 1)
        side = min(_SIDE, 0.88 * row, 0.62 * self.step)
        return {
            node: round(side * (0.36 + 0.64 * share) ** 0.5, 1)
            if node in self.images
            else round(_LARGEST * max(share, 0.08) ** 0.5, 1)
            for node, share in zip(self.graph, shares.tolist(), strict=True)
        }

    @cached_property
    def shades(self) -> dict[Hashable, str]:
        """Colours of marks, as ``#D55E00``."""
        _, shades = shares_of(self.graph, list(self.graph))
        return {node: to_hex(tuple(s)) for node, s in zip(self.graph, shades, strict=True)}

    def heights(self, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Pixels above the middle; below the units they are fewer."""
        values = np.asarray(y, np.float64)
        if self.text is not None:
            rows = len(self.columns)
            return ((2.0 * values - rows + 1.0) * self.half / rows).round(1)
        below = -self.half + (values + 1.0) * BELOW / (-1.0 - FLOOR)
        return np.where(values < -1.0, below, values * self.half).astype(np.float64).round(1)

    def place(self, node: Hashable) -> tuple[float, float]:
        """Column and pixels of a node."""
        x, y = self.places[node]
        return round(x, 3), float(self.heights(y))

    def curve(self, src: Hashable, dst: Hashable, points: int) -> npt.NDArray[np.float64]:
        """Line of an edge, (points, 2)."""
        start, end = self.places[src], self.places[dst]
        if self.text is not None:
            line = text_curve(start, end, points)
        else:
            past = passes(self.graph, list(self.columns), src, dst)
            line = curve(start, end, past, points)
        return np.column_stack([line[:, 0].round(3), self.heights(line[:, 1])])

    @cached_property
    def lines(self) -> dict[tuple[Hashable, Hashable], npt.NDArray[np.float64]]:
        """Lines of all edges that are drawn."""
        return {(src, dst): self.curve(src, dst, _POINTS) for src, dst in self.edges}

    def clear_place(self, src: Hashable, dst: Hashable) -> list[float]:
        """Place on the line of an edge, near its middle, where no mark of a unit lies."""
        inner = self.lines[src, dst][_FROM_MIDDLE]
        across = (inner[:, :1] - self._marked[:, 0]) * self.step
        apart = np.hypot(across, inner[:, 1:] - self._marked[:, 1]) - self._marked[:, 2]
        nearest = apart.min(axis=1)
        clear = np.flatnonzero(nearest > _CLEAR)
        place: list[float] = inner[clear[0] if len(clear) else nearest.argmax()].tolist()
        return place

    @cached_property
    def _marked(self) -> npt.NDArray[np.float64]:
        """Column, pixels and radius of every mark."""
        return np.array([(*self.place(node), 0.6 * self.sizes[node]) for node in self.graph])


def sheet_of(
    graph: nx.DiGraph,
    images: Mapping[Hashable, npt.NDArray[np.float64]],
    most: int | None = None,
    roomy: bool = False,
) -> Sheet:
    """Lay a graph out, in so much height as its largest column needs; ``most`` edges are drawn.

    ``roomy`` leaves room for maps of all units, whether they are there or not.
    """
    edges = sorted(graph.edges, key=lambda edge: abs(graph.edges[edge]["relevance"]))
    drawn = edges if most is None else edges[max(len(edges) - most, 0) :]
    if not images and tells_tokens(graph):
        text = text_layout(graph)
        half = _LAYER * len(text.rows) / 2.0
        return Sheet(graph, {}, text.rows, text.places, half, tuple(drawn), text)
    columns = columns_of(graph, list(graph))
    busiest = most_units(graph)
    places = places_of(graph, columns, busiest if roomy else None)
    needed = max(_LOWEST, (_PICTURED if roomy else _ROW) * busiest / 2.0)
    return Sheet(graph, images, columns, places, needed, tuple(drawn))
