"""The command line: events in files, conditioned tables and paths."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import nrm_graph as ng
from nrm_graph.cli import main, overview
from nrm_graph.cli.demo.fashion_cnn import load_demo

pytestmark = pytest.mark.usefixtures("remembered_traces")

if TYPE_CHECKING:
    from pathlib import Path

KEYS = ("test-00000", "test-00001", "test-00002")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("conditions") / "demo.nrm"
    model, inputs = load_demo()
    classes = [f"class {i}" for i in range(10)]
    options: dict[str, Any] = {"classes": classes, "target": [9, 2], "progress": False}
    with ng.extract(model, inputs[:3], path, **options) as db:
        assert tuple(sorted(db._snapshot.by_key)) == KEYS
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "s.nrm")


def words(out: str) -> dict[str, str]:
    """Facts by name, without what they mean."""
    return dict(re.split(r"  +", line)[:2] for line in out.splitlines() if line)


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main.main(list(argv)) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out, printed.err


EVENT = "features.6[5] | features.6[7]"


def test_an_event_is_saved_and_read(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "event.json"
    ask = ["relevance", str(store), "--input", KEYS[0], "--target", "class 9"]
    first = words(run(capsys, *ask, EVENT, "--save-event", str(file))[0])
    assert first["target"] == "9 (class 9)"
    assert (
        ng.event_from_json(json.loads(file.read_text()))
        == ng.Layer("features.6")[5] | (ng.Layer("features.6")[7])
    )
    again = words(run(capsys, *ask, f"@{file}")[0])
    assert again == first
    assert -10 < float(first["absorbed"]) < 10
    given = words(run(capsys, *ask, "features.0[1]", "--given", f"@{file}")[0])
    with ng.open(store) as db:
        m = db.measure(KEYS[0], target=9)
        event = ng.event_from_json(json.loads(file.read_text()))
        assert float(given["absorbed"]) == pytest.approx(m.given(event).absorbed, rel=1e-4)
        assert float(first["absorbed"]) == pytest.approx(m.absorbed, rel=1e-4)
        expected = m(ng.Layer("features.0")[1], given=event)
    assert float(given["relevance"]) == pytest.approx(expected, rel=1e-4)


def test_targets_are_those_of_measures(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["relevance", str(store), "--input", KEYS[0], "--format", "json", "features.0[1]"]
    with ng.open(store) as db:
        for text, target in (
            ("2", 2),
            ("class 2", 2),
            ("2=1,9=-1", {2: 1, 9: -1}),
            ("class 2=.5, 4=2", {2: 0.5, 4: 2}),
        ):
            (row,) = json.loads(run(capsys, *ask, "--target", text)[0])
            assert row["target"] == (text if isinstance(target, dict) else 2)
            expected = db.measure(KEYS[0], target)(ng.Layer("features.0")[1])
            assert row["relevance"] == pytest.approx(expected, rel=1e-5)
    for text in ("2=", "=1", "2=1,2=1", "cat=1", "2=x", "", "2=nan", "99", "99=1"):
        out, err = run(capsys, *ask, "--target", text, code=3)
        assert not out
        assert err.startswith("nrm-graph: ")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 3, "cannot read the event"),
        ("{", 5, "holds no JSON"),
        ("[" * 10_000, 5, "holds no JSON"),
        ("[]", 5, "holds no event: expected an event as a JSON object"),
        ('{"event": "eval"}', 5, "holds no event: in an event, expected event to be one of"),
        ('{"event": "units", "layer": "nothing", "ids": [1]}', 5, "nothing"),
    ],
)
@pytest.mark.parametrize("command", ["relevance", "given", "materialize"])
def test_a_file_that_holds_no_event(
    store: Path,
    tmp_path: Path,
    text: str | None,
    code: int,
    message: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "event.json"
    if text is not None:
        file.write_text(text)
    ask = ["relevance", str(store), "--input", KEYS[0], "--target", "9"]
    argv = {
        "relevance": [*ask, f"@{file}"],
        "given": [*ask, "features.6[5]", "--given", f"@{file}"],
        "materialize": ["materialize", str(store), "--name", "b", f"@{file}"],
    }[command]
    out, err = run(capsys, *argv, code=code)
    assert not out
    assert message in err
    assert err.startswith("nrm-graph: ")
    assert err.count("\n") == 1
    assert not (store / "conditions").exists()


def test_materialize(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["materialize", str(store), "--name", "Bags", EVENT, "--where", "target = 9"]
    out, err = run(capsys, *argv)
    assert out == f"{store} holds Bags_nodes and Bags_edges of 3 inputs\n"
    assert not err
    assert run(capsys, *argv, "--quiet")[0] == out
    query = (
        "SELECT key, i.relevance AS given, n.relevance FROM bags_nodes n "
        "JOIN bags_inputs i USING (input_id) JOIN inputs USING (input_id) "
        "JOIN layers USING (layer_id) WHERE name = 'features.0' ORDER BY key, unit"
    )
    rows = list(
        csv.DictReader(io.StringIO(run(capsys, "sql", str(store), query, "--format=csv")[0]))
    )
    assert {row["key"] for row in rows} == set(KEYS)
    out, _ = run(capsys, "info", str(store))
    (line,) = [line for line in out.splitlines() if line.startswith("condition")]
    event = "(features.6[5] | features.6[7])"
    assert line == f"condition: Bags: {event} where target = 9, 3 inputs, 0 undefined"
    assert run(capsys, "verify", str(store), "--sample", "1")[0].endswith("sound\n")
    event_file = tmp_path / "e.json"
    event_file.write_text(json.dumps(ng.event_to_json(ng.Layer("features.6")[[]])))
    out, _ = run(capsys, "materialize", str(store), "--name", "none", f"@{event_file}")
    assert "6 inputs, 6 undefined (see reason in none_inputs)" in out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--name", "a b", EVENT], 3, "cannot name a condition"),
        (["--name", "../x", EVENT], 3, "cannot name a condition"),
        (["--name", "nodes", EVENT], 3, "it is a table of the store"),
        (["--name", "b", "features.6["], 5, "cannot read the expression"),
        (["--name", "b", "nothing[1]"], 5, "nothing"),
        (["--name", "b", EVENT, "--where", "nothing = 1"], 7, "nothing"),
        (["--name", "b", EVENT, "--where", "true) OR (true"], 7, "one SQL condition"),
        ([EVENT], 2, "--name"),
        (["--name", "b"], 2, "EXPR"),
    ],
)
def test_mistakes_of_materialize(
    store: Path, argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "materialize", str(store), *argv, code=code)
    assert not out
    assert message in err
    assert not (store / "conditions").exists()


def test_another_event_of_the_name(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "materialize", str(store), "--name", "b", EVENT)
    _, err = run(capsys, "materialize", str(store), "--name", "b", "features.6[5]", code=6)
    assert "made with another event" in err


def test_a_hostile_condition(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "conditions" / "b").mkdir(parents=True)
    (store / "conditions" / "b" / "condition.json").write_text('{"event": "\\u001b[2J"}')
    for argv in (["info", str(store)], ["sql", str(store), "SELECT 1"]):
        out, err = run(capsys, *argv, code=6)
        assert not out
        assert err.count("\n") == 1
        assert "\x1b" not in err


# Paths


def test_paths_in_words(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["paths", str(store), "--input", KEYS[0], "--target", "9"]
    out, err = run(capsys, *ask, "--layers", "features.6, classifier.0", "--k", "2")
    with ng.open(store) as db:
        m = db.measure(KEYS[0], target=9)
        found = m.paths(2, ["features.6", "classifier.0"])
    *lines, last = out.splitlines()
    assert found.layers == ("classifier.0", "features.6")
    for rank, (line, path) in enumerate(zip(lines, found, strict=True), 1):
        channel, row, column = np.unravel_index(path.units[1][1], (32, 7, 7))
        assert line.split() == [
            str(rank),
            f"{path.relevance:.6g}",
            *f"classifier.0[{path.units[0][1]}] > features.6[{channel}, {row}, {column}]".split(),
        ]
    sure = "certified" if found.certified else "not certified"
    assert last == f"a path that is not listed has at most {found.bound:.3g}: {sure}"
    assert not [line for line in err.splitlines() if not line.startswith("note: ")]


def test_paths_as_a_table(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["paths", str(store), "--input", KEYS[0], "--target", "9", "--by", "neuron", "--k", "3"]
    out, err = run(capsys, *ask, "--format", "json", "--given", EVENT)
    rows = json.loads(out)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]  # three of each sign
    with ng.open(store) as db:
        m = db.measure(KEYS[0], target=9).given(ng.Layer("features.6")[[5, 7]])
        for row in rows:
            sets = [
                ng.Layer(layer).units([unit])
                for layer, unit in zip(row["layers"], row["units"], strict=True)
            ]
            walk = sets[0]
            for one in sets[1:]:
                walk = walk & one
            # A walk of this network is named by all its neurons: the event is the walk.
            assert m(walk) == pytest.approx(row["relevance"], rel=1e-3)
            assert row["units"][2] // 49 in (5, 7)
    assert "note: a path that is not listed has at most" in err
    file = tmp_path / "p.csv"
    run(capsys, *ask, "--output", str(file))
    assert file.read_text().startswith('"rank","relevance","path","layers","units","names"\n')


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--input", "nothing"], 3, "no input 'nothing'"),
        (["--input", KEYS[0]], 3, "has the targets 2 (class 2), 9 (class 9)"),
        (["--input", KEYS[0], "--target", "5"], 3, "has the targets 2 (class 2), 9 (class 9)"),
        (
            ["--input", KEYS[0], "--target", "cat"],
            3,
            "a number, the name of a class or",
        ),
        (["--input", KEYS[0], "--target", "9", "--given", "nothing[1]"], 5, "nothing"),
        (["--input", KEYS[0], "--target", "9", "--given", "features.6[[]]"], 5, "undefined"),
        (["--input", KEYS[0], "--k", "0"], 2, "at least 1"),
        (["--input", KEYS[0], "--by", "pixel"], 2, "is not one of"),
        (["--input", KEYS[0], "--layers", "a,,b"], 2, "names with commas"),
    ],
)
def test_mistakes_of_paths(
    store: Path, argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "paths", str(store), *argv, code=code)
    assert not out
    assert message in err


def test_paths_of_channels_in_a_store_of_neurons(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["paths", str(store), "--input", KEYS[0], "--target", "9", "--by", "channel"]
    out, _ = run(capsys, *ask, "--layers", "features.6,features.3", "--k", "1", "--format", "json")
    (row,) = json.loads(out)
    with ng.open(store) as db:
        m = db.measure(KEYS[0], target=9)
        (a, b) = row["units"]
        assert row["path"] == f"features.6[{a}] > features.3[{b}]"
        event = ng.Layer("features.6")[a] & ng.Layer("features.3")[b]
        assert m(event) == pytest.approx(row["relevance"], rel=1e-4)


def test_a_conditioned_subgraph(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "g.json"
    ask = ["subgraph", str(store), "--input", KEYS[0], "--target", "9", "--top", "50"]
    run(capsys, *ask, "--given", "features.6[5]", "--output", str(file))
    graph = json.loads(file.read_text())
    units = {node["unit"] // 49 for node in graph["nodes"] if node["layer"] == "features.6"}
    assert units == {5}


def test_units_as_expressions(store: Path, tmp_path: Path) -> None:
    with ng.open(store) as db:
        m = db.measure(KEYS[0], target=9)
        assert overview.unit_text(m, "classifier.1", 3) == "classifier.1[3]"
        assert overview.unit_text(m, "features.6", 743) == "features.6[15, 1, 1]"
        assert overview.unit_text(m, "features.6", -2) == "features.6 stabilizer"
    model, inputs = load_demo()
    layers = {"features.6": "channel", "features.3": "token", "features.0": "feature"}
    options: dict[str, Any] = {"target": 9, "resolution": layers, "progress": False}
    with ng.extract(model, inputs[:1], tmp_path / "c.nrm", **options) as db:
        m = db.measure(KEYS[0])
        assert overview.unit_text(m, "features.6", 15) == "features.6[15]"
        assert overview.unit_text(m, "features.6", 743, "neuron") == "features.6[15, 1, 1]"
        assert overview.unit_text(m, "features.3", 4) == "features.3[0, 4]"
        assert overview.unit_text(m, "features.0", 4) == "features.0[..., 4]"
