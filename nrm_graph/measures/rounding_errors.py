"""How far rounding may have taken an answer from the exact one: two precisions, one measure.

Deep in a network relevance itself carries far more than the rounding of the last sum: quotients by
denominators that nearly vanish amplify what the forward run lost.  No formula of sizes tells by how
much, so it is measured.  An event is evaluated in float64 and in float32, with the same decisions
(:func:`nrm_graph.propagation.forward.in_precision`); the float64 value is the answer.  To first
order both errors are the same function of their machine epsilon, so the float64 error is estimated
from the difference of both, neuron by neuron, times the quotient of the epsilons and a safety
factor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.measures.event_passes import nodes
from nrm_graph.measures.joint import NeuronGroups, joint
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.progress import uncounted
from nrm_graph.propagation.forward import in_precision
from nrm_graph.propagation.output_weights import initial_relevance
from nrm_graph.propagation.relevance_pass import lowest_pass, relevance_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.measures.event_passes import Nodes, Terms
    from nrm_graph.propagation.state import State

SAFETY = 1024.0
"""Errors of both precisions are alike in size, not equal: their quotient may be off by so much."""

RATIO = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps

ROUNDINGS = 32.0
"""Machine epsilons of float64, of the sum of |R|, that the last sum itself may cost."""

SAFETY_SINGLE = 8.0
"""The same for float32 itself, whose error is seen and not only estimated."""

SAMPLED = 8
"""Units of a joint matrix that are computed in float32 as well."""

TRUSTED = 1e-3
"""Relative error up to which conditioned tables are computed in float32."""


@dataclass(frozen=True, eq=False)
class InPrecision:
    """Activations of one input and the relevance that walks begin with, in one precision.

    Attributes
    ----------
    state : State
        Activations.
    start : Tensor, (1, outputs)
        Initial relevance.
    """

    state: State
    start: Tensor
    _cache: dict[str, Nodes] = field(default_factory=dict, repr=False)

    def nodes(self) -> Nodes:
        """Relevance of every layer without a condition, and what it absorbs; computed once."""
        if not self._cache:
            self._cache["nodes"] = nodes(self.state, self.start, ((1.0, {}),))
        return self._cache["nodes"]

    def let_go(self) -> None:
        """Forget what :meth:`nodes` holds, for it may be large; it is computed again when asked."""
        self._cache.clear()

    @property
    def known(self) -> Callable[[int], Tensor] | None:
        """Relevance of layers, if it was computed before."""
        return self.relevance if self._cache else None

    def relevance(self, layer_id: int) -> Tensor:
        """Relevance of a layer ``(1, *shape)`` without a condition."""
        shape = self.state.network.layout.topology.layers[layer_id].shape
        values = self.nodes()[0].get(layer_id)
        return self.start.new_zeros(1, *shape) if values is None else values[None]


@dataclass(frozen=True, eq=False)
class Precisions:
    """One measure in float64, which answers, and in float32, which tells how far to trust it."""

    double: InPrecision
    single: InPrecision


def precisions(measured: InPrecision, weights: Tensor) -> Precisions:
    """Return both precisions of a measure.

    Parameters
    ----------
    own : InPrecision
        The measure in either precision; its decisions are kept.
    weights : Tensor, (1, outputs)
        Weights of the outputs that its initial relevance was made of.
    """
    is_double = measured.start.dtype == torch.float64
    state = in_precision(measured.state, torch.float32 if is_double else torch.float64)
    other = InPrecision(state, initial_relevance(state, weights.to(state.output)))
    return Precisions(measured, other) if is_double else Precisions(other, measured)


@dataclass(frozen=True)
class Sum:
    """Value of an event, and what is known of its error.

    Attributes
    ----------
    value : float
        In float64.
    error : float
        Bound of its absolute error.
    size : float
        Sum of |R| over the neurons that the event selects.
    difference : float
        How far float32 is from it, the differences of single neurons summed without sign.
    """

    value: float
    error: float
    size: float
    difference: float


def evaluate(precisions: Precisions, terms: Iterable[tuple[float, Clause]]) -> Sum:
    """Evaluate an event in both precisions.

    Parameters
    ----------
    precisions : Precisions
        The measure.
    terms : sequence of (float, Clause)
        The event's conjunctions and their coefficients.
    """
    value = size = difference = 0.0
    for coefficient, clause in terms:
        double, magnitude = summands(precisions.double, clause)
        single, _ = summands(precisions.single, clause)
        value += coefficient * sum(float(part.sum()) for part in double.values())
        size += abs(coefficient) * magnitude
        for key in double.keys() | single.keys():
            parts = [p[key].cpu().double() for p in (double, single) if key in p]
            apart = parts[0] if len(parts) == 1 else parts[0] - parts[1]
            difference += abs(coefficient) * float(apart.abs().sum())
    size = size if size or value else 1.0
    return Sum(value, bound(difference, size), size, difference)


def bound(difference: float, size: float) -> float:
    """Bound of a float64 error, from how far float32 is and from the size of what is summed."""
    eps = torch.finfo(torch.float64).eps
    return SAFETY * RATIO * difference + ROUNDINGS * eps * size


@exact
def summands(measured: InPrecision, clause: Clause) -> tuple[dict[Any, Tensor], float]:
    """Return what the value of a conjunction is summed from, and the size of it.

    Returns
    -------
    parts : dict of str to Tensor
        Relevance in the lowest set that walks must pass; where the conjunction ends with a set to
        avoid, or says nothing, that of the ends of walks.
    size : float
        See :class:`nrm_graph.propagation.relevance_pass.Outcome`.
    """
    lowest = min(clause, default=-1)
    parts: dict[Any, Tensor] = {}
    if clause and lowest == lowest_pass(clause):

        def visit(layer_id: int, relevance: Tensor) -> None:
            if layer_id == lowest:
                parts[layer_id] = relevance

        outcome = relevance_pass(measured.state, measured.start, clause, until=lowest, visit=visit)
        return parts, float(outcome.magnitude)
    layers = measured.state.network.layout.topology.layers
    values = measured.state.network.values

    def end(layer_id: int, relevance: Tensor) -> None:
        if values[layer_id] not in measured.state.network.layout.weighings:
            parts[layers[layer_id].name] = relevance

    def absorb(layer_id: int, kind: str, relevance: Tensor) -> None:
        parts[layer_id, kind] = relevance

    outcome = relevance_pass(measured.state, measured.start, clause, visit=end, absorb=absorb)
    return parts, float(outcome.magnitude) if clause else 1.0


def evaluate_joint(
    precisions: Precisions,
    terms: Terms,
    upper: NeuronGroups,
    lower: NeuronGroups,
    memory: int,
    advance: Callable[[int], object] = uncounted,
) -> tuple[npt.NDArray[np.float64], float]:
    """Joint matrix of two groups of neurons each in float64, and a bound of the error of a value.

    In float32 the units alone are computed again that hold most, of the side with fewer.
    """
    double, single = precisions.double, precisions.single
    values = joint(double.state, double.start, terms, upper, lower, memory, double.known, advance)
    rows = upper.count < lower.count
    strongest = np.argsort(-np.abs(values).sum(int(rows)), kind="stable")[:SAMPLED]
    some = _only(upper if rows else lower, strongest)
    pair = (some, lower) if rows else (upper, some)
    again = joint(single.state, single.start, terms, *pair, memory, single.known)
    apart = np.abs(again - (values[strongest] if rows else values[:, strongest]))
    size = float(np.abs(values).max(initial=0.0))
    return values, bound(float(apart.max(initial=0.0)), size)


def _only(groups: NeuronGroups, chosen: npt.NDArray[np.int64]) -> NeuronGroups:
    """Take some of the groups, in their order there."""
    place = np.full(groups.count + 1, -1, np.int64)  # the last is for neurons in none
    place[chosen] = np.arange(len(chosen))
    return NeuronGroups(groups.layer_id, np.asarray(place[groups.labels]), len(chosen))
