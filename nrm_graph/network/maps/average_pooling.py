"""Averages over windows, as linear maps with countable edges."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.network.maps.convolution import outer

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.maps.convolution import Triples


@functools.lru_cache(maxsize=64)
def _matrix(
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
    ``None`` axis, such as the batch, is left alone.  ``keep`` says whether reduced axes stay as 1.
    """

    windows: tuple[tuple[tuple[int, int], ...] | None, ...]
    keep: bool = True

    def _matrix(self, d: int, size: int, like: Tensor) -> Tensor:
        return _matrix(self.windows[d] or (), size, like.dtype, like.device)

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Sum over the windows, times w per output."""
        for d, spans in enumerate(self.windows):
            if spans is not None:
                matrix = self._matrix(d, x.shape[d], x)
                x = (x.movedim(d, -1) @ matrix.T).movedim(-1, d)
        z = self._squeeze(x) * w
        return z if bias is None else z + bias

    def _squeeze(self, x: Tensor) -> Tensor:
        if self.keep:
            return x
        return x.squeeze([d for d, spans in enumerate(self.windows) if spans is not None])

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        s = s * w
        if not self.keep:
            for d, spans in enumerate(self.windows):
                if spans is not None:
                    s = s.unsqueeze(d)
        for d, spans in enumerate(self.windows):
            if spans is not None:
                matrix = self._matrix(d, x.shape[d], s)
                s = (s.movedim(d, -1) @ matrix).movedim(-1, d)
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
        o, i = outer(axes, tuple(outs), x)
        entry = np.broadcast_to(np.arange(math.prod(w)).reshape(w), z).ravel()
        return o, i, entry[o]

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(
            size if spans is None else sum(b - a for a, b in spans)
            for size, spans in zip(x, self.windows, strict=True)
        )
