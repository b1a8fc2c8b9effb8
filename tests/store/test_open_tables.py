"""Tables for other tools: live files, a DuckDB connection, and what reads through it."""

from __future__ import annotations

import shutil

import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from helpers.compacted import condition_of, twice
from helpers.tiny_stores import checksums, make, record, write

import nrm_graph as ng
from nrm_graph.store.write.deletion import delete


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A store whose files hold all that must not be seen: what is replaced, stored twice, deleted.

    A field bears the name of a column that Arrow adds to every data set.
    """
    path = make(tmp_path_factory.mktemp("mixed") / "s.nrm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        odd = {'a.b "c"': "x", "__filename": "mine"}
        twice(path, record(0, metadata={"n": 1} | odd), record(1, metadata={"n": 1.5}))
        write(path, [record(n, metadata={"n": n}, label="dog") for n in (2, 3)])
        condition_of(path, numbers=range(4))
        write(path, [record(3, target=1, metadata={"late": True}, label="dog")])
        delete(path, ["input2"], progress=False)
    return path


@pytest.fixture(scope="module")
def db(mixed):
    with ng.open(mixed) as opened:
        yield opened


@pytest.fixture
def con(db):
    with db.connect() as opened:
        yield opened


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = make(tmp_path_factory.mktemp("other") / "s.nrm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        write(path, [record(n, label="fox") for n in (0, 3, 5)])
    with ng.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def joined(db, other):
    """Statements of some tests leave tables in it."""
    with ng.join({"a": db, "Other_1": other}) as opened:
        yield opened


def names(db):
    return [name for (name,) in db.sql("SHOW TABLES").fetchall()]


@pytest.mark.smoke
def test_a_connection_has_the_tables_that_sql_has(db, con):
    assert con.execute("SHOW TABLES").fetchall() == [(name,) for name in names(db)]
    assert "given_thresholds" in names(db)
    for name in names(db):
        for cursor in (con, con.cursor()):
            here, there = (
                asks(f"SELECT * FROM {name} ORDER BY ALL") for asks in (db.sql, cursor.sql)
            )
            assert (here.columns, here.types) == (there.columns, there.types)
            assert here.fetchall() == there.fetchall(), name
    assert len(con.execute("SELECT * FROM inputs WHERE \"__filename\" = 'mine'").fetchall()) == 1
    assert con.execute("SELECT DISTINCT key FROM flows ORDER BY 1").fetchall() == [
        ("input0",),
        ("input1",),
        ("input3",),
    ]


def test_reduced_and_bounded_tables_are_there(reduced_store):
    with ng.open(reduced_store) as db, db.connect() as con:
        assert "steps_layers" in names(db)
        for name in names(db):
            query = f"SELECT * FROM {name} ORDER BY ALL"
            assert con.sql(query).fetchall() == db.sql(query).fetchall(), name


def test_an_empty_store_has_its_tables(tmp_path):
    with ng.open(make(tmp_path / "s.nrm")) as db, db.connect() as con:
        for name in names(db):
            assert con.sql(f"SELECT * FROM {name}").columns == db.sql(f"FROM {name}").columns
        assert db.files("nodes") == ()
        assert (db.keys, db.inputs.fetchall()) == ((), [])
        assert [row[1] for row in db.layers.fetchall()] == ["x", "0", "1"]


def test_what_the_connection_can_do_beyond_sql(con):
    pivoted = con.execute("PIVOT inputs ON label USING count(*) GROUP BY target").fetchall()
    assert sorted(pivoted) == [(0, 2, 1), (1, 0, 1)]
    assert con.execute("DESCRIBE nodes").fetchall()[0][:2] == ("input_id", "BIGINT")
    assert {row[0] for row in con.execute("SUMMARIZE edges").fetchall()} >= {"relevance"}
    count = "SELECT count(*) FROM inputs WHERE label = "
    assert con.execute(f"{count}?", ["dog"]).fetchone() == (2,)
    assert con.execute(f"{count}$label", {"label": "cat"}).fetchone() == (2,)
    shown = con.execute("SELECT CAST(TIMESTAMPTZ '2020-01-01 09:00:00+01' AS VARCHAR)").fetchone()
    assert shown == ("2020-01-01 08:00:00+00",)
    con.execute("CREATE TABLE own AS SELECT * FROM nodes")
    con.execute("PREPARE asked AS SELECT count(*) FROM own WHERE unit = ?")
    assert con.execute("EXECUTE asked(0)").fetchone()[0] > 0
    con.register("frame", pa.table({"key": ["input0"]}))
    assert con.execute("SELECT count(*) FROM inputs JOIN frame USING (key)").fetchone() == (1,)


def test_only_what_is_asked_for_is_read(con):
    """Columns and conditions reach Arrow, which skips the rest in the files."""
    plan = con.sql("EXPLAIN SELECT sum(relevance) FROM given_nodes WHERE layer_id = 1")
    text = plan.fetchall()[0][1]
    scans = text[text.index("ARROW_SCAN") :]
    assert "relevance" in scans
    assert "layer_id" in scans
    assert "activation" not in scans
    assert "unit" not in scans


def test_closing(mixed):
    with ng.open(mixed) as db:
        con = db.connect()
        other = db.connect()
    other.execute("CREATE TABLE own (a INTEGER)")
    assert con.execute("SELECT count(*) FROM inputs").fetchone() == (4,)  # the database is closed
    with pytest.raises(duckdb.CatalogException):
        con.execute("FROM own")
    con.close()
    with pytest.raises(duckdb.ConnectionException):
        con.execute("SELECT 1")
    other.close()


def test_a_file_that_is_gone(mixed, tmp_path):
    path = shutil.copytree(mixed, tmp_path / "s.nrm")
    with ng.open(path) as db:
        con = db.connect()
        for file in db.files("edges"):
            file.unlink()
        with pytest.raises(duckdb.Error, match=r"edges\.parquet"):
            con.execute("SELECT sum(relevance) FROM edges").fetchall()
        con.close()
        for file in db.files("inputs"):
            file.unlink()
        with pytest.raises(ng.StoreError, match="no longer there"):
            db.connect()


HOSTILE = [
    "COPY (SELECT 1 AS a) TO '{edges}'",
    "COPY nodes TO '{edges}' (FORMAT parquet)",
    "COPY nodes TO '{folder}/shards/new.parquet'",
    "COPY nodes TO '{folder}' (FORMAT parquet, PARTITION_BY (layer_id), OVERWRITE)",
    "COPY nodes TO '/dev/stdout'",
    "CREATE TABLE t (a VARCHAR); COPY t FROM '/etc/hostname'",
    "EXPORT DATABASE '{folder}/export'",
    "IMPORT DATABASE '{folder}/export'",
    "ATTACH '{folder}/new.db' AS d",
    "ATTACH '{edges}' AS d (TYPE sqlite)",
    "ATTACH 'https://example.invalid/d.db' AS d",
    "SELECT * FROM '{edges}'",
    "SELECT * FROM read_parquet('{edges}')",
    "SELECT * FROM read_parquet('{folder}/shards/*.parquet')",
    "SELECT * FROM read_parquet('https://example.invalid/x.parquet')",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM parquet_metadata('{edges}')",
    "SELECT * FROM read_csv('/etc/hostname')",
    "SELECT * FROM sniff_csv('/etc/hostname')",
    "SELECT * FROM read_json('{folder}/store.json')",
    "SELECT * FROM read_text('{folder}/store.json')",
    "SELECT * FROM read_blob('{edges}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM query('FROM read_text(''/etc/hostname'')')",
    "SELECT * FROM query_table(['{edges}'])",
    "CREATE VIEW v AS SELECT * FROM read_parquet('{edges}')",
    "CREATE TYPE e AS ENUM (SELECT content FROM read_text('/etc/hostname'))",
    "PREPARE p AS COPY nodes TO '{folder}/p.csv'",
    "EXPLAIN ANALYZE COPY nodes TO '{folder}/p.csv'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{edges}'",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET GLOBAL allowed_paths = ['{edges}']",
    "SET allowed_directories = ['/']",
    "SET lock_configuration = false",
    "SET TimeZone = 'Europe/Berlin'",
    "SET python_enable_replacements = true",
    "SET temp_directory = '{folder}'",
    "SET profiling_output = '{folder}/profile.json'",
    "PRAGMA enable_profiling = 'json'",
    "PRAGMA profiling_output = '{folder}/profile.json'",
    "PRAGMA log_query_path = '{folder}/log'",
    "CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'x')",
    "INSERT INTO nodes VALUES (1, 1, 1, 1, 1)",
    "UPDATE nodes SET relevance = 0",
    "DELETE FROM inputs",
    "SELECT * FROM python_arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM mine",  # a variable of the caller is no table
]
if duckdb.__version__ >= "2":  # before, DuckDB ends the process, having written nothing
    HOSTILE.append("CALL enable_logging('QueryLog', storage='file', storage_path='{folder}/logs')")


@pytest.mark.parametrize("statement", HOSTILE)
def test_no_statement_reaches_a_file_or_a_setting(mixed, db, con, joined, statement):
    mine = pd.DataFrame({"a": [1]})  # noqa: F841
    before = checksums(mixed)
    edges = db.files("edges")[0]
    of_joined = joined.cursor()
    of_joined.execute("USE a")  # what names alone are of
    for cursor in (con, con.cursor(), joined, of_joined):
        with pytest.raises(duckdb.Error):
            cursor.execute(statement.format(edges=edges, folder=mixed)).fetchall()
    assert checksums(mixed) == before
    assert con.execute("SELECT count(*) FROM edges").fetchone() == (20,)
    assert joined.execute("SELECT count(*) FROM a.edges").fetchall() == [(20,)]


def test_several_stores_are_joined(db, other):
    joined = ng.join({"a": db, "Other_1": other})
    for cursor in (joined, joined.cursor()):
        for schema, one in (("a", db), ("Other_1", other)):
            for name in names(one):
                here = cursor.sql(f"SELECT * FROM {schema}.{name} ORDER BY ALL")
                there = one.sql(f"SELECT * FROM {name} ORDER BY ALL")
                assert (here.columns, here.types) == (there.columns, there.types)
                assert here.fetchall() == there.fetchall(), (schema, name)
    query = (
        "SELECT key, a.inputs.label, other_1.inputs.label FROM a.inputs "
        "JOIN other_1.inputs USING (key, target) ORDER BY key"
    )
    assert joined.execute(query).fetchall() == [("input0", "cat", "fox"), ("input3", "dog", "fox")]
    cursor = joined.cursor()
    for schema, one in (("a", db), ("other_1", other)):
        cursor.execute(f"USE {schema}")
        assert cursor.execute("SHOW TABLES").fetchall() == [(name,) for name in names(one)]
        assert cursor.execute("SELECT count(*) FROM flows").fetchone() == (
            len(one.sql("FROM flows")),
        )
    assert joined.execute("SHOW TABLES").fetchall() == []
    with pytest.raises(duckdb.CatalogException):
        joined.execute("FROM edges")
    joined.close()


def test_a_joined_connection_outlives_its_databases(mixed):
    with ng.open(mixed) as db:
        con = ng.join({"select": db, "b": db})
    assert con.execute('SELECT count(*) FROM "select".inputs, b.inputs').fetchone() == (16,)
    con.close()
    with pytest.raises(duckdb.ConnectionException):
        con.execute("SELECT 1")


@pytest.mark.parametrize(
    "name",
    ["", "1a", "a b", 'a"; DROP', "a.b", "ä", "main", "Stored", "temp", "PG_CATALOG", 3, None],
)
def test_names_of_joined_stores(db, name):
    with pytest.raises(ng.InputError, match=r"cannot name a store: expected letters"):
        ng.join({name: db})


def test_what_cannot_be_joined(db):
    for databases in ({}, [db], db, None):
        with pytest.raises(ng.InputError, match="expected a mapping of name to Database"):
            ng.join(databases)
    with pytest.raises(ng.InputError, match="'b' must be a Database, found str"):
        ng.join({"a": db, "b": "store.nrm"})
    with pytest.raises(ng.InputError, match=r"'A' cannot name a store: .* each name once"):
        ng.join({"a": db, "A": db})


def test_files_are_those_that_count(mixed, db):
    everything = sorted((mixed / "shards").glob("*.edges.parquet"))
    live = list(db.files("edges"))
    assert set(live) < set(everything)
    rows = {len(fs): ds.dataset(list(map(str, fs))).count_rows() for fs in (everything, live)}
    counted = len(db.sql("FROM edges"))
    assert rows[len(everything)] > counted == 20
    query = (
        "SELECT * EXCLUDE (filename) FROM read_parquet(?, filename = true) "
        "QUALIFY filename = min(filename) OVER (PARTITION BY input_id) ORDER BY ALL"
    )
    for table in ("nodes", "edges"):
        paths = list(map(str, db.files(table)))
        assert duckdb.execute(query, [paths]).fetchall() == (
            db.sql(f"FROM {table} ORDER BY ALL").fetchall()
        )
    # Of a condition, what joins with inputs.
    paths = list(map(str, db.files("given_edges")))
    ids = db.sql("SELECT input_id FROM inputs").to_arrow_table()  # noqa: F841
    own = duckdb.execute(
        query.replace("QUALIFY", "SEMI JOIN ids USING (input_id) QUALIFY"), [paths]
    )
    assert own.fetchall() == db.sql("FROM given_edges ORDER BY ALL").fetchall()


def test_files_of_chosen_inputs(db):
    for table in ("inputs", "nodes", "edges", "tensors"):
        assert all(path.is_file() for path in db.files(table))
    chosen = db.files("nodes", where="label = 'dog' AND target = 1")
    ids = {i for (i,) in db.sql("SELECT input_id FROM inputs WHERE target = 1").fetchall()}
    assert len(chosen) == 1
    assert set(duckdb.read_parquet(str(chosen[0]))["input_id"].fetchall()) == {(i,) for i in ids}
    assert set(db.files("nodes", where="key = 'input0'")) < set(db.files("nodes"))
    assert db.files("NODES", where="false") == ()
    for wrong in ("flows", "layers", "thresholds", "given_tensors", "../x", "", 3, None):
        with pytest.raises(ng.InputError, match=r"no file holds the table .* db.connect\(\)"):
            db.files(wrong)
    with pytest.raises(ng.QueryError, match="one SQL condition"):
        db.files("nodes", where="true) OR (true")


def test_inputs_keys_and_layers(db, tmp_path):
    assert db.keys == ("input0", "input1", "input3")
    assert [row[1] for row in db.inputs.fetchall()] == ["input0", "input1", "input3", "input3"]
    assert db.layers.columns[:2] == ["layer_id", "name"]
    path = write(
        make(tmp_path / "s.nrm"), [record(n, item=place) for n, place in ((0, 2), (1, 1), (2, 0))]
    )
    with ng.open(path) as other:
        assert other.keys == ("input2", "input1", "input0")
        assert tuple(row[1] for row in other.inputs.fetchall()) == other.keys


def test_text_in_double_quotes(db):
    for query in (
        'SELECT * FROM inputs WHERE label = "cat"',
        'SELECT * FROM inputs i WHERE i."cat" = 1',
        "WITH a AS (SELECT * FROM inputs WHERE label IN ('dog', \"cat\")) SELECT * FROM a",
    ):
        with pytest.raises(ng.QueryError, match=r"\"cat\" in double quotes .*: 'cat'$"):
            db.sql(query)
    with pytest.raises(ng.QueryError, match=r"single quotes: 'the cat''s'$"):
        db.circuit('label = "the cat\'s"')
    with pytest.raises(ng.QueryError) as refusal:
        db.sql("SELECT * FROM inputs WHERE nothing = 3")
    assert "quotes" not in str(refusal.value)


def test_polars_and_pandas(db, con):
    query = "SELECT key, sum(relevance) AS total FROM flows GROUP BY key ORDER BY key"
    expected = db.sql(query).fetchall()
    frame = polars.read_database(query, con)
    assert frame.rows() == expected
    assert frame.schema["total"] == polars.Float64
    batches = polars.read_database(query, con, iter_batches=True, batch_size=2)
    assert polars.concat(batches).rows() == expected
    named = polars.read_database(
        "SELECT key FROM inputs WHERE label = $label ORDER BY key",
        con,
        execute_options={"parameters": {"label": "dog"}},
    )
    assert named["key"].to_list() == ["input3", "input3"]
    assert [tuple(row) for row in con.execute(query).df().itertuples(index=False)] == expected
    lazily = polars.scan_parquet(db.files("edges", where="target = 1"))
    (total,) = db.sql(
        "SELECT count(*) FROM edges JOIN inputs USING (input_id) WHERE target = 1"
    ).fetchall()[0]
    assert lazily.select(polars.len()).collect().item() == total


@pytest.mark.parametrize("where", ["label = cat", "label IN (cat)", "label LIKE cat"])
def test_text_without_quotes_gets_a_hint(db, where):
    with pytest.raises(ng.QueryError, match="text takes single quotes: 'cat'"):
        db.sql(f"SELECT key FROM inputs WHERE {where}")
    with pytest.raises(ng.QueryError) as error:
        db.sql("SELECT nothing FROM inputs")
    assert "single quotes" not in str(error.value)
