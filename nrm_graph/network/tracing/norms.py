"""Norms that a network writes out in steps: ``x / sqrt(mean(x^2) + eps)`` and its relatives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.held_weights import HALF
from nrm_graph.network.ir.program import Node, Program, Ref, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MULTIPLY, DIVIDE = "nrm.multiply", "raw.div.Tensor"

_SMALL = 1e-6
"""The largest ``eps`` of ``normalize`` that only keeps zero from being divided."""


def _read(value: object, nodes: Mapping[str, Node], *ops: str) -> Node | None:
    """Node that makes an argument, if it is one of some operations."""
    node = nodes.get(value.name) if isinstance(value, Ref) else None
    return node if node is not None and node.op in ops else None


def _square_of(value: object, nodes: Mapping[str, Node]) -> Ref | None:
    node = _read(value, nodes, "raw.pow.Tensor_Scalar", MULTIPLY)
    if node is None or node.args[1] not in (2, node.args[0]):
        return None
    return node.args[0] if isinstance(node.args[0], Ref) else None


def norm(node: Node, nodes: Mapping[str, Node], weights: dict[str, torch.Tensor]) -> Node | None:
    """Return the norm that a product or quotient ends, or None."""
    if node.op == MULTIPLY:
        for x, factor in (node.args, node.args[::-1]):
            inner = _read(factor, nodes, "raw.rsqrt.default", "raw.pow.Tensor_Scalar")
            if inner is not None and inner.args[1:] in ((), (-0.5,)):
                return _root_mean(node, x, inner.args[0], nodes)
    if node.op == DIVIDE:
        x, divisor = node.args
        inner = _read(divisor, nodes, "raw.sqrt.default", "raw.pow.Tensor_Scalar")
        if inner is not None and inner.args[1:] in ((), (0.5,)):
            return _root_mean(node, x, inner.args[0], nodes)
        return _unit(node, x, divisor, nodes, weights)
    return None


def _trailing(
    dims: int | Sequence[int] | None, shape: tuple[int, ...], node: Node
) -> tuple[int, ...] | None:
    """Sizes of the last axes, if those are meant and none of them is the batch's."""
    native = node.batch.native_shape(shape)
    dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
    axes = sorted(d % len(native) for d in dims)
    start = len(native) - len(axes)
    if not axes or axes != list(range(start, len(native))) or node.batch.axis >= start:
        return None
    return native[start:]


def _centered(value: object, nodes: Mapping[str, Node]) -> tuple[Any, Any] | None:
    """Return x and the axes, if a value is x without its mean over them."""
    node = _read(value, nodes, "aten.sub.Tensor")
    mean = _read(node.args[1], nodes, "aten.mean.dim") if node and not node.kwargs else None
    if node is None or mean is None or mean.args[0] != node.args[0] or mean.args[2:] != (True,):
        return None
    return mean.args[0], mean.args[1]


def _variance(value: object, nodes: Mapping[str, Node]) -> tuple[Any, Any] | None:
    """Return x and the axes, if a value is the variance of x over them."""
    mean = _read(value, nodes, "aten.mean.dim")
    if mean is not None and mean.args[2:] == (True,):
        inner = _centered(_square_of(mean.args[0], nodes), nodes)
        return inner if inner is not None and inner[1] == mean.args[1] else None
    node = _read(value, nodes, "raw.var.dim", "raw.var.correction")
    if node is None:
        return None
    options = dict(zip(("unbiased", "keepdim"), node.args[2:], strict=False)) | dict(node.kwargs)
    biased = options.get("unbiased", options.get("correction", 1)) in (False, 0)
    return (node.args[0], node.args[1]) if biased and options.get("keepdim") else None


def _deviation(node: Node, x: object, total: Node, nodes: Mapping[str, Node]) -> Node | None:
    """``(x - mean) / sqrt(variance + eps)``."""
    inner = _centered(x, nodes)
    if inner is None or inner != _variance(total.args[0], nodes):
        return None
    shape = _trailing(inner[1], node.shape, node)
    if shape is None:
        return None
    args = (inner[0], shape, None, None, float(total.args[1]))
    return replace(node, op="aten.layer_norm.default", args=args, kwargs=())


def _root_mean(node: Node, x: object, inside: object, nodes: Mapping[str, Node]) -> Node | None:
    """``x / sqrt(mean(x^2) + eps)``, or with x and the mean of squares centered."""
    total = _read(inside, nodes, "aten.add.Tensor")
    if total is None or total.kwargs or not isinstance(total.args[1], float | int):
        return None
    layer_norm = _deviation(node, x, total, nodes)
    if layer_norm is not None:
        return layer_norm
    mean = _read(total.args[0], nodes, "aten.mean.dim")
    if mean is None or mean.args[2:] != (True,) or _square_of(mean.args[0], nodes) != x:
        return None
    shape = _trailing(mean.args[1], node.shape, node)
    if shape is None:
        return None
    args = (x, shape, None, float(total.args[1]))
    return replace(node, op="aten.rms_norm.default", args=args, kwargs=())


def _unit(
    node: Node,
    x: object,
    divisor: object,
    nodes: Mapping[str, Node],
    weights: dict[str, torch.Tensor],
) -> Node | None:
    """``normalize``: division by the length is the norm above with a constant factor."""
    spread = _read(divisor, nodes, "aten.expand.default")
    least = _read(spread.args[0] if spread else divisor, nodes, "aten.clamp_min.default")
    length = _read(least.args[0], nodes, "raw.linalg_vector_norm.default") if least else None
    if least is None or length is None or length.args[0] != x:
        return None
    order, dims, keep = (*length.args[1:], 2, None, False)[:3]
    shape = _trailing(dims, node.shape, node)
    if order != 2 or not keep or shape is None or len(shape) != 1:
        return None
    if not isinstance(least.args[1], float | int) or not 0 <= least.args[1] <= _SMALL:
        return None  # a length below it is common: no norm whose eps is for zero alone
    size = shape[0]
    name = f"constant.{node.module or node.name}.length"
    floats = (w.dtype for w in weights.values() if w.is_floating_point())
    dtype = next(floats, torch.get_default_dtype())
    dtype = torch.float32 if dtype in HALF else dtype
    weights[name] = torch.full((size,), size**-0.5, dtype=dtype)
    eps = float(least.args[1]) ** 2 / size
    return replace(node, op="aten.rms_norm.default", args=(x, shape, Weight(name), eps), kwargs=())


_NORMS = {"aten.rms_norm.default": 1, "aten.layer_norm.default": 2}
"""Norms and the number of their parameters."""


def weighted(program: Program, nodes: dict[str, Node], weights: Mapping[str, torch.Tensor]) -> None:
    """Put constant factors and terms after a norm that nothing else reads into the norm."""
    readers = Counter(name for node in nodes.values() for name in node.references())
    for node in program.nodes:
        if node.kwargs or node.op not in ("aten.mul.Tensor", "aten.add.Tensor"):
            continue
        value, weight = node.args
        before = _read(value, nodes, *_NORMS)
        if before is None or not isinstance(weight, Weight) or readers[before.name] != 1:
            continue
        at = 2 if node.op == "aten.mul.Tensor" else 3
        count = _NORMS[before.op]
        if at >= 2 + count or any(p is not None for p in before.args[at : 2 + count]):
            continue
        shape = tuple(before.args[1])
        if tuple(weights[weight.name].shape) == shape and program.output != before.name:
            args = (*before.args[:at], weight, *before.args[at + 1 :])
            nodes[node.name] = replace(node, op=before.op, args=args, kwargs=())
