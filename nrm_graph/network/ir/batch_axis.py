"""Where a value keeps its batch.

Networks move the batch about: windowed attention works on ``(n * windows, tokens, features)``,
``MultiheadAttention`` on ``(tokens, n, features)``.  A layer's neurons are those of one sample,
so every value has two views: the *native* one, which the operations compute with, and the
*samples* ``(N, *shape)``, which masks, sums and tables speak of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BatchAxis:
    """Axis of a native value that runs over ``(outer, n, inner)``, n the batch size.

    Attributes
    ----------
    axis : int
        Position of the axis.
    outer, inner : int
        How many entries of one sample run slower and faster than the batch.
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def plain(self) -> bool:
        """Whether both views are the same: the batch alone, in front."""
        return self == PLAIN

    @property
    def scale(self) -> int:
        """Entries of one sample on the axis."""
        return self.outer * self.inner

    def samples(self, native: Tensor) -> Tensor:
        """``(N, *shape)`` of a native value."""
        if self.plain:
            return native
        n = native.shape[self.axis] // self.scale
        value: Tensor = native.unflatten(self.axis, (self.outer, n, self.inner))  # type: ignore[no-untyped-call]
        if self.inner == 1:
            value = value.squeeze(self.axis + 2)
        value = value.movedim(self.axis + 1, 0)
        return value if self.outer > 1 else value.squeeze(self.axis + 1)

    def native(self, samples: Tensor) -> Tensor:
        """Native value of ``(N, *shape)``."""
        if self.plain:
            return samples
        value = samples if self.outer > 1 else samples.unsqueeze(self.axis + 1)
        value = value.movedim(0, self.axis + 1)
        if self.inner == 1:
            value = value.unsqueeze(self.axis + 2)
        return value.flatten(self.axis, self.axis + 2)

    def one(self, native: Tensor, b: int) -> Tensor:
        """Native value of sample b alone, a batch of one."""
        return self.native(self.samples(native)[b : b + 1])

    def shape(self, native: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a sample, from the native shape of a batch of one."""
        merged = tuple(s for s in (self.outer, self.inner) if s > 1)
        return (*native[: self.axis], *merged, *native[self.axis + 1 :])

    def native_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Native shape of a batch of one, from the shape of a sample."""
        merged = sum(s > 1 for s in (self.outer, self.inner))
        return (*shape[: self.axis], self.scale, *shape[self.axis + merged :])


PLAIN = BatchAxis()
