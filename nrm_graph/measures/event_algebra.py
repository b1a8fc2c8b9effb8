"""The algebra of events of one input: values, conditions, interaction.

All numbers come from relevance passes over the traced program at the neuron level; grouped
edges are never multiplied, because grouping destroys the Markov property (see docs/concepts.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from nrm_graph.errors import EventError, UndefinedConditional
from nrm_graph.events.conjunctions import expand
from nrm_graph.events.sets import Event, checked
from nrm_graph.measures import event_passes, rounding_errors
from nrm_graph.measures.results import Conditional, Estimate
from nrm_graph.network.targets import outputs_of
from nrm_graph.network.token_texts import own_tokens
from nrm_graph.network.weighted_targets import text_of
from nrm_graph.progress import Progress
from nrm_graph.propagation.flags import SHORT, flags_of, meaning, reading
from nrm_graph.propagation.output_scale import added_up
from nrm_graph.tables.html_tables import Description, Displayed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.network.targets import Outputs
    from nrm_graph.network.topology import LayerInfo, Topology
    from nrm_graph.network.units import Partition
    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.propagation.flags import Flag
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.propagation.state import State


@dataclass(frozen=True, eq=False, repr=False)
class Algebra(Displayed):
    """What a measure is made of, and what it says of events; see :class:`Measure`."""

    network: Network
    state: State
    partitions: tuple[Partition, ...]
    start: Tensor
    weights: Tensor
    target: int | None
    logit: float
    predicted: int
    scale: float = 1.0
    memory: int = event_passes.MEMORY
    condition: Event | None = None
    condition_relevance: float = 1.0
    condition_error: float = 0.0
    amplification: float = 1.0
    error: float = 0.0
    terms: event_passes.Terms = ((1.0, {}),)
    tokens: tuple[str, ...] | None = None
    classes: Sequence[str] | None = None
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def _description(self) -> Description:
        target = self.target_text()
        given = "" if self.condition is None else f" given {self.condition!r}"
        layers = len(self.topology.layers)
        flagged = "".join(f"{', ' if i else '; '}{SHORT[f.name]}" for i, f in enumerate(self.flags))
        without = "" if self.bias == "absorbed" else ", biases ignored"
        head = f"Measure of {target}{given}, logit {self.logit:.4g}{without}: {layers} layers"
        return Description(head + flagged)

    @property
    def bias(self) -> str:
        """Reading of the measure: biases and constants take their share, or are left out."""
        return self.network.composite.bias

    @property
    def outputs(self) -> Outputs:
        """What the network returns, which targets are places in."""
        return outputs_of(self.network.program)

    def target_text(self) -> str:
        """Target in words, such as ``target 3 (cat)``: its place in the output, and its class."""

        def text(output: Aim) -> str:
            return self.outputs.text(output, self.classes)

        if self.target is not None:
            return f"target {text(self.target)}"
        chosen = self.weights[0].nonzero().flatten().tolist()
        weights = {index: float(self.weights[0, index]) for index in chosen}
        if sorted(weights.values()) == [-1.0, 1.0]:
            against, first = sorted(weights, key=weights.__getitem__)
            return f"target {text(first)} against {text(against)}"
        named = "" if self.classes is None else f" {text(text_of(weights))}"
        return f"weighted outputs{named}"

    @property
    def topology(self) -> Topology:
        """Layers and edge groups of the network."""
        return self.network.layout.topology

    @property
    def absorbed(self) -> float:
        """Share of the measure that pseudo-neurons of any layer hold."""
        return sum(float(part) for part in self._nodes()[1].values())

    @property
    def _unplaced(self) -> float:
        """Sum over layers of the absolute share that their stabilizers hold."""
        held = self._nodes()[1].items()
        return sum(abs(float(part)) for (_, kind), part in held if kind == "stabilizer")

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What a reader must know before trusting signs and sizes: sentences with a ``name``."""
        if "flags" not in self._cache:
            sizes = {i: float(r.double().abs().sum()) for i, r in self._nodes()[0].items()}
            largest = max(sizes, key=lambda i: sizes[i])
            self._cache["flags"] = flags_of(
                self.logit,
                float(added_up(self.state, self.weights)),
                sizes[largest],
                self.absorbed,
                bias=self.bias,
                unplaced=self._unplaced,
                scaled=self.scale != 1.0,
                layer=f"layer {self.topology.layers[largest].name}",
                condition=None if self.condition is None else self.condition_relevance,
                amplification=self.amplification,
            )
        return self._cache["flags"]  # type: ignore[no-any-return]

    @property
    def meaning(self) -> str:
        """What a positive number of this measure speaks for, in words."""
        given = None if self.condition is None else self.condition_relevance
        text = meaning(self.logit, scaled=self.scale != 1.0, condition=given)
        return reading(text, self.bias)

    @property
    def facts(self) -> dict[str, Any]:
        """What a graph says of itself: target, condition, tokens, meaning, flags and reading."""
        facts: dict[str, Any] = {"target_text": self.target_text().removeprefix("target ")}
        if self.condition is not None:
            facts |= {
                "given": repr(self.condition),
                "condition_relevance": self.condition_relevance,
            }
        if self.tokens is not None:
            facts["tokens"] = own_tokens(self.tokens)
        flags = tuple(map(str, self.flags))
        return facts | {"meaning": self.meaning, "flags": flags, "reading": self.bias}

    def __call__(self, event: Event, given: Event | None = None) -> float:
        """Relevance of an event, or conditional relevance R(event | given).

        Returns
        -------
        float
            A :class:`nrm_graph.measures.results.Conditional` where there is a condition.

        Raises
        ------
        UndefinedConditional
            If R(given) is below rounding.
        """
        if given is not None:
            return self.given(given)(event)
        if self.condition is None:
            (value,) = self.many([event]).tolist()
            return value  # type: ignore[no-any-return]
        value = self._evaluated(event)
        return Conditional(float(value), value.error, self.amplification, self.absorbed)

    def many(self, events: Sequence[Event]) -> npt.NDArray[np.float64]:
        """Relevance of many events, which share the activations and, where alike, passes."""
        if not isinstance(events, Iterable):
            raise EventError(f"many takes a list of events, found {events!r}")
        return self._values(list(events)) / self.condition_relevance * self.scale

    def _with_condition(self, event: Event) -> Event:
        """Return the walks of an event that satisfy the condition, if there is one."""
        event = checked(event)
        return event if self.condition is None else self.condition & event

    def _expanded(self, event: Event) -> list[tuple[int, Clause]]:
        """Coefficients and conjunctions of an event and the condition."""
        return expand(self._with_condition(event), self.topology, self.partitions)

    def _evaluated(self, event: Event) -> Estimate:
        """R(event | condition) with its error, on the unit scale."""
        joint = rounding_errors.evaluate(self._precisions, self._expanded(event))
        value = joint.value / self.condition_relevance
        error = joint.error / abs(self.condition_relevance)
        share = self._condition_uncertainty
        return Estimate(value, error * (1 + share) + abs(value) * share)

    @property
    def _condition_uncertainty(self) -> float:
        """Largest relative error of what is divided by R(condition), on its account."""
        return self.condition_error / (abs(self.condition_relevance) - self.condition_error)

    @property
    def _precisions(self) -> rounding_errors.Precisions:
        """The measure without its condition in float64 and in float32, made at first use."""
        if "precisions" not in self._cache:
            self._cache["precisions"] = rounding_errors.precisions(
                self._unconditioned, self.weights
            )
        return self._cache["precisions"]  # type: ignore[no-any-return]

    @property
    def _unconditioned(self) -> rounding_errors.InPrecision:
        """The measure without its condition, in its own precision."""
        if "unconditioned" not in self._cache:
            self._cache["unconditioned"] = rounding_errors.InPrecision(self.state, self.start)
        return self._cache["unconditioned"]  # type: ignore[no-any-return]

    def _values(self, events: Sequence[Event]) -> npt.NDArray[np.float64]:
        """R(event & condition) of events, on the unit scale, in float64."""
        owners, coefficients, clauses = [], [], []
        for number, event in enumerate(events):
            for coefficient, clause in self._expanded(event):
                owners.append(number)
                coefficients.append(coefficient)
                clauses.append(clause)
        double = self._precisions.double
        known = double.relevance if len(clauses) > 2 else double.known
        with Progress("events", len(clauses), "conjunctions") as meter:
            values = event_passes.values(
                double.state, double.start, clauses, known, self.memory, meter.advance
            )
        total = np.zeros(len(events))
        weights = np.array(coefficients, np.float64)
        np.add.at(total, np.array(owners, np.int64), values * weights)
        return total

    def given(self, event: Event) -> Self:
        """Return the measure conditioned on an event: R(. & event) / R(event).

        All answers of a measure can be asked of it, exactly, above, between and below the
        event's layers.  Conditioning twice is conditioning on both.

        Raises
        ------
        UndefinedConditional
            If R(event) is below rounding.
        EventError
            If the event does not fit the network.

        Notes
        -----
        Conditional relevance has no scale: ``scale="logit"`` does not multiply it.
        """
        event = checked(event)
        known = self._cache.get("given")
        if known is not None and _alike(known[0], event):
            return known[1]  # type: ignore[no-any-return]
        both = self._with_condition(event)
        terms = expand(both, self.topology, self.partitions)
        precisions = self._precisions
        joint = rounding_errors.evaluate(precisions, terms)
        value = joint.value
        if abs(value) <= joint.error:
            raise UndefinedConditional(
                f"R({both!r}) is {value:.3g}, below rounding (its error is up to "
                f"{joint.error:.3g}, it is summed from {joint.size:.3g}): the conditional is "
                "undefined; condition on a set whose relevance does not cancel"
            )
        # Passes begin with the inverse; what cancels on the way is larger, by 1 / eps at most.
        kind = torch.finfo(self.start.dtype)
        if not abs(value) * kind.max * kind.eps > 1:
            raise UndefinedConditional(
                f"R({both!r}) is {value:.3g}, too small for its inverse in "
                f"{str(self.start.dtype).removeprefix('torch.')}"
            )
        # Tables are made of single neurons: in float32, unless what it loses there shows.
        rough = rounding_errors.SAFETY_SINGLE * joint.difference / abs(value)
        single = self.start.dtype == torch.float32 and rough <= rounding_errors.TRUSTED
        chosen = precisions.single if single else precisions.double
        conditioned_measure = replace(
            self,
            network=chosen.state.network,
            state=chosen.state,
            start=chosen.start,
            scale=1.0,
            condition=both,
            condition_relevance=value,
            condition_error=joint.error,
            amplification=joint.size / abs(value),
            error=rough if single else joint.error / abs(value),
            terms=tuple((coefficient / value, clause) for coefficient, clause in terms),
            _cache={"precisions": precisions, "unconditioned": chosen},
        )
        self._cache["given"] = (event, conditioned_measure)
        return conditioned_measure

    def _joint_terms(self, event: Event) -> event_passes.Terms:
        """Conjunctions of an event of this measure, not divided by its relevance."""
        whole = self.condition_relevance
        return tuple((coefficient / whole, clause) for coefficient, clause in self._expanded(event))

    def extent(self, event: Event) -> tuple[float, float]:
        """R(event) and the size of what it is summed from, on the unit scale.

        The size is the sum of |R| over the neurons of the event's sets; how far that of R(event)
        may be off, ``m.given(event).condition_error`` says.
        """
        joint = rounding_errors.evaluate(self._precisions, self._joint_terms(event))
        return joint.value, joint.size

    def interaction(self, a: Event, b: Event) -> Estimate:
        """R(a & b) - R(a) R(b): how far two events are from independent, on the unit scale."""
        a, b = checked(a), checked(b)
        both, left, right = (self._evaluated(event) for event in (a & b, a, b))
        error = both.error + abs(left) * right.error + abs(right) * left.error
        return Estimate(both - left * right, error + left.error * right.error)

    def _nodes(self) -> event_passes.Nodes:
        """Relevance and absorbed shares of every layer."""
        if self.condition is None:
            return self._unconditioned.nodes()
        if "nodes" not in self._cache:
            self._cache["nodes"] = event_passes.nodes(self.state, self.start, self.terms)
        return self._cache["nodes"]  # type: ignore[no-any-return]

    def _relevance(self, layer: LayerInfo) -> Tensor:
        relevance = self._nodes()[0].get(layer.layer_id)
        return self.start.new_zeros(layer.shape) if relevance is None else relevance


def _alike(one: Event, other: Event) -> bool:
    try:
        return one is other or one == other
    except RecursionError:  # chains of thousands of sets: computed again
        return False
