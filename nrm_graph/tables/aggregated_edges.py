"""Edges between units of operations whose kernel need not be listed edge by edge.

Where all that a neuron leads to is one unit, its share is that unit's (``up``); where all that a
neuron reads is one unit, its relevance goes there (``down``); what a normalisation subtracts is a
product through its sets (``sets``).  Else one side's units are tried one by one (``probe``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.propagation.tensor_sums import total
from nrm_graph.tables.dense_edges import (
    Ends,
    SampleTerm,
    both_sides,
    cached,
    loose_rows,
    matrix_blocks,
)
from nrm_graph.tables.plan import ColumnUnits, column_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.network.maps.linear import Map, Spread
    from nrm_graph.tables.bounded import Piece
    from nrm_graph.tables.dense_edges import OperandKey
    from nrm_graph.tables.edge_block import Values
    from nrm_graph.tables.unit_labels import Labels


def up_blocks(
    ends: Ends,
    key: OperandKey,
    kind: Map,
    terms: Sequence[SampleTerm],
    batch: BatchAxis,
    above: Labels,
    src: Labels,
    fine: bool,
) -> Iterator[Piece]:
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
        q = [term.x * kind.transpose(term.factor, term.weight, term.x) for term in terms]
    values = [term.x * term.back for term in terms]
    yield from _paired(ends, key, batch, above, src, values, q)


def down_blocks(
    ends: Ends,
    key: OperandKey,
    kind: Map,
    terms: Sequence[SampleTerm],
    batch: BatchAxis,
    dst: Labels,
    below: Labels,
) -> Iterator[Piece]:
    """Blocks where all that a neuron reads is one unit; see :func:`up_blocks`.

    ``below`` is the global unit of what each neuron reads, and ``batch`` that of the output.
    """
    values = [(term.s * kind.apply(term.x, term.weight)).expand(term.s.shape) for term in terms]
    yield from _paired(ends, key, batch, dst, below, values, None)


def _paired(
    ends: Ends,
    key: OperandKey,
    batch: BatchAxis,
    dst: Labels,
    src: Labels,
    values: Sequence[Tensor],
    q: Sequence[Tensor] | None,
) -> Iterator[Piece]:
    """Sum values, one per neuron, by the pair of units that each belongs to."""
    width = int(ends.plan.first[-1])

    def pairs() -> ColumnUnits:
        both = np.where((src >= 0) & (dst >= 0), dst.astype(np.int64) * width + src, -1)
        return column_units(both.ravel())

    columns = cached(ends.plan, (*key, "pairs"), pairs)

    def summed(parts: Sequence[Tensor]) -> Values:
        by_pair: Values = columns.sum(batch.samples(total(parts)).reshape(-1)).cpu().numpy()
        return by_pair

    above, below = np.divmod(columns.units, width)
    yield from loose_rows(ends, above, below, summed(values), None if q is None else summed(q))


def set_blocks(
    ends: Ends, key: OperandKey, kind: Spread, terms: Sequence[SampleTerm], dst: Labels, src: Labels
) -> Iterator[Piece]:
    """Blocks of what is summed over sets: ``sum_g (sum of s w in J & g) (sum of x in I & g)``.

    ``dst`` and ``src`` are labels in native order, flat.
    """
    plan = ends.plan
    sets = cached(plan, (*key, "sets"), lambda: kind.sets(tuple(terms[0].x.shape)).astype(np.int32))
    count = int(sets.max(initial=-1)) + 1
    rows, cols = both_sides(plan, key, dst, src)

    def cells(side: ColumnUnits) -> ColumnUnits:
        """Cells of units by sets, units first."""
        place = side.place.numpy()
        return column_units(np.where(place < len(side.units), place * count + sets, -1))

    def by_set(side: ColumnUnits, of_side: str, values: Tensor) -> Tensor:
        cell = cached(plan, (*key, of_side, "cells"), lambda: cells(side))
        table = values.new_zeros(len(side.units) * count)
        table[torch.from_numpy(cell.units).to(values.device)] = cell.sum(values.reshape(-1))
        return table.reshape(-1, count)

    products = [
        by_set(rows, "dst", (term.s * term.weight).expand(term.s.shape))
        @ by_set(cols, "src", term.x.expand(term.s.shape)).T
        for term in terms
    ]
    summed = [ColumnUnits(side.units, len(side.units)) for side in (rows, cols)]
    yield from matrix_blocks(ends, total(products), None, *summed)


def probe_blocks(
    ends: Ends, key: OperandKey, kind: Map, terms: Sequence[SampleTerm], dst: Labels, src: Labels
) -> Iterator[Piece]:
    """Blocks of any operation: the units of the smaller side are tried one by one.

    ``dst`` and ``src`` are labels in native order, flat.
    """
    rows, cols = both_sides(ends.plan, key, dst, src)
    lines = []
    down = len(rows.units) <= len(cols.units)
    side, other = (rows, cols) if down else (cols, rows)
    place = side.place
    for k in range(len(side.units)):
        line: Any = 0
        for term in terms:
            of_unit = (place == k).to(term.s.device)
            if down:
                chosen = torch.where(of_unit.reshape(term.s.shape), term.s, 0)
                line = line + term.x * kind.transpose(chosen, term.weight, term.x)
            else:
                chosen = torch.where(of_unit.reshape(term.x.shape), term.x, 0)
                line = line + term.s * kind.apply(chosen, term.weight)
        lines.append(other.sum(line.reshape(-1)))
    table = torch.stack(lines, 0 if down else 1)
    summed = [ColumnUnits(side.units, len(side.units)) for side in (rows, cols)]
    yield from matrix_blocks(ends, table, None, *summed)
