"""What units a circuit names: those of the store, or nodes of reduced tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.circuits.source import reduced_tables
from nrm_graph.errors import InputError
from nrm_graph.network.grouped_units import asked_units
from nrm_graph.network.units import RESOLUTIONS, Partition, partition

if TYPE_CHECKING:
    import networkx as nx

    from nrm_graph.store.format.recorded_nodes import LayerNodes
    from nrm_graph.store.view import View


def partitions_of(db: View, circuit: nx.DiGraph, by: str) -> tuple[Partition, ...]:
    """Units of every layer, as a circuit names them.

    Raises
    ------
    InputError
        If the nodes of its reduced tables are no whole units, or its steps are to be ablated; or
        its units were summed by an array, which a graph does not hold.
    """
    name = circuit.graph.get("tables")
    if name is None:
        return asked_units(db.topology, db.partitions, circuit.graph.get("by", {}))
    if by == "edges":
        raise InputError(
            "a step of reduced tables stands for all that lies between its nodes: ablate units of "
            "this circuit (by='units'), or edges of one of the store's own tables"
        )
    parts = list(db.partitions)
    nodes = reduced_tables(db, name).nodes
    for layer in () if nodes is None else nodes.labels:
        layer_id = layer.info.layer_id
        parts[layer_id] = _units(layer, parts[layer_id])
    return tuple(parts)


def _units(layer: LayerNodes, stored: Partition) -> Partition:
    """Return the units that are nodes, and the others of the layer."""
    candidates = [stored]
    if layer.resolution in RESOLUTIONS:
        candidates.append(partition(layer.info, layer.resolution))
    elif layer.resolution == "layer":
        candidates.append(Partition("layer", np.zeros(layer.info.shape, np.int32), 1))
    for part in candidates:
        nodes = np.isin(part.labels, layer.units)
        if (np.where(nodes, part.labels, -1) == layer.labels).all():
            return part
    raise InputError(
        f"the nodes of {layer.info.name} are no whole units of the layer: ablation is of units, so "
        "watch whole layers, by a resolution or the store's own units"
    )
