"""Edges between units of operations whose kernel need not be listed edge by edge.

Where all that a neuron leads to is one unit, its share is that unit's (``up``); where all that a
neuron reads is one unit, its relevance goes there (``down``); what a normalisation subtracts is a
product through its sets (``sets``).  Else one side's units are tried one by one (``probe``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.tables.dense_edges import Ends, Piece, kept, loose_rows, matrix_blocks
from nrm_graph.tables.plan import Columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.network.maps.linear import Map, Spread
    from nrm_graph.tables.edge_block import Block


def _sum(values: Sequence[Tensor]) -> Tensor:
    return sum(values[1:], values[0])


def up_blocks(
    ends: Ends,
    key: tuple[Any, ...],
    kind: Map,
    pieces: Sequence[Piece],
    batch: BatchAxis,
    above: Any,
    src: Any,
    fine: bool,
) -> Iterator[Block]:
    """Blocks where all readers of a neuron are in one unit.

    Parameters
    ----------
    batch : BatchAxis
        Of the operand.
    above : ndarray of int, the operand's shape
        Unit of the readers; -1 where there is none.
    src : ndarray of int, the operand's shape
        Global unit of every element.
    fine : bool
        Whether edges between single neurons are among them, whose q is wanted.
    """
    q = None
    if fine:
        q = [p.x * kind.transpose(p.factor, p.weight, p.x) for p in pieces]
    values = [p.x * p.back for p in pieces]
    yield from _paired(ends, key, batch, above, src, values, q)


def down_blocks(
    ends: Ends,
    key: tuple[Any, ...],
    kind: Map,
    pieces: Sequence[Piece],
    batch: BatchAxis,
    dst: Any,
    below: Any,
) -> Iterator[Block]:
    """Blocks where all that a neuron reads is one unit; see :func:`up_blocks`.

    ``below`` is the global unit of what each neuron reads, and ``batch`` that of the output.
    """
    values = [(p.s * kind.apply(p.x, p.weight)).expand(p.s.shape) for p in pieces]
    yield from _paired(ends, key, batch, dst, below, values, None)


def _paired(
    ends: Ends,
    key: tuple[Any, ...],
    batch: BatchAxis,
    dst: Any,
    src: Any,
    values: Sequence[Tensor],
    q: Sequence[Tensor] | None,
) -> Iterator[Block]:
    """Sum values, one per neuron, by the pair of units that each belongs to."""
    width = int(ends.plan.first[-1])
    pairs = np.where((src >= 0) & (dst >= 0), dst.astype(np.int64) * width + src, -1).ravel()
    found = kept(ends.plan, (*key, "pairs"), pairs)

    def summed(parts: Sequence[Tensor]) -> Any:
        return found.sum(batch.samples(_sum(parts)).reshape(-1)).cpu().numpy()

    above, below = np.divmod(found.units, width)
    yield from loose_rows(ends, above, below, summed(values), None if q is None else summed(q))


def set_blocks(
    ends: Ends, key: tuple[Any, ...], kind: Spread, pieces: Sequence[Piece], dst: Any, src: Any
) -> Iterator[Block]:
    """Blocks of what is summed over sets: ``sum_g (sum of s w in J & g) (sum of x in I & g)``.

    ``dst`` and ``src`` are labels in native order, flat.
    """
    sets = kind.sets(tuple(pieces[0].x.shape))
    count = int(sets.max(initial=-1)) + 1
    rows, cols = kept(ends.plan, (*key, "dst"), dst), kept(ends.plan, (*key, "src"), src)

    def by_set(side: Columns, values: Tensor) -> Tensor:
        place = side.place.to(values.device) * count
        index = place + torch.from_numpy(sets).to(values.device)
        found = values.new_zeros((len(side.units) + 1) * count)
        return found.index_add_(0, index, values.reshape(-1)).reshape(-1, count)[:-1]

    table = _sum(
        [
            by_set(rows, (p.s * p.weight).expand(p.s.shape)) @ by_set(cols, p.x.expand(p.s.shape)).T
            for p in pieces
        ]
    )
    own = [Columns(side.units, side.place, 1) for side in (rows, cols)]
    yield from matrix_blocks(ends, table, None, *own)


def probe_blocks(
    ends: Ends, key: tuple[Any, ...], kind: Map, pieces: Sequence[Piece], dst: Any, src: Any
) -> Iterator[Block]:
    """Blocks of any operation: the units of the smaller side are tried one by one.

    ``dst`` and ``src`` are labels in native order, flat.
    """
    rows, cols = kept(ends.plan, (*key, "dst"), dst), kept(ends.plan, (*key, "src"), src)
    lines = []
    down = len(rows.units) <= len(cols.units)
    side, other = (rows, cols) if down else (cols, rows)
    done = Columns(other.units, other.place, 0)
    for k in range(len(side.units)):
        total: Any = 0
        for p in pieces:
            own = (side.place == k).to(p.s.device)
            if down:
                chosen = torch.where(own.reshape(p.s.shape), p.s, 0)
                total = total + p.x * kind.transpose(chosen, p.weight, p.x)
            else:
                chosen = torch.where(own.reshape(p.x.shape), p.x, 0)
                total = total + p.s * kind.apply(chosen, p.weight)
        lines.append(done.sum(total.reshape(-1)))
    table = torch.stack(lines, 0 if down else 1)
    summed = [Columns(units, torch.empty(0), 1) for units in (rows.units, cols.units)]
    yield from matrix_blocks(ends, table, None, *summed)
