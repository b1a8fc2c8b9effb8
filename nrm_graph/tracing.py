"""From a torch module to a :class:`~nrm_graph.program.Program`.

``torch.export`` with a dynamic batch axis gives functional ATen; what does not depend on the
values of the input is folded to constants, evaluation-mode batch-norm becomes one scale and
shift per channel, and goes into the convolution before it where that is exact: where nothing
else reads the convolution.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nrm_graph.errors import InputError, TraceError
from nrm_graph.operations import SAME, SUPPORTED, WEIGH
from nrm_graph.program import Batch, Node, Program, Ref, Weight

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHAPE_ONLY = {
    "aten.new_zeros.default",
    "aten.new_ones.default",
    "aten.new_full.default",
    "aten.zeros_like.default",
    "aten.ones_like.default",
    "aten.full_like.default",
}


def as_batch(model: nn.Module, x: Tensor) -> Tensor:
    """Give one input its batch axis if it lacks it.

    An input counts as a batch of one if the model, fed with it twice, answers for two.

    Raises
    ------
    InputError
        If the model accepts the input in neither form.
    """
    candidates = [x.unsqueeze(0)]
    if x.ndim and x.shape[0] == 1:
        # (1, 28, 28) is rather an image without batch axis; (1, F), (1, C, H, W) are batches.
        candidates = [x.unsqueeze(0), x] if x.ndim == 3 else [x, x.unsqueeze(0)]
    reason: object = None
    for candidate in candidates:
        try:
            with torch.no_grad():
                out = model(torch.cat([candidate, candidate]))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = reason or str(error).splitlines()[0]
            continue
        if isinstance(out, Tensor) and out.ndim and out.shape[0] == 2:
            return candidate
        reason = reason or f"it answered {type(out).__name__} that is no batch of two"
    raise InputError(
        f"the model does not accept an input of shape {tuple(x.shape)}, with or without a batch "
        f"axis of 1: {reason}"
    )


def trace(model: nn.Module, example: Tensor) -> Program:
    """Trace a network for any batch size.

    Parameters
    ----------
    model : nn.Module
        Traced in evaluation mode; its own mode is restored.
    example : Tensor
        One input, with or without a batch axis of 1.

    Raises
    ------
    TraceError
        If the network cannot be exported, or holds operations that are not known; all of
        them are named with their module paths.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        example = as_batch(model, example)
        batch = torch.export.Dim("batch", min=1)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                model,
                (torch.cat([example, example]),),
                dynamic_shapes=({0: batch},),
            ).run_decompositions({})
    except InputError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TraceError(
            f"torch.export cannot trace {type(model).__name__} with a free batch size: {first}; "
            "rewrite what depends on the input's values or on a fixed batch size"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    return _fold_batch_norm(_convert(exported))


def _affine(value: Any) -> int | Batch:
    """Turn a symbolic integer into ``scale * n + offset``."""
    if isinstance(value, int):
        return value
    expression = value.node.expr
    (symbol,) = expression.free_symbols
    at = [int(expression.subs(symbol, n)) for n in (2, 3, 5)]
    scale = at[1] - at[0]
    if at[2] - at[1] != 2 * scale:
        raise TraceError(f"a size grows as {expression} with the batch: expected linear growth")
    return Batch(scale, at[0] - 2 * scale)


def _convert(exported: Any) -> Program:
    signature = exported.graph_signature
    stored = {**exported.constants, **exported.state_dict}
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    constants: dict[str, Tensor] = {}  # fx name -> value of what no input value reaches
    weight_names: dict[str, str] = {}  # fx name -> name in the program
    inputs: list[tuple[str, tuple[int, ...]]] = []
    nodes: list[Node] = []
    output = ""

    def argument(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value.name in constants:
                return Weight(weight_names[value.name])
            meta = value.meta.get("val")
            return _affine(meta) if isinstance(meta, int | torch.SymInt) else Ref(value.name)
        if isinstance(value, list | tuple):
            return tuple(argument(item) for item in value)
        if isinstance(value, torch.SymInt):
            return _affine(value)
        if isinstance(value, torch.memory_format | torch.layout | torch.device):
            return None
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TraceError(f"an argument of type {type(value).__name__} cannot be stored: {value!r}")

    unsupported: Counter[tuple[str, str]] = Counter()
    for fx in exported.graph.nodes:
        if fx.op == "placeholder":
            if fx.name in named:
                name = named[fx.name]
                constants[fx.name], weight_names[fx.name] = stored[name].detach(), name
            else:
                inputs.append((fx.name, tuple(fx.meta["val"].shape[1:])))
            continue
        if fx.op == "output":
            results = [r for r in fx.args[0] if isinstance(r, torch.fx.Node)]
            if len(results) != 1:
                raise TraceError(
                    f"the network returns {len(results)} tensors, expected 1: wrap it in a module "
                    "that returns the one to explain"
                )
            output = results[0].name
            continue
        meta = fx.meta.get("val")
        if isinstance(meta, int | torch.SymInt):
            continue
        op = _name(fx.target)
        sources = [n for n in fx.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if op in _SHAPE_ONLY or all(n.name in constants for n in sources):
            value = _evaluate(fx, constants)
            if value is not None:
                constants[fx.name] = value
                weight_names[fx.name] = f"constant.{fx.name}"
                continue
        stack = list((fx.meta.get("nn_module_stack") or {"": ("", "")}).items())
        module, call = str(stack[-1][1][0]), "/".join(str(key) for key, _ in stack)
        if "@" in module:
            module = module[: module.index("@")]
        shape = tuple(meta.shape[1:]) if isinstance(meta, Tensor) else ()
        if op not in SUPPORTED:
            unsupported[op, module] += 1
            continue
        if op in SAME and len([n for n in sources if n.name not in constants]) != 1:
            unsupported[f"{op} of two values that both depend on the input", module] += 1
            continue
        if any(not isinstance(d, int) for d in shape):
            unsupported[f"{op} with the batch on an axis other than the first", module] += 1
            continue
        kwargs = {k: argument(v) for k, v in fx.kwargs.items()}
        nodes.append(
            Node(
                name=fx.name,
                op=op,
                args=tuple(argument(a) for a in fx.args),
                kwargs=tuple(sorted((k, v) for k, v in kwargs.items() if v is not None)),
                module=module,
                call=call,
                shape=shape,
            )
        )
    if unsupported:
        listed = "; ".join(f"{op} in {path or 'the model itself'}" for op, path in unsupported)
        raise TraceError(
            f"operations without a rule: {listed}. Replace them by supported ones, or explain a "
            "part of the network that does without"
        )
    used = {weight_names[name]: value for name, value in constants.items()}
    aliases = _aliases(nodes)
    return _prune(Program(tuple(inputs), tuple(map(_plain, nodes)), output, used, aliases))


def _aliases(nodes: Sequence[Node]) -> tuple[tuple[str, str], ...]:
    return tuple((node.name, node.module) for node in nodes if node.module)


def _name(target: Any) -> str:
    name = str(target)
    if name == "<built-in function getitem>":
        return "aten.getitem"
    if name == "aten._native_batch_norm_legit_no_training.default":
        return "aten.batch_norm.default"
    return name


def _evaluate(fx: torch.fx.Node, constants: dict[str, Tensor]) -> Tensor | None:
    """Value of a node that no input value reaches, unless its shape has the batch in it."""
    meta = fx.meta.get("val")
    if not isinstance(meta, Tensor) or any(not isinstance(d, int) for d in meta.shape):
        return None

    def value(arg: Any) -> Any:
        if isinstance(arg, torch.fx.Node):
            if arg.name in constants:
                return constants[arg.name]
            found = arg.meta["val"]
            if isinstance(found, Tensor):
                shape = [d if isinstance(d, int) else 2 for d in found.shape]
                return torch.empty(shape, dtype=found.dtype)
            raise TraceError(f"{fx.target} needs the batch size to make a constant")
        return arg

    args, kwargs = torch.fx.node.map_arg((fx.args, fx.kwargs), value)
    with torch.no_grad():
        result = fx.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None


def _plain(node: Node) -> Node:
    """Bring variants of one operation to one form."""
    if node.op == "aten.pad.default" and node.args[1:] and not any(node.args[1]):
        return replace(node, op="aten.alias.default", args=node.args[:1], kwargs=())
    return node


def _prune(program: Program) -> Program:
    """Drop nodes that nothing reads, and tensors that no node names."""
    needed, kept = {program.output}, []
    for node in reversed(program.nodes):
        if node.name in needed:
            kept.append(node)
            needed.update(node.references())
    nodes = tuple(reversed(kept))
    names = {w for node in nodes for w in _weight_names((node.args, node.kwargs))}
    weights = {name: program.weights[name] for name in sorted(names)}
    return replace(program, nodes=nodes, weights=weights)


def _weight_names(value: Any) -> list[str]:
    if isinstance(value, Weight):
        return [value.name]
    if isinstance(value, tuple):
        return [name for item in value for name in _weight_names(item)]
    return []


def _fold_batch_norm(program: Program) -> Program:
    weights = dict(program.weights)
    readers = Counter(name for node in program.nodes for name in node.references())
    by_name = {node.name: node for node in program.nodes}
    result: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for original in program.nodes:
        node = _rename(original, renamed)
        if node.op == "aten.getitem" and by_name[next(original.references())].op == (
            "aten.batch_norm.default"
        ):
            renamed[node.name] = next(node.references())
            continue
        if node.op != "aten.batch_norm.default":
            result[node.name] = node
            continue
        (source,) = node.references()
        scale, shift = _scale_and_shift(node, weights)
        before = result.get(source)
        if before is not None and readers[source] == 1 and source != program.output:
            folded = _fold_into(before, scale, shift, weights)
            if folded is not None:
                result[source] = folded
                renamed[node.name] = source
                continue
        names = (f"{node.name}.scale", f"{node.name}.shift")
        dtype = next(weights[w].dtype for w in _weight_names(original.args))
        weights[names[0]], weights[names[1]] = scale.to(dtype), shift.to(dtype)
        args = (Ref(source), Weight(names[0]), Weight(names[1]))
        shape = by_name[source].shape if source in by_name else dict(program.inputs)[source]
        result[node.name] = replace(node, args=args, kwargs=(), shape=shape)
    output = renamed.get(program.output, program.output)
    aliases = tuple((renamed.get(value, value), path) for value, path in program.aliases)
    return _prune(
        replace(
            program, nodes=tuple(result.values()), output=output, weights=weights, aliases=aliases
        )
    )


def _rename(node: Node, renamed: dict[str, str]) -> Node:
    def walk(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(renamed.get(value.name, value.name))
        return tuple(walk(v) for v in value) if isinstance(value, tuple) else value

    return replace(node, args=walk(node.args), kwargs=walk(node.kwargs))


def _scale_and_shift(node: Node, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Per-channel scale and shift of an evaluation-mode batch-norm, in float64."""
    _, weight, bias, mean, var, _, eps = node.args

    def tensor(argument: Any) -> Tensor | None:
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
    if WEIGH.get(node.op) not in ("convolution", "dense") or len(node.args) < 2:
        return None
    if not isinstance(node.args[1], Weight) or node.op.startswith(("aten.matmul", "aten.addmm")):
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
    names = (f"{node.name}.folded.weight", f"{node.name}.folded.bias")
    weights[names[0]] = scaled.to(weight.dtype)
    weights[names[1]] = (old * scale + shift).to(weight.dtype)
    return replace(node, args=(node.args[0], Weight(names[0]), Weight(names[1]), *node.args[3:]))
