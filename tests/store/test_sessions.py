"""What sessions do with an open store: fork, copy, wait, cancel, and lose it."""

import copy
import pickle
import shutil
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from helpers import forked, interrupted
from helpers.processes import environment
from helpers.tiny_stores import all_rows, make, record, write

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.store.read import conditions
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer

FLOWS = 15


@pytest.fixture
def path(tmp_path):
    found = make(tmp_path / "s.nrm")
    for number in range(3):
        write(found, [record(number)])
    return found


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A store whose measures can be computed."""
    found = tmp_path_factory.mktemp("network") / "s.nrm"
    with interrupted.extract(found, 3, 2) as db:
        db.materialize(ng.Layer("0")[2], name="b", progress=False)
    return found


def run(what, path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "helpers.forked", what, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- forks ------------------------------------------------------------------------------------


def test_an_open_database_answers_after_a_fork(path):
    told = run("fork", path)
    each = [
        f"0 {FLOWS}",
        f"0 {FLOWS}",
        f"0 (None, {FLOWS})",
        "relation",
        "relation",
        f"0 (None, {FLOWS})",
        f"0 (0, '{FLOWS}')",
    ]
    assert len(told) == len(each) + 3
    for line, wanted in zip(told, each, strict=False):
        if wanted == "relation":
            assert line.startswith("0 QueryError: this relation belongs to the process "), line
            assert line.endswith("call db.sql(...) here, which answers from the same snapshot")
        else:
            assert line == wanted
    assert told[-3:] == [f"0 {FLOWS}", "0 None", f"0 {FLOWS}"]


@pytest.mark.slow
def test_a_fork_while_threads_are_at_work(path):
    *children, stopped = run("busy", path)
    assert children == [f"0 {FLOWS}"] * 3
    assert stopped == "0 ['the query was cancelled']"


@pytest.mark.slow
def test_workers_of_a_data_loader(network):
    assert run("loader", network) == ["0 fork 3", "0 True", "0 True"]


@pytest.mark.slow
def test_workers_however_they_start(network):
    told = run("everywhere", network)
    assert told[:5] == ["0 fork 3", "0 forkserver 3", "0 spawn 3", "0 True", "0 True"]
    with ng.open(network) as db:
        count = forked.ask(db)
    assert told[5:] == [f"0 {count} {count}"] * 3


def test_a_writer_belongs_to_its_process(path):
    *refused, closed, keys = run("writer", path)
    assert len(refused) == 3
    for line in refused:
        assert line.startswith("0 StoreError: this writer belongs to the process ")
        assert line.endswith("write from there, or open another writer here")
    assert closed == "0 None"
    assert keys == "0 [('input50',), ('input52',)]"
    assert {p.suffix for p in (path / "shards").iterdir()} == {".json", ".parquet"}


# --- copies -----------------------------------------------------------------------------------

COPIES = {
    "pickle": lambda db: pickle.loads(pickle.dumps(db)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_sees_the_same_snapshot(network, tmp_path, how):
    path = shutil.copytree(network, tmp_path / "s.nrm")
    db = ng.open(path)
    twins = [COPIES[how](db)]
    rows = all_rows(db)
    condition = db.sql("SELECT * FROM b_nodes ORDER BY ALL").fetchall()
    twins.append(COPIES[how](db))  # after a query
    logit = db.measure("k1", 1).logit
    db.circuit("target = 1")
    twins.append(COPIES[how](db))  # after a measure and a circuit
    db.close()
    twins.append(COPIES[how](db))
    ng.delete(path, "k2")
    write(path, [record(9)])
    for twin in twins:
        assert (twin.path, len(twin), twin.meta) == (db.path, 6, db.meta)
        assert all_rows(twin) == rows
        assert twin.sql("SELECT * FROM b_nodes ORDER BY ALL").fetchall() == condition
        assert twin.measure("k1", 1).logit == logit
        assert twin.conditions().to_pylist() == db.conditions().to_pylist()
        assert twin._network is not db._network
        assert repr(twin) == repr(db)
        twin.refresh()
        keys = {key for (key,) in twin.sql("SELECT key FROM inputs").fetchall()}
        assert keys == {"k0", "k1", "input9"}
        twin.close()
    assert all_rows(db) == rows


def test_a_copy_carries_no_networks(network):
    with ng.open(network) as db:
        plain = len(pickle.dumps(db))
        db.measure("k1", 1)
        all_rows(db)
        db.circuit("target = 1")
        assert len(db.partitions) == len(db.topology.layers)
        assert len(pickle.dumps(db)) < plain + 1000


def test_a_copy_of_what_is_gone(path):
    """It is copied all the same, and says what is wrong when it is asked."""
    db = ng.open(path)
    shutil.rmtree(path)
    for how in COPIES.values():
        twin = how(db)
        assert len(twin) == 3
        with pytest.raises(ng.QueryError, match="no longer there"):
            twin.sql("SELECT count(*) FROM nodes").fetchall()
        with pytest.raises(ng.StoreError, match="no store"):
            twin.refresh()


def test_a_pickle_is_read_elsewhere(path):
    code = (
        "import pickle, sys; db = pickle.load(sys.stdin.buffer); "
        "print(db.sql('SELECT count(*) FROM flows').fetchall()[0][0], 'torch' in sys.modules)"
    )
    with ng.open(path) as db:
        db.sql("SELECT 1").fetchall()
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(db),
            capture_output=True,
            check=True,
            env=environment(),
        )
    assert done.stdout.decode().split() == [str(FLOWS), "False"]


@pytest.mark.parametrize("how", COPIES)
def test_relations_are_not_copied(path, how):
    with ng.open(path) as db:
        relation = db.sql("SELECT 1 AS x")
        with pytest.raises(
            ng.QueryError, match=r"cannot be copied or pickled.+: copy the database"
        ):
            COPIES[how](relation)
        assert relation.fetchall() == [(1,)]


# --- timeouts, and cancelling -----------------------------------------------------------------

LONG = forked.LONG


def elapsed(call, message):
    began = time.monotonic()
    with pytest.raises(ng.QueryError, match=message):
        call()
    return time.monotonic() - began


def in_thread(call):
    """Call in a thread that is not the main one."""
    errors = []

    def work():
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("how", [lambda call: call(), in_thread], ids=["main", "thread"])
@pytest.mark.parametrize("method", ["fetchall", "to_arrow_table", "__len__", "__repr__"])
def test_a_timeout_stops_a_query(path, how, method):
    with ng.open(path) as db:
        relation = db.sql(LONG, timeout=0.2)
        spent = elapsed(
            lambda: how(lambda: getattr(relation, method)()),
            r"^the query was stopped after timeout=0\.2 s: allow more, or ask for less",
        )
        assert spent < 10
        assert db.sql("SELECT count(*) FROM flows", timeout=60).fetchall() == [(FLOWS,)]


def test_a_timeout_is_of_each_fetch(path):
    with ng.open(path) as db:
        relation = db.sql("SELECT count(*) FROM flows", timeout=1)
        for _ in range(2):
            time.sleep(0.6)
            assert relation.fetchall() == [(FLOWS,)]
        assert elapsed(db.sql(LONG, timeout=0.2).limit(1).fetchall, "timeout=0.2") < 10
        assert elapsed(lambda: db.sql(LONG, timeout=0.2).shape, "timeout=0.2") < 10


def test_a_timeout_holds_for_the_query_itself(path, monkeypatch):
    """Before there is a relation: here a view takes long to make."""
    from nrm_graph.store.read import sql

    monkeypatch.setattr(sql, "FLOWS", f"SELECT 1 AS x; {LONG}")
    with ng.open(path) as db:
        spent = elapsed(lambda: db.sql("SELECT * FROM flows", timeout=0.3), "timeout=0.3")
        assert spent < 10


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan"), float("inf"), [1]])
def test_odd_timeouts_are_refused(path, timeout):
    with ng.open(path) as db, pytest.raises(ng.InputError, match="number of seconds above 0"):
        db.sql("SELECT 1", timeout=timeout)


def test_the_command_takes_a_timeout(path, capsys):
    began = time.monotonic()
    assert main.main(["sql", str(path), LONG, "--timeout", "0.3"]) == 7
    assert time.monotonic() - began < 20
    assert "stopped after timeout=0.3 s" in capsys.readouterr().err
    assert main.main(["sql", str(path), "SELECT 5 AS x", "--timeout", "60"]) == 0
    assert main.main(["sql", str(path), "SELECT 5 AS x", "--timeout", "0"]) == 3
    assert "above 0" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["database", "relation"])
def test_another_thread_cancels(path, by):
    with ng.open(path) as db:
        relation = db.sql(LONG)
        other = db.sql("SELECT 1 AS x")
        timer = threading.Timer(0.3, db.cancel if by == "database" else relation.cancel)
        timer.start()
        assert elapsed(relation.fetchall, "^the query was cancelled$") < 10
        timer.join()
        assert other.fetchall() == [(1,)]
        # What is asked later is not affected.
        assert db.sql("SELECT count(*) FROM flows").fetchall() == [(FLOWS,)]


def test_the_main_thread_cancels_others(path):
    with ng.open(path) as db:
        told = []

        def work(timeout):
            try:
                db.sql(LONG, timeout=timeout).fetchall()
            except ng.QueryError as error:
                told.append(str(error))

        threads = [threading.Thread(target=work, args=(t,)) for t in (None, 60, 60)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        db.cancel()
        for thread in threads:
            thread.join(20)
        assert told == ["the query was cancelled"] * 3


def test_a_relation_cancels_its_own_calls_alone(path):
    with ng.open(path) as db:
        relation, other = db.sql(LONG), db.sql("SELECT count(*) FROM range(30000000)")
        counted = []

        def work():
            with pytest.raises(ng.QueryError, match="cancelled"):
                relation.limit(3).fetchall()

        threads = [
            threading.Thread(target=work),
            threading.Thread(target=lambda: counted.append(other.fetchall())),
        ]
        for thread in threads:
            thread.start()
        while threads[0].is_alive():
            relation.cancel()
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        assert counted == [[(30000000,)]]


def test_cancelling_nothing(path):
    with ng.open(path) as db:
        db.cancel()
        relation = db.sql("SELECT count(*) FROM flows")
        for cancel in (db.cancel, relation.cancel):
            cancel()
            assert relation.fetchall() == [(FLOWS,)]


def test_a_circuit_is_cancelled_too(network, monkeypatch):
    with ng.open(network) as db:
        plain = db.sql
        monkeypatch.setattr(db, "sql", lambda query, **options: plain(LONG))
        timer = threading.Timer(0.3, db.cancel)
        timer.start()
        assert elapsed(lambda: db.circuit("target = 1"), "cancelled") < 10
        timer.join()


# --- stores that vanish -----------------------------------------------------------------------


@pytest.mark.parametrize("gone", [".", "shards", "store.json"])
def test_a_store_that_vanished(path, gone):
    with ng.open(path) as db:
        before = len(db)
        target = path / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        for call in (db.refresh, lambda: ng.open(path)):
            with pytest.raises(ng.StoreError) as raised:
                call()
            assert str(path) in str(raised.value)
            assert "\n" not in str(raised.value)
        assert len(db) == before  # it goes on with what it saw


@pytest.mark.parametrize("gone", [".", "shards"])
def test_the_commands_say_so(path, gone, capsys):
    shutil.rmtree(path / gone)
    for command in (["info"], ["sql"], ["compact"]):
        argv = [*command, str(path), *(["SELECT 1"] if command == ["sql"] else [])]
        assert main.main(argv) == 6
        said = capsys.readouterr().err
        assert "expected" in said or "must be a folder" in said
        assert said.count("\n") == 1
    assert main.main(["verify", str(path), "--sample", "0"]) == 6
    if gone == "shards":
        assert "shards: expected a folder, found none" in capsys.readouterr().out


def test_shards_of_a_condition_that_vanished(network, tmp_path):
    path = shutil.copytree(network, tmp_path / "s.nrm")
    with ng.open(path) as db:
        shutil.rmtree(path / "conditions" / "b" / "shards")
        for call in (db.refresh, lambda: ng.open(path)):
            with pytest.raises(ng.StoreError, match="the condition b of the store is damaged"):
                call()
        assert set(db._conditions) == {"b"}


def test_another_store_in_its_place(path, tmp_path):
    with ng.open(path) as db:
        shutil.rmtree(path)
        make(path, coverage=0.5)
        with pytest.raises(ng.StoreError, match=r"another store is at .+: open it anew"):
            db.refresh()
        assert len(db) == 3
        shutil.rmtree(path)
        write(make(path), [record(7)])  # the same settings: the same store, extracted again
        db.refresh()
        assert db.sql("SELECT key FROM inputs").fetchall() == [("input7",)]


# --- choices of nothing -----------------------------------------------------------------------

NOTHING = "key = 'nothing'"
CHOICES = {
    "circuit": lambda db: db.circuit(NOTHING),
    "contrast": lambda db: db.contrast(NOTHING, "target = 1"),
    "contrast-b": lambda db: db.contrast("target = 1", NOTHING),
    "stability": lambda db: db.stability(NOTHING),
    "clusters": lambda db: db.clusters(NOTHING),
    "prototypes": lambda db: db.prototypes(db.circuit("target = 1"), NOTHING),
    "references": lambda db: db.references(ng.Layer("0")[1], where=NOTHING),
    "faithfulness": lambda db: ng.evaluate.faithfulness(db, db.circuit("target = 1"), NOTHING),
    "materialize": lambda db: db.materialize(ng.Layer("0")[1], name="c", where=NOTHING),
}


@pytest.mark.parametrize("which", CHOICES)
def test_a_where_that_chooses_nothing(network, which):
    with ng.open(network) as db:
        with pytest.raises(ng.InputError, match=f'^no input is chosen by where "{NOTHING}"'):
            CHOICES[which](db)
        db.refresh()
        assert set(db._conditions) == {"b"}


def test_commands_whose_where_chooses_nothing(network, capsys):
    for argv in (
        ["circuit", str(network), "--where", NOTHING],
        ["contrast", str(network), NOTHING, "target = 1"],
        ["materialize", str(network), "0[1]", "--name", "c", "--where", NOTHING],
    ):
        assert main.main(argv) == 3
        assert "no input is chosen by where" in capsys.readouterr().err


# --- commits by time --------------------------------------------------------------------------


def committed(path, wanted, seconds=20):
    """Wait until so many inputs, and failures, are there."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        found = Snapshot(path)
        if (len(found.entries), len(found.failures)) == wanted:
            return True
        time.sleep(0.02)
    return False


def test_what_is_added_is_committed_after_a_time(path):
    with Writer(path, seconds=0.3) as writer:
        writer.add(record(20))
        assert len(Snapshot(path).entries) == 3
        assert committed(path, (4, 0))  # while nothing else happens
        writer.fail("broken", "why")
        assert committed(path, (4, 1))
        for number in range(21, 60):  # and while it is never idle
            writer.add(record(number))
            time.sleep(0.02)
        assert len(Snapshot(path).entries) > 10
        made = len(writer.shards)
    assert 4 <= made <= 12
    assert len(Snapshot(path).entries) == 3 + 40


def test_a_minute_is_the_limit():
    import inspect

    assert 30 <= inspect.signature(Writer).parameters["seconds"].default < 60


@pytest.mark.parametrize("job", ["extract", "materialize"])
def test_a_slow_run_commits_by_time(network, tmp_path, monkeypatch, job):
    """Each item sees that those before it are committed, though shards are far from full."""
    from nrm_graph.database import Database
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
    shutil.copytree(network, path)
    folder = path / "conditions" / "c"
    plain = Database.measure

    def measure(db, *args, **options):
        seen.append(not seen or committed(folder, (len(seen), 0)))
        return plain(db, *args, **options)

    monkeypatch.setattr(Database, "measure", measure)
    with ng.open(path) as db:
        db.materialize(ng.Layer("0")[1], name="c", progress=False)
        assert seen == [True] * len(db)
    assert conditions.folder_of(path, "c") == folder
