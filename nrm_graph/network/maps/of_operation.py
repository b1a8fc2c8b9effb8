"""How each operation of a program weighs what it reads: its maps, weights and bias."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from nrm_graph.errors import TraceError
from nrm_graph.network.ir.held_weights import held, wide
from nrm_graph.network.ir.operations import REGISTERED, WEIGH, function
from nrm_graph.network.ir.program import Ref, Weight
from nrm_graph.network.maps.average_pooling import Window
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.network.maps.interpolation import taps
from nrm_graph.network.maps.jacobian import expanded
from nrm_graph.network.maps.linear import Dense, Left, Moving, Right, Scale, Spread, Weighing, same

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import Tensor

    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.network.ir.program import Node, Program


def _tuple(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n
    numbers = tuple(value)
    return numbers * n if len(numbers) == 1 else numbers


def weighing(
    node: Node,
    program: Program,
    shapes: Mapping[str, tuple[int, ...]],
    passive: Collection[str] = (),
) -> Weighing:
    """Read the linear map of a program node that weighs its inputs.

    Parameters
    ----------
    shapes : mapping
        Native shape of every value for a batch of one.
    passive : collection of str
        Values that carry no relevance.

    Raises
    ------
    TraceError
        If the weight of a convolution or dense layer depends on the input.
    """
    # As they are held: they take the type of the operand when they are read.
    kind, args, weights = WEIGH[node.op], node.args, held(program.weights)

    def tensor(i: int) -> Tensor | None:
        argument = args[i] if len(args) > i else None
        return weights[argument.name] if isinstance(argument, Weight) else None

    if node.op in REGISTERED:
        return expanded(node, program, shapes)
    if kind in ("product", "attention", "gate", "multiplication"):
        return _bilinear(kind, args[0].name, args[1].name)
    if kind == "softmax":
        x, axis = args[0].name, args[1] % len(shapes[args[0].name])
        shares = Moving((node.name,), same, node.name)
        return Weighing(kind, (x, x), (Scale(), Spread((axis,))), (None, shares), None)
    if kind == "rms_norm":
        return _rms_norm(node, tensor(2), len(args[1]))
    if kind in ("layer_norm", "group_norm", "instance_norm"):
        return _norm(node, kind, tensor, shapes[args[0].name])
    if kind == "interpolation":
        return _interpolation(node, shapes)
    if kind == "convolution":
        return _convolution(node, tensor, shapes)
    if kind == "dense":
        return _dense(node, tensor)
    if kind == "sum" and node.op != "aten.sum.dim_IntList":
        return _sum(node, weights, passive)
    if kind == "batch_norm":
        return _batch_norm(node, tensor, shapes)
    return _average(node, shapes, program.batches()[args[0].name])


def _refused(node: Node, why: str) -> TraceError:
    return TraceError(f"{node.op} in {node.module or 'the model itself'}: {why}")


def _interpolation(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Weighing:
    source = node.args[0].name
    *rest, scales = node.args[2:]
    n = len(shapes[source]) - 2
    gathered, shares = taps(function(node.op), shapes[source][-n:], node.args[1], rest, scales)
    return Weighing("interpolation", (source,), (gathered,), (shares,), None)


def _convolution(
    node: Node,
    tensor: Callable[[int], Tensor | None],
    shapes: Mapping[str, tuple[int, ...]],
) -> Weighing:
    args, weight, shift = node.args, tensor(1), tensor(2)
    if weight is None:
        raise _refused(node, "its weight depends on the input, expected a parameter")
    if len(shapes[args[0].name]) != weight.ndim or node.batch.axis:
        raise _refused(node, "expected the batch on the first axis")
    n = weight.ndim - 2
    transposed = "transpose" in node.op
    rest = [*args[3:], *[None] * 5]
    if transposed:
        stride, padding, out_padding, groups, dilation = rest[:5]
    else:
        stride, padding, dilation, groups = rest[:4]
        out_padding = None
    skip = (0,) * n
    if isinstance(padding, str):
        totals = [
            d * (k - 1) if padding == "same" else 0
            for d, k in zip(_tuple(dilation or 1, n), weight.shape[2:], strict=True)
        ]
        padding = tuple(total - total // 2 for total in totals)
        skip = tuple(total % 2 for total in totals)
    conv = Convolution(
        _tuple(stride or 1, n),
        _tuple(padding or 0, n),
        _tuple(dilation or 1, n),
        transposed,
        _tuple(out_padding or 0, n),
        groups or 1,
        skip,
    )
    shift = None if shift is None else shift.reshape((1, -1) + (1,) * n)
    return Weighing("convolution", (args[0].name,), (conv,), (weight,), shift)


def _sum(node: Node, weights: Mapping[str, Tensor], passive: Collection[str]) -> Weighing:
    """Sum or difference; what carries no relevance is its bias."""
    args = node.args
    sign = (-1.0 if node.op.startswith("aten.sub") else 1.0) * dict(node.kwargs).get("alpha", 1)
    operands, scales = [], []
    bias: Tensor | Moving | None = None
    for i, factor in ((0, 1.0), (1, sign)):
        if isinstance(args[i], Ref) and args[i].name in passive:
            bias = Moving((args[i].name,), same, args[i].name, factor=factor)
        elif isinstance(args[i], Ref):
            operands.append(args[i].name)
            scales.append(None if factor == 1.0 else torch.tensor(factor, dtype=torch.float64))
        elif isinstance(args[i], Weight):
            bias = wide(weights[args[i].name]) * factor
        else:
            bias = torch.tensor(float(args[i]) * factor, dtype=torch.float64)
    return Weighing("sum", tuple(operands), (Scale(),) * len(operands), tuple(scales), bias)


def _batch_norm(
    node: Node,
    tensor: Callable[[int], Tensor | None],
    shapes: Mapping[str, tuple[int, ...]],
) -> Weighing:
    scale, shift = tensor(1), tensor(2)
    if scale is None or shift is None:
        raise _refused(node, "its scale and shift must be constants")
    shape = (-1,) + (1,) * (len(shapes[node.name]) - 2)
    return Weighing(
        "batch_norm",
        (node.args[0].name,),
        (Scale(),),
        (scale.reshape(shape),),
        shift.reshape(shape),
    )


def _average(node: Node, shapes: Mapping[str, tuple[int, ...]], batch: BatchAxis) -> Weighing:
    source = node.args[0].name
    shape = shapes[source]
    if node.op in ("aten.mean.dim", "aten.sum.dim_IntList"):
        axes = {d % len(shape) for d in node.args[1] or range(len(shape))}
        if batch.axis in axes:
            raise TraceError(f"{node.op} in {node.module}: it averages over the batch")
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        window = Window(tuple(((0, n),) if d in axes else None for d, n in enumerate(shape)), keep)
        if node.op == "aten.sum.dim_IntList":
            return Weighing("sum", (source,), (window,), (None,), None)
        share = torch.tensor(1 / math.prod(shape[d] for d in axes), dtype=torch.float64)
        return Weighing("average", (source,), (window,), (share,), None)
    window = _window(node, shape, shapes[node.name])
    ones = torch.ones(shape, dtype=torch.float64)
    # The divisor (padding counted or not, clipped windows) is torch's own: average over sum.
    unit = torch.ones((), dtype=torch.float64)
    share = function(node.op)(ones, *node.args[1:], **dict(node.kwargs)) / window.apply(ones, unit)
    share = share.narrow(node.batch.axis, 0, 1)
    return Weighing("average", (source,), (window,), (share,), None)


def _window(node: Node, shape: tuple[int, ...], output: tuple[int, ...]) -> Window:
    args = node.args
    n = int(node.op.split("pool")[1][0])
    inputs, outputs = shape[-n:], output[-n:]
    free = (None,) * (len(shape) - n)
    if "adaptive" in node.op:
        spans = (
            tuple((o * i // out, -(-(o + 1) * i // out)) for o in range(out))
            for i, out in zip(inputs, outputs, strict=True)
        )
        return Window((*free, *spans))
    kernel = _tuple(args[1], n)
    stride = _tuple(args[2], n) if len(args) > 2 and args[2] else kernel
    padding = _tuple(args[3], n) if len(args) > 3 else (0,) * n
    spans = (
        tuple(
            (max(o * s - p, 0), max(min(o * s - p + k, i), max(o * s - p, 0))) for o in range(out)
        )
        for i, out, k, s, p in zip(inputs, outputs, kernel, stride, padding, strict=True)
    )
    return Window((*free, *spans))


def _dense(node: Node, tensor: Callable[[int], Tensor | None]) -> Weighing:
    args = node.args
    if node.op == "aten.linear.default":
        weight, bias = tensor(1), tensor(2)
        if weight is None:
            raise _refused(node, "its weight depends on the input, expected a parameter")
        return Weighing("dense", (args[0].name,), (Dense(),), (weight,), bias)
    if node.op == "aten.addmm.default":
        weight, bias = tensor(2), tensor(0)
        if not isinstance(args[1], Ref) or weight is None or bias is None or node.kwargs:
            raise _refused(node, "expected a constant weight and bias, without factors")
        return Weighing("dense", (args[1].name,), (Dense(),), (weight.T,), bias)
    left, right = tensor(0), tensor(1)
    if left is not None and left.ndim > 1 and isinstance(args[1], Ref):
        return Weighing("dense", (args[1].name,), (Left(),), (left,), None)
    if not isinstance(args[0], Ref) or right is None or right.ndim < 2:
        raise _refused(node, "expected a product with a constant matrix")
    if right.ndim > 2:
        return Weighing("dense", (args[0].name,), (Right(),), (right,), None)
    return Weighing("dense", (args[0].name,), (Dense(),), (right.T,), None)


def _bilinear(kind: str, a: str, b: str) -> Weighing:
    """Product of two values: half of each is the other's weight."""
    maps = (Right(), Left()) if kind in ("product", "attention") else (Scale(), Scale())
    halves = Moving((b,), same, b, factor=0.5), Moving((a,), same, a, factor=0.5)
    return Weighing(kind, (a, b), maps, halves, None)


def _rms_norm(node: Node, gain: Tensor | None, axes: int) -> Weighing:
    eps = node.args[3] if len(node.args) > 3 else None

    def scale(x: Tensor, *gains: Tensor) -> Tensor:
        least = torch.finfo(x.dtype).eps if eps is None else eps
        square = x.square().mean(tuple(range(x.ndim - axes, x.ndim)), keepdim=True)
        return math.prod(gains, start=(square + least).rsqrt())

    x = node.args[0].name
    weight = Moving((x,), scale, x, () if gain is None else (gain,))
    return Weighing("rms_norm", (x,), (Scale(),), (weight,), None)


def _norm(
    node: Node, kind: str, tensor: Callable[[int], Tensor | None], shape: tuple[int, ...]
) -> Weighing:
    """``(x_j - mean) gain / std + shift``: linear once the standard deviation is held constant."""
    args, x = node.args, node.args[0].name
    if kind == "layer_norm":
        gain, shift, eps = tensor(2), tensor(3), args[4] if len(args) > 4 else 1e-5
        sets = Spread(tuple(range(len(shape) - len(args[1]), len(shape))))
    else:
        first = 2 if kind == "group_norm" else 1
        gain, shift = (
            None if parameter is None else parameter.reshape(1, -1, *[1] * (len(shape) - 2))
            for parameter in (tensor(first), tensor(first + 1))
        )
        if kind == "group_norm":
            sets, eps = Spread((), args[1]), args[4] if len(args) > 4 else 1e-5
        else:
            sets, eps = Spread(tuple(range(2, len(shape)))), args[7]

    size = sets.dense_edges(shape, shape, ()) // math.prod(shape)

    def scale(x: Tensor, *gains: Tensor) -> Tensor:
        spread = (sets.variance(x) + eps).rsqrt()
        return math.prod(gains, start=spread.expand(x.shape))

    gains = () if gain is None else (gain,)
    weights = Moving((x,), scale, x, gains), Moving((x,), scale, x, gains, -1 / size)
    return Weighing(kind, (x, x), (Scale(), sets), weights, shift)
