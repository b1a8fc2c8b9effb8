"""The user's own names of units: one JSON file a layer, outside of what a store is known by."""

from __future__ import annotations

import json
import os
import re
import secrets
import unicodedata
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from nrm_graph.errors import InputError, StoreError
from nrm_graph.output_files import remove_quietly, write_synced
from nrm_graph.store.format.files import parse_object, read_limited, sync_folder
from nrm_graph.store.format.json_file import JsonFile, Text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FOLDER = "names"
VERSION = 1
MAX_BYTES = 64 << 20
LONGEST = 100

_FILE = re.compile(r"(0|[1-9][0-9]{0,4})\.json")
_LEFT = re.compile(r"\.[0-9a-f]{16}\.tmp")
_STEERING = {"Cc", "Cs", "Zl", "Zp"}  # categories of characters that end lines or move cursors
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Unit = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,9})\Z")]


class _Names(Struct, forbid_unknown_fields=True):
    format_version: int
    layer: Text
    names: dict[Unit, Text]


def fault_of(name: object) -> str | None:
    """Say why something cannot name a unit, or None where it can."""
    if not isinstance(name, str):
        return f"it is no text but {type(name).__name__}"
    if len(name) > LONGEST:
        return f"it has {len(name):,} characters, at most {LONGEST} are allowed"
    if not name or name != name.strip():
        return "it is empty, or begins or ends with a space"
    if any(unicodedata.category(c) in _STEERING or c in _TURNING for c in name):
        return "it holds a character that breaks lines or turns text around"
    return None


def read(path: Path, meta: Mapping[str, Any]) -> dict[int, dict[int, str]]:
    """Names of units by layer; nothing in their files is trusted.

    Parameters
    ----------
    path : Path
        The store's folder.
    meta : mapping
        Its ``store.json``.

    Raises
    ------
    StoreError
        If a file is none of plain JSON in the form of this format, or names what is not there.
    """
    folder = path / FOLDER
    if not os.path.lexists(folder):
        return {}
    _check_folder(folder)
    try:
        files = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise StoreError(f"cannot list {folder}: {error.strerror or error}") from error
    layers = [int(match[1]) for match in map(_FILE.fullmatch, files) if match]
    named = {layer_id: read_layer(path, meta, layer_id) for layer_id in sorted(layers)}
    return {layer_id: names for layer_id, names in named.items() if names}


def read_layer(path: Path, meta: Mapping[str, Any], layer_id: int) -> dict[int, str]:
    """Names of the units of one layer, as :func:`read` reads them; none where there is no file."""
    file = path / FOLDER / f"{layer_id}.json"
    if not os.path.lexists(file):
        return {}
    _check_folder(file.parent)
    checks = JsonFile(str(file), "remove it and name the units again")
    layers = meta["layers"]
    checks.expect(layer_id < len(layers), "its name", f"a number below {len(layers)}", file.name)
    raw = parse_object(read_limited(file, MAX_BYTES), checks.name)
    checks.version(raw, VERSION)
    content, layer = checks.typed(raw, _Names), layers[layer_id]
    checks.expect(content.layer == layer["name"], "layer", repr(layer["name"]), content.layer)
    names = {int(unit): name for unit, name in content.names.items()}
    for unit, name in names.items():
        holds = unit < layer["n_units"]
        checks.expect(holds, "names", f"units below {layer['n_units']:,}", unit)
        fault = fault_of(name)
        checks.expect(fault is None, f"names[{unit}]", "a name of a unit", fault)
    return dict(sorted(names.items()))


def write_layer(path: Path, layer: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Publish the names of a layer's units, whole or not at all; the last writer's stay.

    Raises
    ------
    StoreError
        If the disk does not take them.
    """
    folder = path / FOLDER
    content = {
        "format_version": VERSION,
        "layer": layer["name"],
        "names": {str(unit): name for unit, name in sorted(names.items())},
    }
    text = json.dumps(content, indent=1).encode("ascii")
    if len(text) > MAX_BYTES:
        raise InputError(f"the names of {layer['name']} take {len(text):,} bytes: name fewer units")
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        _check_folder(folder)
        sync_folder(path)
        write_synced(temporary, text)
        temporary.replace(folder / f"{layer['layer_id']}.json")
        sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"cannot write names of units to {folder}: {error.strerror or error}; those of before "
            "are as they were"
        ) from error
    finally:
        remove_quietly(temporary)


def left_over(path: Path) -> list[Path]:
    """Files of the folder that are no names."""
    folder = path / FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return []
    return [file for file in sorted(folder.iterdir()) if not _FILE.fullmatch(file.name)]


def unfinished(path: Path) -> list[Path]:
    """Files that a killed writer of names left."""
    return [file for file in left_over(path) if _LEFT.fullmatch(file.name)]


def _check_folder(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise StoreError(
            f"expected {folder} to be a folder, found "
            f"{'a symbolic link' if folder.is_symlink() else 'something else'}; a store holds "
            "plain files only: do not trust this one"
        )
