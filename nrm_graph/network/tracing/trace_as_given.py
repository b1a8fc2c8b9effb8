"""Tracing with an input as it was given: whole numbers may stand for ids or for floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nrm_graph.errors import InputError
from nrm_graph.network.ir.held_weights import HALF
from nrm_graph.network.ir.input_spec import candidates
from nrm_graph.network.tracing.trace import trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nrm_graph.network.ir.input_spec import Names
    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.tracing.output_choice import Choice


def traced(
    model: torch.nn.Module, names: Names, xs: Sequence[Tensor], output: Choice = None
) -> tuple[Program, tuple[Tensor, ...]]:
    """Trace a network with one input, and return that as the network takes it.

    Parameters
    ----------
    names : tuple of str, or None
        Keywords of the inputs, or None for the first arguments.
    xs : sequence of Tensor
        The inputs.
    output : str, int, or list of them, optional
        See :func:`nrm_graph.measure`.

    Raises
    ------
    TraceError, InputError
        If the network cannot be traced, or takes whole numbers neither as such nor as floats.
    """
    floats = (t for t in (*model.parameters(), *xs) if t.is_floating_point())
    like = next(floats, torch.empty(0))
    errors = []
    for example in candidates(xs, like):
        try:
            alone = example if len(example) > 1 else example[0]
            named = dict(zip(names, example, strict=True)) if names else None
            program = trace(model, alone if named is None else named, output)
            # A pass in float32 begins with the caller's numbers, not with half precision's.
            return program, tuple(
                x.to(e.device, torch.float32) if e.dtype in HALF else e
                for x, e in zip(xs, example, strict=True)
            )
        except InputError as error:
            errors.append(error)
    # A lone input of whole numbers was tried as floats first, which tells nothing of token ids.
    ids = len(xs) == 1 and xs[0].dtype in (torch.int32, torch.int64)
    raise errors[-1] if ids else errors[0]
