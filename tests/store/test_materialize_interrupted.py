"""Materializations that fail, are killed, interrupted or run twice at once: whole inputs stay."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
from helpers.commit_steps import Steps
from helpers.materialized import CHANNEL, held, rows, run, small_shards
from helpers.processes import TESTS, environment

import nrm_graph as ng
from nrm_graph.store.verify import verify


@pytest.fixture
def path(extracted, tmp_path):
    return shutil.copytree(extracted, tmp_path / "s.nrm")


def is_part(path, whole):
    """Whether each input that is held is held whole."""
    found = held(path)
    if found is None:
        return
    ids = {row[0] for row in found["inputs"]}
    for table, expected in whole.items():
        assert found[table] == [row for row in expected if row[0] in ids]
    report = verify(path, sample=0)
    assert report.sound, report.findings


def failed():
    raise OSError(28, "No space left on device")


def stopped():
    raise KeyboardInterrupt


STEP = 10


@pytest.mark.parametrize("action", [failed, pytest.param(stopped, marks=pytest.mark.slow)])
def test_a_fault_at_steps_of_the_commits(extracted, tmp_path, monkeypatch, action):
    faults_are_survived(extracted, tmp_path, monkeypatch, action, STEP)


@pytest.mark.slow
@pytest.mark.parametrize("action", [failed, stopped])
def test_a_fault_at_every_step_of_the_commits(extracted, tmp_path, monkeypatch, action):
    faults_are_survived(extracted, tmp_path, monkeypatch, action, 1)


def faults_are_survived(extracted, tmp_path, monkeypatch, action, step):
    small_shards(monkeypatch)
    path = shutil.copytree(extracted, tmp_path / "whole.nrm")
    run(path)
    messages = []
    whole, k = held(path), 1
    while True:
        path = shutil.copytree(extracted, tmp_path / f"{k}.nrm")
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, k, action)
            try:
                run(path)
            except ng.StoreError as error:
                messages.append(str(error))
            except KeyboardInterrupt:
                messages.append("No space left")
        if steps.count < k:
            break
        is_part(path, whole)
        run(path)
        assert held(path) == whole
        shutil.rmtree(path)
        k += step
    assert len(messages) == (k - 1) // step
    assert k > 20
    assert all("No space left" in message for message in messages)


KILLED = """
import os, pathlib, shutil, signal, sys
sys.path.insert(0, sys.argv[2])
import pytest, torch
torch.set_num_threads(1)
from helpers import materialized
from helpers.commit_steps import Steps
base, extracted = pathlib.Path(sys.argv[1]), sys.argv[3]
for k in range(1, 1000, int(sys.argv[4])):
    path = shutil.copytree(extracted, base / f"{k}.nrm")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.MonkeyPatch.context() as patch:
                materialized.small_shards(patch)
                Steps(patch, k, lambda: os.kill(os.getpid(), signal.SIGKILL))
                materialized.run(path)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    print(k, os.waitstatus_to_exitcode(status), flush=True)
    if status == 0:
        break
"""


@pytest.mark.slow
def test_a_kill_at_every_third_step_of_the_commits(extracted, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    whole_path = shutil.copytree(extracted, tmp_path / "whole")
    run(whole_path)
    whole = held(whole_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (tmp_path, TESTS, extracted, 3))],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    *killed, last = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert {code for _, code in killed} == {-signal.SIGKILL}, done.stderr
    assert last[0] > 20
    assert last[1] == 0, done.stderr
    for k, _ in killed:
        path = tmp_path / f"{k}.nrm"
        is_part(path, whole)
        run(path)
        assert held(path) == whole


def test_ctrl_c_keeps_what_was_completed(path, monkeypatch):
    calls = []
    plain_given = ng.Measure.given

    def given(self, event):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return plain_given(self, event)

    monkeypatch.setattr(ng.Measure, "given", given)
    with ng.open(path) as db:
        with pytest.raises(KeyboardInterrupt):
            db.materialize(CHANNEL, name="B", progress=False)
        assert db.sql("SELECT count(*) FROM B_inputs").fetchall() == [(3,)]
        first = rows(db, "B")
        db.materialize(CHANNEL, name="B", progress=False)
        assert len(calls) == len(db) + 1  # the third was not computed again
        assert set(first["edges"]) <= set(rows(db, "B")["edges"])


def test_two_processes_at_once(path, monkeypatch):
    """Both compute all; each input counts once."""
    with ng.open(path) as db, ng.open(path) as other:
        db.materialize(CHANNEL, name="B", inputs=["k0"], progress=False)
        whole = rows(db, "B")
        shards = path / "conditions" / "b" / "shards"
        kept = {p: p.read_bytes() for p in shards.iterdir()}
        for p in kept:
            p.unlink()
        other.materialize(CHANNEL, name="B", inputs=["k0"], progress=False)
        for p, data in kept.items():
            p.write_bytes(data)
        db.refresh()
        assert rows(db, "B") == whole
        report = db.verify(sample=1)
        assert report.sound
        assert any("holds the same pair" in note.problem for note in report.notes)
