"""Manifests: a shard exists from the moment that its manifest does."""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, StoreError
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.output_files import remove_quietly, write_synced
from nrm_graph.store.format.files import parse_object, publish, read_limited, seal
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
_FLAG = re.compile(r"[a-z][a-z0-9_]{0,99}")
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")
_OWN_NAME = re.compile(r"[0-8][0-9]{18}-[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileInfo:
    """One data file of a shard: name, size in bytes, SHA-256 and number of rows."""

    name: str
    size: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One (key, target) pair of a shard; ``nodes`` and ``edges`` are (first row group, number).

    ``target`` is None of a weighted target, whose ``weights`` stand beside it; ``item`` and
    ``flags`` are None in stores of before.
    """

    input_id: int
    key: str
    target: int | None
    content: str
    nodes: tuple[int, int]
    edges: tuple[int, int]
    item: int | None = None
    weights: str | None = None
    flags: tuple[str, ...] | None = None

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
        return {name for name in names if all(getattr(e, name) is None for e in self.inputs)}


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
        "files": {
            table: {"name": f.name, "size": f.size, "sha256": f.sha256, "rows": f.rows}
            for table, f in manifest.files.items()
        },
        "metadata": dict(manifest.metadata),
        "inputs": [
            {
                "input_id": e.input_id,
                "key": e.key,
                "target": e.target,
                "content": e.content,
                "nodes": list(e.nodes),
                "edges": list(e.edges),
                **{n: getattr(e, n) for n in OWN if getattr(e, n) is not None},
            }
            for e in manifest.inputs
        ],
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
    raw = parse_object(data, f"manifest {name}.json")
    version = raw.get("format_version")
    if version not in (FORMAT_VERSION, WEIGHTED_VERSION) or isinstance(version, bool):
        raise StoreError(
            f"manifest {name}.json has format version {version!r}; this release reads "
            f"{FORMAT_VERSION} and {WEIGHTED_VERSION}: install the release that wrote the store"
        )
    _expect(raw.get("name") == name, name, "name", f"{name!r}", raw.get("name"))
    metadata = _object(raw, "metadata", name)
    for field, kind in metadata.items():
        _expect(name_problem(field) is None, name, "metadata", "names of columns", field)
        known = isinstance(kind, str) and kind in SQL_TYPES
        _expect(known, name, f"metadata.{field}", f"one of {', '.join(SQL_TYPES)}", kind)
    folded = {field.casefold() for field in metadata}
    _expect(len(folded) == len(metadata), name, "metadata", "names of columns", "one twice")
    weighted = version == WEIGHTED_VERSION
    inputs = tuple(_entry(e, name, weighted) for e in _list(raw, "inputs", name))
    files = _object(raw, "files", name)
    tables = set(TABLES) if inputs else set()
    _expect(set(files) == tables, name, "files", f"the tables {TABLES}", sorted(files))
    _expect(
        len({e.input_id for e in inputs}) == len(inputs), name, "inputs", "unique pairs", "twice"
    )
    replaces = _list(raw, "replaces", name)
    for other in replaces:
        plain = isinstance(other, str) and _NAME.fullmatch(other) is not None and other != name
        _expect(plain, name, "replaces", "names of other shards", other)
    return Manifest(
        name=name,
        files={table: _file(files[table], name, table) for table in TABLES if files},
        metadata=metadata,
        inputs=inputs,
        replaces=tuple(replaces),
        failures=tuple(_failure(f, name) for f in _list({"failures": [], **raw}, "failures", name)),
    )


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


def _expect(holds: bool, shard: str, field: str, expected: str, found: object) -> None:
    if not holds:
        shown = repr(found)
        raise StoreError(
            f"manifest {shard}.json is malformed: expected {field} to be {expected}, "
            f"found {shown[:100]}; copy the store again, and do not trust one from a stranger"
        )


def _object(raw: Mapping[str, Any], field: str, shard: str) -> dict[str, Any]:
    value = raw.get(field)
    _expect(isinstance(value, dict), shard, field, "an object", value)
    assert isinstance(value, dict)
    return value


def _list(raw: Mapping[str, Any], field: str, shard: str) -> list[Any]:
    value = raw.get(field)
    _expect(isinstance(value, list), shard, field, "a list", value)
    assert isinstance(value, list)
    return value


def _failure(raw: Any, shard: str) -> tuple[str, str]:
    _expect(isinstance(raw, dict), shard, "a failure", "an object", raw)
    key, error = raw.get("key"), raw.get("error")
    _expect(is_text(key) and is_text(error), shard, "a failure", "key and error as text", raw)
    return key, error


def is_text(value: object) -> bool:
    """Whether a value is text that UTF-8 can hold (JSON may hold lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _file(raw: Any, shard: str, table: str) -> FileInfo:
    field = f"files.{table}"
    _expect(isinstance(raw, dict), shard, field, "an object", raw)
    name = data_name(shard, table)
    _expect(raw.get("name") == name, shard, f"{field}.name", repr(name), raw.get("name"))
    for count in ("size", "rows"):
        value = raw.get(count)
        _expect(_is_int(value, 0, 1 << 62), shard, f"{field}.{count}", "a count", value)
    digest = raw.get("sha256")
    valid = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
    _expect(valid, shard, f"{field}.sha256", "64 hexadecimal digits", digest)
    return FileInfo(name, raw["size"], raw["sha256"], raw["rows"])


def _entry(raw: Any, shard: str, weighted: bool) -> Entry:
    _expect(isinstance(raw, dict), shard, "an input", "an object", raw)
    key, target, content = raw.get("key"), raw.get("target"), raw.get("content")
    item, weights, flags = raw.get("item"), raw.get("weights"), raw.get("flags")
    _expect(is_text(key), shard, "key", "text", key)
    if weights is None or not weighted:
        _expect(_is_int(target, -(1 << 31), (1 << 31) - 1), shard, "target", "an int32", target)
        weights = None
    else:
        _expect(target is None, shard, f"target of {key!r}", "null beside weights", target)
        known = isinstance(weights, str) and _is_weights(weights)
        _expect(known, shard, "weights", "weights of outputs", weights)
    _expect(item is None or _is_int(item, 0, 1 << 62), shard, "item", "a count or null", item)
    _expect(flags is None or are_flags(flags), shard, "flags", "a list of names or null", flags)
    flags = None if flags is None else tuple(flags)
    valid = isinstance(content, str) and _SHA256.fullmatch(content) is not None
    _expect(valid, shard, "content", "64 hexadecimal digits", content)
    expected = input_id(key, aim_of(target, weights))
    found = raw.get("input_id")
    matches = _is_int(found, 0, (1 << 63) - 1) and found == expected
    _expect(matches, shard, f"input_id of {key!r}", f"{expected}", found)
    groups = []
    for table in ("nodes", "edges"):
        value = raw.get(table)
        pair = (
            isinstance(value, list)
            and len(value) == 2
            and all(_is_int(number, 0, 1 << 31) for number in value)
        )
        _expect(pair, shard, f"{table} of {key!r}", "[first row group, number]", value)
        groups.append((value[0], value[1]))
    return Entry(found, key, target, content, groups[0], groups[1], item, weights, flags)


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
