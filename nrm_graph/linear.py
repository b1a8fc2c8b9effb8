"""The linear maps behind the operations that weigh their inputs.

Each map computes ``z = f(x; w)``, bilinear in the operand x and the weight w, such that every
edge's weight is one entry of w.  Rules transform x and w elementwise and need three things of
a map: ``apply``, its transpose in x, and (for tables) its gradient in w.

Maps compute with native values (see :mod:`nrm_graph.batching`); the shapes given to ``triples``
and ``dense_edges`` are native shapes of a batch of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nrm_graph.convolution import Convolution, Triples, pieces
from nrm_graph.errors import CompositeError, TraceError
from nrm_graph.operations import UNRULED, WEIGH, function
from nrm_graph.program import Ref, Weight
from nrm_graph.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from nrm_graph.batching import BatchAxis
    from nrm_graph.program import Node, Program


@dataclass(frozen=True)
class Dense:
    """``z = x @ w.T`` on the last axis."""

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., in)`` and ``(out, in)`` to ``(..., out)``."""
        return torch.nn.functional.linear(x, w, bias)

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return s @ w

    def triples(
        self,
        z: tuple[int, ...],
        x: tuple[int, ...],
        w: tuple[int, ...],
        channels: range | None = None,
        lines: range | None = None,
    ) -> Triples:
        """Neuron-level edges; of some outputs (``channels``) at some tokens (``lines``)."""
        rows = np.arange(math.prod(z[:-1])) if lines is None else np.array(lines)
        outs = np.arange(w[0]) if channels is None else np.array(channels)
        r, o, i = (a.ravel() for a in np.meshgrid(rows, outs, np.arange(w[1]), indexing="ij"))
        return r * w[0] + o, r * w[1] + i, o * w[1] + i

    def chunks(
        self,
        z: tuple[int, ...],
        x: tuple[int, ...],
        w: tuple[int, ...],
        size: int,
        whole: bool = False,
    ) -> list[tuple[range, range | None]] | None:
        """Return outputs and tokens of pieces of about ``size`` edges."""
        if whole:  # channels of tokens are no outputs of their own
            return None
        return pieces(w[0], math.prod(z[:-1]), self.dense_edges(z, x, w), size)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z) * w[1]


@dataclass(frozen=True)
class Scale:
    """Elementwise ``z = x * w``, with broadcasting: the operand of a sum, or a batch-norm."""

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Broadcast product."""
        return x * w if bias is None else x * w + bias

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return (s * w).sum_to_size(x.shape)

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""
        out = np.arange(math.prod(z))

        def spread(shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
            index = np.arange(math.prod(shape)).reshape(shape)
            return np.ascontiguousarray(np.broadcast_to(index, z)).ravel()

        return out, spread(x), spread(w)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z)


@dataclass(frozen=True)
class Opaque:
    """An operation that no rule knows yet: only the number of its edges is known.

    Attributes
    ----------
    kind : str
        For messages.
    fan : int
        Entries of the operand that one output reads.
    """

    kind: str
    fan: int

    def _refuse(self) -> CompositeError:
        return CompositeError(f"there is no rule for the kind {self.kind} in this release")

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Refuse."""
        raise self._refuse()

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Refuse."""
        raise self._refuse()

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Refuse."""
        raise self._refuse()

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z) * self.fan


Map = Convolution | Dense | Scale | Window | Opaque


@dataclass(frozen=True, eq=False)
class Weighing:
    """An operation that weighs its inputs: ``z = sum_k maps[k](x_k; w_k) + bias``.

    Attributes
    ----------
    kind : str
        Kind of the layer it makes.
    operands : tuple of str
        Values read.
    maps, weights : tuples, one entry per operand
        A weight of ``None`` is the number 1.
    bias : Tensor or None
        Broadcastable to z.
    """

    kind: str
    operands: tuple[str, ...]
    maps: tuple[Map, ...]
    weights: tuple[Tensor | None, ...]
    bias: Tensor | None

    def weight(self, k: int, like: Tensor) -> Tensor:
        """Weight of operand k, in the dtype and on the device of ``like``."""
        found = self.weights[k]
        if found is None:
            return torch.ones((), dtype=like.dtype, device=like.device)
        return found.to(like.device, like.dtype)

    def resolved(self, like: Tensor) -> Weighing:
        """Give every weight its value, and all tensors the dtype and device of ``like``."""
        weights = tuple(self.weight(k, like) for k in range(len(self.operands)))
        bias = None if self.bias is None else self.bias.to(like.device, like.dtype)
        return replace(self, weights=weights, bias=bias)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Weights of a resolved operation."""
        return tuple(w for w in self.weights if w is not None)

    def dense_edges(self, k: int, z: tuple[int, ...], x: tuple[int, ...]) -> int:
        """Count the neuron-level edges to operand k."""
        found = self.weights[k]
        return self.maps[k].dense_edges(z, x, tuple(found.shape) if found is not None else ())


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n
    found = tuple(value)
    return found * n if len(found) == 1 else found


def weighing(node: Node, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> Weighing:
    """Read the linear map of a program node that weighs its inputs.

    ``shapes`` gives the native shape of every value for a batch of one.

    Raises
    ------
    TraceError
        If a weight depends on the input.
    """
    kind, args, weights = WEIGH[node.op], node.args, program.weights
    kwargs = dict(node.kwargs)

    def tensor(i: int) -> Tensor | None:
        found = args[i] if len(args) > i else None
        return weights[found.name] if isinstance(found, Weight) else None

    def refuse(why: str) -> TraceError:
        return TraceError(f"{node.op} in {node.module or 'the model itself'}: {why}")

    if kind in UNRULED or node.op == "aten.sum.dim_IntList":
        return _opaque(node, kind, shapes)
    if kind == "convolution":
        weight, bias = tensor(1), tensor(2)
        if weight is None:
            raise refuse("its weight depends on the input, expected a parameter")
        if len(shapes[args[0].name]) != weight.ndim or node.batch.axis:
            raise refuse("expected the batch on the first axis")
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
        shape = (1, -1) + (1,) * n
        bias = None if bias is None else bias.reshape(shape)
        return Weighing(kind, (args[0].name,), (conv,), (weight,), bias)
    if kind == "dense":
        return _dense(node, tensor, refuse)
    if kind == "sum":
        sign = (-1.0 if node.op.startswith("aten.sub") else 1.0) * kwargs.get("alpha", 1)
        operands, scales = [], []
        bias = None
        for i, factor in ((0, 1.0), (1, sign)):
            if isinstance(args[i], Ref):
                operands.append(args[i].name)
                scales.append(None if factor == 1.0 else torch.tensor(factor, dtype=torch.float64))
            elif isinstance(args[i], Weight):
                bias = weights[args[i].name] * factor
            else:
                bias = torch.tensor(float(args[i]) * factor, dtype=torch.float64)
        return Weighing(kind, tuple(operands), (Scale(),) * len(operands), tuple(scales), bias)
    if kind == "batch_norm":
        scale, shift = tensor(1), tensor(2)
        if scale is None or shift is None:
            raise refuse("its scale and shift must be constants")
        shape = (-1,) + (1,) * (len(shapes[node.name]) - 2)
        return Weighing(
            kind, (args[0].name,), (Scale(),), (scale.reshape(shape),), shift.reshape(shape)
        )
    return _average(node, kwargs, shapes, program.batches()[args[0].name])


def _average(
    node: Node,
    kwargs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    batch: BatchAxis,
) -> Weighing:
    source = node.args[0].name
    shape = shapes[source]
    if node.op == "aten.mean.dim":
        axes = {d % len(shape) for d in node.args[1] or range(len(shape))}
        if batch.axis in axes:
            raise TraceError(f"{node.op} in {node.module}: it averages over the batch")
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        window = Window(tuple(((0, n),) if d in axes else None for d, n in enumerate(shape)), keep)
        count = math.prod(shape[d] for d in axes)
        return Weighing(
            "average", (source,), (window,), (torch.tensor(1 / count, dtype=torch.float64),), None
        )
    window = _window(node, shape, shapes[node.name])
    ones = torch.ones(shape, dtype=torch.float64)
    # The divisor (padding counted or not, clipped windows) is torch's own: average over sum.
    unit = torch.ones((), dtype=torch.float64)
    share = function(node.op)(ones, *node.args[1:], **kwargs) / window.apply(ones, unit)
    share = share.narrow(node.batch.axis, 0, 1)
    return Weighing("average", (source,), (window,), (share,), None)


def _window(node: Node, shape: tuple[int, ...], output: tuple[int, ...]) -> Window:
    args = node.args
    n = int(node.op.split("pool")[1][0])
    inputs, outputs = shape[-n:], output[-n:]
    free: tuple[None, ...] = (None,) * (len(shape) - n)
    if "adaptive" in node.op:
        return Window(
            free
            + tuple(
                tuple((o * i // out, -(-(o + 1) * i // out)) for o in range(out))
                for i, out in zip(inputs, outputs, strict=True)
            )
        )
    kernel = _tuple(args[1], n)
    stride = _tuple(args[2], n) if len(args) > 2 and args[2] else kernel
    padding = _tuple(args[3], n) if len(args) > 3 else (0,) * n
    return Window(
        free
        + tuple(
            tuple(
                (max(o * s - p, 0), max(min(o * s - p + k, i), max(o * s - p, 0)))
                for o in range(out)
            )
            for i, out, k, s, p in zip(inputs, outputs, kernel, stride, padding, strict=True)
        )
    )


def _dense(node: Node, tensor: Any, refuse: Any) -> Weighing:
    args = node.args
    if node.op == "aten.linear.default":
        if tensor(1) is None:
            raise refuse("its weight depends on the input, expected a parameter")
        return Weighing("dense", (args[0].name,), (Dense(),), (tensor(1),), tensor(2))
    if node.op == "aten.addmm.default":
        if not isinstance(args[1], Ref) or tensor(2) is None or tensor(0) is None or node.kwargs:
            raise refuse("expected a constant weight and bias, without factors")
        return Weighing("dense", (args[1].name,), (Dense(),), (tensor(2).T,), tensor(0))
    right = tensor(1)
    if not isinstance(args[0], Ref) or right is None or right.ndim != 2:
        raise refuse(
            "a product with a constant on the left, or one of more than two axes, is not known; "
            "expected x @ constant matrix"
        )
    return Weighing("dense", (args[0].name,), (Dense(),), (right.T,), None)


def _opaque(node: Node, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> Weighing:
    operands = tuple(a.name for a in node.args if isinstance(a, Ref))
    x, fan = shapes[operands[0]], 1
    if kind in ("layer_norm", "rms_norm"):
        fan = math.prod(node.args[1])
    elif kind == "group_norm":
        fan = math.prod(x[1:]) // node.args[1]
    elif kind == "instance_norm":
        fan = math.prod(x[2:])
    elif kind == "softmax":
        fan = x[node.args[1]]
    elif kind in ("product", "attention"):
        fan = x[-1]
    elif kind == "interpolation":
        fan = (4 if "bicubic" in node.op else 2) ** (len(x) - 2)
    maps = (Opaque(kind, fan),) * len(operands)
    return Weighing(kind, operands, maps, (None,) * len(operands), None)
