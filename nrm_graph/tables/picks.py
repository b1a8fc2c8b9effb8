"""Chosen edges, read out of whole tables before any of their rows are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.tables.edge_block import Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from nrm_graph.tables.bounded import Piece

    Pair = tuple[int, int]
    Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Picks:
    """Edges to compute.

    Attributes
    ----------
    pairs : mapping of (dst, src) to (dst units, src units, places)
        Units of the edges between two layers, and where their numbers go.
    count : int
        Edges in all.
    """

    pairs: Mapping[Pair, tuple[Integers, Integers, Integers]]
    count: int

    def inside(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Keep of every block the edges of which numbers are wanted."""
        for block in blocks:
            at, _ = self._found(block)
            yield block.at(np.unique(at))

    def values(self, piece: Piece) -> tuple[Integers, npt.NDArray[Any]]:
        """Places of the edges that a piece holds, and their relevance."""
        if isinstance(piece, Block):
            at, places = self._found(piece)
            return places, piece.relevance[at]
        dst, src, places = self.pairs[piece.dst_layer, piece.src_layer]
        row, in_rows = _positions(piece.rows, dst)
        column, in_columns = _positions(piece.columns, src)
        there = in_rows & in_columns
        device = piece.relevance.device
        at_row, at_column = (torch.from_numpy(k[there]).to(device) for k in (row, column))
        return places[there], piece.relevance[at_row, at_column].cpu().numpy()

    def _found(self, block: Block) -> tuple[Integers, Integers]:
        """Rows of a block that are wanted, and the places of their numbers."""
        dst, src, places = self.pairs[block.dst_layer, block.src_layer]
        rows = np.flatnonzero(np.isin(block.dst, dst))
        width = 1 + max(int(src.max(initial=0)), int(block.src.max(initial=0)))
        # Rows are sorted by units, see Block.
        codes = block.dst[rows].astype(np.int64) * width + block.src[rows]
        at, there = _positions(codes, dst * width + src)
        return rows[at[there]], places[there]


def picks(
    dst_layer: Integers, dst_unit: Integers, src_layer: Integers, src_unit: Integers
) -> Picks:
    """Edges by their layers and units, (E,); one may be asked for more than once."""
    pairs = {}
    for pair in sorted(set(zip(dst_layer.tolist(), src_layer.tolist(), strict=True))):
        places = np.flatnonzero((dst_layer == pair[0]) & (src_layer == pair[1]))
        dst, src = (end[places].astype(np.int64) for end in (dst_unit, src_unit))
        pairs[pair] = dst, src, places
    return Picks(pairs, len(dst_unit))


def _positions(
    ordered: npt.NDArray[Any], wanted: Integers
) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Where wanted numbers stand in an ascending array, and which of them do."""
    if not len(ordered):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return at, ordered[at] == wanted


@dataclass(eq=False)
class Collector:
    """Takes the place of a :class:`nrm_graph.tables.bounded.Budget`: keeps what was picked."""

    picks: Picks
    values: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.zeros(self.picks.count)

    def add(self, pieces: Sequence[Piece], units: int) -> None:
        """Add what several operands give of one pair of layers."""
        for piece in pieces:
            if (piece.dst_layer, piece.src_layer) in self.picks.pairs:
                places, values = self.picks.values(piece)
                self.values[places] += values

    def keep(self) -> None:
        """There are no rows to choose."""
