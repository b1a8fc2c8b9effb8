"""How the edges of every operation are computed at a given resolution; made once per network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.convolution import Convolution
from nrm_graph.labels import offsets, unit_labels
from nrm_graph.linear import Dense, Scale
from nrm_graph.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.linear import Weighing
    from nrm_graph.pruning import Limit
    from nrm_graph.states import Network, State
    from nrm_graph.units import Partition

    Labels = npt.NDArray[np.signedinteger[Any]]
    Mode = tuple[str, Labels, Labels] | None


@dataclass(frozen=True, eq=False)
class Columns:
    """Global units that the columns of a table belong to.

    Attributes
    ----------
    units : ndarray
        Distinct units in ascending order, constants (-1) left out.
    place : Tensor
        For every column, the position of its unit; ``len(units)`` for constants.
    run : int
        If every unit has this many columns side by side, in order; else 0.
    """

    units: Labels
    place: Tensor
    run: int

    def sum(self, table: Tensor) -> Tensor:
        """Sum the last axis by unit."""
        if self.run == 1:
            return table
        if self.run:
            return table.reshape(*table.shape[:-1], -1, self.run).sum(-1)
        shape = (*table.shape[:-1], len(self.units) + 1)
        found: Tensor = table.new_zeros(shape).index_add_(-1, self.place.to(table.device), table)
        return found[..., :-1]


def columns(labels: Labels) -> Columns:
    """Group columns by their units."""
    units, place = np.unique(labels, return_inverse=True)
    run = len(labels) // max(len(units), 1)
    regular = bool(
        len(units) and units[0] >= 0 and np.array_equal(place, np.arange(len(labels)) // run)
    )
    if len(units) and units[0] < 0:
        units = units[1:]
        place = np.where(place == 0, len(units), place - 1)
    return Columns(units, torch.from_numpy(place.astype(np.int64)), run if regular else 0)


@dataclass(frozen=True, eq=False)
class Plan:
    """Partitions of a network's layers, and what follows from them alone.

    Attributes
    ----------
    partitions : tuple of Partition
        Units of every layer.
    first : ndarray
        First global unit of every layer, and their number.
    labels : dict of str to ndarray, or None
        Global unit of every element of every value; None if max-pools select between units,
        so that labels depend on the input.
    limits : mapping of (dst, src) to Limit
        Groups of layers of which the strongest edges are kept alone.
    kept : dict
        What was derived from static labels, by operation and operand.
    """

    network: Network
    partitions: tuple[Partition, ...]
    first: Labels
    labels: Mapping[str, Labels] | None
    limits: Mapping[tuple[int, int], Limit]
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def sample_labels(self, state: State, b: int) -> Mapping[str, Labels]:
        """Labels of one sample of a batch."""
        if self.labels is not None:
            return self.labels
        batches = self.network.layout.batches
        own = {name: batches[name].one(w, b) for name, w in state.winners.items()}
        found = unit_labels(self.network, self.partitions, own)
        assert found is not None
        return _arrays(self.network, found)


def _arrays(network: Network, labels: Mapping[str, Any]) -> dict[str, Labels]:
    batches = network.layout.batches
    return {
        name: batches[name].samples(tensor).numpy()[0].astype(np.int64)
        for name, tensor in labels.items()
        if isinstance(tensor, torch.Tensor)
    }


def plan(
    network: Network,
    partitions: Sequence[Partition],
    limits: Mapping[tuple[int, int], Limit] | None = None,
) -> Plan:
    """Prepare the tables of a network."""
    static = unit_labels(network, partitions, None)
    labels = None if static is None else _arrays(network, static)
    return Plan(network, tuple(partitions), offsets(partitions), labels, limits or {})


def along(labels: Labels, axis: int) -> Labels | None:
    """Labels along one axis, if they do not change along the others."""
    moved = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    return moved[:, 0] if bool((moved == moved[:, :1]).all()) else None


def _alone(dst: Labels, src: Labels, axis: int) -> bool:
    """Whether both sides are vectors, so that units along the axis are single neurons."""
    return bool(dst.size == dst.shape[axis] and src.size == src.shape[axis])


def mode(op: Weighing, k: int, network: Network, name: str, dst: Labels, src: Labels) -> Mode:
    """Choose how the edges of operand k are computed, and the labels of both sides' axes.

    ``channels``: weight gradient of a convolution; ``vector``: outer product; ``features``:
    matrix product over tokens; ``first`` and ``last``: sums along an axis that the operation
    keeps.  None where single neurons must be told apart.
    """
    kind, batches = op.maps[k], network.layout.batches
    above, below = batches[name], batches[op.operands[k]]
    plain = above.plain and below.plain
    pair: tuple[Labels | None, Labels | None]
    if isinstance(kind, Convolution) and plain:
        pair = along(dst, 0), along(src, 0)
        if pair[0] is not None and pair[1] is not None:
            return "channels", pair[0], pair[1]
    elif isinstance(kind, Dense) and dst.ndim == 1 and plain:
        return "vector", dst, src
    elif isinstance(kind, Dense) and above == below and above.axis < dst.ndim:
        pair = along(dst, -1), along(src, -1)
        if pair[0] is not None and pair[1] is not None and not _alone(dst, src, -1):
            return "features", pair[0], pair[1]
    elif isinstance(kind, Scale | Window) and dst.ndim and src.ndim and plain:
        for axis, label in ((0, "first"), (-1, "last")):
            if (
                dst.shape[axis] != src.shape[axis]
                or (isinstance(kind, Scale) and dst.ndim != src.ndim)
                or (isinstance(kind, Window) and kind.windows[1 if axis == 0 else -1] is not None)
                or _alone(dst, src, axis)
            ):
                continue
            pair = along(dst, axis), along(src, axis)
            if pair[0] is not None and pair[1] is not None:
                return label, pair[0], pair[1]
    return None
