"""Reduced tables from strangers: records, labels and rows that cannot be true."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from helpers import reduced
from helpers.materialized import edit, rewritten, scaled, strongest

import nrm_graph as ng
from nrm_graph.store.read import conditions
from nrm_graph.store.read import reduced as form
from nrm_graph.store.verify import verify

HUGE = 1 << 62


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("reduced") / "s.nrm"
    with reduced.extract(path, reduced.Images(2), target=0) as db:
        reduced.materialize(db)
    return path


@pytest.fixture
def path(two_inputs, tmp_path):
    return shutil.copytree(two_inputs, tmp_path / "s.nrm")


def record(path):
    return json.loads((path / "conditions" / "steps" / "condition.json").read_text())


def layer(**changes):
    """Change the second of the watched layers."""

    def change(raw):
        raw["layers"][1].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "expected (asked|layers|file) to be absent"),
        ({"format_version": 3}, "format version 3; this release reads version 1 and 2"),
        ({"layers": []}, "expected layers to be"),
        ({"layers": None}, "expected layers to be a list"),
        ({"asked": None}, "expected asked to be an object"),
        ({"asked": {"watch": [], "by": "unit", "nodes": 1}}, "expected asked.watch to be"),
        ({"asked": {"watch": ["x"], "by": 3, "nodes": 1}}, "expected asked.by to be"),
        ({"event": "__import__('os')"}, "expected an event"),
        ({"file": {"size": 1}}, "expected file.sha256 to be there"),
        ({"file": {"size": -1, "sha256": "0" * 64}}, "expected file.size to be"),
        ({"file": {"size": HUGE, "sha256": "0" * 64}}, "expected file.size to be at most"),
        ({"file": {"size": 9, "sha256": "../../x"}}, "file.sha256 to be 64 hexadecimal digits"),
        ({"file": {"size": 9, "sha256": "0" * 64}}, "expected the file"),
        (layer(layer_id=0), "expected layers to be of layers from the output, 5, downwards"),
        (layer(layer_id=5), "downwards"),
        (layer(layer_id=77), "downwards"),
        (layer(layer_id=-1), "expected layers\\[1\\].layer_id to be"),
        (layer(layer_id=1 << 40), "expected layers\\[1\\].layer_id to be"),
        (layer(nodes=HUGE), "expected layers\\[1\\].nodes to be"),
        (layer(nodes=1000), "expected layers\\[1\\].nodes to be at most 48, found 1000"),
        (layer(nodes=0), "expected layers\\[1\\].nodes to be"),
        (layer(share=float("1e300")), "expected layers\\[1\\].share to be"),
        (layer(resolution="pickle"), "expected layers\\[1\\].resolution to be one of neuron"),
        (layer(more=1), "expected layers\\[1\\].more to be absent"),
    ],
)
def test_a_hostile_record(path, change, message):
    edit(path, change if callable(change) else lambda raw: raw.update(change), name="steps")
    with pytest.raises(ng.StoreError, match=message) as told:
        ng.open(path)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000
    report = verify(path, sample=0)
    assert not report.sound
    assert all(error.file.startswith("conditions/steps") for error in report.errors)


def relabelled(path, change):
    """Labels written anew, with size and hash that belong to them."""
    folder = path / "conditions" / "steps"
    (file,) = folder.glob("nodes-*")
    tensors = safetensors.numpy.load_file(file)
    changed = change(tensors)
    data = changed if isinstance(changed, bytes) else safetensors.numpy.save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    file.unlink()
    (folder / f"nodes-{digest[:16]}.safetensors").write_bytes(data)
    stated = {"size": len(data), "sha256": digest}
    edit(path, lambda raw: raw.update(file=stated), name="steps")


def into(name, value):
    """Put labels in the place of a layer's."""

    def change(tensors):
        tensors[name] = value(tensors[name]) if callable(value) else value

    return change


def gone(tensors):
    del tensors["0"]


def moved(labels):
    labels = labels.copy()
    labels.ravel()[np.flatnonzero(labels.ravel() >= 0)[0]] = np.flatnonzero(labels.ravel() < 0)[0]
    return labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (into("0", lambda labels: labels.astype(np.int64)), "are int64 of shape"),
        (into("0", lambda labels: labels.astype(np.float32)), "are float32 of shape"),
        (into("0", lambda labels: labels[:, :2]), "are int32 of shape \\(1, 2, 4\\)"),
        (into("0", lambda labels: labels.ravel()), "are int32 of shape \\(16,\\), expected"),
        (into("0", np.zeros((0, 4, 4), np.int32)), "are int32 of shape \\(0, 4, 4\\)"),
        (into("0", lambda labels: labels - 5), "are labels from -6"),
        (into("0", lambda labels: labels + 1000), "to 1014, expected units or -1"),
        (into("0", lambda labels: np.full_like(labels, -1)), "are 0, expected"),
        (into("0", moved), "hold neurons of other units than a neuron does"),
        (into("1", lambda labels: labels[::-1].copy()), "of other units than a channel does"),
        (into("9", np.zeros(3, np.int32)), "holds the layers"),
        (gone, "holds the layers"),
        (lambda tensors: b"", "no safetensors file"),
        (lambda tensors: b"\xff" * 40, "no safetensors file"),
        (lambda tensors: (1 << 20).to_bytes(8, "little") + b"{}", "no safetensors file"),
    ],
)
def test_hostile_labels(path, change, message):
    relabelled(path, change)
    with ng.open(path) as db:  # the tables can be read, what needs the nodes refuses
        with pytest.raises(ng.StoreError, match=message) as told:
            reduced.materialize(db)
        assert "\n" not in str(told.value)
        with pytest.raises(ng.StoreError, match=message):
            db._conditions["steps"].nodes.labels  # noqa: B018
    report = verify(path, sample=1)
    (error,) = (e for e in report.errors if e.file.startswith("conditions/steps"))
    assert message.replace("\\", "") in error.problem


def test_labels_that_were_changed_or_are_gone(path):
    (file,) = (path / "conditions" / "steps").glob("nodes-*")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with ng.open(path) as db, pytest.raises(ng.StoreError, match="not the file on record"):
        reduced.materialize(db)
    assert not verify(path, sample=0).sound
    file.write_bytes(data[:-1])
    with pytest.raises(ng.StoreError, match=r"expected .* to hold .* bytes"):
        ng.open(path)
    assert not verify(path, sample=0).sound
    away = path.parent / "away"
    file.rename(away)
    with pytest.raises(ng.StoreError, match="expected the file"):
        ng.open(path)
    file.symlink_to(away)
    with pytest.raises(ng.StoreError, match="link"):
        ng.open(path)
    assert not verify(path, sample=0).sound


def test_a_record_that_is_too_large(path, monkeypatch):
    with ng.open(path) as db:
        stored = record(path)
        proposal = form.Proposal(stored["asked"], lambda: db._conditions["steps"].nodes.labels)
        monkeypatch.setattr(conditions, "MAX_CONDITION_BYTES", 100)
        with pytest.raises(ng.EventError, match="the limit is 100"):
            conditions.create(path, db.meta, "more", None, None, proposal)


def test_an_older_reader_says_what_it_found(path, monkeypatch):
    """One that knows the version of conditioned tables alone."""
    monkeypatch.setattr(form, "VERSION", 1)
    with pytest.raises(ng.StoreError, match="has format version 2; this release reads version 1"):
        ng.open(path)


def replaced(table, row, **values):
    """Change the keys of a row."""
    rows = table.to_pylist()
    rows[row].update(values)
    return pa.Table.from_pylist(rows, table.schema)


def first(table, keep):
    return next(i for i, row in enumerate(table.to_pylist()) if keep(row))


def is_end(row):
    return row["src_unit"] < 0


def is_step(row):
    return not is_end(row)


def largest(table, keep):
    rows = table.to_pylist()
    places = [i for i, row in enumerate(rows) if keep(row)]
    return max(places, key=lambda i: abs(rows[i]["relevance"]))


def without(table, row):
    return table.filter(np.arange(len(table)) != row)


def shared(row):
    return is_step(row) and row["conditional"] is not None and row["relevance"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, e: (scaled(n, strongest(n), 1.01), e), "its relevance is"),
        (lambda n, e: (n, scaled(e, largest(e, is_step), 1.01)), "its relevance is"),
        (lambda n, e: (n, scaled(e, largest(e, is_end), 1.01)), "and ends below, unit"),
        (lambda n, e: (n, without(e, largest(e, is_end))), "and ends below, unit"),
        (lambda n, e: (n, without(e, largest(e, is_step))), "its relevance is"),
        (
            lambda n, e: (scaled(n, largest(n, lambda r: r["unit"] < 0), 1.01), e),
            "ends in its pseudo-unit",
        ),
        (
            lambda n, e: (n, replaced(e, largest(e, shared), conditional=0.123)),
            "its conditional relevance says",
        ),
        (
            lambda n, e: (n, replaced(e, first(e, lambda r: r["dst_layer"] == 3), conditional=0.1)),
            "a conditional relevance of several neurons",
        ),
        (lambda n, e: (replaced(n, 0, layer_id=2), e), "a layer that is not watched"),
        (lambda n, e: (replaced(n, len(n) - 1, unit=1), e), "a unit that is no node"),
        (lambda n, e: (replaced(n, 0, unit=-3, activation=None), e), "a unit that is no node"),
        (lambda n, e: (n, replaced(e, first(e, is_end), src_unit=-3)), "no end below a node"),
        (lambda n, e: (n, replaced(e, first(e, is_step), src_layer=2)), "not watched"),
        (lambda n, e: (n, replaced(e, len(e) - 1, dst_unit=1)), "a unit that is no node"),
        (
            lambda n, e: (n, replaced(e, first(e, is_step), dst_layer=0, dst_unit=0)),
            "a step away from the input|a unit that is no node",
        ),
    ],
)
def test_rows_that_cannot_be_true_are_found(path, change, message):
    rewritten(path, change, "steps")
    report = verify(path, sample=0)
    problems = [error.problem for error in report.errors]
    assert any(part in problem for problem in problems for part in message.split("|")), problems
    assert all(error.file.startswith("conditions/steps") for error in report.errors)


def test_facts_that_cannot_be_true_are_found(path):
    rewritten(path, lambda n, e: (n, e), "steps", absorbed=17.0)
    problems = [error.problem for error in verify(path, sample=0).errors]
    assert all("absorbed says 17" in problem for problem in problems)
    assert len(problems) == 2
    rewritten(path, lambda n, e: (n, e), "steps", absorbed=0.0, relevance=0.5)
    report = verify(path, sample=1)
    assert any("recomputed, R(event) is 1" in error.problem for error in report.errors)


def test_an_honest_copy_is_sound(path):
    rewritten(path, lambda n, e: (n, e), "steps")
    report = verify(path, sample=3)
    assert report.sound, report.findings


def test_tables_of_another_event_are_found(path):
    """Lawful, but not those of what is on record: seen when they are computed again."""
    with ng.open(path) as db:
        reduced.materialize(db, "given", reduced.EVENT)
    event = ng.event_to_json(ng.Layer("stem")[0])
    edit(path, lambda raw: raw.update(event=event), name="given")
    assert verify(path, sample=0).sound
    assert any("recomputed" in error.problem for error in verify(path, sample=2).errors)


def test_numbers_that_are_lawful_and_wrong_are_found(path):
    """What one node loses another gains, with all that speaks of it."""

    def change(nodes, edges):
        rows = edges.to_pylist()
        top = max(row["dst_layer"] for row in rows)
        ends = [row for row in rows if row["dst_layer"] == top and row["src_unit"] == -1]
        steps = [row for row in rows if row["dst_layer"] == top and row["src_layer"] == 0]
        if ends and steps and ends[0]["relevance"] and steps[0]["dst_unit"] == ends[0]["dst_unit"]:
            for row, sign in ((ends[0], 1), (steps[0], -1)):
                row["relevance"] += sign * 0.5
                row["conditional"] = None
            units = nodes.to_pylist()
            for unit in units:
                if (unit["layer_id"], unit["unit"]) == (0, steps[0]["src_unit"]):
                    unit["relevance"] -= 0.5
                if (unit["layer_id"], unit["unit"]) == (top, -1):
                    unit["relevance"] += 0.5
            nodes = pa.Table.from_pylist(units, nodes.schema)
        return nodes, pa.Table.from_pylist(rows, edges.schema)

    rewritten(path, change, "steps")
    found = verify(path, sample=8)
    assert any("recomputed, " in f.problem for f in found.findings), found.findings
