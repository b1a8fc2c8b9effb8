"""Units: the groups of neurons that a table row speaks of.

A *partition* of a layer is an integer array of the layer's shape; its values, 0 to
``n_units - 1``, say which unit each neuron belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.network.unit_names import UnitKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.network.topology import LayerInfo, Topology

    Resolution = str | npt.ArrayLike
    """How to divide a layer: a name of ``RESOLUTIONS``, or the unit of every neuron."""

RESOLUTIONS = ("neuron", "channel", "feature", "token", "head")

NEURON_BUDGET = 2_000_000
"""``auto`` keeps every neuron of a network whose dense edges per input stay under this."""


@dataclass(frozen=True)
class Partition:
    """How one layer is divided into units.

    Attributes
    ----------
    resolution : str
        One of ``RESOLUTIONS``, or ``custom``.
    labels : ndarray of int32, the layer's shape
        Unit of every neuron; where it is told by some axes, a view that repeats their labels along
        the others without memory of its own (see :func:`compact`).
    n_units : int
        Number of units.
    names : mapping of int to str
        The user's own names of units.
    outputs : mapping of int to str
        What the network's outputs stand for, where it is known.
    """

    resolution: str
    labels: npt.NDArray[np.int32]
    n_units: int
    names: Mapping[int, str] = field(default_factory=dict, compare=False)
    outputs: Mapping[int, str] = field(default_factory=dict, compare=False)

    @property
    def kind(self) -> UnitKind:
        """What the units are, and their names."""
        return UnitKind(self.resolution, self.names, outputs=self.outputs)

    @property
    def single(self) -> bool:
        """Whether every unit is one neuron."""
        return self.n_units == self.labels.size


def partition(layer: LayerInfo, resolution: Resolution) -> Partition:
    """Divide a layer into units.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    resolution : str or array_like of int
        ``neuron``; ``channel`` (first axis); ``head`` (third axis from the end, before queries
        and keys); ``feature`` (last axis); ``token`` (all axes but the last); or an integer
        array of the layer's shape whose values are exactly 0 to n - 1.

    Raises
    ------
    InputError
        If the resolution is unknown or the array does not fit.
    """
    shape = layer.shape
    if isinstance(resolution, str):
        if resolution == "neuron" or not shape:
            axes = shape
        elif resolution in ("channel", "head"):
            axis = max(0, len(shape) - 3) if resolution == "head" else 0
            axes = (shape[axis],) + (1,) * (len(shape) - 1 - axis)
        elif resolution == "feature":
            axes = shape[-1:]
        elif resolution == "token":
            axes = (*shape[:-1], 1)
        else:
            raise InputError(
                f"unknown resolution {resolution!r} for layer {layer.name}: expected one of "
                f"{', '.join(RESOLUTIONS)}, auto, or an integer array of shape {shape}"
            )
        units = math.prod(axes) if math.prod(shape) else 0
        numbers = np.arange(units, dtype=np.int32)
        if units == math.prod(shape):
            return Partition(resolution, numbers.reshape(shape), units)
        return Partition(resolution, np.broadcast_to(numbers.reshape(axes), shape), units)
    try:
        labels = np.asarray(resolution)
    except ValueError:
        raise InputError(f"the partition of layer {layer.name} is a ragged list") from None
    if labels.dtype.kind not in "iu" or labels.shape != shape:
        raise InputError(
            f"the partition of layer {layer.name} must be an integer array of shape {shape}, "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    distinct = np.unique(labels)
    if not np.array_equal(distinct, np.arange(len(distinct))):
        raise InputError(
            f"the partition of layer {layer.name} must use every unit from 0 to n - 1, found "
            f"values from {distinct.min()} to {distinct.max()}, {len(distinct)} of them distinct"
        )
    # NumPy gives a layer of one neuron without axes an axis.
    whole = np.ascontiguousarray(labels, dtype=np.int32).reshape(shape)
    return Partition("custom", whole, len(distinct))


def with_outputs(
    partitions: Sequence[Partition], names: Mapping[int, str]
) -> tuple[Partition, ...]:
    """Tell the units of the last layer what they stand for, if they are the outputs."""
    *others, last = partitions
    outputs = names if last.resolution == "neuron" else {}
    return (*others, replace(last, outputs=outputs))


def whole_units(
    layer: LayerInfo, resolution: str, labels: npt.NDArray[Any], held: Partition
) -> bool:
    """Whether labels hold units of a layer whole, or not at all.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    resolution : str
        What units are; ``layer``, or ``custom`` for those of ``held``.
    labels : ndarray of int
        Unit of every neuron, -1 where it is in none; it may be broadcast to the layer's shape.
    held : Partition
        Units that events know by their number.

    Examples
    --------
    >>> from nrm_graph.network.topology import LayerInfo
    >>> layer = LayerInfo(1, "conv", "convolution", (2, 3), 1)
    >>> held = partition(layer, "channel")
    >>> whole_units(layer, "channel", np.array([[-1], [1]]), held)
    True
    >>> whole_units(layer, "channel", np.array([[-1, -1, -1], [1, 1, -1]]), held)
    False
    """
    if resolution == "layer":
        return bool((labels == 0).all())
    units = (held if resolution == "custom" else partition(layer, resolution)).labels
    labels = np.broadcast_to(labels, units.shape)
    inside = labels >= 0
    same = np.array_equal(units[inside], labels[inside])
    return same and not np.isin(units[~inside], labels[inside]).any()


def compact(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return labels with a length of 1 along every axis on which a view only repeats them."""
    return labels[(*(slice(0, 1) if step == 0 else slice(None) for step in labels.strides), ...)]


def check(resolution: object) -> None:
    """Refuse what no network can have, before one is known.

    Raises
    ------
    InputError
        Naming what is expected.
    """
    known = (*RESOLUTIONS, "auto")
    if not isinstance(resolution, str | Mapping):
        raise InputError(
            f"resolution must be one of {', '.join(RESOLUTIONS)} or auto, or a mapping of layer "
            f"name to resolution or array, found {resolution!r}"
        )
    chosen = {"": resolution} if isinstance(resolution, str) else resolution
    for name, choice in chosen.items():
        if isinstance(choice, str) and choice not in known:
            layer = f" for layer {name}" if name else ""
            raise InputError(
                f"unknown resolution {choice!r}{layer}: expected one of {', '.join(known)}, or an "
                "integer array of the layer's shape"
            )


_AUTOMATIC = {
    "convolution": "channel",
    "batch_norm": "channel",
    "group_norm": "channel",
    "instance_norm": "channel",
    "dense": "feature",
    "layer_norm": "feature",
    "rms_norm": "feature",
    "product": "head",
    "softmax": "head",
    "attention": "head",
}


def automatic(topology: Topology) -> tuple[str, ...]:
    """Resolutions of the layers of a network too large for neurons everywhere.

    Sums, gates and averages follow the first layer of as many axes that they read, for maps may
    keep their channels first (convolutions) or last (dense layers on windows).
    """
    names: list[str] = []
    for layer in topology.layers:
        axes = len(layer.shape)
        like = [
            names[i]
            for i in topology.sources(layer.layer_id)
            if len(topology.layers[i].shape) == axes
        ]
        if axes < 2:
            names.append("neuron")
        elif layer.kind in _AUTOMATIC:
            names.append(_AUTOMATIC[layer.kind])
        else:
            names.append(next(iter(like), "feature" if axes == 2 else "channel"))
    return tuple(names)


def small(topology: Topology) -> bool:
    """Whether every edge between neurons of a network can be kept."""
    return sum(group.dense_edges for group in topology.groups) <= NEURON_BUDGET


def resolve(
    topology: Topology, resolution: str | Mapping[str, Resolution] = "auto"
) -> tuple[Partition, ...]:
    """Choose the partition of every layer.

    Parameters
    ----------
    topology : Topology
        The network.
    resolution : str or mapping of layer name to str or array
        One resolution for all layers, ``auto``, or a choice for the layers named (the
        others are ``auto``).  ``auto`` is ``neuron`` everywhere while the network's dense
        neuron-level edges stay under ``NEURON_BUDGET``; else ``channel`` for maps,
        ``feature`` for token sequences, ``head`` for attention and ``neuron`` for vectors.

    Returns
    -------
    tuple of Partition
        One per layer, by ``layer_id``.
    """
    check(resolution)
    chosen: dict[int, Resolution] = {}
    if isinstance(resolution, str):
        if resolution != "auto":
            chosen = {layer.layer_id: resolution for layer in topology.layers}
    else:
        names: dict[int, str] = {}
        for name, asked in resolution.items():
            layer_id = topology.layer(name).layer_id
            if layer_id in names:
                raise InputError(
                    f"resolution names the layer {topology.layers[layer_id].name} twice, as "
                    f"{names[layer_id]!r} and as {name!r}"
                )
            names[layer_id], chosen[layer_id] = name, asked
    tiny = small(topology)
    usual = automatic(topology)
    parts = []
    for layer in topology.layers:
        asked = chosen.get(layer.layer_id, "auto")
        if isinstance(asked, str) and asked == "auto":
            asked = "neuron" if tiny else usual[layer.layer_id]
        parts.append(partition(layer, asked))
    return tuple(parts)
