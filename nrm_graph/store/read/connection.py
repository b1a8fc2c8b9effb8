"""A DuckDB connection of one's own over a snapshot: Arrow data sets, and no file at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from nrm_graph.errors import StoreError
from nrm_graph.store.read.forks import connect
from nrm_graph.store.read.locked import load, lock
from nrm_graph.store.read.snapshot import damage
from nrm_graph.store.read.table_queries import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.store.read.table_queries import TableQueries

MAIN = "main"
"""Schema of what is named without one."""
STORED = "stored"
"""Schema of the data sets, which the tables read: ``SHOW TABLES`` names the tables alone."""

_OF_ARROW = {"__filename", "__fragment_index", "__batch_index", "__last_in_fragment"}
"""Columns that Arrow adds to every data set: a file with one of its own cannot be part of any."""


def open_connection(stores: Mapping[str, TableQueries]) -> duckdb.DuckDBPyConnection:
    """Open a connection to the tables of snapshots; all of its cursors see them.

    DuckDB is given no file and may open none, so that it cannot write one either: Arrow reads, of
    the columns and row groups that a query asks for.

    Parameters
    ----------
    stores : mapping of str to TableQueries
        The tables by the schema that they stand in; ``main`` is the one that needs no name.

    Raises
    ------
    StoreError
        If DuckDB cannot be set up, or a file is gone or damaged.
    """
    con = connect()
    sets = _Sets(con)
    try:
        con.execute(f"CREATE SCHEMA {STORED}")
        for schema, queries in stores.items():
            if schema != MAIN:
                con.execute(f"CREATE SCHEMA {quoted(schema)}")
            _create(con, schema, queries, sets)
        con.execute(f"USE {MAIN}")
        # Zones are looked up when times are first shown, which is a setting to DuckDB.
        lock(con, "TimeZone = 'UTC'", "allow_persistent_secrets = false")
    except (duckdb.Error, StoreError) as error:
        con.close()
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"the store's tables cannot be opened: {error}") from None
    return con


def _create(
    con: duckdb.DuckDBPyConnection, schema: str, queries: TableQueries, sets: _Sets
) -> None:
    """Create the tables of one store in a schema."""
    rows = {name: queries.query(name, sets.add) for name in queries.of_files}
    con.execute(f"USE {quoted(schema)}")  # a view looks for tables where it stands
    load(con, queries.loaded)
    for name, query in rows.items():
        con.execute(f"CREATE VIEW {name} AS {query}")
    for name, query in queries.views.items():
        con.execute(f"CREATE VIEW {name} AS {query}")


class _Sets:
    """Data sets of a connection, each made once."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        self._names: dict[tuple[str, ...], str] = {}

    def add(self, paths: Sequence[str], schema: pa.Schema) -> str:
        """Name what reads files of one schema."""
        files = tuple(paths)
        if files not in self._names:
            name = f"files{len(self._names)}"
            self._con.execute(f"USE {STORED}")
            if _OF_ARROW.isdisjoint(schema.names):
                self._con.from_arrow(_data_set(files, schema)).create_view(name)
            else:
                numbered = _rows(files, schema).rename_columns(
                    [f"c{i}" for i in range(len(schema))]
                )
                self._con.from_arrow(numbered).create_view(f"{name}_rows")
                columns = ", ".join(map(quoted, schema.names))
                self._con.execute(f"CREATE VIEW {name} ({columns}) AS SELECT * FROM {name}_rows")
            self._names[files] = f"{STORED}.{name}"
        return self._names[files]


def _data_set(paths: Sequence[str], schema: pa.Schema) -> ds.Dataset:
    form, local = ds.ParquetFileFormat(), LocalFileSystem()
    return ds.FileSystemDataset.from_paths(paths, schema=schema, format=form, filesystem=local)


def _rows(paths: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Read what can be part of no data set: of ``inputs``, where one has a row."""
    tables = []
    for path in paths:
        with damage(Path(path)), pq.ParquetFile(path) as file:
            tables.append(file.read(schema.names).cast(schema))
    return pa.concat_tables(tables)
