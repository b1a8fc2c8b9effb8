"""Units of every layer at a given resolution, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.network.units import compact
from nrm_graph.tables.unit_labels import offsets, unit_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.propagation.state import State
    from nrm_graph.tables.picks import Picks
    from nrm_graph.tables.pruning import Limit
    from nrm_graph.tables.unit_labels import Labels


@dataclass(frozen=True, eq=False)
class ColumnUnits:
    """Global units that the columns of a table belong to.

    Attributes
    ----------
    units : ndarray
        Distinct units in ascending order, constants (-1) left out.
    columns : int
        Number of columns.
    per_unit : int
        If the units take turns, each with this many columns side by side, in order; else 0.  So do
        those of one axis of an array.
    places : Tensor or None
        Where they do not take turns, what :attr:`place` is.
    """

    units: Labels
    columns: int
    per_unit: int = 1
    places: Tensor | None = None

    @property
    def place(self) -> Tensor:
        """For every column, the position of its unit; ``len(units)`` for constants."""
        if self.places is not None:
            return self.places
        return torch.arange(self.columns) // self.per_unit % len(self.units)

    def sum(self, table: Tensor) -> Tensor:
        """Sum the last axis by unit."""
        before, number = table.shape[:-1], len(self.units)
        if self.per_unit:
            turns = table.shape[-1] // (number * self.per_unit)
            if turns == self.per_unit == 1:
                return table
            return table.reshape(*before, turns, number, self.per_unit).sum((-3, -1))
        shape = (*before, number + 1)
        totals: Tensor = table.new_zeros(shape).index_add_(-1, self.place.to(table.device), table)
        return totals[..., :-1]


def column_units(labels: Labels) -> ColumnUnits:
    """Group columns by their units."""
    units, place = np.unique(labels, return_inverse=True)
    run = int(np.argmax(place != place[0])) or len(place) if len(place) else 0
    turns = bool(run and units[0] >= 0 and len(place) % (len(units) * run) == 0)
    regular = turns and np.array_equal(place, np.arange(len(place)) // run % len(units))
    if len(units) and units[0] < 0:
        units = units[1:]
        place = np.where(place == 0, len(units), place - 1)
    if regular:
        return ColumnUnits(units, len(place), run)
    return ColumnUnits(units, len(place), 0, torch.from_numpy(place.astype(np.int64)))


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
    max_edges : int or None
        Most rows of an input, see :mod:`nrm_graph.tables.bounded`; None for all.
    picks : Picks or None
        The only edges that are wanted, see :mod:`nrm_graph.tables.picks`; None for all.
    cache : dict
        What was derived from static labels, by operation and operand.
    """

    network: Network
    partitions: tuple[Partition, ...]
    first: Labels
    labels: Mapping[str, Labels] | None
    limits: Mapping[tuple[int, int], Limit]
    max_edges: int | None = None
    picks: Picks | None = None
    cache: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False)

    @property
    def chosen(self) -> bool:
        """Whether rows are chosen from whole tables, once these are there."""
        return self.max_edges is not None or self.picks is not None

    def sample_labels(self, state: State, b: int) -> Mapping[str, Labels]:
        """Labels of one sample of a batch."""
        if self.labels is not None:
            return self.labels
        batches = self.network.layout.batches
        winners = {name: batches[name].one(w, b) for name, w in state.winners.items()}
        labels = unit_labels(self.network, self.partitions, winners)
        assert labels is not None
        return _arrays(self.network, labels)


def _arrays(network: Network, labels: Mapping[str, Tensor | list[Tensor]]) -> dict[str, Labels]:
    batches = network.layout.batches
    return {
        name: _integers(batches[name].samples(tensor)[0])
        for name, tensor in labels.items()
        if isinstance(tensor, torch.Tensor)
    }


def _integers(numbers: Tensor) -> Labels:
    """Whole numbers of a tensor, below 2^31; what it only repeats is not copied."""
    each = numbers[(*(slice(0, 1) if s == 0 else slice(None) for s in numbers.stride()), ...)]
    labels: Labels = each.to(torch.int32).expand(numbers.shape).numpy()
    return labels


def plan(
    network: Network,
    partitions: Sequence[Partition],
    limits: Mapping[tuple[int, int], Limit] | None = None,
    max_edges: int | None = None,
) -> Plan:
    """Prepare the tables of a network."""
    static = unit_labels(network, partitions, None)
    labels = None if static is None else _arrays(network, static)
    return Plan(network, tuple(partitions), offsets(partitions), labels, limits or {}, max_edges)


def along(labels: Labels, axis: int) -> Labels | None:
    """Labels along one axis, if they do not change along the others.

    Constants (-1) among the neurons count as any label: they hold no edges.
    """
    if not labels.size:
        return None
    moved = np.moveaxis(compact(labels), axis, 0)
    moved = moved.reshape(len(moved), -1)
    first: Labels = moved.max(1)
    if not bool(((moved == first[:, None]) | (moved < 0)).all()):
        return None
    return first if len(first) == labels.shape[axis] else first.repeat(labels.shape[axis])
