"""Measures of a model and an input: tracing, targets, devices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph import composites, states, units
from nrm_graph.conditioned import MEMORY
from nrm_graph.errors import InputError
from nrm_graph.exact import Measure
from nrm_graph.program import Program
from nrm_graph.tracing import as_batch, trace

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.composites import Composite
    from nrm_graph.states import Network


def output_weights(target: Any, output: Tensor) -> Tensor:
    """Signed weights over outputs, ``(N, outputs)``, of one target for all samples.

    Parameters
    ----------
    target : "predicted", int, or mapping of int to float
        The arg-max output, an output's index, or signed weights such as ``{3: 1, 5: -1}``.
    output : Tensor, (N, outputs)
        The network's output.
    """
    weights = torch.zeros_like(output)
    count = output.shape[1]
    if isinstance(target, str) and target == "predicted":
        return weights.scatter(1, output.argmax(1, keepdim=True), 1.0)
    pairs = target.items() if isinstance(target, Mapping) else [(target, 1.0)]
    for index, weight in pairs:
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise InputError(
                f"target must be 'predicted', a class index or a mapping of class index to "
                f"weight, found {target!r}"
            )
        size: Any = abs(weight) if isinstance(weight, Real) else math.nan
        if not size <= torch.finfo(output.dtype).max:
            raise InputError(f"the weight of target {index} must be finite, found {weight!r}")
        if not 0 <= index < count:
            raise InputError(f"target {index} is out of range: the network has {count} outputs")
        weights[:, int(index)] = float(weight)
    return weights


def measure(
    model: torch.nn.Module | Program,
    x: Tensor,
    *,
    target: str | int | Mapping[int, float] = "predicted",
    composite: str | Composite = "epsilon_gamma",
    resolution: str | Mapping[str, Any] = "auto",
    dtype: str | None = None,
    device: str | torch.device = "cpu",
    scale: str = "unit",
    memory: int = MEMORY,
) -> Measure:
    """Return the relevance measure of one input, without a store.

    Parameters
    ----------
    model : nn.Module or Program
        The network, in any mode; a traced program saves tracing it again.
    x : Tensor
        One input, with or without a batch axis of 1.
    target : "predicted", int or mapping of int to float
        Output to explain, or signed weights over outputs.
    composite : str or Composite
        Rules, by name or built with :mod:`nrm_graph.composites`.
    resolution : str or mapping
        Units of the tables, see :func:`nrm_graph.units.resolve`.  Events do not depend on it.
    dtype : "float32", "float64" or None
        Precision of the pass; None keeps the model's, or takes float32 below that.
    device : str or torch.device
        Where to compute.
    scale : "unit" or "logit"
        Multiply every relevance by 1 or by the target's logit (the customary LRP scale).
    memory : int
        Bytes that events asked together may hold at once.

    Raises
    ------
    TraceError, CompositeError, InputError
        If the model, composite, input or target cannot be used.

    Examples
    --------
    >>> import torch, nrm_graph as ng
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> m = ng.measure(net, torch.ones(1, 3), target=0, composite="epsilon", dtype="float64")
    >>> A = ng.Layer("0")[:2]
    >>> round(m(A) + m(~A), 9)
    1.0
    """
    if not isinstance(x, torch.Tensor):
        raise InputError(f"x must be a torch tensor, found {type(x).__name__}")
    if not isinstance(model, Program | torch.nn.Module):
        raise InputError(f"model must be a torch module or a program, found {model!r}")
    if x.is_complex() or x.is_meta or x.layout != torch.strided:
        raise InputError(f"x must be a dense real tensor with data, found {x.dtype} {x.layout}")
    if isinstance(model, Program):
        shape = model.inputs[0][1]
        x, program = (x if x.ndim == len(shape) + 1 else x.unsqueeze(0)), model
    else:
        where = next((p.device for p in model.parameters()), torch.device("cpu"))
        kind = next((p.dtype for p in model.parameters()), x.dtype)
        example = x.to(where, kind)
        # Both give the batch axis by the same rule: a batched input would be batched again.
        x, program = _in_eval(model, example), trace(model, example)
    if x.shape[0] != 1:
        raise InputError(f"expected one input, found a batch of {x.shape[0]}")
    check_options(dtype, scale, memory)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    kind = kind if dtype is None else getattr(torch, dtype)
    place = device_of(device)
    net = states.network(program, composites.get(composite), kind, place)
    return from_network(
        net, x.detach().to(place, kind).contiguous(), target, resolution, scale, memory
    )


def check_options(dtype: str | None, scale: str, memory: int) -> None:
    """Refuse options of a measure that are unknown.

    Raises
    ------
    InputError
        Naming what is expected.
    """
    if dtype not in (None, "float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', found {dtype!r}")
    if scale not in ("unit", "logit"):
        raise InputError(f"scale must be 'unit' or 'logit', found {scale!r}")
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise InputError(f"memory must be a positive number of bytes, found {memory!r}")


def device_of(device: str | torch.device) -> torch.device:
    """Return a device that can be used; ``auto`` is the accelerator if there is one.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    if isinstance(device, str) and device == "auto":
        found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        return found or torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the device {device!r} cannot be used: {first}") from None
    if place.type == "meta":
        raise InputError("the device 'meta' holds no data")
    return place


def _in_eval(model: torch.nn.Module, x: Tensor) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return as_batch(model, x)
    finally:
        for module, mode in modes:
            module.training = mode


def from_network(
    net: Network,
    x: Tensor,
    target: str | int | Mapping[int, float],
    resolution: str | Mapping[str, Any] = "auto",
    scale: str = "unit",
    memory: int = MEMORY,
) -> Measure:
    """Build the measure of one input ``(1, ...)`` from a prepared network."""
    partitions = units.resolve(net.layout.topology, resolution)
    state = states.forward(net, x)
    weights = output_weights(target, state.output)
    start = states.seed(state, weights)
    logit = float((weights * state.output).sum())
    if not math.isfinite(logit):
        raise InputError(f"the weighted sum of the target outputs is {logit}: smaller weights do")
    chosen = weights[0].nonzero().flatten().tolist()
    single = len(chosen) == 1 and float(weights[0, chosen[0]]) == 1.0
    return Measure(
        net,
        state,
        partitions,
        start,
        chosen[0] if single else None,
        logit,
        int(state.output.argmax()),
        logit if scale == "logit" else 1.0,
        memory,
    )
