"""The commands that show inputs: concepts of a class, and references of a unit."""

from __future__ import annotations

import csv
import io
import json

import pytest
from helpers import bounded
from PIL import Image

import nrm_graph as ng
from nrm_graph.cli import main

WHERE = ("--where", "label = 'a'")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    images = bounded.Images()
    for place, row in enumerate(images.rows):
        row["label"] = "ab"[place % 2]
    path = tmp_path_factory.mktemp("examples") / "s.nrm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        ng.extract(
            bounded.program(), images.rows, path, target=1, resolution="neuron", progress=False
        ).close()
    return path


def run(capsys, *argv, code=0):
    assert main.main(list(map(str, argv))) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out, printed.err


def test_concepts(store, tmp_path, capsys):
    ask = ("concepts", store, *WHERE, "--layer", "second", "--k", "2", "--examples", "3")
    with ng.open(store) as db:
        expected = db.concepts("label = 'a'", "second", 2, examples=3)
    out, _ = run(capsys, *ask)
    assert out == f"{expected!r}\n"
    rows = list(csv.DictReader(io.StringIO(run(capsys, *ask, "--format", "csv")[0])))
    assert [row["name"] for row in rows] == [concept.name for concept in expected]
    assert [float(row["share"]) for row in rows] == pytest.approx([c.share for c in expected])
    picture = tmp_path / "concepts.png"
    assert run(capsys, *ask, "--output", picture)[0] == out
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 200


def test_references(store, tmp_path, capsys):
    ask = ("references", store, "second[1]", *WHERE, "--k", "2", "--by", "activation")
    with ng.open(store) as db:
        expected = db.references(
            ng.Layer("second")[1], k=2, by="activation", where="label = 'a'"
        ).table.to_pylist()
    out, _ = run(capsys, *ask)
    assert out.startswith("<2 of 4 inputs by activation of second[1]>\nkey ")
    assert [line.split()[0] for line in out.splitlines()[3:]] == [row["key"] for row in expected]
    file, picture = tmp_path / "unit.json", tmp_path / "unit.svg"
    run(capsys, *ask, "--output", file)
    assert [row["activation"] for row in json.loads(file.read_text())] == pytest.approx(
        [row["activation"] for row in expected]
    )
    run(capsys, *ask, "--output", picture)
    assert picture.read_text().count(expected[0]["key"]) > 0


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["concepts", "{store}", "--layer", "none"], 5, "none"),
        (["concepts", "{store}"], 2, "--layer"),
        (["concepts", "{store}", "--layer", "second", "--k", "0"], 2, "at least 1"),
        (
            ["concepts", "{store}", "--layer", "second", "--where", "label ="],
            7,
            "where cannot be parsed",
        ),
        (["concepts", "{none}", "--layer", "second", "--output", "{none}/c.png"], 3, "no folder"),
        (["references", "{none}", "second[1]", "--output", "c.gif"], 3, "c.gif"),
        (["references", "{none}", "x[", "--output", "c.png"], 5, "x["),
        (["references", "{store}", "second[1] & first[0]"], 5, "one layer"),
        (["references", "{none}", "x", "--output", "c.png", "--format", "csv"], 3, "picture"),
    ],
)
def test_mistakes_are_named(store, tmp_path, capsys, argv, code, message):
    places = {"store": store, "none": tmp_path / "none"}
    _, err = run(capsys, *(word.format(**places) for word in argv), code=code)
    assert message in err
    assert not (tmp_path / "c.png").exists()
