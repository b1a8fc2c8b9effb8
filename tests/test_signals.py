"""SIGTERM and SIGHUP: what is computed is committed, and everything is as it was afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers import interrupted
from helpers.interrupted import COUNT, Images, extract
from helpers.processes import TESTS, environment
from helpers.tiny_stores import checksums, make, record, write

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.signals import Terminated, ending_in_order
from nrm_graph.store import materialize
from nrm_graph.store.verify import verify
from nrm_graph.store.write import rewrite
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def before(monkeypatch):
    """Handlers that note which signals came; without ours they would end the tests."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    came = []

    def note(number, frame):
        came.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGHUP)}
    came_handlers = dict.fromkeys(old, note)
    yield came
    assert {number: signal.getsignal(number) for number in old} == came_handlers
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for number, handler in old.items():
        signal.signal(number, handler)


def keys(path):
    with ng.open(path) as db:
        return sorted(db._snapshot.by_key)


@BOTH
def test_an_extraction_commits_what_is_computed(tmp_path, before, number):
    path = tmp_path / "s.nrm"
    held = []
    seen = signal.getsignal(number)

    def note(came, frame):
        held.append((came, keys(path)))

    signal.signal(number, note)
    with pytest.raises(SystemExit) as stopped:
        extract(path, COUNT, 2, Images(COUNT, 0, number, 5))
    assert stopped.value.code == 128 + number
    # The handler of before is called when everything is committed.
    assert held == [(number, ["k0", "k1", "k2", "k3"])]
    assert signal.getsignal(number) is note
    signal.signal(number, seen)
    report = verify(path, sample=1)
    assert report.sound
    assert not report.notes
    extract(path, COUNT, 2).close()
    assert len(keys(path)) == COUNT


@BOTH
def test_the_command_says_so(tmp_path, before, number, monkeypatch, capsys):
    from nrm_graph.cli import inputs, models

    data = Images(COUNT, 0, number, 5)
    data.preprocessing = None
    monkeypatch.setattr(models, "load_model", lambda spec: (interrupted.network(), None, None))
    monkeypatch.setattr(inputs, "load_inputs", lambda *_: data)
    path = tmp_path / "s.nrm"
    (tmp_path / "i.png").touch()
    command = ["extract", "m:f", str(tmp_path / "i.png"), "--store", str(path), "--quiet"]
    command += ["--composite", "epsilon", "--batch-size", "2"]
    assert main.main(command) == 128 + number
    name = signal.Signals(number).name
    assert capsys.readouterr().err == (
        f"nrm-graph: ended by {name}; what is in the store stays valid\n"
    )
    assert keys(path) == ["k0", "k1", "k2", "k3"]
    assert before == [number]


def test_a_handler_of_before_that_raises_has_the_last_word(tmp_path):
    note = signal.signal(signal.SIGTERM, signal.default_int_handler)
    path = tmp_path / "s.nrm"
    with pytest.raises(KeyboardInterrupt):
        extract(path, COUNT, 2, Images(COUNT, 0, signal.SIGTERM, 5))
    assert keys(path) == ["k0", "k1", "k2", "k3"]
    signal.signal(signal.SIGTERM, note)


def test_an_ignored_signal_stays_ignored(tmp_path):
    note = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    extract(tmp_path / "s.nrm", COUNT, 2, Images(COUNT, 0, signal.SIGHUP, 5)).close()
    assert len(keys(tmp_path / "s.nrm")) == COUNT
    assert signal.signal(signal.SIGHUP, note) is signal.SIG_IGN


class Watching(Images):
    """Images that note, at every item, which handlers are installed."""

    def __init__(self, count):
        super().__init__(count)
        self.seen = []

    def __getitem__(self, n):
        self.seen.append(signal.getsignal(signal.SIGTERM))
        return super().__getitem__(n)


def test_handlers_are_there_for_the_duration_alone(tmp_path):
    note = signal.getsignal(signal.SIGTERM)
    data = Watching(COUNT)
    extract(tmp_path / "s.nrm", COUNT, 2, data).close()
    # The first item is read before there is anything to commit.
    assert data.seen[0] is note
    assert note not in data.seen[1:]
    failing = Watching(COUNT)
    with pytest.raises(ng.InputError):
        extract(tmp_path / "t.nrm", COUNT, 2, [*failing, {"input": "none"}])
    assert signal.getsignal(signal.SIGTERM) is note


def test_other_threads_install_none(tmp_path):
    note = signal.getsignal(signal.SIGTERM)
    data = Watching(COUNT)
    thread = threading.Thread(target=lambda: extract(tmp_path / "s.nrm", COUNT, 2, data).close())
    thread.start()
    thread.join()
    assert set(data.seen) == {note}
    assert len(keys(tmp_path / "s.nrm")) == COUNT


def test_nested_uses_are_one():
    note = signal.getsignal(signal.SIGTERM)
    with ending_in_order():
        ours = signal.getsignal(signal.SIGTERM)
        with ending_in_order():
            assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.getsignal(signal.SIGTERM) is ours
        with pytest.raises(Terminated), ending_in_order():
            signal.raise_signal(signal.SIGTERM)
        # Until the outermost ends, the next one would end the process.
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is note


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=SLOW)])
def test_a_materialization_commits_what_is_computed(tmp_path, before, number, monkeypatch):
    path = tmp_path / "s.nrm"
    event = ng.Layer("0")[1]
    plain, calls = materialize.measure, []

    def measure(db, *args, **options):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return plain(db, *args, **options)

    with extract(path, COUNT, 2) as db:
        monkeypatch.setattr(materialize, "measure", measure)
        with pytest.raises(SystemExit):
            db.materialize(event, name="b", progress=False)
        assert db.sql("SELECT count(*) FROM b_inputs").fetchall() == [(3,)]
        assert before == [number]
        db.materialize(event, name="b", progress=False)
        assert db.sql("SELECT count(*) FROM b_inputs").fetchall() == [(len(db),)]
    assert verify(path, sample=0).sound


@BOTH
@pytest.mark.parametrize("job", [compact, lambda path: delete(path, "input1")])
def test_what_rewrites_shards_leaves_them(tmp_path, before, number, job, monkeypatch):
    path = write(make(tmp_path / "s.nrm"), [record(0), record(1)])
    write(path, [record(2)])
    old = checksums(path)
    plain = rewrite.OpenShard.commit

    def commit(*args):
        os.kill(os.getpid(), number)
        return plain(*args)

    monkeypatch.setattr(rewrite.OpenShard, "commit", commit)
    with pytest.raises(SystemExit):
        job(path)
    assert before == [number]
    assert checksums(path) == old  # nothing half written is left


def test_a_query_of_the_command(tmp_path, before, capsys):
    path = write(make(tmp_path / "s.nrm"), [record(0)])
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    timer.start()
    query = "SELECT sum(a.range * b.range % 7) FROM range(100000000) a, range(1000000) b"
    assert main.main(["sql", str(path), query]) == 143
    assert time.monotonic() - began < 10
    assert "ended by SIGTERM" in capsys.readouterr().err
    assert before == [signal.SIGTERM]
    timer.join()


SLOWLY = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[2])
from helpers.tiny_stores import make, record
from nrm_graph.signals import ending_in_order
from nrm_graph.store.write import shard
from nrm_graph.store.write.writer import Writer

path = make(__import__("pathlib").Path(sys.argv[1]))
plain = shard.OpenShard.commit

def commit(*args):
    print("committing", flush=True)
    time.sleep(60)
    return plain(*args)

shard.OpenShard.commit = commit
with ending_in_order(), Writer(path) as writer:
    writer.add(record(0))
    heard, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"here")  # a signal before this would be lost in the fork
        time.sleep(60)
        os._exit(7)
    os.read(heard, 4)
    os.kill(child, signal.SIGTERM)  # which ends as it would have without us
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    "second",
    [signal.SIGTERM, *(pytest.param(n, marks=SLOW) for n in (signal.SIGHUP, signal.SIGINT))],
)
def test_a_second_signal_ends_at_once(tmp_path, second):
    command = [sys.executable, "-c", SLOWLY, str(tmp_path / "s.nrm"), str(TESTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stdout.readline() == f"{-signal.SIGTERM}\n"
        assert child.stdout.readline() == "committing\n"
        began = time.monotonic()
        child.send_signal(second)
        assert child.wait(20) == -second
        assert time.monotonic() - began < 10
    assert keys(tmp_path / "s.nrm") == []
