"""Long calls are told of, short ones are quiet, and Ctrl-C leaves nothing behind."""

import io
import os
import pty
import select
import signal
import sys
import termios
import threading
import time
import types

import pytest
import torch
from helpers import small
from torch import nn

import nrm_graph as ng
from nrm_graph import progress
from nrm_graph.extraction.progress import InputProgress
from nrm_graph.progress import Ended, Progress, Watch, current, duration, watched
from nrm_graph.store.verify import verify

pytestmark = pytest.mark.smoke

LIN = ng.Layer("0")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "_clock", clock)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return clock


@pytest.fixture
def all_long(monkeypatch):
    """Calls that take no time are told of."""
    monkeypatch.setattr(progress, "LONG", -1.0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


@pytest.fixture
def terminal(monkeypatch):
    """Make standard error a terminal from now on; gives a function that reads what was written."""
    handle, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with os.fdopen(theirs, "w") as stream:

        def read():
            stream.flush()
            text = b""
            while select.select([handle], [], [], 0.2)[0]:
                text += os.read(handle, 1 << 16)
            return text.decode()

        def begin():  # pytest takes standard error when the test itself begins
            monkeypatch.setattr(sys, "stderr", stream)
            return read

        yield begin
    os.close(handle)


def run(clock, steps, seconds, **options):
    with Progress("work", steps, "passes", **options) as meter:
        for _ in range(steps):
            clock.now += seconds
            meter.advance()


def test_what_takes_less_than_five_seconds_is_quiet(clock, capfd):
    run(clock, 49, 0.1)
    run(clock, 1, 100.0)  # nothing lay ahead when it could be told
    assert capfd.readouterr() == ("", "")


def test_lines_every_half_minute_where_standard_error_is_redirected(clock, capfd):
    run(clock, 100, 1.0)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "work: 2 of 100 passes in 2 s, about 98 s to go",
        "work: 32 of 100 passes in 32 s, about 68 s to go",
        "work: 62 of 100 passes in 62 s, about 38 s to go",
        "work: 92 of 100 passes in 92 s, about 8 s to go",
        "work: 100 of 100 passes in 1.7 min",
    ]


def test_the_first_step_alone_promises_nothing(clock, capfd):
    """It prepares what all of them need."""
    with Progress("work", 100) as meter:
        clock.now += 4.0
        meter.advance()
        for _ in range(99):
            clock.now += 0.01
            meter.advance()
    assert capfd.readouterr().err == ""


def test_a_step_that_takes_long_is_told_of_while_it_runs(clock, capfd):
    with Progress("work", 3) as meter:
        for _ in range(4):
            clock.now += 2.0
            meter.tick()
        assert capfd.readouterr().err == "work: 0 of 3 steps in 6 s\n"
        meter.advance()
        clock.now += 30.0
        meter.tick()
        assert capfd.readouterr().err == "work: 1 of 3 steps in 38 s, about 64 s to go\n"
        clock.now += 30.0
        meter.tick()  # nothing was completed since the line before
        assert capfd.readouterr().err == "work: 1 of 3 steps in 68 s, about 2.3 min to go\n"


def test_a_total_that_is_unknown_or_grows(clock, capfd):
    with Progress("work", unit="inputs") as meter:
        for _ in range(6):
            clock.now += 1.0
            meter.advance()
        assert capfd.readouterr().err == "work: 6 inputs in 6 s\n"
        meter.expect(4)
        assert meter.total == 4
        meter.expect(5)
        assert meter.total == 9


def test_a_call_inside_of_another_is_quiet(clock, capfd):
    with Progress("outer", 2) as outer:
        for _ in outer.over(range(2)):
            with Progress("inner", 10) as inner:
                assert current() is inner
                for _ in range(10):
                    clock.now += 4.0
                    inner.advance()
            assert current() is outer
    assert current() is None
    err = capfd.readouterr().err
    assert "inner" not in err
    assert err.startswith("outer: 1 of 2 steps in 40 s, about 40 s to go\n")


@pytest.mark.parametrize("how", ["progress=False", "TQDM_DISABLE", "no stderr", "Ray"])
def test_it_is_silenced(clock, capfd, monkeypatch, how):
    if how == "TQDM_DISABLE":
        monkeypatch.setenv("TQDM_DISABLE", "1")
    if how == "no stderr":
        monkeypatch.setattr(sys, "stderr", None)
    if how == "Ray":
        ray = types.SimpleNamespace(WORKER_MODE=1, is_initialized=lambda: True)
        worker = types.SimpleNamespace(worker=types.SimpleNamespace(mode=1))
        ray.get_runtime_context = lambda: worker
        monkeypatch.setitem(sys.modules, "ray", ray)
    run(clock, 100, 1.0, shown=how != "progress=False")
    assert capfd.readouterr() == ("", "")


def test_a_driver_of_ray_tells(clock, capfd, monkeypatch):
    context = types.SimpleNamespace(worker=types.SimpleNamespace(mode=0))
    ray = types.SimpleNamespace(
        WORKER_MODE=1, is_initialized=lambda: True, get_runtime_context=lambda: context
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    run(clock, 100, 1.0)
    assert capfd.readouterr().err.startswith("work: 2 of 100")


def test_a_reader_that_has_gone_ends_nothing(clock, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    run(clock, 100, 1.0)


def test_a_terminal_gets_a_bar(clock, terminal):
    before, written = threading.enumerate(), terminal()
    run(clock, 100, 1.0)
    text = written()
    assert "\r" in text
    assert "work:" in text
    assert "100/100" in text
    assert "passes" in text
    assert "in 2 s" not in text
    assert threading.enumerate() == before


def test_a_terminal_sees_nothing_of_a_short_call(clock, terminal):
    written = terminal()
    run(clock, 49, 0.1)
    assert written() == ""


def test_a_notebook_gets_a_bar_of_its_own(clock, monkeypatch):
    class OutStream(io.StringIO):
        __module__ = "ipykernel.iostream"

    stream = OutStream()
    monkeypatch.setattr(sys, "stderr", stream)
    run(clock, 100, 1.0)
    assert "100/100" in stream.getvalue()
    assert "in 2 s" not in stream.getvalue()


def test_durations_in_words():
    assert [duration(s) for s in (0.4, 99.4, 99.6, 5969, 5971)] == [
        "0 s",
        "99 s",
        "1.7 min",
        "99.5 min",
        "1.7 h",
    ]


def test_an_extraction_says_first_how_much_and_how_long(clock, capfd):
    with InputProgress(50_000, lambda: "12 kB an input", True) as meter:
        for _ in range(2):
            clock.now += 3.0
            meter.explained(64, 3.0)
    assert capfd.readouterr().err.splitlines()[:3] == [
        "12 kB an input",
        "about 0.047 s an input, 39.1 minutes for 50,000",
        "extract: 128 of 50,000 inputs in 6 s, about 39.0 min to go",
    ]


@pytest.fixture(scope="module")
def measure():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    return ng.measure(net.eval(), torch.randn(5), target=0, composite="epsilon")


ASKED = {
    "joint 0, 2: 4 of 4 passes": lambda m: m.joint("0", "2"),
    "events: 5 of 5 conjunctions": lambda m: m.many([LIN[i] for i in range(5)]),
    "walks: 66 of 66 edges": lambda m: m.paths(k=2),
    "paths: ": lambda m: m.paths(k=2, layers=["0", "2"]),
}


@pytest.mark.parametrize("line", ASKED)
def test_measures_tell(all_long, measure, capfd, line):
    ASKED[line](measure)
    err = capfd.readouterr().err
    assert any(text.startswith(line) for text in err.splitlines()), err


@pytest.mark.parametrize("layers", [None, ["0", "2"]])
def test_paths_can_be_silenced(all_long, measure, capfd, layers):
    measure.paths(k=2, layers=layers, progress=False)
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "s.nrm"
    small.extract(path, [{"input": x, "key": f"k{i}"} for i, x in enumerate(small.X)])
    return path


def test_stores_tell(all_long, store, capfd):
    def told(call):
        call()
        return capfd.readouterr().err.splitlines()[-1].partition(" in ")[0]

    with ng.open(store) as db:
        event = ng.Layer("0")[1]
        assert told(lambda: db.circuit(mixed_targets=True)) == "circuit: 2 of 2 steps"
        assert told(lambda: db.references(event, k=3)) == "references: 3 of 3 inputs"
        given = told(lambda: db.materialize(event, name="given"))
        assert given == "materialize given: 12 of 12 inputs"
        assert told(lambda: verify(store)) == "recompute: 6 of 6 inputs"
        db.materialize(event, name="quiet", progress=False)
        verify(store, progress=False)
        assert capfd.readouterr().err == ""
        assert told(lambda: ng.delete(store, "k0")) == "delete: 33 of 33 inputs"


class Interrupts(Progress):
    """Ctrl-C comes while a call is at work."""

    def advance(self, count=1):
        super().advance(count)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("line", ASKED)
def test_ctrl_c_leaves_nothing_behind(all_long, measure, monkeypatch, tmp_path, terminal, line):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    written, expected = terminal(), ASKED[line](measure)
    written()
    before = threading.enumerate()
    with monkeypatch.context() as patched:
        for name in ("joint_matrix", "event_algebra", "paths.completions", "paths.unit_paths"):
            patched.setattr(f"nrm_graph.measures.{name}.Progress", Interrupts)
        with pytest.raises(KeyboardInterrupt):
            ASKED[line](measure)
    assert written().endswith("\n")  # the bar is closed
    assert current() is None
    assert threading.enumerate() == before
    assert list(tmp_path.iterdir()) == []
    assert repr(ASKED[line](measure)) == repr(expected)


def test_a_query_lets_its_call_know_that_time_passes(store, monkeypatch):
    ticks = []
    monkeypatch.setattr("nrm_graph.store.read.interruptible.TICK", 0.01)
    monkeypatch.setattr(Progress, "tick", lambda self: ticks.append(self.what))
    long = "SELECT count(*) FROM range(30000000) t(r) WHERE hash(r) % 7 = 0"
    with ng.open(store) as db:
        db.sql(long).fetchall()
        assert ticks == []
        with Progress("sums"):
            db.sql(long).fetchall()
            assert set(ticks) == {"sums"}
            with pytest.raises(ng.QueryError, match=r"timeout=0\.05 s"):
                db.sql("SELECT count(*) FROM range(100000000000) t(r)", timeout=0.05).fetchall()


class EndedAfter(Watch):
    """Ends a call when it has been looked at so many times."""

    def __init__(self, looks):
        super().__init__()
        self.left = looks

    @property
    def ended(self):
        self.left -= 1
        return self.left < 0

    @ended.setter
    def ended(self, value):
        pass


def test_a_watched_call_ends_at_any_layer_and_leaves_the_measure_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    x, event = torch.randn(5), ng.Layer("0")[1] & ng.Layer("2")[:2]

    def asked(m):
        return m.given(event).reduced(["0", "2"], nodes=None).to_arrow()

    expected, m, ended = asked(ng.measure(net, x, target=1)), ng.measure(net, x, target=1), 0
    while True:
        with watched(EndedAfter(ended)):
            try:
                rows = asked(m)
            except Ended:
                ended += 1
                continue
        break
    assert ended > 20  # layers of the runs, of conditions, steps and ends
    assert rows.equals(expected)


def test_a_watched_query_ends_while_it_runs(tmp_path):
    crossed = ", ".join(f"edges e{i}" for i in range(9))
    query = f"SELECT count(*) FROM {crossed} WHERE e0.relevance < e1.relevance + e8.relevance"
    ng.extract(nn.Linear(20, 20), torch.randn(3, 20), tmp_path / "s.nrm", target=0)
    watch, begun = Watch(), time.monotonic()
    threading.Timer(0.2, setattr, (watch, "ended", True)).start()
    with ng.open(tmp_path / "s.nrm") as db, watched(watch), pytest.raises(Ended):
        db.sql(query).fetchall()
    assert time.monotonic() - begun < 5
    assert watch.progress is None


def test_who_watches_sees_the_outermost_call_and_nothing_is_printed(all_long, capsys):
    watch, seen = Watch(), []
    with watched(watch), Progress("outer", 2) as outer:
        with Progress("inner", 5) as inner:
            inner.advance()
        outer.advance()
        seen.append((watch.progress.what, watch.progress.done, watch.progress.total))
    assert seen == [("outer", 1, 2)]
    assert capsys.readouterr().err == ""
