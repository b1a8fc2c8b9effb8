"""NetworkX graphs from node and edge tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.events.unit_sets import unit_set
from nrm_graph.graphs.connected import Ends
from nrm_graph.graphs.connected import connected as connected_edges
from nrm_graph.graphs.largest import check_top, largest
from nrm_graph.graphs.stepped_over import stepped_over
from nrm_graph.network import unit_names
from nrm_graph.network.topology import BIAS, PSEUDO_UNITS, REMAINDER, STABILIZER

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import networkx as nx
    import numpy.typing as npt
    import pyarrow as pa

    from nrm_graph.network.topology import LayerInfo, Topology
    from nrm_graph.network.unit_names import UnitKind

ENDS = ("dst_layer", "dst_unit", "src_layer", "src_unit")
"""Columns of a table of edges that say what each joins."""


def subgraph(
    topology: Topology,
    nodes: pa.Table,
    edges: pa.Table,
    top: int = 200,
    scale: float = 1.0,
    kinds: Sequence[UnitKind] | None = None,
    tokens: Sequence[str] | None = None,
    *,
    connected: bool = True,
) -> nx.DiGraph:
    r"""Build the graph of the strongest edges of one input.

    Parameters
    ----------
    topology : Topology
        Names of the layers.
    nodes, edges : pyarrow.Table
        Tables as in a store.
    top : int
        Number of edges that are kept, at most.
    scale : float
        Multiplies every relevance.
    kinds : sequence of UnitKind, optional
        What the units of every layer are, by ``layer_id``; with them a neuron knows its place.
    tokens : sequence of str, optional
        Text of every position of the input.
    connected : bool
        Share the edges over the layers, so that every node is reached from the target and leads on
        to an end: an input or, where none is left, a pseudo-unit (bias, stabilizer, remainder, what
        was pruned); see :mod:`nrm_graph.graphs.connected`.  Otherwise those of the largest
        \|relevance\|, wherever they stand.

    Returns
    -------
    networkx.DiGraph
        Nodes are (layer name, unit) with ``layer``, ``unit``, ``relevance``, ``activation``,
        ``depth`` and, for a neuron of a layer with several axes, ``position`` (its index in
        the layer, ``"3, 10, 4"``); with kinds ``name`` (``"head 3"``, or ``"eyes (channel 12)"``
        where you named it, with ``own_name``, ``"eyes"``) and ``event``, the expression that
        names its neurons (``"features.28[12]"``; not of parts of units), for an output whose class
        or token is known ``output``, its text, and with tokens ``token``, the text of the position
        it belongs to; edges point from src
        (nearer the input) to dst, with ``relevance``, where both ends are neurons ``conditional``,
        and of a skip connection ``steps_over``, the names of the layers between.

        ``graph["share"]`` is the share of the sum of \|relevance\| over all edges that the graph
        keeps, ``graph["shapes"]`` maps the layers of nodes with a position to their shapes, and
        ``graph["absorbed_in"]`` maps layers to what their biases, stabilizers and remainders hold.
        Of a connected graph ``graph["connected"]`` is True, ``graph["share_strongest"]`` the share
        that the strongest ``top`` edges would keep, and a unit from which no kept edge leads on,
        though it is no end, has ``cut``.
    """
    check_top(top)
    strength = np.abs(edges["relevance"].to_numpy())
    total = float(strength.sum())

    def share(places: npt.NDArray[np.int64]) -> float:
        # The order of a sum of float32 may make the whole a little more than itself.
        return min(float(strength[places].sum()) / total, 1.0) if total else 1.0

    chosen = strongest = largest(strength, top)
    facts: dict[str, Any] = {"absorbed_in": absorbed_in(topology, nodes, scale)}
    cut: Collection[tuple[int, int]] = ()
    if connected:
        dst_layer, dst_unit, src_layer, src_unit = (edges[name].to_numpy() for name in ENDS)
        ends = Ends(dst_layer, dst_unit, src_layer, src_unit, strength)
        choice = connected_edges(ends, ((g.dst, g.src) for g in topology.groups), top)
        chosen, cut = choice.places, choice.cut
        facts |= {"connected": True, "share_strongest": share(strongest)}
    graph = graph_of(topology, nodes, edges.take(chosen), scale, kinds, tokens, cut)
    graph.graph |= {"share": share(chosen), **facts}
    return graph


def graph_of(
    topology: Topology,
    nodes: pa.Table,
    edges: pa.Table,
    scale: float = 1.0,
    kinds: Sequence[UnitKind] | None = None,
    tokens: Sequence[str] | None = None,
    cut: Collection[tuple[int, int]] = (),
) -> nx.DiGraph:
    """Build the graph of all edges of a table, as :func:`subgraph` does of those it chooses.

    ``cut`` names the units, by layer and number, that have the attribute.
    """
    import networkx as nx

    graph = nx.DiGraph(shapes={})
    of_node = {
        (layer, unit): (relevance, activation)
        for layer, unit, relevance, activation in zip(
            *(nodes[c].to_pylist() for c in ("layer_id", "unit", "relevance", "activation")),
            strict=True,
        )
    }

    def node(layer_id: int, unit: int) -> tuple[str, int]:
        layer = topology.layers[layer_id]
        key = (layer.name, unit)
        if key not in graph:
            relevance, activation = of_node.get((layer_id, unit), (0.0, None))
            kind = None if kinds is None else kinds[layer_id]
            position = _position(layer, kind, unit)
            if position:
                graph.graph["shapes"][layer.name] = layer.shape
            graph.add_node(
                key,
                layer=layer.name if unit >= 0 else f"{layer.name} {PSEUDO_UNITS[unit]}",
                unit=unit,
                relevance=float(relevance) * scale,
                depth=layer.depth,
                **({} if activation is None else {"activation": float(activation)}),
                **position,
                **_names(layer, kind, unit, tokens),
                **_event(layer, kind, unit),
                **({"cut": True} if (layer_id, unit) in cut else {}),
            )
        return key

    rows = edges.to_pylist()
    over = stepped_over(topology, {(row["dst_layer"], row["src_layer"]) for row in rows})
    for row in rows:
        data: dict[str, Any] = {"relevance": float(row["relevance"]) * scale}
        if row["conditional"] is not None:
            data["conditional"] = float(row["conditional"])
        if steps := over.get((row["dst_layer"], row["src_layer"])):
            data["steps_over"] = steps
        graph.add_edge(
            node(row["src_layer"], row["src_unit"]),
            node(row["dst_layer"], row["dst_unit"]),
            **data,
        )
    return graph


def absorbed_in(topology: Topology, nodes: pa.Table, scale: float = 1.0) -> dict[str, float]:
    """Return what biases, stabilizers and remainders of each layer hold, out of a node table."""
    rows = np.isin(nodes["unit"].to_numpy(), (BIAS, STABILIZER, REMAINDER))
    layers = nodes["layer_id"].to_numpy()[rows]
    sums = np.bincount(layers, nodes["relevance"].to_numpy()[rows], len(topology.layers)) * scale
    return {topology.layers[i].name: float(sums[i]) for i in np.unique(layers)}


def _position(layer: LayerInfo, kind: UnitKind | None, unit: int) -> dict[str, str]:
    """Index of a neuron in a layer with several axes; nothing for another unit."""
    if kind is None or kind.resolution != "neuron" or unit < 0 or len(layer.shape) < 2:
        return {}
    index = np.unravel_index(unit, layer.shape)
    return {"position": ", ".join(str(int(i)) for i in index)}


def _event(layer: LayerInfo, kind: UnitKind | None, unit: int) -> dict[str, str]:
    """Expression of a unit; nothing where none names exactly its neurons."""
    if kind is None or not kind.spelled or unit < 0:
        return {}
    return {"event": repr(unit_set(layer, kind.resolution, unit))}


def _names(
    layer: LayerInfo, kind: UnitKind | None, unit: int, tokens: Sequence[str] | None
) -> dict[str, str | int]:
    """Name of a unit in words, and the token that it belongs to."""
    if kind is None:
        return {}
    name = unit_names.unit_name(layer, kind, unit, tokens)
    names: dict[str, str | int] = {"name": name}
    if unit in kind.names:
        names["own_name"] = kind.names[unit]
    if unit in kind.outputs:
        names["output"] = kind.outputs[unit]
    if tokens is None:
        return names
    place = unit_names.token_index(layer, kind.resolution, unit, len(tokens))
    return names if place is None else names | {"token": tokens[place], "token_index": place}
