"""Compaction and deletion: the same rows in fewer files, whatever happens on the way."""

import fcntl
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import interrupted
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store_commit import Steps, contents, no_space
from tiny_stores import all_rows, checksums, make, record, tables, write

import nrm_graph as ng
from nrm_graph import extraction
from nrm_graph.store import compaction, conditions, listing, merging
from nrm_graph.store import settings as store_settings
from nrm_graph.store.compaction import compact
from nrm_graph.store.deletion import delete
from nrm_graph.store.files import alone, remove_abandoned
from nrm_graph.store.listing import listed
from nrm_graph.store.reader import Snapshot
from nrm_graph.store.schema import content_hash, content_of
from nrm_graph.store.writer import Writer
from nrm_graph.verify import tables as verify_tables
from nrm_graph.verify import verify

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "s.nrm")


def rows(path):
    """All that a store answers: SQL, and exact reads."""
    with ng.open(path) as db:
        return all_rows(db), exact(path)


def exact(path):
    """Exact reads; a field that a shard does not have is null, as in SQL."""
    return {
        identity: ({n: v for n, v in facts.items() if v is not None}, *others)
        for identity, (facts, *others) in contents(path).items()
    }


def shards(path):
    return list(Snapshot(path).manifests)


def files(path):
    return {p.name for p in (path / "shards").iterdir()}


def named(path):
    """Files of the shards that count."""
    held = Snapshot(path).manifests.values()
    return {f"{m.name}.json" for m in held} | {i.name for m in held for i in m.files.values()}


def ages(path, seconds):
    """Make every file of a store so much older."""
    for file in path.rglob("*"):
        if file.is_file():
            found = file.stat()
            os.utime(file, (found.st_atime - seconds, found.st_mtime - seconds))


def twice(path, *records):
    """Commit the same pairs in two shards, as two writers at once do."""
    with Writer(path) as first, Writer(path) as second:
        for writer, shift in ((first, 0), (second, 1)):
            for item in records:
                x = tables(item.target + 7 * shift)
                writer.add(replace(item, nodes=x[0], edges=x[1], logit=item.logit + shift))
            writer.flush()


FACTS = {
    "relevance": 0.5,
    "amplification": 1.0,
    "absorbed": 0.0,
    "status": "defined",
    "reason": None,
}


def condition_of(path, name="given", numbers=range(3)):
    """A condition by hand, one input in each shard."""
    meta = store_settings.read_settings(path)
    folder = conditions.create(path, meta, name, ng.Layer("0")[1], None)
    for number in numbers:
        write(folder, [record(number, tensor=False, metadata=FACTS)])
    return folder


def test_small_shards_become_one_of_the_same_rows(path):
    for number in range(5):
        write(path, [record(number, t, metadata={"n": number}) for t in range(2)])
    with Writer(path) as writer:
        writer.fail("input9", "cannot be read")
    before, sums = rows(path), checksums(path)
    found = compact(path, progress=False)
    assert rows(path) == before
    assert len(shards(path)) == 1
    assert (found.shards_before, found.shards_after, found.merged, found.made) == (6, 1, 6, 1)
    assert found.deleted_files == 0
    assert found.waiting_files == 5 * 4
    assert {n: s for n, s in checksums(path).items() if n in sums} == sums
    assert "6 shards" in str(found)
    assert "became 1" in str(found)
    again = compact(path, progress=False)
    assert (again.merged, again.made, again.shards_after) == (0, 0, 1)
    assert "1 shard (" in str(again)
    assert "left as they are" in str(again)
    ages(path, 2 * compaction.DAY)
    last = compact(path, progress=False)
    assert last.deleted_files == 5 * 4
    assert last.waiting_files == 0
    assert "deleted 20 files" in str(last)
    assert len(files(path)) == 5
    assert rows(path) == before


def test_the_layout_is_that_of_the_writer(path, tmp_path):
    """Row groups of one input each, in order, encoded and hashed alike."""
    records = [record(n, edges=tables(n, 1 + 4 * n)[1], metadata={"n": n}) for n in range(6)]
    for item in records:
        write(path, [item])
    alone = write(make(tmp_path / "alone.nrm"), records)
    compact(path, progress=False)
    (found,) = Snapshot(path).manifests.values()
    (wanted,) = Snapshot(alone).manifests.values()
    assert found.inputs == wanted.inputs
    for table, info in found.files.items():
        assert (info.sha256, info.size) == (wanted.files[table].sha256, wanted.files[table].size)
    with pq.ParquetFile(path / "shards" / found.files["edges"].name) as file:
        assert file.num_row_groups == 6
        for group in range(6):
            bounds = file.metadata.row_group(group).column(0).statistics
            assert bounds.min == bounds.max == found.inputs[group].input_id


def test_limits_of_a_merged_shard(path):
    for number in range(7):
        write(path, [record(number)])
    before = rows(path)
    compact(path, shard_inputs=3, progress=False)
    counts = [len(m.inputs) for m in Snapshot(path).manifests.values()]
    assert sorted(counts) == [1, 3, 3]
    assert rows(path) == before
    size = max(sum(i.size for i in m.files.values()) for m in Snapshot(path).manifests.values())
    compact(path, shard_bytes=size, progress=False)  # those of three are more than half of it
    counts = [len(m.inputs) for m in Snapshot(path).manifests.values()]
    assert sorted(counts) == [1, 3, 3]
    assert rows(path) == before


def test_row_groups_and_manifests_are_bounded(path, monkeypatch):
    monkeypatch.setattr(compaction, "GROUPS_PER_FILE", 4)
    for number in range(9):
        write(path, [record(number)])
    compact(path, shard_inputs=100, progress=False)
    assert sorted(len(m.inputs) for m in Snapshot(path).manifests.values()) == [1, 4, 4]
    monkeypatch.undo()
    sizes = [(path / "shards" / f"{name}.json").stat().st_size for name in shards(path)]
    monkeypatch.setattr(compaction, "MAX_MANIFEST_BYTES", 2 * max(sizes))
    compact(path, progress=False)
    assert len(shards(path)) == 3


def test_inputs_of_several_row_groups(path, monkeypatch):
    for module in ("shard", "schema"):
        monkeypatch.setattr(f"nrm_graph.store.{module}.ROWS_PER_GROUP", 4)
    for number in range(3):
        write(path, [record(number, edges=tables(number, 11)[1])])
    before = rows(path)
    compact(path, progress=False)
    (found,) = Snapshot(path).manifests.values()
    assert [e.edges for e in found.inputs] == [(0, 3), (3, 3), (6, 3)]
    assert [e.nodes for e in found.inputs] == [(0, 2), (2, 2), (4, 2)]
    assert rows(path) == before


def test_of_pairs_that_two_shards_hold_the_winner_is_kept(path):
    twice(path, record(0), record(0, 1), record(1))
    assert len(shards(path)) == 2
    before = rows(path)
    compact(path, progress=False)
    (found,) = Snapshot(path).manifests.values()
    assert len(found.inputs) == 3
    assert rows(path) == before


def test_a_pair_that_lost_goes_from_a_large_shard_too(path):
    with Writer(path) as first, Writer(path) as second:
        first.add(record(0))
        first.flush()
        for number in range(4):
            second.add(record(number))
    before = rows(path)
    compact(path, shard_inputs=4, progress=False)
    assert [len(m.inputs) for m in Snapshot(path).manifests.values()] == [4]
    assert rows(path) == before


def test_a_merged_shard_takes_the_place_of_its_last(path):
    """A writer that commits a pair meanwhile does not win over the one that was there."""
    write(path, [record(0)])
    with Writer(path) as late:
        late.add(record(0, 1, logit=5.0))
        write(path, [record(0, 1)])
        before = rows(path)
        found = merging.shards_of(path)
        names = shards(path)
        late.flush()
        assert rows(path) == before
        merging.rewritten(found, names, found.replaced_with(names), lambda _: None)
    assert len(shards(path)) == 2
    assert rows(path) == before


def test_failures_that_count_are_carried(path):
    with Writer(path) as writer:
        writer.fail("input0", "first")
        writer.fail("input1", "second")
        writer.fail("gone", "third")
    write(path, [record(1)])
    with Writer(path) as writer:
        writer.fail("input1", "another target failed")
    write(path, [record(2)])
    write(path, [record(0)])
    before = rows(path)
    assert before[0]["failures"] == [("gone", "third"), ("input1", "another target failed")]
    compact(path, progress=False)
    assert len(shards(path)) == 1
    assert rows(path) == before


def test_a_failure_in_a_shard_that_stays_is_not_passed_by(path):
    """Its key moves behind it, together with others: it still counts."""
    write(path, [record(0)])
    with Writer(path) as writer:
        for number in range(5, 9):
            writer.add(record(number))
        writer.fail("input0", "another target failed")
    write(path, [record(1)])
    before = rows(path)
    compact(path, shard_inputs=5, progress=False)
    assert sorted(len(m.inputs) for m in Snapshot(path).manifests.values()) == [2, 4]
    assert rows(path) == before
    compact(path, progress=False)
    assert rows(path) == before


@pytest.mark.parametrize("job", ["compact", "delete"])
def test_a_failure_that_a_lost_pair_outdates_stays_outdated(path, job):
    """The pair goes, the shard with the failure would stay: both are replaced at one moment."""
    with Writer(path) as one, Writer(path) as other:
        for number in range(2):
            one.add(record(number))
        one.fail("input0", "another target failed")
        one.flush()
        other.add(record(0))
        other.add(record(3))
    before = rows(path)
    assert before[0]["failures"] == []
    if job == "compact":
        compact(path, shard_inputs=2, progress=False)
        assert rows(path) == before
    else:
        delete(path, "input3", progress=False)
        assert rows(path)[0]["failures"] == []
        assert sorted(Snapshot(path).by_key) == ["input0", "input1"]
    assert [m.failures for m in Snapshot(path).manifests.values() if m.failures] == []


def test_a_shard_of_nothing_is_merged_away(path):
    with Writer(path) as writer:
        writer.fail("input0", "x")
    write(path, [record(0)])
    delete(path, "input0", progress=False)
    assert len(shards(path)) >= 1
    write(path, [record(1)])
    before = rows(path)
    compact(path, progress=False)
    assert [len(m.inputs) for m in Snapshot(path).manifests.values()] == [1]
    assert rows(path) == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"x": 1}, {"x": 1.5}),  # readers read both as float
        ({"x": 1}, {"X": 1}),
        ({"x": True}, {"x": "text"}),
        ({"x": 2**60}, {"x": 0.5}),
    ],
)
def test_metadata_of_other_types_is_never_converted(path, first, second):
    with Writer(path) as one, Writer(path) as other:  # both meet the field at once
        one.add(record(0, metadata=first))
        other.add(record(1, metadata=second))
    write(path, [record(2)])  # without the field
    before = rows(path)
    compact(path, progress=False)
    assert len(shards(path)) == 2
    assert rows(path) == before


def test_metadata_of_one_type_and_none(path):
    values = [
        {"a": None, "b": ["x", "y"]},
        {"a": 2, "c": "t"},
        {},
        {"b": None, "d": True, "e": 0.1},
    ]
    for number, metadata in enumerate(values):
        write(path, [record(number, metadata=metadata, label=None if number else "l")])
    before = rows(path)[0]
    compact(path, progress=False)
    assert len(shards(path)) == 1
    assert rows(path)[0] == before


def test_keys_of_two_contents_stay_apart(path):
    """One key has one tensor in a shard; what broke that rule stays as it is."""
    with Writer(path) as one, Writer(path) as other:
        one.add(record(0, 0))
        x = np.ones(3, np.float32)
        other.add(record(0, 1, tensor=x, content=content_hash(x)))
    write(path, [record(1)])
    before = rows(path)
    compact(path, progress=False)
    assert len(shards(path)) == 2
    assert rows(path) == before


def test_tensors_once_per_key_and_omitted_ones(path):
    write(path, [record(0, 0)])
    write(path, [record(0, 1), record(1, tensor=False)])
    compact(path, progress=False)
    snapshot = Snapshot(path)
    held = {}
    for name in snapshot.manifests:
        with pq.ParquetFile(snapshot.path(name, "tensors")) as file:
            for row in file.read().to_pylist():
                held.setdefault(row["key"], []).append(row.get("name", ""))
    assert held == {"input0": [""]}
    assert len(shards(path)) == 1


def test_tensors_with_names(path):
    def named(number):
        arrays = {"b": np.full(2, number), "a": np.full((2, 2), 0.5 * number)}
        return record(number, tensor=arrays, content=content_of(arrays))

    for number in range(2):
        write(path, [named(number)])
    compact(path, progress=False)
    snapshot = Snapshot(path)
    for number, (identity,) in enumerate(snapshot.by_key.values()):
        found = snapshot.tensors(identity)
        assert list(found) == ["b", "a"]
        assert np.array_equal(found["b"], np.full(2, number))
    write(path, [record(2)])
    with pytest.raises(ng.StoreError, match="some have names and some have none"):
        compact(path, progress=False)
    assert not list((path / "shards").glob("*.tmp"))


WORDS = st.sampled_from(["a", "b", "c", "d"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), WORDS, st.integers(0, 1)),
        st.tuples(st.just("other"), WORDS, st.integers(0, 1)),
        st.tuples(st.just("fail"), WORDS, st.integers(0, 9)),
        st.tuples(st.just("commit")),
        st.tuples(st.just("compact"), st.integers(1, 6), st.sampled_from([0.0, 3600.0])),
        st.tuples(st.just("delete"), WORDS),
    ),
    max_size=20,
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS)
def test_any_history_answers_as_without_compaction(tmp_path_factory, actions):
    """Two writers, failures, deletions: no compaction changes an answer."""
    path = make(tmp_path_factory.mktemp("h") / "s.nrm")
    writers = [Writer(path), Writer(path)]
    try:
        for what, *rest in actions:
            if what in ("add", "other"):
                key, target = rest
                writers[what == "other"].add(record(ord(key), target, key=key))
            elif what == "fail":
                writers[0].fail(rest[0], str(rest[1]))
            elif what == "commit":
                for writer in writers:
                    writer.flush()
            elif what == "compact":
                before = rows(path)
                compact(path, shard_inputs=rest[0], older_than=rest[1], progress=False)
                assert rows(path) == before
            elif what == "delete":
                for writer in writers:
                    writer.close()
                before = rows(path)
                known = {e.key for e in Snapshot(path).entries.values()}
                known |= {key for key, _ in before[0]["failures"]}
                if rest[0] in known:
                    delete(path, rest, progress=False)
                    after = rows(path)
                    gone = {i for i, e in before[1].items() if e[0]["key"] == rest[0]}
                    assert after[1] == {i: e for i, e in before[1].items() if i not in gone}
                    for table in ("inputs", "nodes", "edges"):
                        kept = [row for row in before[0][table] if row[0] not in gone]
                        assert after[0][table] == kept
                    kept = [row for row in before[0]["failures"] if row[0] != rest[0]]
                    assert after[0]["failures"] == kept
                else:
                    with pytest.raises(ng.InputError, match="there is no input"):
                        delete(path, rest, progress=False)
                writers = [Writer(path), Writer(path)]
    finally:
        for writer in writers:
            writer.close()
    before = rows(path)
    compact(path, older_than=0, progress=False)
    assert rows(path) == before
    assert len(Snapshot(path).manifests) <= 1


def counts(db):
    ((inputs, nodes, edges),) = db.sql(
        "SELECT (SELECT count(*) FROM inputs), (SELECT count(*) FROM nodes), "
        "(SELECT count(*) FROM edges)"
    ).fetchall()
    return inputs, nodes, edges


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=SLOW)])
def test_a_hundred_compactions_with_readers(path, rounds):
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
            found = merging.shards_of(path)
            if len(found.manifests[name].inputs) > 2:
                _split(found, name)
        compact(path, shard_inputs=4 + turns.value % 3, older_than=0, progress=False)
        turns.value += 1


def _split(found, name):
    """Replace a shard by two."""
    keys = [entry.key for entry in found.manifests[name].inputs]
    half = len(keys) // 2
    merging.rewritten(found, [name], (), lambda _: None, set(keys[:half]))
    merging.rewritten(found, [name], found.replaced_with([name]), lambda _: None, set(keys[half:]))


class AllSteps(Steps):
    """Deletions of files too."""

    def __init__(self, patch, at=None, action=None):
        super().__init__(patch, at, action)
        patch.setattr(pathlib.Path, "unlink", self._wrap("unlink", pathlib.Path.unlink))


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


JOBS = {
    "compact": lambda path: compact(path, progress=False),
    "delete": lambda path: delete(path, ["input1", "input5"], progress=False),
}


def state(path):
    return exact(path), set(Snapshot(path / "conditions" / "given").by_key)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("fault", "every"),
    [("full", 5), pytest.param("full", 1, marks=SLOW), pytest.param("kill", 1, marks=SLOW)],
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
from test_compaction import AllSteps, JOBS
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
        [sys.executable, "-c", KILLED, str(first), str(pathlib.Path(__file__).parent), job],
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
    found = merging.shards_of(path)
    names = shards(path)
    merging.rewritten(found, names[:3], found.replaced_with(names[:3]), lambda _: None)
    merging.rewritten(found, names[1:], found.replaced_with(names[1:]), lambda _: None)
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


@pytest.mark.parametrize("table", ["inputs", "nodes", "edges", "tensors"])
def test_damage_is_not_copied(path, table):
    for number in range(3):
        write(path, [record(number)])
    name = shards(path)[1]
    file = path / "shards" / f"{name}.{table}.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    before = files(path)
    with pytest.raises(ng.StoreError, match=f"{name}.*is damaged"):
        compact(path, progress=False)
    assert files(path) == before


def test_bad_arguments(path, tmp_path):
    for options in (
        {"shard_inputs": 0},
        {"shard_inputs": True},
        {"shard_bytes": 1.5},
        {"older_than": -1},
        {"older_than": float("nan")},
        {"older_than": "day"},
    ):
        with pytest.raises(ng.InputError, match=next(iter(options))):
            compact(path, progress=False, **options)
    for keys in ([], 5, [5], None):
        with pytest.raises(ng.InputError, match="expected keys to delete"):
            delete(path, keys, progress=False)
    for job in (compact, lambda p: delete(p, "x")):
        with pytest.raises(ng.StoreError):
            job(tmp_path / "none.nrm")
    (path / "shards").rmdir()
    with pytest.raises(ng.StoreError, match="cannot lock"):
        compact(path, progress=False)


def test_deletion_and_extraction_anew(path):
    write(
        path, [record(n, t, metadata={"n": n}) for n in range(3) for t in range(2)], shard_inputs=2
    )
    with Writer(path) as writer:
        writer.fail("input1", "another target failed")
    before = rows(path)
    with ng.open(path) as old:
        found = delete(path, ["input1", "input1"], progress=False)
        assert (found.inputs, found.failures, found.conditioned, found.shards) == (2, 1, 0, 2)
        assert "deleted 2 inputs of 1 key, 1 failure;" in str(found)
        assert all_rows(old) == before[0]
    assert sorted(Snapshot(path).by_key) == ["input0", "input2"]
    assert rows(path)[0]["failures"] == []
    with pytest.raises(ng.InputError, match=r"there is no input 'input1'.*did you mean input"):
        delete(path, ["input0", "input1"], progress=False)
    with pytest.raises(ng.InputError, match=r"there is no input 'zzz'.*it holds 2 keys"):
        delete(path, "zzz", progress=False)
    assert sorted(Snapshot(path).by_key) == ["input0", "input2"]
    x = np.array([7, 8, 9], np.float32)
    again = record(1, 0, tensor=x, content=content_hash(x), metadata={"n": 1})
    write(path, [again])
    snapshot = Snapshot(path)
    (identity,) = snapshot.by_key["input1"]
    assert snapshot.tensors(identity)[""].tolist() == [7, 8, 9]
    compact(path, older_than=0, progress=False)
    snapshot = Snapshot(path)
    assert snapshot.tensors(identity)[""].tolist() == [7, 8, 9]
    assert len(snapshot.entries) == 5
    assert len(files(path)) == 5


def test_a_key_that_lost_goes_too(path):
    twice(path, record(0), record(1))
    delete(path, "input0", progress=False)
    assert list(Snapshot(path).by_key) == ["input1"]
    delete(path, "input1", progress=False)
    assert rows(path) == ({t: [] for t in ("inputs", "nodes", "edges", "failures")}, {})


def test_conditions_are_compacted_and_keys_deleted_from_them(path):
    for number in range(3):
        write(path, [record(number)])
    folder = condition_of(path)
    (folder / "condition.json.0123456789abcdef.tmp").write_bytes(b"half")

    def answers():
        with ng.open(path) as db:
            return {
                t: db.sql(f"SELECT * FROM given_{t} ORDER BY ALL").fetchall()
                for t in ("inputs", "nodes", "edges")
            }

    before = answers()
    found = compact(path, progress=False)
    assert (found.shards_before, found.shards_after) == (6, 2)
    assert answers() == before
    assert len(shards(folder)) == 1
    deletion = delete(path, "input1", progress=False)
    assert (deletion.inputs, deletion.conditioned) == (1, 1)
    after = answers()
    kept = set(Snapshot(path).entries)
    assert after == {t: [r for r in rows_ if r[0] in kept] for t, rows_ in before.items()}
    assert len(after["inputs"]) == 2
    ages(path, 2 * compaction.DAY)
    compact(path, progress=False)
    assert files(folder) == named(folder)
    assert not list(folder.glob("*.tmp"))
    # A key that a condition alone holds, as a materialization at work may leave it, goes as well.
    write(folder, [record(7, tensor=False, metadata=FACTS)])
    assert delete(path, "input7", progress=False).conditioned == 1
    assert answers() == after


def test_a_materialization_that_a_deletion_overtook(path):
    """What it commits of a key whose content is another one since is not seen, and goes."""
    write(path, [record(0), record(1)])
    folder = condition_of(path, numbers=())
    with Writer(folder) as writer:
        for number in range(2):
            writer.add(record(number, tensor=False, metadata=FACTS))
        delete(path, "input0", progress=False)
    with ng.open(path) as db:
        (kept,) = db._snapshot.entries
        assert db.sql("SELECT input_id FROM given_inputs").fetchall() == [(kept,)]
    x = np.full(3, 9, np.float32)
    write(path, [record(0, content=content_hash(x), tensor=x)])
    for done in (False, True):
        with ng.open(path) as db:
            assert len(db) == 2
            for table, number in (("inputs", 1), ("nodes", 5), ("edges", 5)):
                found = db.sql(f"SELECT input_id FROM given_{table}").fetchall()
                assert found == number * [(kept,)]
            everything = db.sql("SELECT * FROM given_edges", inputs=["input0"]).fetchall()
            assert everything == []
        problems = [f.problem for f in verify(path, sample=0).findings]
        assert done != any("the store holds another content of this key" in p for p in problems)
        with Writer(folder) as writer:
            assert (writer.content("input0") is None) == done
        compact(path, progress=False)
    assert list(Snapshot(folder).by_key) == ["input1"]


def test_a_real_store_stays_sound(tmp_path, monkeypatch):
    """Verified with its programs and conditions, measured, and continued."""
    path = tmp_path / "s.nrm"
    monkeypatch.setattr(extraction, "Writer", partial(Writer, shard_inputs=2))
    with interrupted.extract(path, 5, 2) as db:
        db.materialize(ng.Layer("0")[1], name="given", progress=False)
        before = all_rows(db)
        value = db.measure("k1", 1)(ng.Layer("0")[1])
    compact(path, progress=False)
    report = verify(path, sample=1)
    assert report.sound, report.findings
    assert [n.problem.split(",")[0][2:] for n in report.notes] == ["shards were replaced"]
    with ng.open(path) as db:
        assert all_rows(db) == before
        assert db.measure("k1", 1)(ng.Layer("0")[1]) == value
    delete(path, "k1", progress=False)
    assert verify(path, sample=1).sound
    with interrupted.extract(path, 5, 5) as db:
        db.materialize(ng.Layer("0")[1], name="given", progress=False)
        assert len(db) == len(before["inputs"])
        assert [row[:4] for row in all_rows(db)["inputs"]] == [r[:4] for r in before["inputs"]]
    compact(path, older_than=0, progress=False)
    report = verify(path, sample=1)
    assert report.sound
    assert not report.notes
