"""Graphs as two tables, of nodes and of edges: Arrow and Parquet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from nrm_graph.graphs.formats.columns import Column, Flat

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_KINDS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def tables(graph: Flat) -> tuple[pa.Table, pa.Table]:
    """Return the tables of nodes and edges; see :func:`nrm_graph.graphs.formats.to_arrow`."""
    facts = {"graph": json.dumps(graph.facts, allow_nan=False, default=str)}
    nodes = {
        "layer": Column(str, [layer for layer, _ in graph.nodes]),
        "unit": Column(int, [unit for _, unit in graph.nodes]),
    }
    edges = {}
    for end, name in enumerate(("src", "dst")):
        edges[f"{name}_layer"] = Column(str, [edge[end][0] for edge in graph.edges])
        edges[f"{name}_unit"] = Column(int, [edge[end][1] for edge in graph.edges])
    return _table(nodes, graph.of_nodes, facts), _table(edges, graph.of_edges, facts)


def parquet(graph: Flat, path: Path) -> dict[Path, bytes]:
    """Encode ``NAME.nodes.parquet`` and ``NAME.edges.parquet`` for a path ``NAME.parquet``."""
    files = {}
    for table, part in zip(tables(graph), parts(path), strict=True):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        files[part] = sink.getvalue().to_pybytes()
    return files


def parts(path: Path) -> list[Path]:
    """Return the files that a path ``NAME.parquet`` stands for."""
    return [path.with_name(f"{path.stem}.{part}{path.suffix}") for part in ("nodes", "edges")]


def _table(
    ends: Mapping[str, Column], attributes: Mapping[str, Column], facts: dict[str, str]
) -> pa.Table:
    # The name of a pseudo node's layer comes with its kind in the attribute, not in the node.
    columns = {**ends, **{name: c for name, c in attributes.items() if name not in ends}}
    arrays = [pa.array(column.values, _KINDS[column.kind]) for column in columns.values()]
    return pa.table(arrays, names=list(columns)).replace_schema_metadata(facts)
