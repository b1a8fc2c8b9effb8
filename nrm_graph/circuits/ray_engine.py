"""Sums by tasks of Ray: the same SQL over the files of a few shards each, merged here."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from nrm_graph import _optional
from nrm_graph.circuits.engines import merged
from nrm_graph.store.read.snapshot import Snapshot, layers_table
from nrm_graph.store.read.sql import SqlReader
from nrm_graph.store.read.table_queries import TableQueries

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from nrm_graph.store.format.manifest import Manifest
    from nrm_graph.store.view import View


@dataclass(frozen=True)
class InputShards:
    """Some inputs, and the shards that they are in.

    Attributes
    ----------
    ids : tuple of int
        The inputs.
    shards : mapping of str or None to (Path, tuple of Manifest)
        Folder and shards of the store (None) and of each of its conditions.
    layers : pyarrow.Table
        The table ``layers``.
    """

    ids: tuple[int, ...]
    shards: Mapping[str | None, tuple[Path, tuple[Manifest, ...]]]
    layers: pa.Table


def partial_sums(part: InputShards, query: str, tables: Mapping[str, pa.Table]) -> pa.Table:
    """Run a query over some inputs; of further tables, too, it sees their rows alone."""
    ids = pa.array(part.ids, pa.int64())
    own_tables = {
        name: table.filter(pc.is_in(table["input_id"], ids))
        if "input_id" in table.column_names
        else table
        for name, table in tables.items()
    }
    snapshot = Snapshot(*part.shards[None])
    conditions = {
        name: Snapshot(*shards, snapshot.entries)
        for name, shards in part.shards.items()
        if name is not None
    }
    reader = SqlReader(TableQueries(snapshot, part.layers, (), conditions))
    try:
        sums: pa.Table = reader.query(query, None, part.ids, own_tables).to_arrow_table()
        return sums
    finally:
        reader.close()


def split_inputs(db: View, ids: Sequence[int], number: int) -> list[InputShards]:
    """Split inputs of a store in so many parts, or fewer: whole shards, of about the same size."""
    by_shard: dict[str, list[int]] = {}
    for identity in ids:
        by_shard.setdefault(db._snapshot.shard_of[identity], []).append(identity)
    manifests = db._snapshot.manifests
    sizes = {name: 1 + manifests[name].files["edges"].size for name in sorted(by_shard)}
    total, before = sum(sizes.values()), 0
    split: dict[int, list[int]] = {}
    for name, size in sizes.items():
        split.setdefault(before * number // total, []).extend(by_shard[name])
        before += size
    layers = layers_table(db.meta["layers"])
    return [InputShards(tuple(inputs), _shards(db, inputs), layers) for inputs in split.values()]


def _shards(db: View, ids: Collection[int]) -> dict[str | None, tuple[Path, tuple[Manifest, ...]]]:
    """Shards of the store and of its conditions that hold some inputs."""
    snapshots: dict[str | None, Snapshot] = {None: db._snapshot}
    snapshots |= {name: condition.snapshot for name, condition in db._conditions.items()}
    shards: dict[str | None, tuple[Path, tuple[Manifest, ...]]] = {}
    for name, snapshot in snapshots.items():
        names = {snapshot.shard_of[i] for i in ids if i in snapshot.shard_of}
        shards[name] = snapshot.folder, tuple(snapshot.manifests[n] for n in sorted(names))
    return shards


class Remote:
    """An engine of :mod:`nrm_graph.circuits.engines`.

    Ray starts with the first query, where it does not run, and ends with this object: who runs
    ``ray.init()`` before many circuits starts it once.
    """

    def __init__(self) -> None:
        _optional.installed()
        self._ray: Any = None
        self._of: tuple[Snapshot, tuple[int, ...]] | None = None
        self._parts: list[Any] = []

    def __call__(
        self,
        db: View,
        query: str,
        ids: Sequence[int],
        tables: Mapping[str, pa.Table],
        keys: Sequence[str],
    ) -> pa.Table:
        """Run a query of mergeable sums; see :class:`nrm_graph.circuits.engines.Engine`.

        Raises
        ------
        QueryError
            If the query fails; a machine that does not see the store's folder is told so.
        """
        if self._ray is None:
            stack = contextlib.ExitStack()
            self._ray = stack.enter_context(_optional.started())
            weakref.finalize(self, stack.close)
        ray = self._ray
        if self._of is None or self._of[0] is not db._snapshot or self._of[1] != tuple(ids):
            cores, _ = _optional.size(ray)
            self._parts = [ray.put(part) for part in split_inputs(db, ids, cores)]
            self._of = db._snapshot, tuple(ids)
        task = ray.remote(partial_sums).options(num_cpus=_optional.CPUS)
        shared = ray.put(dict(tables))
        running = [task.remote(part, query, shared) for part in self._parts]
        try:
            return merged(ray.get(running), keys)
        except KeyboardInterrupt:
            # Without force: Ray 2.60 may end this process where a task ends as it is killed.
            for result in running:
                ray.cancel(result)
            raise
        except Exception as error:
            raise _optional.cause_of(error) from None
