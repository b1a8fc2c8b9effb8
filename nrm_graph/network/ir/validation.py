"""A stranger's program, checked before anything of it runs on data.

Every operation is run on tensors of the ``meta`` device, which have shapes but no memory: what
does not fit, or would take absurd memory, shows there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrm_graph.errors import NotRegistered, StoreError, first_line
from nrm_graph.network.ir.finite import finite
from nrm_graph.network.ir.interpreter import resolve
from nrm_graph.network.ir.operations import CARRYING, SUPPORTED, function
from nrm_graph.network.ir.program import Weight, passive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.network.ir.program import Node, Program

MAX_NODES = 100_000
MAX_PARTS = 100_000
"""Values that one operation may split another into."""
MAX_ELEMENTS = 1 << 30
"""Of one value, for one sample: 4 GiB."""
MAX_TOTAL = 1 << 32
MAX_INTEGER = 1 << 31
_LAST = (1 << 63) - 1  # torch's end of a slice to the end
_KINDS = (torch.int64, torch.int32, torch.bool)

PROBLEMS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)
"""What torch, and code that trusts a program, raise where the program is not sound."""

SHOWN = 300
"""Characters of such an error that are shown."""


def vet(program: Program) -> None:
    """Check that a program is sound: operations, arguments, shapes, sizes and tensors.

    Parameters
    ----------
    program : Program
        As read from a store; nothing in it is trusted.

    Raises
    ------
    StoreError
        Naming the node or tensor that is wrong.
    """
    foreign = sorted({node.op for node in program.nodes} - SUPPORTED)
    if foreign:
        names = ", ".join(foreign)[:200]
        raise NotRegistered(
            f"the program names operations that are not allowed: {names}; those of one's own are "
            "after nrm_graph.register_operation, in the process that asks"
        )
    if len(program.nodes) > MAX_NODES:
        raise StoreError(
            f"the program has {len(program.nodes):,} nodes, expected at most {MAX_NODES:,}"
        )
    for name, tensor in program.weights.items():
        if not tensor.is_floating_point() and tensor.dtype not in _KINDS:
            raise StoreError(f"the tensor {name!r} of the program has the type {tensor.dtype}")
        if not finite(tensor) and bool(torch.isnan(tensor).any()):
            raise StoreError(f"the tensor {name!r} of the program holds NaN")
    # In one dtype, as a pass is computed in one, whatever the network was trained in.
    weights = {
        name: tensor.to("meta", torch.float32 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in program.weights.items()
    }
    values: dict[str, Any] = {}
    total = 0
    for name, shape in program.inputs:
        _bounded(f"the input {name}", shape)
        kind = torch.int64 if name in program.integers else torch.float32
        values[name] = torch.empty((1, *shape), dtype=kind, device="meta")
    rest = passive(program)
    with torch.no_grad():
        for node in program.nodes:
            name = f"the node {node.name} ({node.op})"
            try:
                _plain(node)
                args = resolve(node.args, values, weights, 1)
                kwargs = {key: resolve(option, values, weights, 1) for key, option in node.kwargs}
                _few(node.op, args)
                _within(node, args, program.weights)
                if node.op not in CARRYING and node.name not in rest:
                    raise ValueError("relevance cannot pass it")
                value = function(node.op)(*args, **kwargs)
            except PROBLEMS as error:
                raise StoreError(
                    f"{name} of the program cannot be executed: {first_line(error)[:SHOWN]}"
                ) from error
            for part in value if isinstance(value, tuple | list) else [value]:
                if not isinstance(part, Tensor):
                    raise StoreError(f"{name} of the program gives no tensor")
                total += _bounded(name, part.shape)
            if isinstance(value, Tensor):
                _stated(name, node, tuple(value.shape))
            values[node.name] = value
            if total > MAX_TOTAL:
                raise StoreError(f"the program needs more than {MAX_TOTAL:,} numbers up to {name}")
    if not isinstance(values[program.output], Tensor):
        raise StoreError(f"the output of the program, {program.output}, is no tensor")


def _bounded(name: str, shape: Sequence[int]) -> int:
    if any(length < 0 for length in shape):
        raise StoreError(f"{name} of the program has the shape {tuple(shape)}")
    size = math.prod(shape)
    if size > MAX_ELEMENTS:
        raise StoreError(
            f"{name} of the program would hold {size:,} numbers, expected at most {MAX_ELEMENTS:,}"
        )
    return size


def _stated(name: str, node: Node, shape: tuple[int, ...]) -> None:
    """Compare a value's shape with the one that the program states."""
    batch = node.batch
    sound = 0 <= batch.axis < max(1, len(shape)) and batch.outer >= 1 and batch.inner >= 1
    if not sound or batch.native_shape(node.shape) != shape:
        raise StoreError(
            f"{name} of the program gives the shape {shape}, which is not the one that the "
            "program states"
        )


def _plain(node: Node) -> None:
    for value in node.leaves():
        if isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER and value != _LAST:
            raise ValueError(f"an argument is {value}")


def _within(node: Node, args: list[Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse constant indices that are out of range, which show nowhere but in the data."""
    if node.op == "aten.index_select.default":
        pairs = [(args[0].shape[args[1]], node.args[2])]
    elif node.op == "aten.index.Tensor":
        pairs = list(zip(args[0].shape, node.args[1], strict=False))
    else:
        return
    for size, index in pairs:
        if not isinstance(index, Weight):
            continue
        places = weights[index.name]
        if places.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"an index has the type {places.dtype}")
        if places.numel() and not (-size <= int(places.min()) and int(places.max()) < size):
            raise ValueError(f"an index is out of range for a size of {size}")


def _few(op: str, args: list[Any]) -> None:
    """Refuse to cut a value into absurdly many."""
    if op not in ("aten.unbind.int", "aten.split.Tensor", "aten.chunk.default"):
        return
    at = 1 if op == "aten.unbind.int" else 2
    parts = args[0].shape[args[at] if len(args) > at else 0]
    if op == "aten.split.Tensor":
        parts //= max(1, args[1])
    if op == "aten.chunk.default":
        parts = min(parts, args[1])
    if parts > MAX_PARTS:
        raise ValueError(f"it cuts a value into {parts:,}")
