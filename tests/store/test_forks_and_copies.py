"""An open database in forked children, in workers of a data loader, copied and pickled."""

import copy
import pickle
import shutil
import subprocess
import sys

import pytest
from helpers import forked
from helpers.processes import environment
from helpers.tiny_stores import all_rows, record, write

import nrm_graph as ng

FLOWS = 15


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


def test_an_open_database_answers_after_a_fork(three_inputs):
    told = run("fork", three_inputs)
    each = [
        f"0 {FLOWS}",
        f"0 {FLOWS}",
        f"0 (None, {FLOWS})",
        "relation",
        "relation",
        f"0 (None, {FLOWS})",
        f"0 (0, '{FLOWS}')",
    ]
    assert len(told) == len(each) + 4
    for line, wanted in zip(told, each, strict=False):
        if wanted == "relation":
            assert line.startswith("0 QueryError: this relation belongs to the process "), line
            assert line.endswith("call db.sql(...) here, which answers from the same snapshot")
        else:
            assert line == wanted
    assert told[-4:] == [f"0 {FLOWS}", "0 None", f"0 {FLOWS}", f"0 {FLOWS}"]


@pytest.mark.slow
def test_a_fork_while_threads_are_at_work(three_inputs):
    *children, stopped = run("busy", three_inputs)
    assert children == [f"0 {FLOWS}"] * 3
    assert stopped == "0 ['the query was cancelled']"


@pytest.mark.slow
def test_workers_of_a_data_loader(conditioned_store):
    assert run("loader", conditioned_store) == ["0 fork 3", "0 True", "0 True"]


@pytest.mark.slow
def test_workers_however_they_start(conditioned_store):
    told = run("everywhere", conditioned_store)
    assert told[:5] == ["0 fork 3", "0 forkserver 3", "0 spawn 3", "0 True", "0 True"]
    with ng.open(conditioned_store) as db:
        count = forked.ask(db)
    assert told[5:] == [f"0 {count} {count}"] * 3


def test_a_writer_belongs_to_its_process(three_inputs):
    *refused, closed, keys = run("writer", three_inputs)
    assert len(refused) == 3
    for line in refused:
        assert line.startswith("0 StoreError: this writer belongs to the process ")
        assert line.endswith("write from there, or open another writer here")
    assert closed == "0 None"
    assert keys == "0 [('input50',), ('input52',)]"
    assert {p.suffix for p in (three_inputs / "shards").iterdir()} == {".json", ".parquet"}


# --- copies -----------------------------------------------------------------------------------

COPIES = {
    "pickle": lambda db: pickle.loads(pickle.dumps(db)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_sees_the_same_snapshot(conditioned_store, tmp_path, how):
    path = shutil.copytree(conditioned_store, tmp_path / "s.nrm")
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


def test_a_copy_carries_no_networks(conditioned_store):
    with ng.open(conditioned_store) as db:
        plain = len(pickle.dumps(db))
        db.measure("k1", 1)
        all_rows(db)
        db.circuit("target = 1")
        assert len(db.partitions) == len(db.topology.layers)
        assert len(pickle.dumps(db)) < plain + 1000


def test_a_copy_of_what_is_gone(three_inputs):
    """It is copied all the same, and says what is wrong when it is asked."""
    db = ng.open(three_inputs)
    shutil.rmtree(three_inputs)
    for how in COPIES.values():
        twin = how(db)
        assert len(twin) == 3
        with pytest.raises(ng.QueryError, match="no longer there"):
            twin.sql("SELECT count(*) FROM nodes").fetchall()
        with pytest.raises(ng.StoreError, match="no store"):
            twin.refresh()


def test_a_pickle_is_read_elsewhere(three_inputs):
    code = (
        "import pickle, sys; db = pickle.load(sys.stdin.buffer); "
        "print(db.sql('SELECT count(*) FROM flows').fetchall()[0][0], 'torch' in sys.modules)"
    )
    with ng.open(three_inputs) as db:
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
def test_relations_are_not_copied(three_inputs, how):
    with ng.open(three_inputs) as db:
        relation = db.sql("SELECT 1 AS x")
        with pytest.raises(
            ng.QueryError, match=r"cannot be copied or pickled.+: copy the database"
        ):
            COPIES[how](relation)
        assert relation.fetchall() == [(1,)]
