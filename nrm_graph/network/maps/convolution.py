"""Convolutions of any dimension, as linear maps with countable edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    Gradients = tuple[Tensor, Tensor, Tensor]
    """In the operand, the weight and the bias; those that are not asked for are not there."""

Triples = tuple["npt.NDArray[np.int64]", "npt.NDArray[np.int64]", "npt.NDArray[np.int64]"]
"""Output neuron, operand neuron and weight entry of every neuron-level edge."""


def outer(
    axes: Sequence[Sequence[npt.NDArray[np.int64]]], *sizes: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], ...]:
    """Combine per-axis index lists to flat indices, one per role."""
    flat = [np.zeros(1, np.int64) for _ in sizes]
    for d, axis in enumerate(axes):
        for role, size in enumerate(sizes):
            flat[role] = (flat[role][:, None] * size[d] + axis[role][None, :]).ravel()
    return tuple(flat)


def output_ranges(
    channels: int, lines: int, count: int, size: int
) -> list[tuple[range, range | None]]:
    """Cut ``count`` edges, spread evenly over channels and lines, into pieces of about a size.

    A single line stands for all of them, which is None.
    """
    wide = max(1, channels * size // max(count, 1))
    high = lines if wide > 1 else max(1, lines * size * channels // max(count, 1))
    return [
        (
            range(c, min(c + wide, channels)),
            range(i, min(i + high, lines)) if lines > 1 else None,
        )
        for c in range(0, channels, wide)
        for i in range(0, lines, high)
    ]


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

    @property
    def _options(self) -> tuple[object, ...]:
        """Arguments of ATen's convolutions behind the tensors."""
        return (
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(N, C, ...)`` and weight to output, plus a bias ``(1, C, 1, ...)``."""
        shift = None if bias is None else bias.flatten()
        z = torch.ops.aten.convolution(x, w, shift, *self._options)
        for d, first in enumerate(self.skip):
            z = z.narrow(d + 2, first, z.shape[d + 2] - first)
        return z  # type: ignore[no-any-return]

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient of ``sum(s * apply(x, w))`` in x."""
        return self._backward(s, w, x, [True, False, False])[0]

    def weight_gradient(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in w, summed over the batch."""
        if self._depthwise(w, x):
            return self._correlated(s, w, x)
        return self._backward(s, w, x, [False, True, False])[1]

    def both(self, s: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return transpose and weight gradient."""
        if self._depthwise(w, x):
            return self.transpose(s, w, x), self._correlated(s, w, x)
        gradients = self._backward(s, w, x, [True, True, False])  # which share preparations
        return gradients[0], gradients[1]

    def _depthwise(self, w: Tensor, x: Tensor) -> bool:
        """Whether every output reads one channel, through a window that torch is slow at."""
        alone = self.groups > 1 and w.shape[1] == 1 and not self.transposed
        slow = x.device.type == "cpu" and x.dtype == torch.float32
        return alone and slow and math.prod(w.shape[2:]) > 9

    def _correlated(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Weight gradient of a depthwise convolution: each channel meets its s as a kernel."""
        s = self._whole(s)
        n, channels, *size = s.shape
        gradient = torch.ops.aten.convolution(
            x.reshape(1, -1, *x.shape[2:]),
            s.reshape(n * channels, 1, *size),
            None,
            self.dilation,
            self.padding,
            self.stride,
            False,
            (0,) * len(size),
            n * self.groups,
        )
        for d, k in enumerate(w.shape[2:]):  # further on, the kernel would read past all outputs
            gradient = gradient.narrow(d + 2, 0, k)
        return gradient.reshape(n, *w.shape).sum(0)  # type: ignore[no-any-return]

    def _whole(self, s: Tensor) -> Tensor:
        """``s`` with zeros for the outputs that are left out."""
        if not any(self.skip):
            return s
        return torch.nn.functional.pad(s, [p for first in self.skip[::-1] for p in (first, 0)])

    def _backward(self, s: Tensor, w: Tensor, x: Tensor, want: list[bool]) -> Gradients:
        options = self._options
        return torch.ops.aten.convolution_backward(self._whole(s), x, w, None, *options, want)  # type: ignore[no-any-return]

    def channel_blocks(self, w: Tensor) -> Tensor:
        """Sum w over the window: (groups, output channels of a group, its operand channels)."""
        table = w.flatten(2).sum(2)
        blocks = table.reshape(self.groups, -1, table.shape[1])
        return blocks.transpose(1, 2) if self.transposed else blocks  # (C_in, C_out / g)

    def channel_table(self, blocks: Tensor) -> Tensor:
        """Blocks of channels on a diagonal: (output channels, operand channels)."""
        groups, outputs, operands = blocks.shape
        if groups == 1:
            return blocks[0]
        whole = blocks.new_zeros(groups, outputs, groups, operands)
        whole.diagonal(dim1=0, dim2=2).copy_(blocks.permute(1, 2, 0))
        return whole.reshape(groups * outputs, groups * operands)

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
        o, i, k = self._triples(z[1:], x[1:], w, channels, lines)
        # Where maps share the batch axis (frames of a video), each has the same edges.
        maps = np.arange(z[0])[:, None]
        return (
            (maps * math.prod(z[1:]) + o).ravel(),
            (maps * math.prod(x[1:]) + i).ravel(),
            np.broadcast_to(k, (z[0], len(k))).ravel(),
        )

    def _triples(
        self,
        z: tuple[int, ...],
        x: tuple[int, ...],
        w: tuple[int, ...],
        channels: range | None,
        lines: range | None,
    ) -> Triples:
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
        small_pos, kernel, big_pos = outer(axes, small[1:], w[2:], big[1:])
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
        self,
        z: tuple[int, ...],
        x: tuple[int, ...],
        w: tuple[int, ...],
        size: int,
        whole: bool = False,
    ) -> list[tuple[range, range | None]] | None:
        """Return channels and lines of pieces of about ``size`` edges, outputs never shared.

        ``whole`` channels have all their lines in one piece.
        """
        if self.transposed or z[0] != 1:
            return None
        return output_ranges(z[1], 1 if whole else z[2], self.dense_edges(z, x, w), size)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        big, small = (z, x) if self.transposed else (x, z)
        count = small[0] * small[1] * (big[1] // self.groups)
        for d in range(len(z) - 2):
            o, k = np.ogrid[: small[d + 2], : w[d + 2]]
            i = (o + self.skip[d]) * self.stride[d] - self.padding[d] + k * self.dilation[d]
            count *= int(((i >= 0) & (i < big[d + 2])).sum())
        return count
