"""How much |relevance| may still come: the adjoint of the relevance pass under |q|.

For a neuron n, the sum of |q| ... |q| over all ways down to a lower layer, each weighed by what it
is worth there.  It bounds the relevance of any set of these walks, however their signs cancel
(:mod:`nrm_graph.reach` has the signed sums).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.propagate import mask_of
from nrm_graph.routing import carry
from nrm_graph.states import flow

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.clauses import Clause
    from nrm_graph.states import State


@torch.no_grad()
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
        if all(value is None for value in reads.values()):
            continue
        layer_id = layout.layer_of.get(name)
        if layer_id is not None:
            found = _weighed(state, name, reads)
            literal = within.get(layer_id)
            if literal is not None:
                own = layout.batches[name].samples(found)
                mask = mask_of(literal, own)
                found = layout.batches[name].native(own * (mask if literal.passes else ~mask))
            values[name] = found
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


def _weighed(state: State, name: str, reads: dict[str, Any]) -> Tensor:
    """Sum |q| times worth over what a neuron reads."""
    op = state.network.layout.weighings[name]
    total = torch.zeros_like(state.values[name])
    for share in flow(state, name).shares:
        for term in share.terms:
            worth = reads[op.operands[term.operand]]
            if worth is not None:
                part = op.maps[term.operand].apply(term.x.abs() * worth, term.weight.abs())
                total = total + part * share.factor.abs()
    return total
