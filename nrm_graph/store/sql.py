"""SQL over committed files: an in-memory DuckDB that can read these files and do nothing else."""

from __future__ import annotations

import json
import re
import tempfile
from typing import TYPE_CHECKING, Any

import duckdb

from nrm_graph.errors import InputError, QueryError, StoreError
from nrm_graph.store.schema import LAYERS, SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

_QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE"}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest"}
_FORBIDDEN_FUNCTIONS = {"getenv", "read_text", "read_blob", "glob", "query", "query_table"}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
VIEWS = ("inputs", "layers", "nodes", "edges", "flows")

FLOWS = """
SELECT e.input_id, i.key, i.label, d.name AS dst, e.dst_unit, s.name AS src, e.src_unit,
       e.relevance, e.conditional
FROM edges e
JOIN inputs i ON i.input_id = e.input_id
JOIN layers d ON d.layer_id = e.dst_layer
JOIN layers s ON s.layer_id = e.src_layer
"""


def check_statement(sql: str) -> None:
    """Refuse everything but one query made of SELECT, set operations and CTEs.

    The settings of the connection still allow writing to the files it may read (COPY
    overwrites them), so what is run is decided on DuckDB's own parse tree.

    Raises
    ------
    QueryError
        If the text is not exactly one such query, or calls a function that reads files.
    """
    with duckdb.connect() as parser:
        try:
            (text,) = parser.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0]
        except duckdb.Error as error:
            raise QueryError(f"the query cannot be parsed: {error}") from None
    tree = json.loads(text)
    if tree.get("error"):
        raise QueryError(
            f"only a single SELECT is allowed: {tree.get('error_message', 'cannot be parsed')}"
        )
    if len(tree.get("statements", ())) != 1:
        raise QueryError(f"expected one statement, found {len(tree.get('statements', ()))}")
    _walk(tree["statements"][0].get("node"), top=True)


def _walk(node: Any, top: bool = False) -> None:
    if isinstance(node, list):
        for item in node:
            _walk(item)
        return
    if not isinstance(node, dict):
        return
    kind = str(node.get("type", ""))
    if (top or kind.endswith("_NODE")) and kind not in _QUERIES:
        raise QueryError(f"only SELECT, set operations and CTEs are allowed, found {kind}")
    name = str(node.get("function_name", "")).lower()
    if kind == "TABLE_FUNCTION":
        called = str((node.get("function") or {}).get("function_name", "")).lower()
        if called not in _TABLE_FUNCTIONS:
            raise QueryError(f"the table function {called}() is not allowed in a query")
    if name in _FORBIDDEN_FUNCTIONS or name.startswith(("read_", "parquet_", "duckdb_")):
        raise QueryError(f"the function {name}() is not allowed in a query")
    for value in node.values():
        _walk(value)


def connect(
    files: Mapping[str, Sequence[str]],
    layers: pa.Table,
    tables: Mapping[str, pa.Table] | None = None,
    keep: Mapping[str, Sequence[int]] | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open a locked-down connection with the views of the store.

    Parameters
    ----------
    files : mapping of table name to absolute paths
        ``inputs``, ``nodes`` and ``edges``; an empty list makes an empty table.
    layers : pyarrow.Table
        The ``layers`` table.
    tables : mapping of name to pyarrow.Table, optional
        Further tables.
    keep : mapping of path to input ids, optional
        Files of which only these inputs may be seen.
    """
    con = duckdb.connect()
    try:
        con.register("__layers", layers.cast(LAYERS))
        con.execute('CREATE TABLE layers AS SELECT * FROM "__layers"')
        for table in ("inputs", "nodes", "edges"):
            # Registered Arrow data is seen by one cursor only: empty tables are copied.
            what = "VIEW" if files[table] else "TABLE"
            con.execute(f"CREATE {what} {table} AS {_source(con, table, files[table], keep)}")
        con.execute(f"CREATE VIEW flows AS {FLOWS}")
        for name, data in (tables or {}).items():
            if not _IDENTIFIER.match(name) or name.lower() in VIEWS:
                raise InputError(f"{name!r} cannot name a table: use a new, plain identifier")
            con.register(name, data)
        allowed = [path for paths in files.values() for path in paths]
        con.execute(f"SET allowed_paths = [{', '.join(_quote(p) for p in allowed)}]")
        con.execute(f"SET temp_directory = {_quote(tempfile.gettempdir() + '/nrm_graph_duckdb')}")
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        con.close()
        raise StoreError(f"the store's tables cannot be opened: {error}") from None
    return con


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _source(
    con: duckdb.DuckDBPyConnection,
    table: str,
    paths: Sequence[str],
    keep: Mapping[str, Sequence[int]] | None,
) -> str:
    if not paths:
        con.register(f"__{table}", SCHEMAS[table].empty_table())
        return f'SELECT * FROM "__{table}"'
    listed = ", ".join(_quote(p) for p in paths)
    union = ", union_by_name = true" if table == "inputs" else ""
    # Explicit, so that a folder named a=b never becomes a column.
    query = f"SELECT * FROM read_parquet([{listed}], hive_partitioning = false{union})"
    ids = sorted({int(i) for p in paths for i in (keep or {}).get(p, ())})
    if keep is not None:
        chosen = ", ".join(str(i) for i in ids) or "NULL"
        query += f" WHERE input_id IN ({chosen})"
    return query


def query(con: duckdb.DuckDBPyConnection, sql: str, params: Any = None) -> Any:
    """Run one checked query and return a DuckDB relation."""
    check_statement(sql)
    try:
        return con.sql(sql, params=params) if params is not None else con.sql(sql)
    except duckdb.Error as error:
        raise QueryError(str(error)) from None
