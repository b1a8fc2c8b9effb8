"""The commit protocol: faults at every step, kills, and several writers with a reader."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from helpers.commit_steps import FEW, RECORDS, Steps, contents, interrupted, job, no_space
from helpers.processes import TESTS
from helpers.tiny_stores import all_rows, checksums, make, record, settings_of, tables, write

import nrm_graph as ng
from nrm_graph.store.format import files, settings
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "s.nrm"
    job(path)
    return contents(path)


def is_sound(path, whole):
    """Whether a store that a fault left holds exactly its committed inputs, each complete."""
    if not (path / "store.json").exists():
        return True
    assert len(ng.open(path)) == len(Snapshot(path).entries)
    found = contents(path)
    return found == {identity: whole[identity] for identity in found}


def left_over(path):
    """Files that no manifest names."""
    if not (path / "store.json").exists():
        return set()
    named = {info.name for m in Snapshot(path).manifests.values() for info in m.files.values()}
    named |= {f"{name}.json" for name in Snapshot(path).manifests}
    return {p.name for p in (path / "shards").iterdir()} - named


@pytest.mark.parametrize(
    ("action", "expected", "step"),
    [
        (no_space, ng.StoreError, 1),
        (interrupted, KeyboardInterrupt, 4),
        pytest.param(interrupted, KeyboardInterrupt, 1, marks=pytest.mark.slow),
    ],
)
def test_a_fault_at_any_step_leaves_a_sound_store(tmp_path, whole, action, expected, step):
    for k in range(1, 1000, step):
        path = tmp_path / f"{k}.nrm"
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, k, action)
            try:
                job(path)
            except (ng.StoreError, KeyboardInterrupt) as error:
                kind, message = type(error), str(error)
            else:
                assert steps.count < k, steps.log[k - 1]
                break
        assert kind is expected
        if action is no_space:
            assert "No space left on device" in message, message
            assert "\n" not in message
        assert is_sound(path, whole), k
        assert left_over(path) == set(), (k, steps.log[k - 1])
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch)
            job(path)
        assert contents(path) == whole, k
    assert k > 50


@pytest.mark.slow
@pytest.mark.parametrize("action", [no_space, interrupted])
def test_a_fault_with_several_threads_leaves_a_sound_store(tmp_path, action):
    """As above, where threads race: whatever their order, the store is sound."""
    with pytest.MonkeyPatch.context() as patch:
        Steps(patch)
        make(tmp_path / "whole.nrm")
        write(tmp_path / "whole.nrm", RECORDS)
    whole = contents(tmp_path / "whole.nrm")
    for k in range(1, 1000):
        path = tmp_path / f"{k}.nrm"
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, k, action)
            try:
                make(path)
                write(path, RECORDS, shard_inputs=2, threads=3)
            except (ng.StoreError, KeyboardInterrupt):
                pass
            else:
                assert steps.count < k, steps.log[k - 1]
                break
        assert is_sound(path, whole), k
        assert left_over(path) == set(), k
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch)
            make(path)
            write(path, RECORDS, shard_inputs=2, threads=3)
        assert contents(path) == whole, k
    assert k > 50


KILLED = """
import os, sys, pathlib
sys.path.insert(0, sys.argv[2])
import pytest
from helpers.commit_steps import RECORDS, Steps, job
base = pathlib.Path(sys.argv[1])
# Forked before any thread starts, so that the import is paid once.
for k in range(1, 1000, int(sys.argv[3])):
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, k, lambda: os._exit(9))
            try:
                job(base / f"{k}.nrm")
                os._exit(0)
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
    if status == 0:
        break
"""


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_step_leaves_a_sound_store(tmp_path, whole, step):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(TESTS), str(step)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    *killed, last = done.stdout.split()
    assert set(killed) == {"9"}
    assert last == "0"
    assert len(killed) * step > 50
    for k in range(1, len(killed) * step + 1, step):
        path = tmp_path / f"{k}.nrm"
        if path.exists():
            assert is_sound(path, whole), k
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch)
            job(path)
        assert contents(path) == whole, k


@pytest.mark.smoke
def test_the_order_of_the_protocol(tmp_path):
    """Synced, renamed, str(TESTS) synced; data files before the manifest; store.json last."""
    path = tmp_path / "s.nrm"
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        job(path)
    links = [pathlib.Path(args[1]).name for name, args in steps.log if name == "link"]
    assert links == ["program.json", "weights.safetensors", "store.json"]
    log = [(n, a) for n, a in steps.log if n in ("replace", "fsync")]
    renamed = [str(a[1]) for n, a in log if n == "replace"]
    assert len(renamed) == 2 * 5
    for start in range(0, 10, 5):
        kinds = [
            name.split(".", 1)[-1] for name in map(os.path.basename, renamed[start : start + 5])
        ]
        assert kinds == [
            "inputs.parquet",
            "nodes.parquet",
            "edges.parquet",
            "tensors.parquet",
            "json",
        ]
    for i, (name, _) in enumerate(log):
        if name == "replace":
            assert log[i - 1][0] == "fsync"
            assert log[i + 1][0] == "fsync"


def test_ctrl_c_in_the_block_keeps_what_was_added(tmp_path):
    path = make(tmp_path / "s.nrm")
    with pytest.raises(KeyboardInterrupt), Writer(path) as writer:  # noqa: PT012
        writer.add(RECORDS[0])
        writer.add(RECORDS[1])
        raise KeyboardInterrupt
    assert len(ng.open(path)) == 2
    with pytest.raises(ZeroDivisionError), Writer(path) as writer:  # noqa: PT012
        writer.add(RECORDS[2])
        writer.fail("x", "y")
        raise ZeroDivisionError
    with ng.open(path) as db:
        assert len(db) == 3
        assert db.sql("SELECT key FROM failures").fetchall() == [("x",)]


def test_errors_of_the_thread_reach_add_flush_and_close(tmp_path):
    path = make(tmp_path / "s.nrm")
    for place in ("add", "flush", "close"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.HashingFile, "write", lambda *_: no_space())
            writer = Writer(path)
            writer.add(RECORDS[0])
            if place == "add":
                for thread in writer._threads:
                    thread.join(30)
            call = partial(writer.add, RECORDS[1]) if place == "add" else getattr(writer, place)
            with pytest.raises(ng.StoreError, match=r"No space left.*the same command") as caught:
                call()
            assert isinstance(caught.value.__cause__, OSError)
            if place != "close":
                writer.__exit__(None, None, None)
    assert not list((path / "shards").iterdir())
    with Writer(path) as writer:
        writer.add(RECORDS[0])
    with pytest.raises(ng.StoreError, match="is closed"):
        writer.add(RECORDS[1])


def test_one_error_is_told_once(tmp_path):
    path = make(tmp_path / "s.nrm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.HashingFile, "write", lambda *_: no_space())
        with pytest.raises(ng.StoreError) as caught, Writer(path) as writer:  # noqa: PT012
            writer.add(RECORDS[0])
            writer.flush()
        assert not isinstance(caught.value.__context__, ng.StoreError)


def test_a_read_only_folder_is_one_sentence(tmp_path):
    path = make(tmp_path / "s.nrm")
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied")

        patch.setattr("nrm_graph.store.write.shard.HashingFile", refuse)
        with pytest.raises(ng.StoreError, match="Permission denied"):
            write(path, RECORDS)


@pytest.mark.smoke
def test_commits_by_count_bytes_and_flush(tmp_path):
    for options, shards in (
        ({"shard_inputs": 4}, [4, 2]),
        ({"shard_bytes": 1}, [1] * 6),
        ({"threads": 1}, [6]),
    ):
        path = make(tmp_path / f"{shards}.nrm")
        write(path, RECORDS, **options)
        assert [len(m.inputs) for m in Snapshot(path).manifests.values()] == shards
    path = make(tmp_path / "flush.nrm")
    with Writer(path) as writer:
        for item in RECORDS[:3]:
            writer.add(item)
            writer.flush()
            assert writer.committed(item.key, item.target)
            assert item.key in Snapshot(path).by_key
        writer.flush()
        assert len(Snapshot(path).manifests) == 3
    with Writer(path):
        pass
    assert len(Snapshot(path).manifests) == 3


@pytest.mark.smoke
def test_committed_pairs_and_conflicts(tmp_path):
    path = write(make(tmp_path / "s.nrm"), [record(0, 1)])
    before = checksums(path)
    with Writer(path) as writer:
        assert writer.committed("input0", 1)
        assert writer.committed("input0", 1, record(0).content)
        assert not writer.committed("input0", 0)
        assert not writer.committed("input1", 1)
        assert writer.predicted("input0") == 1
        assert writer.predicted("input1") is None
        assert writer.add(record(0, 1)) is False
        other = record(5).content
        with pytest.raises(ng.StoreError, match="the key 'input0' is in the store with another"):
            writer.committed("input0", 7, other)
        with pytest.raises(ng.StoreError, match="'input0'"):
            writer.add(record(0, 2, content=other))
    assert checksums(path) == before
    with Writer(path) as writer:  # pending ones count too
        assert writer.add(record(1))
        assert writer.committed("input1", 0)
        assert writer.add(record(1)) is False
        with pytest.raises(ng.StoreError, match="'input1'"):
            writer.add(record(1, 1, content=other))
    assert len(ng.open(path)) == 2


def test_the_queue_is_bounded(tmp_path):
    """add() waits while the thread is behind by more than queue_bytes."""
    path = make(tmp_path / "s.nrm")
    gate = threading.Event()
    big = [record(i, edges=tables(i, 5000)[1]) for i in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        plain = files.HashingFile.write

        def slow(self, data):
            assert gate.wait(30)
            return plain(self, data)

        patch.setattr(files.HashingFile, "write", slow)
        with Writer(path, queue_bytes=big[0].edges.nbytes * 2) as writer:
            adding = threading.Thread(target=lambda: [writer.add(item) for item in big])
            adding.start()
            deadline = time.monotonic() + 10
            while len(writer._known) < 1 and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            assert writer._waiting <= big[0].edges.nbytes * 2
            adding.join(0.2)
            assert adding.is_alive()
            assert len(writer._known) < len(big)
            gate.set()
            adding.join(30)
            assert not adding.is_alive()
    assert len(ng.open(path)) == 6


def test_several_threads_write_the_same(tmp_path, whole):
    path = tmp_path / "s.nrm"
    job(path, threads=3)
    assert contents(path) == whole
    names = [(e.key, e.target) for m in Snapshot(path).manifests.values() for e in m.inputs]
    assert sorted(names) == sorted((item.key, item.target) for item in FEW)


def test_a_refused_manifest_leaves_nothing(tmp_path, monkeypatch):
    path = make(tmp_path / "s.nrm")
    monkeypatch.setattr("nrm_graph.store.format.manifest.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ng.StoreError, match="a manifest of at most 100 bytes"):
        write(path, RECORDS)
    assert not list((path / "shards").iterdir())


def test_disks_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = make(tmp_path / "s.nrm")
    make(path)
    assert not list(path.glob("*.tmp"))
    with pytest.raises(ng.StoreError, match="another coverage"):
        make(path, coverage=0.5)


def test_duplicated_names_are_never_overwritten(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    (tmp_path / "b").write_text("new")
    with pytest.raises(ng.StoreError, match="to be free"):
        files.publish(tmp_path / "b", target)
    assert target.read_text() == "old"
    assert files.create_once(target, b"new") is False
    assert target.read_text() == "old"


WRITING = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
from helpers.tiny_stores import make, record, write
path = pathlib.Path(sys.argv[1])
make(path)
first = int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
write(path, [record(i, metadata={"n": i}) for i in range(first, first + 20)], shard_inputs=3)
"""


def test_two_writers_and_a_reader(tmp_path):
    path = tmp_path / "s.nrm"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, str(path), str(TESTS), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, 10)  # ten inputs are written by both
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        seen = 0
        while any(writer.poll() is None for writer in writers):
            with ng.open(path) as db:
                assert len(db) >= seen
                seen = len(db)
                rows = db.sql("SELECT count(DISTINCT input_id), count(*) FROM edges").fetchall()
                assert rows == [(seen, 5 * seen)]
        assert [writer.returncode for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdin.close()
            writer.stdout.close()
    alone = make(tmp_path / "alone.nrm")
    write(alone, [record(i, metadata={"n": i}) for i in range(30)])
    with ng.open(path) as db, ng.open(alone) as reference:
        assert all_rows(db) == all_rows(reference)


def test_settings_and_manifests_are_plain_json(tmp_path):
    path = write(make(tmp_path / "s.nrm"), RECORDS)
    for file in (path / "store.json", *(path / "shards").glob("*.json")):
        json.loads(file.read_text("utf-8"))
    assert settings.read_settings(path)["layers"] == settings_of()["layers"]
