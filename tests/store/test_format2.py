"""The committed store of format 2 stays readable, and stores go on in their own format."""

import shutil

import numpy as np
import pytest
from helpers import make_format1, make_format2
from helpers.make_format2 import EVENT, PATH, images, make

import nrm_graph as ng

pytestmark = pytest.mark.smoke

STEP = ["dst_layer", "dst_unit", "src_layer", "src_unit"]
# Float32 of another machine or release, whose sums are taken in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def db():
    with ng.open(PATH) as opened:
        yield opened


def test_sql(db):
    assert (db.meta["format_version"], db.meta["max_edges"]) == (2, 60)
    rows = db.sql("SELECT key, label, target, round(kept, 3) FROM inputs ORDER BY ALL").fetchall()
    assert rows == [("0.png", "a", 0, 0.881), ("1.png", "b", 0, 0.883)]
    counts = "SELECT count(*), count(*) FILTER (dst_unit = -3) FROM {} GROUP BY input_id ORDER BY 1"
    assert db.sql(counts.format("edges")).fetchall() == [(60, 2), (60, 2)]
    assert db.sql(counts.format("b_edges")).fetchall() == [(28, 0), (60, 2)]
    pairs = "SELECT dst_layer, src_layer, count(*) FILTER (threshold > 0) FROM {} GROUP BY ALL"
    for table, number in (("thresholds", 2), ("b_thresholds", 1)):
        counted = db.sql(pairs.format(table) + " ORDER BY 1 DESC").fetchall()
        assert counted == [(3, 2, 0), (2, 1, number), (1, 0, number)]
    ((name, inputs),) = db.conditions().select(["name", "inputs"]).to_pandas().to_numpy().tolist()
    assert (name, inputs) == ("b", 2)
    report = db.verify(sample=2)
    assert report.sound, report.findings


def check_rows(edges, nodes, thresholds, m):
    """Compare what is stored of an input with its complete tables, computed now."""
    every_node, every_edge = (table.to_pandas() for table in m.tables())
    kept = edges[edges.dst_unit >= 0].merge(every_edge, on=STEP, how="left")
    np.testing.assert_allclose(kept.relevance_x, kept.relevance_y, **CLOSE)
    np.testing.assert_allclose(kept.conditional_x, kept.conditional_y, **CLOSE)
    units = every_edge[every_edge.src_unit >= 0].merge(edges[STEP], how="left", indicator=True)
    absent = units[units._merge == "left_only"]
    for row in thresholds.itertuples():
        pair = f"dst_layer == {row.dst_layer} and src_layer == {row.src_layer}"
        left_out = absent.query(pair).relevance
        assert left_out.abs().max() <= row.threshold * (1 + 1e-4) or not left_out.any()
        rest = edges.query(f"{pair} and dst_unit == -3").relevance
        np.testing.assert_allclose(rest.sum(), left_out.sum(), **CLOSE)
    shown = nodes[nodes.unit != -3].merge(every_node, on=["layer_id", "unit"], how="outer")
    np.testing.assert_allclose(shown.relevance_x, shown.relevance_y, **CLOSE)


@pytest.mark.parametrize("condition", [None, EVENT])
def test_exact_measures_agree_with_the_rows(db, condition):
    prefix = "" if condition is None else "b_"
    for (identity,) in db.sql("SELECT input_id FROM inputs").fetchall():
        m = db.measure(identity)
        tables = [
            db.sql(f"SELECT * FROM {prefix}{name} WHERE input_id = {identity}").df()
            for name in ("edges", "nodes", "thresholds")
        ]
        check_rows(*tables, m if condition is None else m.given(condition))


def test_this_release_still_writes_the_same(db, tmp_path):
    make(tmp_path / "new.nrm")
    with ng.open(tmp_path / "new.nrm") as new:
        assert set(new.meta) == set(db.meta)
        for query in (
            "SELECT * EXCLUDE (logit, kept) FROM inputs ORDER BY ALL",
            "SELECT input_id, layer_id, unit FROM nodes ORDER BY ALL",
            *(
                f"SELECT input_id, {', '.join(STEP)} FROM {table} ORDER BY ALL"
                for table in ("edges", "b_edges")
            ),
            "SELECT input_id, dst_layer, src_layer, threshold > 0 FROM thresholds ORDER BY ALL",
        ):
            assert new.sql(query).fetchall() == db.sql(query).fetchall()


@pytest.mark.parametrize("maker", [make_format1, make_format2])
def test_stores_go_on_as_each_was_made(maker, tmp_path):
    """Without a word of how; inputs that are new are bounded where all are."""
    path = shutil.copytree(maker.PATH, tmp_path / "s.nrm")
    settings = (path / "store.json").read_bytes()
    is_bounded = maker is make_format2
    with ng.open(path) as db:
        program, before = db.program, db.sql("SELECT * FROM edges ORDER BY ALL").fetchall()
    row = {"input": images(2, 3)[0]["input"] if is_bounded else np.float32([1, 0.5, 1.5])}
    with ng.extract(program, [row | {"key": "new"}], path, target=0, progress=False) as db:
        assert (path / "store.json").read_bytes() == settings
        held = db.sql("SELECT e.* FROM edges e JOIN inputs USING (input_id) WHERE key <> 'new'")
        assert sorted(held.fetchall(), key=str) == sorted(before, key=str)
        edges, nodes, thresholds = (
            db.sql(f"SELECT * FROM {name}", inputs=["new"]).df()
            for name in ("edges", "nodes", "thresholds")
        )
        ((kept,),) = db.sql("SELECT kept FROM inputs", inputs=["new"]).fetchall()
        if is_bounded:
            assert len(edges) == db.meta["max_edges"]
            assert len(thresholds) == len(db.topology.groups)
            assert 0 < kept < 1
            db.materialize(EVENT, name="b", progress=False)
            assert db.sql("SELECT count(*) FROM b_inputs").fetchall() == [(3,)]
            check_rows(edges, nodes, thresholds, db.measure("new"))
        else:
            assert len(thresholds) == 0
            assert kept == 1
            complete = db.measure("new").tables()[1].to_pandas()
            assert edges[STEP].equals(complete[STEP])
            np.testing.assert_allclose(edges.relevance, complete.relevance, **CLOSE)
        report = db.verify(sample=5)
        assert report.sound, report.findings
