"""What is known of signs before any input is seen: which terms of a rule can never be non-zero."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from nrm_graph.network.ir.operations import MAX_POOL, NON_NEGATIVE, ROUTE, SAME, ZERO_AT_ZERO
from nrm_graph.network.ir.program import Weight, passive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nrm_graph.network.ir.program import Node, Program
    from nrm_graph.network.layout import Layout
    from nrm_graph.rules.base import Rule

_RECTIFIERS = frozenset({"aten.relu.default", "aten.relu6.default"})

_KEEPING = frozenset(
    {
        "aten.mean.dim",
        "aten.sum.dim_IntList",
        "aten.dropout.default",
        "nrm.gate",
        "nrm.multiply",
        "nrm.attention",
        "nrm.product",
    }
)

# Elementwise operations that map 0 to 0, whatever their parameters.
_THROUGH_ZERO = ZERO_AT_ZERO | frozenset(
    f"aten.{name}.default"
    for name in ("gelu", "elu", "leaky_relu", "silu", "hardswish", "tanh", "mish", "dropout")
)


def non_negative(program: Program, inputs: bool) -> frozenset[str]:
    """Values no neuron of which is ever negative.

    Parameters
    ----------
    program : Program
        The network.
    inputs : bool
        Whether that holds of the inputs, whole numbers apart.
    """
    known = {name for name, _ in program.inputs} - set(program.integers) if inputs else set()
    for node in program.nodes:
        references = list(node.references())
        if node.op in NON_NEGATIVE or node.op == "aten.softmax.int":
            known.add(node.name)
        elif not references or not known.issuperset(references):
            continue
        elif node.op in MAX_POOL or "avg_pool" in node.op or node.op in _KEEPING:
            known.add(node.name)
        elif node.op == "aten.add.Tensor":
            if len(references) == 2 and dict(node.kwargs).get("alpha", 1) >= 0:
                known.add(node.name)
        elif node.op in ROUTE and not _constants(node, program):
            known.add(node.name)
    return frozenset(known)


def _constants(node: Node, program: Program) -> bool:
    """Whether negative numbers may be routed in beside the operands."""
    if node.op == "aten.masked_fill.Scalar":
        return not isinstance(node.args[2], int | float) or node.args[2] < 0
    if node.op in ("aten.pad.default", "aten.constant_pad_nd.default"):
        fills = [a for a in node.args[2:] if isinstance(a, int | float)]
        return any(fill < 0 for fill in fills)

    def negative(value: object) -> bool:
        if isinstance(value, Weight):
            return bool((program.weights[value.name] < 0).any())
        return isinstance(value, tuple) and any(negative(item) for item in value)

    return negative(node.args)


def silent(program: Program, layout: Layout, rules: Mapping[int, Rule]) -> frozenset[str]:
    """Layers that receive no relevance where their value is not positive.

    That is so where only rectifiers read a layer, and every rule that reads the rectified
    value shares in proportion to it: a neuron that is 0 then gets 0.
    """
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in program.nodes:
        for name in dict.fromkeys(node.references()):
            readers[name].append(node)
    fixed = {program.output}
    vanishing: dict[str, bool] = {}  # no relevance where the value is 0
    quiet: dict[str, bool] = {}  # no relevance where the value is not positive
    rest = passive(program)
    for name in [*(n for n, _ in program.inputs), *(n.name for n in program.nodes)][::-1]:
        if name in rest:
            continue
        read = [node for node in readers[name] if node.name not in rest]
        layered = [r for r in read if r.name in layout.weighings]
        others = [r for r in read if r.name not in layout.layer_of]
        vanishing[name] = (
            name not in fixed
            and all(rules[layout.layer_of[r.name]].proportional for r in layered)
            and all(
                vanishing[r.name]
                and (
                    r.op in _THROUGH_ZERO
                    or r.op in MAX_POOL
                    or (r.op in ROUTE and r.op not in SAME)
                )
                for r in others
            )
        )
        quiet[name] = (
            name not in fixed
            and not layered
            and all(
                (r.op in _RECTIFIERS and vanishing[r.name])
                or ((r.op in MAX_POOL or r.op in ROUTE) and quiet[r.name])
                for r in others
            )
        )
    return frozenset(name for name in layout.layer_of if quiet.get(name, False) and readers[name])
