"""Files that are published whole or not at all, and read without trust."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import StoreError
from nrm_graph.output_files import remove_quietly, write_synced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from _typeshed import ReadableBuffer

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Absolute path of a local folder.

    Raises
    ------
    StoreError
        If `path` is a URL, for DuckDB and the commit protocol need a local file system; or empty,
        no UTF-8, which DuckDB needs, or none that the system can look up.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise StoreError(f"a store is a folder, by its path: found {path!r:.80}") from None
    if not text:
        raise StoreError("the path of the store is empty: expected the name of a folder")
    if _URL.match(text):
        raise StoreError(
            f"a store is a local folder, found the URL {text!r}; "
            "copy the store to a local disk and open the copy"
        )
    try:
        folder = Path(text).expanduser().absolute()
        str(folder).encode("utf-8")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # still to be made
            folder.stat()
    except UnicodeEncodeError:
        raise StoreError(
            f"the path {text!r} of the store is no UTF-8, which SQL needs: rename it"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"there can be no store at {text!r:.200}: {reason}") from error
    return folder


def file_size(path: Path) -> int:
    """Size in bytes of a regular file that is not a symbolic link.

    Raises
    ------
    StoreError
        If the file is missing, or is a link or a folder.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise StoreError(
            f"expected the file {path}, found none ({error.strerror}); "
            "the store is incomplete: copy it again or extract anew"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(
            f"expected {path} to be a plain file, found a "
            f"{'symbolic link' if stat.S_ISLNK(status.st_mode) else 'special file'}; "
            "a store holds plain files only: do not trust this one"
        )
    return status.st_size


def read_limited(path: Path, limit: int) -> bytes:
    """Bytes of a plain file of at most `limit` bytes.

    Raises
    ------
    StoreError
        If the file is missing, no plain file, unreadable or larger than `limit`.
    """
    size = file_size(path)
    if size > limit:
        raise StoreError(
            f"expected {path.name} to hold at most {limit} bytes, found {size}; "
            "no writer of this package makes such a file: do not trust this store"
        )
    try:
        # O_NOFOLLOW: the file may have become a link since the check above.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if len(data) > limit:
        raise StoreError(f"{path.name} grew beyond {limit} bytes while it was read; try again")
    return data


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """JSON object in `data`, where NaN and infinity are refused.

    Raises
    ------
    StoreError
        If `data` is no JSON object.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{name} is malformed: expected a JSON object, found {error}; "
            "copy the store again or extract anew"
        ) from error
    if not isinstance(value, dict):
        raise StoreError(
            f"{name} is malformed: expected a JSON object, found a JSON {type(value).__name__}"
        )
    return value


def seal(content: Mapping[str, object]) -> str:
    """SHA-256 of a JSON object: of its text with sorted keys, without spaces, in ASCII.

    Examples
    --------
    >>> seal({"b": 1, "a": None})[:12]
    'c0bf82ad036c'
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, final: Path) -> None:
    """Rename a synced file to its final name, which must be free, and fsync the folder.

    Raises
    ------
    StoreError
        If the final name is taken: committed files are never overwritten.
    """
    if os.path.lexists(final):
        raise StoreError(
            f"expected the name {final.name} to be free, found a file; "
            "committed files are never overwritten: try again"
        )
    temporary.replace(final)
    sync_folder(final.parent)


def create_once(path: Path, *parts: ReadableBuffer) -> bool:
    """Write a file whole, or find one there; of several processes exactly one writes it.

    Returns
    -------
    bool
        Whether this call wrote it.
    """
    if os.path.lexists(path):
        return False
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        write_synced(temporary, *parts)
        try:
            path.hardlink_to(temporary)  # fails where the name exists; a rename would overwrite
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # No hard links here (exFAT, some network disks): as near to exclusive as it gets.
            if os.path.lexists(path):
                return False
            temporary.replace(path)
        sync_folder(path.parent)
        return True
    finally:
        remove_quietly(temporary)


def alone(folder: Path, other: str) -> AbstractContextManager[None]:
    """Hold the lock of a folder, which ends with the process however it ends.

    Parameters
    ----------
    folder : Path
        The folder.
    other : str
        In words, what holds the lock where this cannot.

    Raises
    ------
    StoreError
        If another process or thread holds it, or the file system has no locks.
    """
    return _folder_lock(folder, other, fcntl.LOCK_EX)


def together(folder: Path, other: str) -> AbstractContextManager[None]:
    """Hold a lock of a folder that others may hold as well, but not where one is :func:`alone`.

    Raises
    ------
    StoreError
        If one is alone there, or the folder cannot be opened.
    """
    return _folder_lock(folder, other, fcntl.LOCK_SH)


@contextlib.contextmanager
def _folder_lock(folder: Path, other: str, kind: int) -> Iterator[None]:
    handle = -1
    try:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{other} is at work in {folder.parent}: wait until it ends") from None
        except OSError as error:
            # Where a disk has no locks no one is alone on it either.
            if kind == fcntl.LOCK_EX or handle < 0:
                raise StoreError(
                    f"cannot lock {folder}: {error.strerror or error}; the store must be a folder "
                    "of a local disk, and complete"
                ) from error
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def remove_abandoned(path: Path, unless: Path | None = None) -> int:
    """Remove a file of a killed writer, but not where the writer lives or `unless` is there.

    Returns
    -------
    int
        Bytes that were removed; -1 if the file stays or is gone already.

    Notes
    -----
    A writer holds the lock of its file until the manifest is in place, and the file is part of the
    store: that is looked for when the lock is held.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if unless is not None and os.path.lexists(unless):
            return -1
        size = os.fstat(handle).st_size
        path.unlink()
    except OSError:
        return -1
    finally:
        os.close(handle)
    return size


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locked(path: Path) -> io.FileIO:
    """Make a file that nobody takes for one that a killed writer left: `remove_abandoned`."""
    file = io.FileIO(path, "xb")
    with contextlib.suppress(OSError):
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
    return file


class HashingFile:
    """A new file that hashes what is appended to it, for writers that never seek.

    Hashing here saves reading every shard a second time for its checksum.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = _locked(path)
        while os.fstat(raw.fileno()).st_nlink == 0:  # taken for abandoned before it was locked
            raw.close()
            raw = _locked(path)
        self._file = io.BufferedWriter(raw, 1 << 20)
        self._digest = hashlib.sha256()
        self._abandoned = False
        self.size = 0

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Tell Arrow that it may write."""
        return True

    def readable(self) -> bool:
        """Tell Arrow that it may not read."""
        return False

    def seekable(self) -> bool:
        """Tell Arrow that it may not seek."""
        return False

    def tell(self) -> int:
        """Position, which is the number of bytes written."""
        return self.size

    def write(self, data: ReadableBuffer) -> int:
        """Append a bytes-like object."""
        view = memoryview(data).cast("B")
        if self._abandoned:
            return view.nbytes
        self._file.write(view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Hand buffered bytes to the system."""
        self._file.flush()

    def sync(self) -> None:
        """Make what was written durable."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the checksum stays available."""
        self._file.close()

    def abandon(self) -> None:
        """Close without what is buffered, and swallow what a Parquet writer still wants to write.

        A Parquet writer writes its footer when it is closed or collected, also after an error.
        """
        self._abandoned = True
        with contextlib.suppress(OSError):
            self._file.raw.close()  # the buffer is not flushed: the disk may be full
        with contextlib.suppress(OSError, ValueError):
            self._file.close()
