"""Sums over inputs of the nodes at the ends of chosen edges, and of what is absorbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.statistics import key_sums
from nrm_graph.circuits.sums import NODE, values_by_input

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nrm_graph.circuits.source import Source
    from nrm_graph.store.view import View


def ends_of(edges: pa.Table) -> pa.Table:
    """Nodes that edges join, each once and in order: columns ``layer_id`` and ``unit``."""
    ends = [
        np.column_stack([edges[f"{end}_layer"].to_numpy(), edges[f"{end}_unit"].to_numpy()])
        for end in ("dst", "src")
    ]
    layers, numbers = np.unique(np.concatenate(ends), axis=0).T
    return pa.table({"layer_id": layers.astype(np.int16), "unit": numbers.astype(np.int32)})


def node_means(
    db: View, rows: Source, nodes: pa.Table
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Keys of a group in order, and the mean over targets of each key's nodes, (K, M).

    Relevance times weight; a node without a row has 0, which it is.
    """
    values = values_by_input(db, rows, rows.nodes, nodes.select(NODE))
    keys, sums, counts = key_sums(rows.group.keys, values * rows.weight[:, None])
    return keys, sums / counts[:, None]


def absorbed_share(db: View, rows: Source) -> float:
    """Mean share of the measure that biases, stabilizers and remainders hold."""
    query = (
        f"SELECT coalesce(sum(CAST(relevance AS DOUBLE)), 0) FROM {rows.nodes} "
        "WHERE unit IN (-1, -2, -4)"
    )
    ((total,),) = db.sql(query, inputs=rows.group.ids.tolist(), tables=rows.tables).fetchall()
    return float(total) / len(rows.group)
