"""What all files that are written share: a place to write to, and values that strict JSON holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def in_folder(path: Path) -> Path:
    """Check that a file can be written to a path.

    Raises
    ------
    InputError
        If its folder does not exist, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}, create it first")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    return path


def plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: NaN and infinity become null, arrays lists."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return value
