"""Layers that hold another layer's neurons, one to one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nrm_graph.network.ir.operations import SAME
from nrm_graph.network.ir.program import passive
from nrm_graph.network.layer_names import IN_PLACE

if TYPE_CHECKING:
    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.layout import Layout

_IN_ORDER = (
    SAME
    | IN_PLACE
    | {
        "aten.squeeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.unsqueeze.default",
    }
)
"""Operations with one operand that keep the order of neurons, if they keep their number."""


def copies(program: Program, layout: Layout) -> dict[int, int]:
    """Layers whose every neuron copies one neuron of one other layer.

    Returns
    -------
    dict of int to int
        Id of each such layer, and of the layer that it copies whole: neuron n, counted in the
        order of the flattened shape, copies neuron n.

    Notes
    -----
    Such is an ``output`` layer that views another layer in another shape; its relevance is that
    of the other layer under every composite.  One that selects a part (the last token), joins
    layers or orders neurons anew is none.  An average over one neuron is none either, nor a sum
    with a constant: their rules give shares to stabilizers and biases.
    """
    nodes = {node.name: node for node in program.nodes}
    shapes, batches, rest = program.shapes(), program.batches(), passive(program)
    whole = {}
    for value, op in layout.weighings.items():
        if op.kind != "output":
            continue
        below = op.operands[0]
        while below not in layout.layer_of and nodes[below].op in _IN_ORDER:
            read = set(nodes[below].references()) - rest
            steps = {below, *read}
            sizes = {math.prod(shapes[name]) for name in steps}
            if len(read) != 1 or len(sizes) > 1 or not all(_rows(batches[name]) for name in steps):
                break
            (below,) = read
        if below in layout.layer_of:
            whole[layout.layer_of[value]] = layout.layer_of[below]
    return whole


def _rows(batch: BatchAxis) -> bool:
    """Whether the samples of a value follow one another, so that a reshape leaves each alone."""
    return batch.axis == 0 and batch.outer == 1
