"""Convolutions of which every sample of a batch uses one channel: a fraction of the work.

A batch that holds one unit's neurons in every sample is zero in all channels but one, where the
units are channels.  What a convolution makes of it takes one slice of the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from nrm_graph.network.maps.convolution import Convolution

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.maps.linear import Map


def sliceable(kind: Map, down: bool = False) -> bool:
    """Whether a map can be taken channel by channel: upwards, or ``down`` with its transpose."""
    return (
        isinstance(kind, Convolution)
        and len(kind.stride) == 2
        and kind.groups == 1
        and not kind.transposed
        and not any(kind.skip)
        and (not down or kind.stride == (1, 1))
    )


def one(values: Tensor, channels: Tensor) -> Tensor:
    """Take channel k of sample k: ``(K or 1, C, H, W)`` to ``(K, 1, H, W)``."""
    samples = torch.arange(len(channels), device=channels.device)
    return values.expand(len(channels), *values.shape[1:])[samples, channels][:, None]


def apply(kind: Convolution, x: Tensor, w: Tensor, channels: Tensor) -> Tensor:
    """Apply a convolution to one operand channel of every sample.

    Parameters
    ----------
    kind : Convolution
        As :func:`sliceable` has it.
    x : Tensor, (K, 1, H, W)
        Operand, in these channels.
    w : Tensor, (C_out, C_in, h, w)
        Weight.
    channels : Tensor of int64, (K,)
        Operand channel of every sample.

    Returns
    -------
    Tensor, (K, C_out, L)
        Positions in one axis.
    """
    x = F.pad(x, [kind.padding[1]] * 2 + [kind.padding[0]] * 2)
    columns = _columns(x, tuple(w.shape[2:]), kind.dilation, kind.stride)
    return w[:, channels].transpose(0, 1).flatten(2) @ columns


def transpose(kind: Convolution, s: Tensor, w: Tensor, channels: Tensor, x: Tensor) -> Tensor:
    """Transpose a convolution of stride 1, of one output channel of every sample.

    Parameters
    ----------
    kind : Convolution
        As :func:`sliceable` has it, downwards.
    s : Tensor, (K, 1, H, W)
        What outputs hold, in these channels.
    w : Tensor, (C_out, C_in, h, w)
        Weight.
    channels : Tensor of int64, (K,)
        Output channel of every sample.
    x : Tensor, (..., C_in, H', W')
        Operand, for its shape.

    Returns
    -------
    Tensor, (K, C_in, H', W')
    """
    sizes = tuple(w.shape[2:])
    full = [d * (n - 1) for d, n in zip(kind.dilation, sizes, strict=True)]
    pad = [f - p for f, p in zip(full, kind.padding, strict=True)]
    s = F.pad(s, [pad[1], pad[1], pad[0], pad[0]])  # negative where more is padded than reached
    columns = _columns(s, sizes, kind.dilation, (1, 1))
    back = w[channels].flip(2, 3).flatten(2) @ columns
    return back.unflatten(2, x.shape[-2:])  # type: ignore[no-any-return, no-untyped-call]


def _columns(
    x: Tensor, sizes: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """Return ``(K, 1, H, W)`` as windows see it: ``(K, h w, L)``.

    Few taps of many samples: slices are much faster here than ``unfold``, which goes sample by
    sample.
    """
    spans = [
        (n - d * (size - 1) - 1) // s * s + 1
        for n, size, d, s in zip(x.shape[2:], sizes, dilation, stride, strict=True)
    ]
    taps = [
        x[:, 0, i : i + spans[0] : stride[0], j : j + spans[1] : stride[1]]
        for i in range(0, sizes[0] * dilation[0], dilation[0])
        for j in range(0, sizes[1] * dilation[1], dilation[1])
    ]
    return torch.stack(taps, 1).flatten(2)
