"""The relevance pass, for a batch of inputs, and its adjoint.

Once the activations are fixed, relevance is linear: the pass walks the program in reverse and
each operation maps the relevance of its output to that of its inputs and pseudo-neurons.  A
conjunction (:mod:`nrm_graph.events.conjunctions`) is evaluated on the way: *pass A* multiplies by
A's mask and drops every other walk that is pending, because in reverse execution order no pending
walk can still reach A; *avoid A* multiplies by the complement and drops nothing.  The value of the
conjunction is all that is left at the end, in inputs and pseudo-neurons alike.

The adjoint (:mod:`nrm_graph.propagation.adjoint_pass`) runs upwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.interpreter import own_precision
from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.progress import look
from nrm_graph.propagation.kernels import kernel_of
from nrm_graph.propagation.routing import send
from nrm_graph.propagation.tensor_sums import accumulate, by_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause, Literal
    from nrm_graph.propagation.state import State


@dataclass
class Outcome:
    """Value of a conjunction per sample, ``(N,)``, and the size of what was summed.

    ``magnitude`` bounds what rounding is relative to: the largest sum of |R| that any literal
    of the conjunction selected from, and, where the last one avoids, of the ends summed.
    """

    value: Tensor
    magnitude: Tensor


@dataclass
class _Sums:
    """What a pass has summed so far, per sample, ``(N,)``.

    Attributes
    ----------
    magnitude : Tensor
        As that of the outcome, without what is summed over the ends of walks.
    ended, spread : Tensor
        Relevance of the walks that ended since the last literal that passes; the sum of its
        sizes, where only the ends of walks tell the value.
    only_ends : bool
        Whether they do.
    passed : bool
        Whether a literal that passes was met.
    value : Tensor or None
        Value of the clause, where its last literal passes and was met.
    """

    magnitude: Tensor
    ended: Tensor
    spread: Tensor
    only_ends: bool
    passed: bool = False
    value: Tensor | None = None

    def select(self, literal: Literal, relevance: Tensor, last: bool) -> Tensor:
        """Keep what a literal lets through of the relevance ``(N, *shape)`` of its layer."""
        mask = torch.as_tensor(literal.mask, device=relevance.device)
        chosen = relevance * mask
        size = by_sample(chosen.abs())
        anew = literal.passes and not self.passed
        self.magnitude = size if anew else torch.maximum(self.magnitude, size)
        if not literal.passes:
            return relevance * ~mask
        self.passed = True
        if last:  # all that remains is summed here: below, rounding is not the event's own
            self.value = by_sample(chosen)
        self.ended = self.spread = torch.zeros_like(self.ended)
        return chosen

    def end(self, relevance: Tensor) -> None:
        """Add relevance of walks that end, ``(N, *shape)``."""
        self.ended = self.ended + by_sample(relevance)
        if self.only_ends:
            self.spread = self.spread + by_sample(relevance.abs())


@own_precision
def relevance_pass(
    state: State,
    start: Tensor,
    clause: Clause | None = None,
    *,
    at: int | None = None,
    joins: Mapping[int, Tensor] | None = None,
    until: int | frozenset[int] | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
    absorb: Callable[[int, str, Tensor], None] | None = None,
    stop: Callable[[int, Tensor], bool | Tensor] | None = None,
    weigh: Callable[[str, Tensor], Iterable[tuple[str, Tensor]]] | None = None,
) -> Outcome:
    """Send relevance from the output to the inputs.

    Parameters
    ----------
    state : State
        Activations of a batch of N.
    start : Tensor, (N, outputs) or (N, *shape)
        Relevance of the network's output, or of the layer ``at``.
    clause : Clause, optional
        The conjunction that walks must satisfy; a mask may have a batch axis in front.
    at : int, optional
        Layer to start from; what the clause says of layers above it is passed over.
    joins : mapping of layer id to Tensor, (N, *shape), optional
        Relevance that begins at layers below it; not together with a clause.
    until : int or frozenset of int, optional
        Layer at which the pass ends, after its visit, the lowest of several; what cannot reach any
        of them is left out, and the outcome's value is not that of the clause.
    visit : callable, optional
        Called with layer id and relevance ``(N, *shape)`` of every layer reached, masked.
    absorb : callable, optional
        Called with layer id, ``bias``, ``stabilizer`` or ``remainder``, and what each neuron lost
        to it; not where the clause has the walk still pass through a set below.
    stop : callable, optional
        Called like ``visit``; where it answers True, the walks end there (and still count), of a
        mask, ``(*shape)`` or ``(N, *shape)``, those that arrive inside.
    weigh : callable, optional
        Takes the place of the step through a weighing operation: given its name and relevance
        (laid out as the network does, see :mod:`nrm_graph.network.ir.batch_axis`),
        it yields operands and their relevance.  Absorbed shares are left to it, and are no
        part of the outcome.
    """
    net = state.network
    layout, n = net.layout, start.shape[0]
    at = layout.topology.output.layer_id if at is None else at
    top = net.values[at]
    start = start.reshape(n, *layout.topology.layers[at].shape)
    pending: dict[str, Any] = {top: layout.batches[top].native(start)}
    for i, joining in (joins or {}).items():
        pending[net.values[i]] = layout.batches[net.values[i]].native(joining)
    clause = {i: literal for i, literal in (clause or {}).items() if i <= at}
    lowest = min(clause, default=-1)
    last = lowest_pass(clause)
    # Where the last literal avoids, the value is summed over the ends of walks.
    only_ends = bool(clause) and last != lowest
    sums = _Sums(by_sample(start.abs()), start.new_zeros(n), start.new_zeros(n), only_ends)
    asked = (
        frozenset() if until is None else frozenset([until] if isinstance(until, int) else until)
    )
    end = min(asked, default=-1)
    useful = net.readers(asked) if asked else None
    for name, node in reversed(net.order[: net.position[top] + 1]):
        look()
        relevance = pending.pop(name, None)
        layer_id = layout.layer_of.get(name)
        literal = clause.get(layer_id) if layer_id is not None else None
        empty = relevance is None
        if literal is not None:
            if relevance is None:
                relevance = torch.zeros_like(state.values[name])
            batch = layout.batches[name]
            chosen = sums.select(literal, batch.samples(relevance), last=layer_id == lowest)
            if sums.value is not None and not (visit or absorb or stop or weigh):
                return Outcome(sums.value, sums.magnitude)
            if literal.passes:
                pending.clear()
            relevance = batch.native(chosen)
        if empty or (useful is not None and name not in useful):
            continue
        if layer_id is None:
            assert node is not None
            weights = net.program.weights
            send(node, relevance, state.values, state.winners, weights, pending, n)
            continue
        arrived = layout.batches[name].samples(relevance)
        if visit is not None:
            visit(layer_id, arrived)
        if layer_id == end:
            if stop is not None:
                stop(layer_id, arrived)
            break
        stopped = stop is not None and stop(layer_id, arrived)
        # At inputs, walks end.
        if stopped is True or name not in layout.weighings:
            sums.end(arrived)
            continue
        if isinstance(stopped, torch.Tensor):
            sums.end(arrived * stopped)
            relevance = layout.batches[name].native(arrived.masked_fill(stopped, 0.0))
        shares = shares_of(state, name, relevance) if weigh is None else weigh(name, relevance)
        for operand, share in shares:
            accumulate(pending, operand, share)
        if weigh is None and useful is None:
            for kind, part in _lost(state, name, relevance):
                sums.end(part)
                if absorb is not None and (last < 0 or layer_id <= last):
                    absorb(layer_id, kind, part)
    value = sums.ended if sums.value is None else sums.value
    return Outcome(value, torch.maximum(sums.magnitude, sums.spread))


def lowest_pass(clause: Clause) -> int:
    """Lowest layer that walks must pass through; -1 if there is none."""
    return min((i for i, literal in clause.items() if literal.passes), default=-1)


def only(literal: Literal, values: Tensor) -> Tensor:
    """Keep ``(N, *shape)`` where a literal lets walks pass; 0 elsewhere."""
    return values * torch.as_tensor(literal.allowed, device=values.device)


def shares_of(state: State, name: str, relevance: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Operands of a weighing operation and their shares of its relevance."""
    op = state.network.layout.weighings[name]
    for share in kernel_of(state, name).shares:
        s = share.weigh(relevance)
        for term in share.terms:
            operand = op.operands[term.operand]
            back = op.maps[term.operand].transpose(s, term.weight, state.values[operand])
            yield operand, term.x * back


def _lost(state: State, name: str, relevance: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Give what pseudo-neurons absorb of every neuron, ``(N, *shape)``."""
    for unit, share in kernel_of(state, name).absorbed():
        yield PSEUDO_UNITS[unit], state.samples(name, relevance * share)
