"""What a network writes out in steps, found again: norms, activations, gates.

Runs on a program whose operations may still be called ``raw.<name>`` (parts of an activation),
and leaves only what has a kind; the rest is refused by :mod:`nrm_graph.network.tracing.trace`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nrm_graph.network.ir import elementwise
from nrm_graph.network.ir.held_weights import held
from nrm_graph.network.ir.operations import ROUTE, SAME
from nrm_graph.network.ir.program import Node, Program, Ref, Weight, flattened, passive
from nrm_graph.network.tracing.norms import DIVIDE, MULTIPLY, norm, weighted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

_SUM = "aten.sum.dim_IntList"
_WITHOUT = ("refused.", "behind.")
_SPREADS = ("raw.linalg_vector_norm.", "raw.var.", "refused.aten.std.")


def fuse(program: Program) -> Program:
    """Bring norms, activations and gates that are written out into one node each."""
    weights = held(program.weights)
    nodes = {node.name: node for node in program.nodes}
    for node in program.nodes:
        nodes[node.name] = norm(node, nodes, weights) or node
    weighted(program, nodes, weights)
    rest = passive(program)
    for node in reversed(program.nodes):
        current = nodes[node.name]
        if current.op in (MULTIPLY, DIVIDE) or current.op.startswith("raw."):
            nodes[node.name] = _activation(current, nodes, weights, rest) or current
    for node in program.nodes:
        if nodes[node.name].op == MULTIPLY:
            nodes[node.name] = _gate(nodes[node.name], nodes)
    for name, node in nodes.items():
        if node.op.startswith("raw.") and _excused(node, nodes, weights):
            nodes[name] = replace(node, op=f"behind.{node.op.removeprefix('raw.')}")
    if not any(node.op.startswith(("raw.", "refused.")) for node in nodes.values()):
        for name, node in nodes.items():  # what it stood behind is read no more
            nodes[name] = replace(node, op=node.op.replace("behind.", "refused."))
    return replace(program, nodes=tuple(nodes.values()), weights=weights)


# --- one function of every neuron by itself


_ARITHMETIC = {
    "aten.add.Tensor": "add",
    "aten.sub.Tensor": "sub",
    "aten.mul.Tensor": "mul",
    "aten.div.Tensor": "div",
    MULTIPLY: "mul",
    DIVIDE: "div",
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
    before = nodes.get(source, root)
    if source in rest or (before.shape, before.batch) != (root.shape, root.batch):
        return None

    lengths = {source: 1}
    for name in reversed(terms):  # what a term reads was expanded after it
        lengths[name] = _length(terms[name], lengths)
    if lengths[root.name] > elementwise.MAX_TERMS:  # shared steps are written out at every use
        return None

    def written(value: object) -> object:
        if isinstance(value, Ref):
            return elementwise.X if value.name == source else written(terms[value.name])
        return tuple(written(v) for v in value) if isinstance(value, tuple) else value

    expression = written(terms[root.name])
    try:
        elementwise.check(expression)
    except ValueError:
        return None
    return replace(root, op="nrm.elementwise", args=(Ref(source), expression), kwargs=())


def _length(term: object, lengths: Mapping[str, int]) -> int:
    """Count the terms of an expression, written out."""
    if isinstance(term, Ref):
        return lengths[term.name]
    return 1 + sum(_length(t, lengths) for t in term) if isinstance(term, tuple) else 1


def _term(node: Node, weights: Mapping[str, torch.Tensor]) -> Any:
    """Write a node as a function of values and numbers, or return None."""
    args = [
        float(weights[value.name])
        if isinstance(value, Weight) and weights[value.name].numel() == 1
        else value
        for value in node.args
    ]
    if not all(value is None or isinstance(value, Ref | int | float | str) for value in args):
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
        numbers = (*args[1:], *_DEFAULTS[node.op][len(args) - 1 :])
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
            names = set(flattened(current.args[1]))
            inverse = inverse or not names.isdisjoint({"rsqrt", "reciprocal"})
        current = nodes.get(next(current.references(), ""))
    return inverse and current is not None and current.op in ("aten.mean.dim", _SUM)


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
    refused = any(other.op.startswith(_WITHOUT) for other in nodes.values())
    return _of_spread(node, nodes) or (refused and _of_refused(node, nodes, weights))


def _of_spread(node: Node, nodes: Mapping[str, Node]) -> bool:
    """Whether a quotient's divisor is a length or a variance that has no rule."""
    divisor = node.args[1] if node.op == DIVIDE else None
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
    for _ in range(_MOST):
        if not frontier or (refused and len(frontier) == 1):
            break
        current = nodes.get(max(frontier, key=lambda name: place.get(name, -1)))
        if current is None or (current.shape, current.batch) != (node.shape, node.batch):
            return False
        known = current.op == "nrm.elementwise" or _term(current, weights) is not None
        unknown = current.op.startswith(_WITHOUT)
        refused = refused or unknown
        if not known and not unknown:
            return False
        frontier = (frontier - {current.name}) | set(current.references())
    return refused and len(frontier) == 1
