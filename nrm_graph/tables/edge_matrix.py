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

    def at(self, index: npt.NDArray[np.int64]) -> Block:
        """Return the entries at some places, counted along the rows."""
        row, column = np.divmod(index, len(self.columns))
        places = torch.from_numpy(index).to(self.relevance.device)

        def values(table: Tensor) -> Values:
            chosen: Values = table.flatten()[places].cpu().numpy()
            return chosen

        dst, src = self.rows[row], self.columns[column]
        q = None if self.q is None else values(self.q)
        return Block(self.dst_layer, self.src_layer, dst, src, values(self.relevance), q)

    def alike(self, other: Matrix) -> bool:
        """Whether another table has the same rows and columns."""
        return np.array_equal(self.rows, other.rows) and np.array_equal(self.columns, other.columns)

    def plus(self, others: Sequence[Matrix]) -> Matrix:
        """Sum tables of the same rows and columns."""
        relevance = total([self.relevance, *(other.relevance for other in others)])
        shares = [table.q for table in (self, *others) if table.q is not None]
        return replace(self, relevance=relevance, q=total(shares) if shares else None)

    @staticmethod
    def _flat(table: Tensor) -> Values:
        values: Values = table.flatten().cpu().numpy()
        return values
