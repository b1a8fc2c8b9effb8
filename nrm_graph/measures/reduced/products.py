"""The strongest sequences of visits in a reduced graph of single neurons: products of shares."""

from __future__ import annotations

import heapq
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from nrm_graph.errors import InputError
from nrm_graph.measures.results import Path, Paths

if TYPE_CHECKING:
    from nrm_graph.measures.reduced.nodes import WatchedLayer
    from nrm_graph.measures.reduced.tables import Tables
    from nrm_graph.network.topology import Topology

    Node = tuple[int, int]
    Route = tuple[float, tuple[Node, ...]]


def strongest_products(tables: Tables, topology: Topology, target: WatchedLayer, k: int) -> Paths:
    """Find the k strongest paths, see :meth:`Reduced.paths`.

    Nodes are taken from the input upwards: the k strongest ways on from a node begin with the k
    strongest of those that it steps to, for what follows a single neuron does not depend on how
    walks came there.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k must be a number of paths, at least 1; found {k!r}")
    _check(tables, topology)
    onward: dict[Node, list[Route]] = {}
    mass: dict[Node, float] = {}
    steps: dict[Node, list[tuple[Node, float]]] = defaultdict(list)
    for dst_layer, dst, src_layer, src, _, share in _rows(tables):
        steps[dst_layer, dst].append(((src_layer, src), share))
    ended: dict[Node, float] = defaultdict(float)
    ends = tables.ends
    for row in ends.select(["dst_layer", "dst_unit", "conditional"]).to_pylist():
        ended[row["dst_layer"], row["dst_unit"]] += row["conditional"] or 0.0
    leaves = _leaves(tables, topology)
    relevance: dict[Node, float] = {}
    for row in tables.nodes.to_pylist():  # in the order of layers, from the input
        node = row["layer_id"], row["unit"]
        relevance[node] = row["relevance"]
        share = 1.0 if node in leaves else ended[node]
        here: list[Route] = [(share, (node,))] if share else []
        routes = chain(
            here,
            *(
                [(step * rest, (node, *units)) for rest, units in onward[below]]
                for below, step in steps[node]
            ),
        )
        onward[node] = heapq.nlargest(k + 1, routes, key=lambda route: abs(route[0]))
        mass[node] = abs(share) + sum(abs(step) * mass[below] for below, step in steps[node])
    whole: list[Route] = []
    total = 0.0
    for unit in target.units.tolist():
        node = target.layer_id, unit
        whole += [(relevance[node] * share, units) for share, units in onward[node]]
        total += abs(relevance[node]) * mass[node]
    whole = heapq.nlargest(k + 1, whole, key=lambda route: abs(route[0]))
    names = [layer.name for layer in topology.layers]
    chosen = [
        Path(tuple((names[layer], unit) for layer, unit in units), value)
        for value, units in whole[:k]
    ]
    rest = abs(whole[k][0]) if len(whole) > k else 0.0
    left = max(total - sum(abs(path.relevance) for path in chosen), rest)
    return Paths(tuple(chosen), (), rest, left if rest else 0.0, True)


def _rows(tables: Tables) -> list[tuple[int, int, int, int, float, float]]:
    columns = (tables.edges[name].to_pylist() for name in tables.edges.column_names)
    return [
        (dst_layer, dst, src_layer, src, relevance, share or 0.0)
        for dst_layer, dst, src_layer, src, relevance, share in zip(*columns, strict=True)
    ]


def _leaves(tables: Tables, topology: Topology) -> set[tuple[int, int]]:
    """Nodes at which all that arrives ends: of inputs; groups from which no walk steps on."""
    stepping = set(
        zip(*(tables.edges[n].to_pylist() for n in ("dst_layer", "dst_unit")), strict=True)
    )
    inputs = {layer.layer_id for layer in topology.inputs}
    columns = (tables.nodes[name].to_pylist() for name in ("layer_id", "unit", "neurons"))
    return {
        (layer, unit)
        for layer, unit, neurons in zip(*columns, strict=True)
        if layer in inputs or (neurons > 1 and (layer, unit) not in stepping)
    }


def _check(tables: Tables, topology: Topology) -> None:
    """Refuse to multiply grouped steps.

    Raises
    ------
    InputError
        Naming a node, or the condition.
    """
    sizes = {
        (row["layer_id"], row["unit"]): row["neurons"]
        for row in tables.nodes.select(["layer_id", "unit", "neurons"]).to_pylist()
    }
    shares = tables.edges.filter(pc.is_null(tables.edges["conditional"]))
    for row in shares.select(["dst_layer", "dst_unit", "relevance"]).to_pylist():
        layer = topology.layers[row["dst_layer"]].name
        count = sizes[row["dst_layer"], row["dst_unit"]]
        if count > 1:
            raise InputError(
                f"paths multiplies steps, which is exact between single neurons alone; node "
                f"{row['dst_unit']} of {layer} holds {count} neurons: take by='neuron', or ask "
                "for m.paths(layers=[...]), which computes paths of groups"
            )
        if row["relevance"]:
            raise InputError(
                "paths needs the shares of every neuron's walks, which a condition that is no "
                "single conjunction does not have: condition on its parts one by one"
            )
