"""From a torch module to a :class:`~nrm_graph.program.Program`.

``torch.export`` with a dynamic batch axis gives functional ATen; what does not depend on the
values of the input is folded to constants (:mod:`nrm_graph.conversion`), evaluation-mode
batch-norm goes into the convolution before it where that is exact (:mod:`nrm_graph.folding`),
and every value learns where it keeps its batch (:mod:`nrm_graph.execution`).
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nrm_graph.conversion import Converter
from nrm_graph.errors import InputError, TraceError
from nrm_graph.execution import settle_batches
from nrm_graph.folding import fold_batch_norm, prune
from nrm_graph.layers import layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nrm_graph.program import Node, Program


def as_batch(model: nn.Module, x: Tensor) -> Tensor:
    """Give one input its batch axis if it lacks it.

    An input counts as a batch of one if the model, fed with it twice, answers for two.

    Raises
    ------
    InputError
        If the model accepts the input in neither form.
    """
    return _as_batches(model, (x,))[0]


def _as_batches(model: nn.Module, xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As :func:`as_batch`, for a model of several inputs: all or none have their batch axis."""
    without = tuple(x.unsqueeze(0) for x in xs)
    candidates = [without]
    if all(x.ndim and x.shape[0] == 1 for x in xs):
        # (1, 28, 28) is rather an image without batch axis; (1, F), (1, C, H, W) are batches.
        candidates = [without, xs] if xs[0].ndim == 3 else [xs, without]
    reason: object = None
    for candidate in candidates:
        try:
            with torch.no_grad():
                out = model(*(torch.cat([x, x]) for x in candidate))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = reason or str(error).splitlines()[0]
            continue
        if isinstance(out, Tensor) and out.ndim and out.shape[0] == 2:
            return candidate
        if isinstance(out, Tensor):
            reason = reason or f"to a batch of two it answered shape {tuple(out.shape)}"
        else:
            reason = reason or (
                f"it returns a {type(out).__name__}, expected one tensor: wrap it in a module "
                "that returns the tensor to explain"
            )
    shapes = " and ".join(str(tuple(x.shape)) for x in xs)
    raise InputError(
        f"the model does not accept {'an input' if len(xs) == 1 else 'inputs'} of shape {shapes}, "
        f"with or without a batch axis of 1: {reason}"
    )


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Program:
    """Trace a network for any batch size.

    Parameters
    ----------
    model : nn.Module
        Traced in evaluation mode; its own mode is restored.
    example : Tensor, or a tuple of tensors for a forward of several
        One input, with or without a batch axis of 1.

    Raises
    ------
    InputError
        If the network does not accept the example, or returns no single tensor.
    TraceError
        If the network cannot be exported, mixes the samples of a batch, or holds operations
        that are not known; all of them are named with their module paths.
    """
    examples = example if isinstance(example, tuple) else (example,)
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise TraceError(
            f"{type(model).__name__} has parameters on the meta device, which hold no numbers: "
            "load its weights first (model.to_empty(device=...) and load_state_dict)"
        )
    _refuse_unsound(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with _passed_through(model) as same:
            examples = _as_batches(model, examples)
        exported = _export(model, examples)
    finally:
        for module, mode in modes:
            module.training = mode
    names = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    leaves = {path for path, module in model.named_modules() if not any(module.children())}
    program = prune(Converter(exported, names).program())
    read = {program.output}.union(*(node.references() for node in program.nodes))
    if not read.intersection(name for name, _ in program.inputs):
        raise TraceError("the network's output does not depend on its input")
    program = replace(program, aliases=_module_outputs(program.nodes, leaves, same))
    program = prune(fold_batch_norm(program))
    program = settle_batches(program, examples)
    layout(program)  # refuses what has no layer, now and not at the first question
    return program


def _refuse_unsound(model: nn.Module) -> None:
    """Refuse weights that are not numbers; infinity may stand in a buffer, as in a mask."""
    statistics = ("running_mean", "running_var")
    for kind, tensors in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for name, tensor in tensors():
            if not tensor.is_floating_point():
                continue
            strict = kind == "parameter" or name.rpartition(".")[2] in statistics
            if not bool((torch.isfinite(tensor) if strict else ~torch.isnan(tensor)).all()):
                raise TraceError(
                    f"the {kind} {name} of {type(model).__name__} holds NaN"
                    f"{' or infinity' if strict else ''}: load weights of a network that works"
                )


def _export(model: nn.Module, examples: Sequence[Tensor]) -> Any:
    batch = torch.export.Dim("batch", min=1)
    pairs = tuple(torch.cat([x, x]) for x in examples)
    signature = inspect.signature(model.forward).parameters.values()
    dynamic: Any = tuple({0: batch} for _ in pairs)
    if any(p.kind is p.VAR_POSITIONAL for p in signature):
        dynamic = (dynamic,)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, pairs, dynamic_shapes=dynamic)
            return exported.run_decompositions({})
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TraceError(
            f"torch.export cannot trace {type(model).__name__} with a free batch size: {first}; "
            "rewrite what depends on the input's values or on a fixed batch size"
        ) from error


@contextmanager
def _passed_through(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Record the module calls that return their input: dropout and identity leave no node.

    Yields
    ------
    list of (call, call before)
        Of the last run, in order; calls are ``path``, ``path@1``, ...
    """
    found: list[tuple[str, str]] = []
    calls: dict[str, int] = {}
    made: dict[int, tuple[Tensor, str]] = {}  # the tensor is kept so that its id stays its own

    def clear(*_: Any) -> None:
        for record in (found, calls, made):
            record.clear()

    def hook(path: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            number = calls[path] = calls.get(path, -1) + 1
            call = f"{path}@{number}" if number else path
            if not isinstance(out, Tensor):
                return
            if args and out is args[0] and id(out) in made:
                found.append((call, made[id(out)][1]))
            made[id(out)] = (out, call)

        return record

    handles = [model.register_forward_pre_hook(clear)]
    handles += [
        module.register_forward_hook(hook(path))
        for path, module in model.named_modules()
        if path and not any(module.children())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        made.clear()


def _module_outputs(
    nodes: Sequence[Node], leaves: set[str], same: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Value that each call of a module without children ends with."""
    last = {
        node.call.rpartition("/")[2]: node.name
        for node in nodes
        if node.module and node.module in leaves
    }
    for call, before in same:
        if call not in last and before in last:
            last[call] = last[before]
    return tuple((value, call) for call, value in last.items())
