"""Reduced tables of many inputs: the rows of ``m.reduced``, of nodes that are fixed for all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections import defaultdict

import numpy as np
import pytest
from helpers import reduced
from helpers.commit_steps import Steps
from helpers.materialized import rows

import nrm_graph as ng
from nrm_graph.network.topology import UNWATCHED
from nrm_graph.store.verify import verify
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete

NAMES = ("given", "steps")


@pytest.fixture
def path(reduced_store, tmp_path):
    return shutil.copytree(reduced_store, tmp_path / "s.nrm")


def keyed(table, keys, columns=("relevance",)):
    """Rows by their keys, in float32 as they are stored, but for those of 0 without a share."""
    found = {}
    for row in table.to_pylist():
        values = tuple(np.nan if row[c] is None else np.float32(row[c]) for c in columns)
        if np.nan_to_num(values).any():
            found[tuple(row[key] for key in keys)] = values
    return found


def same(found, expected):
    """Equal up to the rounding of passes that go in other batches."""
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True), key


NODE, EDGE = ("layer_id", "unit"), ("dst_layer", "dst_unit", "src_layer", "src_unit")


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_reduced_measures(reduced_store, name):
    with ng.open(reduced_store) as db:
        assert len(db) == reduced.COUNT * len(reduced.TARGETS)
        listed = {row[0]: row[1:] for row in rows(db, name)["inputs"]}
        assert set(listed) == set(db._snapshot.entries)
        for identity, entry in db._snapshot.entries.items():
            r = reduced.reduced_of(db, name, identity)
            m = db.measure(identity)
            given = m.given(reduced.EVENT) if name == "given" else m
            facts = listed[identity]
            assert facts[0] == (pytest.approx(m(reduced.EVENT), rel=1e-5) if name == "given" else 1)
            assert facts[3] == pytest.approx(given.absorbed, rel=1e-5, abs=1e-6)
            assert facts[4:] == ("defined", None)
            nodes, edges = (
                db.sql(f"SELECT * FROM {name}_{t}", inputs=[identity]).to_arrow_table()
                for t in ("nodes", "edges")
            )
            units = keyed(nodes.filter(np.asarray(nodes["unit"]) >= 0), NODE, ("relevance",))
            same(units, keyed(r.nodes, NODE))
            expected = keyed(r.edges, EDGE, ("relevance", "conditional"))
            expected |= keyed(r.ends, EDGE, ("relevance", "conditional"))
            other = next(t for t in reduced.TARGETS if t != entry.target)
            top = db.topology.output.layer_id
            found = keyed(edges, EDGE, ("relevance", "conditional"))
            own = {key: row for key, row in found.items() if key[:2] != (top, other)}
            same(own, expected)
            # Walks of an input begin at its own target: the others of the group hold 0.
            assert not any(row[0] for key, row in found.items() if key not in own)
            ended = defaultdict(float)
            for row in r.ends.to_pylist():
                ended[row["src_layer"], row["src_unit"]] += row["relevance"]
            pseudo = keyed(nodes.filter(np.asarray(nodes["unit"]) < 0), NODE)
            assert {k: v for k, (v,) in pseudo.items()} == pytest.approx(dict(ended), rel=1e-5)
        report = db.verify(sample=20)
        assert report.sound, report.findings
        assert not report.notes
        assert report.conditions == 2


def test_tables_in_sql(reduced_store):
    with ng.open(reduced_store) as db:
        nodes = {row["name"]: row for row in db.conditions().to_pylist()}
        assert [nodes[name]["nodes"] for name in NAMES] == [11, 11]  # nine and two targets
        assert nodes["steps"]["event"] is None
        assert nodes["given"]["event"] == repr(reduced.EVENT)
        assert nodes["steps"]["mean_relevance"] == 1
        layers = db.sql("SELECT * FROM steps_layers ORDER BY layer_id").to_arrow_table()
        usual = db.sql("SELECT * FROM layers").to_arrow_table().to_pylist()
        kinds = {}
        for row in layers.to_pylist():
            info = usual[row["layer_id"]]
            assert all(row[key] == info[key] for key in ("name", "kind", "shape"))
            assert 0 < row["share"] <= 1
            kinds[row["name"]] = row["resolution"]
            (units,) = db.sql(
                "SELECT count(DISTINCT unit) FROM steps_nodes WHERE unit >= 0 AND layer_id = ?",
                params=[row["layer_id"]],
            ).fetchall()
            assert units == (row["nodes"],)
        assert kinds == {"x": "neuron", "stem": "channel", "block": "channel", "head": "neuron"}
        columns = [
            [db.sql(f"SELECT * FROM {t}").columns for t in (table, f"steps_{table}")]
            for table in ("nodes", "edges")
        ]
        assert all(one == other for one, other in columns)
        ends = db.sql("SELECT DISTINCT src_unit FROM steps_edges WHERE src_unit < 0").fetchall()
        assert {(-1,), (UNWATCHED,)} <= set(ends)
        joined = db.sql(
            "SELECT l.name, s.name, sum(relevance) FROM steps_edges e JOIN steps_layers l "
            "ON l.layer_id = dst_layer JOIN steps_layers s ON s.layer_id = src_layer GROUP BY ALL"
        ).fetchall()
        assert ("head", "stem") in {row[:2] for row in joined}  # by the skip
        assert {f"steps_{t}" for t in ("inputs", "layers", "nodes", "edges")} <= {
            name for (name,) in db.sql("SHOW TABLES").fetchall()
        }


def mean_sizes(db, layer, by, event=None):
    """Mean |R| of the units of a layer over all inputs, from their own measures."""
    sizes = []
    for identity in db._snapshot.entries:
        m = db.measure(identity)
        m = m if event is None else m.given(event)
        sizes.append(np.abs(m.marginal(layer, by=by).astype(np.float64)).ravel())
    return np.mean(sizes, 0)


@pytest.mark.parametrize("event", [None, reduced.EVENT])
@pytest.mark.parametrize("by", ["channel", "neuron"])  # neurons are finer than what is stored
def test_nodes_are_the_strongest_over_the_inputs(path, by, event):
    with ng.open(path) as db:
        numbers = {"stem": 2, "x": 5}
        reduced.materialize(db, "best", event, watch=["stem", "x"], by={"stem": by}, nodes=numbers)
        chosen = {layer.info.name: layer for layer in db._conditions["best"].nodes.labels}
        assert chosen["head"].units.tolist() == reduced.TARGETS
        for layer, count, how in (("stem", 2, by), ("x", 5, "neuron")):
            sizes = mean_sizes(db, layer, how, event)
            strongest = np.sort([unit for unit in np.argsort(-sizes)[:count] if sizes[unit] > 0])
            assert chosen[layer].units.tolist() == strongest.tolist()
            share = sizes[strongest].sum() / sizes.sum()
            assert chosen[layer].share == pytest.approx(share, rel=1e-5)
            shape = chosen[layer].info.shape
            assert chosen[layer].labels.shape == (shape if how == "neuron" else (3, 1, 1))


def test_sizes_are_read_where_units_add_up(path, monkeypatch):
    import nrm_graph.store.reduced_tables as module

    def computed(*args):
        raise AssertionError("computed")

    monkeypatch.setattr(module, "_computed_sizes", computed)
    with ng.open(path) as db:
        reduced.materialize(db, "read", by="layer", nodes=None)
        reduced.materialize(db, "pixels", watch=ng.Layer("x")[:, :2], by="unit", nodes=None)
        for options in (
            {"by": {"stem": "neuron"}},
            {"watch": ng.Layer("stem")[:, :2], "by": "unit"},  # parts of channels
            {"event": reduced.EVENT},
        ):
            with pytest.raises(AssertionError, match="computed"):
                reduced.materialize(db, "other", **options)
        assert db.conditions()["name"].to_pylist() == ["given", "pixels", "read", "steps"]


def test_the_same_call_goes_on(path, monkeypatch):
    calls = []
    plain = ng.Measure.given

    def given(self, event):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, event)

    with ng.open(path) as db:
        db.drop("given")
        monkeypatch.setattr("nrm_graph.store.reduced_tables._computed_sizes", _sizes_of_none)
        monkeypatch.setattr(ng.Measure, "given", given)
        with pytest.raises(KeyboardInterrupt):
            reduced.materialize(db, "given", reduced.EVENT)
        monkeypatch.undo()
        first = db._conditions["given"].nodes
        held = rows(db, "given")
        assert 0 < len(held["inputs"]) < len(db)
        reduced.materialize(db, "given", reduced.EVENT)
        assert db._conditions["given"].nodes.file == first.file
        assert {row[0] for row in rows(db, "given")["inputs"]} == set(db._snapshot.entries)
        assert set(held["edges"]) < set(rows(db, "given")["edges"])
    reduced.extract(path, reduced.Images(2, reduced.COUNT)).close()
    with ng.open(path) as db:  # new inputs, of the same nodes
        with pytest.raises(ng.InputError, match="not computed for 4 of the"):
            db.circuit(tables="steps", mixed_targets=True)
        before = db._conditions["steps"].nodes.file
        reduced.materialize(db)
        assert db._conditions["steps"].nodes.file == before
        assert {row[0] for row in rows(db, "steps")["inputs"]} == set(db._snapshot.entries)
        assert db.verify(sample=0).sound


def _sizes_of_none(db, ids, event, watched, device, progress):
    return [np.ones(layer.groups.count) for layer in watched]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nodes": 8}, ng.StoreError, "made with another nodes: it has 9, asked for is 8"),
        (
            {"watch": ["stem"], "by": "unit"},
            ng.StoreError,
            "another watch: it has \\['stem', 'block', 'x'\\]",
        ),
        ({"by": "unit"}, ng.StoreError, "another by: it has .*'channel'.*, asked for is 'unit'"),
        ({"where": "target = 0"}, ng.StoreError, "another where: it has None"),
        ({"event": reduced.EVENT}, ng.StoreError, "another event: it has None"),
        ({"name": "Steps"}, ng.InputError, "differs in letter case alone"),
    ],
)
def test_other_arguments_need_another_name(reduced_store, options, error, message):
    with ng.open(reduced_store) as db, pytest.raises(error, match=message):
        reduced.materialize(db, **options)


def test_tables_of_the_other_kind_need_another_name(path):
    with ng.open(path) as db:
        with pytest.raises(ng.StoreError, match=r"reduced tables \(watch=\), asked for are tables"):
            db.materialize(reduced.EVENT, name="given", progress=False)
        db.materialize(reduced.EVENT, name="plain", inputs=["k0"], progress=False)
        with pytest.raises(ng.StoreError, match="holds tables of all units, asked for are reduced"):
            reduced.materialize(db, "plain", reduced.EVENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watch": None}, "expected an event to condition on, or watch="),
        ({"watch": None, "event": reduced.EVENT}, "by and nodes go with watch="),
        ({"nodes": 2}, "less than one of each of the 3 watched layers"),
        ({"nodes": 0}, "numbers of at least 1"),
        ({"by": 3.5}, "by takes 'unit', 'layer', a resolution"),
        ({"by": "channels"}, "unknown resolution 'channels'"),
        ({"by": {"inner": "channel"}}, "by names the layer inner, which is not watched"),
        ({"by": np.zeros((2, 2), int)}, "must be an integer array of shape"),
    ],
)
def test_what_cannot_be_nodes_is_refused(reduced_store, options, message):
    before = sorted(p.name for p in (reduced_store / "conditions").iterdir())
    with ng.open(reduced_store) as db:
        with pytest.raises(ng.InputError, match=message):
            reduced.materialize(db, "other", **options)
        for watch in (3, [3], [], [["stem"]], "stems", reduced.EVENT | ng.Layer("x")[0]):
            with pytest.raises(ng.EventError):
                reduced.materialize(db, "other", watch=watch)
        assert sorted(db._conditions) == ["given", "steps"]
    assert sorted(p.name for p in (reduced_store / "conditions").iterdir()) == before


def test_targets_that_are_no_nodes_are_refused(path):
    with ng.open(path) as db:
        reduced.materialize(db, "zero", where="target <> 2 OR key = 'none'")
        assert db._conditions["zero"].nodes.labels[0].units.tolist() == [0]
    reduced.extract(path, reduced.Images(1), target=1).close()
    with ng.open(path) as db:
        with pytest.raises(ng.InputError, match="'k0' explains the output 1, and the target nodes"):
            reduced.materialize(db, "zero", where="target <> 2 OR key = 'none'")
        two = [i for i, e in db._snapshot.entries.items() if e.target == 0]
        reduced.materialize(db, "zero", where="target <> 2 OR key = 'none'", inputs=two)


def test_weighted_targets_are_nodes(tmp_path):
    path = tmp_path / "w.nrm"
    with reduced.extract(path, reduced.Images(2), target={0: 1.0, 2: -1.0}) as db:
        reduced.materialize(db)
        assert db._conditions["steps"].nodes.labels[0].units.tolist() == [0, 2]
        top = db.topology.output.layer_id
        whole = db.sql(
            f"SELECT sum(relevance) FROM steps_nodes WHERE layer_id = {top} AND unit >= 0 "
            "GROUP BY input_id"
        ).fetchall()
        assert [total for (total,) in whole] == pytest.approx([1, 1], rel=1e-5)
        assert db.verify(sample=2).sound


def test_two_processes_that_choose_other_nodes(path, monkeypatch):
    """Who makes ``condition.json`` first decides; the other goes on with these nodes."""
    import nrm_graph.store.format.recorded_nodes as module
    import nrm_graph.store.read.reduced as written

    with ng.open(path) as db, ng.open(path) as other:
        plain = module.write_nodes

        def late(folder, layers):
            record = plain(folder, layers)
            monkeypatch.setattr(written, "write_nodes", plain)
            few = [i for i, e in db._snapshot.entries.items() if e.key == "k2"]
            monkeypatch.setattr(
                "nrm_graph.store.materialize._chosen", lambda db, where, inputs: few
            )
            reduced.materialize(other, "both", nodes=4)
            monkeypatch.undo()
            return record

        monkeypatch.setattr(written, "write_nodes", late)
        reduced.materialize(db, "both", nodes=4)
        other.refresh()
        assert db._conditions["both"].nodes.file == other._conditions["both"].nodes.file
        files = [p.name for p in (path / "conditions" / "both").glob("nodes-*")]
        assert len(files) == 2  # what the late one proposed is left
        assert {row[0] for row in rows(db, "both")["inputs"]} == set(db._snapshot.entries)
        report = db.verify(sample=2)
        assert report.sound
        assert ["no part of the store" in note.problem for note in report.notes] == [True]


def test_drop_compaction_and_deletion(path):
    folder = path / "conditions" / "steps"
    with ng.open(path) as db:
        before = rows(db, "steps")
        reader = ng.open(path)
        db.drop("steps")
        assert db.conditions()["name"].to_pylist() == ["given"]
        with pytest.raises(ng.QueryError):
            db.sql("SELECT * FROM steps_layers")
        assert rows(reader, "steps") == before
        assert reader._conditions["steps"].nodes.labels
        reader.close()
        (labels,) = folder.glob("nodes-*")
        compact(path, progress=False)
        assert labels.exists()
        reduced.materialize(db, nodes=5)  # the name is free again
        assert db._conditions["steps"].nodes.count == 7
    for file in folder.glob("nodes-*"):
        os.utime(file, (0, 0))
    compact(path, older_than=0.0, progress=False)
    assert not labels.exists()
    with ng.open(path) as db:
        held = rows(db, "steps")
        assert len(held["inputs"]) == len(db)
    deleted = delete(path, "k1", progress=False)
    assert deleted.conditioned == 4
    with ng.open(path) as db:
        assert len(rows(db, "steps")["inputs"]) == len(db) == 4
        assert db.verify(sample=1).sound


def test_an_input_of_which_nothing_is_defined(path):
    """R(event) vanishes in some inputs: they have no rows, and a reason."""
    with ng.open(path) as db:
        pixel = ng.Layer("stem")[2, 0, 3]
        reduced.materialize(db, "pixel", pixel)
        listed = {row[0]: row for row in rows(db, "pixel")["inputs"]}
        undefined = {i for i, row in listed.items() if row[5] == "undefined"}
        assert 0 < len(undefined) < len(listed)
        for identity in undefined:
            assert "below rounding" in listed[identity][6]
            assert not rows(db, "pixel", inputs=[identity])["nodes"]
        assert db.verify(sample=8).sound


def failed():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fault_at_steps_of_the_commits(reduced_store, tmp_path, step):
    """At each of them the disk is full; the same call completes what is there."""
    with ng.open(reduced_store) as db:
        ids = list(db._snapshot.entries)[:2]
    k = 1
    while True:
        path = shutil.copytree(reduced_store, tmp_path / f"{k}.nrm")
        with ng.open(path) as db:
            with pytest.MonkeyPatch.context() as patch:
                steps = Steps(patch, k, failed)
                with contextlib.suppress(ng.StoreError):
                    reduced.materialize(db, "more", nodes=5, inputs=ids)
            if steps.count < k:
                break
            assert verify(path, sample=0).sound
            reduced.materialize(db, "more", nodes=5, inputs=ids)
            assert {row[0] for row in rows(db, "more")["inputs"]} == set(ids)
        assert verify(path, sample=2).sound
        shutil.rmtree(path)
        k += step
    assert k > 14
