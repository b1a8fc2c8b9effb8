"""Heat maps of nodes: where in the input the relevance goes that passes through each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.measures.joint import NeuronGroups, joint
from nrm_graph.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.measures.reduced.nodes import WatchedLayer
    from nrm_graph.network.topology import LayerInfo, Topology

AXES = 3
"""Axes of an input that is a picture: channels, rows and columns."""


def picture(topology: Topology) -> LayerInfo | None:
    """Return the first input that is a picture, of shape (C, H, W), or None where none is."""
    return next((info for info in topology.inputs if len(info.shape) == AXES), None)


def image_of(measure: Algebra) -> npt.NDArray[Any] | None:
    """Return the input that is a picture, (H, W, C), as the network takes it; None without one."""
    shown = picture(measure.topology)
    if shown is None:
        return None
    values = measure.state.values[measure.network.values[shown.layer_id]][0].detach()
    image: npt.NDArray[Any] = np.moveaxis(values.cpu().numpy(), 0, -1)
    return image


def unit_maps(
    measure: Algebra, watched: Sequence[WatchedLayer], nodes: Collection[tuple[str, int]]
) -> dict[tuple[str, int], npt.NDArray[np.float64]]:
    """Sum over channels the relevance of pixels that passes through each node, ``(H, W)``.

    Parameters
    ----------
    measure : Measure
        Of a network with an input of shape (C, H, W), the first such is taken.
    watched : sequence of WatchedLayer
        Where the nodes are.
    nodes : collection of (str, int)
        Layers and units of the nodes that are asked for; what is no node is passed over.

    Raises
    ------
    InputError
        If no input is a picture.
    """
    topology = measure.topology
    shown = picture(topology)
    if shown is None:
        shapes = ", ".join(f"{info.name} {info.shape}" for info in topology.inputs)
        raise InputError(
            f"maps of units need an input of shape (C, H, W); those of this network are {shapes}"
        )
    height, width = shown.shape[1:]
    labels = np.broadcast_to(np.arange(height * width).reshape(1, height, width), shown.shape)
    pixels = NeuronGroups(shown.layer_id, labels.copy(), height * width)
    chosen = {}
    for layer in watched:
        name = topology.layers[layer.layer_id].name
        asked = np.array([(name, unit) in nodes for unit in layer.units.tolist()], bool)
        if asked.any() and layer.layer_id not in (shown.layer_id, topology.output.layer_id):
            chosen[name] = layer.only(asked)
    maps = {}
    count = sum(layer.groups.count for layer in chosen.values()) * len(measure.terms)
    with Progress("maps of units", count, "passes") as meter:
        for name, layer in chosen.items():
            values = joint(
                measure.state,
                measure.start,
                measure.terms,
                layer.groups,
                pixels,
                measure.memory,
                None,
                meter.advance,
            )
            for unit, row in zip(layer.units.tolist(), values, strict=True):
                maps[name, unit] = row.reshape(height, width) * measure.scale
    return maps
