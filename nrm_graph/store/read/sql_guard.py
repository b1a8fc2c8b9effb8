"""Which SQL may run: one query over known tables with functions that only compute.

The settings of a locked DuckDB connection still allow writing to the files that it may read
(COPY overwrites them, ATTACH too), so what runs is decided on DuckDB's own parse tree, by lists of
what is allowed: a new statement, table function or setting of a later DuckDB is refused.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
from typing import TYPE_CHECKING, Any

import duckdb

from nrm_graph.errors import QueryError
from nrm_graph.events.excerpt import pointed
from nrm_graph.store.read.forks import connect

if TYPE_CHECKING:
    from collections.abc import Collection

_QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE"}
_REFERENCES = {
    "BASE_TABLE",
    "EMPTY",
    "EMPTY_FROM",
    "EXPRESSION_LIST",
    "JOIN",
    "PIVOT",
    "SHOW_REF",
    "SUBQUERY",
    "TABLE_FUNCTION",
}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest"}
# Not functions in DuckDB's list, or called volatile there although they only compute.
_PLAIN = {
    *("unnest", "random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "error", "vector_type"),
    *("current_date", "today", "now", "get_current_time", "get_current_timestamp"),
    *("transaction_timestamp",),
}
# DuckDB 1.4 runs them, and lists them nowhere.
_WINDOW = {
    *("row_number", "rank", "dense_rank", "rank_dense", "percent_rank", "cume_dist", "ntile"),
    *("lag", "lead", "first_value", "last_value", "nth_value", "fill"),
}
_OF_THE_SERVER = ("pg_", "has_", "inet_", "current_", "session_")
# DuckDB 1.5 calls some of these consistent; some plan the SQL that they are given, which opens
# files.
_CLOSED = {
    *("getenv", "getvariable", "query", "glob", "get_block_size", "in_search_path"),
    *("txid_current", "nextval", "currval", "setval", "setseed", "stats", "sleep_ms", "write_log"),
    *("json_serialize_plan", "json_serialize_sql", "json_deserialize_sql"),
}
_SEES_THE_CTE = {"RECURSIVE_CTE_NODE": "right", "CTE_NODE": "child"}
"""Part of a node that sees the CTE it defines; DuckDB 1.4.0 has nodes around what reads a CTE."""
_LISTS = {"tables", "__show_tables_expanded"}  # SHOW TABLES; SHOW ALL TABLES, SHOW and DESCRIBE
EVERY = "*"
"""Stands for the names of all tables, where they are listed."""

_TOO_LONG = 1_000_000
_CHOOSE = "SELECT input_id FROM inputs WHERE {}"


@functools.cache
def _parser(process: int) -> duckdb.DuckDBPyConnection:
    """Return a connection that parses and reads nothing, of a process.

    That of its parent may be locked by a thread that is gone.
    """
    con = connect(config={"threads": 1})
    for setting in ("enable_external_access = false", "lock_configuration = true"):
        con.execute(f"SET {setting}")
    return con


@functools.cache
def _functions() -> tuple[frozenset[str], frozenset[str]]:
    """Names of the functions that depend on their arguments alone, and of all."""
    query = "SELECT DISTINCT lower(function_name), function_type, stability FROM duckdb_functions()"
    listed = _parser(os.getpid()).cursor().execute(query).fetchall()
    pure = {
        name
        for name, kind, stability in listed
        if kind == "macro"
        or (kind in ("scalar", "aggregate", "window") and stability == "CONSISTENT")
    }
    closed = {name for name in pure if name.startswith((*_OF_THE_SERVER, "__internal"))}
    return frozenset((pure - closed - _CLOSED) | _PLAIN | _WINDOW), frozenset(
        name for name, _, _ in listed
    )


def check_statement(sql: str, tables: Collection[str]) -> set[str]:
    """Refuse everything but one query made of SELECT, set operations and CTEs.

    Parameters
    ----------
    sql : str
        The query.
    tables : collection of str
        Names of the tables that it may read, in lower case.

    Returns
    -------
    set of str
        Those of them that it reads, and ``EVERY`` if it lists them.

    Raises
    ------
    QueryError
        If the text is not exactly one such query, names another table or file, or calls a
        function that does more than compute.
    """
    statement = _only(_parsed(sql))
    used: set[str] = set()
    try:
        node = statement.get("node")
        if not isinstance(node, dict) or node.get("type") not in _QUERIES:
            raise QueryError("only SELECT, set operations and CTEs are allowed")
        _walk(node, frozenset(), frozenset(tables), used)
    except RecursionError:
        raise QueryError("the query is nested too deeply") from None
    return used


def chosen_inputs(where: str) -> str:
    """Query of the ``input_id`` of the inputs that a SQL condition chooses.

    It is still to be checked like any other: the condition may hold subqueries.

    Parameters
    ----------
    where : str
        One expression over the columns of ``inputs``.

    Raises
    ------
    QueryError
        If it is anything else, such as one that closes the parenthesis that it is put in.
    """
    if not isinstance(where, str):
        raise QueryError(f"expected a SQL condition as text, found {type(where).__name__}")
    # As the argument of a function: text that closes the parenthesis, or holds no expression or
    # several, gives another tree than one argument does.
    shown = where if len(where) <= 100 else f"{where[:97]}..."
    refusal = QueryError(f"expected where to be one SQL condition over inputs, found {shown!r}")
    try:
        parsed = [_parsed(_CHOOSE.format(f"abs(\n{text}\n)")) for text in (where, "true")]
    except QueryError:
        _parsed(where, _CHOOSE.format("\n"))  # whose errors know nothing of a parenthesis
        raise refusal from None
    trees = [_only(statements) for statements in parsed]
    calls = [tree["node"].get("where_clause") or {} for tree in trees]
    arguments = [
        call.pop("arguments", call.pop("children", ())) for call in calls
    ]  # DuckDB 2.0, 1.5
    for call in calls:
        call.pop("query_location_length", None)
    if trees[0] != trees[1] or len(arguments[0]) != 1:
        raise refusal
    return _CHOOSE.format(f"(\n{where}\n)")


def _only(statements: list[dict[str, Any]]) -> dict[str, Any]:
    if len(statements) != 1:
        raise QueryError(f"expected one statement, found {len(statements)}")
    return statements[0]


def _parsed(sql: str, begin: str = "") -> list[dict[str, Any]]:
    """Parse statements, or a condition after the beginning of one; nothing of it is run."""
    if len(sql) > _TOO_LONG:
        raise QueryError(f"the query has {len(sql)} characters, at most {_TOO_LONG} are allowed")
    subject = "where" if begin else "the query"
    try:
        sql.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{subject} cannot be parsed: it holds what is no UTF-8"
        raise QueryError(pointed(problem, sql, error.start)) from None
    try:
        # As a parameter, and on a cursor of its own: the text itself is not run here.
        rows = (
            _parser(os.getpid())
            .cursor()
            .execute("SELECT json_serialize_sql(?)", [begin + sql])
            .fetchall()
        )
        tree = json.loads(rows[0][0])
    except (duckdb.Error, ValueError, RecursionError) as error:
        raise QueryError(f"{subject} cannot be parsed: {error}") from None
    if tree.get("error"):
        if "max_expression_depth" in str(tree.get("error_message")):  # no setting of the user's
            raise QueryError("the query is nested too deeply: it has more than 1,000 levels")
        if tree.get("error_type") == "parser":
            problem = f"{subject} cannot be parsed: {' '.join(str(tree['error_message']).split())}"
            raise QueryError(_pointed(problem, sql, begin, tree))
        raise QueryError(
            "only a single SELECT is allowed (or SHOW TABLES, DESCRIBE, SUMMARIZE): nothing that "
            "writes, sets or opens anything"
        )
    return list(tree.get("statements") or ())


def _pointed(problem: str, sql: str, begin: str, tree: dict[str, Any]) -> str:
    """Point at the place of a parse error: DuckDB 2.0 counts bytes up to it, 1.5 characters."""
    if "position" not in tree:
        return problem
    place = int(tree["position"])
    if "location" in tree:
        place = len((begin + sql).encode()[:place].decode(errors="ignore"))
    return pointed(problem, sql, min(max(0, place - len(begin)), len(sql)))


def _walk(node: object, ctes: frozenset[str], tables: frozenset[str], used: set[str]) -> None:
    if isinstance(node, list):
        for item in node:
            _walk(item, ctes, tables, used)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if isinstance(kind, str):
        if kind.endswith(("_NODE", "_STATEMENT")) and kind not in _QUERIES:
            raise QueryError(f"only SELECT, set operations and CTEs are allowed, found {kind}")
        if "class" not in node and "alias" in node and "sample" in node:
            _reference(node, kind, ctes, tables, used)
    name = str(node.get("function_name") or "").lower()
    # The function of a TABLE_FUNCTION was checked with it; this is one inside an expression.
    if name and name not in _functions()[0] and not node.get("checked"):
        raise _no_function(name)
    # A CTE sees those before it, itself only where it is repeated: a table's name that is out of
    # scope would be looked up among files.
    inside = ctes
    for entry in (node.get("cte_map") or {}).get("map") or ():
        _walk(entry["value"], inside, tables, used)
        inside |= {str(entry["key"]).lower()}
    defined = {str(node.get(key)).lower() for key in ("cte_name", "ctename") if node.get(key)}
    scopes = {_SEES_THE_CTE.get(str(kind)): inside | defined}
    if kind == "CTE_NODE":
        scopes["query"] = ctes
    for key, value in node.items():
        if key != "cte_map":
            _walk(value, scopes.get(key, inside), tables, used)


def _no_function(name: str) -> QueryError:
    pure, impure = _functions()
    if name in impure:
        return QueryError(
            f"the function {name}() is not allowed in a query: it does more than compute from its "
            "arguments"
        )
    close = difflib.get_close_matches(name, pure, n=3, cutoff=0.75)
    hint = f": did you mean {', '.join(close)}?" if close else ""
    return QueryError(f"there is no function {name}(){hint}")


def _reference(
    node: dict[str, Any], kind: str, ctes: frozenset[str], tables: frozenset[str], used: set[str]
) -> None:
    """Check what a FROM clause names."""
    if kind not in _REFERENCES:
        raise QueryError(f"a {kind} is not allowed in a query")
    if kind == "TABLE_FUNCTION":
        function = node.get("function") or {}
        called = str(function.get("function_name") or "").lower()
        if called not in _TABLE_FUNCTIONS:
            raise QueryError(f"the table function {called}() is not allowed in a query")
        function["checked"] = True
    elif kind == "SHOW_REF" and node.get("query") is None:  # a query's is checked as such
        shown = str(node.get("table_name") or "").strip('"').lower()
        if shown in _LISTS:
            used.add(EVERY)
        elif node.get("show_type") != "SHOW":
            raise QueryError(
                f"SHOW {shown or 'TABLES FROM'} is not allowed: SHOW TABLES, DESCRIBE and "
                "SUMMARIZE are"
            )
        else:
            used.add(_known(shown, tables))
    elif kind == "BASE_TABLE":
        name = str(node.get("table_name") or "").lower()
        qualified = [str(node[k]) for k in ("catalog_name", "schema_name") if node.get(k)]
        if qualified:
            raise QueryError(
                f"the table {'.'.join([*qualified, name])} is not allowed: name the tables "
                f"{', '.join(sorted(tables))} without a schema"
            )
        if name not in ctes:
            used.add(_known(name, tables))


def _known(name: str, tables: Collection[str]) -> str:
    if name not in tables:
        raise QueryError(
            f"there is no table {name!r} in a store: expected one of {', '.join(sorted(tables))}; "
            "files cannot be read, pass Arrow tables as tables="
        )
    return name
