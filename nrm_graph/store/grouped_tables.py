"""Rows of a store, summed to coarser units when they are asked for.

Relevance adds up, so that the sums are exact; a conditional of what is summed is none, and null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from nrm_graph.network.grouped_units import GroupedUnits

REGROUPED = "regrouped_units"
"""Table that the queries read: of every unit that becomes part of another, which and how large."""

_EDGES = f"""(
SELECT input_id, dst_layer, coalesce(above.becomes, dst_unit) AS dst_unit,
  src_layer, coalesce(below.becomes, src_unit) AS src_unit,
  sum(CAST(relevance AS DOUBLE)) AS relevance, CAST(NULL AS DOUBLE) AS conditional,
  count(*) >= max(coalesce(above.size, 1)) * max(coalesce(below.size, 1)) AS whole
FROM {{edges}}
  LEFT JOIN {REGROUPED} AS above ON dst_layer = above.of_layer AND dst_unit = above.of_unit
  LEFT JOIN {REGROUPED} AS below ON src_layer = below.of_layer AND src_unit = below.of_unit
GROUP BY 1, 2, 3, 4, 5) AS grouped_edges"""

_NODES = f"""(
SELECT input_id, layer_id, coalesce(becomes, unit) AS unit,
  sum(CAST(relevance AS DOUBLE)) AS relevance,
  CASE WHEN count(becomes) = 0 THEN max(CAST(activation AS DOUBLE)) END AS activation
FROM {{nodes}} LEFT JOIN {REGROUPED} ON layer_id = of_layer AND unit = of_unit
GROUP BY 1, 2, 3) AS grouped_nodes"""


def grouped_edges(edges: str = "edges") -> str:
    """Write what SQL reads grouped edges from, ``whole`` where all that is summed has a row."""
    return _EDGES.format(edges=edges)


def grouped_nodes(nodes: str = "nodes") -> str:
    """Write what SQL reads grouped nodes from; the activation of what is summed is null."""
    return _NODES.format(nodes=nodes)


def regrouped(units: GroupedUnits) -> pa.Table:
    """Return the table :data:`REGROUPED`."""
    return pa.concat_tables(
        pa.table(
            {
                "of_layer": np.full(len(becomes), layer_id, np.int16),
                "of_unit": np.arange(len(becomes), dtype=np.int32),
                "becomes": becomes,
                "size": units.sizes(layer_id)[becomes],
            }
        )
        for layer_id, becomes in units.into.items()
    )
