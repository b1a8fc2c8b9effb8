"""Stored edges of one input as a graph, out of its tables alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from nrm_graph.graphs import subgraph as graphs
from nrm_graph.network.grouped_units import grouped_units, kinds_of
from nrm_graph.network.token_texts import own_tokens
from nrm_graph.network.topology import PRUNED
from nrm_graph.propagation import flags
from nrm_graph.store.grouped_tables import REGROUPED, grouped_edges, grouped_nodes, regrouped
from nrm_graph.store.lookups import pair
from nrm_graph.store.position_texts import tokens_of
from nrm_graph.tables.arrow import absorbed

if TYPE_CHECKING:
    import networkx as nx
    import pyarrow as pa

    from nrm_graph.network.grouped_units import By, GroupedUnits
    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View


SUMMED = (
    "the store leaves edges out: of units that are summed, edges are sums of what is stored; "
    "db.measure(key).subgraph(by=...) computes them"
)
"""Said of a graph whose edges may lack what is not stored."""


def subgraph(
    db: View,
    key: str | int,
    target: Sought | None = None,
    *,
    top: int = 200,
    connected: bool = True,
    by: By | None = None,
) -> nx.DiGraph:
    """Return strong stored edges of one input as a graph.

    It needs neither torch nor the input: where the store is complete and lossless the graph is
    that of ``db.measure(key).subgraph(top)``, which is computed from the program.

    Parameters
    ----------
    db : Database
        The store.
    key : str or int
        Key or input_id.
    target : int, tuple, mapping or str, optional
        Needed where the key has several targets.
    top : int
        Number of edges, at most.
    connected : bool
        Whether every node is reached from the target and leads on to an end; otherwise the
        strongest edges, wherever they stand.
    by : str or mapping of layer name to str or array, optional
        Sum the store's units to coarser ones, as in :meth:`nrm_graph.database.Database.circuit`;
        in a pair of layers that the store bounds, what is stored of them, which a flag says.

    Returns
    -------
    networkx.DiGraph
        As of :func:`nrm_graph.graphs.subgraph.subgraph`; what was pruned is there as edges of
        the pseudo-unit -3.  Of a bounded store ``share`` is that of the edges that are stored, and
        ``graph["kept"]`` the least share of a pair of layers that those are.  ``graph["meaning"]``
        says what a positive number speaks for, and ``graph["flags"]`` what else to know, in short
        where the numbers are not stored; ``graph["tokens"]`` is the text, where the store names
        its tokens.

    Raises
    ------
    InputError
        If there is no such input, or it has several targets.
    StoreError
        If the store is damaged.
    """
    identity = pair(db, key, target)
    units = grouped_units(db.topology, db.partitions, by)
    nodes, edges = _rows(db, identity, units)
    entry, is_bounded = db._snapshot.entries[identity], db.meta.get("max_edges") is not None
    if is_bounded:  # a row of what a whole pair leaves out is no edge
        edges = edges.filter(pc.not_equal(edges["dst_unit"], PRUNED))
    tokens = tokens_of(db, identity)
    graph = graphs.subgraph(
        db.topology,
        nodes,
        edges,
        top,
        kinds=kinds_of(units.partitions if units else db.partitions, db.partitions),
        tokens=tokens,
        connected=connected,
    )
    logit = float(db._snapshot.facts(identity)["logit"])
    noted = flags.stored(logit, absorbed(nodes), entry.flags, db.bias)
    sense = flags.reading(flags.meaning(logit), db.bias)
    graph.graph |= {"meaning": sense, "flags": noted, "reading": db.bias}
    graph.graph |= {"kept": entry.kept} if is_bounded else {}
    graph.graph |= {} if tokens is None else {"tokens": own_tokens(tokens)}
    if units is not None:
        graph.graph["by"] = dict(units.names)
        if db.meta.get("pruned") or is_bounded:
            graph.graph["flags"] += (SUMMED,)
    return graph


def _rows(db: View, identity: int, units: GroupedUnits | None) -> tuple[pa.Table, pa.Table]:
    """Nodes and edges of one input, in units that are asked for."""
    if units is None:
        return db._snapshot.rows(identity, "nodes"), db._snapshot.rows(identity, "edges")
    tables = {REGROUPED: regrouped(units)}
    nodes, edges = (
        db.sql(f"SELECT * FROM {rows} ORDER BY ALL", inputs=[identity], tables=tables)
        for rows in (grouped_nodes(), grouped_edges())
    )
    return nodes.to_arrow_table(), edges.to_arrow_table()
