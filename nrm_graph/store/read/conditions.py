"""Conditions: tables of measures beside a store's own, each in shards of its own.

They are conditioned on an event, or reduced to chosen nodes, or both.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import Struct, to_builtins

from nrm_graph.errors import EventError, InputError, StoreError
from nrm_graph.events import serialization
from nrm_graph.store.format.files import (
    create_once,
    parse_object,
    read_limited,
    seal,
    sync_folder,
    together,
)
from nrm_graph.store.format.json_file import JsonFile, Sha256, Text
from nrm_graph.store.format.listing import MAX_LOOKS
from nrm_graph.store.format.recorded_nodes import check_records
from nrm_graph.store.format.schema import CONDITION_FACTS, FORMAT_VERSION, VIEWS
from nrm_graph.store.format.settings import layers_of
from nrm_graph.store.read import reduced
from nrm_graph.store.read.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from nrm_graph.events.sets import Event
    from nrm_graph.store.format.manifest import Entry, Manifest
    from nrm_graph.store.read.reduced import Proposal, RecordedNodes

FOLDER = "conditions"
FILE = "condition.json"
MAX_CONDITION_BYTES = 64 << 20
MAX_NAME = 60
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class _Stored(Struct, forbid_unknown_fields=True):
    format_version: int
    name: str
    event: Any
    where: Text | None
    program_hash: Sha256
    store: Sha256
    seal: str


@dataclass(frozen=True)
class Condition:
    """An event, nodes, or both, and for which inputs their tables are committed.

    Attributes
    ----------
    name : str
        Its tables are ``<name>_inputs``, ``<name>_nodes`` and ``<name>_edges``; of reduced ones
        further ``<name>_layers``.
    event : Event or None
        What the measures are conditioned on; None of reduced tables without a condition.
    where : str or None
        SQL condition over ``inputs`` that chose the inputs; None for all.
    snapshot : Snapshot
        Its shards.
    nodes : RecordedNodes or None
        Nodes of reduced tables.
    """

    name: str
    event: Event | None
    where: str | None
    snapshot: Snapshot
    nodes: RecordedNodes | None = None


def check_name(name: object) -> str:
    """Refuse what cannot name a condition; a name is part of tables and of a path.

    Raises
    ------
    InputError
        If it is no identifier of ASCII letters, digits and underscores that begins with a
        letter, longer than 60 characters, or the name of one of the store's own tables.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InputError(
            f"{repr(name)[:100]} cannot name a condition: expected at most {MAX_NAME} letters, "
            "digits and underscores, a letter first"
        )
    if name.lower() in VIEWS:
        raise InputError(f"{name!r} cannot name a condition: it is a table of the store")
    return name


def store_identity(meta: Mapping[str, Any]) -> str:
    """SHA-256 of ``store.json``, which never changes: a condition belongs to one store."""
    return seal({name: value for name, value in meta.items() if name != "seal"})


def folder_of(path: Path, name: str) -> Path:
    """Folder of a condition, in lower case: two names that differ in it alone would clash."""
    return path / FOLDER / name.lower()


def create(
    path: Path,
    meta: Mapping[str, Any],
    name: str,
    event: Event | None,
    where: str | None,
    proposal: Proposal | None = None,
) -> Path:
    """Make a condition, or check that the one of this name is the same.

    Several processes may do so at once: one makes it, the others compare.

    Parameters
    ----------
    path : Path
        The store's folder.
    meta : mapping
        Content of ``store.json``.
    name, event, where
        See :class:`Condition`.
    proposal : Proposal, optional
        Of reduced tables, their nodes, which are chosen where none are on record.

    Returns
    -------
    Path
        Its folder, which holds ``shards``.

    Raises
    ------
    InputError
        If the name cannot be used.
    EventError
        If the event cannot be written as JSON.
    StoreError
        If the name has another event, ``where`` or nodes, or the disk fails.
    """
    check_name(name)
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION if proposal is None else reduced.VERSION,
        "name": name,
        "event": None if event is None else serialization.to_json(event),
        "where": where,
        "program_hash": meta["program_hash"],
        "store": store_identity(meta),
    }
    if proposal is not None:
        content["asked"] = proposal.asked
    folder = _made(path, name)
    with _making(path, name):
        if not os.path.lexists(folder / FILE):
            nodes = {} if proposal is None else proposal.content(folder)
            create_once(folder / FILE, _text(content | nodes))
    _check_same(to_builtins(read_content(folder, meta)), content)
    return folder


def _text(content: Mapping[str, Any]) -> bytes:
    text = json.dumps({**content, "seal": seal(content)}, indent=1, allow_nan=False).encode()
    if len(text) > MAX_CONDITION_BYTES:
        raise EventError(
            f"a condition of {len(text):,} bytes as JSON cannot be stored: the limit is "
            f"{MAX_CONDITION_BYTES:,}"
        )
    return text


def _check_same(stored: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Refuse what is not what a name has been given to."""
    name = content["name"]
    if stored["name"] != name:
        raise InputError(
            f"there is a condition {stored['name']!r}: {name!r} differs in letter case alone, use "
            "another name"
        )
    if stored["format_version"] != content["format_version"]:
        kinds = "tables of all units", "reduced tables (watch=)"
        before, after = kinds if "asked" in content else kinds[::-1]
        raise StoreError(f"the name {name} holds {before}, asked for are {after}; use another name")
    # Compared as JSON: a list is as a tuple there.
    for field in ("event", "where"):
        _compare(name, field, stored[field], content[field])
    for field, asked in content.get("asked", {}).items():
        _compare(name, field, stored["asked"][field], asked)


def _compare(name: str, field: str, before: object, after: object) -> None:
    if before != after:
        texts = [_shown(value, field) for value in (before, after)]
        raise StoreError(
            f"the condition {name} was made with another {field}: it has {texts[0]}, asked for is "
            f"{texts[1]}; use another name"
        )


def undropped(path: Path, name: str) -> AbstractContextManager[None]:
    """Let no one drop a condition, which need not be there yet, while its shards are written.

    Raises
    ------
    InputError
        If the name cannot be used.
    StoreError
        If the condition is being dropped, or the disk fails.
    """
    check_name(name)
    return together(_made(path, name), f"a drop of {name}")


def _made(path: Path, name: str) -> Path:
    """Folder of a condition, which is there with its ``shards``."""
    folder = folder_of(path, name)
    with _making(path, name):
        for needed in (folder.parent, folder, folder / "shards"):
            _no_link(needed)
            if not needed.is_dir():
                needed.mkdir(exist_ok=True)
                sync_folder(needed.parent)
    return folder


@contextlib.contextmanager
def _making(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot make the condition {name} in {path}: {error.strerror or error}; free "
            "space or permissions and run the same command again"
        ) from error


def read_conditions(
    path: Path, meta: Mapping[str, Any], entries: Mapping[int, Entry]
) -> dict[str, Condition]:
    """Conditions of a store, which holds `entries`, by name.

    A folder without ``condition.json`` is none.

    Raises
    ------
    StoreError
        If one is damaged, of another store or not made by this package.
    """
    conditions = (_undropped(folder, meta, entries) for folder in condition_folders(path))
    return {condition.name: condition for condition in conditions if condition is not None}


def _undropped(
    folder: Path, meta: Mapping[str, Any], entries: Mapping[int, Entry]
) -> Condition | None:
    """Read a condition, or None where it is dropped meanwhile: event and shards are of one."""
    for _ in range(MAX_LOOKS):
        before = _file_of(folder)
        if before is None:
            return None
        try:
            condition = read_condition(folder, meta, entries)
            if _file_of(folder) == before:
                return condition
        except StoreError:
            if _file_of(folder) == before:
                raise
    raise StoreError(f"the condition of {folder} is dropped and made again all the time: try again")


def _file_of(folder: Path) -> tuple[int, int] | None:
    """Which file ``condition.json`` is; None where there is none."""
    try:
        status = (folder / FILE).lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def condition_folders(path: Path) -> list[Path]:
    """Folders of a store's conditions, in the order of their names.

    Raises
    ------
    StoreError
        If a folder is a link or cannot be listed.
    """
    return [entry for entry in _folders(path) if os.path.lexists(entry / FILE)]


def dropped_folders(path: Path) -> list[Path]:
    """Folders of conditions that were dropped: with shards, but without ``condition.json``.

    Raises
    ------
    StoreError
        If a folder is a link or cannot be listed.
    """
    return [
        entry
        for entry in _folders(path)
        if not entry.is_symlink()
        and not os.path.lexists(entry / FILE)
        and any((entry / "shards").glob("*.json"))
    ]


def _folders(path: Path) -> list[Path]:
    folder = path / FOLDER
    if not os.path.lexists(folder):
        return []
    _no_link(folder)
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise StoreError(f"cannot list {folder}: {error.strerror or error}") from error


def read_condition(
    folder: Path, meta: Mapping[str, Any], entries: Mapping[int, Entry]
) -> Condition:
    """Read one condition and the manifests of its shards; nothing in it is trusted.

    Raises
    ------
    StoreError
        If it is damaged, of another store or not made by this package.
    """
    stored = read_content(folder, meta)
    nodes = None
    try:
        if isinstance(stored, reduced.StoredReduced):
            nodes = reduced.recorded(folder, stored, layers_of(meta))
        snapshot = Snapshot(folder, store=entries)
        for manifest in snapshot.manifests.values():
            problem = facts_problem(manifest)
            if problem:
                raise StoreError(problem)
    except StoreError as error:
        raise StoreError(
            f"the condition {stored.name} of the store is damaged: {error}; remove {folder} and "
            "materialize anew"
        ) from error
    event = None if stored.event is None else serialization.from_json(stored.event)
    return Condition(stored.name, event, stored.where, snapshot, nodes)


def read_content(folder: Path, meta: Mapping[str, Any]) -> _Stored | reduced.StoredReduced:
    """Content of ``condition.json``; nothing in it is trusted.

    Raises
    ------
    StoreError
        If it is malformed, or of another store.
    """
    _no_link(folder)
    path = folder / FILE
    advice = f"remove the folder {folder} and materialize anew"
    file = JsonFile(str(path), advice)
    raw = parse_object(read_limited(path, MAX_CONDITION_BYTES), file.name)
    stored: _Stored | reduced.StoredReduced
    if file.version(raw, FORMAT_VERSION, reduced.VERSION) == FORMAT_VERSION:
        stored = file.typed(raw, _Stored)
    else:
        stored = file.typed(raw, reduced.StoredReduced)
        check_records(file, stored.layers, stored.file, layers_of(meta))
    try:
        check_name(stored.name)
        if stored.event is not None or isinstance(stored, _Stored):
            serialization.from_json(stored.event)
    except (InputError, EventError) as error:
        raise StoreError(f"{path} is malformed: {error}; {advice}") from None
    expected = f"that of the folder, {folder.name!r}"
    file.expect(stored.name.lower() == folder.name, "name", expected, stored.name)
    for subject, recorded, actual in (
        ("program", stored.program_hash, str(meta["program_hash"])),
        ("store", stored.store, store_identity(meta)),
    ):
        if recorded != actual:
            raise StoreError(
                f"the condition {stored.name} of {folder.parent.parent} was made with another "
                f"{subject} ({recorded[:12]}..., here it is {actual[:12]}...): {advice}"
            )
    return stored


def facts_problem(manifest: Manifest) -> str | None:
    """Say how the columns of a shard's inputs are not those of a condition, or None if they are."""
    own = {"weights", "kept", "thresholds"}
    kinds = {field: kind for field, kind in manifest.metadata.items() if field not in own}
    # Shards of before errors were stated lack them.
    fits = {*kinds, "error"} == set(CONDITION_FACTS) and all(
        kind in (CONDITION_FACTS[field], "null") for field, kind in kinds.items()
    )
    if fits or not manifest.inputs:
        return None
    return (
        f"its shard {manifest.name} has the columns {repr(kinds)[:200]}, expected "
        f"{dict(CONDITION_FACTS)}; do not trust it"
    )


def _no_link(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StoreError(
            f"expected {folder} to be a folder, found a link or a file; do not trust it"
        )


def _shown(value: object, field: str) -> str:
    if field == "event" and value is not None:
        value = serialization.from_json(value)
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
