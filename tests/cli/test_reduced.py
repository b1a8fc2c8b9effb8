"""The command line: reduced graphs of one input, and reduced tables of many."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import reduced
from helpers.attribution_schema import valid

import nrm_graph as ng
from nrm_graph.cli import main

if TYPE_CHECKING:
    from pathlib import Path

EVENT = ng.Layer("block")[0]
KEY = ("--input", "k0", "--target", "0")
NODES = ("--watch", "stem", "--watch", "x[:, :2]", "--by", "stem=channel", "--nodes", "stem=2,x=3")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("reduced") / "s.nrm"
    reduced.extract(path, reduced.Images(2)).close()
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "s.nrm")


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main.main(list(argv)) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out, printed.err


def expected(store: Path, given: bool = False) -> ng.Measure:
    with ng.open(store) as db:
        m = db.measure("k0", target=0)
        m = m.given(EVENT) if given else m
        watch = ["stem", ng.Layer("x")[:, :2]]
        return m.reduced(watch, {"stem": "channel"}, {"stem": 2, "x": 3})


@pytest.mark.parametrize("given", [False, True])
def test_reduce(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: bool
) -> None:
    file = tmp_path / "g.json"
    condition = ("--given", "block[0]") if given else ()
    out, _ = run(capsys, "reduce", str(made), *KEY, *NODES, *condition, "--output", str(file))
    r = expected(made, given)
    first, _, *lines = out.splitlines()
    assert first == f"{file}: {len(r.graph())} nodes, {len(r.edges) + len(r.ends)} edges"
    assert lines[0].split()[:4] == ["layer", "nodes", "share", "relevance"]
    assert [line.split()[:2] for line in lines[2:5]] == [["head", "1"], ["stem", "2"], ["x", "3"]]
    rows = sorted(
        (*r.edges.to_pylist(), *r.ends.to_pylist()), key=lambda row: -abs(row["relevance"])
    )
    shown = next(line for line in lines if " head[0] " in line).split()
    largest = next(row for row in rows if row["dst_unit"] == 0 and row["dst_layer"] == 5)
    assert f"{largest['relevance']:.6g}" in shown
    assert any("(input not watched)" in line for line in lines)
    graph = json.loads(file.read_text())
    assert len(graph["nodes"]) == len(r.graph())


def test_reduce_watches_by_itself(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "reduce", str(made), *KEY, "--nodes", "all")
    with ng.open(made) as db:
        r = db.measure("k0", target=0).reduced(nodes=None)
    assert [line.split()[0] for line in out.splitlines()[2 : 2 + len(r.watched)]] == [
        r.topology.layers[layer.layer_id].name for layer in r.watched
    ]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--watch", "stems"], 5, "there is no layer 'stems'"),
        (["--watch", "stem[1] | x[0]"], 5, "expected layers or neurons of one layer to watch"),
        (["--watch", "stem", "--by", "stem=odd"], 3, "unknown resolution 'odd'"),
        (["--watch", "stem", "--nodes", "0"], 2, "expected at least 1"),
        (["--watch", "stem", "--nodes", "few"], 2, "expected a whole number"),
        (["--output", "a.xls"], 3, "ends in"),
    ],
)
def test_wrong_usage(
    made: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    _, told = run(capsys, "reduce", str(made), *KEY, *argv, code=code)
    assert message in told


def test_reduced_tables(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(store)
    out, _ = run(capsys, "materialize", path, "--name", "steps", *NODES, "--quiet")
    assert out == f"{path} holds steps_nodes and steps_edges of 4 inputs\n"
    run(capsys, "materialize", path, "--name", "given", "block[0]", *NODES, "--quiet")
    out, _ = run(capsys, "info", path)
    assert "condition: steps: 7 nodes, 4 inputs, 0 undefined" in out
    assert "condition: given: 7 nodes given block[0], 4 inputs, 0 undefined" in out
    out, _ = run(capsys, "sql", path, "SELECT name, nodes FROM steps_layers", "--format", "csv")
    assert sorted(out.split()[1:]) == ['"head",2', '"stem",2', '"x",3']
    ask = ("circuit", path, "--tables", "steps", "--target", "0")
    out, _ = run(capsys, *ask, "--format", "json")
    with ng.open(store) as db:
        graph = db.circuit(tables="steps", target=0)
    assert len(json.loads(out)) == graph.number_of_edges()
    out, _ = run(capsys, *ask)
    assert "tables      steps" in out
    file = tmp_path / "c.parquet"
    run(capsys, *ask, "--output", str(file))
    assert file.exists() or any(tmp_path.glob("c*parquet"))
    contrast = ("contrast", path, "key = 'k0'", "key = 'k1'", "--target", "0")
    out, _ = run(capsys, *contrast, "--tables", "steps", "--format", "csv")
    assert len(out.splitlines()) > 5
    _, told = run(capsys, "materialize", path, "--name", "steps", "--watch", "stem", code=6)
    assert "was made with another watch" in told
    _, told = run(capsys, "materialize", path, "--name", "more", code=2)
    assert "expected EXPR, --watch, or both" in told
    out, _ = run(capsys, "verify", path)
    assert "2 conditions, 3 recomputed: sound" in out
    out, _ = run(capsys, "drop", path, "steps")
    assert "dropped steps, which held 4 inputs" in out


def test_reduce_writes_an_attribution_graph(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "g.attribution.json"
    out, _ = run(capsys, "reduce", str(made), *KEY, *NODES, "--output", str(file))
    data = json.loads(file.read_text())
    valid(data)
    nodes, edges = len(data["nodes"]), len(data["links"])
    assert out.splitlines()[0] == f"{file}: {nodes} nodes, {edges} edges"


def test_reduce_writes_a_page_with_maps(
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("plotly")
    file = tmp_path / "g.html"
    given = ("--given", "block[0]", "--output", str(file))
    run(capsys, "reduce", str(made), *KEY, *NODES, *given)
    page = file.read_text("utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    r = expected(made, given=True)
    names = list(r.graph())
    maps = r.maps()
    assert maps is not None
    stem = {node for node in names if node[0] == "stem" and node[1] >= 0}
    assert {names[i] for i in data["pictured"]} == set(maps) == stem
    assert page.count("<img ") == 1
    image = r.image
    assert image is not None
    assert image[..., 0].tolist() == reduced.Images(1)[0]["input"][0].tolist()
    for text in ("s.nrm", "k0", repr(EVENT), r.measure.meaning):
        assert f"<bdi>{text}</bdi>" in page
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr("nrm_graph.database.open", lambda *_: pytest.fail("something was computed"))
    _, told = run(capsys, "reduce", str(made), *KEY, *given, code=3)
    assert "pip install 'nrm-graph[explorer]'" in told


def test_no_maps_without_a_picture() -> None:
    m = ng.measure(torch.nn.Linear(3, 2), torch.ones(3), target=0)
    r = m.reduced("input")
    assert r.maps() is None
    assert r.image is None
