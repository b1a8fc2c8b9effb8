"""Arrow tables of nodes and edges, in a store's columns, from arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.network.topology import BIAS, REMAINDER, STABILIZER

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from nrm_graph.tables.edge_block import Block


def edge_rows(blocks: Iterable[Block], kind: npt.DTypeLike) -> pa.Table:
    """Edge table, sorted by (dst_layer, src_layer, dst_unit, src_unit).

    Blocks are sorted themselves; ``kind`` is the dtype of relevances.
    """
    blocks = sorted(blocks, key=lambda block: (block.dst_layer, block.src_layer))
    sizes = [len(block) for block in blocks]

    def column(values: list[Any], dtype: Any) -> Any:
        return np.concatenate(values).astype(dtype, copy=False) if values else np.zeros(0, dtype)

    if all(block.q is None for block in blocks):
        q: Any = pa.nulls(sum(sizes), pa.from_numpy_dtype(kind))
    else:
        nothing = [np.full(len(block), np.nan, kind) for block in blocks if block.q is None]
        q = column([nothing.pop(0) if block.q is None else block.q for block in blocks], kind)
        q = pa.array(q, mask=np.isnan(q))  # pruned rows have none either
    dst, src = (
        np.repeat(np.array([getattr(block, end) for block in blocks], np.int16), sizes)
        for end in ("dst_layer", "src_layer")
    )
    return pa.table(
        {
            "dst_layer": dst,
            "dst_unit": column([block.dst for block in blocks], np.int32),
            "src_layer": src,
            "src_unit": column([block.src for block in blocks], np.int32),
            "relevance": column([block.relevance for block in blocks], kind),
            "conditional": q,
        }
    )


def node_columns(
    layer_id: int, sums: Any, means: Any, absorbed: Iterable[tuple[int, Any]]
) -> list[tuple[Any, ...]]:
    """Layer, units, relevances and mean activations of one layer's rows.

    ``absorbed`` gives pseudo-units and what they hold; zeros are left out.
    """
    (chosen,) = np.nonzero((sums != 0) | (means != 0))
    lost = sorted(found for found in absorbed if found[1])
    units, values = [u for u, _ in lost], [value for _, value in lost]
    return [
        (layer_id, chosen, sums[chosen], means[chosen]),
        (layer_id, np.array(units, np.int64), np.array(values, sums.dtype), [np.nan] * len(lost)),
    ]


def node_rows(columns: list[tuple[Any, ...]], kind: npt.DTypeLike) -> pa.Table:
    """Node table of all layers' columns."""
    layer = np.concatenate([np.full(len(c[1]), c[0], np.int16) for c in columns])
    unit, sums, means = (np.concatenate([c[k] for c in columns]) for k in (1, 2, 3))
    return pa.table(
        {
            "layer_id": layer,
            "unit": unit.astype(np.int32),
            "relevance": sums.astype(kind),
            "activation": pa.array(means.astype(kind), mask=unit < 0),
        }
    )


def absorbed(nodes: pa.Table) -> float:
    """Share of a measure that biases, stabilizers and remainders hold, from its node table."""
    lost = np.isin(nodes["unit"].to_numpy(), (BIAS, STABILIZER, REMAINDER))
    return float(nodes["relevance"].to_numpy()[lost].sum(dtype=np.float64))
