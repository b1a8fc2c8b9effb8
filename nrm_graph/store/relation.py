"""Results of a query that Ctrl-C interrupts and whose errors are this package's."""

from __future__ import annotations

import functools
import re
import threading
from typing import TYPE_CHECKING, Any

import duckdb

from nrm_graph.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Callable


# DuckDB, which may read files of the store alone, takes one that vanished for a pattern.
# The place of an error is left out: DuckDB 1.5 writes a query anew, and points into that text at
# where the place was in the user's; of a condition over inputs, the line is not the user's either.
_LINE = re.compile(r"\n+LINE \d+: [^\n]*\n[ \t]*\^+\s*\Z")
_GONE = re.compile(r'Cannot access file "(.+?\.parquet)/\*\*/\*\.parquet"')


def interruptible(con: duckdb.DuckDBPyConnection, call: Callable[[], Any]) -> Any:
    """Run a call of DuckDB so that Ctrl-C ends it at once.

    Raises
    ------
    QueryError
        If the query fails.
    KeyboardInterrupt
        At Ctrl-C; the query is stopped first.

    Notes
    -----
    DuckDB 2.0 runs a query without handing signals to Python: Ctrl-C during ``fetchall`` of a long
    one had no effect for 8 seconds and more, or came out as a ``RuntimeError``.  So the query runs
    in a thread, and the caller's waits for it, which Python can interrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        return _translated(call)  # Python delivers signals to the main thread alone
    done = threading.Event()
    result: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            result.append(_translated(call))
        except BaseException as error:  # raised again below
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="nrm-query", daemon=True).start()
    try:
        done.wait()
    except BaseException:
        con.interrupt()
        done.wait()
        raise
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # no cycle between the error's frames and this list
    return result[0]


def _translated(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except duckdb.Error as error:
        gone = _GONE.search(str(error))
        if gone is not None:
            raise QueryError(
                f"the file {gone[1]} is no longer there: open the store again"
            ) from None
        raise QueryError(" ".join(_LINE.sub("", str(error)).split())) from error


class Relation:
    """A DuckDB relation whose methods can be interrupted.

    Everything of ``duckdb.DuckDBPyRelation`` is there: ``fetchall``, ``fetchmany``, ``df``,
    ``to_arrow_table``, ``columns``, ``limit`` and so on; ``relation`` is the relation itself.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, relation: Any) -> None:
        self._con = con
        self.relation = relation

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.relation, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def method(*args: Any, **kwargs: Any) -> Any:
            plain = [a.relation if isinstance(a, Relation) else a for a in args]
            value = interruptible(self._con, lambda: found(*plain, **kwargs))
            if isinstance(value, duckdb.DuckDBPyRelation):
                return Relation(self._con, value)
            return value

        return method

    def __dir__(self) -> list[str]:
        public = (name for name in dir(self.relation) if not name.startswith("_"))
        return sorted({*super().__dir__(), *public})

    def __len__(self) -> int:
        return int(interruptible(self._con, lambda: len(self.relation)))

    def __repr__(self) -> str:
        return str(interruptible(self._con, lambda: repr(self.relation)))

    def __str__(self) -> str:
        return repr(self)
