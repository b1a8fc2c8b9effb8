"""Queries that end after a time or are cancelled, from this thread or another."""

import threading
import time

import pytest
from helpers import forked

import nrm_graph as ng
from nrm_graph.cli import main

FLOWS = 15


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
def test_a_timeout_stops_a_query(three_inputs, how, method):
    with ng.open(three_inputs) as db:
        relation = db.sql(LONG, timeout=0.2)
        spent = elapsed(
            lambda: how(lambda: getattr(relation, method)()),
            r"^the query was stopped after timeout=0\.2 s: allow more, or ask for less",
        )
        assert spent < 10
        assert db.sql("SELECT count(*) FROM flows", timeout=60).fetchall() == [(FLOWS,)]


def test_a_timeout_is_of_each_fetch(three_inputs):
    with ng.open(three_inputs) as db:
        relation = db.sql("SELECT count(*) FROM flows", timeout=1)
        for _ in range(2):
            time.sleep(0.6)
            assert relation.fetchall() == [(FLOWS,)]
        assert elapsed(db.sql(LONG, timeout=0.2).limit(1).fetchall, "timeout=0.2") < 10
        assert elapsed(lambda: db.sql(LONG, timeout=0.2).shape, "timeout=0.2") < 10


def test_a_timeout_holds_for_the_query_itself(three_inputs, monkeypatch):
    """Before there is a relation: here a view takes long to make."""
    from nrm_graph.store.read.unit_views import UnitViews

    monkeypatch.setattr(UnitViews, "queries", lambda _: {"flows": f"SELECT 1 AS x; {LONG}"})
    with ng.open(three_inputs) as db:
        spent = elapsed(lambda: db.sql("SELECT * FROM flows", timeout=0.3), "timeout=0.3")
        assert spent < 10


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan"), float("inf"), [1]])
def test_odd_timeouts_are_refused(three_inputs, timeout):
    with (
        ng.open(three_inputs) as db,
        pytest.raises(ng.InputError, match="number of seconds above 0"),
    ):
        db.sql("SELECT 1", timeout=timeout)


def test_the_command_takes_a_timeout(three_inputs, capsys):
    began = time.monotonic()
    assert main.main(["sql", str(three_inputs), LONG, "--timeout", "0.3"]) == 7
    assert time.monotonic() - began < 20
    assert "stopped after timeout=0.3 s" in capsys.readouterr().err
    assert main.main(["sql", str(three_inputs), "SELECT 5 AS x", "--timeout", "60"]) == 0
    assert main.main(["sql", str(three_inputs), "SELECT 5 AS x", "--timeout", "0"]) == 3
    assert "above 0" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["database", "relation"])
def test_another_thread_cancels(three_inputs, by):
    with ng.open(three_inputs) as db:
        relation = db.sql(LONG)
        other = db.sql("SELECT 1 AS x")
        timer = threading.Timer(0.3, db.cancel if by == "database" else relation.cancel)
        timer.start()
        assert elapsed(relation.fetchall, "^the query was cancelled$") < 10
        timer.join()
        assert other.fetchall() == [(1,)]
        # What is asked later is not affected.
        assert db.sql("SELECT count(*) FROM flows").fetchall() == [(FLOWS,)]


def test_the_main_thread_cancels_others(three_inputs):
    with ng.open(three_inputs) as db:
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


def test_closing_while_another_thread_asks(three_inputs):
    db, told = ng.open(three_inputs), []

    def work():
        with pytest.raises(ng.QueryError, match="cancelled"):
            db.sql(LONG).fetchall()
        told.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    while not db._running:
        time.sleep(0.01)
    time.sleep(0.2)
    db.close()  # DuckDB refuses to close a connection that is at work
    db.cancel()
    thread.join(20)
    assert told == [True]


def test_a_relation_cancels_its_own_calls_alone(three_inputs):
    with ng.open(three_inputs) as db:
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


def test_cancelling_nothing(three_inputs):
    with ng.open(three_inputs) as db:
        db.cancel()
        relation = db.sql("SELECT count(*) FROM flows")
        for cancel in (db.cancel, relation.cancel):
            cancel()
            assert relation.fetchall() == [(FLOWS,)]


def test_a_circuit_is_cancelled_too(conditioned_store, monkeypatch):
    with ng.open(conditioned_store) as db:
        plain = db.sql
        monkeypatch.setattr(db, "sql", lambda query, **options: plain(LONG))
        timer = threading.Timer(0.3, db.cancel)
        timer.start()
        assert elapsed(lambda: db.circuit("target = 1"), "cancelled") < 10
        timer.join()
