"""The neurons of one unit, as a set that an event is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.events.sets import Layer

if TYPE_CHECKING:
    from nrm_graph.events.sets import NeuronSet
    from nrm_graph.network.topology import LayerInfo


def unit_set(layer: LayerInfo, resolution: str, unit: int) -> NeuronSet:
    """Return the neurons of a unit.

    Parameters
    ----------
    layer : LayerInfo
        Its layer.
    resolution : str
        What units of the layer are, see :func:`nrm_graph.network.units.partition`.
    unit : int
        Its number, at least 0.

    Examples
    --------
    >>> from nrm_graph.network.topology import LayerInfo
    >>> layer = LayerInfo(1, "conv", "convolution", (2, 3, 4), 1)
    >>> [unit_set(layer, name, 1) for name in ("channel", "feature", "token", "neuron", "custom")]
    [conv[1], conv[..., 1], conv[0, 1], conv[0, 0, 1], conv.units([1])]
    """
    shape = layer.shape
    index: tuple[Any, ...]
    if resolution == "channel" and shape:
        index = (unit,)
    elif resolution == "feature" and shape:
        index = (..., unit)
    elif resolution == "head" and shape:
        index = (*[slice(None)] * max(0, len(shape) - 3), unit)
    elif resolution == "token" and shape:
        axes = shape[:-1]
        index = tuple(int(i) for i in np.unravel_index(unit, axes)) if axes else (slice(None),)
    elif resolution in ("neuron", "channel", "feature", "head", "token"):
        index = tuple(int(i) for i in np.unravel_index(unit, shape)) if shape else ()
    else:
        return Layer(layer.name).units([unit])
    return Layer(layer.name)[index]
