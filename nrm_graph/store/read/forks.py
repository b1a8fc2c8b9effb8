"""What a forked process inherits of DuckDB: it must neither use nor end it.

Threads do not survive a fork.  A query of the child on a connection of the parent waits for them
forever, and a connection of the parent that ends in the child, at the latest with the interpreter,
crashes it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Any

import duckdb

Config = dict[str, str | bool | int | float | list[str]]

_inherited: weakref.WeakSet[Any] = weakref.WeakSet()
_default: list[duckdb.DuckDBPyConnection] = []
_connecting = threading.RLock()


def connect(config: Config | None = None) -> duckdb.DuckDBPyConnection:
    """Open a connection; no fork happens meanwhile, so that none inherits a lock of DuckDB's."""
    with _connecting:
        con = duckdb.connect(config=config or {})
    unended_in_children(con)
    return con


def unended_in_children(holder: object) -> None:
    """Let forked processes never end what an object holds, however they end themselves."""
    _inherited.add(holder)


def _before() -> None:
    _connecting.acquire()
    # DuckDB's own, which ``duckdb.sql`` asks; before 2.0 importing DuckDB opens it.
    _default.append(duckdb.default_connection())


def _after_in_parent() -> None:
    _default.clear()
    _connecting.release()


def _after_in_child() -> None:
    _connecting.release()
    # A list would be emptied when the interpreter ends; a reference too many is never given back.
    for holder in [*_inherited, *_default]:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
