"""What of a circuit can be ablated: its units, or its direct edges, with their relevance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.circuits.checks import checked_layers
from nrm_graph.errors import InputError
from nrm_graph.network.topology import ENDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import networkx as nx

    from nrm_graph.evaluate.ranking import Key
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.units import Partition

Parts = list[tuple["Key", tuple[int, ...], float]]
"""Layer or pair of layers, unit or (dst unit, src unit), and relevance."""


def parts_of(
    circuit: nx.DiGraph,
    topology: Topology,
    partitions: Sequence[Partition],
    by: str,
    layers: Sequence[str] | None,
) -> Parts:
    """Return units or edges of a circuit with their relevance; pseudo-neurons are left out.

    Parameters
    ----------
    circuit : DiGraph
        The circuit.
    topology : Topology
        Of the network.
    partitions : sequence of Partition
        Units of every layer.
    by : "units" or "edges"
        What is asked for.
    layers : sequence of str, optional
        Layers of the units, or those that edges enter.

    Raises
    ------
    InputError
        If the circuit does not fit the network, or nothing is left.
    """
    layer_ids = None
    if layers is not None:
        layer_ids = {topology.layer(name).layer_id for name in checked_layers(layers)}
    if by == "units":
        parts = _units(circuit, topology, partitions, layer_ids)
    else:
        parts = _edges(circuit, topology, partitions, layer_ids)
    if not parts:
        raise InputError(
            f"the circuit has no {by} to ablate"
            + (" but inputs and outputs" if by == "units" and layer_ids is None else "")
            + ": compute it with a larger top, or name its layers"
        )
    return parts


def _units(
    circuit: nx.DiGraph,
    topology: Topology,
    partitions: Sequence[Partition],
    layer_ids: set[int] | None,
) -> Parts:
    parts: Parts = []
    for node, data in circuit.nodes(data=True):
        layer, unit = _place(node, topology, partitions)
        info = topology.layers[layer]
        inner = info.kind not in ENDS and info != topology.output
        if unit >= 0 and (inner if layer_ids is None else layer in layer_ids):
            parts.append(((layer,), (unit,), float(data["relevance"])))
    return parts


def _edges(
    circuit: nx.DiGraph,
    topology: Topology,
    partitions: Sequence[Partition],
    layer_ids: set[int] | None,
) -> Parts:
    parts: Parts = []
    for source, reader, data in circuit.edges(data=True):
        src, below = _place(source, topology, partitions)
        dst, above = _place(reader, topology, partitions)
        if below < 0 or above < 0 or not (layer_ids is None or dst in layer_ids):
            continue
        if src not in topology.sources(dst):
            raise InputError(
                f"the circuit has an edge from {source[0]} to {reader[0]}, which "
                "does not read it directly: only direct edges can be ablated"
            )
        parts.append(((dst, src), (above, below), float(data["relevance"])))
    return parts


def _place(
    node: tuple[str, int], topology: Topology, partitions: Sequence[Partition]
) -> tuple[int, int]:
    """Layer id and unit of a node."""
    name, unit = node
    layer = topology.layer(name).layer_id
    if unit >= partitions[layer].n_units:
        raise InputError(
            f"the circuit has the unit {unit} of {name}, which has "
            f"{partitions[layer].n_units}: pass the store that it was computed from"
        )
    return layer, int(unit)
