"""Convolutions of a batch of which most operands are 0 and most outputs are not asked for.

Under a ReLU most neurons are silent: nothing flows through them, and of a batch of passes all
samples have the same ones.  At every position a convolution is then a product of the few weights
between what is awake on both sides.  The sums are those of the whole convolution, less zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from nrm_graph.network.maps.convolution import Convolution

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.maps.linear import Map

DENSE, SPARSE, WEIGHT, POSITION = 0.06, 0.15, 3.0, 100_000.0
"""Nanoseconds, measured on one core: of a product in a whole convolution and in one of few
neurons; there, further, of a weight that is looked up, and of a position."""

FEW = 8
"""Samples below which the lookup of weights costs more than it saves."""


def apply(kind: Map, x: Tensor, weight: Tensor, asked: Tensor) -> Tensor:
    """Apply a map; what it gives where nothing is asked for may be 0.

    Parameters
    ----------
    kind : Map
        The map; convolutions of two dimensions are taken neuron by neuron where that is faster.
    x : Tensor, (N, *operand's shape)
        Operand.
    weight : Tensor
        Of the map.
    asked : Tensor of bool, (1, *output's shape)
        Where the output is asked for.
    """
    if not isinstance(kind, Convolution) or not _suits(kind, x, weight, asked):
        return kind.apply(x, weight)
    up, left = kind.padding
    awake = F.pad((x != 0).any(0), (left, left, up, up))  # (C, H, W)
    counts = awake.sum(0, dtype=torch.float32)[None, None]
    taps = counts.new_ones(1, 1, *weight.shape[2:])
    inside = F.conv2d(counts, taps, None, kind.stride, 0, kind.dilation)[0, 0]
    products, positions = float((inside * asked[0].sum(0)).sum()), inside.numel()
    few = products * (SPARSE * len(x) + WEIGHT) + positions * POSITION
    # Whole convolutions use every thread, single positions hardly more than one.
    if few > DENSE * len(x) * weight.numel() * positions / torch.get_num_threads():
        return kind.apply(x, weight)
    # The samples last: what is gathered lies side by side.
    padded = x.new_zeros(*awake.shape[1:], x.shape[1], len(x))
    padded[up : up + x.shape[2], left : left + x.shape[3]] = x.permute(2, 3, 1, 0)
    return _few(padded, weight, awake.permute(1, 2, 0).flatten(), asked[0], kind)


def _suits(kind: Convolution, x: Tensor, weight: Tensor, asked: Tensor) -> bool:
    return (
        len(x) >= FEW
        and x.device.type == "cpu"
        and len(kind.stride) == 2
        and x.ndim == asked.ndim == weight.ndim == 4
        and kind.groups == 1
        and not kind.transposed
        and not any(kind.skip)
    )


def _few(x: Tensor, weight: Tensor, awake: Tensor, asked: Tensor, kind: Convolution) -> Tensor:
    """Convolve a padded operand ``(H, W, C, N)`` position by position."""
    _, width, channels, n = x.shape
    neurons = x.flatten(0, 2)
    by_window = weight.permute(0, 2, 3, 1).flatten(1)  # (outputs, window)
    lines, columns = (
        torch.arange(size) * d for size, d in zip(weight.shape[2:], kind.dilation, strict=True)
    )
    corners = (lines[:, None] * width + columns) * channels
    window = (corners[:, :, None] + torch.arange(channels)).flatten()
    result = x.new_zeros(asked[0].numel(), len(weight), n)
    for place, heads in enumerate(asked.flatten(1).unbind(1)):
        chosen = heads.nonzero()
        i, j = divmod(place, asked.shape[2])
        here = window + (i * kind.stride[0] * width + j * kind.stride[1]) * channels
        within = awake[here].nonzero()[:, 0]
        if len(chosen) and len(within):
            weights = by_window.take(chosen * by_window.shape[1] + within)
            result[place, chosen[:, 0]] = weights @ neurons.index_select(0, here[within])
    return result.permute(2, 1, 0).reshape(n, *asked.shape)
