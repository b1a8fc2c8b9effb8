"""How a store keeps tables: the edges of a measure pruned and rounded as its own are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.network.topology import PRUNED
from nrm_graph.tables import pruning
from nrm_graph.tables.arrow import blocks_of, edge_rows, with_left_out
from nrm_graph.tables.rounding import rounded

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from nrm_graph.events.sets import Event
    from nrm_graph.measures.measure import Measure
    from nrm_graph.store.view import View
    from nrm_graph.tables.bounded import Kept
    from nrm_graph.tables.edge_block import Block
    from nrm_graph.tables.pruning import Limit


@dataclass(frozen=True)
class TableForm:
    """How the store keeps tables: limits of pairs of layers, and mantissa bits of edges."""

    limits: Mapping[tuple[int, int], Limit]
    most: int | None
    bits: int | None

    def tables(
        self, m: Measure, event: Event | None = None
    ) -> tuple[pa.Table, pa.Table, Kept | None]:
        """Tables of a measure, pruned and rounded as the store's own are, and what was kept.

        With an event they are joint with it, as of :meth:`Measure.tables`.
        """
        kept: Kept | None = None
        if self.most is None:
            nodes, edges = m.tables(event)
            if self.limits:
                nodes, edges = _pruned(nodes, edges, self.limits)
        else:
            from nrm_graph.measures.edge_tables import bounded_tables

            nodes, edges, kept = bounded_tables(m, self.most, event)
        return nodes, edges if self.bits is None else rounded(edges, self.bits), kept


def stored_form(db: View) -> TableForm:
    """Limits and rounding of a store's tables.

    Raises
    ------
    StoreError
        If ``store.json`` is malformed.
    """
    limits, most = pruning.stored(db.meta, db.topology), db.meta.get("max_edges")
    return TableForm(limits, most, db.meta["mantissa_bits"])


def _pruned(
    nodes: pa.Table, edges: pa.Table, limits: Mapping[tuple[int, int], Limit]
) -> tuple[pa.Table, pa.Table]:
    """Keep the strongest edges of the pairs of layers that have a limit."""
    blocks: list[Block] = []
    lost: dict[int, float] = {}
    for block in blocks_of(edges):
        limit = limits.get((block.dst_layer, block.src_layer))
        if limit is not None:
            block = pruning.prune(block, limit)
            removed = block.relevance[(block.src == PRUNED) & (block.dst >= 0)]
            before = lost.get(block.dst_layer, 0.0)
            lost[block.dst_layer] = before + float(removed.sum(dtype=np.float64))
        blocks.append(block)
    kind = edges.schema.field("relevance").type.to_pandas_dtype()
    return with_left_out(nodes, lost), edge_rows(blocks, kind)
