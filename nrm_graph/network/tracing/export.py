"""The exported graph of a network with a free batch size, in operations that have a rule."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING

import torch

from nrm_graph.errors import TraceError, first_line
from nrm_graph.network.ir.operations import overload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.export import ExportedProgram

    from nrm_graph.network.tracing.output_choice import Chosen

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

MAX_STEPS = 2_000
"""Steps of recurrent networks that are unrolled."""


def export(around: Chosen, examples: Sequence[Tensor]) -> ExportedProgram:
    """Export a network with a dynamic batch axis.

    Parameters
    ----------
    around : Chosen
        Calls the network as its child.
    examples : sequence of Tensor, (1, ...)
        Its inputs.

    Returns
    -------
    torch.export.ExportedProgram

    Raises
    ------
    TraceError
        If torch.export refuses the network, or a recurrent one takes very many steps.
    """
    batch = torch.export.Dim("batch", min=1)
    pairs = tuple(torch.cat([x, x]) for x in examples)
    known = torch.export.default_decompositions()
    name = type(around.network).__name__
    try:
        with _quiet():
            exported = torch.export.export(  # torch 2.9 exports no ``*inputs`` of one batch
                around, (pairs,), dynamic_shapes=(tuple({0: batch} for _ in pairs),)
            )
            _bound_unrolling(exported)
            composite = [overload(f"aten.{name}") for name in _COMPOSITE]
            return exported.run_decompositions(  # type: ignore[no-any-return]
                {op: known[op] for op in composite if op in known}
            )
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(_untraced(name, error)) from error


def _untraced(name: str, error: Exception) -> str:
    """Why torch.export cannot trace a network, in a line."""
    reason = first_line(error)
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        lines = [line.strip() for line in str(error).splitlines()]
        at = next((i for i, line in enumerate(lines) if line.startswith("File ")), None)
        code = f" ({lines[at + 1]})" if at is not None and at + 1 < len(lines) else ""
        return (
            f"the forward of {name} branches or sizes something by the values of its input{code}: "
            "a traced network does the same for every input; rewrite that, or explain the part of "
            "the network that does without"
        )
    return (
        f"torch.export cannot trace {name} with a free batch size: {reason}; what depends on the "
        "input's values, on a fixed batch size or leaves torch cannot be traced"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says of an export to itself, and fused attention out of it."""
    logger, fast = logging.getLogger("torch"), torch.backends.mha.get_fastpath_enabled()
    level = logger.level
    torch.backends.mha.set_fastpath_enabled(False)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints graphs
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def _bound_unrolling(exported: ExportedProgram) -> None:
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
