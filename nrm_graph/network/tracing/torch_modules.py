"""Which modules are traced, and that they are left as they were.

What a user hands over may be compiled, exported, scripted, quantised or not yet initialised, and
its forward may keep books: count its calls, keep the last activations, clip the rows of an
embedding.  Here is decided what of it is taken, and what is refused.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nrm_graph.errors import InputError, TraceError
from nrm_graph.network.ir.finite import finite

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPILED = "_orig_mod"
_GUARDS = ("_guards_fn", "_check_input_constraints_pre_hook")
"""What torch's exported modules check their inputs with: a submodule, and a hook."""


class _Unguarded(nn.Module):
    """Stands in for the guards of an exported module."""

    def forward(self, *_: object) -> None:
        """Accept any input."""


def plain(model: object) -> nn.Module:
    """Return the module to trace: without its compilation, or of an exported program.

    Raises
    ------
    InputError
        If it is no module.
    TraceError
        If it is of a kind that hides its operations or holds no numbers; the message names the
        submodule.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return model.module()
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch module or a program, found {_kind(model)}")
    for path, module in model.named_modules():
        reason = _hidden(module)
        if reason is not None:
            where = f"the submodule {path} ({type(module).__name__})" if path else _kind(model)
            raise TraceError(f"{where} {reason}")
    original = model._modules.get(_COMPILED)
    return model if original is None else plain(original)


def _kind(model: object) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}: give an instance of it"
    return type(model).__name__


def _hidden(module: nn.Module) -> str | None:
    """Why a module cannot be traced, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is TorchScript, which hides its operations: give the Python module that it was made "
            "from"
        )
    if ".quantized." in f"{type(module).__module__}." or any(
        isinstance(tensor, torch.Tensor) and tensor.is_quantized
        for tensor in (*module._parameters.values(), *module._buffers.values())
    ):
        return (
            "is quantised (int8), which is not supported: give the float network that it was made "
            "from"
        )
    return None


def refuse_unsound(model: nn.Module) -> None:
    """Refuse weights that are not numbers; infinity may stand in a buffer, as in a mask.

    Raises
    ------
    TraceError
        Naming the tensor.
    """
    statistics = ("running_mean", "running_var")
    for kind, tensors in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for path, tensor in tensors():
            name = f"the {kind} {unwrapped(path)} of {type(model).__name__}"
            if is_lazy(tensor):
                raise TraceError(
                    f"{name} is not initialised yet: run the network once on an input, so that "
                    "its lazy modules take their shapes, and load its weights"
                )
            if tensor.is_meta:
                raise TraceError(
                    f"{name} is on the meta device, which holds no numbers: load its weights "
                    "first (model.to_empty(device=...) and load_state_dict)"
                )
            tensor = tensor.detach()
            if finite(tensor):
                continue
            strict = kind == "parameter" or path.rpartition(".")[2] in statistics
            if strict or bool(torch.isnan(tensor).any()):
                raise TraceError(
                    f"{name} holds NaN{' or infinity' if strict else ''}: load weights of a "
                    "network that works"
                )


def unwrapped(path: str) -> str:
    """Return a path without the steps that ``torch.compile`` puts into it."""
    return ".".join(part for part in path.split(".") if part != _COMPILED)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate a network inside, eagerly, and leave it as it was: mode, buffers and attributes.

    Compiled submodules run as what they were made from.  An embedding with ``max_norm`` clips the
    rows that it is asked for, in place; inside, its table is clipped as a whole instead, which
    gives the same rows.
    """
    modules = list(model.modules())
    mappings: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (mapping, dict(mapping))
        for module in modules
        for mapping in (module.__dict__, module._modules, module._parameters, module._buffers)
    ]
    buffers = [
        (buffer, buffer._version, buffer.clone())
        for module in modules
        for buffer in module._buffers.values()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        _evaluate(model)
        for module in modules:
            _eager(module)
            _ordinary(module)
            if isinstance(module, nn.Embedding) and module.max_norm is not None:
                _clip(module)
        yield
    finally:
        for mapping, before in mappings:
            mapping.clear()
            mapping.update(before)
        for buffer, version, copy in buffers:
            if buffer._version != version:
                buffer.copy_(copy)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # an exported module is in one mode for good
        for module in model.modules():
            module.training = False


def _eager(module: nn.Module) -> None:
    module._compiled_call_impl = None
    for name, child in module._modules.items():
        original = None if child is None else child._modules.get(_COMPILED)
        if original is not None:
            module._modules[name] = original


def _ordinary(module: nn.Module) -> None:
    """Put copies in the place of tensors that were made in inference mode: none can be traced."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_inference():
            module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_inference():
            module._buffers[name] = buffer.clone()


@torch.no_grad()
def _clip(embedding: nn.Embedding) -> None:
    rows = torch.arange(embedding.num_embeddings, device=embedding.weight.device)
    assert embedding.max_norm is not None
    table = torch.embedding_renorm_(
        embedding.weight.detach().clone(), rows, embedding.max_norm, embedding.norm_type
    )
    embedding._parameters["weight"] = nn.Parameter(table, requires_grad=False)
    embedding.max_norm = None


@contextmanager
def unguarded(model: nn.Module) -> Iterator[None]:
    """Let an exported module take other sizes inside than those that it was exported with.

    Its operations may be right for any size of the batch or not: that shows when it runs.
    """
    modules, (child, hook) = list(model.modules()), _GUARDS
    guards = [(module, module._modules[child]) for module in modules if child in module._modules]
    hooks = [
        (module._forward_pre_hooks, dict(module._forward_pre_hooks))
        for module in modules
        if any(getattr(h, "__name__", "") == hook for h in module._forward_pre_hooks.values())
    ]
    try:
        for module, _ in guards:
            module._modules[child] = _Unguarded()
        for registered, before in hooks:
            for number, call in before.items():
                if getattr(call, "__name__", "") == hook:
                    del registered[number]
        yield
    finally:
        for module, guard in guards:
            module._modules[child] = guard
        for registered, before in hooks:
            registered.clear()
            registered.update(before)
