"""Which SQL a store runs: queries of its own tables, and nothing that reads or writes elsewhere."""

import pytest
from helpers.tiny_stores import checksums

import nrm_graph as ng
from nrm_graph.store.read.sql_guard import check_statement

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def db(two_targets):
    with ng.open(two_targets) as opened:
        yield opened


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
    "WITH RECURSIVE \"{file}\"(r) AS (SELECT relevance FROM '{file}' UNION ALL "
    'SELECT r FROM "{file}" WHERE false) SELECT * FROM "{file}"',
    "WITH RECURSIVE \"{file}\"(r) AS (WITH a AS (SELECT relevance FROM '{file}') SELECT relevance "
    'FROM a UNION ALL SELECT r FROM "{file}" WHERE false) SELECT * FROM "{file}"',
    "WITH RECURSIVE \"{file}\"(r) AS (SELECT 1.5 UNION ALL SELECT relevance FROM '{file}' "
    'UNION ALL SELECT r FROM "{file}" WHERE false) SELECT * FROM "{file}"',
    "WITH RECURSIVE sqlite_master AS (SELECT name FROM sqlite_master UNION ALL "
    "SELECT name FROM sqlite_master WHERE false) SELECT * FROM sqlite_master",
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
def test_only_queries_of_the_store_run(db, two_targets, attack):
    before = checksums(two_targets)
    file = next((two_targets / "shards").glob("*.edges.parquet"))
    tensors = next((two_targets / "shards").glob("*.tensors.parquet"))
    with pytest.raises(ng.QueryError):
        db.sql(attack.format(file=file, folder=two_targets, tensors=tensors)).fetchall()
    assert checksums(two_targets) == before


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
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL (WITH a AS (SELECT n + 1 AS m FROM t) "
        "SELECT m FROM a, (SELECT max(n) FROM t) WHERE m < 5)) SELECT sum(n) FROM t",
        "WITH RECURSIVE edges(n) AS (SELECT count(*) FROM nodes UNION ALL "
        "SELECT n + 1 FROM edges WHERE n < 5) SELECT * FROM edges",
        "SELECT ntile(2) OVER w, rank() OVER w, dense_rank() OVER w, percent_rank() OVER w, "
        "cume_dist() OVER w, lead(relevance) OVER w, first_value(relevance) OVER w, "
        "last_value(relevance) OVER w, nth_value(relevance, 2) OVER w, fill(relevance) OVER w "
        "FROM edges WINDOW w AS (ORDER BY relevance)",
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
