"""Stores that vanish or are replaced under an open database, and conditions that choose nothing."""

import shutil

import pytest
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph.cli import main

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("gone", [".", "shards", "store.json"])
def test_a_store_that_vanished(three_inputs, gone):
    with ng.open(three_inputs) as db:
        before = len(db)
        target = three_inputs / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        for call in (db.refresh, lambda: ng.open(three_inputs)):
            with pytest.raises(ng.StoreError) as raised:
                call()
            assert str(three_inputs) in str(raised.value)
            assert "\n" not in str(raised.value)
        assert len(db) == before  # it goes on with what it saw


@pytest.mark.parametrize("gone", [".", "shards"])
def test_the_commands_say_so(three_inputs, gone, capsys):
    shutil.rmtree(three_inputs / gone)
    for command in (["info"], ["sql"], ["compact"]):
        argv = [*command, str(three_inputs), *(["SELECT 1"] if command == ["sql"] else [])]
        assert main.main(argv) == 6
        said = capsys.readouterr().err
        assert "expected" in said or "must be a folder" in said
        assert said.count("\n") == 1
    assert main.main(["verify", str(three_inputs), "--sample", "0"]) == 6
    if gone == "shards":
        assert "shards: expected a folder, found none" in capsys.readouterr().out


def test_shards_of_a_condition_that_vanished(conditioned_store, tmp_path):
    path = shutil.copytree(conditioned_store, tmp_path / "s.nrm")
    with ng.open(path) as db:
        shutil.rmtree(path / "conditions" / "b" / "shards")
        for call in (db.refresh, lambda: ng.open(path)):
            with pytest.raises(ng.StoreError, match="the condition b of the store is damaged"):
                call()
        assert set(db._conditions) == {"b"}


def test_another_store_in_its_place(three_inputs, tmp_path):
    with ng.open(three_inputs) as db:
        shutil.rmtree(three_inputs)
        make(three_inputs, coverage=0.5)
        with pytest.raises(ng.StoreError, match=r"another store is at .+: open it anew"):
            db.refresh()
        assert len(db) == 3
        shutil.rmtree(three_inputs)
        write(make(three_inputs), [record(7)])  # the same settings: the same store, extracted again
        db.refresh()
        assert db.sql("SELECT key FROM inputs").fetchall() == [("input7",)]


# --- choices of nothing -----------------------------------------------------------------------

NOTHING = "key = 'nothing'"
CHOICES = {
    "circuit": lambda db: db.circuit(NOTHING),
    "contrast": lambda db: db.contrast(NOTHING, "target = 1"),
    "contrast-b": lambda db: db.contrast("target = 1", NOTHING),
    "stability": lambda db: db.stability(NOTHING),
    "clusters": lambda db: db.clusters(NOTHING),
    "prototypes": lambda db: db.prototypes(db.circuit("target = 1"), NOTHING),
    "references": lambda db: db.references(ng.Layer("0")[1], where=NOTHING),
    "faithfulness": lambda db: ng.evaluate.faithfulness(db, db.circuit("target = 1"), NOTHING),
    "materialize": lambda db: db.materialize(ng.Layer("0")[1], name="c", where=NOTHING),
}


@pytest.mark.parametrize("which", CHOICES)
def test_a_where_that_chooses_nothing(conditioned_store, which):
    with ng.open(conditioned_store) as db:
        with pytest.raises(ng.InputError, match=f'^no input is chosen by where "{NOTHING}"'):
            CHOICES[which](db)
        db.refresh()
        assert set(db._conditions) == {"b"}


def test_commands_whose_where_chooses_nothing(conditioned_store, capsys):
    for argv in (
        ["circuit", str(conditioned_store), "--where", NOTHING],
        ["contrast", str(conditioned_store), NOTHING, "target = 1"],
        ["materialize", str(conditioned_store), "0[1]", "--name", "c", "--where", NOTHING],
    ):
        assert main.main(argv) == 3
        assert "no input is chosen by where" in capsys.readouterr().err
