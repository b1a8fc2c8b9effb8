"""Where units lie: the channel, row, token, head or feature that a number stands for; no torch.

All of it is division: a unit's number runs through the axes that tell units apart, the last one
fastest, so that each coordinate is ``unit // step % size``.  SQL computes it in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nrm_graph.network.topology import PSEUDO_UNITS

if TYPE_CHECKING:
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.unit_names import UnitKind

COORDINATES = ("channel", "row", "column", "token", "head", "feature")


@dataclass(frozen=True)
class Stride:
    """A coordinate of units, as a function of their number."""

    step: int
    size: int

    def of(self, unit: int) -> int:
        """Return the coordinate of a unit."""
        return unit // self.step % self.size


@dataclass(frozen=True)
class Spelling:
    """How units are written behind the name of their layer: what stands around their indices."""

    before: str
    indices: tuple[Stride, ...]
    after: str

    def text(self, unit: int) -> str:
        """Write the unit of a number."""
        return self.before + ", ".join(str(index.of(unit)) for index in self.indices) + self.after


def coordinates(layer: LayerInfo, resolution: str, usual: str) -> dict[str, Stride]:
    """Coordinates of a layer's units by name, of those that its axes tell.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    resolution : str
        What its units are, see :func:`nrm_graph.network.units.partition`; of ``custom`` ones
        nothing is told.
    usual : str
        What units of such a layer are where they are no neurons, as
        :func:`nrm_graph.network.units.automatic` says: whether channels come first, or features
        last, or heads before the rows and columns of a matrix each.

    Examples
    --------
    >>> from nrm_graph.network.topology import LayerInfo
    >>> layer = LayerInfo(1, "conv", "convolution", (2, 3, 4), 1)
    >>> {name: stride.of(19) for name, stride in coordinates(layer, "neuron", "channel").items()}
    {'channel': 1, 'row': 1, 'column': 3}
    """
    axes, first, end = len(layer.shape), *_told(layer, resolution)
    places = _PLACES[_family(resolution, usual)](axes) if axes else {}
    return {
        name: _stride(layer.shape[begin:stop], layer.shape[stop:end])
        for name, (begin, stop) in places.items()
        if first <= begin < stop <= end
    }


def spelling(layer: LayerInfo, resolution: str) -> Spelling:
    """Return how a layer's units are written in events, behind its name.

    Examples
    --------
    >>> from nrm_graph.network.topology import LayerInfo
    >>> layer = LayerInfo(1, "conv", "convolution", (2, 3, 4), 1)
    >>> spelling(layer, "feature").text(3), spelling(layer, "neuron").text(19)
    ('[..., 3]', '[1, 1, 3]')
    """
    shape = layer.shape
    if resolution == "custom":
        return Spelling(".units([", (Stride(1, max(1, layer.n_neurons)),), "])")
    first, end = _told(layer, resolution)
    before = {"feature": "..., ", "head": ":, " * first}.get(resolution, "") if shape else ""
    indices = tuple(_stride(shape[i : i + 1], shape[i + 1 : end]) for i in range(first, end))
    whole = ":" if shape else "()"
    return Spelling(f"[{before if indices else whole}", indices, "]")


def written(layer: LayerInfo, kind: UnitKind, unit: int) -> str:
    """Write a unit as SQL writes ends of ``flows``: ``eyes (conv[12])``, ``conv bias``."""
    if unit < 0:
        return f"{layer.name} {PSEUDO_UNITS[unit]}"
    text = layer.name + spelling(layer, kind.resolution).text(unit)
    return f"{kind.names[unit]} ({text})" if unit in kind.names else text


def _told(layer: LayerInfo, resolution: str) -> tuple[int, int]:
    """Axes that tell units apart: the first, and the one behind the last."""
    axes = len(layer.shape)
    head = max(0, axes - 3)
    return {
        "neuron": (0, axes),
        "channel": (0, min(1, axes)),
        "head": (head, min(head + 1, axes)),
        "feature": (max(0, axes - 1), axes),
        "token": (0, max(0, axes - 1)),
    }.get(resolution, (0, 0))


def _family(resolution: str, usual: str) -> str:
    """Which kind of axes a layer has."""
    if resolution == "token":
        return "head" if usual == "head" else "feature"
    return resolution if resolution in _PLACES else usual if usual in _PLACES else "feature"


def _channels(axes: int) -> dict[str, tuple[int, int]]:
    places = {"channel": (0, 1)}
    if axes == 2:
        return places | {"token": (1, 2)}
    return places | {"row": (1, axes - 1), "column": (axes - 1, axes)}


def _features(axes: int) -> dict[str, tuple[int, int]]:
    last = axes - 1
    places = {"feature": (last, axes), "token": (0, last)}
    return places if axes < 3 else places | {"row": (0, last - 1), "column": (last - 1, last)}


def _heads(axes: int) -> dict[str, tuple[int, int]]:
    head = max(0, axes - 3)
    places = {"head": (head, head + 1), "token": (0, head), "column": (axes - 1, axes)}
    if axes == 1:
        del places["column"]
    return places if axes < 3 else places | {"row": (axes - 2, axes - 1)}


_PLACES = {"channel": _channels, "feature": _features, "head": _heads}
"""First axis and end of each coordinate, by number of axes; empty ones are left out."""


def _stride(axes: tuple[int, ...], faster: tuple[int, ...]) -> Stride:
    # An axis of length 0 leaves no unit to place.
    return Stride(max(1, math.prod(faster)), max(1, math.prod(axes)))
