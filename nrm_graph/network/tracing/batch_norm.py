"""Evaluation-mode batch-norm as one scale and shift per channel, folded where that is exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import TraceError
from nrm_graph.network.ir.held_weights import held
from nrm_graph.network.ir.operations import WEIGH
from nrm_graph.network.ir.program import Node, Program, Ref, Weight

if TYPE_CHECKING:
    from torch import Tensor


def prune(program: Program) -> Program:
    """Drop nodes that nothing reads, and tensors that no node names."""
    needed = {program.output}
    for node in reversed(program.nodes):
        if node.name in needed:
            needed.update(node.references())
    nodes = tuple(node for node in program.nodes if node.name in needed)
    names = {name for node in nodes for name in node.weight_names()}
    all_held = held(program.weights)
    weights = {name: all_held[name] for name in sorted(names)}
    return replace(program, nodes=nodes, weights=weights)


def fold_batch_norm(program: Program) -> Program:
    """Fold every batch-norm into the convolution or dense layer before that only it reads.

    One that cannot be folded (after a sum, before a padded convolution) becomes a layer.
    """
    if not any(node.op == "aten.batch_norm.default" for node in program.nodes):
        return prune(program)
    weights = dict(program.weights)
    readers = Counter(name for node in program.nodes for name in node.references())
    by_name = {node.name: node for node in program.nodes}
    shapes, batches = program.shapes(), program.batches()
    result: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for original in program.nodes:
        node = _rename(original, renamed)
        if (
            node.op == "aten.getitem"
            and by_name[next(original.references())].op == "aten.batch_norm.default"
        ):
            renamed[node.name] = next(node.references())
            continue
        if node.op != "aten.batch_norm.default":
            result[node.name] = node
            continue
        (source,) = node.references()
        scale, shift = _scale_and_shift(node, weights)
        before = result.get(source)
        # A batch-norm that was folded already may have further readers under its own name.
        read = {source, next(original.references())}
        alone = all(readers[name] == 1 and name != program.output for name in read)
        if before is not None and alone:
            folded = _fold_into(before, scale, shift, weights)
            if folded is not None:
                result[source] = folded
                renamed[node.name] = source
                continue
        names = (f"{node.name}.scale", f"{node.name}.shift")
        dtype = weights[next(original.weight_names())].dtype
        weights[names[0]], weights[names[1]] = scale.to(dtype), shift.to(dtype)
        args = (Ref(source), Weight(names[0]), Weight(names[1]))
        result[node.name] = replace(
            node, args=args, kwargs=(), shape=shapes[source], batch=batches[source]
        )
    output = renamed.get(program.output, program.output)
    aliases = tuple((renamed.get(value, value), path) for value, path in program.aliases)
    return prune(
        replace(
            program, nodes=tuple(result.values()), output=output, weights=weights, aliases=aliases
        )
    )


def _rename(node: Node, renamed: dict[str, str]) -> Node:
    def walk(value: object) -> Any:
        if isinstance(value, Ref):
            return Ref(renamed.get(value.name, value.name))
        return tuple(walk(v) for v in value) if isinstance(value, tuple) else value

    return replace(node, args=walk(node.args), kwargs=walk(node.kwargs))


def _scale_and_shift(node: Node, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Per-channel scale and shift of an evaluation-mode batch-norm, in float64."""
    _, weight, bias, mean, var, _, eps = node.args

    def tensor(argument: object) -> Tensor | None:
        return weights[argument.name].double() if isinstance(argument, Weight) else None

    center, spread = tensor(mean), tensor(var)
    if center is None or spread is None:
        raise TraceError(f"the batch-norm {node.module} has no running statistics")
    scale = (spread + eps).rsqrt()
    gain, offset = tensor(weight), tensor(bias)
    scale = scale if gain is None else scale * gain
    shift = -center * scale
    return scale, shift if offset is None else shift + offset


def _fold_into(node: Node, scale: Tensor, shift: Tensor, weights: dict[str, Tensor]) -> Node | None:
    """Fold scale and shift into the convolution or dense layer before, in float64."""
    if (
        WEIGH.get(node.op) not in ("convolution", "dense")
        or node.op.startswith(("aten.matmul", "aten.addmm"))
        or len(node.args) < 2
        or not isinstance(node.args[1], Weight)
    ):
        return None
    weight = weights[node.args[1].name]
    bias = node.args[2] if len(node.args) > 2 else None
    if "transpose" in node.op:
        groups = node.args[6] if len(node.args) > 6 else 1
        split = weight.double().reshape(groups, -1, *weight.shape[1:])
        rows = scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
        scaled = (split * rows).flatten(0, 1)
    else:
        scaled = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    old = weights[bias.name].double() if isinstance(bias, Weight) else torch.zeros_like(shift)
    # The parameter's own name stays in front: it names the layer of a functional call.
    stem = node.args[1].name.removesuffix(f"@{node.name}")
    names = (f"{stem}@{node.name}", f"{stem}.bias@{node.name}")
    weights[names[0]] = scaled.to(weight.dtype)
    weights[names[1]] = (old * scale + shift).to(weight.dtype)
    return replace(node, args=(node.args[0], Weight(names[0]), Weight(names[1]), *node.args[3:]))
