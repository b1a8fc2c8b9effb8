"""Stored edges of one input as a graph, out of its tables alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from nrm_graph.graphs import subgraph as graphs
from nrm_graph.network.topology import PRUNED
from nrm_graph.propagation import flags
from nrm_graph.store.lookups import pair
from nrm_graph.tables.arrow import absorbed

if TYPE_CHECKING:
    import networkx as nx

    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View


def subgraph(
    db: View,
    key: str | int,
    target: Sought | None = None,
    *,
    top: int = 200,
    connected: bool = True,
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

    Returns
    -------
    networkx.DiGraph
        As of :func:`nrm_graph.graphs.subgraph.subgraph`; what was pruned is there as edges of
        the pseudo-unit -3.  Of a bounded store ``share`` is that of the edges that are stored, and
        ``graph["kept"]`` the least share of a pair of layers that those are.  ``graph["meaning"]``
        says what a positive number speaks for, and ``graph["flags"]`` what else to know, in short
        where the numbers are not stored.

    Raises
    ------
    InputError
        If there is no such input, or it has several targets.
    StoreError
        If the store is damaged.
    """
    identity = pair(db, key, target)
    nodes, edges = (db._snapshot.rows(identity, table) for table in ("nodes", "edges"))
    entry, is_bounded = db._snapshot.entries[identity], db.meta.get("max_edges") is not None
    if is_bounded:  # a row of what a whole pair leaves out is no edge
        edges = edges.filter(pc.not_equal(edges["dst_unit"], PRUNED))
    graph = graphs.subgraph(
        db.topology, nodes, edges, top, resolutions=db.resolutions, connected=connected
    )
    logit = float(db._snapshot.facts(identity)["logit"])
    noted = flags.stored(logit, absorbed(nodes), entry.flags, db.bias)
    sense = flags.reading(flags.meaning(logit), db.bias)
    graph.graph |= {"meaning": sense, "flags": noted, "reading": db.bias}
    graph.graph |= {"kept": entry.kept} if is_bounded else {}
    return graph
