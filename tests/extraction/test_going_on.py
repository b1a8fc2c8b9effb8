"""A store goes on as it was made: options that are not given are its own, others must agree."""

import shutil

import numpy as np
import pytest
import torch
from helpers import small
from helpers.make_format1 import PATH
from helpers.tiny_stores import edit
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import main

ROWS = [{"input": x, "key": f"k{i}", "label": "b"} for i, x in enumerate(small.X)]
MADE = {
    "rules of one's own": {
        "composite": ng.composites.composite("mine", {"dense": ng.rules.Gamma(0.5)}),
        "resolution": {"0": np.array([0, 0, 1, 1, 2, 2])},
        "mantissa_bits": 7,
    },
    "pruned": {"coverage": 0.9, "top": 5, "preprocessing": "as it is"},
    "bounded": {"max_edges": 20, "composite": "epsilon_plus"},
    "labels": {"classes": ["a", "b", "c", "d"], "target": "label", "max_edges": "all"},
}


def facts(db):
    tables = [db.sql(f"SELECT * FROM {t} ORDER BY ALL").fetchall() for t in ("nodes", "edges")]
    return tables, {k: v for k, v in db.meta.items() if k != "seal"}


@pytest.mark.parametrize("made", MADE)
def test_what_is_not_given_is_the_store_s(made, tmp_path):
    """Inputs that are added later give the same rows as all at once."""
    options = {"progress": False, **MADE[made]}
    whole = ng.extract(small.program(), ROWS[:4], tmp_path / "whole.nrm", **options)
    first = ng.extract(small.program(), ROWS[:2], tmp_path / "s.nrm", **options)
    target = {k: v for k, v in options.items() if k == "target"}
    again = ng.extract(first.program, ROWS[2:4], first.path, progress=False, **target)
    assert facts(again) == facts(whole)
    assert again.verify(sample=1).sound
    ng.extract(first.program, ROWS[4:5], first.path, **options)  # what is given may agree


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"composite": "epsilon_plus"}, "another composite"),
        ({"resolution": "feature"}, "another resolution of layer input"),
        ({"coverage": 0.5}, "another coverage: it has 0.8, asked for is 0.5"),
        ({"top": 4}, "another top: it has 3, asked for is 4"),
        ({"max_edges": 20}, 'another max_edges: it has "all", asked for is 20'),
        ({"mantissa_bits": 9}, "another mantissa_bits: it has 8, asked for is 9"),
        ({"classes": ["a", "b", "c", "e"]}, "another classes"),
        ({"preprocessing": "none"}, 'another preprocessing: it has "as it is"'),
        ({"weights": "named"}, 'another choice of weights: it has "copy", asked for is "named"'),
    ],
)
def test_what_is_given_and_differs_is_refused(many_options, given, message):
    before = sorted(many_options.rglob("*"))
    with pytest.raises(ng.StoreError, match=message):
        ng.extract(small.program(), ROWS[1:2], many_options, progress=False, **given)
    assert sorted(many_options.rglob("*")) == before


@pytest.fixture(scope="module")
def many_options(tmp_path_factory):
    path = tmp_path_factory.mktemp("on") / "s.nrm"
    options = {
        "composite": "epsilon",
        "coverage": 0.8,
        "top": 3,
        "mantissa_bits": 8,
        "classes": ["a", "b", "c", "d"],
        "preprocessing": "as it is",
    }
    ng.extract(small.program(), ROWS[:1], path, progress=False, **options)
    return path


@pytest.mark.parametrize("given", [{"max_edges": "all"}, {"max_edges": 21}, {"coverage": 0.5}])
def test_another_bound_is_refused(given, tmp_path):
    db = ng.extract(small.program(), ROWS[:1], tmp_path / "s.nrm", max_edges=20, progress=False)
    message = f"another {next(iter(given))}"
    with pytest.raises(ng.StoreError, match=message):
        ng.extract(db.program, ROWS[1:2], db.path, progress=False, **given)
    ng.extract(db.program, ROWS[1:2], db.path, max_edges=20, progress=False)


def test_another_program_is_named_first(many_options):
    """A composite or partition of the store need not fit another network."""
    other = ng.trace(nn.Linear(8, 3), small.X[:1])
    with pytest.raises(ng.StoreError, match="another program"):
        ng.extract(other, ROWS[1:2], many_options, progress=False)


def test_a_store_of_format_1_goes_on(tmp_path):
    """It has a composite, partition, classes and words of its own, and no max_edges at all."""
    path = shutil.copytree(PATH, tmp_path / "s.nrm")
    with ng.open(path) as db:
        settings = (path / "store.json").read_bytes()
        row = {"input": np.float32([1.0, 0.5, 1.5]), "key": "new.png", "label": "dog"}
        more = ng.extract(db.program, [row], path, target=["label"], progress=False)
        assert (path / "store.json").read_bytes() == settings
        assert more.sql("SELECT target FROM inputs WHERE key = 'new.png'").fetchall() == [(1,)]
        assert more.verify(sample=5).sound
        expected = ng.measure(
            db.program,
            torch.from_numpy(row["input"]),
            target=1,
            composite="epsilon",
            resolution=db.units(),
        ).marginal("0")
        np.testing.assert_array_equal(more.measure("new.png").marginal("0"), expected)


def test_pairs_that_an_earlier_release_pruned_by_itself_stay_pruned(tmp_path):
    """Where nothing is asked for; its coverage says nothing of them."""
    db = ng.extract(small.program(), ROWS[:1], tmp_path / "s.nrm", progress=False)
    edit(db.path / "store.json", pruned=[[1, 0, 0.6, None]])
    for given in ({"coverage": 1.0}, {"max_edges": "all"}):
        with pytest.raises(ng.StoreError, match="edges of 1 pair of layers out, as its release"):
            ng.extract(db.program, ROWS[1:2], db.path, progress=False, **given)
    db = ng.extract(db.program, ROWS[1:2], db.path, progress=False)
    pruned = "SELECT count(*), max(dst_layer) FROM edges WHERE dst_unit = -3 AND src_unit = -3"
    assert db.sql(pruned, inputs=["k1"]).fetchall() == [(1, 1)]


def test_the_command_line_goes_on_as_the_store_was_made(tmp_path, monkeypatch, capsys):
    """Neither the model's own classes nor how inputs are prepared now are what was asked for."""
    from nrm_graph.cli import models

    monkeypatch.setattr(models, "check_model", lambda spec: None)
    monkeypatch.setattr(
        models, "load_model", lambda spec: (small.program(), None, ("p", "q", "r", "s"))
    )
    np.save(tmp_path / "a.npy", small.X[:2].numpy())
    np.save(tmp_path / "b.npy", small.X[2:4].numpy())
    (tmp_path / "classes").write_text("a\nb\nc\nd\n")
    store = ["--store", str(tmp_path / "s.nrm"), "--quiet"]
    first = ["extract", "m:f", str(tmp_path / "a.npy"), *store]
    options = ["--composite", "epsilon", "--coverage", "0.9", "--mantissa-bits", "8"]
    options += ["--classes", str(tmp_path / "classes"), "--resolution", "0=feature"]
    assert main.main([*first, *options, "--preprocessing", "my words"]) == 0
    again = ["extract", "m:f", str(tmp_path / "b.npy"), *store]
    capsys.readouterr()
    assert main.main(again) == 0
    printed = capsys.readouterr()
    assert "holds 4 inputs" in printed.out
    assert "prepared thus: my words; these were: floats as they stand in the file" in printed.err
    for option in (["--composite", "epsilon_gamma"], ["--coverage", "1"], ["--weights", "named"]):
        assert main.main([*again, *option]) == 6
        assert "made with another" in capsys.readouterr().err
    with ng.open(tmp_path / "s.nrm") as db:
        assert db.meta["classes"] == ["a", "b", "c", "d"]
        assert db.meta["preprocessing"] == "my words"
        assert db.verify(sample=4).sound
