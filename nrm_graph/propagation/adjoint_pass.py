"""The adjoint of the relevance pass: what is still to come from each neuron.

For a conjunction, ``h(n)`` is the relevance of all continuations of a walk from neuron n that
satisfy what the conjunction says of n's layer and of those below.  The event's value is
multilinear in the masks and in the kernel's entries, so with R(n), the relevance of what arrives
at n under the literals above,

    R(n & event) = R(n) h(n)        R(j -> i & event) = R(j) q(i|j) h(i)

for all neurons and edges at once: reverse-mode differentiation, written out (Darwiche 2003, on
the signed measure of arXiv:2606.00557).  Each operation runs upwards once, as in the forward
run, but with the rule's operands and weights.

Below the lowest literal h is 1: the columns of the kernel, pseudo-neurons included, sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.interpreter import exact
from nrm_graph.network.topology import UNWATCHED
from nrm_graph.progress import look
from nrm_graph.propagation.alive_convolution import apply
from nrm_graph.propagation.kernels import awake, kernel_of
from nrm_graph.propagation.relevance_pass import lowest_pass, only
from nrm_graph.propagation.routing import carry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.network.ir.program import Node
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.propagation.state import State


@dataclass(frozen=True, eq=False)
class Reach:
    """``h`` of every value of a network under a conjunction.

    Attributes
    ----------
    values : mapping of str to Tensor (a list of them for a split), or None
        Native; None is 0.  A value that is not there has 1.
    barriers : tuple of int
        Places, in execution order, of layers that walks must pass through: a walk that steps
        over one is not in the event.
    last : int
        Lowest layer that walks must pass through, or -1.
    ends : frozenset of int, or None
        Pseudo-units in which the walks that count end; None for all.
    """

    network: Network
    values: Mapping[str, Any]
    barriers: tuple[int, ...]
    last: int
    ends: frozenset[int] | None = None

    def at(self, name: str) -> Any:
        """Return h of a value: native, 1.0 or 0.0."""
        h = self.values.get(name, 1.0)
        return 0.0 if h is None else h

    def times(self, state: State, layer_id: int, relevance: Tensor) -> Tensor:
        """Multiply the relevance ``(N, *shape)`` of a layer by its h."""
        name = self.network.values[layer_id]
        h = self.at(name)
        if isinstance(h, float):
            return relevance if h == 1.0 else relevance * h
        return relevance * state.samples(name, h)

    def below(self, reader: str, operand: str) -> Any:
        """Return h of an operand as ``reader`` sees it: native, 1.0 or 0.0."""
        position = self.network.position
        if any(position[operand] < b < position[reader] for b in self.barriers):
            return 0.0
        return self.at(operand)

    def absorbs(self, layer_id: int) -> bool:
        """Whether a walk that ends in this layer may be in the event."""
        return self.last < 0 or layer_id <= self.last

    def counts(self, layer_id: int, unit: int) -> bool:
        """Whether a walk that ends in this pseudo-unit of a layer counts."""
        return self.absorbs(layer_id) and (self.ends is None or unit in self.ends)


@exact
def reach(
    state: State,
    clause: Clause,
    until: int | None = None,
    only_last: bool = False,
    *,
    ends: Collection[int] | None = None,
    stop: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Reach:
    """Compute h of every value above the lowest literal.

    Parameters
    ----------
    state : State
        Activations of a batch of N.
    clause : Clause
        The conjunction; a mask may have a batch axis in front, and may be a Tensor of weights.
    until : int, optional
        Layer at which to end; by default the output.
    only_last : bool
        Give h of that layer alone, and of neurons alone that relevance may reach: the way there
        is forgotten, and of many copies of a sample silent neurons are left out.
    ends : collection of int, optional
        Where walks may end for h to count them: pseudo-units, that of inputs that are not watched
        among them.  By default it counts all, and is 1 below the lowest literal.
    stop : callable, optional
        Called with layer id and h ``(N, *shape)``; of the mask that it may give, ``(*shape)``, h
        is 0 for whatever reads the layer: walks from above go no further.
    """
    net = state.network
    layout = net.layout
    until = layout.topology.output.layer_id if until is None else until
    places = {i: net.position[net.values[i]] for i in clause}
    barriers = tuple(sorted(places[i] for i, literal in clause.items() if literal.passes))
    values: dict[str, Any] = {}
    counted = None if ends is None else frozenset(ends)
    reached = Reach(net, values, barriers, lowest_pass(clause), counted)
    if not clause and ends is None:
        return reached
    n = layout.batches[net.values[0]].samples(state.values[net.values[0]]).shape[0]
    first = 0 if ends is not None else min(places.values())
    end = net.position[net.values[until]]
    last_reads = _last_reads(net, first, end) if only_last else {}
    for name, node in net.order[first : end + 1]:
        look()
        layer_id = layout.layer_of.get(name)
        if layer_id is None:  # an input that is none carries no relevance
            value = None if node is None else _selected(state, node, reached, n)
        elif name not in layout.weighings:  # walks end here, above what they must pass or not
            ended = reached.counts(layer_id, UNWATCHED)
            value = torch.ones_like(state.values[name]) if ended else None
        elif ends is None and net.position[name] == first:
            value = torch.ones_like(state.values[name])
        else:
            asked = awake(state.single, name) if only_last and state.single else None
            value = _weighed(state, name, reached, asked)
        literal = clause.get(layer_id) if layer_id is not None else None
        if literal is not None and value is not None:
            samples = layout.batches[name].samples(value)
            value = layout.batches[name].native(only(literal, samples))
        if stop is not None and layer_id is not None and value is not None:
            samples = layout.batches[name].samples(value)
            stopped = stop(layer_id, samples)
            if stopped is not None:
                value = layout.batches[name].native(samples.masked_fill(stopped, 0.0))
        values[name] = value
        for read in last_reads.get(name, ()):
            values.pop(read, None)
    return reached


def _last_reads(net: Network, first: int, end: int) -> dict[str, list[str]]:
    """Values from one place to another that are read for the last time, by their reader."""
    reader: dict[str, str] = {}
    for name, _ in net.order[first : end + 1]:
        reader |= dict.fromkeys(net.reads(name), name)
    last: dict[str, list[str]] = {}
    for read, name in reader.items():
        if net.position[read] >= first:
            last.setdefault(name, []).append(read)
    return last


def _selected(state: State, node: Node, known: Reach, n: int) -> Any:
    """Return h of a selection of what it reads; None if it is 0."""
    name, net = node.name, state.network
    reads = [read for read in node.references() if read not in net.passive]
    if name in net.passive or not any(_some(known.below(name, read)) for read in reads):
        return None

    def operand(read: str) -> Any:
        return _full(state, read, known.below(name, read))

    native = state.values[name]
    shape = () if isinstance(native, list | tuple) else tuple(native.shape)
    return carry(node, operand, state.winners, net.program.weights, shape, n, 0.0)


def _some(h: Tensor | list[Tensor] | float) -> bool:
    """Whether h is not 0 all over."""
    return not isinstance(h, float) or h != 0.0


def _full(state: State, name: str, h: Tensor | list[Tensor] | float) -> Tensor | list[Tensor]:
    """Return h as a tensor.  Constants among the neurons of a value are none: theirs is 0."""
    if not isinstance(h, float):
        return h
    source, constant = state.values[name], state.constant.get(name)
    if isinstance(source, list | tuple):
        marks = constant or [None] * len(source)
        return [_filled(part, h, mark) for part, mark in zip(source, marks, strict=True)]
    return _filled(source, h, constant)


def _filled(like: Tensor, h: float, constant: Tensor | None) -> Tensor:
    full = torch.full_like(like, h)
    return full if constant is None else full.masked_fill(constant != 0, 0.0)


def _weighed(state: State, name: str, known: Reach, asked: Tensor | None) -> Tensor | None:
    """Return h of a layer that weighs its inputs, where it is asked for; None if it is 0."""
    kernel, op = kernel_of(state, name), state.network.layout.weighings[name]
    total: Tensor | None = None
    for share in kernel.shares:
        inner: Tensor | None = None
        for term in share.terms:
            operand = op.operands[term.operand]
            h = known.below(name, operand)
            if not _some(h):
                continue
            if isinstance(h, float) and operand in state.constant:
                h = _full(state, operand, h)
            kind, x = op.maps[term.operand], term.x * h
            if asked is None:
                part = kind.apply(x, term.weight)
            else:
                part = apply(kind, x, term.weight, asked)
            inner = part if inner is None else inner + part
        if inner is not None:
            inner = share.weigh(inner)
            total = inner if total is None else total + inner
    layer_id = state.network.layout.layer_of[name]
    for unit, lost in kernel.absorbed():
        if known.counts(layer_id, unit):
            total = lost if total is None else total + lost
    return None if total is None else total.expand_as(state.values[name])
