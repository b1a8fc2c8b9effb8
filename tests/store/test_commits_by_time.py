"""What is added is committed after a time, also where shards are far from full."""

import shutil
import time
from functools import partial

import pytest
from helpers import interrupted
from helpers.tiny_stores import record

import nrm_graph as ng
from nrm_graph.store.read import conditions
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer


def committed(path, wanted, seconds=20):
    """Wait until so many inputs, and failures, are there."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        found = Snapshot(path)
        if (len(found.entries), len(found.failures)) == wanted:
            return True
        time.sleep(0.02)
    return False


def test_what_is_added_is_committed_after_a_time(three_inputs):
    with Writer(three_inputs, seconds=0.3) as writer:
        writer.add(record(20))
        assert len(Snapshot(three_inputs).entries) == 3
        assert committed(three_inputs, (4, 0))  # while nothing else happens
        writer.fail("broken", "why")
        assert committed(three_inputs, (4, 1))
        for number in range(21, 60):  # and while it is never idle
            writer.add(record(number))
            time.sleep(0.02)
        assert len(Snapshot(three_inputs).entries) > 10
        made = len(writer.shards)
    assert 4 <= made <= 12
    assert len(Snapshot(three_inputs).entries) == 3 + 40


def test_a_minute_is_the_limit():
    import inspect

    assert 30 <= inspect.signature(Writer).parameters["seconds"].default < 60


@pytest.mark.parametrize("job", ["extract", "materialize"])
def test_a_slow_run_commits_by_time(conditioned_store, tmp_path, monkeypatch, job):
    """Each item sees that those before it are committed, though shards are far from full."""
    from nrm_graph.extraction import extract
    from nrm_graph.store import materialize as conditioned

    path = tmp_path / "s.nrm"
    monkeypatch.setattr(extract, "Writer", partial(Writer, seconds=0.05))
    monkeypatch.setattr(conditioned, "Writer", partial(Writer, seconds=0.05))
    seen = []

    class Slow(interrupted.Images):
        def __getitem__(self, n):
            if n > 1:
                seen.append(committed(path, (2 * n, 0)))
            return super().__getitem__(n)

    if job == "extract":
        interrupted.extract(path, 4, 1, Slow(4)).close()
        assert seen == [True, True]
        return
    shutil.copytree(conditioned_store, path)
    folder = path / "conditions" / "c"
    plain = conditioned.measure

    def measure(db, *args, **options):
        seen.append(not seen or committed(folder, (len(seen), 0)))
        return plain(db, *args, **options)

    monkeypatch.setattr(conditioned, "measure", measure)
    with ng.open(path) as db:
        db.materialize(ng.Layer("0")[1], name="c", progress=False)
        assert seen == [True] * len(db)
    assert conditions.folder_of(path, "c") == folder
