"""The beam of a search for paths of units: what goes on, and what is left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.measures.marginals import units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Resolution

    Floats = npt.NDArray[np.float64]

UnitPath = tuple[int, ...]
"""One unit of each of some layers."""


@dataclass(frozen=True, eq=False)
class Level:
    """A layer of the paths, and its units.

    Attributes
    ----------
    layer : LayerInfo
        The layer.
    count : int
        Number of units.
    place : Tensor of int64, (n_neurons,)
        Unit of every neuron.
    neurons : tuple of Tensor of int64
        Neurons of every unit, flat.
    per_unit : int
        If every unit has this many neurons side by side, in order; else 0.
    """

    layer: LayerInfo
    count: int
    place: Tensor
    neurons: tuple[Tensor, ...]
    per_unit: int

    @staticmethod
    def of(measure: Algebra, layer: LayerInfo, by: Resolution | Mapping[str, Resolution]) -> Level:
        """Divide a layer as asked."""
        if isinstance(by, Mapping):
            named = {measure.topology.layer(name).layer_id: unit for name, unit in by.items()}
            by = named.get(layer.layer_id, "unit")
        part = units_of(measure, layer, by)
        labels = torch.from_numpy(part.labels.ravel().astype(np.int64)).to(measure.start.device)
        size = len(labels) // part.n_units
        regular = torch.arange(part.n_units, device=labels.device).repeat_interleave(size)
        per_unit = size if torch.equal(labels, regular) else 0
        ends = torch.bincount(labels, minlength=part.n_units).cumsum(0).cpu()[:-1]
        order = torch.arange(len(labels)) if per_unit else torch.argsort(labels, stable=True)
        neurons = order.to(labels.device).tensor_split(ends)
        return Level(layer, part.n_units, labels, neurons, per_unit)

    @property
    def channels(self) -> bool:
        """Whether units are the channels of a map."""
        shape = self.layer.shape
        return len(shape) == 3 and bool(self.per_unit) and self.count == shape[0]

    def sums(self, values: Tensor, kind: torch.dtype | None = torch.float64) -> Tensor:
        """Sum ``(K, *shape)`` by unit: ``(K, count)``."""
        if self.per_unit:
            return values.reshape(len(values), self.count, self.per_unit).sum(2, dtype=kind)
        flat = values.flatten(1).to(kind)
        return flat.new_zeros(len(flat), self.count).index_add_(1, self.place, flat)

    def weighed(self, values: Tensor, weights: Tensor) -> Tensor:
        """Sum ``(K, *shape)`` times each of several weights by unit, ``(M, K, count)``."""
        if not self.per_unit:
            return torch.stack([self.sums(values * weight) for weight in weights])
        parts = values.reshape(len(values), self.count, self.per_unit).transpose(0, 1)
        by_unit = weights.reshape(len(weights), self.count, self.per_unit).permute(1, 2, 0)
        return (parts @ by_unit).permute(2, 1, 0).double()

    def masks(self, units: range, like: Tensor) -> Tensor:
        """Masks of some units, ``(len(units), *shape)``."""
        numbers = torch.arange(units.start, units.stop, device=like.device)
        inside = self.place == numbers[:, None]
        return inside.reshape(-1, *self.layer.shape).to(like.dtype)


@dataclass(frozen=True, eq=False)
class Prefix:
    """Units of the first layers, and the relevance of the last one's neurons, ``(terms, size)``."""

    units: UnitPath
    relevance: Tensor


@dataclass(eq=False)
class SearchResult:
    """What one search found, and what it left.

    Attributes
    ----------
    best : dict of units to float
        The k + 1 strongest paths that were reached.
    every : float
        Sum of |R| over all paths that were reached.
    dropped : float
        What no path of a dropped prefix exceeds.
    left : float
        What all of them together do not exceed.
    """

    best: dict[UnitPath, float]
    every: float = 0.0
    dropped: float = 0.0
    left: float = 0.0

    def weakest(self, k: int) -> float:
        """|R| of the k-th path; 0 if there are fewer."""
        values = sorted((abs(value) for value in self.best.values()), reverse=True)
        return values[k - 1] if len(values) >= k else 0.0

    def rest(self, listed: Sequence[UnitPath]) -> float:
        """Bound what all paths that are not listed hold together."""
        listed_size = sum(abs(self.best[units]) for units in listed if units in self.best)
        rounding = 1e-14 * self.every
        return self.left + max(self.every - listed_size, 0.0) + rounding


class Beam:
    """Prefixes of one layer: those that go on, and what is left behind in the others."""

    def __init__(self, outcome: SearchResult, k: int, width: int, floor: float) -> None:
        self.outcome, self.k, self.width, self.floor = outcome, k, width, floor
        self.prefixes: list[Prefix] = []
        self.scores = np.zeros((0, 3))  # |joint|, bound of one path, bound of all

    def finish(self, parents: list[UnitPath], joints: Floats) -> None:
        """Complete paths: keep the k + 1 strongest."""
        outcome, size = self.outcome, np.abs(joints).ravel()
        outcome.every += float(size.sum())
        order = np.argpartition(-size, min(self.k, len(size) - 1))[: self.k + 1]
        for place in order[size[order] > 0].tolist():
            row, unit = divmod(place, joints.shape[1])
            outcome.best[(*parents[row], unit)] = float(joints[row, unit])
        best = sorted(outcome.best.items(), key=lambda item: -abs(item[1]))[: self.k + 1]
        outcome.best = dict(best)

    def add(
        self,
        parents: list[UnitPath],
        level: Level,
        relevance: Tensor,
        joints: Floats,
        bounds: Floats,
    ) -> None:
        """Take up extensions by one unit each, ``(K, units)``; bounds ``(2, K, units)``."""
        scores = np.stack([np.abs(joints), *bounds], -1).reshape(-1, 3)
        old = len(self.prefixes)
        possible = np.flatnonzero(scores[:, 1] > self.floor)
        everything = np.concatenate([self.scores, scores[possible]])
        order = self._chosen(everything)
        done = np.ones(len(scores), bool)
        done[possible] = False
        self._drop(scores[done])
        out = np.ones(len(everything), bool)
        out[order] = False
        self._drop(everything[out])
        flat = relevance.flatten(2)
        prefixes = []
        for place in order.tolist():
            if place < old:
                prefixes.append(self.prefixes[place])
                continue
            row, unit = divmod(int(possible[place - old]), joints.shape[1])
            of_unit = flat[row][:, level.neurons[unit]]
            prefixes.append(Prefix((*parents[row], unit), of_unit))
        self.prefixes, self.scores = prefixes, everything[order]

    def _chosen(self, scores: Floats) -> npt.NDArray[np.int64]:
        """Half by the joint so far, where the strongest paths are likely; half by the bound."""
        if len(scores) <= self.width:
            return np.arange(len(scores))
        half = (self.width + 1) // 2
        joint = np.argpartition(-scores[:, 0], half - 1)[:half]
        rest = np.ones(len(scores), bool)
        rest[joint] = False
        others = np.flatnonzero(rest)
        bound = others[np.argpartition(-scores[others, 1], self.width - half)[: self.width - half]]
        return np.sort(np.concatenate([joint, bound]))

    def _drop(self, scores: Floats) -> None:
        if len(scores):
            self.outcome.dropped = max(self.outcome.dropped, float(scores[:, 1].max()))
            self.outcome.left += float(scores[:, 2].sum())

    def close(self) -> list[Prefix]:
        """Return the prefixes that go on."""
        return self.prefixes
