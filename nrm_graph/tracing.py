"""From a torch module to a :class:`~nrm_graph.program.Program`.

``torch.export`` with a dynamic batch axis gives functional ATen; what does not depend on the
values of the input is folded to constants (:mod:`nrm_graph.conversion`), evaluation-mode
batch-norm goes into the convolution before it where that is exact (:mod:`nrm_graph.folding`),
and every value learns where it keeps its batch (:mod:`nrm_graph.execution`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nrm_graph.attention import ATTENTION, attention
from nrm_graph.axes import axes
from nrm_graph.conversion import Converter
from nrm_graph.errors import InputError, TraceError
from nrm_graph.execution import run, settle_batches
from nrm_graph.folding import fold_batch_norm, prune
from nrm_graph.fusing import fuse
from nrm_graph.layers import layout
from nrm_graph.outputs import Choice, Chosen
from nrm_graph.program import passive
from nrm_graph.rewriting import REWRITES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nrm_graph.program import Node, Program

_REWRITES = axes({**REWRITES, ATTENTION: attention})

_COMPOSITE = (
    "einsum.default",
    "baddbmm.default",
    "glu.default",
    "addcmul.default",
    "cosine_similarity.default",
    "rot90.default",
    "tile.default",
    "repeat_interleave.self_int",
    "im2col.default",
    "lstm.input",
    "gru.input",
    "rnn_tanh.input",
    "rnn_relu.input",
    "lstm_cell.default",
    "gru_cell.default",
    "rnn_tanh_cell.default",
    "rnn_relu_cell.default",
)
"""Operations that torch itself writes out in others, names without ``aten``."""

_HINTS = {
    "aten.log_softmax.int": "explain the scores before it: leave the log-softmax out",
    "aten.div.Tensor": "a quotient of two values that both depend on the input has no rule",
}

_FULL, _LOW = 1e-3, 0.1
"""Relative difference that the order of sums makes, in full and in half precision."""

MAX_STEPS = 2_000
"""Steps of recurrent networks that are unrolled."""


def as_batch(model: nn.Module, x: Tensor) -> Tensor:
    """Give one input its batch axis if it lacks it.

    An input counts as a batch of one if the model, fed with it twice, answers for two.

    Raises
    ------
    InputError
        If the model accepts the input in neither form.
    """
    return _as_batches(Chosen(model, None, None), (x,))[0][0]


def _as_batches(
    model: Chosen, xs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], list[tuple[str, Tensor]]]:
    """As :func:`as_batch`, for a model of several inputs: all or none have their batch axis.

    Returns
    -------
    xs : tuple of Tensor
        Batches of one.
    parts : list of (str, Tensor)
        What the model answers if it is fed with each twice.
    """
    without = tuple(x.unsqueeze(0) for x in xs)
    candidates = [without]
    if all(x.ndim and x.shape[0] == 1 for x in xs):
        # (1, 28, 28) is rather an image without batch axis; (1, F), (1, C, H, W) are batches.
        # A single token id lacks its batch axis.
        unlikely = xs[0].ndim == 3 or (xs[0].ndim == 1 and not xs[0].is_floating_point())
        candidates = [without, xs] if unlikely else [xs, without]
    reason: object = None
    for candidate in candidates:
        try:
            with torch.no_grad():
                parts = model.parts(*(torch.cat([x, x]) for x in candidate))
        except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
            reason = reason or (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        if all(out.ndim and out.shape[0] == 2 for _, out in parts):
            return candidate, parts
        found = " and ".join(str(tuple(out.shape)) for _, out in parts)
        reason = reason or f"to a batch of two it answered shape {found}"
    shapes = " and ".join(str(tuple(x.shape)) for x in xs)
    raise InputError(
        f"the model does not accept {'an input' if len(xs) == 1 else 'inputs'} of shape {shapes}, "
        f"with or without a batch axis of 1: {reason}"
    )


def trace(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    output: Choice = None,
) -> Program:
    """Trace a network for any batch size.

    Parameters
    ----------
    model : nn.Module
        Traced in evaluation mode; its own mode is restored.
    example : Tensor, or for a forward of several a tuple of tensors or a mapping by keyword
        One input, with or without a batch axis of 1.  Integers (token ids, masks) are no layers;
        what an embedding makes of them is.
    output : str, int, or list of them, optional
        Of a network that returns several tensors, the one to explain, by its key or position
        (``"logits"``); several make one layer, side by side.

    Raises
    ------
    InputError
        If the network does not accept the example, or returns several tensors and none is chosen.
    TraceError
        If the network cannot be exported, mixes the samples of a batch, or holds operations
        that are not known; all of them are named with their module paths.
    """
    names, examples = _examples(example)
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
        around = Chosen(model, names, output)
        with _passed_through(model) as same:
            examples, parts = _as_batches(around, examples)
        exported = _export(around, examples)
    finally:
        for module, mode in modes:
            module.training = mode
    leaves = {path for path, module in model.named_modules() if not any(module.children())}
    converter = Converter(exported, names or _arguments(model, len(examples)), "network", _REWRITES)
    program = prune(fuse(prune(converter.program())))
    _refuse_unknown(program)
    if program.output in passive(program):
        raise TraceError("the network's output does not depend on its input")
    read = {program.output}.union(*(node.references() for node in program.nodes))
    if not read.intersection(name for name, _ in program.inputs):
        raise TraceError("the network's output does not depend on its input")
    if output is not None:
        stated = tuple((name, tuple(part.shape[1:])) for name, part in parts)
        program = replace(program, outputs=stated)
    program = replace(program, aliases=_module_outputs(program.nodes, leaves, same))
    program = prune(fold_batch_norm(program))
    program = settle_batches(program, examples)
    _compare(model, program, examples, [part[:1] for _, part in parts])
    layout(program)  # refuses what has no layer, now and not at the first question
    return program


def _examples(
    example: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
) -> tuple[tuple[str, ...] | None, tuple[Tensor, ...]]:
    """Keywords of the inputs, if they are given by keyword, and the inputs."""
    if isinstance(example, Mapping):
        names, examples = tuple(str(name) for name in example), tuple(example.values())
    else:
        names, examples = None, example if isinstance(example, tuple) else (example,)
    if not examples or not all(isinstance(x, Tensor) for x in examples):
        kinds = ", ".join(type(x).__name__ for x in examples) or "nothing"
        raise InputError(f"expected an input tensor, or several, found {kinds}")
    return names, examples


def _compare(
    model: nn.Module, program: Program, examples: Sequence[Tensor], parts: Sequence[Tensor]
) -> None:
    """Refuse a program that does not answer as the network does."""
    expected = torch.cat([part.reshape(-1) for part in parts]).double()
    found = run(program, *examples).reshape(-1).double()
    low = any(part.dtype in (torch.float16, torch.bfloat16) for part in parts)
    if not bool(torch.isfinite(expected).all()):
        return  # no input is explained whose output is no number
    error = (found - expected).abs().max() if found.shape == expected.shape else torch.inf
    if not error <= (_LOW if low else _FULL) * expected.abs().max():
        raise TraceError(
            f"the traced network does not answer as {type(model).__name__} does at the input it "
            "was traced with: it may be random, or depend on what torch.export does not see"
        )


def _arguments(model: nn.Module, count: int) -> list[str]:
    """Names of forward's arguments, as far as they are given."""
    names: list[str] = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}_{i}" for i in range(count - len(names))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    return names


def _refuse_unknown(program: Program) -> None:
    """Refuse a program with operations that are not known, all of them at once."""
    found: dict[str, list[str]] = {}
    for node in program.nodes:
        stage, _, op = node.op.partition(".")
        if stage in ("raw", "refused"):
            op = f"aten.{op}" if stage == "raw" else op
            hint = _HINTS.get(op)
            paths = found.setdefault(f"{op} ({hint})" if hint else op, [])
            if node.module not in paths:
                paths.append(node.module)
    if not found:
        return
    lines = []
    for op, paths in found.items():
        shown = ", ".join(path or "the model itself" for path in paths[:5])
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        lines.append(f"{op} in {shown}{more}")
    raise TraceError(
        "operations without a rule:\n  " + ";\n  ".join(lines) + ".\nRegister them "
        "(nrm_graph.register_operation), replace them by supported ones, or explain a part of the "
        "network that does without"
    )


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


def _export(around: Chosen, examples: Sequence[Tensor]) -> Any:
    batch = torch.export.Dim("batch", min=1)
    pairs = tuple(torch.cat([x, x]) for x in examples)
    known = torch.export.default_decompositions()
    name = type(around.network).__name__
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                around, pairs, dynamic_shapes=(tuple({0: batch} for _ in pairs),)
            )
            _bound_unrolling(exported)
            return exported.run_decompositions({op: known[op] for op in _taken_apart(known)})
    except TraceError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TraceError(
            f"torch.export cannot trace {name} with a free batch size: {first}; "
            "rewrite what depends on the input's values or on a fixed batch size"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _taken_apart(known: Any) -> list[Any]:
    """Operations that torch writes out in ones that have a rule."""
    found = []
    for name in _COMPOSITE:
        packet, overload = name.split(".")
        op = getattr(getattr(torch.ops.aten, packet), overload)
        if op in known:
            found.append(op)
    return found


def _bound_unrolling(exported: Any) -> None:
    """Refuse to unroll a recurrent network over very many steps."""
    for node in exported.graph.nodes:
        kind = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        if kind not in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            continue
        size = node.args[0].meta["val"].shape[0 if not node.args[-1] else 1]
        layers, bidirectional = node.args[-5], node.args[-2]
        steps = layers * (2 if bidirectional else 1) * (size if isinstance(size, int) else 1)
        if steps > MAX_STEPS:
            raise TraceError(
                f"{kind} would be unrolled into {steps:,} steps, expected at most {MAX_STEPS:,}: "
                "give shorter sequences"
            )


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
