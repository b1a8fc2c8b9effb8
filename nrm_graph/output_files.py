"""Files that are written: to a place that is checked, whole or not at all, and as strict JSON."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, NrmError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import ReadableBuffer

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_DEVICES = (Path("/dev"), Path("/proc"))


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


def write_files(files: Mapping[Path, bytes]) -> list[Path]:
    """Write files whole or not at all: beside their places first, then renamed.

    Parameters
    ----------
    files : mapping of Path to bytes
        What each is to hold.  A device or pipe is written to as it is, and what a symbolic link
        points to is replaced, not the link.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InputError
        If a path cannot be written to.
    NrmError
        If the disk is full or fails.  What was there before is as it was.
    """
    waiting: list[tuple[Path, Path]] = []
    for path in files:
        in_folder(path)
    try:
        for path, data in files.items():
            if _is_device(path):
                path.write_bytes(data)
                continue
            final = Path(os.path.realpath(path))
            temporary = final.with_name(f".{secrets.token_hex(8)}.tmp")
            waiting.append((temporary, final))
            write_synced(temporary, data)
            if final.exists():
                with contextlib.suppress(OSError):
                    temporary.chmod(stat.S_IMODE(final.stat().st_mode))
        for temporary, path in waiting:
            temporary.replace(path)
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror or error}"
        if error.errno in _OF_THE_DISK:
            raise NrmError(f"{reason}; what was there before is as it was") from error
        raise InputError(reason) from error
    finally:
        for temporary, _ in waiting:
            remove_quietly(temporary)
    return list(files)


def _is_device(path: Path) -> bool:
    """Whether a path is none of a plain file; /dev/stdout may be one that others write to, too."""
    listed = any(folder in path.absolute().parents for folder in _DEVICES)
    return path.exists() and (listed or not path.is_file())


def write_synced(path: Path, *parts: ReadableBuffer) -> None:
    """Write a new file, part by part, and fsync it; an existing file is an error."""
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def remove_quietly(path: Path) -> None:
    """Remove a file of ours; that it is gone already or cannot be removed is no error."""
    with contextlib.suppress(OSError):
        path.unlink()


def plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: NaN and infinity become null, arrays lists."""
    import numpy as np  # here: help is shown without it

    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return value
