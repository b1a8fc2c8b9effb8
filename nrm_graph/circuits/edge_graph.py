"""The graph of the strongest edges of a table of statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.engines import EDGE
from nrm_graph.graphs.largest import check_top, largest
from nrm_graph.graphs.subgraph import graph_of
from nrm_graph.network.unit_coordinates import written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import networkx as nx

    from nrm_graph.network.topology import Topology
    from nrm_graph.network.unit_names import UnitKind


def with_names(topology: Topology, kinds: Sequence[UnitKind], edges: pa.Table) -> pa.Table:
    """Put the names of both layers, as ``dst`` and ``src``, behind the columns of an edge.

    Where the user named any unit, the ends follow as text: ``dst_name`` and ``src_name``.
    """
    names = np.array([layer.name for layer in topology.layers], object)
    for end in ("dst", "src"):
        column = pa.array(names[edges[f"{end}_layer"].to_numpy()], pa.string())
        edges = edges.append_column(end, column)
    if not any(kind.names for kind in kinds):
        return edges
    for end in ("dst", "src"):
        ends = zip(*(edges[f"{end}_{what}"].to_pylist() for what in ("layer", "unit")), strict=True)
        texts = [written(topology.layers[i], kinds[i], unit) for i, unit in ends]
        edges = edges.append_column(f"{end}_name", pa.array(texts, pa.string()))
    return edges


def end_text(row: Mapping[str, Any], end: str) -> str:
    """Write an end of an edge: as it is named, or by its layer and number."""
    return str(row.get(f"{end}_name") or f"{row[end]}[{row[f'{end}_unit']}]")


def edge_text(row: Mapping[str, Any]) -> str:
    """Write an edge as the network computes it, and pictures draw it."""
    return f"{end_text(row, 'src')} -> {end_text(row, 'dst')}"


def edge_graph(
    topology: Topology,
    kinds: Sequence[UnitKind],
    nodes: pa.Table,
    edges: pa.Table,
    column: str,
    top: int,
    attributes: tuple[str, ...] = (),
) -> nx.DiGraph:
    """Graph of the strongest edges of a table of statistics.

    Parameters
    ----------
    topology, kinds
        Names and places of units.
    nodes : pyarrow.Table
        ``layer_id``, ``unit``, ``relevance`` and ``activation`` of nodes.
    edges : pyarrow.Table
        Columns of an edge and of its statistics, without nulls in ``column``.
    column : str
        What becomes the edges' ``relevance``.
    top : int
        Number of edges.
    attributes : tuple of str
        Columns that edges have besides, where they are not null.
    """
    check_top(top)
    strength = np.abs(edges[column].to_numpy())
    chosen = largest(strength, top)
    total = float(strength.sum())
    share = float(strength[chosen].sum()) / total if total else 1.0
    edges = edges.take(chosen)
    plain = edges.select(EDGE).append_column("relevance", edges[column])
    plain = plain.append_column("conditional", pa.nulls(len(edges), pa.float64()))
    graph = graph_of(topology, nodes, plain, kinds=kinds)
    graph.graph["share"] = share
    for row in edges.select([*EDGE, "dst", "src", *attributes]).to_pylist():
        ends = (row["src"], row["src_unit"]), (row["dst"], row["dst_unit"])
        statistics = {name: row[name] for name in attributes if row[name] is not None}
        graph.edges[ends].update(statistics)
    return graph
