"""What of the output to explain: signed weights over outputs, and the relevance they begin with."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.targets import Outputs
    from nrm_graph.propagation.state import State


Target = str | int | tuple[Any, ...] | Mapping[Any, float]
"""What of the output to explain."""


def output_weights(target: Target, output: Tensor, outputs: Outputs) -> Tensor:
    """Signed weights over outputs, ``(N, outputs)``, of one target for all samples.

    Parameters
    ----------
    target : "predicted", int, tuple, or mapping of int or tuple to float
        The arg-max output, an output's index or place, or signed weights such as
        ``{3: 1, 5: -1}``.
    output : Tensor, (N, outputs)
        The network's output.
    outputs : Outputs
        Its shape.
    """
    weights = torch.zeros_like(output)
    if isinstance(target, str) and target == "predicted":
        return weights.scatter(1, output.argmax(1, keepdim=True), 1.0)
    for index, weight in named_outputs(target):
        if abs(weight) > torch.finfo(output.dtype).max:
            raise InputError(f"the weight of target {index} must be finite, found {weight!r}")
        for row, flat in enumerate(places(index, output, outputs)):
            weights[row, flat] += weight
    return weights


def named_outputs(target: Target) -> list[tuple[Any, float]]:
    """Return the outputs that a target names, with their weights; their places are not looked at.

    Raises
    ------
    InputError
        If it is no target of any network.
    """
    if isinstance(target, str) and target == "predicted":
        return [(target, 1.0)]
    if isinstance(target, Mapping) and not target:
        raise InputError("target is an empty mapping: expected weights of outputs, such as {3: 1}")
    pairs = target.items() if isinstance(target, Mapping) else [(target, 1.0)]
    weights = []
    for index, weight in pairs:
        if isinstance(index, bool) or not isinstance(index, int | np.integer | tuple):
            raise InputError(
                f"target must be 'predicted', a class index, a place such as (position, class), or "
                f"a mapping of these to weights, found {target!r}"
            )
        size: Any = abs(weight) if isinstance(weight, Real) else math.nan
        if not size <= sys.float_info.max:
            raise InputError(f"the weight of target {index} must be finite, found {weight!r}")
        weights.append((index, float(weight)))
    return weights


def places(target: Target, output: Tensor, outputs: Outputs) -> list[int]:
    """Flat index of a target for every sample of a batch."""
    if isinstance(target, str) or (isinstance(target, tuple) and "predicted" in target):
        return [outputs.index(target, values) for values in output.cpu().double().numpy()]
    return [outputs.index(target)] * len(output)


def initial_relevance(state: State, weights: Tensor) -> Tensor:
    """Return the initial relevance ``w y / sum(w y)`` of signed output weights, ``(N, outputs)``.

    For one target this is 1 at the target.

    Raises
    ------
    InputError
        If the weighted sum of outputs is zero: its shares are undefined.
    """
    single = (weights != 0).sum(1, keepdim=True) == 1
    shares = weights * state.output
    total = shares.sum(1, keepdim=True)
    if bool(((total == 0) & ~single).any()):
        raise InputError("the weighted sum of the target outputs is zero: shares are undefined")
    return torch.where(single, (weights != 0).to(shares.dtype), shares / total)
