"""The generator of benchmark stores: sound, deterministic, sparse, signed, with planted classes."""

import sys

import numpy as np
import pytest
from helpers.processes import ROOT

import nrm_graph as ng

sys.path.append(str(ROOT / "benchmarks"))
import generate

EDGES = 400_000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("generated") / "small.nrm"
    inputs, rows = generate.generate(path, EDGES, "small", seed=3)
    with ng.open(path) as db:
        assert (inputs, rows) == (len(db), db.sql("SELECT count(*) FROM edges").fetchall()[0][0])
        yield db


def test_what_is_generated_is_sound(store):
    report = store.verify(sample=0)
    assert report.errors == ()
    assert report.notes == ()


def test_it_holds_the_number_asked_for_and_not_an_input_more(store):
    sizes = store.sql("SELECT count(*) FROM edges GROUP BY input_id")
    numbers = np.array(sizes.fetchall())
    assert EDGES <= numbers.sum() < EDGES + numbers.max()


def test_inputs_miss_a_varying_share_of_the_edges(store):
    dense = sum(size for *_, size in store.meta["groups"])
    rows = store.sql("SELECT count(*) FROM edges WHERE src_unit >= 0 GROUP BY input_id")
    shares = np.array(rows.fetchall())[:, 0] / dense
    assert shares.min() > 0.45
    assert shares.max() < 0.75
    assert np.ptp(shares) > 0.03
    zeros = store.sql("SELECT count(*) FROM edges WHERE relevance = 0").fetchall()
    assert zeros == [(0,)]


def test_relevance_is_signed_and_heavy_tailed(store):
    negative, ratio = store.sql(
        "SELECT avg((relevance < 0)::INT), "
        "quantile_cont(abs(relevance), 0.99) / quantile_cont(abs(relevance), 0.5) "
        "FROM edges WHERE src_layer = 1 AND dst_layer = 2"
    ).fetchall()[0]
    assert 0.1 < negative < 0.5
    assert ratio > 50  # of a normal distribution it would be 4


def test_records_depend_on_seed_and_number_alone(store):
    again = generate.Source("small", 3).record(5)
    stored = store.sql("SELECT * FROM edges", inputs=[again.key]).to_arrow_table()
    assert stored.drop_columns("input_id").equals(again.edges.cast(stored.schema.remove(0)))
    other = generate.Source("small", 4).record(5)
    assert not other.edges.equals(again.edges)


def test_classes_have_circuits_of_their_own(store):
    """The units planted for a class hold more relevance in its inputs than in those of others."""
    source = generate.Source("small", 3)
    layer = 2
    held = np.zeros((source.classes, source.layers[layer].units))
    rows = store.sql(
        "SELECT target, unit, sum(abs(relevance)) FROM nodes JOIN inputs USING (input_id) "
        "WHERE layer_id = ? AND unit >= 0 GROUP BY ALL",
        params=[layer],
    ).fetchall()
    for target, unit, strength in rows:
        held[target, unit] = strength
    held /= held.sum(1, keepdims=True)
    shares = np.array([held[:, own[layer]].sum(1) for own in source.own])  # (planted, found)
    elsewhere = np.median(shares, axis=1)
    assert (np.diag(shares) > elsewhere).all()
    assert np.diag(shares).mean() > 2 * elsewhere.mean()


def test_the_large_shape_is_that_of_vgg16():
    source = generate.Source("vgg", 0)
    meta = source.settings()
    assert [row["n_units"] for row in meta["layers"]] == [
        *(3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        *(64, 128, 256, 5),
    ]
    record = source.record(1)
    assert 800_000 < len(record.edges) < 1_250_000
    group = record.edges["dst_layer"].to_numpy()
    q = record.edges["conditional"]
    assert q.filter(np.asarray(group >= 15)).null_count == 0
    assert q.filter(np.asarray(group < 14)).null_count == np.sum(group < 14)
