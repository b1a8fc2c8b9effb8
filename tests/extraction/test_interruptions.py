"""Extractions that are killed, interrupted or run twice at once end with the rows of one that ran.

Rows are those of an uninterrupted run bit for bit where every input is computed in the same batch.
A resumed run cuts its batches elsewhere; then the same sums are taken in another order, and numbers
differ by float32 rounding: see ``same_rows``.
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import interrupted
from helpers.commit_steps import Steps
from helpers.interrupted import COUNT, extract
from helpers.processes import TESTS, environment

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.extraction import batches
from nrm_graph.store.verify import verify

ROUNDING = 64 * float(np.finfo(np.float32).eps)
"""Of an input's total variation in a table.

Two runs whose batches differ take the sums of convolutions and dense layers in another order.  The
forward runs differ by a few epsilons of the summed magnitudes, and each of the layers below divides
by such a sum; 3.1 epsilons of the total variation is the worst found here (batches of 1 to 7)."""


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)  # store/test_commit.py is about that


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of an extraction that nothing disturbs."""
    with extract(tmp_path_factory.mktemp("whole") / "s.nrm", COUNT, 2) as db:
        return rows_of(db)


KEYS = {
    "inputs": ("input_id", "key", "label", "target", "predicted", "n"),
    "nodes": ("input_id", "layer_id", "unit"),
    "edges": ("input_id", "dst_layer", "dst_unit", "src_layer", "src_unit"),
}
NUMBERS = {
    "inputs": ("logit",),
    "nodes": ("relevance", "activation"),
    "edges": ("relevance", "conditional"),
}


def rows_of(db):
    """Every row of every table in the order of its keys: keys, and numbers as an array."""
    found = {}
    for table, keys in KEYS.items():
        rows = db.sql(f"SELECT * FROM {table} ORDER BY {', '.join(keys)}").to_arrow_table()
        numbers = np.stack([rows[name].to_numpy().astype(float) for name in NUMBERS[table]], 1)
        found[table] = rows.select(keys).to_pylist(), numbers
    found["tensors"] = {
        key: db._snapshot.tensors(ids[0])[""].tolist() for key, ids in db._snapshot.by_key.items()
    }
    return found


def same_rows(found, whole, ids=None):
    """Whether tables have the same keys, and numbers that agree but for rounding."""
    for table in KEYS:
        (keys, numbers), (wanted, expected) = found[table], whole[table]
        if ids is not None:
            keep = [i for i, row in enumerate(wanted) if row["input_id"] in ids]
            wanted, expected = [wanted[i] for i in keep], expected[keep]
        assert keys == wanted, table
        identities = np.array([row["input_id"] for row in keys])
        for identity in np.unique(identities):
            mine = identities == identity
            before, after = expected[mine], numbers[mine]
            assert np.array_equal(np.isnan(before), np.isnan(after))
            variation = np.nansum(np.abs(before), 0)
            off = np.nan_to_num(np.abs(before - after))
            assert (off <= ROUNDING * variation).all(), (table, (off / variation).max())


def assert_sound(path, whole):
    """Whether a store is sound, and each of its inputs as in an uninterrupted run."""
    report = verify(path, sample=2)
    assert report.sound, report.findings
    with ng.open(path) as db:
        if not len(db):
            return 0
        found = rows_of(db)
        ids = set(db._snapshot.entries)
    same_rows(found, whole, ids)
    keys = {row["key"] for row in found["inputs"][0]}
    assert found["tensors"] == {key: whole["tensors"][key] for key in keys}
    return report.inputs


def assert_whole(path, whole):
    assert assert_sound(path, whole) == len(whole["inputs"][0])


def started(path, batch, what, at, count=COUNT, first=0):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "helpers.interrupted",
            *map(str, (path, count, batch, what, at, first)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def ended(process):
    _, told = process.communicate(timeout=120)
    return process.returncode, told


def test_an_uninterrupted_run_is_deterministic(tmp_path, whole):
    for batch in (2, 1, 5):
        with extract(tmp_path / f"{batch}.nrm", COUNT, batch) as db:
            found = rows_of(db)
        same_rows(found, whole)
        if batch == 2:
            assert all(np.array_equal(found[t][1], whole[t][1], equal_nan=True) for t in KEYS)


# Forked where imports are done, so that many kills cost one start.
FORKS = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[2])
import pytest, torch
torch.set_num_threads(1)
from helpers import interrupted
from helpers.interrupted import COUNT, Images, commit_every_item, extract, network, small_shards
from helpers.commit_steps import Steps
import nrm_graph.extraction.extract
interrupted.program()
base = pathlib.Path(sys.argv[1])
which = sys.argv[3]
step = int(sys.argv[4])

def child(k):
    path = base / f"{which}-{k}.nrm"
    small_shards(1 if which == "step" else 2)
    if which == "item":
        extract(path, COUNT, 2, Images(COUNT, 0, signal.SIGKILL, k))
    elif which == "flush":
        data = Images(COUNT, 0, signal.SIGKILL, k)
        commit_every_item(data)
        extract(path, COUNT, 1, data)
    else:
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, k, lambda: os.kill(os.getpid(), signal.SIGKILL))
            extract(path, 2, 2)

for k in range(0 if which != "step" else 1, 1000, step):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(k)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    print(k, os.waitstatus_to_exitcode(status), flush=True)
    if status == 0:
        break
"""


def killed(path, which, step=1):
    """Kill an extraction at every moment of a kind; the stores that are left, by moment."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(path), str(TESTS), which, str(step)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    found = dict(map(int, line.split()) for line in done.stdout.splitlines())
    *moments, last = found
    assert {found[k] for k in moments} == {-signal.SIGKILL}, (found, done.stderr)
    assert found[last] == 0, done.stderr
    return {k: path / f"{which}-{k}.nrm" for k in moments}


@pytest.mark.slow
def test_a_kill_at_any_item_loses_nothing_committed(tmp_path, whole):
    stores = killed(tmp_path, "item")
    assert len(stores) == COUNT
    for k, path in stores.items():
        if (path / "store.json").exists():
            assert_sound(path, whole)
        batch = (1, 2, 3)[k % 3]
        extract(path, COUNT, batch).close()
        assert_whole(path, whole)


@pytest.mark.slow
def test_what_was_committed_before_a_kill_stays(tmp_path, whole):
    for k, path in killed(tmp_path, "flush", step=2).items():
        if k == 0:  # the first item is read before there is a store
            assert not path.exists()
            continue
        with ng.open(path) as db:
            keys = {f"k{n}" for n in range(k)}
            # Item k was read before the batch of item k - 1 was added: batches are of one.
            assert keys <= set(db._snapshot.by_key)
            before = {p: p.read_bytes() for p in (path / "shards").iterdir()}
        extract(path, COUNT, 4).close()
        assert_whole(path, whole)
        assert all(p.read_bytes() == data for p, data in before.items())


STEP = 7


@pytest.mark.slow
def test_a_kill_at_every_step_of_the_commits(tmp_path):
    with extract(tmp_path / "whole.nrm", 2, 2) as db:
        whole = rows_of(db)
    stores = killed(tmp_path, "step", 1)
    assert len(stores) > 40
    for path in stores.values():
        if (path / "store.json").exists():
            assert_sound(path, whole)
        extract(path, 2, 1).close()
        assert_whole(path, whole)


def test_a_full_disk_at_steps_of_an_extraction(tmp_path):
    """The error names the disk; the same command again completes the store."""
    import errno

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with extract(tmp_path / "whole.nrm", 2, 2) as db:
        whole = rows_of(db)
    k, told = 1, 0
    while True:
        path = tmp_path / f"{k}.nrm"
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, k, full)
            try:
                extract(path, 2, 2).close()
            except ng.StoreError as error:
                message = str(error)
                told += "No space left" in message
                assert told, message
        if steps.count < k:
            break
        extract(path, 2, 1).close()
        assert_whole(path, whole)
        k += STEP
    assert told > 3


@pytest.mark.slow
def test_the_same_command_in_two_processes_at_once(tmp_path, whole):
    """A kill leaves a part; two processes with other batch sizes finish it together."""
    path = tmp_path / "s.nrm"
    code, told = ended(started(path, 2, "flush", 4))
    assert code == -signal.SIGKILL, told
    before = assert_sound(path, whole)
    assert 0 < before < len(whole["inputs"][0])
    both = [started(path, batch, "wait", -1) for batch in (1, 3)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        code, told = ended(process)
        assert code == 0, told
    assert_whole(path, whole)
    report = verify(path, sample=0)
    assert all("holds the same pair" in note.problem for note in report.notes)


@pytest.mark.slow
def test_two_writers_and_a_reader(tmp_path, whole):
    """Both make the store, and write it together; a reader sees complete inputs alone."""
    path = tmp_path / "s.nrm"
    writers = [
        started(path, batch, "wait", -1, count, first)
        for batch, count, first in ((2, 5, 0), (1, COUNT - 3, 3))
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        seen, looks = 0, 0
        while looks < 12 and any(writer.poll() is None for writer in writers):
            if not (path / "store.json").exists():
                continue
            with ng.open(path) as db:
                assert len(db) >= seen
                seen, looks = len(db), looks + (seen > 0)
                if seen:
                    same_rows(rows_of(db), whole, set(db._snapshot.entries))
        for writer in writers:
            code, told = ended(writer)
            assert code == 0, told
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            for pipe in (writer.stdin, writer.stdout, writer.stderr):
                pipe.close()
    assert_whole(path, whole)


@pytest.mark.parametrize("at", [pytest.param(at, marks=pytest.mark.slow) for at in (3, 6)])
def test_ctrl_c_keeps_what_was_completed(tmp_path, whole, at):
    path = tmp_path / "s.nrm"
    code, told = ended(started(path, 2, "sigint", at))
    assert code == 130, told
    held = assert_sound(path, whole)
    complete = at // 2 * 2  # whole batches before the item that was interrupted
    keys = {row["key"] for row in whole["inputs"][0] if row["n"] < complete}
    with ng.open(path) as db:
        assert set(db._snapshot.by_key) == keys
    assert held == sum(row["key"] in keys for row in whole["inputs"][0])
    assert not verify(path, sample=0).notes  # nothing unfinished is left over
    extract(path, COUNT, 2).close()
    assert_whole(path, whole)


def test_ctrl_c_of_the_command(tmp_path, whole, monkeypatch, capsys):
    """Exit code 130, one line, and a store that holds what was completed."""
    from nrm_graph.cli import inputs, models

    data = interrupted.Images(COUNT, 0, signal.SIGINT, 5)
    data.preprocessing = None
    monkeypatch.setattr(models, "load_model", lambda spec: (interrupted.network(), None, None))
    monkeypatch.setattr(inputs, "load_inputs", lambda *_: data)
    path = tmp_path / "s.nrm"
    (tmp_path / "i.png").touch()
    command = ["extract", "m:f", str(tmp_path / "i.png"), "--store", str(path), "--quiet"]
    command += ["--composite", "epsilon"]
    command += ["--target", "predicted,1", "--batch-size", "2"]
    assert main.main(command) == 130
    assert capsys.readouterr().err == "nrm-graph: interrupted; what is in the store stays valid\n"
    with ng.open(path) as db:
        assert sorted(db._snapshot.by_key) == ["k0", "k1", "k2", "k3"]
    assert_sound(path, whole)
    data.at = None
    assert main.main(command) == 0
    assert_whole(path, whole)


def test_ctrl_c_in_the_pass_keeps_what_was_completed(tmp_path, whole, monkeypatch):
    """The signal comes while a batch is computed, not while an item is read."""
    calls = []
    plain = batches.sample_tables

    def tables(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(batches, "sample_tables", tables)
    path = tmp_path / "s.nrm"
    with pytest.raises(KeyboardInterrupt):
        extract(path, COUNT, 2)
    assert 0 < assert_sound(path, whole) < len(whole["inputs"][0])
    monkeypatch.undo()
    extract(path, COUNT, 3).close()
    assert_whole(path, whole)
