"""The committed store of format 1 stays readable."""

import numpy as np
import pytest
from helpers.make_format1 import PATH, make

import nrm_graph as ng

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def db():
    with ng.open(PATH) as opened:
        yield opened


def test_sql(db):
    assert db.meta["format_version"] == 1
    rows = db.sql("SELECT key, label, target, score FROM inputs ORDER BY ALL").fetchall()
    assert rows == [
        ("a.png", "cat", 0, 1.0),
        ("a.png", "cat", 1, 1.0),
        ("b.png", "dog", 0, 0.5),
        ("b.png", "dog", 1, 0.5),
    ]
    assert db.sql("SELECT * FROM failures").fetchall() == [("c.png", "cannot be read")]
    assert db.sql("SELECT name, n_units, resolution FROM layers ORDER BY layer_id").fetchall() == [
        ("input", 3, "neuron"),
        ("0", 3, "custom"),
        ("2", 2, "neuron"),
    ]
    total = "SELECT sum(relevance) FROM edges WHERE dst_layer = 2 GROUP BY input_id"
    assert [t for (t,) in db.sql(total).fetchall()] == pytest.approx([1.0] * 4, abs=1e-5)


def test_exact_measures_agree_with_the_rows(db):
    for identity, target in db.sql("SELECT input_id, target FROM inputs").fetchall():
        m = db.measure(identity)
        assert m.target == target
        for layer in m.topology.layers:
            rows = db.sql(
                "SELECT unit, relevance FROM nodes WHERE layer_id = ? AND unit >= 0",
                inputs=[identity],
                params=[layer.layer_id],
            ).fetchall()
            found = np.zeros(len(m.marginal(layer.name)))
            for unit, relevance in rows:
                found[unit] = relevance
            np.testing.assert_allclose(found, m.marginal(layer.name), rtol=1e-4, atol=1e-5)


def test_this_release_still_writes_the_same(db, tmp_path):
    make(tmp_path / "new.nrm")
    with ng.open(tmp_path / "new.nrm") as new:
        assert set(new.meta) - {"seal", "max_edges"} == set(db.meta)  # which a store MAY hold
        for query in (
            "SELECT * EXCLUDE (logit, item, flags, kept) FROM inputs ORDER BY ALL",
            "SELECT input_id, layer_id, unit FROM nodes ORDER BY ALL",
            "SELECT input_id, dst_layer, dst_unit, src_layer, src_unit FROM edges ORDER BY ALL",
        ):
            assert new.sql(query).fetchall() == db.sql(query).fetchall()
