"""A new shard from others: what counts of them is copied, row group by row group."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from nrm_graph.errors import StoreError
from nrm_graph.store.format.files import sha256_of
from nrm_graph.store.format.listing import listed
from nrm_graph.store.format.manifest import name_after
from nrm_graph.store.format.schema import NAMED_TENSORS, ORDER, TENSORS
from nrm_graph.store.read.snapshot import Snapshot, damage, row_groups
from nrm_graph.store.write.shard import OpenShard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from nrm_graph.store.format.manifest import Entry, Manifest


@dataclass(frozen=True)
class Shards:
    """Shards of a store, or of a condition, at one moment.

    Attributes
    ----------
    snapshot : Snapshot
        Those that count.
    manifests : mapping of str to Manifest
        All, in the order of their names: those that are replaced too.
    replaced_by : mapping of str to tuple of str
        For each that is replaced, the shards that do so.
    """

    snapshot: Snapshot
    manifests: Mapping[str, Manifest]
    replaced_by: Mapping[str, tuple[str, ...]]

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.snapshot.folder / "shards"

    @cached_property
    def failures(self) -> Mapping[str, str]:
        """Errors that count, by key."""
        table = self.snapshot.failures
        return dict(zip(table["key"].to_pylist(), table["error"].to_pylist(), strict=True))

    def kept(self, name: str, without: Collection[str] = ()) -> list[Entry]:
        """Pairs of a shard that count, but for those of some keys."""
        return [
            entry
            for entry in self.manifests[name].inputs
            if self.snapshot.shard_of[entry.input_id] == name and entry.key not in without
        ]

    @cached_property
    def _failing(self) -> Mapping[str, set[str]]:
        """Shards that count and list a failure, by key."""
        shards_by_key: dict[str, set[str]] = {}
        for name, manifest in self.snapshot.manifests.items():
            for key, _ in manifest.failures:
                shards_by_key.setdefault(key, set()).add(name)
        return shards_by_key

    def tied(self, name: str) -> set[str]:
        """Shards that must be rewritten together with one.

        They list failures of keys that the shard holds in pairs that do not count: without these
        the failures would count again.
        """
        hidden = {e.key for e in self.manifests[name].inputs} - {e.key for e in self.kept(name)}
        return {other for key in hidden for other in self._failing.get(key, ())} - {name}

    def holding(self, keys: Collection[str]) -> list[str]:
        """Shards that hold a pair or a failure of keys, counting or not, and those tied to them."""
        gone = set(keys)
        holders = [
            name
            for name, manifest in self.snapshot.manifests.items()
            if gone & {entry.key for entry in manifest.inputs}
            or gone & {key for key, _ in manifest.failures}
        ]
        return _reached(holders, self.tied)

    def replaced_with(self, members: Iterable[str]) -> tuple[str, ...]:
        """Shards that do not count once `members` do not: they, and all that they replaced.

        A shard that was replaced twice over would count again when the one between is deleted.
        """
        replaces = {
            name: [other for other in manifest.replaces if other in self.manifests]
            for name, manifest in self.manifests.items()
        }
        return tuple(_reached(members, replaces.__getitem__))


def _reached(names: Iterable[str], nexts: Callable[[str], Iterable[str]]) -> list[str]:
    """Shards that lead on from some, these too, in the order of their names."""
    reached: set[str] = set()
    ahead = list(names)
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += nexts(name)
    return sorted(reached)


def shards_of(folder: Path) -> Shards:
    """Shards of a store's or condition's folder.

    Raises
    ------
    StoreError
        If a manifest is not valid, or files of one that counts are missing.
    """
    listing = listed(folder / "shards")
    return Shards(
        Snapshot(folder, [manifest for manifest, by in listing if not by]),
        {manifest.name: manifest for manifest, _ in listing},
        {manifest.name: by for manifest, by in listing if by},
    )


def replace_all(
    shards: Shards,
    groups: Sequence[Sequence[str]],
    advance: Callable[[int], object],
    without: Collection[str] = (),
) -> None:
    """Replace each group of shards by one shard, all at one moment; see :func:`rewritten`.

    Until the last manifest is there, which replaces them all, the new shards hold pairs that the
    old ones, of smaller names, hold too.
    """
    *first, last = groups
    for members in first:
        has_pairs = any(shards.kept(name, without) for name in members)
        failed = {key for name in members for key, _ in shards.manifests[name].failures}
        if has_pairs or failed - set(without):
            rewritten(shards, members, (), advance, without)
    everything = shards.replaced_with(name for members in groups for name in members)
    rewritten(shards, last, everything, advance, without)


def rewritten(
    shards: Shards,
    members: Sequence[str],
    replaces: tuple[str, ...],
    advance: Callable[[int], object],
    without: Collection[str] = (),
) -> Manifest:
    """Commit a shard that holds what counts of others; on an error nothing of it remains.

    It takes the place of the last one in the order of shards, and holds the failures that count of
    its keys and of theirs.

    Parameters
    ----------
    shards : Shards
        What is there.
    members : sequence of str
        The shards to copy from.
    replaces : tuple of str
        The shards that do not count from now on.
    advance : callable
        Is told how many inputs were copied just now.
    without : collection of str
        Keys that are left out.

    Raises
    ------
    StoreError
        If a file is damaged, or the disk fails.
    """
    shard = OpenShard(shards.folder)
    keys: set[str] = set()
    try:
        for name in members:
            keys |= {key for key, _ in shards.manifests[name].failures}
            entries = shards.kept(name, without)
            keys |= {entry.key for entry in entries}
            if entries:
                _copy(shard, shards, name, entries, advance)
        failures = tuple(
            (key, error)
            for key, error in shards.failures.items()
            if key in keys and key not in without
        )
        return shard.commit(name_after(max(members)), failures, replaces)
    except BaseException as error:
        shard.abort()
        if isinstance(error, OSError):
            raise StoreError(
                f"cannot write to {shards.folder}: {error.strerror or error}; everything that was "
                "committed is still there: free space or permissions and run the same command again"
            ) from error
        raise


def _copy(
    shard: OpenShard,
    shards: Shards,
    name: str,
    entries: list[Entry],
    advance: Callable[[int], object],
) -> None:
    """Copy pairs of one shard, of which every byte is checked."""
    manifest = shards.manifests[name]
    paths = {table: shards.folder / info.name for table, info in manifest.files.items()}
    for table, info in manifest.files.items():
        with damage(paths[table]):
            digest = sha256_of(paths[table])
        if digest != info.sha256:
            raise StoreError(
                f"{paths[table]} is damaged: its SHA-256 is not the one that its manifest states; "
                "copy the store again, or remove the shard and extract its inputs anew"
            )
    rows = _inputs(paths["inputs"])
    files: dict[str, pq.ParquetFile] = {}
    with contextlib.ExitStack() as stack:
        for table in ORDER:
            with damage(paths[table]):
                file = pq.ParquetFile(paths[table], page_checksum_verification=True)
            files[table] = stack.enter_context(file)
        for entry in entries:
            with damage(paths["inputs"]):
                row = rows[entry.input_id]
                fields = {
                    field: None if kind == "null" else row[field]
                    for field, kind in manifest.metadata.items()
                }
            groups = {
                table: row_groups(file, paths[table], table, entry) for table, file in files.items()
            }
            shard.copy(entry, row, fields, groups)
            advance(1)
    # A key's tensors are there once, whichever of its pairs came first.
    keys = {entry.key for entry in entries if not shard.has_tensors(entry.key)}
    for key, tensor in _tensors(paths["tensors"]):
        if key in keys:
            shard.copy_tensor(tensor)


def _inputs(path: Path) -> dict[int, dict[str, Any]]:
    """Rows of ``inputs`` by input_id."""
    with damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return {row["input_id"]: row for row in file.read().to_pylist()}


def _tensors(path: Path) -> Iterator[tuple[str, pa.Table]]:
    """Rows of ``tensors``, each with its key, in order."""
    with damage(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        schema = NAMED_TENSORS if "name" in file.schema_arrow.names else TENSORS
        for group in range(file.num_row_groups):
            with damage(path):
                table = file.read_row_group(group).select(schema.names).cast(schema)
                keys = table["key"].to_pylist()
            for i, key in enumerate(keys):
                yield key, table.slice(i, 1)
