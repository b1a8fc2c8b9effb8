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

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.measures.event_passes import arrived, per_pass
from nrm_graph.measures.paths import sliced_convolution
from nrm_graph.measures.paths.beam import Beam, Level, Prefix, SearchResult
from nrm_graph.measures.paths.bounds import mass, mass_of_channels
from nrm_graph.measures.paths.sliced_convolution import sliceable
from nrm_graph.measures.results import Path, Paths
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.progress import Progress
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.kernels import kernel_of
from nrm_graph.propagation.relevance_pass import only, relevance_pass, shares_of
from nrm_graph.propagation.state import repeated
from nrm_graph.propagation.tensor_sums import total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.measures.paths.beam import Floats, UnitPath
    from nrm_graph.network.topology import LayerInfo, Topology
    from nrm_graph.network.units import Resolution
    from nrm_graph.propagation.state import State

BEAM = (256, 4096)
"""Least and most prefixes that are carried on from every layer by default."""

WORK = 4_000_000_000
"""Values that one search computes by default, within these limits: prefixes times neurons."""

BATCH = 1 << 27
"""Bytes of one batch of passes: larger ones are no faster, for all is bound by memory."""

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


@exact
def strongest_paths(
    measure: Algebra,
    k: int,
    layers: Sequence[str] | None = None,
    beam: int | None = None,
    by: Resolution | Mapping[str, Resolution] = "unit",
    progress: bool = True,
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
    beam : int, optional
        Prefixes that are carried on from every layer; by default 256 to 4096, the more the
        smaller the layers are.  A wider one takes longer where it is filled, and certifies more.
    by : str or mapping of layer name to str or array
        ``unit`` for the measure's units; or a resolution, or a choice for some of the layers, see
        :func:`nrm_graph.network.units.partition`.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.

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
    answer is certified.  Of walks, neuron by neuron,
    :func:`nrm_graph.measures.paths.walks.strongest_walks` always gives the strongest.

    Bounds are tight between neighbouring layers (three to six convolutions
    of a VGG16 are certified in seconds); where layers are left out between those named, signs that
    cancel there count in full, and the answer is seldom certified.

    The bound takes every |q| of the kernel; it allows for the rounding of its own sums, not for
    that of the pass.
    """
    for name, value in (("k", k), ("beam", 1 if beam is None else beam)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} must be a whole number, at least 1, found {value!r}")
    chosen = _layers(measure, layers)
    if beam is None:
        work = WORK * measure.start.element_size()
        fits = per_pass(measure.state, work, chosen[-1].layer_id, chosen[0].layer_id)
        beam = min(max(fits, BEAM[0]), BEAM[1])
    levels = [Level.of(measure, layer, by) for layer in chosen]
    with Progress("paths", 0, "passes", progress) as meter:
        search = _Search(measure, levels, meter)
        first = search.once(k, min(beam, max(32, 4 * k)), 0.0)
        rounds = [first]
        if first.dropped > first.weakest(k):
            rounds.append(search.once(k, beam, first.weakest(k)))
    known: dict[UnitPath, float] = {}
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


def _layers(measure: Algebra, names: Sequence[str] | None) -> list[LayerInfo]:
    if names is None:
        return cuts(measure.topology)
    if isinstance(names, str) or not len(names):
        raise InputError(f"layers must be a list of layer names, at least one, found {names!r}")
    by_id = {layer.layer_id: layer for layer in (measure.topology.layer(name) for name in names)}
    if len(by_id) < len(names):
        raise InputError(f"a layer is named twice among {', '.join(names)}")
    return [by_id[i] for i in sorted(by_id, reverse=True)]


class _Search:
    """Layers, conditions and masses of the search, which do not depend on the beam."""

    def __init__(self, measure: Algebra, levels: list[Level], meter: Progress) -> None:
        self.measure, self.levels, self.state = measure, levels, measure.state
        self.meter = meter
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

    def _at_once(self, lower: int, upper: int) -> int:
        """How many passes go through together between two layers."""
        return per_pass(self.state, min(self.measure.memory, BATCH), lower, upper)

    def _between(self, term: int, upper: int, lower: int) -> Clause:
        return {i: v for i, v in self.clauses[term].items() if lower <= i < upper}

    @functools.cached_property
    def masses(self) -> list[list[Tensor]]:
        """For every layer and term, what one path and all paths hold from its neurons on.

        Tensors ``(2, *shape)``.
        """
        single = [level.count for level in self.levels[1:] if level.count <= SINGLE]
        self.meter.expect(sum(single) * len(self.clauses))
        upwards = [[torch.stack([h.abs()] * 2) for h in self.ahead]]
        for upper, lower in zip(self.levels[-2::-1], self.levels[:0:-1], strict=True):
            upwards.append([self._mass(t, upper, lower, m) for t, m in enumerate(upwards[-1])])
        return upwards[::-1]

    def _mass(self, term: int, upper: Level, lower: Level, worth: Tensor) -> Tensor:
        at, until = upper.layer.layer_id, lower.layer.layer_id
        clause = self._between(term, at, until)
        if until in clause:
            worth = only(clause[until], worth)
        sums = mass(repeated(self.state, 2), clause, worth, until, at)
        if lower.count > SINGLE:
            return sums
        # Of one path: the maximum over the units of the layer below.
        size = self._at_once(until, at)
        best = torch.zeros_like(sums[0])
        for first in range(0, lower.count, size):
            units = range(first, min(first + size, lower.count))
            if lower.channels:
                ways = mass_of_channels(self.state, clause, worth[0], units, until, at)
            else:
                of_units = worth[0] * lower.masks(units, worth)
                ways = mass(repeated(self.state, len(units)), clause, of_units, until, at)
            best = torch.maximum(best, ways.amax(0))
            self.meter.advance(len(units))
        return torch.stack([torch.minimum(best, sums[0]), sums[1]])

    def once(self, k: int, width: int, floor: float) -> SearchResult:
        """Search once; prefixes that cannot exceed ``floor`` are dropped at once."""
        outcome = SearchResult({})
        prefixes: list[Prefix] = []
        for number, level in enumerate(self.levels):
            last = number == len(self.levels) - 1
            beam = Beam(outcome, k, width, floor)
            extensions = self._begin() if number == 0 else self._onward(prefixes, number)
            for parents, relevance in extensions:
                if last:
                    beam.finish(parents, self._complete(level, relevance))
                    continue
                joints = level.sums(relevance.sum(1), relevance.dtype).cpu().numpy()
                beam.add(parents, level, relevance, joints, self._bounds(number, relevance))
            prefixes = beam.close()
        return outcome

    def _complete(self, level: Level, relevance: Tensor) -> Floats:
        """Sum the relevance of whole paths by unit of the last layer: ``(K, units)``."""
        parts = [level.sums(relevance[:, t] * h) for t, h in enumerate(self.ahead)]
        return total(parts).cpu().numpy()

    def _bounds(self, number: int, relevance: Tensor) -> Floats:
        """Bound one path and all together, of every extension: ``(2, K, units)``."""
        size, masses = relevance.abs(), self.masses[number]
        parts = [
            self.levels[number].weighed(size[:, t], masses[t]) for t in range(len(self.clauses))
        ]
        return total(parts).cpu().numpy() * self.slack

    def _begin(self) -> Iterator[tuple[list[UnitPath], Tensor]]:
        layer = self.levels[0].layer.layer_id
        parts = [
            arrived(self.state, self.measure.start, clause, layer) * c
            for clause, c in zip(self.clauses, self.coefficients, strict=True)
        ]
        yield [()], torch.stack(parts, 1)

    def _onward(
        self, prefixes: list[Prefix], number: int
    ) -> Iterator[tuple[list[UnitPath], Tensor]]:
        """Yield relevance ``(K, terms, *shape)`` at a layer, of K prefixes of the one before."""
        upper, lower = self.levels[number - 1], self.levels[number]
        at, until = upper.layer.layer_id, lower.layer.layer_id
        size = self._at_once(until, at)
        self.meter.expect(len(prefixes))
        for first in range(0, len(prefixes), size):
            some = prefixes[first : first + size]
            copies = repeated(self.state, len(some))
            weigh = self._steps(copies, upper, [prefix.units[-1] for prefix in some])
            parts = []
            for t in range(len(self.clauses)):
                begin = self.measure.start.new_zeros(len(some), upper.layer.n_neurons)
                for row, prefix in zip(begin, some, strict=True):
                    row[upper.neurons[prefix.units[-1]]] = prefix.relevance[t]
                there: list[Tensor] = []

                def visit(i: int, r: Tensor, there: list[Tensor] = there) -> None:
                    if i == until:
                        there.append(r)

                clause = self._between(t, at, until)
                relevance_pass(copies, begin, clause, at=at, until=until, visit=visit, weigh=weigh)
                parts.append(there[0] if there else begin.new_zeros(len(some), *lower.layer.shape))
            whole = torch.stack(parts, 1) if len(parts) > 1 else parts[0][:, None]
            yield [prefix.units for prefix in some], whole
            self.meter.advance(len(some))

    def _steps(
        self, copies: State, upper: Level, units: list[int]
    ) -> Callable[[str, Tensor], Iterator[tuple[str, Tensor]]] | None:
        """Return the step of each operation; the first one of a single channel, if units are."""
        net = self.state.network
        top = net.values[upper.layer.layer_id]
        op = net.layout.weighings.get(top)
        if op is None or not (upper.channels and all(sliceable(kind, True) for kind in op.maps)):
            return None
        channels = torch.tensor(units, device=self.measure.start.device)

        def weigh(name: str, relevance: Tensor) -> Iterator[tuple[str, Tensor]]:
            if name != top:
                yield from shares_of(copies, name, relevance)
                return
            of_channel = sliced_convolution.one(relevance, channels)
            for share in kernel_of(copies, name).shares:
                s = of_channel * sliced_convolution.one(share.factor.expand_as(relevance), channels)
                for term in share.terms:
                    operand, kind = op.operands[term.operand], op.maps[term.operand]
                    back = sliced_convolution.transpose(kind, s, term.weight, channels, term.x)  # type: ignore[arg-type]
                    yield operand, term.x * back

        return weigh
