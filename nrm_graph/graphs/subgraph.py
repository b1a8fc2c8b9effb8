"""NetworkX graphs from node and edge tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.network import unit_names
from nrm_graph.network.topology import PSEUDO_UNITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import networkx as nx
    import numpy.typing as npt
    import pyarrow as pa

    from nrm_graph.network.topology import LayerInfo, Topology


def check_top(top: object) -> None:
    """Refuse what is no number of edges.

    Raises
    ------
    InputError
        If it is not an integer of at least 1.
    """
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise InputError(f"top must be at least 1, found {top!r}")


def largest(
    sizes: npt.NDArray[Any], top: int, ties: Sequence[npt.NDArray[Any]] = ()
) -> npt.NDArray[np.int64]:
    """Return the places of the largest values, the largest first.

    Parameters
    ----------
    sizes : ndarray, (N,)
        Not negative.
    top : int
        Number of places at most.
    ties : sequence of ndarray, (N,)
        Of equal values the one with the smaller of these comes first, then the earlier one.
    """
    # A sort of millions takes ten times as long.  The maxima of blocks are members, so that the
    # last of their strongest is at most that of all: few values are left to choose from.
    least = 0
    maxima = sizes[: len(sizes) // 64 * 64].reshape(64, -1).max(axis=0)
    if len(maxima) > top:
        least = np.partition(maxima, -top)[-top]
    places = np.flatnonzero(sizes >= least)
    if len(places) > top:
        places = places[sizes[places] >= np.partition(sizes[places], -top)[-top]]
    order = np.lexsort([*(tie[places] for tie in reversed(ties)), -sizes[places]])
    return places[order][:top]


def subgraph(
    topology: Topology,
    nodes: pa.Table,
    edges: pa.Table,
    top: int = 200,
    scale: float = 1.0,
    resolutions: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
) -> nx.DiGraph:
    """Build the graph of the strongest edges of one input.

    Parameters
    ----------
    topology : Topology
        Names of the layers.
    nodes, edges : pyarrow.Table
        Tables as in a store.
    top : int
        Number of edges with the largest absolute relevance that are kept.
    scale : float
        Multiplies every relevance.
    resolutions : sequence of str, optional
        What the units of every layer are, by ``layer_id``; with them a neuron knows its place.
    tokens : sequence of str, optional
        Text of every position of the input.

    Returns
    -------
    networkx.DiGraph
        Nodes are (layer name, unit) with ``layer``, ``unit``, ``relevance``, ``activation``,
        ``depth`` and, for a neuron of a layer with several axes, ``position`` (its index in
        the layer, ``"3, 10, 4"``); with resolutions ``name`` (``"head 3"``, ``"channel 12"``), and
        with tokens ``token``, the text of the position it belongs to; edges point from src
        (nearer the input) to dst, with ``relevance`` and, where both ends are neurons,
        ``conditional``.  ``graph["share"]`` is the share of the sum of |relevance| over all edges
        that the graph keeps,
        ``graph["shapes"]`` maps the layers of nodes with a position to their shapes.
    """
    import networkx as nx

    check_top(top)
    strength = np.abs(edges["relevance"].to_numpy())
    chosen = largest(strength, top)
    total = float(strength.sum())
    graph = nx.DiGraph(share=float(strength[chosen].sum()) / total if total else 1.0, shapes={})
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
            resolution = None if resolutions is None else resolutions[layer_id]
            position = _position(layer, resolution, unit)
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
                **_names(layer, resolution, unit, tokens),
            )
        return key

    for row in edges.take(chosen).to_pylist():
        weight = {"relevance": float(row["relevance"]) * scale}
        if row["conditional"] is not None:
            weight["conditional"] = float(row["conditional"])
        graph.add_edge(
            node(row["src_layer"], row["src_unit"]),
            node(row["dst_layer"], row["dst_unit"]),
            **weight,
        )
    return graph


def _position(layer: LayerInfo, resolution: str | None, unit: int) -> dict[str, str]:
    """Index of a neuron in a layer with several axes; nothing for another unit."""
    if resolution != "neuron" or unit < 0 or len(layer.shape) < 2:
        return {}
    index = np.unravel_index(unit, layer.shape)
    return {"position": ", ".join(str(int(i)) for i in index)}


def _names(
    layer: LayerInfo, resolution: str | None, unit: int, tokens: Sequence[str] | None
) -> dict[str, str | int]:
    """Name of a unit in words, and the token that it belongs to."""
    if resolution is None:
        return {}
    names: dict[str, str | int] = {"name": unit_names.unit_name(layer, resolution, unit, tokens)}
    if tokens is None:
        return names
    place = unit_names.token_index(layer, resolution, unit, len(tokens))
    return names if place is None else names | {"token": tokens[place], "token_index": place}
