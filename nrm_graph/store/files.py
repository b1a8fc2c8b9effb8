"""Making a store, committing shards, and reading what is committed."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from nrm_graph.errors import InputError, StoreError
from nrm_graph.store.schema import (
    FORMAT_VERSION,
    INPUTS,
    SCHEMAS,
    Record,
    content_hash,
    input_id,
    parquet_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_JSON = 256 * 1024 * 1024


def local(path: str | os.PathLike[str]) -> Path:
    """Return a local path; URLs are refused."""
    if "://" in str(path):
        raise StoreError(f"{path} is a URL: a store must be a folder on a local or mounted disk")
    return Path(path)


def _commit(path: Path, data: bytes, exclusive: bool = False) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:  # a link fails where the name exists; a rename would overwrite
            os.link(temporary, path)
        else:
            temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """Read a JSON file of bounded size that is no symbolic link."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_JSON:
            raise StoreError(f"{path} is a link or too large: not written by this package")
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: the store is incomplete or was half copied") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None


def read_settings(path: Path) -> dict[str, Any]:
    """Read ``store.json``."""
    if not path.is_dir():
        raise StoreError(f"there is no store at {path}: expected a folder made by extract")
    if not (path / "store.json").exists():
        raise StoreError(f"{path} is not a store: it has no store.json")
    settings = read_json(path / "store.json")
    version = settings.get("format_version") if isinstance(settings, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version!r}; this release reads version {FORMAT_VERSION}"
        )
    for name in ("program.json", "weights.safetensors"):
        if not (path / name).is_file():
            raise StoreError(f"{path} is incomplete: it has no {name} (half copied?)")
    return settings  # type: ignore[no-any-return]


def create(
    path: Path,
    settings: Mapping[str, Any],
    program: str,
    weights: Mapping[str, np.ndarray[Any, Any]],
    units: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    """Make a store, or check that the one that is there has the same settings.

    Raises
    ------
    StoreError
        If a store is there that was made otherwise; the message names the difference.
    """
    if (path / "store.json").exists():
        found = read_settings(path)
        for name in ("program_hash", "composite", "layers", "coverage", "classes"):
            if found.get(name) != settings[name]:
                raise StoreError(
                    f"{path} was made with another {name.replace('_', ' ')}: use the same model "
                    "and settings, or another folder"
                )
        return
    if path.exists() and any(path.iterdir()):
        raise StoreError(f"{path} exists and is no store: choose an empty or new folder")
    try:
        (path / "shards").mkdir(parents=True, exist_ok=True)
        _commit(path / "program.json", program.encode())
        _commit(path / "weights.safetensors", safetensors.numpy.save(dict(weights)))
        if units:
            _commit(path / "units.safetensors", safetensors.numpy.save(dict(units)))
        text = json.dumps(settings, indent=1, sort_keys=True)
        _commit(path / "store.json", text.encode(), exclusive=True)
    except OSError as error:
        raise StoreError(f"cannot make a store at {path}: {error}") from None


@dataclass(frozen=True)
class Place:
    """Where one input lies: shard and the row groups of its nodes and edges."""

    shard: str
    key: str
    target: int
    content: str
    nodes: tuple[int, ...]
    edges: tuple[int, ...]


def places(path: Path) -> dict[int, Place]:
    """Read all manifests: input id to place, the smaller shard name winning."""
    found: dict[int, Place] = {}
    for manifest in sorted((path / "shards").glob("*.json")):
        data = read_json(manifest)
        try:
            for table, entry in data["files"].items():
                name = f"{manifest.stem}.{table}.parquet"
                file = manifest.parent / name
                if table not in SCHEMAS or entry["name"] != name or file.is_symlink():
                    raise StoreError(f"{manifest} names {entry['name']!r}: not a file of its own")
                size = file.stat().st_size if file.is_file() else None
                if size != entry["size"]:
                    raise StoreError(
                        f"{file} has {size} bytes, its manifest says {entry['size']}: truncated "
                        "or half copied"
                    )
            for row in data["inputs"]:
                place = Place(
                    manifest.stem,
                    str(row["key"]),
                    int(row["target"]),
                    str(row["content"]),
                    tuple(int(g) for g in row["nodes"]),
                    tuple(int(g) for g in row["edges"]),
                )
                found.setdefault(input_id(place.key, place.target), place)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{manifest} is not a manifest: {error}") from None
    return found


class Writer:
    """Write records to one store; shards are committed as they fill, and at the end.

    Used as a context manager: what is complete is committed even when an error or Ctrl-C ends
    the block.
    """

    def __init__(self, path: Path, max_inputs: int = 100) -> None:
        self.path, self.max_inputs = path, max_inputs
        self.known = {i: place.content for i, place in places(path).items()}
        self._keys = {place.key: place.content for place in places(path).values()}
        self._open: _Shard | None = None

    def add(self, record: Record) -> bool:
        """Write a record; False if its pair is committed already.

        Raises
        ------
        StoreError
            If the key is there with another content.
        InputError
            If a number is not finite, or a metadata name is reserved.
        """
        content = content_hash(record.tensor)
        if self._keys.get(record.key, content) != content:
            raise StoreError(
                f"the key {record.key!r} is in the store with another content: give the new "
                "input another key"
            )
        identity = input_id(record.key, record.target)
        if identity in self.known:
            return False
        _validate(record)
        if self._open is None:
            self._open = _Shard(self.path / "shards")
        self._open.add(identity, content, record)
        self.known[identity] = self._keys[record.key] = content
        if len(self._open.rows) >= self.max_inputs:
            self.flush()
        return True

    def flush(self) -> None:
        """Commit what has been written."""
        if self._open is not None:
            shard, self._open = self._open, None
            shard.commit()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def _validate(record: Record) -> None:
    for name, table in (("nodes", record.nodes), ("edges", record.edges)):
        values = table["relevance"].to_numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            column = "layer_id" if name == "nodes" else "dst_layer"
            raise InputError(
                f"input {record.key!r}: a relevance in layer {table[column][int(bad[0])]} is "
                f"{values[bad[0]]}: relevances must be finite"
            )
    if not np.isfinite(record.logit):
        raise InputError(f"input {record.key!r}: its logit is {record.logit}")
    reserved = set(record.metadata) & set(INPUTS.names)
    if reserved:
        raise InputError(f"metadata names {sorted(reserved)} are reserved: rename them")


class _Shard:
    """Parquet files of one shard, written to ``.tmp`` names until the commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        self.rows: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.tensors: dict[str, dict[str, Any]] = {}
        self.writers: dict[str, pq.ParquetWriter] = {}
        self.groups = {"nodes": 0, "edges": 0}
        try:
            for table in self.groups:
                schema = SCHEMAS[table]
                self.writers[table] = pq.ParquetWriter(
                    self._temporary(table), schema, **parquet_options(schema)
                )
        except OSError as error:
            raise StoreError(f"cannot write to {folder}: {error}") from None

    def _temporary(self, table: str) -> Path:
        return self.folder / f"{self.name}.{table}.parquet.tmp"

    def add(self, identity: int, content: str, record: Record) -> None:
        groups = {}
        for table in self.groups:
            data: pa.Table = getattr(record, table)
            ids = pa.array(np.full(len(data), identity, np.int64))
            data = data.add_column(0, "input_id", ids).cast(SCHEMAS[table])
            first = self.groups[table]
            self.writers[table].write_table(data, row_group_size=1 << 20)
            count = max(1, -(-len(data) // (1 << 20))) if len(data) else 0
            self.groups[table] += count
            groups[table] = list(range(first, first + count))
        self.rows.append({"key": record.key, "target": record.target, "content": content, **groups})
        self.inputs.append(
            {
                **record.metadata,
                "input_id": identity,
                "key": record.key,
                "label": record.label,
                "target": record.target,
                "predicted": record.predicted,
                "logit": record.logit,
            }
        )
        self.tensors[record.key] = {
            "key": record.key,
            "content": content,
            "dtype": record.tensor.dtype.str,
            "shape": list(record.tensor.shape),
            "data": record.tensor.tobytes(order="C"),
        }

    def commit(self) -> None:
        try:
            for writer in self.writers.values():
                writer.close()
            extra = pa.Table.from_pylist(self.inputs)
            fields = [extra.schema.field(n) for n in extra.column_names if n not in INPUTS.names]
            inputs = pa.Table.from_pylist(self.inputs, pa.schema([*INPUTS, *fields]))
            tensors = pa.Table.from_pylist(list(self.tensors.values()), SCHEMAS["tensors"])
            pq.write_table(inputs, self._temporary("inputs"), compression="zstd")
            pq.write_table(
                tensors, self._temporary("tensors"), compression="zstd", use_dictionary=False
            )
            files = {}
            for table in SCHEMAS:
                temporary = self._temporary(table)
                with temporary.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())
                final = temporary.with_suffix("")
                files[table] = {
                    "name": final.name,
                    "size": temporary.stat().st_size,
                    "sha256": digest,
                }
                temporary.replace(final)
            _sync_folder(self.folder)
            manifest = {"format_version": FORMAT_VERSION, "files": files, "inputs": self.rows}
            _commit(self.folder / f"{self.name}.json", json.dumps(manifest).encode())
        except OSError as error:
            raise StoreError(f"cannot write the shard {self.name}: {error}") from None
        finally:
            for table in SCHEMAS:
                self._temporary(table).unlink(missing_ok=True)


def read_rows(path: Path, place: Place, table: str) -> pa.Table:
    """Rows of one input, by its row groups, with page checksums verified."""
    file = path / "shards" / f"{place.shard}.{table}.parquet"
    groups = place.nodes if table == "nodes" else place.edges
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as reader:
            return reader.read_row_groups(list(groups))
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{file} is damaged: {error}") from None


def read_tensor(path: Path, place: Place) -> np.ndarray[Any, Any]:
    """Input tensor of a place, its hash checked."""
    file = path / "shards" / f"{place.shard}.tensors.parquet"
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        row = next(r for r in table.to_pylist() if r["key"] == place.key)
        tensor = np.frombuffer(row["data"], np.dtype(row["dtype"])).reshape(row["shape"])
    except (OSError, pa.ArrowException, StopIteration, ValueError, TypeError) as error:
        raise StoreError(f"{file} is damaged: {error!r}") from None
    if content_hash(tensor) != place.content:
        raise StoreError(f"{file}: the tensor of {place.key!r} is not the one that was explained")
    return tensor


def shard_files(path: Path, found: Sequence[Place], table: str) -> list[str]:
    """Files that hold the given places, as absolute paths."""
    names = dict.fromkeys(place.shard for place in found)
    return [str((path / "shards" / f"{name}.{table}.parquet").resolve()) for name in names]
