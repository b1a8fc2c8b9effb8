"""Adding records to a store while others compute: conversion and writing in the background."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, NrmError, StoreError
from nrm_graph.store.format.manifest import MAX_ERROR, new_name
from nrm_graph.store.format.metadata import RESERVED
from nrm_graph.store.format.schema import OWN, Record, aim_of, input_id
from nrm_graph.store.read.snapshot import Facts, Snapshot
from nrm_graph.store.write.shard import OpenShard, check_key, checked

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import pyarrow as pa

    from nrm_graph.network.weighted_targets import Aim

MAX_FAILURES = 1000


class Writer:
    """Write records to a store; a context manager.

    Shards are committed as they fill, after a time, at ``flush`` and at the end of the block, also
    when an error or Ctrl-C ends it: what was added completely is committed then.

    Parameters
    ----------
    folder : Path
        The store, which :func:`nrm_graph.store.format.settings.create` made.
    threads : int
        Background threads; each owns its own shard.
    shard_inputs, shard_bytes : int
        A shard is committed when it holds so many inputs or (about) so many bytes.
    queue_bytes : int
        ``add`` waits while more than this waits to be written, so that memory stays bounded.
    seconds : float
        What was added is committed after so long, however little it is: within a minute, for the
        commit itself takes time too.

    Raises
    ------
    StoreError
        If what is in the store cannot be read.

    Attributes
    ----------
    shards : list of (str, int, int)
        What was committed: name of the shard, number of inputs and of failures.
    items : mapping of str to int
        Places in the data set of the keys that were there before, where they are known.

    Notes
    -----
    One Writer belongs to one thread of its user.  Any number of processes may each write to the
    same store with a Writer of their own; one that was forked refuses to use its parent's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        shard_inputs: int = 100,
        shard_bytes: int = 256 << 20,
        queue_bytes: int = 256 << 20,
        seconds: float = 50.0,
    ) -> None:
        if min(threads, shard_inputs, shard_bytes, queue_bytes) < 1:
            raise InputError("expected threads, shard and queue sizes of at least 1")
        self.folder = folder
        self._process = os.getpid()
        self._limits = shard_inputs, shard_bytes
        self._seconds = seconds
        self._queue_bytes = queue_bytes
        snapshot = Snapshot(folder)
        self._fields = snapshot.fields
        self._known = set(snapshot.entries)
        self._contents = {e.key: e.content for e in snapshot.entries.values()}
        self._foreign = snapshot.foreign
        self.items: dict[str, int] = snapshot.items
        self._facts: dict[str, Facts] | None = None
        self._count = threads
        self._threads: list[threading.Thread] = []
        self.shards: list[tuple[str, int, int]] = []
        self._changed = threading.Condition()  # guards everything below
        self._queue: deque[tuple[int, Record, dict[str, Any], tuple[pa.Table, pa.Table]]] = deque()
        self._waiting = 0  # bytes in the queue or being written
        self._failures: dict[str, str] = {}
        self._failing = math.inf  # when the first of them came
        self._asked = 0  # flushes asked for
        self._flushed: dict[int, int] = {}  # flushes done, by thread
        self._closing = False
        self._error: BaseException | None = None
        self._reported = False
        self._last_name = ""

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reported:  # the block ends by the error of the thread: it is on its way
            self._stop()
        else:
            self.close()

    def committed(self, key: str, target: Aim, content: str | None = None) -> bool:
        """Whether a pair is in the store or on its way there, so that it need not be computed.

        ``target`` is the flat index of an output, or the text of weights.

        Raises
        ------
        StoreError
            If ``content`` is given and the key is there with another one.
        """
        check_key(key)
        if content is not None and self._contents.get(key, content) != content:
            raise StoreError(
                f"the key {key!r} is in the store with another content (SHA-256 "
                f"{self._contents[key][:12]}..., now {content[:12]}...): give the new input "
                "another key"
            )
        return input_id(key, target) in self._known

    def content(self, key: str) -> str | None:
        """Content of a key that is in the store or on its way there, or None."""
        return self._contents.get(key)

    def predicted(self, key: str) -> int | None:
        """Strongest output of a key that is in the store, or None; one key has one content."""
        facts = self.facts(key)
        return None if facts is None else facts.predicted

    def facts(self, key: str) -> Facts | None:
        """Label and strongest output of a key that is in the store, or None."""
        if key not in self._contents:
            return None
        if self._facts is None:
            # What is there now: a compaction may have replaced the files of before.
            self._facts = Snapshot(self.folder).known()
        return self._facts.get(key)

    def add(self, record: Record) -> bool:
        """Hand over a record to be written; False if its pair is there already.

        Raises
        ------
        InputError
            If a number is not finite (naming input and layer), or the record cannot be stored
            for another reason; the writer can be used further.
        StoreError
            If the key is there with another content, or writing failed.
        """
        self._check()
        aim = aim_of(record.target, record.weights)
        if self.committed(record.key, aim, record.content):
            return False
        tables = checked(record)
        if self._foreign:
            record = self._without(record)
        try:
            fields = self._fields.accept(record.metadata, RESERVED | OWN.keys() - self._foreign)
        except InputError as error:
            raise InputError(f"input {record.key!r}: {error}") from error
        own_columns = {name: getattr(record, name) for name in OWN}
        fields = {name: value for name, value in own_columns.items() if value is not None} | fields
        size = 1024 + sum(part.nbytes for part in (*tables, *record.tensors.values()))
        self._start()
        with self._changed:
            while self._waiting and self._waiting + size > self._queue_bytes and not self._error:
                self._changed.wait()
            self._check()
            # One statement after the other that cannot fail: Ctrl-C adds a record or does not.
            self._waiting += size
            self._queue.append((size, record, fields, tables))
            self._known.add(input_id(record.key, aim))
            self._contents[record.key] = record.content
            self._failures.pop(record.key, None)
            if self._facts is not None:
                self._facts[record.key] = Facts(record.predicted, record.label)
            self._changed.notify_all()
        return True

    def _without(self, record: Record) -> Record:
        """Leave out what has no column here: a user's own field bears its name."""
        if record.weights is not None and "weights" in self._foreign:
            raise StoreError(
                f"{self.folder} has a metadata field 'weights' from before weighted targets were "
                "stored, which would take the column: extract them into another store"
            )
        names = self._foreign & (OWN.keys() - {"weights"})
        plain = dict.fromkeys(names)
        return replace(record, **plain)  # type: ignore[arg-type]

    def fail(self, key: str, error: str) -> None:
        """Record that an input failed; a later success of the key takes it back.

        Raises
        ------
        InputError
            If the key cannot be stored.
        StoreError
            If writing failed.
        """
        self._check()
        check_key(key)
        self._start()
        with self._changed:
            # Text of others may hold anything; what UTF-8 cannot hold is escaped.
            self._failures[key] = error.encode("utf-8", "backslashreplace").decode()[:MAX_ERROR]
            self._failing = min(self._failing, time.monotonic())
            many = len(self._failures) >= MAX_FAILURES
            self._changed.notify_all()
        if many:
            self.flush()

    def flush(self) -> None:
        """Commit what has been added, and wait for it.

        Raises
        ------
        StoreError
            If writing failed.
        """
        self._check()
        with self._changed:
            if self._threads:
                self._asked += 1
                self._changed.notify_all()
                while not self._error and min(self._flushed.values()) < self._asked:
                    self._changed.wait()
        self._check()

    def close(self) -> None:
        """Commit what has been added and end the threads.

        Raises
        ------
        StoreError
            If writing failed.
        """
        if self._closing or self._process != os.getpid():  # what is on its way the parent commits
            return
        try:
            self.flush()
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._process != os.getpid():
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _check(self) -> None:
        """Raise the error of a background thread, if there is one."""
        if self._process != os.getpid():
            raise StoreError(
                f"this writer belongs to the process {self._process}, from which this one was "
                "forked: write from there, or open another writer here"
            )
        error = self._error
        if error is None:
            if self._closing:
                raise StoreError("the writer is closed: open another one")
            return
        self._reported = True
        if isinstance(error, NrmError):
            raise type(error)(str(error)) from error
        if isinstance(error, OSError):
            raise StoreError(
                f"cannot write to {self.folder}: {error.strerror or error}; what was committed "
                "before stays readable: free space or permissions and run the same command again"
            ) from error
        if isinstance(error, Exception):
            raise StoreError(f"writing to {self.folder} failed: {error!r}") from error
        raise error

    def _start(self) -> None:
        for number in range(len(self._threads), self._count):
            self._flushed[number] = self._asked
            # Daemons: a Writer that is never closed must not keep the process alive.
            thread = threading.Thread(
                target=self._write_queued, args=(number,), name=f"nrm-writer-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _write_queued(self, number: int) -> None:
        """Write what is queued; the loop of a background thread."""
        shard: OpenShard | None = None
        began = math.inf  # when the first record of the shard came
        try:
            while True:
                item = None
                with self._changed:
                    while not (
                        self._queue
                        or self._closing
                        or self._error
                        or self._flushed[number] < self._asked
                    ):
                        seconds = min(began, self._failing) + self._seconds - time.monotonic()
                        if seconds <= 0:
                            break
                        self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
                    if self._queue and not self._error:
                        item = self._queue.popleft()
                    flush_number, ends = self._asked, self._closing or self._error is not None
                if item is None:
                    if shard is not None or self._failures:
                        shard, opened, began = None, shard, math.inf
                        self._commit(opened)
                    with self._changed:
                        self._flushed[number] = flush_number
                        self._changed.notify_all()
                    if ends:
                        return
                    continue
                size, record, fields, tables = item
                if shard is None:
                    shard, began = OpenShard(self.folder / "shards"), time.monotonic()
                shard.add(record, fields, tables)
                inputs, limit = self._limits
                late = time.monotonic() - min(began, self._failing) >= self._seconds
                if late or len(shard) >= inputs or shard.size >= limit or shard.full:
                    shard, opened, began = None, shard, math.inf
                    self._commit(opened)
                with self._changed:
                    self._waiting -= size
                    self._changed.notify_all()
                del item, record, fields, tables
        except BaseException as error:  # raised again in the user's thread
            if shard is not None:
                shard.abort()
            with self._changed:
                self._error = self._error or error
                self._queue.clear()
                self._changed.notify_all()

    def _commit(self, shard: OpenShard | None) -> None:
        with self._changed:
            # Named when committed, not when opened: a later commit never wins over an earlier one.
            name = self._last_name = new_name(after=self._last_name)
            failures, self._failures, self._failing = self._failures, {}, math.inf
        if shard is not None or failures:
            shard = shard or OpenShard(self.folder / "shards")
            manifest = shard.commit(name, tuple(sorted(failures.items())))
            with self._changed:
                self.shards.append((name, len(manifest.inputs), len(failures)))
