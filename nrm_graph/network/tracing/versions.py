"""Versions of torch that traces were tested with."""

from __future__ import annotations

import functools
import warnings

import torch

TESTED = ((2, 9), (2, 15))
"""The oldest and the newest; ``pyproject.toml`` asks for the oldest or later."""


def warn_if_untested() -> None:
    """Warn once of a torch whose exports nobody has compared with the networks yet."""
    _warn_if_untested(torch.__version__)


@functools.cache
def _warn_if_untested(version: str) -> None:
    release = tuple(int(part) for part in version.split(".")[:2])
    if not TESTED[0] <= release <= TESTED[1]:
        oldest, newest = (".".join(map(str, tested)) for tested in TESTED)
        warnings.warn(
            f"nrm_graph was tested with torch {oldest} to {newest}, found {version}: what is "
            "traced is still compared with the network, at the input that it is traced with",
            UserWarning,
            stacklevel=2,
        )
