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

PART = 1 << 23
"""Entries of a matrix in half precision beyond which it becomes wider a part at a time."""

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


def large(matrix: Tensor) -> bool:
    """Whether a matrix is in half precision and too large to become wider as a whole."""
    return matrix.dtype in HALF and matrix.ndim == 2 and matrix.numel() > PART


def rows(matrix: Tensor) -> list[slice]:
    """Divide a large matrix, such as a vocabulary's, into rows that become wider together."""
    step = max(1, PART // matrix.shape[1])
    return [slice(first, first + step) for first in range(0, matrix.shape[0], step)]


def product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply ``x @ matrix.T + bias`` in the type of x, a large matrix part by part."""
    bias = None if bias is None else bias.to(x.dtype)
    if not large(matrix):
        return torch.nn.functional.linear(x, matrix.to(x.dtype), bias)
    parts = [torch.nn.functional.linear(x, matrix[part].to(x.dtype)) for part in rows(matrix)]
    whole = torch.cat(parts, -1)
    return whole if bias is None else whole + bias


def transposed(s: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``s @ matrix``; of a large one only rows are read that s is not 0 at."""
    if not large(matrix):
        return s @ matrix.to(s.dtype)
    total = s.new_zeros(*s.shape[:-1], matrix.shape[1])
    for part in rows(matrix):
        # Elsewhere than on a CPU, to ask would be to wait.
        if s.device.type != "cpu" or bool(s[..., part].any()):
            total += s[..., part] @ matrix[part].to(s.dtype)
    return total


def holdable(value: Tensor) -> Tensor:
    """Return a tensor as a program may hold it: masks, whose lowest number is one, in float32."""
    if value.dtype not in HALF:
        return wide(value)
    lowest = torch.finfo(value.dtype).min
    parts = (value[part] for part in rows(value)) if large(value) else (value,)
    return wide(value) if any(bool((part == lowest).any()) for part in parts) else value


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
