"""Sums of tensors: of a list, by key, and of every sample of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

K = TypeVar("K")


def total(parts: Sequence[Tensor]) -> Tensor:
    """Sum tensors, of which there is at least one."""
    return sum(parts[1:], parts[0])


def accumulate(totals: dict[K, Tensor], key: K, value: Tensor) -> None:
    """Add to the total of a key, which need not be there yet."""
    totals[key] = totals[key] + value if key in totals else value


def by_sample(values: Tensor) -> Tensor:
    """Sum ``(N, ...)`` over all axes but the first: ``(N,)``."""
    return values.reshape(values.shape[0], -1).sum(1)
