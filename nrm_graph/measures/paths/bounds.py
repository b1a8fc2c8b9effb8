"""How much |relevance| may still come: the adjoint of the relevance pass under |q|.

For a neuron n, the sum of |q| ... |q| over all ways down to a lower layer, each weighed by what it
is worth there.  It bounds the relevance of any set of these walks, however their signs cancel
(:mod:`nrm_graph.propagation.adjoint_pass` has the signed sums).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.measures.paths import sliced_convolution
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.network.ir.operations import MAX_POOL, SAME
from nrm_graph.propagation.kernels import kernel_of
from nrm_graph.propagation.relevance_pass import only
from nrm_graph.propagation.routing import carry
from nrm_graph.propagation.state import repeated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.propagation.state import State


@exact
def mass(state: State, clause: Clause, worth: Tensor, lower: int, upper: int) -> Tensor:
    """Sum |q| over the ways from an upper layer to a lower one.

    Parameters
    ----------
    state : State
        Activations of a batch of N.
    clause : Clause
        What walks must satisfy between the two layers; literals elsewhere are passed over.
    worth : Tensor, (N, *shape) of the lower layer
        Not negative: what a way that ends at a neuron counts.
    lower, upper : int
        Layers.

    Returns
    -------
    Tensor, (N, *shape) of the upper layer
        Never less than the sum over single walks of their |q|; more only where a rule has several
        products, or an operation reads a neuron twice, for one step.
    """
    net = state.network
    layout, n = net.layout, worth.shape[0]
    bottom, top = net.values[lower], net.values[upper]
    values: dict[str, Any] = {bottom: layout.batches[bottom].native(worth)}
    within = {i: literal for i, literal in clause.items() if lower < i < upper}
    barriers = [net.position[net.values[i]] for i, literal in within.items() if literal.passes]

    def below(reader: str, operand: str) -> Any:
        """Return what an operand is worth to its reader; None where it is nothing."""
        first, last = net.position[operand], net.position[reader]
        return None if any(first < b < last for b in barriers) else values.get(operand)

    for name, node in net.order[net.position[bottom] + 1 : net.position[top] + 1]:
        reads = {read: below(name, read) for read in net.reads(name)}
        if all(part is None for part in reads.values()):
            continue
        layer_id = layout.layer_of.get(name)
        if layer_id is not None:
            value = _weighed(state, name, reads)
            literal = within.get(layer_id)
            if literal is not None:
                samples = layout.batches[name].samples(value)
                value = layout.batches[name].native(only(literal, samples))
            values[name] = value
            continue
        assert node is not None
        native = state.values[name]
        shape = () if isinstance(native, list | tuple) else tuple(native.shape)

        def operand(read: str, reads: dict[str, Any] = reads) -> Any:
            return _nothing(state.values[read]) if reads[read] is None else reads[read]

        values[name] = carry(node, operand, state.winners, net.program.weights, shape, n, 0.0)
    shape = layout.topology.layers[upper].shape
    if values.get(top) is None:
        return worth.new_zeros(n, *shape)
    return layout.batches[top].samples(values[top]).expand(n, *shape)


def _nothing(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_nothing(part) for part in value]
    return torch.zeros_like(value)


def _weighed(state: State, name: str, reads: Mapping[str, Tensor | None]) -> Tensor:
    """Sum |q| times worth over what a neuron reads."""
    op = state.network.layout.weighings[name]
    total = torch.zeros_like(state.values[name])
    for share in kernel_of(state, name).apart():
        factor = share.factor.abs()
        for term in share.terms:
            worth = reads[op.operands[term.operand]]
            if worth is not None:
                part = op.maps[term.operand].apply(term.x.abs() * worth, term.weight.abs())
                total = total + part * factor
    return total


@exact
def mass_of_channels(
    state: State, clause: Clause, worth: Tensor, channels: range, lower: int, upper: int
) -> Tensor:
    """Sum |q| over the ways from a layer to single channels of a map: ``(N, *shape)``.

    Parameters
    ----------
    state : State
        Activations of one input.
    clause : Clause
        See :func:`mass`.
    worth : Tensor, (C, H, W) of the lower layer
        What a way that ends at a neuron counts.
    channels : range
        Channels of the lower layer, one for every sample of the result.
    lower, upper : int
        Layers.
    """
    net, n = state.network, len(channels)
    number = torch.arange(channels.start, channels.stop, device=worth.device)
    carried = worth[number][:, None]
    way = None if any(lower < i < upper for i in clause) else _way(state, lower, upper)
    if way is None:
        whole = worth.new_zeros(n, *worth.shape)
        whole[torch.arange(n, device=worth.device), number] = carried[:, 0]
        return mass(repeated(state, n), clause, whole, lower, upper)
    for name in way[1:-1]:
        _, node = net.order[net.position[name]]
        if node is not None and node.op in MAX_POOL:
            index = state.winners[name][0, number].flatten(1)
            carried = carried.flatten(2)[:, 0].gather(1, index)
            carried = carried.reshape(n, 1, *state.values[name].shape[2:])
    name = way[-1]
    kind, total = net.layout.weighings[name].maps[0], None
    for share in kernel_of(state, name).apart():
        factor = share.factor.abs()
        for term in share.terms:
            x = term.x[0, number][:, None].abs() * carried
            part = sliced_convolution.apply(kind, x, term.weight.abs(), number)  # type: ignore[arg-type]
            part = part.mul_(factor.flatten(2))
            total = part if total is None else total.add_(part)
    first = net.layout.layer_of[name]
    shape = net.layout.topology.layers[first].shape
    total = worth.new_zeros(n, *shape) if total is None else total.reshape(n, *shape)
    return total if first == upper else mass(repeated(state, n), clause, total, first, upper)


def _way(state: State, lower: int, upper: int) -> list[str] | None:
    """Values that lead from a map to the one convolution that reads it, if channels stay apart."""
    net = state.network
    first, end = net.values[lower], net.values[upper]
    way = [first]
    while way[-1] == first or way[-1] not in net.layout.weighings:
        at = way[-1]
        after = net.order[net.position[at] + 1 : net.position[end] + 1]
        readers = [(name, node) for name, node in after if at in net.reads(name)]
        if len(readers) != 1 or not net.layout.batches[at].plain:
            return None
        ((name, node),) = readers
        if name in net.layout.weighings:
            op = net.layout.weighings[name]
            if len(op.maps) > 1 or not sliced_convolution.sliceable(op.maps[0]):
                return None
        elif node is None or name == end:
            return None
        elif node.op in SAME:
            if state.values[name].shape != state.values[at].shape:
                return None
        elif MAX_POOL.get(node.op) != 2:
            return None
        way.append(name)
    return way
