"""Every step of a commit: what fails, stops or kills it there, and what the store then holds."""

import errno
import io
import os
import pathlib

from helpers.tiny_stores import make, record, write
from nrm_graph.store.format import files
from nrm_graph.store.read.snapshot import Snapshot

RECORDS = [record(i, t, metadata={"n": i}) for i in range(3) for t in range(2)]
FEW = RECORDS[:3]


class Steps:
    """Counts the calls that change the disk, and does something before the k-th.

    fsync itself is left out: what these tests see does not depend on it.
    """

    def __init__(self, monkeypatch, at=None, action=None):
        self.count = 0
        self.log = []
        self._at, self._action = at, action
        steps = self

        class Raw(io.FileIO):  # below the buffer of a data file, where a full disk shows
            def write(self, data):
                steps._step("write", (self.name,))
                return super().write(data)

        monkeypatch.setattr(io, "FileIO", Raw)
        monkeypatch.setattr(os, "fsync", self._wrap("fsync", lambda handle: None))
        for name in ("replace", "link"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        for module in ("files", "manifest"):
            written = self._wrap("write", files.write_synced)
            monkeypatch.setattr(f"nrm_graph.store.format.{module}.write_synced", written)
        monkeypatch.setattr(pathlib.Path, "mkdir", self._wrap("mkdir", pathlib.Path.mkdir))

    def _step(self, name, args):
        self.count += 1
        self.log.append((name, args))
        if self.count == self._at:
            self._action()

    def _wrap(self, name, call):
        def step(*args, **kwargs):
            self._step(name, args)
            return call(*args, **kwargs)

        return step


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted():
    raise KeyboardInterrupt


def job(path, **options):
    """Make the store and write some records, two inputs to a shard."""
    make(path)
    write(path, FEW, shard_inputs=2, **options)


def contents(path):
    """Rows of every input, read without SQL (which other tests compare)."""
    snapshot = Snapshot(path)
    return {
        identity: (
            snapshot.facts(identity),
            snapshot.rows(identity, "nodes").to_pylist(),
            snapshot.rows(identity, "edges").to_pylist(),
            snapshot.tensors(identity)[""].tolist(),
        )
        for identity in snapshot.entries
    }
