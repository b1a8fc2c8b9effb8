"""Selections: operations that only move neurons about (max-pools, views, slices, joins).

They carry no units.  Relevance goes *down* through them, from what they give to what they
read (:func:`send`); what is known of each neuron goes *up* through them, to wherever the
neuron is read (:func:`carry`).  The two are each other's transpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.interpreter import resolve
from nrm_graph.network.ir.operations import MAX_POOL, SAME, function
from nrm_graph.network.ir.program import Batch, Ref, Weight
from nrm_graph.propagation.tensor_sums import accumulate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from nrm_graph.network.ir.program import Node

MASKED = "aten.masked_fill.Scalar"

SAME_ORDER = {
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.clone.default",
    "aten.alias.default",
    "aten.contiguous.default",
}


def send(
    node: Node,
    relevance: Any,
    values: Mapping[str, Any],
    winners: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    pending: dict[str, Any],
    n: int,
) -> None:
    """Add the relevance of a selection's output to that of what it reads, in ``pending``.

    Parameters
    ----------
    node : Node
        The selection.
    relevance : Tensor, or list of them for the parts of a split
        Native, for a batch of n.
    values, winners : mapping
        Of the state, see :class:`nrm_graph.propagation.state.State`.
    weights : mapping
        Of the program.
    """
    references = list(dict.fromkeys(node.references()))
    if node.op in SAME or node.op == MASKED:
        references = references[:1]  # a passive factor or mask carries no relevance
    if not references:  # a constant: counted as bias of the layer that read it
        return
    source = values[references[0]]
    if node.op == "aten.getitem":
        parts = pending.setdefault(references[0], [None] * len(source))
        index = node.args[1]
        parts[index] = relevance if parts[index] is None else parts[index] + relevance
        return
    if node.op in SAME:
        shares: tuple[Tensor, ...] = (relevance.sum_to_size(source.shape),)
    elif node.op in SAME_ORDER:
        shares = (relevance.reshape(source.shape),)
    elif node.op in MAX_POOL:
        spatial = MAX_POOL[node.op]
        # Accumulated: overlapping windows may share a winner.
        flat = torch.zeros_like(source).flatten(-spatial)
        flat = flat.scatter_add(
            -1, winners[node.name].flatten(-spatial), relevance.flatten(-spatial)
        )
        shares = (flat.reshape(source.shape),)
    else:
        shares = _transpose(node, relevance, values, weights, references, n)
    for name, share in zip(references, shares, strict=True):
        accumulate(pending, name, share)


def _transpose(
    node: Node,
    relevance: Tensor | Sequence[Tensor | None],
    values: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    references: list[str],
    n: int,
) -> tuple[Tensor, ...]:
    """Transpose of a selection: the gradient of a linear map, for any value of its operand."""
    with torch.enable_grad():
        leaves = {r: values[r].detach().requires_grad_(True) for r in references}
        stand_in = {**values, **leaves}
        args = resolve(node.args, stand_in, weights, n)
        kwargs = {key: resolve(value, stand_in, weights, n) for key, value in node.kwargs}
        result = function(node.op)(*args, **kwargs)
        parts = [result] if isinstance(result, torch.Tensor) else result
        relevances = [relevance] if isinstance(relevance, torch.Tensor) else relevance
        pairs = [(o, r) for o, r in zip(parts, relevances, strict=True) if r is not None]
        outputs, given = [o for o, _ in pairs], [r for _, r in pairs]
        return torch.autograd.grad(
            outputs,
            list(leaves.values()),
            given,
            create_graph=any(r.requires_grad for r in given),
        )


def carry(
    node: Node,
    operand: Callable[[str], Any],
    winners: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    shape: tuple[int, ...],
    n: int,
    fill: float,
) -> Any:
    """Give each element of a selection what its neuron has; constants have ``fill``.

    Parameters
    ----------
    node : Node
        The selection.
    operand : callable
        What each element of a value read has: a native tensor, or a list of them.
    winners, weights : mapping
        Of the state and the program.
    shape : tuple of int
        Native shape of the selection's value.
    n : int
        Size of the batch.
    fill : float
        For parameters joined in, padding and masked entries.

    Returns
    -------
    Tensor, or list of Tensor for a split
        Native.
    """
    references = list(node.references())
    first = operand(references[0])
    if node.op in SAME:
        return first.expand(shape)
    if node.op in MAX_POOL:
        spatial = MAX_POOL[node.op]
        index = winners[node.name].flatten(-spatial)
        return first.flatten(-spatial).gather(-1, index).reshape(shape)
    if node.op == MASKED:
        if isinstance(node.args[1], Ref):
            return first.expand(shape)  # attention scores alone are masked so: no relevance there
        return first.masked_fill(weights[node.args[1].name], fill)
    if pads_constant(node):
        return torch.nn.functional.pad(first, list(node.args[1]), value=fill)

    def argument(value: object) -> Any:
        if isinstance(value, Ref):
            return operand(value.name)
        if isinstance(value, Weight):
            weight = weights[value.name]
            if not weight.is_floating_point():  # where to select, not what
                return weight
            return torch.full_like(weight, fill, dtype=first.dtype)
        if isinstance(value, Batch):
            return value.scale * n + value.offset
        if isinstance(value, tuple):
            return [argument(v) for v in value]
        return value

    return function(node.op)(
        *[argument(a) for a in node.args], **{k: argument(v) for k, v in node.kwargs}
    )


def pads_constant(node: Node) -> bool:
    """Whether an operation pads with a constant, rather than with copies of neurons."""
    if node.op == "aten.pad.default":
        return len(node.args) < 3 or node.args[2] in ("constant", None)
    return node.op == "aten.constant_pad_nd.default"
