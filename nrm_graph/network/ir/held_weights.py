"""Tensors of a program that are held in half precision, and read in the precision of a pass.

A large network is stored in half precision, and a pass is computed in float32: each tensor becomes
one when it is read, and is let go of with whoever read it.  The network is never whole in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF = (torch.float16, torch.bfloat16)
"""Types that networks are stored in; their programs are computed in float32 at least."""

LOWEST = torch.finfo(torch.float32).min
"""What a masked score is filled with, if it is finite: the same number in every precision."""


class HeldWeights(Mapping[str, Tensor]):
    """Tensors by name, read in a wider type than some are held in.

    Parameters
    ----------
    held : mapping of str to Tensor
        As they are held.
    dtype : torch.dtype
        What those in half precision are read in.
    """

    def __init__(self, held: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.held, self.dtype = dict(held), dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.held[name]
        return tensor.to(self.dtype) if tensor.dtype in HALF else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def held(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as they are held."""
    return weights.held if isinstance(weights, HeldWeights) else dict(weights)


def read_as(
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    device: torch.device | None = None,
) -> Mapping[str, Tensor]:
    """Give tensors that are held the type of a pass: those in half precision when they are read.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        As they are held, or read.
    dtype : torch.dtype, optional
        Of floats; None leaves them what they are.
    device : torch.device, optional
        Where they are to be.
    """
    moved = {}
    for name, tensor in held(tensors).items():
        kept = tensor.dtype in HALF or not tensor.is_floating_point()
        moved[name] = tensor.to(device, None if kept else dtype)
    return HeldWeights(moved, dtype or torch.float32) if narrow(moved) else moved


def on_device(tensors: Mapping[str, Tensor], device: str) -> Mapping[str, Tensor]:
    """Move tensors, and read them as they were."""
    moved = {name: tensor.to(device) for name, tensor in held(tensors).items()}
    return HeldWeights(moved, tensors.dtype) if isinstance(tensors, HeldWeights) else moved


def narrow(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any is held in half precision."""
    return any(tensor.dtype in HALF for tensor in tensors.values())


def holdable(value: Tensor) -> Tensor:
    """Return a tensor as a program may hold it: masks, whose lowest number is one, in float32."""
    if value.dtype in HALF and not bool((value == torch.finfo(value.dtype).min).any()):
        return value
    return wide(value)


def wide(value: Tensor) -> Tensor:
    """Bring a tensor to float32 at least, with the lowest numbers of masks brought to one.

    Half precision's lowest becomes float32's, which hides a score in a pass that is computed in
    float32; float64's lowest is kept within float32.
    """
    if value.dtype in HALF:
        return value.float().masked_fill_(value == torch.finfo(value.dtype).min, LOWEST)
    if value.dtype == torch.float64 and bool((value.abs() > -LOWEST).any()):
        infinite = value.isinf()
        value = torch.where(infinite, value, value.clamp(LOWEST, -LOWEST))
    return value
