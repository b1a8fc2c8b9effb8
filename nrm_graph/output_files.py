"""What all files that are written share: a place to write to, and values that strict JSON holds."""

from __future__ import annotations

import errno
import math
import os
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
        If its folder does not exist, it is a folder itself, or neither may be written to.
    """
    try:
        if not path.parent.is_dir():
            raise InputError(
                f"cannot write {path}: there is no folder {path.parent}, create it first"
            )
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        refusal = refused(path if os.path.lexists(path) else path.parent)
        if refusal is not None:
            raise InputError(f"cannot write {path}: {refusal}")
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or no name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {str(path)!r:.200}: {reason}") from error
    return path


def refused(path: Path) -> str | None:
    """Say why the system lets nothing be written to a file or into a folder, or None."""
    if os.access(path, os.W_OK):
        return None
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return os.strerror(errno.EROFS if read_only else errno.EACCES)


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
