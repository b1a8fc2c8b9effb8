"""The strongest paths of units, by beam search over exact joint relevances, with a certificate.

A path names one unit of each of some layers; its relevance is the joint R(u1 & ... & um).  Grouped
edges are never multiplied: a prefix is kept as the relevance of its last unit's single neurons,
which one relevance pass carries to the next layer, where it is summed by unit.

What a dropped prefix p could have led to is bounded.  With the mass under |q| from a neuron n of
its last unit on, the sum of |R| over all its paths is at most

    sum over n of |r_p(n)| total(n),    any single one at most    sum over n of |r_p(n)| single(n),

where total(n) is the mass of all walks through the remaining layers, and single(n) that of the
best path of units, found layer by layer as the maximum over the units of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.answers import Path, Paths
from nrm_graph.conditioned import arrived, per_pass
from nrm_graph.errors import InputError
from nrm_graph.mass import mass
from nrm_graph.propagate import relevance_pass
from nrm_graph.reach import reach
from nrm_graph.states import repeated
from nrm_graph.units import partition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.clauses import Clause
    from nrm_graph.exact import Measure
    from nrm_graph.topology import LayerInfo, Topology
    from nrm_graph.units import Partition

    Floats = npt.NDArray[np.float64]
    Units = tuple[int, ...]

BEAM = 256
"""Prefixes that are carried on from every layer, by default."""

SINGLE = 1024
"""Units of a layer up to which the best of them is told from the sum over all."""


def cuts(topology: Topology) -> list[LayerInfo]:
    """Layers that every walk to an input passes, from the output to the input."""
    inputs = {layer.layer_id for layer in topology.inputs}

    def closed(without: int) -> bool:
        """Whether no input is reached that is not the layer itself."""
        seen, stack = {without}, [topology.output.layer_id]
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            if at in inputs:
                return False
            seen.add(at)
            stack.extend(topology.sources(at))
        return True

    return [layer for layer in reversed(topology.layers) if closed(layer.layer_id)]


def strongest(
    measure: Measure,
    k: int,
    layers: Sequence[str] | None = None,
    beam: int = BEAM,
    by: Any = "unit",
) -> Paths:
    """Return the k paths of units of largest |joint relevance|.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.
    k : int
        Number of paths.
    layers : sequence of str, optional
        Layers of which each path names one unit, in any order; by default all that every walk to
        an input passes.
    beam : int
        Prefixes that are carried on from every layer.
    by : str or mapping of layer name to str or array
        ``unit`` for the measure's units; or a resolution, or a choice for some of the layers, see
        :func:`nrm_graph.units.partition`.

    Returns
    -------
    Paths
        Every relevance is exact, ``R(u1 & ... & um)`` of the measure.  Whether these are the
        strongest is certified or not: ``bound`` and ``mass`` say what the others can hold.

    Raises
    ------
    InputError
        If an argument is out of range.
    EventError
        If there is no such layer.

    Notes
    -----
    Two searches.  A narrow one finds k paths; then prefixes whose bound does not reach the weakest
    of these are done with, and the beam takes up the others.  Where the beam holds them all, the
    answer is certified.
    """
    for name, value in (("k", k), ("beam", beam)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} must be a whole number, at least 1, found {value!r}")
    chosen = _layers(measure, layers)
    levels = [Level.of(measure, layer, by) for layer in chosen]
    search = _Search(measure, levels)
    first = search.run(k, min(beam, max(32, 4 * k)), 0.0)
    rounds = [first]
    if first.dropped > first.weakest(k):
        rounds.append(search.run(k, beam, first.weakest(k)))
    known: dict[Units, float] = {}
    for outcome in rounds:
        known |= outcome.best
    ranked = sorted(known, key=lambda units: -abs(known[units]))
    top, others = ranked[:k], ranked[k:]
    weakest = abs(known[top[-1]]) if len(top) == k else 0.0
    bound = max(
        min(outcome.dropped for outcome in rounds), *(abs(known[u]) for u in others[:1]), 0.0
    )
    names = tuple(level.layer.name for level in levels)
    return Paths(
        tuple(Path(tuple(zip(names, units, strict=True)), known[units]) for units in top),
        names,
        bound,
        min(outcome.rest(top) for outcome in rounds),
        bound <= weakest,
    )


def _layers(measure: Measure, names: Sequence[str] | None) -> list[LayerInfo]:
    if names is None:
        return cuts(measure.topology)
    if isinstance(names, str) or not len(names):
        raise InputError(f"layers must be a list of layer names, at least one, found {names!r}")
    found = {layer.layer_id: layer for layer in (measure.topology.layer(name) for name in names)}
    if len(found) < len(names):
        raise InputError(f"a layer is named twice among {', '.join(names)}")
    return [found[i] for i in sorted(found, reverse=True)]


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
    run : int
        If every unit has this many neurons side by side, in order; else 0.
    """

    layer: LayerInfo
    count: int
    place: Tensor
    neurons: tuple[Tensor, ...]
    run: int

    @staticmethod
    def of(measure: Measure, layer: LayerInfo, by: Any) -> Level:
        """Divide a layer as asked."""
        if isinstance(by, Mapping):
            named = {measure.topology.layer(name).layer_id: how for name, how in by.items()}
            by = named.get(layer.layer_id, "unit")
        own = isinstance(by, str) and by == "unit"
        part: Partition = measure.partitions[layer.layer_id] if own else partition(layer, by)
        labels = torch.from_numpy(part.labels.ravel().astype(np.int64)).to(measure.start.device)
        size = len(labels) // part.n_units
        regular = torch.arange(part.n_units, device=labels.device).repeat_interleave(size)
        run = size if torch.equal(labels, regular) else 0
        counts = torch.bincount(labels, minlength=part.n_units).tolist()
        neurons = torch.argsort(labels, stable=True).split(counts)
        return Level(layer, part.n_units, labels, neurons, run)

    def sums(self, values: Tensor) -> Tensor:
        """Sum ``(K, *shape)`` by unit, in float64: ``(K, count)``."""
        flat = values.flatten(1).double()
        if self.run:
            return flat.unflatten(1, (self.count, self.run)).sum(2)
        return flat.new_zeros(len(flat), self.count).index_add_(1, self.place, flat)

    def masks(self, units: range, like: Tensor) -> Tensor:
        """Masks of some units, ``(len(units), *shape)``."""
        numbers = torch.arange(units.start, units.stop, device=like.device)
        own = self.place == numbers[:, None]
        return own.reshape(-1, *self.layer.shape).to(like.dtype)


@dataclass(frozen=True, eq=False)
class Prefix:
    """Units of the first layers, and the relevance of the last one's neurons, ``(terms, size)``."""

    units: Units
    relevance: Tensor


@dataclass(eq=False)
class Outcome:
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

    best: dict[Units, float]
    every: float = 0.0
    dropped: float = 0.0
    left: float = 0.0

    def weakest(self, k: int) -> float:
        """|R| of the k-th path; 0 if there are fewer."""
        values = sorted((abs(value) for value in self.best.values()), reverse=True)
        return values[k - 1] if len(values) >= k else 0.0

    def rest(self, listed: Sequence[Units]) -> float:
        """What all paths that are not listed hold together, at most."""
        own = sum(abs(self.best[units]) for units in listed if units in self.best)
        rounding = 1e-14 * self.every
        return self.left + max(self.every - own, 0.0) + rounding


class _Search:
    """Layers, conditions and masses of the search, which do not depend on the beam."""

    def __init__(self, measure: Measure, levels: list[Level]) -> None:
        self.measure, self.levels, self.state = measure, levels, measure.state
        self.clauses = [clause for _, clause in measure.terms]
        self.coefficients = [c * measure.scale for c, _ in measure.terms]
        last = levels[-1].layer
        ones = measure.start.new_ones(1, *last.shape)
        # What still comes below the last layer: 1 without a condition there.
        self.ahead = [
            reach(self.state, {i: v for i, v in c.items() if i < last.layer_id}, last.layer_id)
            .times(self.state, last.layer_id, ones)
            .reshape(last.shape)
            for c in self.clauses
        ]
        eps = float(torch.finfo(measure.start.dtype).eps)
        self.slack = 1 + 1024 * eps
        self._masses: list[tuple[Tensor, Tensor]] | None = None

    def _between(self, term: int, upper: int, lower: int) -> Clause:
        return {i: v for i, v in self.clauses[term].items() if lower <= i < upper}

    @property
    def masses(self) -> list[tuple[Tensor, Tensor]]:
        """For every layer, ``total`` and ``single`` of its neurons, ``(terms, *shape)``."""
        if self._masses is None:
            worth = torch.stack([h.abs() for h in self.ahead])
            found = [(worth, worth)]
            for upper, lower in zip(self.levels[-2::-1], self.levels[:0:-1], strict=True):
                total, single = found[-1]
                pairs = [
                    self._mass(t, upper, lower, total[t], single[t])
                    for t in range(len(self.clauses))
                ]
                found.append(tuple(torch.stack(column) for column in zip(*pairs, strict=True)))  # type: ignore[arg-type]
            self._masses = found[::-1]
        return self._masses

    def _mass(
        self, term: int, upper: Level, lower: Level, total: Tensor, single: Tensor
    ) -> tuple[Tensor, Tensor]:
        at, until = upper.layer.layer_id, lower.layer.layer_id
        clause = self._between(term, at, until)
        if until in clause:
            mask = torch.as_tensor(clause[until].mask, device=total.device)
            mask = mask if clause[until].passes else ~mask
            total, single = total * mask, single * mask
        pair = torch.stack([total, single])
        sums = mass(repeated(self.state, 2), clause, pair, until, at)
        if lower.count > SINGLE:
            return sums[0], sums[1]
        size = per_pass(self.state, self.measure.memory, until, at)
        best = torch.zeros_like(sums[1])
        for first in range(0, lower.count, size):
            units = range(first, min(first + size, lower.count))
            worth = single * lower.masks(units, single)
            found = mass(repeated(self.state, len(units)), clause, worth, until, at)
            best = torch.maximum(best, found.amax(0))
        return sums[0], best

    def run(self, k: int, width: int, floor: float) -> Outcome:
        """Search once; prefixes that cannot exceed ``floor`` are dropped at once."""
        outcome = Outcome({})
        prefixes: list[Prefix] = []
        for number, level in enumerate(self.levels):
            last = number == len(self.levels) - 1
            beam = _Beam(outcome, k, width, floor)
            found = self._begin() if number == 0 else self._onward(prefixes, number)
            for parents, relevance in found:
                joints = self._sums(level, relevance, self.ahead) if last else None
                if joints is not None:
                    beam.finish(parents, joints)
                    continue
                total, single = self.masses[number]
                beam.add(
                    parents,
                    level,
                    relevance,
                    level.sums(relevance.sum(1)).cpu().numpy(),
                    self._bounds(level, relevance, single),
                    self._bounds(level, relevance, total),
                )
            prefixes = beam.close()
        return outcome

    def _sums(self, level: Level, relevance: Tensor, factors: Any) -> Floats:
        parts = [level.sums(relevance[:, t] * h) for t, h in enumerate(factors)]
        return sum(parts[1:], parts[0]).cpu().numpy()  # type: ignore[no-any-return]

    def _bounds(self, level: Level, relevance: Tensor, masses: Tensor) -> Floats:
        return self._sums(level, relevance.abs(), masses) * self.slack

    def _begin(self) -> Iterator[tuple[list[Units], Tensor]]:
        layer = self.levels[0].layer.layer_id
        parts = [
            arrived(self.state, self.measure.start, clause, layer) * c
            for clause, c in zip(self.clauses, self.coefficients, strict=True)
        ]
        yield [()], torch.stack(parts, 1)

    def _onward(self, prefixes: list[Prefix], number: int) -> Iterator[tuple[list[Units], Tensor]]:
        """Yield relevance ``(K, terms, *shape)`` at a layer, of K prefixes of the one before."""
        upper, lower = self.levels[number - 1], self.levels[number]
        at, until = upper.layer.layer_id, lower.layer.layer_id
        size = per_pass(self.state, self.measure.memory, until, at)
        for first in range(0, len(prefixes), size):
            some = prefixes[first : first + size]
            copies = repeated(self.state, len(some))
            parts = []
            for t in range(len(self.clauses)):
                begin = self.measure.start.new_zeros(len(some), upper.layer.n_neurons)
                for row, prefix in zip(begin, some, strict=True):
                    row[upper.neurons[prefix.units[-1]]] = prefix.relevance[t]
                found = [self.measure.start.new_zeros(len(some), *lower.layer.shape)]

                def visit(i: int, r: Tensor, found: list[Tensor] = found) -> None:
                    if i == until:
                        found[0] = r

                clause = self._between(t, at, until)
                relevance_pass(copies, begin, clause, at=at, until=until, visit=visit)
                parts.append(found[0])
            yield [prefix.units for prefix in some], torch.stack(parts, 1)


class _Beam:
    """Prefixes of one layer: those that go on, and what is left behind in the others."""

    def __init__(self, outcome: Outcome, k: int, width: int, floor: float) -> None:
        self.outcome, self.k, self.width, self.floor = outcome, k, width, floor
        self.kept: list[Prefix] = []
        self.scores = np.zeros((0, 3))  # |joint|, bound of one path, bound of all

    def finish(self, parents: list[Units], joints: Floats) -> None:
        """Complete paths: keep the k + 1 strongest."""
        outcome, size = self.outcome, np.abs(joints).ravel()
        outcome.every += float(size.sum())
        order = np.argsort(-size, kind="stable")[: self.k + 1]
        for place in order[size[order] > 0].tolist():
            row, unit = divmod(place, joints.shape[1])
            outcome.best[(*parents[row], unit)] = float(joints[row, unit])
        best = sorted(outcome.best.items(), key=lambda item: -abs(item[1]))[: self.k + 1]
        outcome.best = dict(best)

    def add(
        self,
        parents: list[Units],
        level: Level,
        relevance: Tensor,
        joints: Floats,
        singles: Floats,
        totals: Floats,
    ) -> None:
        """Take up extensions by one unit each, ``(K, units)``."""
        scores = np.stack([np.abs(joints), singles, totals], -1).reshape(-1, 3)
        scores[:, 1] = np.minimum(scores[:, 1], scores[:, 2])
        old = len(self.kept)
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
        kept = []
        for place in order.tolist():
            if place < old:
                kept.append(self.kept[place])
                continue
            row, unit = divmod(int(possible[place - old]), joints.shape[1])
            own = flat[row][:, level.neurons[unit]]
            kept.append(Prefix((*parents[row], unit), own))
        self.kept, self.scores = kept, everything[order]

    def _chosen(self, scores: Floats) -> npt.NDArray[np.int64]:
        """Half by the joint so far, where the strongest paths are likely; half by the bound."""
        if len(scores) <= self.width:
            return np.arange(len(scores))
        joint = np.argsort(-scores[:, 0], kind="stable")[: (self.width + 1) // 2]
        bound = np.argsort(-scores[:, 1], kind="stable")
        bound = bound[~np.isin(bound, joint)][: self.width - len(joint)]
        return np.sort(np.concatenate([joint, bound]))

    def _drop(self, scores: Floats) -> None:
        if len(scores):
            self.outcome.dropped = max(self.outcome.dropped, float(scores[:, 1].max()))
            self.outcome.left += float(scores[:, 2].sum())

    def close(self) -> list[Prefix]:
        """Return the prefixes that go on."""
        return self.kept
