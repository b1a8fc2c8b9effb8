"""SQL over a store: what it may read, how it ends, and what it sees."""

import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from helpers.tiny_stores import all_rows, checksums, make, record, tables, write

import nrm_graph as ng
from nrm_graph.store.format.listing import read_manifests
from nrm_graph.store.read.sql_guard import check_statement
from nrm_graph.store.write.writer import Writer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("sql") / "s.nrm")
    return write(folder, [record(i, t, metadata={"n": i}) for i in range(4) for t in range(2)])


@pytest.fixture(scope="module")
def db(path):
    with ng.open(path) as opened:
        yield opened


FILE = "{file}"
ATTACKS = [
    # statements
    "COPY (SELECT 1) TO '{file}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "WITH a AS (COPY (SELECT 1) TO '{file}') SELECT * FROM a",
    "WITH a AS (INSERT INTO layers VALUES (1) RETURNING *) SELECT * FROM a",
    "WITH a AS (DELETE FROM layers RETURNING *) SELECT * FROM a",
    "WITH a AS (UPDATE layers SET name = 'x' RETURNING *) SELECT * FROM a",
    "INSERT INTO layers SELECT * FROM layers",
    "ATTACH '{file}' AS x",
    "EXPORT DATABASE '{folder}'",
    "IMPORT DATABASE '{folder}'",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP MACRO m() AS TABLE SELECT * FROM read_text('/etc/passwd')",
    "CREATE SECRET s (TYPE s3)",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{file}'",
    "SELECT 1 /* ; */; DROP VIEW edges",
    "SET memory_limit = '1GB'",
    "RESET temp_directory",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "USE memory",
    "INSTALL httpfs",
    "LOAD json",
    "DROP VIEW edges",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN ANALYZE SELECT 1",
    "MERGE INTO layers USING layers b ON true WHEN MATCHED THEN DELETE",
    "BEGIN TRANSACTION",
    "PIVOT edges ON src_layer USING sum(relevance)",
    "",
    ";",
    "not sql at all",
    # files as tables
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '{file}'",
    "FROM '{file}'",
    'SELECT * FROM "{file}"',
    "TABLE '{file}'",
    "SELECT * FROM edges POSITIONAL JOIN '{file}'",
    "SELECT * FROM edges, LATERAL (SELECT * FROM '{file}')",
    "SELECT * FROM (SELECT 1) WHERE EXISTS (FROM '{file}')",
    "UNPIVOT '{file}' ON relevance",
    "DESCRIBE '{file}'",
    "SUMMARIZE '{file}'",
    "SHOW '{file}'",
    # a CTE's name counts only where DuckDB sees the CTE too
    "SELECT * FROM (WITH \"{file}\" AS (SELECT 1) SELECT 1), '{file}'",
    'WITH "{file}" AS (SELECT * FROM \'{file}\') SELECT * FROM "{file}"',
    "WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a",
    "SELECT * FROM '{tensors}'",
    # table functions, wherever they stand
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM parquet_scan('{file}')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_json_auto('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM parquet_kv_metadata('{file}')",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('edges')",
    "SELECT * FROM query_table(['edges', '{file}'])",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM sql_auto_complete('SEL')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM pragma_table_info('edges')",
    "SELECT * FROM summary((SELECT 1))",
    "SELECT * FROM histogram('edges', 'relevance')",
    "SELECT * FROM edges e, LATERAL (SELECT * FROM read_csv('/etc/passwd')) g",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT [x for x in (SELECT list(content) FROM read_text('/etc/passwd'))]",
    "SELECT * FROM edges WHERE relevance IN (SELECT size FROM read_blob('{file}'))",
    "SELECT * FROM edges JOIN glob('*') g ON true",
    "SELECT * FROM edges ASOF JOIN read_csv('/etc/passwd') g ON relevance >= column0",
    "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM read_csv('x')) SELECT * FROM t",
    "SELECT 1 UNION ALL SELECT content FROM read_text('/etc/passwd')",
    "SELECT * FROM edges ORDER BY (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM edges LIMIT (SELECT count(*) FROM glob('*'))",
    "SELECT * FROM edges QUALIFY (SELECT count(*) FROM glob('*')) > row_number() OVER ()",
    "SELECT count(*) FILTER ((SELECT count(*) FROM glob('*')) > 1) FROM edges",
    "SELECT COLUMNS(c -> (SELECT count(*) FROM glob('*')) > 0) FROM edges",
    "SELECT * REPLACE ((SELECT content FROM read_text('x')) AS relevance) FROM edges",
    "VALUES ((SELECT content FROM read_text('/etc/passwd')))",
    "SELECT * FROM system.main.read_text('/etc/passwd')",
    "SELECT * FROM READ_TEXT('/etc/passwd')",
    "SELECT * FROM \"read_text\"('/etc/passwd')",
    "SELECT * FROM repeat_row(1, num_rows = 5)",
    "SELECT * FROM checkpoint()",
    "SELECT * FROM enable_logging()",
    # functions that do more than compute
    "SELECT getenv('HOME')",
    "SELECT current_setting('temp_directory')",
    "SELECT getvariable('x')",
    "SELECT 'HOME'.getenv()",
    "SELECT [getenv(x) for x in ['HOME']]",
    "SELECT COLUMNS(c -> getenv(c) IS NULL) FROM edges",
    "SELECT nextval('s')",
    "SELECT setseed(0.5)",
    "SELECT write_log('x')",
    "SELECT sleep_ms(1)",
    "SELECT pg_sleep(1)",
    "SELECT current_query()",
    "SELECT current_database()",
    "SELECT no_such_function(1)",
    "SELECT json_serialize_plan('SELECT * FROM edges')",
    "SELECT json_deserialize_sql(json_serialize_sql('SELECT 1'))",
    "SELECT which_secret('x', 'y')",
    "FROM range((SELECT count(*) FROM glob('*')))",
    "SELECT * FROM unnest((SELECT list(content) FROM read_text('/etc/passwd')))",
    "SELECT * FROM edges WHERE relevance > ALL (SELECT size FROM read_blob('{file}'))",
    "SELECT 1 FROM edges GROUP BY GROUPING SETS ((getenv('HOME')), ())",
    "SELECT * FROM edges JOIN nodes ON getenv('HOME') = 'x'",
    "SELECT list_transform([1], lambda x: (SELECT count(*) FROM glob('*')) + x)",
    "SELECT apply(['HOME'], lambda x: getenv(x))",
    "SELECT * FROM (DESCRIBE SELECT * FROM read_csv('/etc/passwd'))",
    "SUMMARIZE SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM (SHOW DATABASES)",
    "SELECT * FROM (SELECT * FROM edges) PIVOT (sum(relevance) FOR dst_unit IN "
    "(SELECT size FROM read_blob('{file}')))",
    "SELECT * FROM edges AT (VERSION => (SELECT count(*) FROM glob('*')))",
    "WITH RECURSIVE t(n) USING KEY (n) AS (SELECT 1 UNION ALL SELECT size FROM "
    "read_blob('{file}')) SELECT * FROM t",
    "WITH a AS MATERIALIZED (SELECT * FROM glob('*')) SELECT 1",
    "SELECT max(relevance ORDER BY getenv('HOME')) FROM edges",
    "SELECT sum(relevance) OVER (PARTITION BY getenv('HOME')) FROM edges",
    "SELECT CASE WHEN true THEN getenv('HOME') END",
    "SELECT {{'a': getenv('HOME')}}, [getenv('HOME')]",
    "SELECT TRY(getenv('HOME'))",
    "VALUES (getenv('HOME'))",
    "SELECT DISTINCT ON (getenv('HOME')) * FROM edges",
    "SELECT relevance FROM edges GROUP BY getenv('HOME'), relevance",
    "SELECT sum(relevance) OVER (ORDER BY current_setting('threads')) FROM edges",
    # tables of the engine
    "SELECT * FROM duckdb_settings",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM main.edges",
    "SELECT * FROM temp.edges",
    "SELECT * FROM memory.main.layers",
    "SELECT * FROM (WITH duckdb_settings AS (SELECT 1) SELECT 1), duckdb_settings",
    "SELECT * FROM sys",  # a variable of the caller is no table
    "SELECT * FROM db",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_only_queries_of_the_store_run(db, path, attack):
    before = checksums(path)
    file = next((path / "shards").glob("*.edges.parquet"))
    tensors = next((path / "shards").glob("*.tensors.parquet"))
    with pytest.raises(ng.QueryError):
        db.sql(attack.format(file=file, folder=path, tensors=tensors)).fetchall()
    assert checksums(path) == before


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM edges",
        "FROM nodes SELECT unit",
        "TABLE layers",
        "VALUES (1), (2)",
        "SELECT 1 UNION SELECT 2 INTERSECT SELECT 2",
        "WITH a AS (SELECT * FROM edges), b AS (SELECT * FROM a) SELECT count(*) FROM b",
        "WITH A AS MATERIALIZED (SELECT * FROM Edges) SELECT count(*) FROM a",
        "WITH edges AS (SELECT * FROM edges) SELECT count(*) FROM edges",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) "
        "SELECT sum(n) FROM t",
        "WITH RECURSIVE w AS (SELECT dst_unit u, relevance r FROM edges WHERE dst_layer = 1 "
        "UNION ALL SELECT e.src_unit, r * e.conditional FROM w JOIN edges e ON e.dst_unit = w.u "
        "AND e.dst_layer = 2) SELECT count(*) FROM w",
        "SELECT * FROM range(3), generate_series(1, 2), unnest([1, 2])",
        "SELECT unnest([1, 2]), [x + 1 for x in [1, 2]], list_transform([1], lambda x: x * 2)",
        "SELECT COLUMNS(lambda c: c LIKE 'dst%') FROM edges",
        "SELECT * EXCLUDE (relevance) REPLACE (dst_unit + 1 AS dst_unit) FROM edges",
        "SELECT coalesce(NULL, 1), nullif(1, 2), CASE WHEN true THEN 1 END, if(true, 1, 2), "
        "CAST('1' AS INTEGER), 1 IN (1, 2), 'a' LIKE 'b', 'a' ~ 'b', extract(year FROM now()), "
        "abs(-1), greatest(1, 2), random(), 1 BETWEEN 0 AND 2, 'a' || 'b', {'a': 1}, [1][1]",
        "SELECT dst_layer, sum(relevance) AS s, avg(abs(relevance)), stddev(relevance), "
        "quantile_cont(relevance, 0.5), arg_max(src_unit, relevance), count(*) FILTER (src_unit=1) "
        "FROM edges GROUP BY ALL HAVING s > -100 ORDER BY ALL LIMIT 5 OFFSET 0",
        "SELECT *, row_number() OVER (PARTITION BY input_id ORDER BY relevance DESC) AS n, "
        "lag(relevance) OVER w FROM edges WINDOW w AS (ORDER BY relevance) QUALIFY n <= 2",
        "SELECT * FROM edges e, LATERAL (SELECT e.relevance * 2 AS twice)",
        "SELECT (SELECT max(relevance) FROM nodes n WHERE n.input_id = e.input_id) FROM edges e",
        "SELECT * FROM edges WHERE EXISTS (SELECT 1 FROM inputs WHERE key = 'input0')",
        "SELECT * FROM (SELECT unit, layer_id FROM nodes) PIVOT (count(*) FOR layer_id IN (0, 1))",
        "UNPIVOT (SELECT relevance FROM nodes) ON relevance",
        "SELECT * FROM nodes POSITIONAL JOIN layers",
        "SELECT * FROM nodes TABLESAMPLE 50%",
        "DESCRIBE edges",
        "SUMMARIZE nodes",
        "SELECT src, dst FROM flows",
        "SELECT * FROM failures",
        "SELECT 1;",
        "-- a comment\nSELECT 1",
    ],
)
def test_queries_of_analysts_run(db, query):
    db.sql(query).fetchall()


STORED = ["edges", "failures", "flows", "inputs", "layers", "nodes"]


def test_tables_are_listed(db, tmp_path):
    assert db.sql("SHOW TABLES").fetchall() == [(name,) for name in STORED]
    more = {"more": pa.table({"key": ["a"]})}
    listed = db.sql("SELECT name FROM (SHOW TABLES) JOIN inputs ON true", tables=more).fetchall()
    assert {name for (name,) in listed} == {*STORED, "more"}
    assert len(listed) == 8 * 7
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


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SHOW DATABASES", "SHOW databases is not allowed: SHOW TABLES, DESCRIBE and SUMMARIZE"),
        ("SHOW TABLES FROM main", "SHOW TABLES FROM is not allowed: SHOW TABLES, DESCRIBE"),
        ("SHOW edgse", "there is no table 'edgse' in a store: expected one of edges, failures"),
        ("DESCRIBE edgse", "there is no table 'edgse' in a store: expected one of edges, failures"),
        ("SELECT abss(1)", r"there is no function abss\(\): did you mean abs"),
        ("SELECT nextval('s')", r"nextval\(\) is not allowed in a query: it does more than comp"),
        ("DROP TABLE edges", "only a single SELECT is allowed .*: nothing that writes, sets or op"),
    ],
)
def test_what_is_refused_is_said_as_it_is(db, query, words):
    with pytest.raises(ng.QueryError, match=words):
        db.sql(query)


def test_the_check_names_the_tables_that_are_read():
    views = {"inputs", "edges", "flows"}
    assert check_statement("SELECT * FROM Edges JOIN inputs USING (input_id)", views) == {
        "edges",
        "inputs",
    }
    assert check_statement("WITH edges AS (SELECT 1) SELECT * FROM edges", views) == set()


def test_deep_and_long_queries_are_refused(db):
    with pytest.raises(ng.QueryError, match=r"nested|parsed|SELECT"):
        db.sql("SELECT " + "(" * 20000 + "1" + ")" * 20000)
    with pytest.raises(ng.QueryError, match="characters"):
        db.sql("SELECT " + "1 + " * 300_000 + "1")


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


def test_inputs_restrict_every_table(db, path):
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


def test_spilled_data_stays_out_of_the_store(db, path):
    spill = db._engine._con.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]
    assert not str(spill).startswith(str(path))
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


@pytest.mark.parametrize("method", ["fetchall", "to_arrow_table"])
def test_ctrl_c_stops_a_long_query(path, method):
    command = [sys.executable, "-c", INTERRUPTED, str(path), method]
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
