"""Edges that statistics speak of: chosen without looking at labels, read in bounded blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.sums import EDGE, edge_partials
from nrm_graph.errors import InputError
from nrm_graph.graphs.subgraph import strongest, subgraph
from nrm_graph.tables import pruning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import networkx as nx
    from numpy.typing import NDArray

    from nrm_graph.circuits.group import Group
    from nrm_graph.database import Database
    from nrm_graph.network.topology import Topology

BLOCK_BYTES = 256 << 20
"""Values of all inputs of a group are read for as many edges at once as fit into this."""


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises
    ------
    InputError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, found {value!r}")


def check_circuit(graph: object) -> None:
    """Refuse what is no graph of relevance.

    Raises
    ------
    InputError
        If it is no directed graph, a node is no (layer name, unit), or an edge has no relevance.
    """
    import networkx as nx

    if not isinstance(graph, nx.DiGraph):
        raise InputError(f"expected a circuit as db.circuit() returns it, found {graph!r}")
    for node in graph:
        good = isinstance(node, tuple) and len(node) == 2 and isinstance(node[0], str)
        if not (good and isinstance(node[1], int | np.integer)):
            raise InputError(f"a circuit's nodes are (layer name, unit), found {node!r}")
    for src, dst, relevance in graph.edges(data="relevance"):
        if relevance is None:
            raise InputError(f"the edge from {src!r} to {dst!r} has no relevance")


def checked_layers(names: object) -> list[str]:
    """Refuse what is no list of at least one layer's name.

    Raises
    ------
    InputError
        If it is not; whether there are such layers is not looked at.
    """
    if isinstance(names, str) or not isinstance(names, Iterable) or not (found := list(names)):
        raise InputError(f"layers must be a list of names of layers, found {names!r}")
    return found


def known_partials(db: Database, group: Group, weight: str) -> tuple[pa.Table, int]:
    """Sum the edges whose relevance is known in every input of a group.

    Returns
    -------
    partials : pyarrow.Table
        As of :func:`nrm_graph.circuits.sums.edge_partials`.
    unknown : int
        Edges left out: the store prunes their pair of layers, and an input has no row of them.
    """
    found = edge_partials(db, group, weight)
    limits = pruning.stored(db.meta, db.topology)
    if not limits:
        return found, 0
    pruned = np.isin(pair_codes(found), [(d << 16) + s for d, s in limits])
    unknown = pruned & (found["n"].to_numpy() < len(group))
    return found.filter(pa.array(~unknown)), int(unknown.sum())


def pair_codes(edges: pa.Table) -> NDArray[np.int64]:
    """One number for each pair of layers, (E,)."""
    dst, src = (edges[f"{end}_layer"].to_numpy().astype(np.int64) for end in ("dst", "src"))
    code: NDArray[np.int64] = (dst << 16) + src
    return code


def by_size(partials: pa.Table, size: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of at most so many edges, the largest first; none of size 0.  Ties by name."""
    order = strongest(size, count, [partials[name].to_numpy() for name in EDGE])
    return order[size[order] > 0]


def choose_edges(
    db: Database, group: Group, weight: str, count: int, by: Literal["rms", "std"]
) -> tuple[pa.Table, int]:
    """Choose the edges of the largest root mean square, or standard deviation, over a group.

    Returns
    -------
    edges : pyarrow.Table
        Columns of :data:`nrm_graph.circuits.sums.EDGE`, the largest first.
    unknown : int
        As of :func:`known_partials`.
    """
    partials, unknown = known_partials(db, group, weight)
    size = partials["squares"].to_numpy() / len(group)
    if by == "std":
        # A variance of rounding is none: an edge that is alike in all inputs tells nothing.
        variance = size - (partials["total"].to_numpy() / len(group)) ** 2
        size = np.where(variance > 1e-12 * size, variance, 0.0)
    order = by_size(partials, size, count)
    return partials.select(EDGE).take(pa.array(order)), unknown


def blocks(edges: pa.Table, rows: int) -> Iterator[tuple[slice, pa.Table]]:
    """Divide edges so that an array of that many rows over each part stays bounded."""
    width = max(1, BLOCK_BYTES // (8 * max(rows, 1)))
    for start in range(0, len(edges), width):
        yield slice(start, min(start + width, len(edges))), edges.slice(start, width)


def with_names(topology: Topology, edges: pa.Table) -> pa.Table:
    """Put the names of both layers, as ``dst`` and ``src``, behind the columns of an edge."""
    names = np.array([layer.name for layer in topology.layers], object)
    for end in ("dst", "src"):
        column = pa.array(names[edges[f"{end}_layer"].to_numpy()], pa.string())
        edges = edges.append_column(end, column)
    return edges


def nullable(values: NDArray[np.float64]) -> pa.Array:
    """Arrow column in which NaN is null."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def key_shares(keys: Sequence[str]) -> NDArray[np.float64]:
    """Weights of rows whose weighted sum is the mean over keys of the mean of each key's rows."""
    times = Counter(keys)
    return np.array([1 / (len(times) * times[key]) for key in keys], np.float64)


def ends_of(edges: pa.Table) -> pa.Table:
    """Nodes that edges join, each once and in order: columns ``layer_id`` and ``unit``."""
    ends = [
        np.column_stack([edges[f"{end}_layer"].to_numpy(), edges[f"{end}_unit"].to_numpy()])
        for end in ("dst", "src")
    ]
    layers, numbers = np.unique(np.concatenate(ends), axis=0).T
    return pa.table({"layer_id": layers.astype(np.int16), "unit": numbers.astype(np.int32)})


def node_sums(
    db: Database, edges: pa.Table, ids: NDArray[np.int64], weights: NDArray[np.float64]
) -> pa.Table:
    """Weighted sums over inputs of the nodes at the ends of edges.

    Parameters
    ----------
    db : Database
        The store.
    edges : pyarrow.Table
        Columns of :data:`nrm_graph.circuits.sums.EDGE`.
    ids : ndarray of int64, (N,)
        Input ids; one that stands twice counts with both weights.
    weights : ndarray of float64, (N,)
        What the relevance of each input is multiplied by.

    Returns
    -------
    pyarrow.Table
        Columns ``layer_id``, ``unit``, ``relevance`` and ``activation`` (null); no row where no
        input has one.
    """
    return db.sql(
        "SELECT layer_id, unit, sum(CAST(relevance AS DOUBLE) * weight) AS relevance, "
        "CAST(NULL AS DOUBLE) AS activation "
        "FROM nodes JOIN weights USING (input_id) JOIN chosen USING (layer_id, unit) "
        "GROUP BY layer_id, unit ORDER BY layer_id, unit",
        inputs=np.unique(ids).tolist(),
        tables={
            "weights": pa.table({"input_id": ids, "weight": weights}),
            "chosen": ends_of(edges),
        },
    ).to_arrow_table()


def absorbed_share(db: Database, group: Group) -> float:
    """Mean share of the measure that biases, stabilizers and remainders hold."""
    query = (
        "SELECT coalesce(sum(CAST(relevance AS DOUBLE)), 0) FROM nodes WHERE unit IN (-1, -2, -4)"
    )
    ((total,),) = db.sql(query, inputs=group.ids.tolist()).fetchall()
    return float(total) / len(group)


def edge_graph(
    topology: Topology,
    resolutions: tuple[str, ...],
    nodes: pa.Table,
    edges: pa.Table,
    column: str,
    top: int,
    attributes: tuple[str, ...] = (),
) -> nx.DiGraph:
    """Graph of the strongest edges of a table of statistics.

    Parameters
    ----------
    topology, resolutions
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
    relevance = edges[column]
    plain = edges.select(EDGE).append_column("relevance", relevance)
    plain = plain.append_column("conditional", pa.nulls(len(edges), pa.float64()))
    graph = subgraph(topology, nodes, plain, top, resolutions=resolutions)
    for row in edges.select([*EDGE, "dst", "src", *attributes]).to_pylist():
        ends = (row["src"], row["src_unit"]), (row["dst"], row["dst_unit"])
        if graph.has_edge(*ends):
            said = {name: row[name] for name in attributes if row[name] is not None}
            graph.edges[ends].update(said)
    return graph
