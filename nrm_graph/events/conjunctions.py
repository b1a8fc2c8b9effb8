"""Events bound to a network: signed sums of conjunctions.

A walk visits a layer at most once, so every boolean combination of neuron sets is a signed
sum of *conjunctions*, each a layer-wise list of "passes through" and "avoids".  One relevance
pass evaluates one conjunction (:mod:`nrm_graph.propagation.relevance_pass`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import EventError
from nrm_graph.events.sets import And, Edge, Event, NeuronSet, Not, Or

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.network.topology import Topology
    from nrm_graph.network.units import Partition

MAX_CLAUSES = 4096


@dataclass(frozen=True)
class Literal:
    """What a conjunction says of one layer: pass through ``mask``, or avoid it.

    A bound event's mask is a boolean array of the layer's shape.  Passes take a batch of them, and
    weights in a Tensor, too.
    """

    passes: bool
    mask: Any

    @property
    def allowed(self) -> Any:
        """Neurons that walks may pass through, in the form of ``mask``."""
        return self.mask if self.passes else ~self.mask

    def merge(self, other: Literal) -> Literal:
        """Both at once; exact because a walk visits a layer at most once."""
        if self.passes and other.passes:
            return Literal(True, self.mask & other.mask)
        if self.passes:
            return Literal(True, self.mask & ~other.mask)
        if other.passes:
            return other.merge(self)
        return Literal(False, self.mask | other.mask)


Clause = dict[int, Literal]
"""A bound conjunction: literals by layer id."""


def _product(
    left: list[tuple[int, Clause]], right: list[tuple[int, Clause]]
) -> list[tuple[int, Clause]]:
    terms: dict[tuple[tuple[int, bool, bytes], ...], tuple[int, Clause]] = {}
    for a, x in left:
        for b, y in right:
            merged = dict(x)
            for layer_id, literal in y.items():
                merged[layer_id] = (
                    merged[layer_id].merge(literal) if layer_id in merged else literal
                )
            # An empty "avoid" says nothing; an empty "pass" is impossible.
            merged = {i: lit for i, lit in merged.items() if lit.passes or lit.mask.any()}
            if any(lit.passes and not lit.mask.any() for lit in merged.values()):
                continue
            key = tuple((i, merged[i].passes, merged[i].mask.tobytes()) for i in sorted(merged))
            terms[key] = (terms.get(key, (0, merged))[0] + a * b, merged)
            if len(terms) > MAX_CLAUSES:
                raise EventError(
                    f"the event expands to more than {MAX_CLAUSES} conjunctions: ask for its "
                    "parts one by one"
                )
    return [(c, clause) for c, clause in terms.values() if c]


def expand(
    event: Event, topology: Topology, units: Sequence[Partition] | None = None
) -> list[tuple[int, Clause]]:
    """Write an event as a signed sum of conjunctions.

    The indicator of ``~E`` is 1 minus that of E, of ``|`` it is 1 minus the product of the
    complements: a union of sets is therefore 1 minus one conjunction that avoids them all.
    (Of sets of one layer it is one conjunction that passes any of them.)

    Returns
    -------
    list of (int, Clause)
        Coefficients and conjunctions; the empty clause is the sure event.

    Raises
    ------
    EventError
        If a layer is unknown, an index does not fit, or the sum has too many terms.
    """
    sure: list[tuple[int, Clause]] = [(1, {})]

    def literal(neurons: NeuronSet, passes: bool) -> Clause:
        info = topology.layer(neurons.layer)
        part = units[info.layer_id] if units is not None else None
        return {info.layer_id: Literal(passes, neurons.mask(info.shape, part))}

    def within(union: Or) -> Clause | None:
        """Write a union of sets of one layer as a single set."""
        sets = [part for part in union.parts if isinstance(part, NeuronSet)]
        ids = {topology.layer(part.layer).layer_id for part in sets}
        if len(sets) < len(union.parts) or len(ids) > 1:
            return None
        masks = [literal(part, True) for part in sets]
        return {i: Literal(True, np.any([mask[i].mask for mask in masks], axis=0)) for i in ids}

    def complement(terms: list[tuple[int, Clause]]) -> list[tuple[int, Clause]]:
        return _product(sure, [(1, {}), *((-c, clause) for c, clause in terms)])

    def terms(node: Event) -> list[tuple[int, Clause]]:
        result = sure
        if isinstance(node, NeuronSet):
            result = _product(sure, [(1, literal(node, True))])
        elif isinstance(node, Edge):
            result = _product(sure, [(1, _step(node))])
        elif isinstance(node, Not):
            if isinstance(node.event, NeuronSet):
                return _product(sure, [(1, literal(node.event, False))])
            result = complement(terms(node.event))
        elif isinstance(node, And):
            for part in node.parts:
                result = _product(result, terms(part))
        elif isinstance(node, Or):
            whole = within(node)
            if whole is not None:
                return _product(sure, [(1, whole)])
            for part in node.parts:
                result = _product(result, terms(~part))
            result = complement(result)
        else:
            raise EventError(f"expected an event such as Layer('conv1')[3], found {node!r}")
        return result

    def _step(edge: Edge) -> Clause:
        dst, src = literal(edge.dst, True), literal(edge.src, True)
        (upper,), (lower,) = dst, src
        if lower >= upper:
            raise EventError(
                f"{edge!r}: the first set must be nearer the output, but layer "
                f"{edge.dst.layer} does not come after {edge.src.layer}"
            )
        # A direct step passes both and no layer between; those that cannot lie between are
        # avoided in vain, which changes nothing.
        between = {
            i: Literal(False, np.ones(topology.layers[i].shape, bool))
            for i in range(lower + 1, upper)
        }
        return dst | src | between

    try:
        return terms(event)
    except RecursionError:
        raise EventError("the event is nested too deeply: ask for its parts one by one") from None
