"""Tables of stores for other tools: files, DuckDB connections, inputs, keys and layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError
from nrm_graph.store.format.schema import TABLES
from nrm_graph.store.view import View

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from nrm_graph.store.read.relation import Relation

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NO_NAMES = ("main", "memory", "stored", "system", "temp", "information_schema", "pg_catalog")
"""What a connection of DuckDB has already."""


def files(db: View, table: str, where: str | None = None) -> tuple[Path, ...]:
    r"""Paths of the Parquet files that hold a table of this snapshot.

    A pattern such as ``shards/*.edges.parquet`` finds more than counts: files of shards that
    others replaced stay for a while after compaction and deletion, and what it reads holds rows of
    deleted inputs, and of others twice.

    Parameters
    ----------
    db : Database
        The store.
    table : str
        ``inputs``, ``nodes``, ``edges`` or ``tensors``; of a condition that was materialized
        ``<name>_inputs``, ``<name>_nodes`` or ``<name>_edges``.
    where : str, optional
        SQL condition over ``inputs``, such as ``"label = 'cat'"``: only files that hold rows of
        an input that it chooses.  Files are not divided, and hold those of other inputs too.

    Returns
    -------
    tuple of Path
        Absolute, in the order of their names, which end in ``<shard>.<table>.parquet``.

    Raises
    ------
    InputError
        If the table stands in no files of shards.
    QueryError
        If ``where`` is not one SQL condition over ``inputs``.

    Notes
    -----
    Of these files every row counts, with two exceptions, which SQL here (:meth:`sql`,
    :meth:`connect`) leaves out:

    * Two writers at once may have stored the same input and target.  The file whose name sorts
      first counts: with DuckDB, ``SELECT * FROM read_parquet(?, filename = true) QUALIFY filename =
      min(filename) OVER (PARTITION BY input_id)``.  ``nrm-graph compact`` ends it.
    * A condition may hold rows of an input that was deleted while they were written: keep what
      joins with ``input_id`` of ``inputs``.

    Shards may differ in their columns of ``inputs``, where metadata came later or had no value.
    The paths are those of this snapshot: of a store that is compacted or in which inputs are
    deleted, files may be gone later (:meth:`refresh`).

    Examples
    --------
    >>> polars.scan_parquet(db.files("edges", where="label = 'cat'"))  # doctest: +SKIP
    """
    folders = {kind: (db._snapshot, kind) for kind in TABLES}
    folders |= {
        f"{name.lower()}_{kind}": (condition.snapshot, kind)
        for name, condition in db._conditions.items()
        for kind in TABLES[:-1]  # tensors are the store's alone
    }
    if not isinstance(table, str) or table.lower() not in folders:
        raise InputError(
            f"no file holds the table {table!r}: expected one of {', '.join(sorted(folders))}; "
            "others are made of these, db.sql(...) and db.connect() have them"
        )
    snapshot, kind = folders[table.lower()]
    chosen = snapshot.shard_of if where is None else _chosen(db, where)
    shards = {snapshot.shard_of[i] for i in chosen if i in snapshot.shard_of}
    return tuple(snapshot.path(shard, kind).absolute() for shard in sorted(shards))


def _chosen(db: View, where: str) -> list[int]:
    from nrm_graph.store.read.sql_guard import chosen_inputs

    return [identity for (identity,) in db.sql(chosen_inputs(where)).fetchall()]


def connect(db: View) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection to the tables of this snapshot, for notebooks and other tools.

    It has all tables that :meth:`sql` has, and takes what that refuses: PIVOT, prepared statements,
    views and tables of your own in memory, parameters, cursors.

    Returns
    -------
    duckdb.DuckDBPyConnection
        In memory.  It is yours: its errors are DuckDB's, ``close()`` or a ``with`` block ends it
        with all that was made in it, and closing the database does not.  It keeps to this
        snapshot.  A process that is forked opens one of its own.

    Raises
    ------
    StoreError
        If the tables cannot be opened.

    Notes
    -----
    No statement on it can read or write a file, reach a network, load an extension or change a
    setting: DuckDB is given no path.  Arrow reads the Parquet files, of them the columns that a
    query names and the rows that its WHERE leaves; nothing is loaded before.  Many queries of a few
    inputs out of a large store are quicker with ``db.sql(..., inputs=...)``, which opens their
    files alone.  Times are shown in UTC.

    Your own data frames are put in by ``con.register(name, frame)``, which the cursor that was
    asked alone sees, or copied with ``con.from_df(frame).create("name")``.

    Examples
    --------
    >>> con = db.connect()  # doctest: +SKIP
    >>> con.execute("PIVOT inputs ON label USING count(*)").df()  # doctest: +SKIP
    >>> polars.read_database("SELECT * FROM flows LIMIT 9", con)  # doctest: +SKIP
    """
    from nrm_graph.store.read.connection import open_connection

    return open_connection({"main": db._tables()})


def join(databases: Mapping[str, View]) -> duckdb.DuckDBPyConnection:
    """Open one DuckDB connection to the tables of several stores, for SQL over all of them.

    Parameters
    ----------
    databases : mapping of str to Database
        The stores by the names that their tables are to have: plain identifiers, the same in
        upper and lower case.

    Returns
    -------
    duckdb.DuckDBPyConnection
        As :meth:`Database.connect` returns, with the tables of each store in a schema of its name:
        ``a.edges``, ``a.inputs``, ``b.edges``, ...  Nothing stands in none; after ``USE a`` names
        alone are those of ``a``.  ``SHOW ALL TABLES`` lists all of them.

    Raises
    ------
    InputError
        If there is no database, or a name is no plain identifier, taken or one of DuckDB's own.
    StoreError
        If the tables cannot be opened.

    Notes
    -----
    The same input has the same ``key`` in both, and its own ``input_id`` in each: join on ``key``
    and ``target``.  Layers of equal names may differ where the networks do.

    Examples
    --------
    >>> con = ng.join({"base": db1, "tuned": db2})  # doctest: +SKIP
    >>> con.sql(
    ...     "SELECT key, tuned.inputs.logit - base.inputs.logit AS rise "
    ...     "FROM base.inputs JOIN tuned.inputs USING (key, target)"
    ... )  # doctest: +SKIP
    """
    from nrm_graph.store.read.connection import open_connection

    if not isinstance(databases, Mapping) or not databases:
        raise InputError(f"expected a mapping of name to Database, found {databases!r}")
    taken = set(_NO_NAMES)
    for name, db in databases.items():
        if not isinstance(name, str) or not _NAME.match(name) or name.lower() in taken:
            raise InputError(
                f"{name!r} cannot name a store: expected letters, digits and _, not a digit first, "
                f"each name once, and none of {', '.join(_NO_NAMES)}"
            )
        taken.add(name.lower())
        if not isinstance(db, View):
            raise InputError(f"{name!r} must be a Database, found {type(db).__name__}")
    return open_connection({name: db._tables() for name, db in databases.items()})


def inputs(db: View) -> Relation:
    """Return the table ``inputs``, in the order of the data set, where it is known."""
    order = "key" if "item" in db._snapshot.foreign else "item, key"
    return db.sql(f"SELECT * FROM inputs ORDER BY {order}, target")


def keys(db: View) -> tuple[str, ...]:
    """Return the keys of the inputs, each once, in the order of the data set, where it is known."""
    places = db._snapshot.items
    return tuple(sorted(db._snapshot.by_key, key=lambda key: (places.get(key, len(places)), key)))


def layers(db: View) -> Relation:
    """Return the table ``layers``, from the input to the output."""
    return db.sql("SELECT * FROM layers ORDER BY layer_id")
