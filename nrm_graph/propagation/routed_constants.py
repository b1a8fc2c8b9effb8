"""Where routed-in constants (padding, class tokens) end up, and what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.operations import function
from nrm_graph.network.ir.program import Batch, Ref, Weight
from nrm_graph.propagation.routing import carry, pads_constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nrm_graph.network.ir.program import Node
    from nrm_graph.propagation.state import State

PADDING, MASKED, MADE = "padding", "masked", "constant"
_JOINS = ("aten.cat.default", "aten.stack.default")


def track(node: Node, state: State, n: int) -> None:
    """Mark where a value that is no layer is a constant; almost no network has any.

    ``state.constant`` holds 0 for neurons and k for the k-th of ``state.constants``.
    """
    net = state.network
    if node.name in net.layout.layer_of or node.name in net.passive:
        return
    marks, value = state.constant, state.values[node.name]
    references = list(node.references())
    if not references:  # made from parameters alone, with a batch axis
        code = _code(state, _made_from(node))
        marks[node.name] = torch.full_like(value, code, dtype=torch.int16)
        return
    joins = node.op in _JOINS and any(isinstance(a, Weight) for a in node.args[0])
    masks = node.op == "aten.masked_fill.Scalar" and isinstance(node.args[1], Weight)
    fills = PADDING if pads_constant(node) else MASKED if masks else None
    if not (fills or joins or any(r in marks for r in references)):
        return

    def operand(name: str) -> Any:
        marked, source = marks.get(name), state.values[name]
        if isinstance(source, list | tuple):  # parts of a split
            codes = [None] * len(source) if marked is None else marked
            return [_floats(part, mark) for part, mark in zip(source, codes, strict=True)]
        return _floats(source, marked)

    if joins:
        routed = _joined(node, state, operand, n)
    else:
        weights = state.network.program.weights
        shape = () if isinstance(value, list | tuple) else tuple(value.shape)
        fill = float(_code(state, fills)) if fills else 0.0
        routed = carry(node, operand, state.winners, weights, shape, n, fill)
    parts = isinstance(routed, list | tuple)
    marks[node.name] = [p.to(torch.int16) for p in routed] if parts else routed.to(torch.int16)


def _floats(value: Tensor, mark: Tensor | None) -> Tensor:
    """Codes as floats, which every selection can move."""
    if mark is None:
        return torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    return mark.to(torch.float32)


def _joined(node: Node, state: State, operand: Callable[[str], Any], n: int) -> Any:
    """Codes of a concatenation, where each parameter has its own."""
    weights = state.network.program.weights

    def argument(value: object) -> Any:
        if isinstance(value, Ref):
            return operand(value.name)
        if isinstance(value, Weight):
            like = weights[value.name]
            return torch.full_like(like, _code(state, plain(value.name)), dtype=torch.float32)
        if isinstance(value, Batch):
            return value.scale * n + value.offset
        return [argument(v) for v in value] if isinstance(value, tuple) else value

    kwargs = {key: argument(value) for key, value in node.kwargs}
    return function(node.op)(*[argument(a) for a in node.args], **kwargs)


def _code(state: State, name: str) -> int:
    if name not in state.constants:
        state.constants.append(name)
    return state.constants.index(name) + 1


def _made_from(node: Node) -> str:
    """Name of the parameter that a value without references is made from."""

    def names(value: object) -> list[str]:
        if isinstance(value, Weight):
            return [value.name]
        return [n for v in value for n in names(v)] if isinstance(value, tuple) else []

    parameters = names((node.args, tuple(v for _, v in node.kwargs)))
    return plain(parameters[0]) if parameters else node.module or MADE


def plain(name: str) -> str:
    """Name of a tensor of the program as people know it.

    >>> plain("constant.encoder.pos_embedding"), plain("0.weight.bias@conv2d"), plain("0.bias")
    ('encoder.pos_embedding', '0.bias', '0.bias')
    """
    name = name.removeprefix("constant.")
    stem, at, _ = name.partition("@")
    if at and stem.endswith(".weight.bias"):  # a batch-norm folded into the layer
        stem = stem.removesuffix(".weight.bias") + ".bias"
    return stem or name
