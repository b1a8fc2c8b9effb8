"""Arrays in files, row by row: memory holds one row, however long the file says it is."""

from __future__ import annotations

import math
import weakref
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
MAX_LABEL_BYTES = 1 << 30
MAX_ARRAYS = 100


class Rows:
    """An array in an archive of :func:`numpy.savez`, whose rows are read as they are asked for.

    Rows in order are read in one pass; going back in a compressed archive starts again.
    """

    def __init__(self, path: Path, member: str) -> None:
        self._archive = zipfile.ZipFile(path)
        weakref.finalize(self, self._archive.close)
        self._file = self._archive.open(member)
        weakref.finalize(self, self._file.close)
        version = np.lib.format.read_magic(self._file)
        if version not in _HEADERS:
            raise ValueError(f"its array has format version {version}")
        self.shape, fortran, self.dtype = _HEADERS[version](self._file)
        if self.dtype.hasobject:
            raise ValueError("its array holds Python objects, which would run code")
        if fortran and len(self.shape) > 1:
            raise ValueError("its array is in Fortran order: save np.ascontiguousarray(array)")
        self._start = self._file.tell()
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        stated = self._start + math.prod(self.shape) * self.dtype.itemsize
        held = self._archive.getinfo(member).file_size
        if stated != held:
            raise ValueError(f"its array holds {held} bytes, its header speaks of {stated}")

    def __getitem__(self, position: int) -> npt.NDArray[Any]:
        """Read one row.

        Raises
        ------
        InputError
            If the archive is damaged there.
        """
        try:
            self._file.seek(self._start + position * self._row)
            data = self._file.read(self._row)
            if len(data) != self._row:
                raise EOFError("it ends early")
        except Exception as error:  # zipfile and zlib have many
            raise _unreadable(self._archive.filename, error) from None
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])


@dataclass(frozen=True)
class Arrays:
    """What a file of arrays holds.

    Attributes
    ----------
    values : mapping of str to what gives rows
        By name; a lone array of inputs has none, ``""``.
    labels : list, or None
        One for each row.
    tokens : what gives rows, or None
        Texts of the positions of each row.
    """

    values: Mapping[str, Any]
    labels: list[Any] | None = None
    tokens: Any = None


def arrays_of(path: Path) -> Arrays:
    """Return what gives the rows of an ``.npy`` or ``.npz`` file.

    Raises
    ------
    InputError
        If the file is damaged, or holds no array of inputs.
    """
    try:
        if path.suffix.lower() == ".npy":
            return Arrays({"": np.load(path, mmap_mode="r", allow_pickle=False)})
        with zipfile.ZipFile(path) as archive:
            held = {n.removesuffix(".npy"): n for n in archive.namelist() if n.endswith(".npy")}
        name = next((n for n in ("images", "inputs") if n in held), None)
        others = [n for n in held if n not in ("labels", "tokens")]
        if not others or len(others) > MAX_ARRAYS:
            raise InputError(
                f"{path} holds {', '.join(held)[:200] or 'nothing'}: expected an array named "
                "images or inputs, or arrays named like forward's arguments"
            )
        values = {n: Rows(path, held[n]) for n in others} if name is None else {}
        if name is not None:
            values[""] = Rows(path, held[name])
        labels = None
        if "labels" in held:
            found = Rows(path, held["labels"])
            size = math.prod(found.shape) * found.dtype.itemsize
            if size > MAX_LABEL_BYTES:
                raise InputError(f"{path} has labels of {size} bytes: expected names or numbers")
            with np.load(path, allow_pickle=False) as arrays:
                labels = arrays["labels"].tolist()
        return Arrays(values, labels, Rows(path, held["tokens"]) if "tokens" in held else None)
    except InputError:
        raise
    except Exception as error:  # damaged files raise from zipfile, zlib, numpy and the system
        raise _unreadable(path, error) from None


def _unreadable(path: Any, error: Exception) -> InputError:
    return InputError(f"cannot read the array {path}: {first_line(error)}")
