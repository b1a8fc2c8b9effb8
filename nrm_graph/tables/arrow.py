"""Arrow tables of nodes and edges, in a store's columns, from arrays."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from nrm_graph.network.topology import BIAS, PRUNED, REMAINDER, STABILIZER
from nrm_graph.tables.edge_block import Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from nrm_graph.tables.edge_block import Values
    from nrm_graph.tables.unit_labels import Labels


class NodeColumns(NamedTuple):
    """Rows of one layer in a node table.

    Attributes
    ----------
    layer_id : int
        The layer.
    units : ndarray of int
        Units, or pseudo-units.
    relevance, activation : ndarray
        What they hold, and their mean activations; NaN of pseudo-units.
    """

    layer_id: int
    units: Labels
    relevance: Values
    activation: Values


def edge_rows(blocks: Iterable[Block], kind: npt.DTypeLike) -> pa.Table:
    """Edge table, sorted by (dst_layer, src_layer, dst_unit, src_unit).

    Blocks are sorted themselves; ``kind`` is the dtype of relevances.
    """
    blocks = sorted(blocks, key=lambda block: (block.dst_layer, block.src_layer))
    sizes = [len(block) for block in blocks]

    def column(values: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
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


def blocks_of(edges: pa.Table) -> Iterator[Block]:
    """Blocks of an edge table that is sorted by pairs of layers, as :func:`edge_rows` gives it."""
    columns = {name: edges[name].to_numpy() for name in edges.column_names}
    pair = (columns["dst_layer"].astype(np.int32) << 16) + columns["src_layer"]
    bounds = [0, *(np.flatnonzero(np.diff(pair)) + 1).tolist(), len(pair)]
    for start, end in itertools.pairwise(bounds):
        if start < end:
            dst, src, relevance, q = (
                columns[name][start:end]
                for name in ("dst_unit", "src_unit", "relevance", "conditional")
            )
            shares = None if np.isnan(q).all() else q
            upper, lower = (int(columns[name][start]) for name in ("dst_layer", "src_layer"))
            # Arrow's memory is read-only, of which torch warns.
            yield Block(upper, lower, dst, src, relevance.copy(), shares)


def node_columns(
    layer_id: int, sums: Values, means: Values, absorbed: Iterable[tuple[int, float]]
) -> list[NodeColumns]:
    """Layer, units, relevances and mean activations of one layer's rows.

    ``absorbed`` gives pseudo-units and what they hold; zeros are left out.
    """
    (chosen,) = np.nonzero((sums != 0) | (means != 0))
    lost = sorted((unit, share) for unit, share in absorbed if share)
    units, shares = [unit for unit, _ in lost], [share for _, share in lost]
    none = np.full(len(lost), np.nan)
    return [
        NodeColumns(layer_id, chosen, sums[chosen], means[chosen]),
        NodeColumns(layer_id, np.array(units, np.int64), np.array(shares, sums.dtype), none),
    ]


def node_rows(columns: Sequence[NodeColumns], kind: npt.DTypeLike) -> pa.Table:
    """Node table of all layers' columns."""
    layers = [np.full(len(c.units), c.layer_id, np.int16) for c in columns]
    unit = np.concatenate([c.units for c in columns])
    activation = np.concatenate([c.activation for c in columns]).astype(kind)
    return pa.table(
        {
            "layer_id": np.concatenate(layers),
            "unit": unit.astype(np.int32),
            "relevance": np.concatenate([c.relevance for c in columns]).astype(kind),
            "activation": pa.array(activation, mask=unit < 0),
        }
    )


def with_left_out(nodes: pa.Table, lost: Mapping[int, float]) -> pa.Table:
    """Add to a node table what the edges of each layer that are left out hold together."""
    layers = [layer for layer, relevance in lost.items() if relevance]
    columns = {
        "layer_id": layers,
        "unit": [PRUNED] * len(layers),
        "relevance": [lost[layer] for layer in layers],
        "activation": [None] * len(layers),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in nodes.schema]
    return pa.concat_tables([nodes, pa.table(arrays, nodes.schema)])


def absorbed(nodes: pa.Table) -> float:
    """Share of a measure that biases, stabilizers and remainders hold, from its node table."""
    lost = np.isin(nodes["unit"].to_numpy(), (BIAS, STABILIZER, REMAINDER))
    return float(nodes["relevance"].to_numpy()[lost].sum(dtype=np.float64))


def unplaced(nodes: pa.Table) -> float:
    """Sum over layers of the absolute share that their stabilizers hold, from a node table."""
    held = nodes["relevance"].to_numpy()[nodes["unit"].to_numpy() == STABILIZER]
    return float(np.abs(held).sum(dtype=np.float64))
