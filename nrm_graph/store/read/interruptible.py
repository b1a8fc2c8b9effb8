"""Calls of DuckDB that Ctrl-C, a timeout or another thread ends at once."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, TypeVar

import duckdb

from nrm_graph.errors import InputError, QueryError
from nrm_graph.progress import current, look
from nrm_graph.store.read.forks import unended_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# The place of an error is left out: DuckDB 1.5 writes a query anew, and points into that text at
# where the place was in the user's; of a condition over inputs, the line is not the user's either.
_LINE = re.compile(r"\n+LINE \d+: [^\n]*\n[ \t]*\^+\s*\Z")
# DuckDB, which may read files of the store alone, takes one that vanished for a pattern.
_GONE = re.compile(r'Cannot access file "(.+?\.parquet)/\*\*/\*\.parquet"')

AGAIN = 0.05
"""Seconds between interruptions of a call that goes on: one that comes too early has no effect."""

TICK = 1.0
"""Seconds between looks at how long a call takes."""


def check_timeout(timeout: object) -> None:
    """Refuse what is no number of seconds.

    Raises
    ------
    InputError
        If it is not; None is no limit.
    """
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 < timeout < math.inf):  # type: ignore[operator]
        raise InputError(
            f"timeout must be a number of seconds above 0, or None for no limit, found {timeout!r}"
        )


class OutOfMemory(QueryError):
    """A query needed more memory than it may have."""


@dataclass(eq=False)
class Cursor:
    """A cursor of DuckDB, and what its calls have in common.

    Attributes
    ----------
    con : DuckDBPyConnection
        The cursor itself.
    timeout : float or None
        Seconds that each call may take.
    running : set of Call
        Calls that run now, of all cursors of one database.
    process : int
        The process that may use it.
    """

    con: duckdb.DuckDBPyConnection
    timeout: float | None
    running: set[Call]
    process: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        unended_in_children(self)

    def check(self) -> None:
        """Refuse to be used in a process that was forked since.

        Raises
        ------
        QueryError
            Saying what to do there.
        """
        if self.process != os.getpid():
            raise QueryError(
                f"this relation belongs to the process {self.process}, from which this one was "
                "forked: call db.sql(...) here, which answers from the same snapshot"
            )

    def call(self, function: Callable[[], T]) -> T:
        """Run a function that calls DuckDB.

        Raises
        ------
        QueryError
            If it fails, takes longer than the timeout or is cancelled; or after a fork.
        KeyboardInterrupt
            At Ctrl-C; the query is stopped first.
        """
        self.check()
        call = Call(self.con)
        self.running.add(call)
        try:
            return call.run(function, self.timeout)
        finally:
            self.running.discard(call)

    def cancel(self) -> None:
        """Stop what runs on this cursor now, in any thread."""
        self.check()
        for call in list(self.running):
            if call.con is self.con:
                call.cancel()
        self.con.interrupt()  # a reader of batches, which runs outside of these calls


class Call:
    """One call, which runs in a thread of its own.

    DuckDB 2.0 runs a query without handing signals to Python: Ctrl-C during ``fetchall`` of a long
    one had no effect for 8 seconds and more, or came out as a ``RuntimeError``.  So the query runs
    in a thread, and the caller's waits for it, which Python can interrupt.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self._process = os.getpid()
        self._cancelled = False
        self._woken = threading.Event()
        self._done = threading.Event()

    def cancel(self) -> None:
        """Stop it; nothing happens where it has ended, or in a process that was forked since."""
        if self._process != os.getpid():
            return
        self._cancelled = True
        self._woken.set()

    def run(self, function: Callable[[], T], timeout: float | None) -> T:
        """Call, and wait for the end; see :meth:`Cursor.call`."""
        result: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                result.append(function())
            except BaseException as error:  # raised again below
                errors.append(error)
            finally:
                self._done.set()
                self._woken.set()

        threading.Thread(target=work, name="nrm-query", daemon=True).start()
        try:
            self._wait(timeout)
        finally:
            while not self._done.is_set():
                self.con.interrupt()
                self._done.wait(AGAIN)
        if errors:
            try:
                self._raise(errors[0], timeout)
            finally:
                errors.clear()  # no cycle between the error's frames and this list
        return result[0]

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end, a timeout or another thread; who watches sees that time passes."""
        progress, is_watched = current(), look()
        if progress is None and not is_watched:
            self._woken.wait(timeout)
            return
        end = math.inf if timeout is None else time.monotonic() + timeout
        tick = AGAIN if is_watched else TICK
        while not self._woken.wait(min(tick, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return
            look()
            if progress is not None:
                progress.tick()

    def _raise(self, error: BaseException, timeout: float | None) -> NoReturn:
        if isinstance(error, duckdb.InterruptException):
            if self._cancelled or timeout is None:
                raise QueryError("the query was cancelled") from error
            raise QueryError(
                f"the query was stopped after timeout={timeout:g} s: allow more, or ask for less "
                "with inputs= or a narrower WHERE"
            ) from error
        if isinstance(error, duckdb.Error):
            gone = _GONE.search(str(error))
            if gone is not None:
                raise QueryError(
                    f"the file {gone[1]} is no longer there: open the store again"
                ) from None
            kind = OutOfMemory if isinstance(error, duckdb.OutOfMemoryException) else QueryError
            raise kind(" ".join(_LINE.sub("", str(error)).split())) from error
        raise error
