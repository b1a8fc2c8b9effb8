"""Manifests: a shard exists from the moment that its manifest does."""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, structs, to_builtins

from nrm_graph.errors import InputError, StoreError
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.output_files import remove_quietly, write_synced
from nrm_graph.store.format.files import parse_object, publish, read_limited, seal
from nrm_graph.store.format.json_file import Count, JsonFile, Sha256, Text
from nrm_graph.store.format.metadata import SQL_TYPES, name_problem
from nrm_graph.store.format.schema import (
    FORMAT_VERSION,
    OWN,
    TABLES,
    WEIGHTED_VERSION,
    aim_of,
    input_id,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nrm_graph.network.weighted_targets import Aim

MAX_MANIFEST_BYTES = 16 << 20
MAX_ERROR = 2000
MAX_FLAGS = 100
_FLAG = re.compile(r"^[a-z][a-z0-9_]{0,99}\Z")
_NAME = re.compile(r"^[0-9A-Za-z][0-9A-Za-z_-]{0,99}\Z")
_OWN_NAME = re.compile(r"[0-8][0-9]{18}-[0-9a-f]{16}")

Groups = Annotated[int, Meta(ge=0, le=1 << 31)]
Int32 = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
Int63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Flag = Annotated[str, Meta(pattern=_FLAG.pattern)]
ShardName = Annotated[str, Meta(pattern=_NAME.pattern)]


class FileInfo(Struct, frozen=True):
    """One data file of a shard: name, size in bytes, SHA-256 and number of rows."""

    name: str
    size: Count
    sha256: Sha256
    rows: Count


class Entry(Struct, frozen=True, omit_defaults=True):
    """One (key, target) pair of a shard; ``nodes`` and ``edges`` are (first row group, number).

    ``target`` is None of a weighted target, whose ``weights`` stand beside it; ``item``, ``flags``
    and ``kept`` are None in stores of before.
    """

    input_id: Int63
    key: Text
    target: Int32 | None
    content: Sha256
    nodes: tuple[Groups, Groups]
    edges: tuple[Groups, Groups]
    item: Count | None = None
    weights: str | None = None
    flags: Annotated[tuple[Flag, ...], Meta(max_length=MAX_FLAGS)] | None = None
    kept: Annotated[float, Meta(ge=0, le=1)] | None = None

    @property
    def aim(self) -> Aim:
        """What is explained: flat index of an output, or the text of weights."""
        return aim_of(self.target, self.weights)

    @property
    def explained(self) -> int | dict[Any, float]:
        """The same as a measure takes it."""
        return weights_of(self.aim) if isinstance(self.aim, str) else self.aim


@dataclass(frozen=True)
class Manifest:
    """What one shard holds.

    ``files`` is by table and empty where there are no ``inputs``; ``metadata`` maps field names
    to type names; ``failures`` are (key, error) pairs.
    """

    name: str
    files: Mapping[str, FileInfo]
    metadata: Mapping[str, str]
    inputs: tuple[Entry, ...]
    replaces: tuple[str, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def foreign(self) -> set[str]:
        """Fields of a user that bear the name of a column that the format has taken since."""
        names = {field.casefold() for field in self.metadata} & set(OWN)
        of_entry = {name: "kept" if name == "thresholds" else name for name in names}
        return {
            name
            for name, own in of_entry.items()
            if all(getattr(e, own) is None for e in self.inputs)
        }


class _Failure(Struct):
    key: Text
    error: Text


class _Files(Struct, forbid_unknown_fields=True):
    inputs: FileInfo | UnsetType = UNSET
    nodes: FileInfo | UnsetType = UNSET
    edges: FileInfo | UnsetType = UNSET
    tensors: FileInfo | UnsetType = UNSET


class _Stored(Struct):
    name: str
    files: _Files
    metadata: dict[str, str]
    inputs: tuple[Entry, ...]
    replaces: tuple[ShardName, ...]
    failures: tuple[_Failure, ...] = ()


def is_name(name: str) -> bool:
    """Whether a shard may bear a name."""
    return _NAME.fullmatch(name) is not None


def new_name(after: str = "") -> str:
    """Name of a new shard: nanoseconds and 64 random bits, unique without a lock.

    Names sort by time, so that of two shards with the same pair the older one counts; the name is
    greater than `after` even where the clock was set back.
    """
    earliest = int(after[:19] or "0") + 1
    return f"{max(time.time_ns(), earliest):019d}-{secrets.token_hex(8)}"


def name_after(last: str) -> str:
    """Name of a shard that takes the place of others, of which `last` is the greatest.

    It sorts right after `last`: the order of shards tells which of two pairs counts, and whether a
    failure was made good later.
    """
    if not _OWN_NAME.fullmatch(last):
        return new_name()
    return f"{int(last[:19]) + 1:019d}-{secrets.token_hex(8)}"


def data_name(shard: str, table: str) -> str:
    """File name of one table of a shard."""
    return f"{shard}.{table}.parquet"


def encode(manifest: Manifest) -> bytes:
    """Serialise a manifest as JSON."""
    weighted = any(e.weights is not None for e in manifest.inputs)
    content: dict[str, Any] = {
        "format_version": WEIGHTED_VERSION if weighted else FORMAT_VERSION,
        "name": manifest.name,
        "files": to_builtins(manifest.files),
        "metadata": dict(manifest.metadata),
        "inputs": to_builtins(manifest.inputs),
        "replaces": list(manifest.replaces),
        "failures": [{"key": key, "error": error} for key, error in manifest.failures],
    }
    return json.dumps(content | {"seal": seal(content)}, ensure_ascii=False).encode("utf-8")


def decode(name: str, data: bytes) -> Manifest:
    """Parse and validate the manifest of shard `name`; nothing in it is trusted.

    Raises
    ------
    StoreError
        If a field is missing, of a wrong type or names a file that is not the shard's own.
    """
    file = JsonFile(f"manifest {name}.json")
    raw = parse_object(data, file.name)
    weighted = file.version(raw, FORMAT_VERSION, WEIGHTED_VERSION) == WEIGHTED_VERSION
    stored = file.typed(raw, _Stored)
    file.expect(stored.name == name, "name", repr(name), stored.name)
    for field, kind in stored.metadata.items():
        file.expect(name_problem(field) is None, "metadata", "names of columns", field)
        file.expect(kind in SQL_TYPES, f"metadata.{field}", f"one of {', '.join(SQL_TYPES)}", kind)
    folded = {field.casefold() for field in stored.metadata}
    file.expect(len(folded) == len(stored.metadata), "metadata", "names of columns", "one twice")
    for place, entry in enumerate(stored.inputs):
        _check_entry(entry, file, f"inputs[{place}]", weighted)
    pairs = {entry.input_id for entry in stored.inputs}
    file.expect(len(pairs) == len(stored.inputs), "inputs", "unique pairs", "one twice")
    files = {t: info for t, info in structs.asdict(stored.files).items() if info is not UNSET}
    tables = TABLES if stored.inputs else ()
    file.expect(tuple(files) == tables, "files", f"the tables {tables}", sorted(files))
    for table, info in files.items():
        expected = data_name(name, table)
        file.expect(info.name == expected, f"files.{table}.name", repr(expected), info.name)
    file.expect(name not in stored.replaces, "replaces", "names of other shards", name)
    failures = tuple((failure.key, failure.error) for failure in stored.failures)
    return Manifest(name, files, stored.metadata, stored.inputs, stored.replaces, failures)


def _check_entry(entry: Entry, file: JsonFile, place: str, weighted: bool) -> None:
    """Check what the fields of an entry say about each other."""
    target, weights = entry.target, entry.weights
    file.expect(weights is None or weighted, f"{place}.weights", "null in version 1", weights)
    expected = "an integer" if weights is None else "null beside weights"
    file.expect((target is None) != (weights is None), f"{place}.target", expected, target)
    are_weights = weights is None or _is_weights(weights)
    file.expect(are_weights, f"{place}.weights", "weights of outputs", weights)
    identity = input_id(entry.key, entry.aim)
    subject = f"input_id of {entry.key!r}"
    file.expect(entry.input_id == identity, subject, str(identity), entry.input_id)


def read_manifest(folder: Path, name: str) -> Manifest:
    """Read the manifest of one shard.

    Raises
    ------
    StoreError
        If it is missing, a link or malformed.
    """
    return decode(name, read_limited(folder / f"{name}.json", MAX_MANIFEST_BYTES))


def commit(folder: Path, manifest: Manifest, temporaries: Mapping[str, Path]) -> None:
    """Publish a shard whose synced data files lie in its folder under temporary names.

    Data files first, the manifest last.  On an error before the manifest is in place everything
    of the shard is removed; after it, the shard is committed and stays.

    Parameters
    ----------
    folder : Path
        The store's ``shards``.
    manifest : Manifest
        What the shard holds.
    temporaries : mapping of str to Path
        The data files by table.

    Raises
    ------
    StoreError
        If a name is taken or the file system fails (disk full, read-only).
    """
    final = folder / f"{manifest.name}.json"
    temporary = final.with_name(final.name + ".tmp")
    published: list[Path] = []
    try:
        data = encode(manifest)
        if len(data) > MAX_MANIFEST_BYTES:
            raise StoreError(
                f"expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, found {len(data)}; "
                "use fewer inputs per shard or shorter keys"
            )
        for table, info in manifest.files.items():
            path = folder / info.name
            # Noted before the rename: a folder's failed fsync follows a rename that happened.
            if not path.exists():
                published.append(path)
            publish(temporaries[table], path)
        write_synced(temporary, data)
        publish(temporary, final)
    except BaseException as error:
        # Whether the manifest is in place is asked of the disk, for the rename may have happened.
        if not final.exists():
            for path in published:
                remove_quietly(path)
        for path in (*temporaries.values(), temporary):
            remove_quietly(path)
        if isinstance(error, OSError):
            raise StoreError(
                f"cannot write the shard {manifest.name} in {folder}: "
                f"{error.strerror or error}; what was committed before stays readable: "
                "free space or permissions and run the same command again"
            ) from error
        raise


def is_text(value: object) -> bool:
    """Whether a value is text that UTF-8 can hold (JSON may hold lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def are_flags(value: object) -> bool:
    """Whether a value is a short list of names; those of later releases may be others."""
    few = isinstance(value, list | tuple) and len(value) <= MAX_FLAGS
    return few and all(isinstance(name, str) and _FLAG.fullmatch(name) for name in value)  # type: ignore[attr-defined]


@lru_cache(maxsize=64)  # mostly one for all inputs
def _is_weights(text: str) -> bool:
    try:
        return bool(weights_of(text))
    except InputError:
        return False
