"""The linear maps behind the operations that weigh their inputs.

Each map computes ``z = f(x; w)``, bilinear in the operand x and the weight w, such that every
edge's weight is one entry of w.  Rules transform x and w elementwise and need three things of
a map: ``apply``, its transpose in x, and (for tables) its gradient in w.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nrm_graph.errors import TraceError
from nrm_graph.operations import WEIGH, function
from nrm_graph.program import Ref, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from nrm_graph.program import Node

Triples = tuple["npt.NDArray[np.int64]", "npt.NDArray[np.int64]", "npt.NDArray[np.int64]"]
"""Output neuron, operand neuron and weight entry of every neuron-level edge."""


@dataclass(frozen=True)
class Convolution:
    """Convolution or transposed convolution of any dimension.

    ``skip`` drops the first outputs of an axis: ``padding="same"`` with an even kernel pads one
    more on the right, which is to pad both sides alike and to leave out the first output.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    skip: tuple[int, ...]

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """``(N, C, ...)`` and weight to output."""
        z = torch.ops.aten.convolution(
            x,
            w,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )
        for d, first in enumerate(self.skip):
            z = z.narrow(d + 2, first, z.shape[d + 2] - first)
        return z  # type: ignore[no-any-return]

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient of ``sum(s * apply(x, w))`` in x."""
        return self._backward(s, w, x, [True, False, False])[0]  # type: ignore[no-any-return]

    def weight_gradient(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in w, summed over the batch."""
        return self._backward(s, w, x, [False, True, False])[1]  # type: ignore[no-any-return]

    def both(self, s: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return transpose and weight gradient from one call, which shares its preparations."""
        found = self._backward(s, w, x, [True, True, False])
        return found[0], found[1]

    def _backward(self, s: Tensor, w: Tensor, x: Tensor, want: list[bool]) -> Any:
        if any(self.skip):
            s = torch.nn.functional.pad(s, [p for first in self.skip[::-1] for p in (first, 0)])
        return torch.ops.aten.convolution_backward(
            s,
            x,
            w,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            want,
        )

    def channel_table(self, w: Tensor) -> Tensor:
        """Sum w over the window: (output channels, operand channels)."""
        table = w.flatten(2).sum(2)
        if self.transposed:  # (C_in, C_out / g)
            blocks = table.reshape(self.groups, -1, table.shape[1]).transpose(1, 2)
        else:  # (C_out, C_in / g)
            blocks = table.reshape(self.groups, -1, table.shape[1])
        return torch.block_diag(*blocks) if self.groups > 1 else blocks[0]  # type: ignore[no-untyped-call]

    def triples(
        self,
        z: tuple[int, ...],
        x: tuple[int, ...],
        w: tuple[int, ...],
        channels: range | None = None,
        lines: range | None = None,
    ) -> Triples:
        """Neuron-level edges.

        ``channels`` restricts them to some of the weight's first axis, ``lines`` to some
        positions of the first spatial axis of the smaller side (see :meth:`chunks`).
        """
        # A transposed convolution is the convolution from its output to its input.
        big, small = (z, x) if self.transposed else (x, z)
        axes = []
        for d in range(len(z) - 1):
            o, k = np.meshgrid(np.arange(small[d + 1]), np.arange(w[d + 2]), indexing="ij")
            i = (o + self.skip[d]) * self.stride[d] - self.padding[d] + k * self.dilation[d]
            ok = (i >= 0) & (i < big[d + 1])
            if d == 0 and lines is not None:
                ok &= (o >= lines.start) & (o < lines.stop)
            axes.append((o[ok], k[ok], i[ok]))
        small_pos, kernel, big_pos = _outer(axes, small[1:], w[2:], big[1:])
        per_small, per_big = small[0] // self.groups, big[0] // self.groups
        n_small, n_big, n_kernel = (math.prod(t) for t in (small[1:], big[1:], w[2:]))
        outs, ins, ws = [], [], []
        # The weight's first axis counts the smaller side's channels in both directions.
        for c in range(small[0]) if channels is None else channels:
            group = c // per_small
            for b in range(per_big):
                outs.append(c * n_small + small_pos)
                ins.append((group * per_big + b) * n_big + big_pos)
                ws.append((c * per_big + b) * n_kernel + kernel)
        o, i, k = (np.concatenate(part) for part in (outs, ins, ws))
        return (i, o, k) if self.transposed else (o, i, k)

    def chunks(
        self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...], size: int
    ) -> list[tuple[range, range]] | None:
        """Return channels and lines of pieces of about ``size`` edges, outputs never shared."""
        if self.transposed:
            return None
        return _pieces(z[0], z[1], self.dense_edges(z, x, w), size)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        big, small = (z, x) if self.transposed else (x, z)
        count = small[0] * (big[0] // self.groups)
        for d in range(len(z) - 1):
            o, k = np.ogrid[: small[d + 1], : w[d + 2]]
            i = (o + self.skip[d]) * self.stride[d] - self.padding[d] + k * self.dilation[d]
            count *= int(((i >= 0) & (i < big[d + 1])).sum())
        return count


def _pieces(channels: int, lines: int, count: int, size: int) -> list[tuple[range, range]]:
    wide = max(1, channels * size // max(count, 1))
    high = lines if wide > 1 else max(1, lines * size * channels // max(count, 1))
    return [
        (range(c, min(c + wide, channels)), range(i, min(i + high, lines)))
        for c in range(0, channels, wide)
        for i in range(0, lines, high)
    ]


def _outer(axes: list[Any], *sizes: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], ...]:
    """Combine per-axis index lists to flat indices, one per role."""
    flat = [np.zeros(1, np.int64) for _ in sizes]
    for d, axis in enumerate(axes):
        for role, size in enumerate(sizes):
            flat[role] = (flat[role][:, None] * size[d] + axis[role][None, :]).ravel()
    return tuple(flat)


@dataclass(frozen=True)
class Dense:
    """``z = x @ w.T`` on the last axis."""

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """``(..., in)`` and ``(out, in)`` to ``(..., out)``."""
        return torch.nn.functional.linear(x, w)

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
        self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...], size: int
    ) -> list[tuple[range, range]]:
        """Return outputs and tokens of pieces of about ``size`` edges."""
        return _pieces(w[0], math.prod(z[:-1]), self.dense_edges(z, x, w), size)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z) * w[1]


@dataclass(frozen=True)
class Scale:
    """Elementwise ``z = x * w``, with broadcasting: the operand of a sum, or a batch-norm."""

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """Broadcast product."""
        return x * w

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


@functools.lru_cache(maxsize=64)
def _window_matrix(
    spans: tuple[tuple[int, int], ...], size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    matrix = torch.zeros(len(spans), size, dtype=dtype)
    for o, (a, b) in enumerate(spans):
        matrix[o, a:b] = 1
    return matrix.to(device)


@dataclass(frozen=True)
class Window:
    """Per-axis windows, summed and weighed per output: every kind of average.

    ``windows[d]`` lists the (first, last + 1) positions that each output of axis d reads; a
    single ``None`` axis is left alone.  ``keep`` says whether reduced axes stay as 1.
    """

    windows: tuple[tuple[tuple[int, int], ...] | None, ...]
    keep: bool = True

    def _matrix(self, d: int, size: int, like: Tensor) -> Tensor:
        return _window_matrix(self.windows[d] or (), size, like.dtype, like.device)

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """Sum over the windows, times w per output."""
        sizes = x.shape[1:]
        for d, spans in enumerate(self.windows):
            if spans is not None:
                matrix = self._matrix(d, sizes[d], x)
                x = (x.movedim(d + 1, -1) @ matrix.T).movedim(-1, d + 1)
        return self._squeeze(x) * w

    def _squeeze(self, x: Tensor) -> Tensor:
        if self.keep:
            return x
        return x.squeeze([d + 1 for d, spans in enumerate(self.windows) if spans is not None])

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        s = s * w
        if not self.keep:
            for d, spans in enumerate(self.windows):
                if spans is not None:
                    s = s.unsqueeze(d + 1)
        for d, spans in enumerate(self.windows):
            if spans is not None:
                matrix = self._matrix(d, x.shape[d + 1], s)
                s = (s.movedim(d + 1, -1) @ matrix).movedim(-1, d + 1)
        return s

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""
        axes, outs = [], []
        for d, size in enumerate(x):
            spans = self.windows[d]
            pairs = (
                [(i, i) for i in range(size)]
                if spans is None
                else [(o, i) for o, (a, b) in enumerate(spans) for i in range(a, b)]
            )
            o, i = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
            axes.append((o, i))
            outs.append(size if spans is None else len(spans))
        o, i = _outer(axes, tuple(outs), x)
        entry = np.broadcast_to(np.arange(math.prod(w)).reshape(w), z).ravel()
        return o, i, entry[o]

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(
            size if spans is None else sum(b - a for a, b in spans)
            for size, spans in zip(x, self.windows, strict=True)
        )


Map = Convolution | Dense | Scale | Window


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


def weighing(
    node: Node, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Weighing:
    """Read the linear map of a program node that weighs its inputs.

    ``shapes`` gives the shape of every value without the batch axis.

    Raises
    ------
    TraceError
        If a weight depends on the input.
    """
    kind, args = WEIGH[node.op], node.args
    kwargs = dict(node.kwargs)

    def tensor(i: int) -> Tensor | None:
        found = args[i] if len(args) > i else None
        return weights[found.name] if isinstance(found, Weight) else None

    def refuse(why: str) -> TraceError:
        return TraceError(f"{node.op} in {node.module or 'the model itself'}: {why}")

    if kind == "convolution":
        weight, bias = tensor(1), tensor(2)
        if weight is None:
            raise refuse("its weight depends on the input, expected a parameter")
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
                scales.append(None if factor == 1.0 else torch.tensor(factor))
            elif isinstance(args[i], Weight):
                bias = weights[args[i].name] * factor
            else:
                bias = torch.tensor(float(args[i]) * factor)
        return Weighing(kind, tuple(operands), (Scale(),) * len(operands), tuple(scales), bias)
    if kind == "batch_norm":
        scale, shift = tensor(1), tensor(2)
        if scale is None or shift is None:
            raise refuse("its scale and shift must be constants")
        shape = (-1,) + (1,) * (len(node.shape) - 1)
        return Weighing(
            kind, (args[0].name,), (Scale(),), (scale.reshape(shape),), shift.reshape(shape)
        )
    source = args[0].name
    window = _window(node, shapes[source])
    ones = torch.ones(1, *shapes[source], dtype=torch.float64)
    # The divisor (padding counted or not, clipped windows) is torch's own: average over sum.
    unit = torch.ones((), dtype=torch.float64)
    share = function(node.op)(ones, *args[1:], **kwargs) / window.apply(ones, unit)
    return Weighing(kind, (source,), (window,), (share[0],), None)


def _window(node: Node, shape: tuple[int, ...]) -> Window:
    args = node.args
    if node.op == "aten.mean.dim":
        axes = {d % (len(shape) + 1) for d in args[1]} if args[1] else set()
        if not axes or 0 in axes:
            raise TraceError(f"{node.op} in {node.module}: it averages over the batch")
        spans = tuple(((0, n),) if d + 1 in axes else None for d, n in enumerate(shape))
        return Window(spans, keep=bool(args[2]) if len(args) > 2 else False)
    n = int(node.op.split("pool")[1][0])
    inputs, outputs = shape[-n:], node.shape[-n:]
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
        if not isinstance(args[1], Ref) or tensor(2) is None or tensor(0) is None:
            raise refuse("expected a constant weight and bias")
        return Weighing("dense", (args[1].name,), (Dense(),), (tensor(2).T,), tensor(0))
    right = tensor(1)
    if not isinstance(args[0], Ref) or right is None or right.ndim != 2:
        raise refuse(
            "a product of two values that both depend on the input has no rule here; expected "
            "x @ constant matrix"
        )
    return Weighing("dense", (args[0].name,), (Dense(),), (right.T,), None)
