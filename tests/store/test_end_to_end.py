"""End to end: extraction, store, SQL and exact measures on the demo network."""

import hashlib
import itertools
import subprocess
import sys

import networkx as nx
import numpy as np
import pytest
import torch

import nrm_graph as ng
from nrm_graph.cli.demo.fashion_cnn import CLASSES, load_demo

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def demo():
    return load_demo()


@pytest.fixture(scope="module")
def db(demo, tmp_path_factory):
    model, data = demo
    path = tmp_path_factory.mktemp("store") / "relevance.nrm"
    rows = [{**d, "source": "test", "rank": i} for i, d in enumerate(data[:6])]
    return ng.extract(model, rows, path, classes=CLASSES, target=["predicted", 3], batch_size=4)


def checksums(path):
    return {
        str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob("*") if f.is_file()
    }


def test_two_targets_per_key(db):
    rows = db.sql("SELECT key, count(*) AS n, count(DISTINCT target) AS t FROM inputs GROUP BY key")
    counts = {key: (n, t) for key, n, t in rows.fetchall()}
    assert len(counts) == 6
    assert all(n == t for n, t in counts.values())
    several = [key for key, (n, _) in counts.items() if n == 2]
    with pytest.raises(ng.InputError, match="has the targets"):
        db.measure(several[0])
    assert db.measure(several[0], target=3).target == 3


def test_metadata_is_carried(db):
    assert db.sql("SELECT DISTINCT source FROM inputs").fetchall() == [("test",)]


def test_stored_tables_are_the_measures_own(db):
    for input_id, target in db.sql("SELECT input_id, target FROM inputs").fetchall():
        m = db.measure(input_id)
        assert m.target == target
        for layer in m.topology.layers:
            rows = db.sql(
                "SELECT unit, relevance FROM nodes WHERE layer_id = ? AND unit >= 0",
                inputs=[input_id],
                params=[layer.layer_id],
            ).fetchall()
            found = np.zeros(layer.n_neurons, np.float32)
            for unit, relevance in rows:
                found[unit] = relevance
            # Both are the same float32 sums, in batches of other sizes.
            scale = np.abs(m.marginal(layer.name)).max(initial=1e-30)
            np.testing.assert_allclose(found, m.marginal(layer.name), rtol=0, atol=2e-5 * scale)


def test_edges_sum_to_nodes_on_both_sides(db):
    worst = db.sql(
        """
        WITH out AS (SELECT input_id, dst_layer l, dst_unit u, sum(relevance::DOUBLE) r
                     FROM edges GROUP BY ALL),
             into_ AS (SELECT input_id, src_layer l, src_unit u, sum(relevance::DOUBLE) r
                      FROM edges WHERE src_unit >= 0 GROUP BY ALL),
             n AS (SELECT input_id, layer_id l, unit u, relevance r FROM nodes WHERE unit >= 0)
        SELECT max(abs(n.r - coalesce(out.r, 0))) FILTER (n.l > 0),
               max(abs(n.r - coalesce(into_.r, 0)))
                   FILTER (n.l < (SELECT max(layer_id) FROM layers))
        FROM n LEFT JOIN out USING (input_id, l, u) LEFT JOIN into_ USING (input_id, l, u)
        """
    ).fetchall()[0]
    assert max(worst) < 1e-5


def test_sql_graph_and_exact_events_agree(db):
    """Products of neuron-level q along paths are the exact joints (no skips here)."""
    key = db.sql("SELECT input_id FROM inputs ORDER BY input_id LIMIT 1").fetchall()[0][0]
    m = db.measure(key, dtype="float64")
    upper, lower = m.topology.layer("classifier.3"), m.topology.layer("classifier.0")
    target, features = m.target, m.topology.layer("features.6")
    rows = db.sql(
        """
        SELECT b.dst_unit, b.src_unit, sum(a.conditional::DOUBLE * b.conditional::DOUBLE)
        FROM edges a JOIN edges b ON b.dst_layer = a.src_layer AND b.dst_unit = a.src_unit
        WHERE a.dst_layer = $top AND a.dst_unit = $target AND b.src_layer = $low
        GROUP BY ALL ORDER BY abs(sum(a.conditional * b.conditional)) DESC, 1, 2 LIMIT 8
        """,
        inputs=[key],
        params={"top": upper.layer_id, "target": target, "low": features.layer_id},
    ).fetchall()
    graph = m.subgraph(top=1_000_000)
    assert isinstance(graph, nx.DiGraph)
    for middle, bottom, product in rows:
        event = ng.Layer("classifier.0").units([middle]) & ng.Layer("features.6").units([bottom])
        exact = m(event)
        path = [("features.6", bottom), ("classifier.0", middle), ("classifier.3", target)]
        walked = np.prod([graph.edges[step]["conditional"] for step in itertools.pairwise(path)])
        assert product == pytest.approx(exact, rel=1e-3, abs=1e-6)
        assert walked == pytest.approx(exact, rel=1e-9)
    assert lower.n_neurons == 64


def test_resume_writes_nothing_twice(db, demo):
    model, data = demo
    before = checksums(db.path)
    again = ng.extract(model, data[:4], db.path, classes=CLASSES, target=["predicted", 3])
    assert checksums(db.path) == before
    assert len(again) == len(db)


@pytest.mark.slow
def test_several_writer_threads_store_the_same(demo, tmp_path, monkeypatch):
    model, data = demo
    found = []
    for writers in (1, 3):
        monkeypatch.setattr("nrm_graph.extraction.extract._writers", lambda n=writers: n)
        path = tmp_path / f"{writers}.nrm"
        with ng.extract(model, data[:5], path, batch_size=2, progress=False) as db:
            found.append(
                [
                    db.sql(f"SELECT * FROM {table} ORDER BY ALL").fetchall()
                    for table in ("inputs", "nodes", "edges")
                ]
            )
            assert db.verify(sample=1).sound
        # Whether each of several threads gets a record depends on their pace.
        assert 1 <= len(list((path / "shards").glob("*.json"))) <= writers
    assert found[0] == found[1]


def test_one_key_with_another_content_is_an_error(db, demo):
    model, data = demo
    changed = [{**data[0], "input": data[0]["input"] * 0.5}]
    with pytest.raises(ng.StoreError, match="with another content"):
        ng.extract(model, changed, db.path, classes=CLASSES)


def test_another_composite_is_refused(db, demo):
    model, data = demo
    with pytest.raises(ng.StoreError, match="another composite"):
        ng.extract(model, data[:1], db.path, classes=CLASSES, composite="epsilon")


def test_pruned_stores_keep_their_totals(db, demo, tmp_path):
    """Row, column and grand totals of every pair of layers, out of the stored rows."""
    model, data = demo
    options = {"classes": CLASSES, "coverage": 0.9, "progress": False}
    pruned = ng.extract(model, data[:2], tmp_path / "s.nrm", **options)
    keys = [data[0]["key"], data[1]["key"]]
    ids = [
        i for (i,) in pruned.sql("SELECT input_id FROM inputs WHERE target = predicted").fetchall()
    ]
    whole = db.sql("SELECT * FROM edges", inputs=ids).to_arrow_table().to_pandas()
    mine = pruned.sql("SELECT * FROM edges", inputs=keys).to_arrow_table().to_pandas()
    assert len(mine) < 0.6 * len(whole)
    pair = ["input_id", "dst_layer", "src_layer"]
    for key, rows in whole[whole.src_unit >= 0].groupby(pair):
        found = mine[np.logical_and.reduce([mine[c] == k for c, k in zip(pair, key, strict=True)])]
        kept = found[(found.dst_unit >= 0) & (found.src_unit >= 0)]
        variation = rows.relevance.abs().sum()
        assert kept.relevance.abs().sum() >= 0.9 * variation * (1 - 1e-6)
        # Sums of some thousand float32 of the variation's size.
        tolerance = 1e-6 * variation
        assert abs(found.relevance.sum() - rows.relevance.sum()) < tolerance
        for side in ("dst_unit", "src_unit"):
            expected = rows.groupby(side).relevance.sum()
            sums = found[found[side] >= 0].groupby(side).relevance.sum()
            assert expected.subtract(sums, fill_value=0.0).abs().max() < tolerance
    lost = mine[(mine.src_unit == -3) & (mine.dst_unit >= 0)].groupby(["input_id", "dst_layer"])
    nodes = pruned.sql("SELECT * FROM nodes WHERE unit = -3").to_arrow_table().to_pandas()
    recorded = nodes.set_index(["input_id", "layer_id"]).relevance
    for key, total in lost.relevance.sum().items():
        assert recorded[key] == pytest.approx(total, abs=1e-6)
    with pytest.raises(ng.StoreError, match="coverage"):
        ng.extract(model, data[:2], pruned.path, classes=CLASSES, coverage=0.8, progress=False)


def test_rounded_and_short_tables(db, demo, tmp_path):
    model, data = demo
    found = ng.extract(
        model, data[:1], tmp_path / "s.nrm", top=50, mantissa_bits=10, progress=False
    )
    query = """SELECT dst_layer, src_layer, count(*) FROM edges
               WHERE dst_unit >= 0 AND src_unit >= 0 GROUP BY ALL"""
    assert max(n for _, _, n in found.sql(query).fetchall()) == 50
    (key,) = found.sql("SELECT input_id FROM inputs").fetchall()[0]
    strongest = """SELECT dst_layer, dst_unit, src_layer, src_unit, relevance FROM edges
                   WHERE dst_unit >= 0 AND src_unit >= 0 AND dst_layer = 4 ORDER BY ALL"""
    mine = found.sql(strongest, inputs=[key]).fetchall()
    whole = {row[:4]: row[4] for row in db.sql(strongest, inputs=[key]).fetchall()}
    for *edge, relevance in mine:
        assert relevance == pytest.approx(whole[tuple(edge)], rel=4.9e-4 + 1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"coverage": 0.0}, "above 0"),
        ({"coverage": "most"}, "a number"),
        ({"top": 0}, "positive number"),
        ({"mantissa_bits": 23}, "1 to 22"),
        ({"on_error": "ignore"}, "'stop' or 'skip'"),
        ({"batch_size": 0}, "at least 1"),
        ({"target": []}, "nothing to explain"),
        ({"target": "cat"}, "must be 'predicted'"),
    ],
)
def test_options_out_of_range_are_refused(demo, tmp_path, option, message):
    model, data = demo
    with pytest.raises(ng.InputError, match=message):
        ng.extract(model, data[:1], tmp_path / "s.nrm", **option)
    assert not (tmp_path / "s.nrm").exists()


def test_failed_inputs_are_skipped_and_recorded(demo, tmp_path):
    model, data = demo

    class Rows:
        """A data set, two items of which fail, and one of which is no image."""

        def __len__(self):
            return 6

        def __getitem__(self, i):
            if i == 0:
                raise OSError("the file is truncated")
            if i == 3:
                return {**data[3], "input": torch.full((1, 28, 28), torch.nan)}
            if i == 4:
                return {**data[4], "input": torch.ones(3, 28, 28)}
            return data[i]

    path = tmp_path / "s.nrm"
    with pytest.raises(ng.InputError, match="truncated"):
        ng.extract(model, Rows(), path, progress=False)
    db = ng.extract(model, Rows(), path, on_error="skip", batch_size=4, progress=False)
    keys = {key for (key,) in db.sql("SELECT key FROM inputs").fetchall()}
    assert keys == {data[i]["key"] for i in (1, 2, 5)}
    failures = dict(db.sql("SELECT * FROM failures").fetchall())
    assert failures.keys() == {"item 0", data[3]["key"], data[4]["key"]}
    assert "truncated" in failures["item 0"]
    assert "NaN" in failures[data[3]["key"]]
    assert "has shape" in failures[data[4]["key"]]


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{file}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
        "WITH a AS (COPY (SELECT 1) TO '{file}') SELECT * FROM a",
        "ATTACH '{file}' AS x",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('{file}')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT getenv('HOME')",
        "SELECT 1; SELECT 2",
        "SET memory_limit = '1GB'",
        "PRAGMA database_list",
        "INSTALL httpfs",
        "DROP VIEW edges",
        "not sql at all",
    ],
)
def test_sql_can_only_read_the_store(db, query):
    before = checksums(db.path)
    file = next((db.path / "shards").glob("*.edges.parquet"))
    with pytest.raises(ng.QueryError):
        db.sql(query.format(file=file)).fetchall()
    assert checksums(db.path) == before


def test_open_and_sql_need_no_torch_and_no_model(db):
    code = (
        "import sys, nrm_graph as ng\n"
        f"db = ng.open({str(db.path)!r})\n"
        "print(db.sql('SELECT count(*) FROM edges').fetchall()[0][0])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['nrm_graph.cli.demo.fashion_cnn'] = None\n"
        "i = db.sql('SELECT min(input_id) FROM inputs').fetchall()[0][0]\n"
        "print(db.measure(i)(ng.Layer('features.3')[2]))\n"
        "import nrm_graph.extraction.extract, nrm_graph.extraction.ray_workers\n"
        "import nrm_graph.circuits.ray_engine\n"
        "assert 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, value = done.stdout.split()
    assert int(count) == db.sql("SELECT count(*) FROM edges").fetchall()[0][0]
    first = db.sql("SELECT min(input_id) FROM inputs").fetchall()[0][0]
    assert float(value) == pytest.approx(db.measure(first)(ng.Layer("features.3")[2]), abs=1e-6)


def test_an_empty_store_has_empty_tables(db, tmp_path):
    import shutil

    copy = tmp_path / "empty.nrm"
    shutil.copytree(db.path, copy)
    for file in (copy / "shards").iterdir():
        file.unlink()
    empty = ng.open(copy)
    for table in ("inputs", "nodes", "edges", "flows"):
        assert empty.sql(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]


def test_a_truncated_file_is_found_at_open(db, tmp_path):
    import shutil

    copy = tmp_path / "cut.nrm"
    shutil.copytree(db.path, copy)
    file = next((copy / "shards").glob("*.edges.parquet"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ng.StoreError, match="truncated"):
        ng.open(copy)


@pytest.mark.parametrize(
    ("path", "message"), [("s3://bucket/x", "URL"), ("/nowhere/at/all", "no store")]
)
def test_wrong_paths(path, message):
    with pytest.raises(ng.StoreError, match=message):
        ng.open(path)


def test_unknown_operations_are_named(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).real

    with pytest.raises(ng.TraceError, match="fft"):
        ng.measure(Odd(), torch.randn(1, 4))
