"""Files that are written whole or not at all: a full disk leaves what was there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError, NrmError
from nrm_graph.output_files import in_folder
from nrm_graph.store.format.files import remove_quietly, write_synced

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_DEVICES = (Path("/dev"), Path("/proc"))


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
