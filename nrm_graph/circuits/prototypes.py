"""Inputs that a circuit stands for, and those that it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.checks import check_circuit, check_count
from nrm_graph.circuits.edges import blocks, edge_values, nullable
from nrm_graph.errors import InputError
from nrm_graph.store.input_group import group

if TYPE_CHECKING:
    import networkx as nx
    from numpy.typing import NDArray

    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View


def prototypes(
    db: View,
    circuit: nx.DiGraph,
    where: str | None = None,
    *,
    k: int = 5,
    target: Sought | None = None,
) -> pa.Table:
    """Find the inputs nearest to a circuit, and those farthest from it.

    An input's flow is its relevance on the circuit's edges (times its logit for a circuit with
    ``weight="logit"``); its similarity is the cosine of the flow and the circuit's means: 1 where
    they are in proportion, 0 where they have nothing in common, -1 for the opposite.  Of a circuit
    under a condition, flow and means are those of the edges and the condition.

    Parameters
    ----------
    db : Database
        The store of the circuit, or another one of the same network.
    circuit : networkx.DiGraph
        As of :meth:`nrm_graph.database.Database.circuit`.
    where : str, optional
        SQL condition over ``inputs`` that chooses candidates; all by default.  They need not be
        the circuit's inputs.
    k : int
        Number of inputs on each side.
    target : int, tuple, mapping or str, optional
        Only explanations of this target; by default every (key, target) pair is a candidate.

    Returns
    -------
    pyarrow.Table
        Columns ``side`` (``nearest``, the best first; ``farthest``, the worst first;
        ``undefined``, up to k inputs without relevance on these edges), ``input_id``, ``key``,
        ``label``, ``target`` (null of weights) and ``similarity`` (null where undefined).  No input
        is on two sides: of fewer than 2k the nearer half is ``nearest``.

    Raises
    ------
    InputError
        If no input is chosen, or the circuit has no edges or is one of ``per_input=True``.
    EventError
        If the store has no layer of a name in the circuit.

    Notes
    -----
    In a pair of layers that the store prunes, a flow is what is stored of it.

    Examples
    --------
    >>> cats = db.circuit("label = 'cat'", top=100)  # doctest: +SKIP
    >>> prototypes(db, cats, "label = 'dog'", k=3)  # doctest: +SKIP
    """
    check_count("k", k)
    check_circuit(circuit, db)
    if not circuit.number_of_edges():
        raise InputError("the circuit has no edges: expected a graph as db.circuit() returns it")
    chosen = group(db, where, target=target, mixed_targets=True)
    edges, means = _edges(db, circuit)
    given, tables, weight, by = map(circuit.graph.get, ("given", "tables", "weight", "by"))
    if circuit.graph.get("per_input"):
        raise InputError(
            "the circuit holds means of ratios (per_input=True), which inputs are not compared "
            "with: make it with per_input=False"
        )
    # Both sides as joint relevances R(edge & condition): a ratio of means has their signs only
    # where the group's R(condition) is positive.
    means = means * circuit.graph.get("condition_relevance", 1.0)
    along, squares = np.zeros((2, len(chosen)))
    for part, block in blocks(edges, len(chosen)):
        flows = edge_values(db, chosen, block, weight or "unit", given, tables=tables, by=by)
        along += flows @ means[part]
        squares += np.einsum("ne,ne->n", flows, flows)
    length = np.sqrt(squares) * np.linalg.norm(means)
    similarity = np.full(len(chosen), np.nan)
    np.divide(along, length, out=similarity, where=length > 0)
    order = np.lexsort([chosen.ids, -similarity])  # NaN last
    defined = order[: int((length > 0).sum())]
    middle = (len(defined) + 1) // 2
    near = defined[: min(k, middle)]
    far = defined[max(middle, len(defined) - k) :][::-1]
    none = order[len(defined) :][:k]
    places = np.concatenate([near, far, none])
    sides = ["nearest"] * len(near) + ["farthest"] * len(far) + ["undefined"] * len(none)
    aims = [chosen.aims[i] for i in places.tolist()]
    return pa.table(
        {
            "side": pa.array(sides, pa.string()),
            "input_id": pa.array(chosen.ids[places], pa.int64()),
            "key": pa.array([chosen.keys[i] for i in places.tolist()], pa.string()),
            "label": pa.array([chosen.labels[i] for i in places.tolist()], pa.string()),
            "target": pa.array([a if isinstance(a, int) else None for a in aims], pa.int64()),
            "similarity": nullable(np.clip(similarity[places], -1, 1)),
        }
    )


def _edges(db: View, circuit: nx.DiGraph) -> tuple[pa.Table, NDArray[np.float64]]:
    """Edges of a circuit as a store names them, and their means."""
    topology = db.topology
    rows = [
        (topology.layer(d[0]).layer_id, d[1], topology.layer(s[0]).layer_id, s[1], relevance)
        for s, d, relevance in circuit.edges(data="relevance")
    ]
    dst_layer, dst_unit, src_layer, src_unit, means = zip(*rows, strict=True)
    edges = pa.table(
        {
            "dst_layer": pa.array(dst_layer, pa.int16()),
            "dst_unit": pa.array(dst_unit, pa.int32()),
            "src_layer": pa.array(src_layer, pa.int16()),
            "src_unit": pa.array(src_unit, pa.int32()),
        }
    )
    return edges, np.array(means, np.float64)
