"""A store opened for reading: SQL, and exact measures of its inputs."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import safetensors.numpy

from nrm_graph.errors import InputError, QueryError, StoreError
from nrm_graph.store import files, sql
from nrm_graph.store.schema import LAYERS
from nrm_graph.topology import EdgeGroup, LayerInfo, Topology

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from nrm_graph.exact import Measure


def open(path: str | os.PathLike[str]) -> Database:
    """Open a store read-only, as a snapshot of what is committed now.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged or of an unknown format.
    """
    return Database(path)


class Database:
    """A snapshot of a store; a context manager.

    SQL sees the tables ``inputs``, ``layers``, ``nodes``, ``edges`` and the view ``flows``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = files.local(path)
        self.meta = files.read_settings(self.path)
        self._network: Any = None
        self.refresh()

    def refresh(self) -> None:
        """Take a new snapshot of the committed shards."""
        self._places = files.places(self.path)
        self._connection: Any = None

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the connection; relations made from it end."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __len__(self) -> int:
        """Count the (key, target) pairs."""
        return len(self._places)

    def __repr__(self) -> str:
        return f"<nrm_graph store {self.path}: {len(self)} inputs>"

    @property
    def topology(self) -> Topology:
        """Layers and edge groups."""
        try:
            layers = tuple(
                LayerInfo(
                    int(row["layer_id"]),
                    str(row["name"]),
                    str(row["kind"]),
                    tuple(int(d) for d in row["shape"]),
                    int(row["depth"]),
                    tuple(str(a) for a in row["aliases"]),
                )
                for row in self.meta["layers"]
            )
            groups = tuple(EdgeGroup(*(int(v) for v in g)) for g in self.meta["groups"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.path}/store.json is damaged: {error}") from None
        return Topology(layers, groups)

    def _layers(self) -> pa.Table:
        names = ("layer_id", "name", "kind", "shape", "resolution", "n_units", "depth")
        rows = [{n: row[n] for n in names} for row in self.meta["layers"]]
        return pa.Table.from_pylist(rows, LAYERS)

    def _connect(self, ids: Sequence[int], tables: Mapping[str, pa.Table] | None) -> Any:
        places = [self._places[i] for i in ids]
        found = {t: files.shard_files(self.path, places, t) for t in ("inputs", "nodes", "edges")}
        held = {place.shard: 0 for place in self._places.values()}
        whole = len(ids) == len(self._places) and len(held) == self._shard_rows()
        keep = None
        if not whole:
            keep = {path: list(ids) for paths in found.values() for path in paths}
        return sql.connect(found, self._layers(), tables, keep)

    def _shard_rows(self) -> int:
        """Count shards, or return -1 where one holds a pair that another shard wins."""
        total, names = 0, {place.shard for place in self._places.values()}
        for name in names:
            total += len(files.read_json(self.path / "shards" / f"{name}.json")["inputs"])
        return len(names) if total == len(self._places) else -1

    def sql(
        self,
        query: str,
        *,
        inputs: Sequence[str | int] | None = None,
        params: Any = None,
        tables: Mapping[str, pa.Table] | None = None,
    ) -> Any:
        """Run one SELECT over the store.

        Parameters
        ----------
        query : str
            A single SELECT (set operations and CTEs included); anything that writes, attaches
            or reads other files is refused.
        inputs : sequence of key or input_id, optional
            See only these inputs, and open only their files.
        params : sequence or mapping, optional
            Values for ``?`` or ``$name``.
        tables : mapping of name to pyarrow.Table, optional
            Further tables for this call.

        Returns
        -------
        duckdb.DuckDBPyRelation

        Raises
        ------
        QueryError
            If the query is refused or fails.
        """
        if not isinstance(query, str):
            raise QueryError(f"expected SQL text, found {type(query).__name__}")
        if inputs is None and not tables:
            if self._connection is None:
                self._connection = self._connect(list(self._places), None)
            return sql.query(self._connection.cursor(), query, params)
        ids = list(self._places)
        if inputs is not None:
            ids = [i for choice in inputs for i in self._matching(choice)]
        return sql.query(self._connect(list(dict.fromkeys(ids)), tables), query, params)

    def _matching(self, choice: str | int) -> list[int]:
        if isinstance(choice, int) and not isinstance(choice, bool):
            if choice in self._places:
                return [choice]
            raise InputError(f"there is no input_id {choice} in {self.path}")
        found = [i for i, place in self._places.items() if place.key == choice]
        if not found:
            keys = {place.key for place in self._places.values()}
            close = difflib.get_close_matches(str(choice), keys, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"it holds {len(keys)} keys"
            raise InputError(f"there is no input {choice!r} in {self.path}: {hint}")
        return found

    def measure(
        self,
        key: str | int,
        target: int | None = None,
        *,
        dtype: str | None = None,
        scale: str = "unit",
    ) -> Measure:
        """Return the exact measure of one input, computed from the stored program.

        Parameters
        ----------
        key : str or int
            Key or input_id.
        target : int, optional
            Needed where the key has several targets.
        dtype, scale
            As in :func:`nrm_graph.measure`.

        Raises
        ------
        InputError
            If there is no such input, or it has several targets.
        """
        found = self._matching(key)
        if target is not None:
            found = [i for i in found if self._places[i].target == target]
        if len(found) != 1:
            targets = sorted(self._places[i].target for i in self._matching(key))
            raise InputError(
                f"input {key!r} has the targets {', '.join(map(str, targets))}: name one of them "
                "as target="
            )
        from nrm_graph.stored import stored_measure

        return stored_measure(self, found[0], dtype, scale)

    def units(self) -> dict[str, Any]:
        """Resolution of every layer: a name, or the user's own partition."""
        chosen = {str(row["name"]): row["resolution"] for row in self.meta["layers"]}
        if "custom" in chosen.values():
            own = safetensors.numpy.load_file(self.path / "units.safetensors")
            chosen |= {name: own[name] for name in own if chosen.get(name) == "custom"}
        return chosen
