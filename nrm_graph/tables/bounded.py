"""At most so many edges of an input, over all pairs of layers: each keeps the same share.

Of every pair of layers the strongest edges are kept, until they hold a share c of the pair's sum of
|R|; c is the same for all pairs, the largest for which all rows together stay within a budget.  A
pair whose edges are hardly more than its units is kept whole.  What a pair leaves out is one row
``(-3, -3)``, so that totals stay exact, and the smallest |R| that it keeps is on record, which no
edge that is left out exceeds.

One relevance pass suffices: while it goes down, a bound on c is known (it can only fall), and of
each table only the candidates that this bound may keep are set aside; c itself follows at the end,
from sums of all edges, so that it does not depend on how the candidates were guessed.  Where a
guess set aside too little, the pass is done again with what is known then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.network.topology import PRUNED
from nrm_graph.tables.edge_block import Block, merged
from nrm_graph.tables.edge_matrix import Matrix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    Pair = tuple[int, int]
    Piece = Block | Matrix

SAMPLE = 8192
"""Entries of a table from which its distribution is guessed."""

_SHARES = np.append(1 - np.geomspace(1, 1e-6, 512), 1.0)
"""Shares at which rows are counted while a pass goes down."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The strongest edges of one pair of layers, from which a budget chooses.

    Attributes
    ----------
    block : Block
        Rows, in order; none that is left out is stronger than the weakest of them.
    strengths : ndarray, descending
        Their |R|.
    before : ndarray of float64, ascending
        Share of the pair's sum of |R| that stronger edges hold.
    count : int
        Edges of the pair.
    size, total : float
        Sums of |R| and of R over them.
    small : bool
        Whether the edges are hardly more than the units of both layers, so that all are kept.
    """

    block: Block
    strengths: npt.NDArray[Any]
    before: npt.NDArray[np.float64]
    count: int
    size: float
    total: float
    small: bool

    @property
    def complete(self) -> bool:
        """Whether no edge is missing."""
        return len(self.strengths) == self.count

    @property
    def share(self) -> float:
        """Share of the sum of |R| up to which nothing is missing."""
        if self.complete:
            return float("inf")
        if not len(self.strengths):
            return 0.0
        return float(self.before[-1] + self.strengths[-1] / self.size)


@dataclass(frozen=True, eq=False)
class Strongest(Block):
    """The strongest edges of a pair, of which there are too many to hold.

    Attributes
    ----------
    count : int
        Edges of the pair, with those that are not here.
    size, total : float
        Sums of |R| and of R over them.
    """

    count: int = 0
    size: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, eq=False)
class Kept:
    """What a budget keeps of an input.

    Attributes
    ----------
    blocks : list of Block
        Rows of every pair, in order of the pairs; the last one of a pair may be ``(-3, -3)``.
    share : float
        Of its sum of |R|, what every pair keeps at least.
    thresholds : dict of (dst, src) to float
        What no edge that is left out of a pair exceeds; 0 where none is.
    lost : dict of int to float
        What the edges of each upper layer that are left out hold together.
    """

    blocks: list[Block]
    share: float
    thresholds: Mapping[Pair, float]
    lost: Mapping[int, float]

    def bounds(self, pairs: Iterable[Pair]) -> tuple[float, ...]:
        """Thresholds of some pairs as numbers of float32 that are not below them."""
        thresholds = np.array([self.thresholds.get(pair, 0.0) for pair in pairs])
        rounded = thresholds.astype(np.float32)
        above = np.where(rounded < thresholds, np.nextafter(rounded, np.float32(np.inf)), rounded)
        return tuple(above.tolist())


@dataclass(eq=False)
class Budget:
    """Candidates of one input while a pass goes down.

    Attributes
    ----------
    rows : int
        Rows at most.
    share : float or None
        Share to set candidates aside for; None to find one while the pass goes down.
    """

    rows: int
    share: float | None = None
    candidates: dict[Pair, Candidates] = field(default_factory=dict)
    _needed: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_SHARES)))

    def add(self, pieces: Sequence[Piece], units: int) -> None:
        """Set aside the candidates of a pair; ``pieces`` are all of its edges."""
        piece = _joined(pieces)
        values, size, total = _magnitudes(piece)
        if not size:
            return
        # Zeros are counted where that decides whether the pair is small; else they count as edges,
        # unless all others are set aside.
        count = piece.count if isinstance(piece, Strongest) else values.numel()
        if count <= 64 * units:
            count = min(count, int(torch.count_nonzero(values)))
        # What is small is kept whole: it says nothing of the share of the others.
        small = count <= 2 * units
        share, threshold = (1.0, 0.0) if small else self._share(values)
        index = _strongest(values, share * size, threshold, self.rows)
        if share == 1.0 and not isinstance(piece, Strongest):
            count = len(index)
        block = piece.at(index)
        strengths = np.sort(np.abs(block.relevance))[::-1]
        sums = np.cumsum(strengths, dtype=np.float64)
        before = (sums - strengths) / size
        chosen = Candidates(block, strengths, before, count, size, total, small)
        self.candidates[piece.dst_layer, piece.src_layer] = chosen
        counts = np.searchsorted(before, _SHARES)
        self._needed += count if small else counts

    def _share(self, magnitudes: Tensor) -> tuple[float, float]:
        """Share that a pair may have to keep, and the edge with which a sample of it passes that.

        The share is from what is known of all pairs so far and of the sample, unless it was given.
        """
        sample = magnitudes[:: max(1, magnitudes.numel() // SAMPLE) | 1].cpu().numpy()
        ordered = np.sort(sample)[::-1]
        sums = np.cumsum(ordered, dtype=np.float64)
        before = (sums - ordered) / (sums[-1] or 1.0)
        share = self.share
        if share is None:
            entries = magnitudes.numel() / len(sample)  # of the table for one of the sample
            needed = self._needed + np.searchsorted(before, _SHARES) * entries
            place = int(np.searchsorted(needed, self.rows, side="right"))
            share = float(_SHARES[min(place, len(_SHARES) - 1)])
        if share >= 1.0:
            return share, 0.0
        place = int(np.searchsorted(before, share))
        return share, float(ordered[min(place, len(ordered) - 1)])

    def keep(self) -> Kept | float:
        """Choose the rows; or say which share the candidates should have held, and do not."""
        small, large = _small_first(self.candidates, self.rows)
        free = self.rows - sum(chosen.count for chosen in small.values()) - len(large)
        numbers, share = _shared_out(large, max(0, free))
        if any(chosen.share < share for chosen in large.values()):
            return share
        blocks, lost = [], dict.fromkeys((dst for dst, _ in self.candidates), 0.0)
        thresholds = dict.fromkeys(self.candidates, 0.0)
        shares = [1.0]
        for pair, chosen in sorted(self.candidates.items()):
            number = numbers.get(pair, chosen.count)
            if number == chosen.count:
                blocks.append(chosen.block)
                continue
            strongest, rest = _cut(chosen, number)
            blocks.append(strongest)
            lost[pair[0]] += rest
            thresholds[pair] = float(chosen.strengths[max(0, number - 1)])
            shares.append(
                float(chosen.before[number]) if number < len(chosen.before) else chosen.share
            )
        return Kept(blocks, min(shares), thresholds, lost)


def guess(share: float) -> float:
    """Share to set candidates aside for, from that of an input before."""
    return min(1.0, share + 0.25 * share * (1 - share))


def bounded(blocks: Iterable[Block], units: Sequence[int], rows: int) -> Kept:
    """Bound tables that are there as a whole.

    Parameters
    ----------
    blocks : iterable of Block
        Edges of every pair of layers; pseudo-edges are left out.
    units : sequence of int
        Number of units of every layer.
    rows : int
        Edges at most.
    """
    blocks = [block for block in blocks if block.dst_layer != block.src_layer]
    kept: Kept | float | None = None
    while not isinstance(kept, Kept):
        budget = Budget(rows, kept)
        for block in blocks:
            budget.add([block], units[block.dst_layer] + units[block.src_layer])
        kept = budget.keep()
    return kept


def strongest_of(chunks: Iterable[Block], rows: int) -> list[Strongest]:
    """Strongest edges of every pair that chunks tell of, ``rows`` at most, and sums of all.

    Memory is bounded by a chunk and by what is kept.  Chunks share no edge.
    """
    pairs: dict[Pair, list[Block]] = {}
    sums: dict[Pair, npt.NDArray[np.float64]] = {}
    for block in chunks:
        pair = block.dst_layer, block.src_layer
        values = block.relevance
        size, total = np.abs(values).sum(dtype=np.float64), values.sum(dtype=np.float64)
        sums[pair] = sums.get(pair, np.zeros(3)) + np.array([np.count_nonzero(values), size, total])
        parts = pairs.setdefault(pair, [])
        parts.append(block.where(values != 0))
        if sum(map(len, parts)) > 2 * rows:
            pairs[pair] = [_most(merged(parts), rows)]
    strongest = []
    for pair, parts in pairs.items():
        block, (count, size, total) = _most(merged(parts), rows), sums[pair]
        fields = (block.dst_layer, block.src_layer, block.dst, block.src, block.relevance, block.q)
        strongest.append(Strongest(*fields, int(count), float(size), float(total)))
    return strongest


def _most(block: Block, rows: int) -> Block:
    """Return the strongest edges of a block, ``rows`` at most."""
    if len(block) <= rows:
        return block
    strength = np.abs(block.relevance)
    return block.where(_first(strength, np.partition(strength, -rows)[-rows], rows))


def _first(strength: npt.NDArray[Any], threshold: float, number: int) -> npt.NDArray[np.bool_]:
    """Mark ``number`` edges: all above a threshold, and of those at it the first."""
    mask: npt.NDArray[np.bool_] = strength > threshold
    ties = np.flatnonzero(strength == threshold)
    mask[ties[: number - np.count_nonzero(mask)]] = True
    return mask


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Return the edges of a pair as one piece: what several operands give is summed."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    for place, piece in enumerate(pieces):
        others = [*pieces[:place], *pieces[place + 1 :]]
        if isinstance(piece, Matrix) and all(map(piece.holds, others)):
            return piece.plus(others)
    return merged([piece.block() if isinstance(piece, Matrix) else piece for piece in pieces])


def _magnitudes(piece: Piece) -> tuple[Tensor, float, float]:
    """Return |R| of every edge, flat, and the sums of |R| and of R over all of them."""
    values = piece.flat if isinstance(piece, Matrix) else torch.from_numpy(piece.relevance)
    magnitudes = values.abs()
    if isinstance(piece, Strongest):
        return magnitudes, piece.size, piece.total
    # Rows of a table in its own precision, which are many times faster; their sums in float64, on
    # the host: not every device has it.
    width = piece.relevance.shape[0 if piece.turned else 1] if isinstance(piece, Matrix) else 1
    size, total = (
        float(tensor.reshape(-1, width).sum(1).cpu().sum(dtype=torch.float64))
        for tensor in (magnitudes, values)
    )
    return magnitudes, size, total


def _strongest(
    magnitudes: Tensor, goal: float, threshold: float, rows: int
) -> npt.NDArray[np.int64]:
    """Places of edges whose sum reaches a goal, the strongest of all; ascending.

    They are sought from a threshold on downwards; with 0 they are all.
    """
    goal *= 1 + 1e-9  # whatever the order of the sums
    while True:
        index = _places(magnitudes, threshold)
        # No budget keeps more of one pair than all of its rows.
        if not threshold or len(index) > rows:
            return index
        chosen = magnitudes[torch.from_numpy(index).to(magnitudes.device)]
        if float(chosen.cpu().sum(dtype=torch.float64)) >= goal:
            return index
        threshold = threshold / 2 if threshold > 1e-30 else 0.0


def _places(magnitudes: Tensor, threshold: float) -> npt.NDArray[np.int64]:
    """Places of what reaches a threshold, and is not zero, ascending."""
    if magnitudes.device.type == "cpu":  # where NumPy is five times faster
        values = magnitudes.numpy()
        return np.flatnonzero(values >= threshold if threshold else values)
    reached = magnitudes >= threshold if threshold else magnitudes
    places: npt.NDArray[np.int64] = reached.nonzero()[:, 0].cpu().numpy()
    return places


def _small_first(
    candidates: Mapping[Pair, Candidates], rows: int
) -> tuple[dict[Pair, Candidates], dict[Pair, Candidates]]:
    """Split pairs into those that are kept whole, of half of the rows at most, and the others."""
    small: dict[Pair, Candidates] = {}
    free = rows // 2
    for pair, chosen in sorted(candidates.items(), key=lambda item: (item[1].count, item[0])):
        if chosen.small and chosen.count <= free:
            small[pair] = chosen
            free -= chosen.count
    return small, {pair: c for pair, c in candidates.items() if pair not in small}


def _shared_out(candidates: Mapping[Pair, Candidates], rows: int) -> tuple[dict[Pair, int], float]:
    """Rows of every pair, ``rows`` in all, and the share that they keep.

    An edge is kept where the stronger ones hold less than the share.
    """
    if sum(chosen.count for chosen in candidates.values()) <= rows:
        return {pair: chosen.count for pair, chosen in candidates.items()}, 1.0
    everything = np.concatenate([chosen.before for chosen in candidates.values()])
    if len(everything) <= rows:
        return {pair: len(chosen.before) for pair, chosen in candidates.items()}, 1.0
    share = float(np.partition(everything, rows)[rows])
    numbers = {
        pair: int(np.searchsorted(chosen.before, share)) for pair, chosen in candidates.items()
    }
    return numbers, share


def _cut(candidates: Candidates, number: int) -> tuple[Block, float]:
    """Strongest edges of a pair with the row of what is left out, and what that holds."""
    block = candidates.block
    if number < len(candidates.strengths):
        strength = np.abs(block.relevance)
        threshold = candidates.strengths[max(0, number - 1)]
        block = block.where(_first(strength, threshold, number) if number else strength < 0)
    rest = candidates.total - float(block.relevance.sum(dtype=np.float64))
    kind = block.relevance.dtype
    with_rest = Block(
        block.dst_layer,
        block.src_layer,
        np.concatenate([[PRUNED], block.dst]),
        np.concatenate([[PRUNED], block.src]),
        np.concatenate([[rest], block.relevance]).astype(kind),
        None if block.q is None else np.concatenate([[np.nan], block.q]).astype(kind),
    )
    return with_rest, rest
