"""SQL over committed files: an in-memory DuckDB that can read these files and do nothing else."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import duckdb

from nrm_graph.errors import InputError, QueryError, StoreError
from nrm_graph.store.read.forks import connect
from nrm_graph.store.read.interruptible import Cursor, check_timeout
from nrm_graph.store.read.locked import load, lock
from nrm_graph.store.read.relation import Relation
from nrm_graph.store.read.sql_guard import EVERY, check_statement
from nrm_graph.store.read.table_queries import VIEW_OF, literal, quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pyarrow as pa

    from nrm_graph.store.read.interruptible import Call
    from nrm_graph.store.read.table_queries import TableQueries

_NO_COLUMN = re.compile(r'(?:Referenced column|does not have a column named) "(.+?)"(?: |$)')
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

REMEMBERED = 20_000
"""Inputs of a snapshot at most of which DuckDB remembers where the tables of each are in its files:
about 10 kB for each, and up to half of the time of a query that reads few rows of many files."""


class SqlReader:
    """SQL over one snapshot of a store.

    Every query gets a cursor of its own, with temporary views over exactly the files that it
    needs: a view over all files of a large store costs a second before the first row.

    Parameters
    ----------
    queries : TableQueries
        The tables.
    running : set of Call, optional
        Where calls of DuckDB stand while they run.
    settings : sequence of str, optional
        Further settings of DuckDB, such as ``"memory_limit = '1GB'"``.

    Raises
    ------
    StoreError
        If DuckDB cannot be set up.
    """

    def __init__(
        self,
        queries: TableQueries,
        running: set[Call] | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self._queries = queries
        self.process = os.getpid()
        self._running = set() if running is None else running
        self._con = connect()
        allowed = [
            str(shards.path(name, table).absolute())
            for shards in queries.snapshots
            for name, manifest in shards.manifests.items()
            for table in manifest.files
            if table != "tensors"
        ]
        inputs = sum(len(shards.entries) for shards in queries.snapshots)
        try:
            load(self._con, queries.loaded)
            lock(
                self._con,
                f"allowed_paths = [{', '.join(map(literal, allowed))}]",
                f"parquet_metadata_cache = {inputs <= REMEMBERED}",
                *settings,
            )
        except duckdb.Error as error:
            self._con.close()
            raise StoreError(f"the store's tables cannot be opened: {error}") from None

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
        further, store_tables = dict(tables or {}), self._queries.names
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
        views = set(self._queries.of_files)
        needed = used & views | {t for view in used & set(VIEW_OF) for t in VIEW_OF[view]}
        # What is listed alone needs columns, not files.
        sources = dict.fromkeys(views if EVERY in used else (), ()) | dict.fromkeys(needed, ids)

        def start() -> Any:
            for table, chosen in sources.items():
                query = self._queries.query(table, _files, chosen)
                con.execute(f"CREATE TEMP VIEW {table} AS {query}")
            for name, query in self._queries.views.items():
                if used & {name, EVERY}:
                    con.execute(f"CREATE TEMP VIEW {name} AS {query}")
            return con.sql(sql, params=params) if params is not None else con.sql(sql)

        cursor = Cursor(con, timeout, self._running)
        try:
            relation = cursor.call(start)
        except QueryError as error:
            raise _hinted(error, sql) from error.__cause__
        if relation is None:
            raise QueryError("the query has no result: expected a SELECT")
        return Relation(cursor, relation)


def _hinted(error: QueryError, sql: str) -> QueryError:
    """Say how text is written, where what was meant as text is the name of no column."""
    unknown = _NO_COLUMN.search(str(error))
    if unknown is None:
        return error
    if quoted(unknown[1]) not in sql:
        if not re.search(rf"(=|<>|LIKE|IN \()\s*{re.escape(unknown[1])}\b", sql, re.IGNORECASE):
            return error
        return QueryError(f"{error}; text takes single quotes: {literal(unknown[1])}")
    return QueryError(
        f"{error}; {quoted(unknown[1])} in double quotes names a column, text takes single quotes: "
        f"{literal(unknown[1])}"
    )


def _files(paths: Sequence[str], schema: pa.Schema) -> str:  # files say their schema themselves
    listed = ", ".join(literal(path) for path in paths)
    # Not partitioned: a folder named a=b never becomes a column.
    return f"read_parquet([{listed}], hive_partitioning = false, union_by_name = false)"
