"""What extraction hands to the store, and exact measures out of it."""

import copy
import functools
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import nrm_graph as ng
from nrm_graph.extraction import batches
from nrm_graph.network.tracing import given_program
from nrm_graph.store import stored_measure


@functools.cache
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


@functools.cache
def program():
    return ng.trace(network(), torch.ones(4))


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """The network is traced once for all extractions: that would take most of their time."""
    plain = given_program.traced

    def traced(model, names, xs, output):
        if model is network():
            return program(), (xs[0][None],)
        return plain(model, names, xs, output)

    monkeypatch.setattr(given_program, "traced", traced)


def inputs(count=3, **more):
    torch.manual_seed(1)
    return [{"input": torch.rand(4), "key": f"k{i}", **more} for i in range(count)]


OPTIONS = {"composite": "epsilon", "progress": False}


def test_nothing_is_computed_for_what_is_stored(tmp_path, monkeypatch):
    path = tmp_path / "s.nrm"
    targets = ["predicted", 2]
    ng.extract(network(), inputs(4), path, target=targets, **OPTIONS)
    calls = []
    plain = batches.forward
    monkeypatch.setattr(batches, "forward", lambda net, x: calls.append(len(x[0])) or plain(net, x))
    db = ng.extract(network(), inputs(4), path, target=targets, **OPTIONS)
    assert calls == []
    before = len(db)
    db = ng.extract(network(), inputs(6), path, target=targets, batch_size=4, **OPTIONS)
    assert calls == [2]  # the two new ones in one batch
    assert len(db) > before


def test_the_same_input_twice_is_stored_once(tmp_path):
    rows = inputs(2)
    db = ng.extract(network(), [*rows, *rows, rows[0]], tmp_path / "s.nrm", batch_size=2, **OPTIONS)
    assert len(db) == 2
    with pytest.raises(ng.StoreError, match="the key 'k1' is in the store with another content"):
        ng.extract(network(), [{**rows[0], "key": "k1"}], db.path, **OPTIONS)
    twice = [{**rows[0], "key": "new"}, {**rows[1], "key": "new"}]
    with pytest.raises(ng.StoreError, match="'new'"):
        ng.extract(network(), twice, db.path, **OPTIONS)


@pytest.mark.smoke
def test_settings_of_an_extraction(tmp_path):
    path = tmp_path / "s.nrm"
    db = ng.extract(network(), inputs(), path, preprocessing="scaled to [0, 1]", **OPTIONS)
    assert db.meta["preprocessing"] == "scaled to [0, 1]"
    assert (db.meta["coverage"], db.meta["top"], db.meta["mantissa_bits"]) == (1.0, None, None)
    with pytest.raises(ng.StoreError, match=r"another preprocessing: it has .*0, 1.*none"):
        ng.extract(network(), inputs(), path, preprocessing="none", **OPTIONS)
    other = copy.deepcopy(network())
    with torch.no_grad():
        other[0].bias += 1
    with pytest.raises(ng.StoreError, match="another program"):
        ng.extract(other, inputs(), path, preprocessing="scaled to [0, 1]", **OPTIONS)
    with pytest.raises(ng.InputError, match="preprocessing must be text"):
        ng.extract(network(), inputs(), path, preprocessing=3, **OPTIONS)


def test_custom_units_of_an_extraction(tmp_path):
    path = tmp_path / "s.nrm"
    units = {"0": np.array([0, 0, 1, 1, 2])}
    db = ng.extract(network(), inputs(), path, resolution=units, **OPTIONS)
    assert len(db.measure("k0").marginal("0")) == 3
    ng.extract(network(), inputs(), path, resolution=units, **OPTIONS)
    with pytest.raises(ng.StoreError, match="another partition of layer 0"):
        ng.extract(
            network(), inputs(), path, resolution={"0": np.array([0, 1, 1, 1, 2])}, **OPTIONS
        )
    with pytest.raises(ng.StoreError, match="another resolution of layer 0"):
        ng.extract(network(), inputs(), path, resolution="neuron", **OPTIONS)


def test_tensors_may_be_left_out(tmp_path):
    rows = inputs()
    kept = ng.extract(network(), rows, tmp_path / "kept.nrm", **OPTIONS)
    db = ng.extract(network(), rows, tmp_path / "omit.nrm", tensors="omit", **OPTIONS)
    with pytest.raises(ng.InputError, match=r"no tensor of 'k1'.*input="):
        db.measure("k1")
    expected = kept.measure("k1").marginal("0")
    for x in (rows[1]["input"], rows[1]["input"][None], rows[1]["input"].double()):
        np.testing.assert_array_equal(db.measure("k1", input=x).marginal("0"), expected)
    for wrong in (rows[0]["input"], torch.rand(5), torch.rand(1, 1, 4)):
        with pytest.raises(ng.InputError, match="is not the one that was explained as 'k1'"):
            db.measure("k1", input=wrong)
    with pytest.raises(ng.InputError, match="must be a torch tensor"):
        db.measure("k1", input=[1, 2])
    with pytest.raises(ng.InputError, match="tensors must be"):
        ng.extract(network(), rows, tmp_path / "x.nrm", tensors="some", **OPTIONS)
    assert db.measure("k1", input=rows[1]["input"], dtype="float64").logit == pytest.approx(
        kept.measure("k1").logit, rel=1e-5
    )


def test_metadata_of_loaders_and_odd_names(tmp_path):
    rows = inputs(array="a", content="b", tensor=np.float32(0.5), filename="f.png")
    loader = torch.utils.data.DataLoader(
        [{**row, "key": i} for i, row in enumerate(rows)], batch_size=2
    )
    db = ng.extract(network(), loader, tmp_path / "s.nrm", **OPTIONS)
    found = db.sql('SELECT key, "array", content, tensor, filename FROM inputs ORDER BY key')
    assert found.fetchall() == [(str(i), "a", "b", 0.5, "f.png") for i in range(3)]


def test_a_logit_that_does_not_come_out_again_is_told_once(tmp_path, monkeypatch):
    db = ng.extract(network(), inputs(), tmp_path / "s.nrm", **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        db.measure("k0")
        db.measure("k0", dtype="float64")
    db = ng.open(db.path)
    facts = db._snapshot.facts
    monkeypatch.setattr(
        db._snapshot, "facts", lambda i: facts(i) | {"logit": facts(i)["logit"] + 0.01}
    )
    with pytest.warns(UserWarning, match=r"'k0': the stored program gives .*, the store says"):
        db.measure("k0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        db.measure("k0")


@pytest.mark.parametrize("what", ["weights", "operation", "pickle", "header", "link"])
def test_a_program_that_was_changed_is_not_run(tmp_path, what):
    db = ng.extract(network(), inputs(), tmp_path / "s.nrm", **OPTIONS)
    weights, program = db.path / "weights.safetensors", db.path / "program.json"
    data = weights.read_bytes()
    if what == "weights":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif what == "operation":
        text = program.read_text()
        program.write_text(text.replace("aten.relu.default", "os.system.evil.xy", 1)[: len(text)])
    elif what == "pickle":
        torch.save({"0.weight": torch.ones(1)}, weights)
    elif what == "header":
        weights.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    else:
        weights.rename(tmp_path / "w")
        weights.symlink_to(tmp_path / "w")
    with pytest.raises(ng.StoreError):
        stored_measure.load_program(db)


def test_a_damaged_tensor_file_is_named(tmp_path):
    db = ng.extract(network(), inputs(), tmp_path / "s.nrm", **OPTIONS)
    for file in (db.path / "shards").glob("*.tensors.parquet"):
        table = pq.read_table(file)
        rows = [row | {"data": bytes(16)} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    with pytest.raises(ng.StoreError, match="is not the one that was explained"):
        db.measure("k0")


def test_contrastive_targets_need_not_be_stored(tmp_path):
    (row,) = inputs(1)
    db = ng.extract(network(), [row], tmp_path / "s.nrm", target=[0, 2], **OPTIONS)
    weights = {0: 1.0, 1: -1.0}
    found = db.measure("k0", target=weights, dtype="float64")
    own = ng.measure(program(), row["input"], target=weights, composite="epsilon", dtype="float64")
    assert found.target is None
    assert found.logit == pytest.approx(own.logit, abs=1e-6)  # weights of float32, cast
    A = ng.Layer("0")[:3]
    assert found(A) == pytest.approx(own(A), abs=1e-5)
    assert found(A) + found(~A) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ng.InputError, match="out of range"):
        db.measure("k0", target={7: 1.0})


def test_many_events_in_little_memory(tmp_path):
    db = ng.extract(network(), inputs(1), tmp_path / "s.nrm", **OPTIONS)
    events = [ng.Layer("0")[i] & ng.Layer("input")[j] for i in range(5) for j in range(4)]
    whole = db.measure("k0").many(events)
    np.testing.assert_array_equal(db.measure("k0", memory=1).many(events), whole)
    with pytest.raises(ng.InputError, match="positive number of bytes"):
        db.measure("k0", memory=0)
    with pytest.raises(ng.InputError, match="the device 'nowhere' cannot be used"):
        db.measure("k0", device="nowhere")
