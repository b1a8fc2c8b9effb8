"""A program as two files, ``program.json`` and ``weights.safetensors``: read without trust."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

from nrm_graph.errors import InputError, NrmError, StoreError, first_line
from nrm_graph.foreign_errors import translated
from nrm_graph.network.ir.program import Program, from_json
from nrm_graph.network.ir.validation import PROBLEMS, SHOWN, vet
from nrm_graph.network.layout import layout
from nrm_graph.store.format import settings
from nrm_graph.store.format.files import create_once, local_path, read_limited
from nrm_graph.store.format.settings import described_file, holds
from nrm_graph.store.format.tensor_file import tensor_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from _typeshed import ReadableBuffer
    from torch import Tensor

_HASH = "program_hash"
"""Entry of the tensors' file that ties it to the graph beside it, in what was saved by itself."""


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Tensors as arrays in C order, without copies where they are on the CPU."""
    converted: dict[str, npt.NDArray[np.generic]] = {
        name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()
    }
    return converted


@translated("saving the program", StoreError)
def save_program(program: Program, path: str | os.PathLike[str]) -> None:
    """Write a traced program to a folder, to be used again without the model's code.

    Parameters
    ----------
    program : Program
        Of :func:`nrm_graph.trace` or ``db.program``.
    path : path
        A new or empty folder, for ``program.json`` and ``weights.safetensors``.

    Raises
    ------
    StoreError
        If another program is there, or the folder cannot be written to.

    Examples
    --------
    >>> import tempfile, torch, nrm_graph as ng
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> folder = tempfile.mkdtemp()
    >>> ng.save_program(ng.trace(net, torch.ones(1, 3)), folder)
    >>> ng.load_program(folder)
    <Program of 3 operations: input (3,) to (2,)>
    """
    if not isinstance(program, Program):
        raise InputError(
            f"expected a program of ng.trace or db.program, found {type(program).__name__}"
        )
    folder = local_path(path)
    files: dict[str, Sequence[ReadableBuffer]] = {
        "program.json": [program.to_json().encode()],
        "weights.safetensors": tensor_file(arrays(program.weights), {_HASH: program.hash()}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, parts in files.items():
            file = folder / name
            if not create_once(file, *parts) and not holds(file, described_file(parts)):
                raise StoreError(
                    f"{file} is there already, of another program: choose a new folder"
                )
    except OSError as error:
        raise StoreError(f"cannot save a program at {folder}: {error.strerror or error}") from error


def load_program(path: str | os.PathLike[str]) -> Program:
    """Read a program that :func:`nrm_graph.save_program` wrote; nothing in it is trusted.

    Parameters
    ----------
    path : path
        The folder.

    Returns
    -------
    Program
        For :func:`nrm_graph.measure` and :func:`nrm_graph.extract`, in place of a model.

    Raises
    ------
    StoreError
        If there is none, it was changed, or it names an operation outside the allow-list: no code
        of it is run.
    """
    folder = local_path(path)
    if (folder / "store.json").exists():
        raise StoreError(f"{folder} is a store: ng.open(path).program is its program")
    if not (folder / "program.json").exists():
        raise StoreError(
            f"there is no program at {folder}: expected a folder that ng.save_program wrote"
        )
    with sound(folder):
        program = read_program(folder)
        with safetensors.safe_open(folder / "weights.safetensors", "np") as file:
            stated = (file.metadata() or {}).get(_HASH)
        if stated is not None and stated != program.hash():
            raise StoreError(
                f"the program of {folder} is not the one that was saved there: copy it again"
            )
        vet(program)
        layout(program)
    return program


def read_program(folder: Path, further: Mapping[str, Tensor] | None = None) -> Program:
    """Read a program from its files, before it is vetted.

    Parameters
    ----------
    folder : Path
        Of the files.
    further : mapping of str to Tensor, optional
        Tensors that the folder does not hold.

    Raises
    ------
    StoreError
        If a file is none of its kind, or the two do not fit.
    """
    text = read_limited(folder / "program.json", settings.MAX_PROGRAM_BYTES)
    path = settings.checked_tensor_file(folder / "weights.safetensors")
    try:
        weights = safetensors.torch.load_file(path)
        return from_json(text.decode("utf-8"), weights | dict(further or {}))
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise StoreError(f"the program of {folder} cannot be read: {error}") from error


@contextmanager
def sound(path: Path, *, caller_chose: bool = False) -> Iterator[None]:
    """Turn what a stranger's program, composite or input breaks into a store's error.

    With ``caller_chose``, an InputError stays one: it may be due to what the caller asked for.
    """
    try:
        yield
    except NrmError as error:
        if isinstance(error, StoreError) or (caller_chose and isinstance(error, InputError)):
            raise
        raise StoreError(f"what {path} holds does not fit together: {error}") from error
    except PROBLEMS as error:
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        raise StoreError(
            f"the program of {path} cannot be executed: {first_line(error)[:SHOWN]}{notes}"
        ) from error
