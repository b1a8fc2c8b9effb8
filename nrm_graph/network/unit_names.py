"""Units in words: which head, channel or token a number stands for; no torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.network.topology import ENDS, PSEUDO_UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.network.topology import LayerInfo, Topology


@dataclass(frozen=True)
class UnitKind:
    """What the units of a layer are, and the names that the user gave some.

    Attributes
    ----------
    resolution : str
        See :func:`nrm_graph.network.units.partition`; or ``layer``, all of it.
    names : mapping of int to str
        The user's own names.
    spelled : bool
        Whether :func:`nrm_graph.events.unit_sets.unit_set` gives exactly their neurons: not those
        of parts of units, nor of groups that one call alone knows.
    outputs : mapping of int to str
        What the network's outputs stand for, where it is known: classes, tokens.
    """

    resolution: str
    names: Mapping[int, str] = field(default_factory=dict)
    spelled: bool = True
    outputs: Mapping[int, str] = field(default_factory=dict)


def watched_kind(usual: UnitKind, resolution: str, spelled: bool) -> UnitKind:
    """Kind of a watched layer's nodes; they have names where they are the usual units."""
    same = resolution == usual.resolution != "custom"
    return replace(usual if same else UnitKind(resolution), spelled=spelled)


_CHANNELS_FIRST = ("convolution", "batch_norm", "group_norm", "instance_norm")
_HEADS_FIRST = ("attention", "product", "softmax")


def token_axis(layer: LayerInfo, count: int) -> int | None:
    """Axis of a layer along which its tokens lie, if they are so many.

    Tokens are the first axis of a (tokens, features) layer, the last of (channels, tokens), the
    second of heads, (heads, tokens, ...), which read for them, and the only one of a network's
    input.
    """
    shape = layer.shape
    if len(shape) == 1 and layer.kind in ENDS and shape[0] == count:
        return 0
    if len(shape) == 3 and layer.kind in _HEADS_FIRST:
        return 1 if shape[1] == count else None
    if len(shape) != 2:
        return None
    axis = 1 if layer.kind in _CHANNELS_FIRST else 0
    return axis if shape[axis] == count else None


def fits(topology: Topology, count: int) -> bool:
    """Whether any layer has so many tokens."""
    return any(count in layer.shape for layer in topology.layers)


def token_index(layer: LayerInfo, resolution: str, unit: int, count: int) -> int | None:
    """Position among so many tokens that a unit belongs to, or None where it belongs to none."""
    axis = token_axis(layer, count)
    if axis is None or unit < 0:
        return None
    if resolution == "neuron":
        return int(np.unravel_index(unit, layer.shape)[axis])
    before = layer.shape[:-1]
    if resolution == "token" and axis < len(before) and unit < math.prod(before):
        return int(np.unravel_index(unit, before)[axis])
    last = resolution == "feature" and axis == len(before)
    return unit if last and unit < count else None


def token_of(
    layer: LayerInfo, resolution: str, unit: int, tokens: Sequence[str] | None
) -> str | None:
    """Text of the token that a unit belongs to, or None where it belongs to none."""
    if tokens is None:
        return None
    place = token_index(layer, resolution, unit, len(tokens))
    return None if place is None else tokens[place]


def stands_for(
    layer: LayerInfo, kind: UnitKind, unit: int, tokens: Sequence[str] | None
) -> str | None:
    """Text of the output that a unit is, or of the token it belongs to; None where of neither."""
    return kind.outputs.get(unit, token_of(layer, kind.resolution, unit, tokens))


def unit_name(
    layer: LayerInfo, kind: UnitKind, unit: int, tokens: Sequence[str] | None = None
) -> str:
    """Name a unit in words, with the user's own name in front, and behind it what it stands for.

    Parameters
    ----------
    layer : LayerInfo
        Its layer.
    kind : UnitKind
        What its units are.
    unit : int
        Its number.
    tokens : sequence of str, optional
        Text of every token of the input.

    Examples
    --------
    >>> from nrm_graph.network.topology import LayerInfo
    >>> layer = LayerInfo(1, "0", "dense", (2, 3), 1)
    >>> neurons, tokens = UnitKind("neuron"), UnitKind("token")
    >>> unit_name(layer, tokens, 1, ["a", "cat"]), unit_name(layer, neurons, 5, ["a", "cat"])
    ("token 1 'cat'", "neuron 1, 2 'cat'")
    >>> unit_name(LayerInfo(1, "mix", "attention", (4, 2, 8), 1), tokens, 5, ["a", "cat"])
    "head 2, token 1 'cat'"
    """
    if unit < 0:
        return PSEUDO_UNITS[unit]
    shape, resolution = layer.shape, kind.resolution
    whole = resolution == "custom" or (resolution == "token" and len(shape) < 2)
    name = "unit" if whole else resolution
    number = str(unit)
    if resolution in ("neuron", "token"):
        axes = shape[:-1] if resolution == "token" else shape
        if len(axes) > 1 and not whole:
            number = ", ".join(str(int(i)) for i in np.unravel_index(unit, axes))
    text = stands_for(layer, kind, unit, tokens)
    if resolution == "token" and len(shape) == 3 and layer.kind in _HEADS_FIRST:
        name, number = "head", number.replace(", ", ", token ")
    words = f"{name} {number}" + ("" if text is None else f" {text!r}")
    return f"{kind.names[unit]} ({words})" if unit in kind.names else words
