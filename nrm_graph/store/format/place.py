"""Where a store can be made: looked at before anything is computed for it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError, StoreError
from nrm_graph.output_files import refused

if TYPE_CHECKING:
    from pathlib import Path

_UNFINISHED = re.compile(r"(program\.json|(weights|units)\.safetensors)(\.[0-9a-f]+\.tmp)?|shards")


def check_place(path: Path) -> None:
    """Refuse a place where no store can be made or continued.

    Raises
    ------
    InputError
        If there is a file in place of a folder.
    StoreError
        If the folder holds something else, or may not be written to.
    """
    try:
        if path.is_dir():
            refuse_foreign(path)
        above = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        refusal = refused(above) if above.is_dir() else None
    except OSError as error:
        raise StoreError(f"cannot make a store at {path}: {error.strerror or error}") from error
    if not above.is_dir():
        raise InputError(
            f"{path} is a file: expected a store or a new name"
            if above == path
            else f"cannot make a store at {path}: {above} is a file"
        )
    if refusal is not None:
        raise StoreError(f"cannot write to {above}: {refusal}")


def refuse_foreign(path: Path) -> None:
    """Refuse a folder that holds something else than a store, or the beginning of one.

    Raises
    ------
    StoreError
        Naming what it holds.
    """
    names = (entry.name for entry in path.iterdir() if not entry.name.startswith("store.json"))
    foreign = sorted(name for name in names if not _UNFINISHED.fullmatch(name))
    if foreign and not (path / "store.json").exists():
        raise StoreError(
            f"{path} exists and is no store (it holds {foreign[0]}): choose an empty or new folder"
        )
