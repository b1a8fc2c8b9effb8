"""Nodes, steps and ends of a reduced graph as Arrow tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from nrm_graph.network.topology import END_UNITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.measures.reduced.nodes import WatchedLayer
    from nrm_graph.measures.reduced.steps import Steps

NODES = pa.schema(
    [
        ("layer_id", pa.int16()),
        ("unit", pa.int32()),
        ("relevance", pa.float64()),
        ("activation", pa.float64()),
        ("neurons", pa.int64()),
    ]
)
EDGES = pa.schema(
    [
        ("dst_layer", pa.int16()),
        ("dst_unit", pa.int32()),
        ("src_layer", pa.int16()),
        ("src_unit", pa.int32()),
        ("relevance", pa.float64()),
        ("conditional", pa.float64()),
    ]
)


class Tables(NamedTuple):
    """Rows of a reduced graph, sorted by their ids."""

    nodes: pa.Table
    edges: pa.Table
    ends: pa.Table


def tables(
    watched: Sequence[WatchedLayer],
    steps: Steps,
    activations: Sequence[npt.NDArray[np.float64]],
    scale: float,
) -> Tables:
    """Make tables of what walks do at nodes, times a scale."""
    nodes: list[Sequence[Any]] = []
    ends: list[Sequence[Any]] = []
    for i, layer in enumerate(watched):
        units, ids = layer.units, np.full(len(layer.units), layer.layer_id)
        nodes.append((ids, units, steps.relevance[i] * scale, activations[i], layer.groups.sizes()))
        at, kind = np.nonzero((steps.ends[i] != 0) | (np.nan_to_num(steps.ended[i]) != 0))
        pseudo = np.array(END_UNITS)[kind]
        values = (steps.ends[i][at, kind] * scale, steps.ended[i][at, kind])
        ends.append((ids[at], units[at], ids[at], pseudo, *values))
    edges: list[Sequence[Any]] = []
    for (i, j), relevance in steps.steps.items():
        conditional = steps.conditional[i, j]
        at, to = np.nonzero((relevance != 0) | (np.nan_to_num(conditional) != 0))
        dst, src = watched[i], watched[j]
        upper, lower = (np.full(len(at), layer.layer_id) for layer in (dst, src))
        values = (relevance[at, to] * scale, conditional[at, to])
        edges.append((upper, dst.units[at], lower, src.units[to], *values))
    keys = ["dst_layer", "src_layer", "dst_unit", "src_unit"]
    return Tables(
        _table(NODES, nodes, ["layer_id", "unit"]),
        _table(EDGES, edges, keys),
        _table(EDGES, ends, keys),
    )


def with_ends(nodes: pa.Table, ends: pa.Table) -> pa.Table:
    """Rows of a node table, with what ends below the nodes of every layer as its pseudo-units."""
    sums = ends.group_by(["dst_layer", "src_unit"]).aggregate([("relevance", "sum")])
    columns = [sums[name] for name in ("dst_layer", "src_unit", "relevance_sum")]
    names = ["layer_id", "unit", "relevance", "activation"]
    pseudo = pa.table([*columns, pa.nulls(len(sums), pa.float64())], names=names)
    return pa.concat_tables([nodes.select(names), pseudo])


def _table(schema: pa.Schema, parts: Sequence[Sequence[Any]], keys: Sequence[str]) -> pa.Table:
    """Join columns of several layers; where a share is NaN there is none."""
    columns = []
    for i, field in enumerate(schema):
        values = np.concatenate([part[i] for part in parts]) if parts else np.zeros(0)
        mask = np.isnan(values) if field.name == "conditional" else None
        kind = field.type.to_pandas_dtype()
        columns.append(pa.array(values.astype(kind), field.type, mask=mask))
    return pa.table(columns, schema=schema).sort_by([(key, "ascending") for key in keys])
