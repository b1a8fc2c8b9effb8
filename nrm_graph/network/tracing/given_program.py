"""The program of what a user gives as a model: traced, or taken as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.errors import InputError
from nrm_graph.network.ir.input_spec import arranged, in_order
from nrm_graph.network.ir.program import Program
from nrm_graph.network.tracing.torch_modules import plain
from nrm_graph.network.tracing.trace_as_given import traced

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.tracing.output_choice import Choice


def program_of(
    model: torch.nn.Module | Program, x: Inputs, output: Choice = None, what: str = "x"
) -> tuple[Program, tuple[Tensor, ...]]:
    """Return the program of a model, and an input as it takes it; a program is not traced again.

    Parameters
    ----------
    model : nn.Module, ExportedProgram or Program
        The network.
    x : Tensor, or a tuple or mapping of tensors
        One input.
    output : str, int, or list of them, optional
        See :func:`nrm_graph.measure`.
    what : str
        What to call the input in messages.

    Raises
    ------
    InputError, TraceError
        If the network cannot be traced, or takes another input.
    """
    if not isinstance(model, Program):
        network = plain(model)
        return traced(network, *in_order(network, x, what), output)
    if output is not None:
        raise InputError(
            "model is a traced program, whose output was chosen by ng.trace(..., output=): "
            "leave output= out here"
        )
    return model, arranged(x, [name for name, _ in model.inputs], what)
