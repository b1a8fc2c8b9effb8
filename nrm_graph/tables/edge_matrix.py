"""Edges of one layer to one other, as a table of units by units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.propagation.tensor_sums import total
from nrm_graph.tables.edge_block import Block

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.tables.edge_block import Values


@dataclass(frozen=True, eq=False)
class Matrix:
    """Edges from the layer ``dst_layer`` to the layer ``src_layer``, of one sample, as a table.

    Attributes
    ----------
    rows, columns : ndarray of int32
        Units within their layers, in ascending order.
    relevance : Tensor, (rows, columns)
        Relevance of the direct step.
    q : Tensor or None
        Conditional relevance; None unless both ends are single neurons.
    """

    dst_layer: int
    src_layer: int
    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    relevance: Tensor
    q: Tensor | None = None

    def block(self) -> Block:
        """Return all entries as rows, exact zeros as well."""
        dst = np.repeat(self.rows, len(self.columns))
        src = np.tile(self.columns, len(self.rows))
        relevance, q = self._flat(self.relevance), None if self.q is None else self._flat(self.q)
        return Block(self.dst_layer, self.src_layer, dst, src, relevance, q)

    @property
    def turned(self) -> bool:
        """Whether memory holds one column after the other, as where a weight is (in, out)."""
        return not self.relevance.is_contiguous() and self.relevance.T.is_contiguous()

    @property
    def flat(self) -> Tensor:
        """All entries, one column after the other where they lie so in memory."""
        return (self.relevance.T if self.turned else self.relevance).flatten()

    def at(self, index: npt.NDArray[np.int64]) -> Block:
        """Return the entries at some places of :attr:`flat`, in order of rows and columns."""
        if self.turned:
            column, row = np.divmod(index, len(self.rows))
            order = np.argsort(row * len(self.columns) + column)
            row, column = row[order], column[order]
        else:
            row, column = np.divmod(index, len(self.columns))
        device = self.relevance.device
        places = torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)

        def values(table: Tensor) -> Values:
            chosen: Values = table[places].cpu().numpy()
            return chosen

        dst, src = self.rows[row], self.columns[column]
        q = None if self.q is None else values(self.q)
        return Block(self.dst_layer, self.src_layer, dst, src, values(self.relevance), q)

    def holds(self, other: Block | Matrix) -> bool:
        """Whether all edges of another piece of the pair have a place in the table."""
        if (self.q is None) != (other.q is None):
            return False
        if isinstance(other, Matrix):
            rows, columns = other.rows, other.columns
            return np.array_equal(self.rows, rows) and np.array_equal(self.columns, columns)
        ends = ((self.rows, other.dst), (self.columns, other.src))
        return all(bool(np.isin(units, known).all()) for known, units in ends)

    def plus(self, others: Sequence[Block | Matrix]) -> Matrix:
        """Sum pieces of one pair that the table holds."""

        def summed(name: str) -> Tensor:
            table: Tensor = getattr(self, name)
            table = total([table, *(getattr(o, name) for o in others if isinstance(o, Matrix))])
            for block in others:
                if isinstance(block, Block):
                    row = np.searchsorted(self.rows, block.dst)
                    column = np.searchsorted(self.columns, block.src)
                    places = tuple(torch.from_numpy(k).to(table.device) for k in (row, column))
                    values = torch.from_numpy(getattr(block, name)).to(table)
                    table = table.index_put(places, values, accumulate=True)
            return table

        q = None if self.q is None else summed("q")
        return replace(self, relevance=summed("relevance"), q=q)

    @staticmethod
    def _flat(table: Tensor) -> Values:
        values: Values = table.flatten().cpu().numpy()
        return values
