"""How the edges of every operation are computed at a given resolution; made once per network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.network.maps.average_pooling import Window
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.network.maps.linear import Dense, Jacobian, Left, Right, Scale, Spread
from nrm_graph.tables.unit_labels import offsets, unit_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.maps.linear import Map, Weighing
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.propagation.state import State
    from nrm_graph.tables.pruning import Limit

    Labels = npt.NDArray[np.signedinteger[Any]]
    Mode = tuple[str, Labels, Labels] | tuple[str, Labels, Labels, bool] | None


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
    """Labels along one axis, if they do not change along the others.

    Constants (-1) among the neurons count as any label: they hold no edges.
    """
    moved = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    if not moved.size:
        return None
    first: Labels = moved.max(1)
    return first if bool(((moved == first[:, None]) | (moved < 0)).all()) else None


def mode(
    op: Weighing, k: int, network: Network, name: str, dst: Labels, src: Labels, fine: bool
) -> Mode:
    """Choose how the edges of operand k are computed, and the labels of both sides.

    ``channels``: weight gradient of a convolution; ``vector``: outer product; ``features``:
    matrix product over tokens; ``up``, ``down``, ``sets`` and ``probe``: see
    :mod:`nrm_graph.tables.aggregated_edges`.  None where single neurons must be told apart.

    Parameters
    ----------
    dst, src : ndarray of int
        Units of the layer, and global units of the operand's elements, in their shapes.
    fine : bool
        Whether edges between single neurons are among them, whose q is wanted.
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
        alone = dst.size == dst.shape[-1] and src.size == src.shape[-1]
        if pair[0] is not None and pair[1] is not None and not alone:
            return "features", pair[0], pair[1]
    if fine and not isinstance(kind, Scale | Window):
        return None
    return _gathered(op, k, network, name, dst, src, fine)


PROBES = 64
"""Units of a side that are tried one by one rather than listing edges."""

SET_ENTRIES = 1 << 26
"""Sums over units and sets that fit in memory."""


def _gathered(
    op: Weighing, k: int, network: Network, name: str, dst: Labels, src: Labels, fine: bool
) -> Mode:
    kind, operand, batches = op.maps[k], op.operands[k], network.layout.batches

    def native(value: str, labels: Labels) -> Labels:
        # NumPy gives a layer without axes an axis.
        whole = np.ascontiguousarray(labels).reshape(labels.shape)
        found = batches[value].native(torch.from_numpy(whole)[None])
        return found.numpy()

    def shaped(value: str, labels: Labels) -> Labels:
        return batches[value].samples(torch.from_numpy(labels)).numpy()[0]  # type: ignore[no-any-return]

    upper, lower = native(name, dst), native(operand, src)
    units, sources = len(np.unique(dst)), len(np.unique(src))
    if isinstance(kind, Spread):
        sets = math.prod(lower.shape) ** 2 // kind.dense_edges(lower.shape, lower.shape, ())
        if (units + sources) * sets <= SET_ENTRIES:
            return "sets", upper.ravel(), lower.ravel()
        return None
    weight = _connections(op, k, upper.shape, lower.shape)
    found = inherited(kind, weight, upper.shape, lower.shape, upper, upwards=True)
    if found is not None:
        return "up", shaped(operand, found), src, fine
    if fine:
        return None
    found = inherited(kind, weight, upper.shape, lower.shape, lower, upwards=False)
    if found is not None:
        return "down", dst, shaped(name, found)
    cost = min(units, sources) * (dst.size + src.size)
    if min(units, sources) <= PROBES and cost < op.dense_edges(k, upper.shape, lower.shape):
        return "probe", upper.ravel(), lower.ravel()
    return None


def _connections(op: Weighing, k: int, z: tuple[int, ...], x: tuple[int, ...]) -> Tensor:
    """Return a weight of operand k that is 1 at every connection."""
    kind, weight = op.maps[k], op.weights[k]
    if isinstance(weight, torch.Tensor):
        return torch.ones(weight.shape, dtype=torch.float64)
    shape: tuple[int, ...] = ()
    if isinstance(kind, Right):
        shape = (x[-1], z[-1])
    elif isinstance(kind, Left):
        shape = (z[-2], x[-2])
    elif isinstance(kind, Jacobian):
        shape = (math.prod(z), math.prod(x))
    return torch.ones(shape, dtype=torch.float64)


def inherited(
    kind: Map, weight: Tensor, z: tuple[int, ...], x: tuple[int, ...], labels: Any, upwards: bool
) -> Any:
    """Labels of one end of an operation's edges, seen from the other end.

    Parameters
    ----------
    kind : Map
        The operation's map, whose connections tell.
    weight : Tensor
        A weight of 1 at every connection, float64.
    z, x : tuple of int
        Native shapes of output and operand.
    labels : ndarray of int
        Native, of the output, or of the operand with ``upwards`` False.
    upwards : bool
        Whether to give each operand neuron the label of its readers, or each output neuron the
        label of what it reads.

    Returns
    -------
    ndarray of int, or None
        -1 where there is no other end; None if some neuron has several labels there.
    """
    own, size = (z, math.prod(x)) if upwards else (x, math.prod(z))
    if size == 0 or not labels.size:
        return None
    values = torch.from_numpy(np.ascontiguousarray(labels, np.float64).reshape(own))
    like = torch.empty(x, dtype=torch.float64)

    def across(given: Tensor) -> Any:
        if upwards:
            found = kind.transpose(given, weight, like)
        else:
            found = kind.apply(given, weight).expand(z)
        return found.numpy().astype(np.int64)

    count = across(torch.ones_like(values))
    largest = int(labels.max(initial=0)) - int(labels.min(initial=0)) + 1
    # The sums below are exact: integers in float64, their products in int64.
    if largest * largest * int(count.max(initial=0)) >= 1 << 53:
        return None
    if (largest * int(count.max(initial=0))) ** 2 >= 1 << 62:
        return None
    lowest = int(labels.min(initial=0))
    total, squares = across(values - lowest), across((values - lowest).square())
    if not np.array_equal(total * total, squares * count):  # Cauchy and Schwarz: equal labels
        return None
    return np.where(count > 0, total // np.maximum(count, 1) + lowest, -1)
