"""Neurons of layers that depend on no input, where a composite leaves constants out.

A class token plus its position is one, and so is whatever a norm or a dense layer makes of it
alone: read as neurons they would hold relevance that no walk could bring to an input.  What
happens to contribute nothing at one input (a rectified 0) is no constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nrm_graph.network.maps.linear import Moving

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.ir.program import Node
    from nrm_graph.propagation.state import State

NAME = "constant"


def mark(node: Node, state: State) -> None:
    """Mark in ``state.constant`` the neurons of a layer that read constants alone."""
    net = state.network
    op = net.layout.weighings.get(node.name)
    if op is None:
        return
    routed = any(operand in state.constant for operand in op.operands)
    if not routed and (op.moving or node.name in net.connected):  # all of it depends on an input
        return
    depends: Tensor | None = None
    z = state.values[node.name]
    with torch.no_grad():
        for kind, operand, weight in zip(op.maps, op.operands, op.weights, strict=True):
            reads = torch.ones_like(state.values[operand])
            marked = state.constant.get(operand)
            if marked is not None:
                reads = reads * (marked == 0)
            if op.kind == "rms_norm":  # of which every neuron reads the whole set
                axes = tuple(range(-len(node.args[1]), 0))
                reads = reads.amax(axes, keepdim=True).expand(reads.shape)
            if isinstance(weight, Moving):
                links = torch.ones_like(weight.at(state.values, z))
            elif weight is None:
                links = z.new_ones(())
            else:  # without a weight there is no connection
                links = (weight != 0).to(z.device, z.dtype)
            part = kind.apply(reads, links)
            depends = part if depends is None else depends + part
    assert depends is not None
    alone = depends.expand_as(z) == 0
    if not bool(alone.any()):
        if not routed:
            net.connected.add(node.name)
        return
    if NAME not in state.constants:
        state.constants.append(NAME)
    state.constant[node.name] = alone.to(torch.int16) * (state.constants.index(NAME) + 1)
