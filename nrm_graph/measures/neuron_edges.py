"""The neuron-level edge table that is not stored: any part of it, from the program.

Complete neuron tables of large networks have billions of rows (15 billion for a VGG16); any set of
them is computed from the kernel when it is asked for, in chunks whose upper neurons are their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError
from nrm_graph.measures.event_passes import arrived
from nrm_graph.measures.kernel_edges import Arrival, neuron_blocks, pseudo_block
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.tables.pruning import select

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.measures.event_passes import Terms
    from nrm_graph.propagation.state import State
    from nrm_graph.tables.edge_block import Block
    from nrm_graph.tables.pruning import Limit


MAX_ROWS = 50_000_000
"""Rows of one table of neuron-level edges."""


@dataclass(frozen=True, eq=False)
class Between:
    """The neuron-level edges from a set of one layer to a set of another, under an event.

    Attributes
    ----------
    state, start, terms
        See :func:`nrm_graph.measures.joint.joint`.
    upper, lower : int
        Layers; the same one twice for its pseudo-edges.
    dst, src : ndarray of bool, (n_neurons,)
        The sets, flat.
    known : callable
        See :func:`nrm_graph.measures.event_passes.arrived`.
    """

    state: State
    start: Tensor
    terms: Terms
    upper: int
    lower: int
    dst: npt.NDArray[np.bool_]
    src: npt.NDArray[np.bool_]
    known: Callable[[int], Tensor] | None = None

    def blocks(self) -> Iterator[Block]:
        """Compute them, chunk by chunk; no chunk is kept."""
        arrivals = []
        for coefficient, clause in self.terms:
            relevance = arrived(self.state, self.start, clause, self.upper, self.known)
            arrivals.append(Arrival(relevance * coefficient, reach(self.state, clause)))
        dst = self.dst & self._allowed()
        if self.upper == self.lower:
            yield pseudo_block(self.state, self.upper, dst, arrivals)
            return
        for block in neuron_blocks(self.state, self.upper, dst, arrivals):
            if block.src_layer == self.lower:
                keep = self.src[block.src]
                yield block.where(keep if len(arrivals) == 1 else keep & (block.relevance != 0))

    def _allowed(self) -> npt.NDArray[np.bool_]:
        """Upper neurons that walks of any of the conjunctions may pass through, flat."""
        allowed = np.zeros_like(self.dst)
        for _, clause in self.terms:
            literal = clause.get(self.upper)
            if literal is None:
                return np.ones_like(allowed)
            allowed |= np.asarray(literal.allowed).ravel()
        return allowed


def neuron_batches(asked: Between, scale: float) -> pa.RecordBatchReader:
    """Stream edges as Arrow batches; see ``Measure.edge_batches``."""
    kind = pa.from_numpy_dtype(asked.state.output.cpu().numpy().dtype)
    schema = pa.schema(
        [
            ("dst_layer", pa.int16()),
            ("dst_unit", pa.int32()),
            ("src_layer", pa.int16()),
            ("src_unit", pa.int32()),
            ("relevance", kind),
            ("conditional", kind),
        ]
    )
    batches = (_batch(block, schema, scale) for block in asked.blocks())
    return pa.RecordBatchReader.from_batches(schema, batches)


def _batch(block: Block, schema: pa.Schema, scale: float) -> pa.RecordBatch:
    values = schema.field("relevance").type.to_pandas_dtype()
    q = np.asarray(block.q, values)
    n = len(block)
    columns = [
        pa.array(np.full(n, block.dst_layer, np.int16)),
        pa.array(block.dst.astype(np.int32)),
        pa.array(np.full(n, block.src_layer, np.int16)),
        pa.array(block.src.astype(np.int32)),
        pa.array((block.relevance * scale).astype(values)),
        pa.array(q, mask=np.isnan(q)),
    ]
    return pa.record_batch(columns, schema=schema)


@exact
def neuron_table(asked: Between, limit: Limit, scale: float) -> pa.Table:
    """Collect edges in one table; see :meth:`nrm_graph.measures.measure.Measure.edges`.

    Raises
    ------
    InputError
        If there are more than ``MAX_ROWS``.
    """
    blocks: Iterable[Block] = asked.blocks()
    if not limit.complete and asked.upper != asked.lower:
        blocks = select(asked.blocks, {(asked.upper, asked.lower): limit})
    schema = neuron_batches(asked, scale).schema
    batches, rows = [], 0
    for block in blocks:
        rows += len(block)
        if rows > MAX_ROWS:
            raise InputError(
                f"there are more than {MAX_ROWS:,} such edges: ask for smaller sets with dst= and "
                "src=, keep the strongest with top= or coverage=, or stream them with "
                "edge_batches()"
            )
        batches.append(_batch(block, schema, scale))
    table = pa.Table.from_batches(batches, schema)
    return table.sort_by([("dst_unit", "ascending"), ("src_unit", "ascending")])
