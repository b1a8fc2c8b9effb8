"""The neurons of one unit, as a set that an event is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrm_graph.events.sets import Layer
from nrm_graph.network.unit_coordinates import spelling
from nrm_graph.network.units import RESOLUTIONS

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
        What units of the layer are, see :func:`nrm_graph.network.units.partition`; ``layer`` for
        all of it.
    unit : int
        Its number, at least 0.

    Examples
    --------
    >>> from nrm_graph.network.topology import LayerInfo
    >>> layer = LayerInfo(1, "conv", "convolution", (2, 3, 4), 1)
    >>> [unit_set(layer, name, 1) for name in ("channel", "feature", "token", "neuron", "custom")]
    [conv[1], conv[..., 1], conv[0, 1], conv[0, 0, 1], conv.units([1])]
    """
    if resolution not in (*RESOLUTIONS, "layer"):
        return Layer(layer.name).units([unit])
    indices = [index.of(unit) for index in spelling(layer, resolution).indices]
    before: tuple[Any, ...] = ()
    if not indices:
        before = (slice(None),) if layer.shape else ()
    elif resolution == "feature":
        before = (...,)
    elif resolution == "head":
        before = (slice(None),) * max(0, len(layer.shape) - 3)
    return Layer(layer.name)[(*before, *indices)]
