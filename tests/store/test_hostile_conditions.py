"""Conditions from strangers, damaged ones, and ones whose tables cannot be true."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers import interrupted
from helpers.materialized import (
    CHANNEL,
    COUNT,
    PIXEL,
    edit,
    rewritten,
    rows,
    scaled,
    strongest,
)

import nrm_graph as ng
from nrm_graph.store.read import conditions
from nrm_graph.store.verify import verify


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory):
    path = tmp_path_factory.mktemp("conditioned") / "s.nrm"
    with interrupted.extract(path, COUNT, 2) as db:
        db.materialize(PIXEL, name="B", where="target = 1", progress=False)
    return path


@pytest.fixture
def damaged(conditioned, tmp_path):
    return shutil.copytree(conditioned, tmp_path / "d.nrm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3"),
        ({"format_version": 2}, "expected asked to be there"),
        ({"format_version": True}, "format version True"),
        ({"name": "C"}, "name to be that of the folder"),
        ({"name": "../../x"}, "cannot name a condition"),
        ({"name": "nodes"}, "cannot name a condition"),
        ({"name": 3}, "name to be text, found 3"),
        ({"where": 3}, "where to be null or text"),
        ({"program_hash": "0" * 64}, "another program"),
        ({"program_hash": None}, "program_hash to be text"),
        ({"store": "x\n"}, "store to be 64 hexadecimal digits"),
        ({"store": "0" * 64}, "another store"),
        ({"event": "__import__('os')"}, "expected an event"),
        ({"event": {"event": "eval", "of": "1"}}, "one of indexed"),
        ({"event": None}, "expected an event"),
        ({"more": 1}, "expected more to be absent"),
    ],
)
def test_a_hostile_condition(damaged, change, message):
    edit(damaged, lambda raw: raw.update(change))
    with pytest.raises(ng.StoreError, match=message) as told:
        ng.open(damaged)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000
    report = verify(damaged, sample=0)
    assert any(message in error.problem for error in report.errors), report.findings
    assert {error.file for error in report.errors} == {"conditions/b/condition.json"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"name": NaN}', "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "expected a JSON object"),
        (b"{}", "format version None"),
        (b'{"a":' * 50_000, "malformed"),
        (b'{"format_version": ' + b"1" * 5000 + b"}", "malformed"),
    ],
)
def test_a_condition_that_is_no_json(damaged, text, message):
    (damaged / "conditions" / "b" / "condition.json").write_bytes(text)
    with pytest.raises(ng.StoreError, match=message):
        ng.open(damaged)
    assert not verify(damaged, sample=0).sound


def test_a_condition_that_is_too_large(damaged, monkeypatch):
    monkeypatch.setattr(conditions, "MAX_CONDITION_BYTES", 100)
    with pytest.raises(ng.StoreError, match="at most 100 bytes"):
        ng.open(damaged)
    edit(damaged, lambda raw: None)
    monkeypatch.undo()
    with ng.open(damaged) as db:
        monkeypatch.setattr(conditions, "MAX_CONDITION_BYTES", 100)
        with pytest.raises(ng.EventError, match="the limit is 100"):
            conditions.create(damaged, db.meta, "c", CHANNEL, None)


def test_links_are_refused(damaged, tmp_path):
    folder = damaged / "conditions"
    for place in (folder / "b" / "condition.json", folder / "b" / "shards", folder / "b", folder):
        away = tmp_path / "away"
        place.rename(away)
        place.symlink_to(away)
        with pytest.raises(ng.StoreError, match="link"):
            ng.open(damaged)
        assert not verify(damaged, sample=0).sound
        place.unlink()
        away.rename(place)
    ng.open(damaged).close()
    (folder / "c").symlink_to(tmp_path)
    with ng.open(damaged) as db, pytest.raises(ng.StoreError, match="link"):
        db.materialize(CHANNEL, name="c", progress=False)


def test_conditions_of_another_store_are_refused(damaged, tmp_path):
    other = tmp_path / "other.nrm"
    with ng.extract(interrupted.network(), interrupted.Images(2), other, target=1, progress=False):
        pass
    shutil.copytree(damaged / "conditions", other / "conditions")
    with pytest.raises(ng.StoreError, match="made with another"):
        ng.open(other)


def test_what_is_unfinished_is_no_condition(damaged):
    folder = damaged / "conditions"
    (folder / "c" / "shards").mkdir(parents=True)
    (folder / "c" / "condition.json.0123.tmp").write_text("{")
    (folder / "odd name").mkdir()
    (folder / ".DS_Store").write_text("x")
    (folder / "b" / "shards" / "x.edges.parquet.tmp").write_text("x")
    with ng.open(damaged) as db:
        assert db.conditions()["name"].to_pylist() == ["B"]
    report = verify(damaged, sample=0)
    assert report.sound
    files = {note.file for note in report.notes}
    assert {"conditions/c", "conditions/odd name", "conditions/.DS_Store"} <= files
    assert "conditions/b/shards/x.edges.parquet.tmp" in files


def test_shards_of_another_kind_are_refused(damaged):
    """The store's own shards, put where a condition's should be."""
    shards = damaged / "conditions" / "b" / "shards"
    shutil.rmtree(shards)
    shutil.copytree(damaged / "shards", shards)
    with pytest.raises(ng.StoreError, match="the condition B of the store is damaged: its shard"):
        ng.open(damaged)
    assert not verify(damaged, sample=0).sound


def test_a_manifest_that_is_damaged(damaged):
    (manifest,) = (damaged / "conditions" / "b" / "shards").glob("*.json")
    manifest.write_text("{}")
    with pytest.raises(ng.StoreError, match="the condition B of the store is damaged"):
        ng.open(damaged)
    assert not verify(damaged, sample=0).sound


@pytest.mark.parametrize("table", ["inputs", "nodes", "edges"])
def test_a_flipped_bit_is_found(damaged, table):
    (file,) = (damaged / "conditions" / "b" / "shards").glob(f"*.{table}.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(bytes(data))
    report = verify(damaged, sample=0)
    assert not report.sound
    assert {error.file for error in report.errors} == {f"conditions/b/shards/{file.name}"}
    assert any("its bytes were changed" in error.problem for error in report.errors)


@pytest.mark.parametrize("suffix", ["inputs.parquet", "nodes.parquet", "edges.parquet", "json"])
def test_bits_are_found_wherever_they_flip(damaged, suffix):
    for file in (damaged / "conditions").rglob(f"*{suffix}"):
        data = file.read_bytes()
        for place in np.linspace(0, len(data) - 1, 25).astype(int):
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 7)
            file.write_bytes(changed)
            report = verify(damaged, sample=0)
            assert not report.sound, (file.name, place)
            assert all(error.file.startswith("conditions/b/") for error in report.errors)
        file.write_bytes(data)
    assert verify(damaged, sample=0).sound


def test_a_sealed_condition_that_was_edited_is_found(damaged):
    edit(damaged, lambda raw: raw.update(where="target = 0"), resealed=False)
    report = verify(damaged, sample=0)
    assert ["sealed" in error.problem for error in report.errors] == [True]


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (lambda n, e: (scaled(n, strongest(n), 1.01), e), {}, "its relevance is"),
        (lambda n, e: (n, scaled(e, strongest(e), 1.01)), {}, "its relevance is"),
        (lambda n, e: (n, e), {"absorbed": 17.0}, "absorbed says 17"),
        (lambda n, e: (n, e), {"status": "undefined"}, "undefined, and has rows"),
        (lambda n, e: (n, e), {"status": "odd"}, "its status is 'odd'"),
        (lambda n, e: (n, e), {"amplification": None}, "its status is 'defined', with"),
    ],
)
def test_tables_that_cannot_be_true_are_found(damaged, change, facts, message):
    rewritten(damaged, change, **facts)
    report = verify(damaged, sample=0)
    assert any(message in error.problem for error in report.errors), report.findings
    assert all(error.file.startswith("conditions/b/") for error in report.errors)


def test_an_honest_copy_is_sound(damaged):
    rewritten(damaged, lambda n, e: (n, e))
    report = verify(damaged, sample=3)
    assert report.sound, report.findings


def test_another_events_tables_are_found(damaged):
    """Consistent in themselves, but of another event: seen when they are computed again."""
    edit(damaged, lambda raw: raw.update(event=ng.event_to_json(ng.Layer("0")[0])))
    assert verify(damaged, sample=0).sound
    report = verify(damaged, sample=10)
    assert any("recomputed, R(event) is" in error.problem for error in report.errors)


def test_inputs_that_the_store_has_not(damaged):
    for file in (damaged / "shards").iterdir():
        file.unlink()
    with ng.open(damaged) as db:
        assert len(db) == 0
        assert not any(rows(db, "B").values())
    report = verify(damaged, sample=0)
    assert any("the store does not hold this input" in e.problem for e in report.notes)
