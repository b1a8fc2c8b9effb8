"""What a network writes out in steps, found again: norms, activations, gates.

Runs on a program whose operations may still be called ``raw.<name>`` (parts of an activation),
and leaves only what has a kind; the rest is refused by :mod:`nrm_graph.tracing`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph import elementwise
from nrm_graph.operations import ROUTE, SAME
from nrm_graph.program import Node, Program, Ref, Weight, passive

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MULTIPLY, _DIVIDE = "nrm.multiply", "raw.div.Tensor"
_SUM = "aten.sum.dim_IntList"
_SPREADS = ("raw.linalg_vector_norm.", "raw.var.", "refused.aten.std.")

_SMALL = 1e-6
"""The largest ``eps`` of ``normalize`` that only keeps zero from being divided."""


def fuse(program: Program) -> Program:
    """Bring norms, activations and gates that are written out into one node each."""
    weights = dict(program.weights)
    nodes = {node.name: node for node in program.nodes}
    for node in program.nodes:
        found = _norm(node, nodes, weights)
        if found is not None:
            nodes[node.name] = found
    _weighted(program, nodes, weights)
    rest = passive(program)
    for node in reversed(program.nodes):
        current = nodes[node.name]
        if current.op in (_MULTIPLY, _DIVIDE) or current.op.startswith("raw."):
            found = _activation(current, nodes, weights, rest)
            if found is not None:
                nodes[node.name] = found
    for node in program.nodes:
        if nodes[node.name].op == _MULTIPLY:
            nodes[node.name] = _gate(nodes[node.name], nodes)
    for name, node in nodes.items():
        if node.op.startswith("raw.") and _excused(node, nodes, weights):
            nodes[name] = replace(node, op=f"behind.{node.op.removeprefix('raw.')}")
    return replace(program, nodes=tuple(nodes.values()), weights=weights)


# --- x / sqrt(mean(x^2) + eps)


def _read(value: Any, nodes: Mapping[str, Node], *ops: str) -> Node | None:
    """Node that makes an argument, if it is one of some operations."""
    node = nodes.get(value.name) if isinstance(value, Ref) else None
    return node if node is not None and node.op in ops else None


def _square_of(value: Any, nodes: Mapping[str, Node]) -> Ref | None:
    node = _read(value, nodes, "raw.pow.Tensor_Scalar", _MULTIPLY)
    if node is None or node.args[1] not in (2, node.args[0]):
        return None
    return node.args[0] if isinstance(node.args[0], Ref) else None


def _norm(node: Node, nodes: Mapping[str, Node], weights: dict[str, torch.Tensor]) -> Node | None:
    """Return the norm that a product or quotient ends, or None."""
    if node.op == _MULTIPLY:
        for x, factor in (node.args, node.args[::-1]):
            inner = _read(factor, nodes, "raw.rsqrt.default", "raw.pow.Tensor_Scalar")
            if inner is not None and inner.args[1:] in ((), (-0.5,)):
                return _root_mean(node, x, inner.args[0], nodes)
    if node.op == _DIVIDE:
        x, divisor = node.args
        inner = _read(divisor, nodes, "raw.sqrt.default", "raw.pow.Tensor_Scalar")
        if inner is not None and inner.args[1:] in ((), (0.5,)):
            return _root_mean(node, x, inner.args[0], nodes)
        return _unit(node, x, divisor, nodes, weights)
    return None


def _trailing(dims: Any, shape: tuple[int, ...], node: Node) -> tuple[int, ...] | None:
    """Sizes of the last axes, if those are meant and none of them is the batch's."""
    native = node.batch.native_shape(shape)
    dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
    found = sorted(d % len(native) for d in dims)
    start = len(native) - len(found)
    if not found or found != list(range(start, len(native))) or node.batch.axis >= start:
        return None
    return native[start:]


def _centered(value: Any, nodes: Mapping[str, Node]) -> tuple[Any, Any] | None:
    """Return x and the axes, if a value is x without its mean over them."""
    node = _read(value, nodes, "aten.sub.Tensor")
    mean = _read(node.args[1], nodes, "aten.mean.dim") if node and not node.kwargs else None
    if node is None or mean is None or mean.args[0] != node.args[0] or mean.args[2:] != (True,):
        return None
    return mean.args[0], mean.args[1]


def _variance(value: Any, nodes: Mapping[str, Node]) -> tuple[Any, Any] | None:
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


def _deviation(node: Node, x: Any, total: Node, nodes: Mapping[str, Node]) -> Node | None:
    """``(x - mean) / sqrt(variance + eps)``."""
    inner, spread = _centered(x, nodes), _variance(total.args[0], nodes)
    if inner is None or inner != spread:
        return None
    shape = _trailing(inner[1], node.shape, node)
    if shape is None:
        return None
    args = (inner[0], shape, None, None, float(total.args[1]))
    return replace(node, op="aten.layer_norm.default", args=args, kwargs=())


def _root_mean(node: Node, x: Any, inside: Any, nodes: Mapping[str, Node]) -> Node | None:
    total = _read(inside, nodes, "aten.add.Tensor")
    if total is None or total.kwargs or not isinstance(total.args[1], float | int):
        return None
    found = _deviation(node, x, total, nodes)
    if found is not None:
        return found
    mean = _read(total.args[0], nodes, "aten.mean.dim")
    if mean is None or mean.args[2:] != (True,) or _square_of(mean.args[0], nodes) != x:
        return None
    shape = _trailing(mean.args[1], node.shape, node)
    if shape is None:
        return None
    args = (x, shape, None, float(total.args[1]))
    return replace(node, op="aten.rms_norm.default", args=args, kwargs=())


def _unit(
    node: Node, x: Any, divisor: Any, nodes: Mapping[str, Node], weights: dict[str, torch.Tensor]
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
    weights[name] = torch.full((size,), size**-0.5, dtype=dtype)
    eps = float(least.args[1]) ** 2 / size
    return replace(node, op="aten.rms_norm.default", args=(x, shape, Weight(name), eps), kwargs=())


_NORMS = {"aten.rms_norm.default": 1, "aten.layer_norm.default": 2}
"""Norms and the number of their parameters."""


def _weighted(
    program: Program, nodes: dict[str, Node], weights: Mapping[str, torch.Tensor]
) -> None:
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


# --- one function of every neuron by itself


_ARITHMETIC = {
    "aten.add.Tensor": "add",
    "aten.sub.Tensor": "sub",
    "aten.mul.Tensor": "mul",
    "aten.div.Tensor": "div",
    _MULTIPLY: "mul",
    _DIVIDE: "div",
    "raw.pow.Tensor_Scalar": "pow",
}

_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "aten.clamp.default": (None, None),
    "aten.hardtanh.default": (-1.0, 1.0),
    "aten.softplus.default": (1.0, 20.0),
    "aten.elu.default": (1.0,),
    "aten.leaky_relu.default": (0.01,),
}
"""Numbers beside the neuron, where they are not given."""

_MOST = 200


def _activation(
    root: Node,
    nodes: Mapping[str, Node],
    weights: Mapping[str, torch.Tensor],
    rest: Iterable[str],
) -> Node | None:
    """Return a node's value as an expression of the nearest single value, if there is one."""
    place = {name: i for i, name in enumerate(nodes)}
    terms: dict[str, Any] = {}  # value -> its term, in terms of values

    def expand(name: str) -> list[str] | None:
        node = nodes.get(name)
        if node is None or (node.shape, node.batch) != (root.shape, root.batch):
            return None
        term = _term(node, weights)
        read = list(node.references())
        if term is None or not read or any(name in rest for name in read):
            return None
        terms[name] = term
        return read

    frontier = set(expand(root.name) or ())
    while len(frontier) > 1 and len(terms) < _MOST:
        latest = max(frontier, key=lambda name: place.get(name, -1))
        read = expand(latest)
        if read is None:
            return None
        frontier = (frontier - {latest}) | set(read)
    if len(frontier) != 1:
        return None
    (source,) = frontier
    before = nodes.get(source)
    if before is not None and (before.shape, before.batch) != (root.shape, root.batch):
        return None
    if source in rest:
        return None

    lengths = {source: 1}
    for name in reversed(terms):  # what a term reads was expanded after it
        lengths[name] = _length(terms[name], lengths)
    if lengths[root.name] > elementwise.MAX_TERMS:  # shared steps are written out at every use
        return None

    def written(value: Any) -> Any:
        if isinstance(value, Ref):
            return elementwise.X if value.name == source else written(terms[value.name])
        return tuple(written(v) for v in value) if isinstance(value, tuple) else value

    expression = written(terms[root.name])
    try:
        elementwise.check(expression)
    except ValueError:
        return None
    return replace(root, op="nrm.elementwise", args=(Ref(source), expression), kwargs=())


def _length(term: Any, lengths: Mapping[str, int]) -> int:
    """Count the terms of an expression, written out."""
    if isinstance(term, Ref):
        return lengths[term.name]
    return 1 + sum(_length(t, lengths) for t in term) if isinstance(term, tuple) else 1


def _term(node: Node, weights: Mapping[str, torch.Tensor]) -> Any:
    """Write a node as a function of values and numbers, or return None."""
    args: list[Any] = []
    for value in node.args:
        if isinstance(value, Weight):
            found = weights[value.name]
            if found.numel() != 1:
                return None
            args.append(float(found))
        elif value is None or isinstance(value, Ref | int | float | str):
            args.append(value)
        else:
            return None
    options = dict(node.kwargs)
    if node.op in _ARITHMETIC:
        alpha = options.pop("alpha", 1)
        b = args[1] if alpha == 1 else ("mul", alpha, args[1])
        return None if options else (_ARITHMETIC[node.op], args[0], b)
    if options:
        return None
    if node.op == "aten.clamp_min.default":
        return "clamp", args[0], args[1], None
    if node.op == "aten.clamp_max.default":
        return "clamp", args[0], None, args[1]
    name = {"hardtanh": "clamp"}.get(node.op.split(".")[1], node.op.split(".")[1])
    if node.op in _DEFAULTS:
        given = args[1:]
        numbers = (*given, *_DEFAULTS[node.op][len(given) :])
        return (name, args[0], *numbers) if len(numbers) == len(_DEFAULTS[node.op]) else None
    if node.op == "nrm.elementwise" or (node.op not in SAME and not node.op.startswith("raw.")):
        return None  # what is written already is a value of its own
    return (name, args[0]) if len(args) == 1 and name in elementwise.NAMES else None


# --- which of two values opens for the other


_OPENING = {
    "aten.sigmoid.default",
    "aten.hardsigmoid.default",
    "aten.softmax.int",
}

_BENDING = {
    f"aten.{name}.default"
    for name in (
        "tanh",
        "hardtanh",
        "silu",
        "gelu",
        "relu",
        "relu6",
        "elu",
        "celu",
        "selu",
        "mish",
        "hardswish",
        "leaky_relu",
        "softplus",
        "log_sigmoid",
        "clamp",
        "clamp_min",
        "clamp_max",
    )
} | {"nrm.elementwise"}


def _gate(node: Node, nodes: Mapping[str, Node]) -> Node:
    """``nrm.gate(signal, gate)`` of a product whose factors come through different activations."""
    a, b = node.args
    if any(_normalises(value, nodes) for value in (a, b)):
        # Half of the relevance to 1 / std would be no rule that anybody knows.
        return replace(
            node,
            op="refused.a normalisation other than x rsqrt(mean(x^2) + eps) over the last axes",
        )
    left, right = _opens(a, nodes), _opens(b, nodes)
    if left == right:
        return node
    return replace(node, op="nrm.gate", args=(a, b) if right > left else (b, a))


def _normalises(value: Ref, nodes: Mapping[str, Node]) -> bool:
    """Whether a value is one over the root of an average or sum."""
    current, inverse = nodes.get(value.name), False
    while current is not None and (
        current.op in ROUTE
        or current.op in SAME
        or (current.op == "aten.add.Tensor" and len(list(current.references())) == 1)
    ):
        if current.op == "nrm.elementwise":
            inverse = inverse or bool({"rsqrt", "reciprocal"} & set(_names(current.args[1])))
        current = nodes.get(next(current.references(), ""))
    return inverse and current is not None and current.op in ("aten.mean.dim", _SUM)


def _names(expression: Any) -> list[str]:
    """Names in a nested expression."""
    if isinstance(expression, tuple):
        return [name for part in expression for name in _names(part)]
    return [expression] if isinstance(expression, str) else []


def _opens(value: Ref, nodes: Mapping[str, Node]) -> int:
    """Return 2 for what comes through a sigmoid, 1 through another activation, else 0."""
    best, current = 0, nodes.get(value.name)
    while current is not None:
        if current.op in _OPENING:
            return 2
        if current.op in _BENDING:
            best = 1
        elif current.op not in ROUTE and current.op not in SAME:
            break
        current = nodes.get(next(current.references(), ""))
    return best


# --- what would be one of these, were it not for what it reads


def _excused(node: Node, nodes: Mapping[str, Node], weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a step has no rule only because what it reads has none."""
    return _of_spread(node, nodes) or _of_refused(node, nodes, weights)


def _of_spread(node: Node, nodes: Mapping[str, Node]) -> bool:
    """Whether a quotient's divisor is a length or a variance that has no rule."""
    divisor = node.args[1] if node.op == _DIVIDE else None
    current = nodes.get(divisor.name) if isinstance(divisor, Ref) else None
    while current is not None and (
        current.op in SAME or current.op in ROUTE or current.op == "aten.add.Tensor"
    ):
        current = nodes.get(next(current.references(), ""))
    return current is not None and current.op.startswith(_SPREADS)


def _of_refused(node: Node, nodes: Mapping[str, Node], weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether it would be part of an activation, if what is refused worked neuron by neuron."""
    place = {name: i for i, name in enumerate(nodes)}
    frontier, refused = set(node.references()), False
    while len(frontier) > 1 or (frontier and not refused):
        current = nodes.get(max(frontier, key=lambda name: place.get(name, -1)))
        if current is None or (current.shape, current.batch) != (node.shape, node.batch):
            return False
        known = current.op == "nrm.elementwise" or _term(current, weights) is not None
        unknown = current.op.startswith(("refused.", "behind."))
        refused = refused or unknown
        if not known and not unknown:
            return False
        frontier = (frontier - {current.name}) | set(current.references())
    return True
