"""First-order expansion of operations that users registered: any function becomes linear."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import CompositeError, TraceError, first_line
from nrm_graph.network.ir.interpreter import resolve
from nrm_graph.network.ir.operations import WEIGH, function
from nrm_graph.network.maps.linear import MAX_JACOBIAN, Jacobian, Moving, Weighing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from nrm_graph.network.ir.program import Node, Program


def expanded(node: Node, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> Weighing:
    """Weigh what an operation reads by its Jacobian at each input; the rest is its bias.

    ``z = sum_k J_k x_k + (z - sum_k J_k x_k)``, so that every rule for linear operations applies
    and its columns sum to 1.

    Raises
    ------
    TraceError
        If the Jacobian of one sample has more than ``MAX_JACOBIAN`` entries.  (An operation without
        a derivative raises CompositeError at the first input.)
    """
    operands = tuple(dict.fromkeys(node.references()))
    z = shapes[node.name]
    entries = max(math.prod(z) * math.prod(shapes[name]) for name in operands)
    batches = program.batches()
    if entries > MAX_JACOBIAN or not all(batches[name].plain for name in (node.name, *operands)):
        raise TraceError(
            f"{node.op} in {node.module or 'the model itself'} cannot be expanded: its Jacobian "
            f"has {entries:,} entries a sample, expected at most {MAX_JACOBIAN:,}, and the batch "
            "must be in front"
        )
    call = function(node.op)

    def output(*xs: Tensor) -> Tensor:
        """One sample's output, as a function of its operands."""
        values: dict[str, Any] = {n: x[None] for n, x in zip(operands, xs, strict=True)}
        weights = {name: w.to(xs[0].device) for name, w in program.weights.items()}
        args = resolve(node.args, values, weights, 1)
        kwargs = {key: resolve(value, values, weights, 1) for key, value in node.kwargs}
        return call(*args, **kwargs)[0]  # type: ignore[no-any-return]

    def jacobian(k: int, *xs: Tensor) -> Tensor:
        matrices = []
        for sample in zip(*xs, strict=True):
            at = partial(_replaced, output, sample, k)
            try:
                with torch.enable_grad():
                    matrices.append(torch.autograd.functional.jacobian(at, sample[k]))  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                raise CompositeError(
                    f"{node.op} in {node.module or 'the model itself'} cannot be differentiated, "
                    f"which its expansion needs: {first_line(error)}"
                ) from error
        return torch.stack(matrices).reshape(len(matrices), math.prod(z), -1)

    def rest(z_: Tensor, *xs: Tensor) -> Tensor:
        for k, x in enumerate(xs):
            z_ = z_ - Jacobian(z).apply(x, jacobian(k, *xs))
        return z_

    maps = (Jacobian(z),) * len(operands)
    weights = tuple(Moving(operands, partial(jacobian, k), x) for k, x in enumerate(operands))
    bias = Moving((node.name, *operands), rest, node.name)
    return Weighing(WEIGH[node.op], operands, maps, weights, bias)


def _replaced(call: Callable[..., Tensor], xs: tuple[Tensor, ...], k: int, x: Tensor) -> Tensor:
    """Call a function with its operand k replaced."""
    return call(*xs[:k], x, *xs[k + 1 :])
