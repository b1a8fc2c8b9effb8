"""Stores that bound their edges hold the same rows however they came about, and what they say."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import bounded
from helpers.bounded import COUNT, MOST, Images, extract
from helpers.processes import ROOT, environment

import nrm_graph as ng
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete

STEP = ["input_id", "dst_layer", "dst_unit", "src_layer", "src_unit"]
KEYS = {
    "inputs": ["input_id", "key", "target"],
    "nodes": ["input_id", "layer_id", "unit"],
    "edges": STEP,
    "thresholds": ["input_id", "dst_layer", "src_layer"],
}
NUMBERS = {
    "inputs": ["logit", "kept"],
    "nodes": ["relevance", "activation"],
    "edges": ["relevance", "conditional"],
    "thresholds": ["threshold"],
}
# Of a network in float64: what is stored differs by one rounding to float32.
ROUNDING = {"rtol": 3e-7, "atol": 1e-12}


def tables(db):
    """Every table, sorted by its keys."""
    return {
        name: db.sql(f"SELECT * FROM {name} ORDER BY {', '.join(keys)}").df()
        for name, keys in KEYS.items()
    }


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    with extract(tmp_path_factory.mktemp("few") / "s.nrm", batch_size=4) as db:
        yield db


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    with extract(tmp_path_factory.mktemp("all") / "s.nrm", max_edges="all") as db:
        yield db


def check_same(path, expected):
    """Compare all rows of a store with those of one undisturbed run."""
    with ng.open(path) as db:
        rows, wanted = tables(db), tables(expected)
    for name, keys in KEYS.items():
        assert rows[name][keys].equals(wanted[name][keys]), name
        numbers = NUMBERS[name]
        np.testing.assert_allclose(rows[name][numbers], wanted[name][numbers], **ROUNDING)


@pytest.mark.smoke
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_rows_do_not_depend_on_the_batch(few, tmp_path, batch):
    extract(tmp_path / "s.nrm", batch_size=batch).close()
    check_same(tmp_path / "s.nrm", few)


def test_an_interrupted_run_goes_on_with_the_same_rows(few, tmp_path):
    path = tmp_path / "s.nrm"
    with pytest.raises(KeyboardInterrupt):
        extract(path, Images(range(6), signal.SIGINT), batch_size=2)
    with ng.open(path) as db:
        assert 0 < len(db) < COUNT
    # Without max_edges: it goes on as it was made.
    extract(path, max_edges="auto", batch_size=3).close()
    check_same(path, few)


def test_two_writers_write_the_rows_of_one(few, tmp_path):
    """The other half is extracted while a first one is under way."""
    path = tmp_path / "s.nrm"
    first, second = (Images(range(start, COUNT, 2)) for start in (0, 1))

    def rows():
        yield from first.rows[:2]
        extract(path, second, batch_size=3).close()
        yield from first.rows[2:]

    extract(path, rows(), batch_size=1).close()
    check_same(path, few)


@pytest.mark.slow
def test_two_processes_write_the_rows_of_one(few, tmp_path):
    path = tmp_path / "s.nrm"
    ng.save_program(bounded.program(), tmp_path / "net")
    command = [sys.executable, "-m", "helpers.bounded", path, tmp_path / "net"]
    subprocess.run(command, check=True, env=environment(), timeout=120)
    check_same(path, few)


def test_compaction_and_deletion_keep_them(few, tmp_path):
    path = tmp_path / "s.nrm"
    for first in (0, 4):
        extract(path, Images(range(first, first + 4))).close()
    compact(path, progress=False)
    delete(path, ["k1"], progress=False)
    with ng.open(path) as db:
        gone = "SELECT count(*) FROM {} WHERE input_id = ?"
        identity = few.sql("SELECT input_id FROM inputs WHERE key = 'k1'").fetchall()[0]
        for name in KEYS:
            assert db.sql(gone.format(name), params=identity).fetchall() == [(0,)]
    extract(path).close()
    check_same(path, few)


def whole_and_kept(complete, few):
    """Rows of the complete store, with whether the bounded one has them."""
    rows = complete.sql("SELECT * FROM edges WHERE dst_unit >= 0").df()
    units = few.sql("SELECT * FROM edges WHERE dst_unit >= 0").df()
    both = rows.merge(units[STEP], on=STEP, how="left", indicator="stored")
    both["stored"] = both.stored == "both"
    assert both.stored.sum() == len(units) > 0
    return both


def of_the_page(column):
    """The query of the page on SQL that gives this column, of all rows."""
    page = (ROOT / "docs" / "sql.md").read_text("utf-8")
    (query,) = re.findall(rf"```sql\n([^`]* AS {column}\n[^`]*)LIMIT 10\n```", page)
    return query


def test_the_rest_of_a_unit_is_its_relevance_without_its_rows(complete, few):
    """Edges that are left out, and what bias and stabilizer hold."""
    rests = few.sql(of_the_page("rest")).df()
    rows = whole_and_kept(complete, few)
    absent = rows[~rows.stored].groupby(STEP[:3]).relevance.sum().rename("expected")
    names = {layer.layer_id: layer.name for layer in few.topology.layers}
    absent = absent.reset_index().assign(name=lambda table: table.dst_layer.map(names))
    absent = absent.rename(columns={"dst_unit": "unit"})
    rests = rests.merge(absent, "outer", on=["input_id", "name", "unit"])
    assert (rests.expected.abs() > 1e-3).sum() > 100
    np.testing.assert_allclose(rests.rest, rests.expected.fillna(0), atol=1e-6)


def test_the_rest_of_a_pair_of_layers_and_totals_of_a_layer(complete, few):
    rows = whole_and_kept(complete, few)
    pair = ["input_id", "dst_layer", "src_layer"]
    absent = rows[~rows.stored & (rows.src_unit >= 0)].groupby(pair).relevance.sum()
    rest = few.sql("SELECT * FROM edges WHERE dst_unit = -3").df().set_index(pair)
    assert (rest.src_unit == -3).all()
    np.testing.assert_allclose(rest.relevance[absent.index], absent, atol=1e-6)
    layer = ["input_id", "layer_id"]
    nodes = few.sql("SELECT * FROM nodes WHERE unit = -3").df().set_index(layer).relevance
    absent = absent.groupby(["input_id", "dst_layer"]).sum()
    np.testing.assert_allclose(nodes[absent.index], absent, atol=1e-6)
    for unit in (-1, -2):
        query = f"SELECT * FROM nodes WHERE unit = {unit} ORDER BY ALL"
        ours, theirs = (db.sql(query).df() for db in (few, complete))
        assert ours[layer].equals(theirs[layer])
        np.testing.assert_allclose(ours.relevance, theirs.relevance, **ROUNDING)


def test_kept_is_the_least_share_and_thresholds_bound_what_is_absent(complete, few):
    rows = whole_and_kept(complete, few)
    rows = rows[rows.src_unit >= 0].assign(size=rows.relevance.abs())
    pair = ["input_id", "dst_layer", "src_layer"]
    shares = rows[rows.stored].groupby(pair)["size"].sum() / rows.groupby(pair)["size"].sum()
    kept = few.sql("SELECT input_id, kept FROM inputs").df().set_index("input_id").kept
    least = shares.groupby("input_id").min()
    np.testing.assert_allclose(kept[least.index], least, rtol=1e-6)
    assert (kept < 0.9).all()
    thresholds = few.sql("SELECT * FROM thresholds").df().set_index(pair).threshold
    assert len(thresholds) == COUNT * len(few.topology.groups)
    largest = rows[~rows.stored].groupby(pair)["size"].max().reindex(thresholds.index, fill_value=0)
    assert (largest <= thresholds).all()
    assert ((largest == 0) == (thresholds == 0)).all()
    weakest = rows[rows.stored].groupby(pair)["size"].min()[thresholds.index]
    assert (weakest >= thresholds * (1 - 1e-6)).all()
    count = few.sql("SELECT count(*) FROM edges GROUP BY input_id").fetchall()
    assert {MOST - 10 < number <= MOST for (number,) in count} == {True}


def test_means_are_off_by_what_the_page_says(complete, few):
    means = few.sql(of_the_page("off_by")).df()
    true = complete.sql("SELECT * FROM edges WHERE src_unit >= 0").df().astype({"relevance": float})
    true = (true.groupby(STEP[1:]).relevance.sum() / COUNT).rename("true").reset_index()
    both = means.merge(true, "left", on=STEP[1:])
    assert ((both["mean"] - both.true).abs() <= both.off_by + 1e-9).all()
    assert (both.off_by < 1e-9).any()
    assert (both.off_by > 1e-3).any()


@pytest.mark.parametrize(("kind", "bits"), [("float32", None), ("float32", 6), ("float64", 22)])
def test_stores_are_sound(tmp_path, kind, bits):
    net = bounded.program(kind)
    with extract(tmp_path / "s.nrm", Images(range(2)), net, mantissa_bits=bits) as db:
        report = db.verify(sample=2)
        assert report.sound, report.findings
