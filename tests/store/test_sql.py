"""SQL over a store: its tables, how queries end, and what they see."""

import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from helpers.tiny_stores import all_rows, make, record, tables, write

import nrm_graph as ng
from nrm_graph.store.format.listing import read_manifests
from nrm_graph.store.read import sql
from nrm_graph.store.write.writer import Writer


@pytest.fixture(scope="module")
def db(two_targets):
    with ng.open(two_targets) as opened:
        yield opened


STORED = ["edges", "failures", "flows", "inputs", "layers", "nodes", "thresholds", "units"]


def test_tables_are_listed(db, tmp_path):
    assert db.sql("SHOW TABLES").fetchall() == [(name,) for name in STORED]
    more = {"more": pa.table({"key": ["a"]})}
    listed = db.sql("SELECT name FROM (SHOW TABLES) JOIN inputs ON true", tables=more).fetchall()
    assert {name for (name,) in listed} == {*STORED, "more"}
    assert len(listed) == (len(STORED) + 1) * len(db)
    for query in ("SHOW ALL TABLES", "DESCRIBE", "SHOW", "show all tables"):
        described = db.sql(query).to_arrow_table()
        rows = {row["name"]: row for row in described.to_pylist()}
        assert sorted(rows) == STORED
        for name, row in rows.items():  # as a look at each shows it
            for ask in (
                f"DESCRIBE {name}",
                f"SHOW {name.upper()}",
                f"DESCRIBE SELECT * FROM {name}",
            ):
                columns = db.sql(ask).fetchall()
                assert [c[:2] for c in columns] == list(
                    zip(row["column_names"], row["column_types"], strict=True)
                )
    with ng.open(make(tmp_path / "empty.nrm")) as empty:
        assert empty.sql("SHOW TABLES").fetchall() == [(name,) for name in STORED]
        assert empty.sql("DESCRIBE nodes").fetchall() == db.sql("DESCRIBE nodes").fetchall()


def test_tables_are_listed_without_a_look_into_files(tmp_path):
    path = write(make(tmp_path / "s.nrm"), [record(0)])
    with ng.open(path) as db:
        for file in (path / "shards").glob("*.parquet"):
            file.write_bytes(bytes(file.stat().st_size))
        assert db.sql("SHOW TABLES").fetchall() == [(name,) for name in STORED]
        with pytest.raises(ng.QueryError):
            db.sql("SELECT * FROM nodes")


def test_errors_of_values_are_query_errors(db):
    with pytest.raises(ng.QueryError, match="Could not convert"):
        db.sql("SELECT CAST(key AS INTEGER) FROM inputs").fetchall()
    with pytest.raises(ng.QueryError, match="no_such_column"):
        db.sql("SELECT no_such_column FROM edges")


def test_parameters_and_further_tables(db):
    more = pa.table({"key": ["input1", "input2"], "weight": [1.0, 2.0]})
    rows = db.sql(
        "SELECT sum(weight) FROM inputs JOIN more USING (key) WHERE target = ?",
        params=[1],
        tables={"more": more},
    ).fetchall()
    assert rows == [(3.0,)]
    for name in ("edges", "Edges", "a b", "x; DROP", "__layers", ""):
        with pytest.raises(ng.InputError, match="cannot name a table"):
            db.sql("SELECT 1", tables={name: more})
    for wrong in (3, None, "x", [1], {"a": [1]}, db.sql("SELECT 1")):
        with pytest.raises(ng.InputError, match="must be an Arrow table"):
            db.sql("SELECT 1", tables={"e": wrong})
    with pytest.raises(ng.InputError, match="a mapping of name to table"):
        db.sql("SELECT 1", tables=[more])
    with pytest.raises(ng.QueryError, match="no table 'more'"):
        db.sql("SELECT * FROM more")


def test_relations_chain(db):
    relation = db.sql("SELECT * FROM nodes")
    assert relation.columns == ["input_id", "layer_id", "unit", "relevance", "activation"]
    assert len(relation.limit(2).fetchall()) == 2
    assert relation.to_arrow_table().num_rows == len(relation) == 40
    assert len(relation.union(relation).fetchall()) == 80
    assert "input_id" in repr(relation)


def test_inputs_restrict_every_table(db, two_targets):
    chosen = db.sql("SELECT input_id FROM inputs WHERE key = 'input2'").fetchall()
    ids = {row[0] for row in chosen}
    assert len(ids) == 2
    for table in ("inputs", "nodes", "edges", "flows"):
        seen = db.sql(f"SELECT DISTINCT input_id FROM {table}", inputs=["input2"]).fetchall()
        assert {row[0] for row in seen} == ids
    one = next(iter(ids))
    assert db.sql("SELECT DISTINCT input_id FROM edges", inputs=[one]).fetchall() == [(one,)]
    assert db.sql("SELECT count(*) FROM edges", inputs=[]).fetchall() == [(0,)]
    with pytest.raises(ng.InputError, match="did you mean input2"):
        db.sql("SELECT 1", inputs=["inptu2"])


def test_one_input_opens_its_own_file_alone(tmp_path):
    path = make(tmp_path / "s.nrm")
    write(path, [record(i) for i in range(6)], shard_inputs=2)
    with ng.open(path) as db:
        shards = {p.name: len(p.inputs) for p in read_manifests(path / "shards")}
        assert list(shards.values()) == [2, 2, 2]
        owner = db._snapshot.shard_of[db._snapshot.by_key["input3"][0]]
        for name in shards:
            if name != owner:  # same size, so that open does not notice
                file = path / "shards" / f"{name}.edges.parquet"
                file.write_bytes(bytes(file.stat().st_size))
        assert db.sql("SELECT count(*) FROM edges", inputs=["input3"]).fetchall() == [(5,)]
        with pytest.raises(ng.QueryError):
            db.sql("SELECT count(*) FROM edges").fetchall()


def test_relations_of_before_survive_a_refresh(tmp_path):
    path = write(make(tmp_path / "s.nrm"), [record(0)])
    with ng.open(path) as db:
        old = db.sql("SELECT count(*) FROM inputs")
        write(path, [record(1)])
        assert len(db) == 1
        db.refresh()
        assert len(db) == 2
        assert old.fetchall() == [(1,)]
        assert db.sql("SELECT count(*) FROM inputs").fetchall() == [(2,)]


def test_a_pair_in_two_manifests_counts_once(tmp_path):
    path = make(tmp_path / "s.nrm")
    with Writer(path) as first, Writer(path) as second:  # neither sees what the other adds
        nodes, edges = tables(7)
        first.add(record(0, metadata={"who": "first"}))
        first.add(record(1, metadata={"who": "first"}))
        first.flush()
        second.add(record(0, metadata={"who": "second"}, nodes=nodes, edges=edges))
        second.add(record(2, metadata={"who": "second"}))
    with ng.open(path) as db:
        assert len(db) == 3
        rows = db.sql("SELECT key, who FROM inputs ORDER BY key").fetchall()
        assert rows == [("input0", "first"), ("input1", "first"), ("input2", "second")]
        assert db.sql("SELECT count(*) FROM edges").fetchall() == [(15,)]
        expected = sorted(record(0).edges["relevance"].to_pylist())
        for inputs in (["input0"], ["input0", "input2"], None):
            found = db.sql(
                "SELECT relevance FROM edges JOIN inputs USING (input_id) WHERE key = 'input0' "
                "ORDER BY relevance",
                inputs=inputs,
            ).fetchall()
            assert [row[0] for row in found] == expected
        (identity,) = db._snapshot.by_key["input0"]
        assert sorted(db._snapshot.rows(identity, "edges")["relevance"].to_pylist()) == expected


def test_metadata_types_that_disagree(tmp_path):
    path = make(tmp_path / "s.nrm")
    with Writer(path) as a, Writer(path) as b, Writer(path) as c:
        a.add(record(0, metadata={"n": 1, "Odd": 1, "filename": "a", "only a": 1, "none": None}))
        b.add(record(1, metadata={"N": 2.5, "odd": "x", "filename": "b", "none": None}))
        c.add(record(2, metadata={"n": None, "odd": True, 'q"uote': 1, "rowid": 5}))
    with ng.open(path) as db:
        rows = db.sql(
            'SELECT n, odd, filename, "only a", "none", "q""uote", "rowid" FROM inputs ORDER BY key'
        )
        assert [str(t) for t in rows.types] == [
            *("DOUBLE", "VARCHAR", "VARCHAR", "BIGINT", "VARCHAR", "BIGINT", "BIGINT"),
        ]
        assert rows.fetchall() == [
            (1.0, "1", "a", 1, None, None, None),
            (2.5, "x", "b", None, None, None, None),
            (None, "true", None, None, None, 1, 5),
        ]
        assert all_rows(db)["nodes"]


def test_a_partitioned_folder_name_is_no_column(tmp_path):
    path = write(make(tmp_path / "key=1" / "it's.nrm"), [record(0)])
    with ng.open(path) as db:
        assert db.sql("SELECT key FROM inputs").fetchall() == [("input0",)]


@pytest.mark.parametrize("most", [7, 8])
def test_where_tables_are_is_remembered_of_few_inputs(two_targets, monkeypatch, most):
    monkeypatch.setattr(sql, "REMEMBERED", most)
    with ng.open(two_targets) as db:
        assert len(db) == 8
        before = db.sql("SELECT count(*), sum(relevance) FROM edges").fetchall()
        assert db.sql("SELECT count(*), sum(relevance) FROM edges").fetchall() == before
        cursor = db._reader._con.cursor()
        value = cursor.execute("SELECT current_setting('parquet_metadata_cache')").fetchall()
        assert value == [(most >= 8,)]


def test_spilled_data_stays_out_of_the_store(db, two_targets):
    db.sql("SELECT 1").fetchall()  # the first query connects
    spill = db._reader._con.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]
    assert not str(spill).startswith(str(two_targets))
    assert spill not in ("", None)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import nrm_graph as ng
with ng.open(sys.argv[1]) as db:
    relation = db.sql(
        "SELECT sum(a.range * b.range % 7) FROM range(100000000) a, range(1000000) b"
    )
    try:
        print("running", flush=True)
        getattr(relation, sys.argv[2])()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", db.sql("SELECT count(*) FROM inputs").fetchall(), flush=True)
"""


@pytest.mark.parametrize(
    "method", ["fetchall", pytest.param("to_arrow_table", marks=pytest.mark.slow)]
)
def test_ctrl_c_stops_a_long_query(two_targets, method):
    command = [sys.executable, "-c", INTERRUPTED, str(two_targets), method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        began = time.monotonic()
        while child.poll() is None and time.monotonic() - began < 30:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(0.3)
            except subprocess.TimeoutExpired:
                continue
        child.kill()
        assert "interrupted [(8,)]" in child.stdout.read()
