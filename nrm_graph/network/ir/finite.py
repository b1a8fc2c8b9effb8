"""Whether tensors hold numbers only, in one reading of their memory."""

from __future__ import annotations

import torch
from torch import Tensor

from nrm_graph.network.ir.held_weights import large, rows


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A sum is finite only if all that it adds is: an elementwise test, many times slower, is made
    only where the sum is not.
    """
    if not tensor.is_floating_point():
        return True
    if large(tensor):  # torch would bring all of it to the type of the sum
        return all(finite(tensor[part]) for part in rows(tensor))
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(torch.isfinite(tensor).all())
