"""From a torch module to a :class:`~nrm_graph.network.ir.program.Program`.

``torch.export`` with a dynamic batch axis gives functional ATen; what does not depend on the
values of the input is folded to constants (:mod:`nrm_graph.network.tracing.convert`),
evaluation-mode batch-norm goes into the convolution before it where that is exact
(:mod:`nrm_graph.network.tracing.batch_norm`), and every value learns where it keeps its batch
(:mod:`nrm_graph.network.ir.interpreter`).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nrm_graph.errors import InputError, TraceError
from nrm_graph.foreign_errors import translated
from nrm_graph.network.ir.finite import finite
from nrm_graph.network.ir.interpreter import exact, settle_batches
from nrm_graph.network.ir.program import passive
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.attention import ATTENTION, attention
from nrm_graph.network.tracing.batch_norm import fold_batch_norm, prune
from nrm_graph.network.tracing.convert import Conversion
from nrm_graph.network.tracing.converter import Converter
from nrm_graph.network.tracing.decompositions import REWRITES
from nrm_graph.network.tracing.export import export
from nrm_graph.network.tracing.fusion import fuse
from nrm_graph.network.tracing.indexing import axes
from nrm_graph.network.tracing.input_batch import LOW, read, tolerance
from nrm_graph.network.tracing.module_calls import ModuleCalls
from nrm_graph.network.tracing.module_outputs import module_outputs, passed_through
from nrm_graph.network.tracing.output_choice import Choice, Chosen
from nrm_graph.network.tracing.torch_modules import (
    plain,
    refuse_unsound,
    undisturbed,
    unguarded,
    unwrapped,
)
from nrm_graph.network.tracing.versions import warn_if_untested

if TYPE_CHECKING:
    from nrm_graph.network.ir.interpreter import Settled
    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.tracing.input_batch import Parts, Reading

_REWRITES = axes({**REWRITES, ATTENTION: attention})

_HINTS = {
    "aten.log_softmax.int": "explain the scores before it: leave the log-softmax out",
    "aten.div.Tensor": "a quotient of two values that both depend on the input has no rule",
}

_EXPORT = threading.RLock()  # torch.export serves one thread at a time


@translated("tracing", TraceError)
@exact
def trace(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    output: Choice = None,
) -> Program:
    """Trace a network for any batch size.

    Parameters
    ----------
    model : nn.Module
        Traced in evaluation mode; its mode, buffers and attributes are left as they were.
    example : Tensor, or for a forward of several a tuple of tensors or a mapping by keyword
        One input; what ``model(example)`` answers for it as given tells whether its first axis is
        a batch axis of 1 (see :mod:`nrm_graph.network.tracing.input_batch`).  Integers (token ids,
        masks) are no layers; what an embedding makes of them is.
    output : str, int, or list of them, optional
        Of a network that returns several tensors, the one to explain, by its key or position
        (``"logits"``); several make one layer, side by side.

    Raises
    ------
    InputError
        If the network does not accept the example, or it is a batch of several; or the network
        returns several tensors and none is chosen.
    TraceError
        If the network cannot be exported, mixes the samples of a batch, or holds operations
        that are not known; all of them are named with their module paths.
    """
    warn_if_untested()
    model = plain(model)
    refuse_unsound(model)
    names, examples = _examples(example)
    chosen = Chosen(model, names, output)
    with _EXPORT, undisturbed(model):
        if not any(x.numel() for x in examples):
            raise InputError("the input has a size of 0: there is nothing to explain")
        with passed_through(model) as same:
            reading = read(chosen, examples)
        _refuse_empty(reading)
        with unguarded(model):
            exported = export(chosen, reading.examples)
    leaves = {
        unwrapped(path) for path, module in model.named_modules() if not any(module.children())
    }
    arguments = names or _arguments(model, len(examples))
    converter = Converter(ModuleCalls("network"))
    conversion = Conversion(exported, arguments, _REWRITES, converter)
    program = prune(fuse(prune(conversion.program())))
    _refuse_unknown(program)
    read_values = {program.output}.union(*(node.references() for node in program.nodes))
    inputs_read = read_values.intersection(name for name, _ in program.inputs)
    if program.output in passive(program) or not inputs_read:
        raise TraceError("the network's output does not depend on its input")
    outputs = () if output is None else tuple((n, tuple(y.shape[1:])) for n, y in reading.pair)
    aliases = module_outputs(program.nodes, leaves, same)
    program = fold_batch_norm(replace(program, aliases=aliases, outputs=outputs))
    settled = settle_batches(program, reading.examples)
    _compare(type(model).__name__, settled, reading, conversion.half)
    layout(settled.program)  # refuses what has no layer, now and not at the first question
    return settled.program


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


def _refuse_empty(reading: Reading) -> None:
    """Refuse a network whose output holds no numbers."""
    for name, out in reading.alone:
        if not out.numel():
            which = "output" if name == "output" else f"output {name!r}"
            raise InputError(
                f"the network's {which} has the shape {tuple(out.shape)}, which holds no numbers: "
                "there is nothing to explain"
            )


def _compare(name: str, settled: Settled, reading: Reading, half: bool) -> None:
    """Refuse a program that does not answer as the network does, for one sample and for two.

    What both have answered already is compared.  The second sample of the program's batch is
    another than that of the network's: its answer is the one that it has alone, so that the
    program does in the second place what it does in the first.
    """
    allowed = LOW if half else max(tolerance(part.dtype) for _, part in reading.alone)
    first, other = (answer.reshape(-1) for answer in settled.alone)
    upper, lower = settled.together.reshape(2, -1)
    for answer, expected, batch in (
        (first, _row(reading.alone, 1), "one sample"),
        (upper, _row(reading.pair, 2), "a batch of two"),
        (lower, other, "a batch of two"),
    ):
        if not finite(expected):
            continue  # no input is explained whose output is no number
        same = answer.numel() == expected.numel()
        error = (answer.double() - expected.double()).abs().max() if same else torch.inf
        if not error <= allowed * expected.double().abs().max():
            raise TraceError(
                f"the traced network does not answer as {name} does at the input it was traced "
                f"with ({batch}): it may depend on what torch.export does not see"
            )


def _row(parts: Parts, n: int) -> Tensor:
    """Return all that a network answers for the first of n samples."""
    return torch.cat([part.reshape(n, -1)[0] for _, part in parts])


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
    modules: dict[str, list[str]] = {}
    for node in program.nodes:
        stage, _, op = node.op.partition(".")
        if stage in ("raw", "refused"):
            op = f"aten.{op}" if stage == "raw" else op
            hint = _HINTS.get(op)
            modules.setdefault(f"{op} ({hint})" if hint else op, []).append(node.module)
    if not modules:
        return
    listed = []
    for op, calling in modules.items():
        paths = list(dict.fromkeys(calling))
        shown = ", ".join(path or "the model itself" for path in paths[:5])
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        listed.append(f"{op} in {shown}{more}")
    raise TraceError(
        f"operations without a rule: {'; '.join(listed)}. Register them "
        "(nrm_graph.register_operation), replace them by supported ones, or explain a part of the "
        "network that does without"
    )
