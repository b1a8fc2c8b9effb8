"""Devices that can compute."""

from __future__ import annotations

import torch

from nrm_graph.errors import InputError


def device_of(device: str | torch.device) -> torch.device:
    """Return a device that can be used; ``auto`` is the accelerator if there is one.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    if isinstance(device, str) and device == "auto":
        accelerator = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        return accelerator or torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the device {device!r} cannot be used: {first}") from None
    if place.type == "meta":
        raise InputError("the device 'meta' holds no data")
    return place
