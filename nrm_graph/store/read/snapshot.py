"""What is committed: a snapshot of the manifests, and checked reads of single inputs."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nrm_graph.errors import InputError, StoreError
from nrm_graph.store.format.listing import read_manifests
from nrm_graph.store.format.manifest import data_name
from nrm_graph.store.format.metadata import Fields
from nrm_graph.store.format.schema import (
    FAILURES,
    LAYERS,
    MAX_TENSORS,
    SCHEMAS,
    TENSOR_DTYPES,
    content_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from nrm_graph.store.format.manifest import Entry, Manifest


class Facts(NamedTuple):
    """What the table ``inputs`` says of a key, whatever is explained of it."""

    predicted: int
    label: str | None


@dataclass(frozen=True)
class FileGroup:
    """Files of one table that SQL reads alike; None as ``ids`` keeps every row."""

    paths: tuple[str, ...]
    ids: tuple[int, ...] | None = None


class Snapshot:
    """The committed (key, target) pairs of a store at one moment.

    Parameters
    ----------
    folder : Path
        The store's folder, or a condition's.
    manifests : iterable of Manifest, optional
        Those that count, in order, where they were read before.
    store : mapping of int to Entry, optional
        Pairs of the store, where the folder is a condition's: of others, and of other contents,
        the condition may hold rows when a deletion overtook its writer; they do not count.

    Attributes
    ----------
    folder : Path
        The store's folder.
    manifests : mapping of str to Manifest
        By shard name, in order, without those that are replaced.
    shard_of : dict of int to str
        For each input_id the shard that counts: the smallest name that holds it.
    entries : dict of int to Entry
        For each input_id its entry there.
    """

    def __init__(
        self,
        folder: Path,
        manifests: Iterable[Manifest] | None = None,
        store: Mapping[int, Entry] | None = None,
    ) -> None:
        self.folder = folder
        if manifests is None:
            manifests = read_manifests(folder / "shards")
        self.manifests: Mapping[str, Manifest] = {m.name: m for m in manifests}
        self.shard_of: dict[int, str] = {}
        self.entries: dict[int, Entry] = {}
        for name, manifest in self.manifests.items():
            for entry in manifest.inputs:
                counts = store is None or is_of(store, entry)
                if counts and entry.input_id not in self.entries:
                    self.shard_of[entry.input_id] = name
                    self.entries[entry.input_id] = entry

    def __deepcopy__(self, memo: object) -> Snapshot:
        return self  # it is never changed

    @cached_property
    def by_key(self) -> Mapping[str, tuple[int, ...]]:
        """Input ids by key."""
        identities: dict[str, list[int]] = {}
        for identity, entry in self.entries.items():
            identities.setdefault(entry.key, []).append(identity)
        return {key: tuple(ids) for key, ids in identities.items()}

    @cached_property
    def fields(self) -> Fields:
        """Metadata fields with the types that readers give them."""
        return Fields(m.metadata for m in self.manifests.values())

    @cached_property
    def foreign(self) -> frozenset[str]:
        """Names of columns of the format that a user's own fields bear in old shards."""
        return frozenset(name for m in self.manifests.values() for name in m.foreign)

    @property
    def items(self) -> dict[str, int]:
        """Places in the data set by key, where they are known."""
        if "item" in self.foreign:
            return {}
        return {e.key: e.item for e in self.entries.values() if e.item is not None}

    @property
    def failures(self) -> pa.Table:
        """Inputs that failed and were not committed later: columns key and error."""
        errors: dict[str, str] = {}
        for manifest in self.manifests.values():
            for entry in manifest.inputs:
                errors.pop(entry.key, None)
            # A writer takes back the failure of a key that it adds later to the same shard, so
            # what stands here happened after.
            errors |= dict(manifest.failures)
        rows = [{"key": key, "error": error} for key, error in sorted(errors.items())]
        return pa.Table.from_pylist(rows, FAILURES)

    def path(self, shard: str, table: str) -> Path:
        """Return the data file of a shard."""
        return self.folder / "shards" / data_name(shard, table)

    def file_groups(self, table: str, ids: Collection[int] | None = None) -> list[FileGroup]:
        """Files of a table, and which of their rows to keep.

        Parameters
        ----------
        table : str
            ``inputs``, ``nodes`` or ``edges``.
        ids : collection of int, optional
            These inputs only.  Each row group holds one input, so the engine skips the others by
            the statistics of ``input_id``.
        """
        ids_by_shard: dict[str, list[int]] = {}
        for identity in self.shard_of if ids is None else ids:
            ids_by_shard.setdefault(self.shard_of[identity], []).append(identity)
        whole_paths: list[str] = []
        mixed_paths: list[str] = []
        mixed_ids: list[int] = []
        single: list[FileGroup] = []
        for shard in sorted(ids_by_shard):
            path = str(self.path(shard, table).absolute())
            inputs = self.manifests[shard].inputs
            chosen = ids_by_shard[shard]
            if len(chosen) == len(inputs):
                whole_paths.append(path)
            elif any(self.shard_of.get(e.input_id) != shard for e in inputs):
                # It holds a pair that another shard wins, whose id may be wanted from there.
                single.append(FileGroup((path,), tuple(sorted(chosen))))
            else:
                mixed_paths.append(path)
                mixed_ids += chosen
        whole = [FileGroup(tuple(whole_paths))] if whole_paths else []
        mixed = [FileGroup(tuple(mixed_paths), tuple(sorted(mixed_ids)))] if mixed_paths else []
        return [*whole, *mixed, *single]

    def rows(self, identity: int, table: str) -> pa.Table:
        """Rows of one input in ``nodes`` or ``edges``, with page checksums verified.

        Raises
        ------
        StoreError
            If the file is damaged, or holds other rows than its manifest says.
        """
        entry = self.entries[identity]
        path = self.path(self.shard_of[identity], table)
        with damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            groups = list(row_groups(file, path, table, entry))
        return pa.concat_tables([SCHEMAS[table].empty_table(), *groups])

    def facts(self, identity: int) -> dict[str, Any]:
        """Columns of ``inputs`` of one input, metadata included.

        Raises
        ------
        StoreError
            If the file is damaged or lacks the input.
        """
        path = self.path(self.shard_of[identity], "inputs")
        with damage(path):
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
            rows = table.filter(pc.equal(table["input_id"], identity)).to_pylist()
        if len(rows) != 1:
            raise StoreError(f"{path} holds {len(rows)} rows of one input, expected 1")
        return dict(rows[0])

    def known(self, shards: Iterable[str] | None = None) -> dict[str, Facts]:
        """Facts of every key, or of those in some shards, to know them before computing.

        Raises
        ------
        StoreError
            If a file is damaged.
        """
        facts: dict[str, Facts] = {}
        for shard in self.manifests if shards is None else shards:
            if self.manifests[shard].inputs:
                path = self.path(shard, "inputs")
                with damage(path), pq.ParquetFile(path) as file:
                    table = file.read(["key", "predicted", "label"])
                keys, predicted, labels = (column.to_pylist() for column in table.columns)
                for key, *values in zip(keys, predicted, labels, strict=True):
                    before = facts.get(key)
                    # A key may have had no label when another of its targets was explained.
                    if before is None or before.label is None:
                        facts[key] = Facts(*values)
        return facts

    def tensors(self, identity: int) -> dict[str, npt.NDArray[Any]]:
        """Input tensors by name, in order, their content hash checked; a lone one has none, ``""``.

        Raises
        ------
        InputError
            If the inputs were left out of the store.
        StoreError
            If the file is damaged or holds another tensor.
        """
        entry = self.entries[identity]
        path = self.path(self.shard_of[identity], "tensors")
        with damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            keys = file.read(["key"])["key"].to_pylist()
            if entry.key not in keys:
                raise InputError(
                    f"the store holds no tensor of {entry.key!r} (extracted with tensors='omit'): "
                    "db.measure takes it as input=; other questions need tensors='keep'"
                )
            places = [i for i, key in enumerate(keys) if key == entry.key]
            if len(places) > MAX_TENSORS:
                raise StoreError(f"{path} holds {len(places):,} tensors of {entry.key!r}")
            rows = [_row(file, row) for row in places]
        tensors: dict[str, npt.NDArray[Any]] = {}
        for row in rows:
            name = row.get("name", "")
            problem = tensor_problem(row)
            if problem or name in tensors or not isinstance(name, str):
                subject = f"the tensor {name!r}" if name else "the tensor"
                raise StoreError(
                    f"{path}: {subject} of {entry.key!r} {problem or 'is there twice'}: copy the "
                    "store again"
                )
            tensors[name] = array_of(row)
        if content_of(tensors) != entry.content:
            raise StoreError(
                f"{path}: the tensor of {entry.key!r} is not the one that was explained: copy the "
                "store again"
            )
        return tensors


def is_of(store: Mapping[int, Entry], entry: Entry) -> bool:
    """Whether a store holds the pair of a condition's entry, with the same content."""
    stored = store.get(entry.input_id)
    return stored is not None and stored.content == entry.content


def row_groups(file: pq.ParquetFile, path: Path, table: str, entry: Entry) -> Iterator[pa.Table]:
    """Row groups of one input in ``nodes`` or ``edges``.

    Raises
    ------
    StoreError
        If the file is damaged, or holds other rows than its manifest says.
    """
    first, count = entry.nodes if table == "nodes" else entry.edges
    if first + count > file.num_row_groups:
        raise StoreError(
            f"{path} has {file.num_row_groups} row groups, its manifest speaks of "
            f"{first + count}: copy the store again"
        )
    if file.schema_arrow.names != SCHEMAS[table].names:
        raise StoreError(
            f"{path} has the columns {file.schema_arrow.names}, expected "
            f"{SCHEMAS[table].names}: do not trust this store"
        )
    for group in range(first, first + count):
        with damage(path):
            rows = file.read_row_group(group).cast(SCHEMAS[table])
        if len(rows) and pc.any(pc.not_equal(rows["input_id"], entry.input_id)).as_py():
            raise StoreError(f"{path} holds rows of another input where {entry.key!r} should be")
        yield rows


def _row(file: pq.ParquetFile, row: int) -> dict[str, Any]:
    """One row of a file; its row group alone is read."""
    group = 0
    while row >= file.metadata.row_group(group).num_rows:
        row -= file.metadata.row_group(group).num_rows
        group += 1
    return dict(file.read_row_group(group).slice(row, 1).to_pylist()[0])


def tensor_problem(row: Mapping[str, Any]) -> str | None:
    """Say why a row of ``tensors`` is none, or None if it is one."""
    kind, shape, data = row["dtype"], row["shape"], row["data"]
    if kind not in TENSOR_DTYPES or shape is None or any(d is None or d < 0 for d in shape):
        return "has an unknown type or shape"
    if data is None or math.prod(shape) * np.dtype(kind).itemsize != len(data):
        return "is not of the size that it states"
    return None


def array_of(row: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Array of a row of ``tensors`` that has no problem."""
    dtype = np.dtype(row["dtype"])
    array = np.frombuffer(row["data"], dtype.newbyteorder("<")).reshape(row["shape"])
    return array.astype(dtype, copy=False)


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn what Arrow raises at a damaged file into a StoreError."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"the file {path} is no longer there: open the store again") from error
    except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is damaged: {error}; copy the store again, or remove the shard and "
            "extract its inputs anew"
        ) from error


def layers_table(rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Return the table ``layers`` from the entries of ``store.json``."""
    return pa.Table.from_pylist([{n: row[n] for n in LAYERS.names} for row in rows], LAYERS)
