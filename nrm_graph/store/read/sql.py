"""SQL over committed files: an in-memory DuckDB that can read these files and do nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from nrm_graph.errors import InputError, QueryError, StoreError
from nrm_graph.store.format.metadata import SQL_TYPES
from nrm_graph.store.format.schema import CONDITION_FACTS, INPUTS, OWN, SCHEMAS, VIEWS
from nrm_graph.store.read.forks import connect
from nrm_graph.store.read.interruptible import Cursor, check_timeout
from nrm_graph.store.read.relation import Relation
from nrm_graph.store.read.sql_guard import EVERY, check_statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pyarrow as pa

    from nrm_graph.store.read.interruptible import Call
    from nrm_graph.store.read.snapshot import FileGroup, Snapshot

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_IDS = [("input_id", "BIGINT")]

REMEMBERED = 20_000
"""Inputs of a snapshot at most of which DuckDB remembers where the tables of each are in its files:
about 10 kB for each, and up to half of the time of a query that reads few rows of many files."""

FLOWS = """
SELECT e.input_id, i.key, i.label, d.name AS dst, e.dst_unit, s.name AS src, e.src_unit,
       e.relevance, e.conditional
FROM edges e
JOIN inputs i ON i.input_id = e.input_id
JOIN layers d ON d.layer_id = e.dst_layer
JOIN layers s ON s.layer_id = e.src_layer
"""

_THRESHOLDS = """
SELECT input_id, CAST(dst_layer AS SMALLINT) AS dst_layer,
       CAST(src_layer AS SMALLINT) AS src_layer, CAST(threshold AS FLOAT) AS threshold
FROM (SELECT input_id, unnest([{dst}]) AS dst_layer, unnest([{src}]) AS src_layer,
             unnest(thresholds) AS threshold FROM ({inputs}))
WHERE threshold IS NOT NULL
"""


class SqlReader:
    """SQL over one snapshot of a store.

    Every query gets a cursor of its own, with temporary views over exactly the files that it
    needs: a view over all files of a large store costs a second before the first row.

    Parameters
    ----------
    snapshot : Snapshot
        What is committed.
    layers : pyarrow.Table
        The table ``layers``.
    pairs : sequence of (dst layer, src layer)
        What edges link, in the order of thresholds.
    conditions : mapping of name to Snapshot, optional
        Shards of conditions, whose tables are ``<name>_inputs``, ``<name>_nodes`` and
        ``<name>_edges``.
    running : set of Call, optional
        Where calls of DuckDB stand while they run.
    tables : mapping of name to pyarrow.Table, optional
        Further tables of the store.

    Raises
    ------
    StoreError
        If DuckDB cannot be set up.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        layers: pa.Table,
        pairs: Sequence[tuple[int, int]],
        conditions: Mapping[str, Snapshot] | None = None,
        running: set[Call] | None = None,
        tables: Mapping[str, pa.Table] | None = None,
    ) -> None:
        self._snapshot, self._pairs = snapshot, pairs
        self._conditions = {
            f"{name.lower()}_{table}": (shards, table)
            for name, shards in (conditions or {}).items()
            for table in ("inputs", "nodes", "edges", "thresholds")
        }
        self._names = {*VIEWS, *self._conditions, *(name.lower() for name in tables or ())}
        self.process = os.getpid()
        self._running = set() if running is None else running
        self._con = connect()
        # Unique: DuckDB makes it when it spills and removes it at the end.
        spill = Path(tempfile.gettempdir()) / f"nrm_graph_{secrets.token_hex(8)}"
        allowed = [
            str(shards.path(name, table).absolute())
            for shards in (snapshot, *(conditions or {}).values())
            for name, manifest in shards.manifests.items()
            for table in manifest.files
            if table != "tensors"
        ]
        inputs = sum(len(shards.entries) for shards in (snapshot, *(conditions or {}).values()))
        try:
            self._register("layers", layers)
            self._register("failures", snapshot.failures)
            for name, table in (tables or {}).items():
                self._register(name.lower(), table)
            for setting in (
                f"allowed_paths = [{', '.join(map(_text, allowed))}]",
                f"temp_directory = {_text(str(spill))}",
                f"parquet_metadata_cache = {inputs <= REMEMBERED}",
                "python_enable_replacements = false",
                "autoinstall_known_extensions = false",
                "autoload_known_extensions = false",
                "enable_external_access = false",
                "lock_configuration = true",
            ):
                self._con.execute(f"SET GLOBAL {setting}")  # for every cursor
        except duckdb.Error as error:
            self._con.close()
            raise StoreError(f"the store's tables cannot be opened: {error}") from None

    def _register(self, name: str, table: pa.Table) -> None:
        # Registered Arrow data is seen by one cursor only, so it is copied.
        self._con.register("__arrow", table)
        self._con.execute(f'CREATE TABLE {name} AS SELECT * FROM "__arrow"')
        self._con.unregister("__arrow")

    def close(self) -> None:
        """Release the connection; relations made from it end.  A parent's goes on after a fork."""
        if self.process == os.getpid():
            # While a query of another thread runs DuckDB refuses; it closes when that one ends.
            with contextlib.suppress(duckdb.OperationalError):
                self._con.close()

    def query(
        self,
        sql: str,
        params: object = None,
        ids: Collection[int] | None = None,
        tables: Mapping[str, pa.Table] | None = None,
        timeout: float | None = None,
    ) -> Relation:
        """Run one checked query.

        Parameters
        ----------
        sql : str
            A single SELECT.
        params : sequence or mapping, optional
            Values for ``?`` or ``$name``.
        ids : collection of int, optional
            See these inputs only.
        tables : mapping of name to pyarrow.Table, optional
            Further tables.
        timeout : float, optional
            Seconds that the query may take, and each fetch of its rows.

        Raises
        ------
        QueryError
            If the query is refused or fails.
        InputError
            If a further table cannot bear its name, or the timeout is no number of seconds.
        """
        check_timeout(timeout)
        if tables is not None and not isinstance(tables, Mapping):
            raise InputError(f"tables must be a mapping of name to table, found {tables!r}")
        further, store_tables = dict(tables or {}), self._names
        for name in further:
            plain = isinstance(name, str) and _IDENTIFIER.match(name)
            if not plain or name.lower() in store_tables or name.startswith("__"):
                raise InputError(f"{name!r} cannot name a table: use a new, plain identifier")
        used = check_statement(sql, {*store_tables, *(name.lower() for name in further)})
        con = self._con.cursor()
        for name, data in further.items():
            try:
                con.register(name, data)
            except (duckdb.Error, TypeError):
                raise InputError(
                    f"the table {name!r} must be an Arrow table or reader, or a data frame, "
                    f"found {type(data).__name__}"
                ) from None
        views = {"inputs", "nodes", "edges", "thresholds", *self._conditions}
        needed = used & views | ({"inputs", "edges"} if "flows" in used else set())
        # What is listed alone needs columns, not files.
        sources = dict.fromkeys(views if EVERY in used else (), ()) | dict.fromkeys(needed, ids)

        def start() -> Any:
            for table, chosen in sources.items():
                con.execute(f"CREATE TEMP VIEW {table} AS {self._source(table, chosen)}")
            if used & {"flows", EVERY}:
                con.execute(f"CREATE TEMP VIEW flows AS {FLOWS}")
            return con.sql(sql, params=params) if params is not None else con.sql(sql)

        cursor = Cursor(con, timeout, self._running)
        relation = cursor.call(start)
        if relation is None:
            raise QueryError("the query has no result: expected a SELECT")
        return Relation(cursor, relation)

    def _source(self, table: str, ids: Collection[int] | None) -> str:
        snapshot = self._snapshot
        if table in self._conditions:
            snapshot, table = self._conditions[table]
            ids = None if ids is None else [i for i in ids if i in snapshot.entries]
        groups = snapshot.file_groups("inputs" if table == "thresholds" else table, ids)
        if table == "thresholds":
            dst, src = (", ".join(str(pair[end]) for pair in self._pairs) for end in (0, 1))
            listed = self._inputs(snapshot, groups, thresholds=True)
            return _THRESHOLDS.format(dst=dst, src=src, inputs=listed)
        if table == "inputs":
            if snapshot is self._snapshot:
                return self._inputs(snapshot, groups)
            return self._facts(snapshot, groups)
        if not groups:
            return _empty(table)
        columns = ", ".join(SCHEMAS[table].names)
        return " UNION ALL ".join(
            f"SELECT {columns} FROM {_files(group.paths)}{_where(group.ids)}" for group in groups
        )

    def _facts(self, snapshot: Snapshot, groups: Sequence[FileGroup]) -> str:
        """Query of ``<name>_inputs``: what is known of the inputs of a condition."""
        kinds = [(name, SQL_TYPES[kind]) for name, kind in CONDITION_FACTS.items()]
        if not groups:
            return f"SELECT {', '.join(f'NULL::{k} AS {n}' for n, k in _IDS + kinds)} WHERE false"
        stored_fields = {name.casefold() for name in snapshot.fields.types}
        columns = ", ".join(
            f"CAST({name if name in stored_fields else 'NULL'} AS {kind}) AS {name}"
            for name, kind in kinds
        )
        return f"SELECT input_id, {columns} FROM ({self._inputs(snapshot, groups)})"

    def _inputs(
        self, snapshot: Snapshot, groups: Sequence[FileGroup], *, thresholds: bool = False
    ) -> str:
        """Query of ``inputs``: metadata of all shards, of one type each.

        The list of thresholds is left out, or there alone: it is a table of its own.
        """
        types = _columns(snapshot)
        if thresholds:
            types = {"thresholds": SQL_TYPES[OWN["thresholds"]]}
        elif "thresholds" not in snapshot.foreign:
            types.pop("thresholds")
        if not groups:
            return _empty("inputs", [f"NULL::{k} AS {_name(n)}" for n, k in types.items()])
        # Files whose fields are alike are read together; mostly that is all of them.
        by_fields: dict[tuple[tuple[str, str], ...], dict[tuple[int, ...] | None, list[str]]] = {}
        for group in groups:
            for path in group.paths:
                shard = Path(path).name.split(".")[0]
                alike = tuple(sorted(snapshot.manifests[shard].metadata.items()))
                by_fields.setdefault(alike, {}).setdefault(group.ids, []).append(path)
        queries = []
        for alike, paths_by_ids in by_fields.items():
            spelled = {name.casefold(): (name, kind) for name, kind in alike}
            columns = list(INPUTS.names)
            for name, kind in types.items():
                column, stored_kind = spelled.get(name.casefold(), (name, "null"))
                value = "NULL" if stored_kind == "null" else _name(column)
                columns.append(f"CAST({value} AS {kind}) AS {_name(name)}")
            # Explicit columns: a field may bear a name that DuckDB gives a meaning, such as
            # filename.
            queries += [
                f"SELECT {', '.join(columns)} FROM {_files(paths)}{_where(ids)}"
                for ids, paths in paths_by_ids.items()
            ]
        return " UNION ALL ".join(queries)


def _columns(snapshot: Snapshot) -> dict[str, str]:
    """Columns of ``inputs`` beside the fixed ones, with their types: the format's, the user's."""
    fields = snapshot.fields
    columns = {fields.spelling(name) or name: SQL_TYPES[kind] for name, kind in OWN.items()}
    return columns | {name: SQL_TYPES[kind] for name, kind in fields.types.items()}


def _files(paths: Sequence[str]) -> str:
    listed = ", ".join(_text(path) for path in paths)
    # Not partitioned: a folder named a=b never becomes a column.
    return f"read_parquet([{listed}], hive_partitioning = false, union_by_name = false)"


def _where(ids: Sequence[int] | None) -> str:
    return "" if ids is None else f" WHERE input_id IN ({', '.join(str(int(i)) for i in ids)})"


def _empty(table: str, extra: Sequence[str] = ()) -> str:
    kinds = {"int64": "BIGINT", "int32": "INTEGER", "int16": "SMALLINT", "float": "FLOAT"}
    columns = [
        f"NULL::{kinds.get(str(field.type), 'VARCHAR')} AS {field.name}" for field in SCHEMAS[table]
    ]
    return f"SELECT {', '.join([*columns, *extra])} WHERE false"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
