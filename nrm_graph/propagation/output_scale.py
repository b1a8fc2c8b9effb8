"""What the layer of a target adds up: how large a logit could be, did nothing cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nrm_graph.network.ir.held_weights import HALF
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.propagation.kernels import bounded, resolved
from nrm_graph.propagation.relevance_pass import relevance_pass
from nrm_graph.propagation.tensor_sums import by_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from nrm_graph.propagation.state import State


@exact
def added_up(state: State, weights: Tensor) -> Tensor:
    """Sum of |contributions| to a target, ``(N,)``: of inputs times weights, and of biases.

    They are those of the network, not of a rule.  Where several outputs are weighed, those of each
    count by its |weight|: what cancels between outputs is counted too.  What only selects adds up
    nothing, and the layer that it selects from is looked at; a function behind that layer (a
    sigmoid) changes the scale, which is the target's.

    Parameters
    ----------
    state : State
        Activations of a batch of N.
    weights : Tensor, (N, outputs)
        Weights of the outputs.
    """
    n = weights.shape[0]
    weights = weights.to(state.output)
    size, net = weights.new_zeros(n), weights.new_zeros(n)

    def weigh(name: str, chosen: Tensor) -> Iterator[tuple[str, Tensor]]:
        nonlocal size, net
        op = state.network.layout.weighings[name]
        if op.kind == "output":
            yield op.operands[0], chosen
            return
        op, value = resolved(state, name, as_held=True), state.values[name]
        terms = list(zip(op.maps, op.operands, op.tensors, strict=True))
        parts = torch.zeros_like(value)
        held = state.network.layout.weighings[name].weights
        for (kind, operand, weight), own in zip(terms, held, strict=True):
            # Of one in half precision this may be a copy already, and a second one be large.
            copied = isinstance(own, torch.Tensor) and own.dtype in HALF and weight is not own
            parts = parts + kind.apply(
                bounded(state, operand).abs(), weight.abs_() if copied else weight.abs()
            )
        if op.shift is not None:
            parts = parts + op.shift.abs()
        if op.kind == "softmax":  # which is not the sum of what it reads
            value = sum(kind.apply(bounded(state, x), weight) for kind, x, weight in terms)
        size = size + by_sample(state.samples(name, chosen.abs() * parts))
        net = net + by_sample(state.samples(name, chosen * value))

    relevance_pass(state, weights, weigh=weigh)
    scale = ((weights * state.output).sum(1) / net).abs()
    return torch.where(scale.isfinite() & (scale > 0), size * scale, size)
