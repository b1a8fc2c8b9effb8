"""Compaction and deletion beside readers, writers, faults and kills: no row is lost."""

import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import pytest
from helpers.commit_steps import no_space
from helpers.compacted import (
    JOBS,
    AllSteps,
    ages,
    condition_of,
    exact,
    files,
    named,
    rows,
    shards,
)
from helpers.processes import TESTS
from helpers.tiny_stores import all_rows, make, record, write

import nrm_graph as ng
from nrm_graph.store.format import listing
from nrm_graph.store.format.files import alone, remove_abandoned
from nrm_graph.store.format.listing import listed
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.verify import tables as verify_tables
from nrm_graph.store.verify import verify
from nrm_graph.store.write import compaction, rewrite
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete
from nrm_graph.store.write.writer import Writer

SLOW = pytest.mark.slow


def counts(db):
    ((inputs, nodes, edges),) = db.sql(
        "SELECT (SELECT count(*) FROM inputs), (SELECT count(*) FROM nodes), "
        "(SELECT count(*) FROM edges)"
    ).fetchall()
    return inputs, nodes, edges


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=SLOW)])
def test_many_compactions_with_readers(path, rounds):
    """A reader of before, one that opens anew, one that refreshes: counts are those expected."""
    write(path, [record(n) for n in range(3)], shard_inputs=1)
    with ng.open(path) as old, ng.open(path) as refreshed:
        before = all_rows(old)
        for k in range(rounds):
            write(path, [record(3 + k)])
            compact(path, shard_inputs=20, progress=False)
            wanted = (4 + k, 5 * (4 + k), 5 * (4 + k))
            with ng.open(path) as new:
                assert counts(new) == wanted
                new._snapshot.rows(next(iter(new._snapshot.entries)), "edges")
            refreshed.refresh()
            assert counts(refreshed) == wanted
            assert counts(old) == (3, 15, 15)
        assert all_rows(old) == before
        assert old._snapshot.tensors(next(iter(old._snapshot.entries)))
    ends = rows(path)
    ages(path, 2 * compaction.DAY)
    found = compact(path, shard_inputs=20, progress=False)
    assert found.waiting_files == 0
    assert len(files(path)) == 5 * len(shards(path))
    assert rows(path) == ends


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=SLOW)])
def test_readers_open_while_files_are_deleted_at_once(path, rounds):
    """No opening fails or misses an input, even where replaced files go at once."""
    write(path, [record(n) for n in range(20)], shard_inputs=2)
    with ng.open(path) as old:
        context = multiprocessing.get_context("spawn")
        stop, turns = context.Event(), context.Value("i", 0)
        process = context.Process(target=_compact_until, args=(path, stop, turns))
        process.start()
        try:
            while turns.value < rounds and process.is_alive():
                assert len(Snapshot(path).entries) == 20
        finally:
            stop.set()
            process.join(60)
        assert process.exitcode == 0
        with pytest.raises(ng.QueryError, match=r"^the file .+ is no longer there: open the store"):
            counts(old)
        with pytest.raises(ng.StoreError, match=r"^the file .+ is no longer there: open the store"):
            old._snapshot.rows(next(iter(old._snapshot.entries)), "edges")
        old.refresh()
        assert counts(old) == (20, 100, 100)


def test_a_list_that_lacks_old_and_new_is_made_again(path, monkeypatch):
    """A folder that is listed while a shard replaces another may show neither."""
    write(path, [record(0)])
    write(path, [record(1)])
    before = shards(path)
    delete(path, "input0", progress=False)
    found = listing._names(path / "shards")
    looks = iter([[], before, found[:2], found[2:], found])
    monkeypatch.setattr(listing, "_names", lambda folder: next(looks, found))
    assert list(Snapshot(path).by_key) == ["input1"]
    assert next(looks, None) is None


def test_a_file_that_was_committed_meanwhile_stays(path):
    """Its writer ended between the list of manifests and the lock."""
    write(path, [record(0)])
    (name,) = shards(path)
    file = path / "shards" / f"{name}.edges.parquet"
    size = file.stat().st_size
    assert remove_abandoned(file, file.with_name(f"{name}.json")) == -1
    assert remove_abandoned(file) == size
    assert remove_abandoned(file) == -1


def _compact_until(path, stop, turns):
    """Merge to pieces of other sizes, again and again."""
    os.fsync = lambda handle: None
    while not stop.is_set():
        for name in shards(path):  # apart again, so that there is something to merge
            found = rewrite.shards_of(path)
            if len(found.manifests[name].inputs) > 2:
                _split(found, name)
        compact(path, shard_inputs=4 + turns.value % 3, older_than=0, progress=False)
        turns.value += 1


def _split(found, name):
    """Replace a shard by two."""
    keys = [entry.key for entry in found.manifests[name].inputs]
    half = len(keys) // 2
    rewrite.rewritten(found, [name], (), lambda _: None, set(keys[:half]))
    rewrite.rewritten(found, [name], found.replaced_with([name]), lambda _: None, set(keys[half:]))


def prepared(path):
    """Shards to merge and to delete from, some replaced long ago, and a condition."""
    make(path)
    for number in range(2):
        write(path, [record(number, metadata={"n": number})])
    compact(path, progress=False)
    ages(path, 2 * compaction.DAY)
    write(path, [record(5, metadata={"n": 5})])
    condition_of(path, numbers=(1, 5))
    return path


def state(path):
    return exact(path), set(Snapshot(path / "conditions" / "given").by_key)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("fault", "every"),
    [("full", 9), pytest.param("full", 1, marks=SLOW), pytest.param("kill", 1, marks=SLOW)],
)
def test_a_fault_at_any_step_loses_nothing(tmp_path, job, fault, every):
    """Every answer is that of before or that of after, and the same command again ends it."""
    first = prepared(tmp_path / "first.nrm")
    before = state(first)
    shutil.copytree(first, tmp_path / "whole.nrm")
    JOBS[job](tmp_path / "whole.nrm")
    after = state(tmp_path / "whole.nrm")
    assert (before == after) == (job == "compact")
    steps = killed_at(first, job) if fault == "kill" else full_at(first, job)
    assert len(steps) > 20
    for path in steps[::every]:
        found = state(path)
        assert found[0] in (before[0], after[0]), path
        assert found[1] in (before[1], after[1]), path
        if found != after:
            JOBS[job](path)
        for _ in range(2):  # what was replaced just now waits for the second
            assert state(path) == after
            ages(path, 2 * compaction.DAY)
            compact(path, progress=False)
        assert state(path) == after
        for folder in (path, path / "conditions" / "given"):
            assert files(folder) == named(folder)  # nothing is left over
        shutil.rmtree(path)


def full_at(first, job):
    """A store after a disk that was full at each step."""
    for k in range(1, 1000):
        path = first.with_name(f"{k}.nrm")
        shutil.copytree(first, path)
        message = ""
        with pytest.MonkeyPatch.context() as patch:
            steps = AllSteps(patch, k, no_space)
            try:
                JOBS[job](path)
            except ng.StoreError as error:
                message = str(error)
        if steps.count < k:
            return [first.with_name(f"{n}.nrm") for n in range(1, k)]
        assert message == "" or "No space left on device" in message, steps.log[k - 1]
        assert message == "" or "run the same command again" in message, message
    raise AssertionError


KILLED = """
import os, shutil, sys, pathlib
sys.path.insert(0, sys.argv[2])
import pytest
from helpers.compacted import AllSteps, JOBS
first = pathlib.Path(sys.argv[1])
for k in range(1, 1000):
    child = os.fork()
    if child == 0:
        path = first.with_name(f"{k}.nrm")
        shutil.copytree(first, path)
        with pytest.MonkeyPatch.context() as patch:
            AllSteps(patch, k, lambda: os.kill(os.getpid(), 9))
            try:
                JOBS[sys.argv[3]](path)
                os._exit(0)
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
    if status == 0:
        break
"""


def killed_at(first, job):
    """The stores of processes that were killed before each step."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(first), str(TESTS), job],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    *killed, last = done.stdout.split()
    assert set(killed) == {"-9"}, done.stderr
    assert last == "0", done.stderr
    return [first.with_name(f"{k}.nrm") for k in range(1, len(killed) + 1)]


def test_two_at_once(path):
    for number in range(4):
        write(path, [record(number)])
    with alone(path / "shards", "x"):
        for job in (compact, lambda p, progress: delete(p, "input1", progress=progress)):
            with pytest.raises(ng.StoreError, match="another compaction or deletion is at work"):
                job(path, progress=False)
    compact(path, progress=False)


def test_two_that_saw_the_same_are_sound(path):
    """Without the lock, too, two compactions lose and duplicate nothing that readers see."""
    for number in range(4):
        write(path, [record(number)])
    before = rows(path)
    found = rewrite.shards_of(path)
    names = shards(path)
    rewrite.rewritten(found, names[:3], found.replaced_with(names[:3]), lambda _: None)
    rewrite.rewritten(found, names[1:], found.replaced_with(names[1:]), lambda _: None)
    assert len(shards(path)) == 2
    assert rows(path) == before
    compact(path, progress=False)
    assert len(shards(path)) == 1
    assert rows(path) == before


def test_a_shard_that_was_replaced_twice_over_never_counts_again(path):
    """The one between is deleted, the first is still there."""
    write(path, [record(0)])
    write(path, [record(1)])
    first = shards(path)
    delete(path, "input0", progress=False)
    (between,) = [m.name for m, by in listed(path / "shards") if not by and m.replaces]
    write(path, [record(2)])
    compact(path, progress=False)
    ((last, _),) = [(m, by) for m, by in listed(path / "shards") if not by]
    assert set(last.replaces) >= {between, first[0]}
    for file in (path / "shards").glob(f"{between}*"):
        file.unlink()
    assert sorted(Snapshot(path).by_key) == ["input1", "input2"]


def test_a_compaction_while_a_writer_is_at_work(path):
    before = []
    with Writer(path, shard_inputs=2) as writer:
        for number in range(12):
            writer.add(record(number))
            writer.flush()
            compact(path, older_than=0, progress=False)
            before.append(len(Snapshot(path).entries))
        writer.add(record(20))
        while not list((path / "shards").glob("*.tmp")):
            time.sleep(0.01)
        ages(path, 3 * compaction.DAY)
        assert compact(path, older_than=0, progress=False).deleted_files == 0
    assert before == list(range(1, 13))
    assert len(Snapshot(path).entries) == 13
    with Writer(path) as writer:
        assert writer.predicted("input0") == 0


def test_a_writer_that_saw_replaced_files_knows_predictions(path):
    write(path, [record(0, 1)])
    write(path, [record(1, 1)])
    with Writer(path) as writer:
        compact(path, older_than=0, progress=False)
        assert writer.predicted("input0") == 1


def test_leftovers_go_by_age(path):
    write(path, [record(0)])
    shards_ = path / "shards"
    (name,) = shards(path)
    left = {
        shards_ / "0123456789abcdef.edges.parquet.tmp",
        shards_ / "1795502441860528002-5380fc63c21849f5.nodes.parquet",
        shards_ / "1795502441860528002-5380fc63c21849f5.json.tmp",
        path / "store.json.0123456789abcdef.tmp",
    }
    for file in left:
        file.write_bytes(b"half")
    others = {shards_ / "notes.txt", path / "mine.tmp", shards_ / "mine.parquet"}
    for file in others:
        file.write_bytes(b"mine")
    (shards_ / "0123456789abcdea.edges.parquet.tmp").symlink_to(path / "store.json")
    compact(path, progress=False)
    assert all(file.exists() for file in left)
    ages(path, 2 * compaction.DAY)
    found = compact(path, progress=False)
    assert (found.deleted_files, found.deleted_bytes) == (4, 16)
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in others)
    assert (shards_ / "0123456789abcdea.edges.parquet.tmp").is_symlink()
    assert shards(path) == [name]
    # What no lock protects stays an hour, whatever is asked.
    for file in left:
        file.write_bytes(b"half")
    compact(path, older_than=0, progress=False)
    assert {file for file in left if file.exists()} == {f for f in left if "json" in f.name}


def test_the_age_counts_from_the_replacement(path):
    for number in range(2):
        write(path, [record(number)])
    ages(path, 10 * compaction.DAY)
    with ng.open(path) as old:
        found = compact(path, progress=False)
        assert (found.deleted_files, found.waiting_files) == (0, 8)
        assert counts(old) == (2, 10, 10)


def test_ages_are_told_by_the_clock_of_the_files(path, monkeypatch):
    """Here a clock that is days ahead; on a shared disk files are dated by another machine."""
    now = time.time()
    for number in range(2):
        write(path, [record(number)])
    monkeypatch.setattr(compaction.time, "time", lambda: now + 9 * compaction.DAY)
    with ng.open(path) as old:
        found = compact(path, progress=False)
        assert (found.merged, found.deleted_files, found.waiting_files) == (2, 0, 8)
        assert counts(old) == (2, 10, 10)


def test_a_new_file_is_not_taken_for_one_of_a_killed_writer(path, monkeypatch):
    """A compaction looks between the moment that it is made and that it is locked."""
    compacted = []

    def flock(handle, how, real=fcntl.flock):
        if how == fcntl.LOCK_SH and not compacted:
            compacted.append(compact(path, older_than=0, progress=False))
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    write(path, [record(0)])
    assert compacted[0].deleted_files == 1
    with ng.open(path) as db:
        assert counts(db) == (1, 5, 5)


def test_shards_that_go_while_they_are_verified(path, monkeypatch):
    """No damage, but a note of each; what was found before stays."""
    write(path, [record(0)])
    write(path, [record(1)])
    condition_of(path, numbers=(0, 1))
    sound = [f for f in verify(path, sample=0).findings if f.shard is None]
    real = verify_tables._check_inputs
    names = shards(path) + shards(path / "conditions" / "given")

    def check(*arguments):
        compact(path, older_than=0, progress=False)
        real(*arguments)

    monkeypatch.setattr(verify_tables, "_check_inputs", check)
    report = verify(path, sample=0)
    assert report.errors == ()
    gone = [f.shard for f in report.notes if "replaced and deleted while" in f.problem]
    assert gone == names
    assert [f for f in report.findings if f.shard is None] == sound
