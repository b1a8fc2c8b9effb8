"""One shard while it is written: data files under temporary names until the commit."""

from __future__ import annotations

import contextlib
import math
import re
import secrets
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec.structs import replace

from nrm_graph.errors import InputError, StoreError
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.output_files import remove_quietly
from nrm_graph.store.format import metadata
from nrm_graph.store.format.files import HashingFile
from nrm_graph.store.format.manifest import (
    Entry,
    FileInfo,
    Manifest,
    are_flags,
    commit,
    data_name,
    is_text,
)
from nrm_graph.store.format.schema import (
    GROUPS_PER_FILE,
    INPUTS,
    NAMED_TENSORS,
    ORDER,
    ROWS_PER_GROUP,
    SCHEMAS,
    TABLES,
    TENSOR_DTYPES,
    TENSORS,
    Record,
    aim_of,
    ascents,
    content_hash,
    input_id,
    parquet_options,
    tensor_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from nrm_graph.store.format.metadata import Plain

MAX_KEY_BYTES = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_key(key: object) -> None:
    """Refuse a key that a store cannot hold.

    Raises
    ------
    InputError
        If it is no text of 1 to 4096 bytes in UTF-8.
    """
    if not isinstance(key, str) or not is_text(key) or not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        raise InputError(
            f"expected a key of valid Unicode, 1 to {MAX_KEY_BYTES} bytes long, found "
            f"{repr(key)[:100]}: give the input another key"
        )


def checked(record: Record) -> tuple[pa.Table, pa.Table]:
    """Check a record; its nodes and edges in the types of the store, without ``input_id``.

    Raises
    ------
    InputError
        If a value is not finite (naming input and layer), missing or out of range.
    """
    check_key(record.key)
    name = f"input {record.key!r}"
    _check_own(record, name)
    for field in ("predicted",) if record.target is None else ("target", "predicted"):
        value = getattr(record, field)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int or not -(1 << 31) <= value < 1 << 31:
            raise InputError(f"{name}: expected {field} to be a 32-bit integer, found {value!r}")
    with np.errstate(over="ignore"):  # float32 may overflow to the infinity that is refused
        if not math.isfinite(np.float32(record.logit)):
            raise InputError(f"{name}: its logit is {record.logit}: expected a finite float32")
    if record.label is not None and not is_text(record.label):
        raise InputError(f"{name}: expected a label of valid Unicode, found {record.label!r}")
    if not isinstance(record.content, str) or not _SHA256.fullmatch(record.content):
        raise InputError(f"{name}: expected content to be a SHA-256, found {record.content!r}")
    for tensor in record.tensors.values():
        if tensor.dtype.name not in TENSOR_DTYPES:
            raise InputError(f"{name}: a tensor of type {tensor.dtype} cannot be stored")
    return _typed(record.nodes, "nodes", name), _typed(record.edges, "edges", name)


def _check_own(record: Record, name: str) -> None:
    """Refuse a pair that explains nothing, a place that is none, and flags that are no names."""
    try:
        aim = aim_of(record.target, record.weights)
        if isinstance(aim, str):
            weights_of(aim)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    item = record.item
    is_count = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62
    if item is not None and not is_count:
        raise InputError(f"{name}: expected its item to be a count, found {item!r}")
    if record.flags is not None and not are_flags(record.flags):
        raise InputError(f"{name}: expected its flags to be names, found {record.flags!r:.80}")
    if record.kept is not None and not 0 <= record.kept <= 1:
        raise InputError(f"{name}: expected a share kept from 0 to 1, found {record.kept!r}")


def _typed(table: pa.Table, kind: str, name: str) -> pa.Table:
    schema = SCHEMAS[kind].remove(0)
    missing = [column for column in schema.names if column not in table.column_names]
    if missing:
        raise InputError(f"{name}: its {kind} lack the columns {', '.join(missing)}")
    try:
        typed = table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{name}: its {kind} do not fit the store's types: {error}") from error
    for field in schema:
        column = typed[field.name]
        if not field.nullable and column.null_count:
            raise InputError(f"{name}: {field.name} of its {kind} is null: expected a value")
        if pa.types.is_floating(field.type):
            row = pc.index(pc.is_finite(column), False).as_py()
            if row >= 0:
                layer = typed[schema.names[0]][row].as_py()
                raise InputError(
                    f"{name}: {field.name} of its {kind} is {column[row].as_py()} in layer "
                    f"{layer}: expected finite numbers; see whether the input or the network's "
                    "output is very large, or use another composite"
                )
    return typed


def ordered(table: pa.Table, kind: str, name: str) -> pa.Table:
    """Rows of one input in the order of the format.

    Raises
    ------
    InputError
        If two rows speak of the same unit or edge.
    """
    keys = [table[column].to_numpy() for column in ORDER[kind]]
    for attempt in range(2):
        later, equal = ascents(keys)
        if equal.any():
            row = int(np.flatnonzero(equal)[0])
            twice = dict(zip(ORDER[kind], (int(key[row]) for key in keys), strict=True))
            raise InputError(f"input {name!r}: its {kind} hold {twice} twice: sum such rows")
        if later.all() or attempt:
            break
        order = np.lexsort(keys[::-1])
        table = table.take(pa.array(order))
        keys = [key[order] for key in keys]
    return table


class OpenShard:
    """A shard that records are added to.

    Parameters
    ----------
    folder : Path
        The store's ``shards``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token = secrets.token_hex(8)
        self._files: dict[str, HashingFile] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._groups = {"nodes": 0, "edges": 0}
        self._rows = dict.fromkeys(TABLES, 0)
        self._inputs: list[dict[str, object]] = []
        self._metadata: list[Mapping[str, Plain]] = []
        self._entries: list[Entry] = []
        self._tensors: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return sum(file.size for file in self._files.values())

    @property
    def full(self) -> bool:
        """Whether its files hold as many row groups as a file should."""
        return max(self._groups.values()) >= GROUPS_PER_FILE

    def _write(self, table: str, data: pa.Table) -> None:
        if table not in self._writers:
            self._files[table] = HashingFile(self.folder / f"{self._token}.{table}.parquet.tmp")
            self._writers[table] = pq.ParquetWriter(
                self._files[table], data.schema, **parquet_options(table)
            )
        if len(data):  # else Arrow writes a row group without rows
            self._writers[table].write_table(data, row_group_size=ROWS_PER_GROUP)
        self._rows[table] += len(data)

    def _write_groups(self, table: str, parts: Iterable[pa.Table]) -> tuple[int, int]:
        """Write rows of one input; their first row group, and the number of these."""
        first = self._groups[table]
        for rows in parts:
            if len(rows):
                self._write(table, rows)
                self._groups[table] += -(-len(rows) // ROWS_PER_GROUP)
        return first, self._groups[table] - first

    def add(
        self, record: Record, fields: Mapping[str, Plain], tables: tuple[pa.Table, pa.Table]
    ) -> None:
        """Write a checked record; ``fields`` is its metadata as plain values, and ``OWN`` columns.

        Raises
        ------
        InputError
            If rows are there twice.
        OSError
            If the disk fails.
        """
        identity = input_id(record.key, aim_of(record.target, record.weights))
        groups: dict[str, tuple[int, int]] = {}
        for kind, table in zip(("nodes", "edges"), tables, strict=True):
            rows = ordered(table, kind, record.key)
            ids = pa.array(np.full(len(rows), identity, np.int64))
            rows = pa.Table.from_arrays([ids, *rows.columns], schema=SCHEMAS[kind])
            groups[kind] = self._write_groups(kind, [rows])
        if record.key not in self._tensors:
            self._add_tensors(record)
        self._inputs.append(
            {
                "input_id": identity,
                "key": record.key,
                "label": record.label,
                "target": record.target,
                "predicted": record.predicted,
                "logit": record.logit,
            }
        )
        self._metadata.append(fields)
        self._entries.append(
            Entry(
                identity,
                record.key,
                record.target,
                record.content,
                groups["nodes"],
                groups["edges"],
                record.item,
                record.weights,
                record.flags,
                record.kept,
            )
        )

    def _add_tensors(self, record: Record) -> None:
        tensors = record.tensors
        schema = TENSORS if "" in tensors else NAMED_TENSORS
        for name, tensor in tensors.items():
            row = {
                "key": record.key,
                "content": record.content if "" in tensors else content_hash(tensor),
                "dtype": tensor.dtype.name,
                "shape": list(tensor.shape),
                "data": tensor_bytes(tensor),
                "name": name,
            }
            row = {field: row[field] for field in schema.names}
            self._write("tensors", pa.Table.from_pylist([row], schema))
            self._tensors.add(record.key)

    def copy(
        self,
        entry: Entry,
        row: Mapping[str, object],
        fields: Mapping[str, Plain],
        tables: Mapping[str, Iterable[pa.Table]],
    ) -> None:
        """Write an input of another shard as it stands there.

        Parameters
        ----------
        entry : Entry
            The input, in the other shard.
        row : mapping
            Its columns of ``INPUTS``.
        fields : mapping
            Its metadata as plain values.
        tables : mapping of str to iterable of pyarrow.Table
            Row groups of ``nodes`` and ``edges``, one after the other.

        Raises
        ------
        OSError
            If the disk fails.
        """
        groups = {kind: self._write_groups(kind, tables[kind]) for kind in ORDER}
        self._inputs.append({name: row[name] for name in INPUTS.names})
        self._metadata.append(fields)
        self._entries.append(replace(entry, nodes=groups["nodes"], edges=groups["edges"]))

    def has_tensors(self, key: str) -> bool:
        """Whether the tensors of a key were written."""
        return key in self._tensors

    def copy_tensor(self, row: pa.Table) -> None:
        """Write one row of another shard's ``tensors``.

        Raises
        ------
        StoreError
            If it has other columns than the rows before.
        OSError
            If the disk fails.
        """
        before = self._writers.get("tensors")
        if before is not None and before.schema.names != row.schema.names:
            raise StoreError(
                f"of the tensors in {self.folder} some have names and some have none: do not trust "
                "this store"
            )
        self._write("tensors", row)
        self._tensors.add(row["key"][0].as_py())

    def commit(
        self,
        name: str,
        failures: tuple[tuple[str, str], ...] = (),
        replaces: tuple[str, ...] = (),
    ) -> Manifest:
        """Finish the files and publish the shard under a name; on an error nothing remains.

        Raises
        ------
        StoreError, OSError
            If the disk fails.
        """
        try:
            files: dict[str, FileInfo] = {}
            kinds: dict[str, str] = {}
            if self._entries:
                kinds, arrays = metadata.columns(self._metadata)
                inputs = pa.Table.from_pylist(self._inputs, INPUTS)
                for field, array in arrays.items():
                    inputs = inputs.append_column(field, array)
                self._write("inputs", inputs)
                for table in TABLES:
                    if table not in self._writers:
                        self._write(table, SCHEMAS[table].empty_table())
                    self._writers[table].close()
                    file = self._files[table]
                    file.sync()
                    files[table] = FileInfo(
                        data_name(name, table), file.size, file.sha256, self._rows[table]
                    )
            manifest = Manifest(name, files, kinds, tuple(self._entries), replaces, failures)
            commit(self.folder, manifest, {t: f.path for t, f in self._files.items()})
            for file in self._files.values():
                file.close()
        except BaseException:
            self.abort()
            raise
        return manifest

    def abort(self) -> None:
        """Remove what was written and not committed."""
        for file in self._files.values():
            file.abandon()
        for writer in self._writers.values():
            with contextlib.suppress(Exception):
                writer.close()
        for file in self._files.values():
            remove_quietly(file.path)
