"""The command line: help, usage, and each command on the demo network."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pytest

from nrm_graph import cli, models
from nrm_graph.demo_network import FashionCNN, load_demo

if TYPE_CHECKING:
    from pathlib import Path


COMMANDS = ("demo", "extract", "info", "sql", "relevance", "subgraph")


# Arguments


def test_help_shows_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in COMMANDS)
    for name in COMMANDS:
        assert cli.main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"example:\n  nrm-graph {name} " in text
        assert "exit codes:" in text
    assert cli.main(["extract", "--help"]) == 0
    assert "trust" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "COMMAND"),
        (["nothing"], 2, "invalid choice"),
        (["sql", "s.nrm", "q", "--format", "xml"], 2, "invalid choice"),
        (["extract", "m", "i", "--store", "s", "--target", "cat"], 2, "expected predicted"),
        (["extract", "m", "i", "--store", "s", "--batch-size", "0"], 2, "at least 1"),
        (["extract", "m", "i", "--store", "s"], 3, "cannot tell what model"),
        (["relevance", "s.nrm", "--input", "k", "a[1"], 5, "expected ']'"),
        (["subgraph", "s.nrm", "--input", "k", "--output", "a.xls"], 3, "ends in"),
        (["demo", "--picture", "a.xls"], 3, "ends in"),
    ],
)
def test_usage_errors(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not printed.out


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(spec: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load_model", stop)
    assert cli.main(["extract", "m", "i", "--store", "never.nrm"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_is_light() -> None:
    code = (
        "import sys; from nrm_graph import cli; cli.main(['--help'])\n"
        "heavy = {'torch', 'duckdb', 'pyarrow', 'matplotlib', 'networkx'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Commands, on three images of the demo


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of three images, written by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    _, inputs = load_demo()
    np.savez(
        folder / "three.npz",
        images=np.stack([(item["input"][0].numpy() * 255).round() for item in inputs[:3]]).astype(
            np.uint8
        ),
        labels=np.array([item["label"] for item in inputs[:3]]),
    )
    path = folder / "relevance.nrm"
    made = types.ModuleType("nrm_cli_models")
    made.demo = lambda: load_demo()[0]  # type: ignore[attr-defined]
    sys.modules[made.__name__] = made
    try:
        argv = ["extract", "nrm_cli_models:demo", str(folder / "three.npz"), "--store", str(path)]
        assert cli.main([*argv, "--quiet"]) == 0
    finally:
        del sys.modules[made.__name__]
    return path


def test_info(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(store)]) == 0
    out = capsys.readouterr().out
    assert "features.0" in out
    assert "epsilon_gamma" in out
    assert cli.main(["info", str(store), "--format", "json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert names == ["x", *(f"features.{i}" for i in (0, 3, 6)), "classifier.0", "classifier.3"]


def test_sql(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT key, label FROM inputs ORDER BY key"
    output = tmp_path / "t.csv"
    assert cli.main(["sql", str(store), query, "--output", str(output)]) == 0
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["key"] for row in rows] == ["three-00000", "three-00001", "three-00002"]
    assert rows[0]["label"] == "ankle boot"
    capsys.readouterr()
    assert cli.main(["sql", str(store), "DROP TABLE inputs"]) == 7
    assert cli.main(["sql", str(store), "SELECT nothing FROM inputs"]) == 7
    assert cli.main(["sql", str(store), "SELECT CAST(key AS INTEGER) FROM inputs"]) == 7
    assert "Traceback" not in capsys.readouterr().err


def test_relevance(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*argv: str) -> dict[str, Any]:
        base = ["relevance", str(store), "--input", "three-00000", "--format", "json"]
        assert cli.main([*base, *argv]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert isinstance(row, dict)
        return row

    event, given = "features.3[2]", "features.6[5] | features.6[7]"
    joint = ask(f"{event} & ({given})")["relevance"]
    row = ask(event, "--given", given)
    assert row["relevance"] * ask(given)["relevance"] == pytest.approx(joint, rel=1e-4)
    assert row["amplification"] >= 1
    total = ask(event)["relevance"] + ask(f"~{event}")["relevance"]
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("suffix", [".graphml", ".json", ".png"])
def test_subgraph(store: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"g{suffix}"
    argv = ["subgraph", str(store), "--input", "three-00000", "--top", "30"]
    assert cli.main([*argv, "--output", str(output)]) == 0
    if suffix == ".graphml":
        assert nx.read_graphml(output).number_of_edges() == 30
    assert output.stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["info", "{none}"], 6),
        (["relevance", "{store}", "--input", "nothing", "features.0[1]"], 3),
        (["relevance", "{store}", "--input", "three-00000", "nothing[1]"], 5),
        (["relevance", "{store}", "--input", "three-00000", "features.0[99]"], 5),
        (["info", "{store}", "--output", "{none}/t.csv"], 3),
    ],
)
def test_command_errors(
    store: Path, argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"{store}": str(store), "{none}": str(store / "none")}
    for name, value in names.items():
        argv = [part.replace(name, value) for part in argv]
    assert cli.main(argv) == code
    printed = capsys.readouterr().err
    assert printed.startswith("nrm-graph: ")
    assert "Traceback" not in printed


def test_demo_of_three_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import nrm_graph.demo_network

    model, inputs = load_demo()
    assert isinstance(model, FashionCNN)
    monkeypatch.setattr(nrm_graph.demo_network, "load_demo", lambda: (model, inputs[:3]))
    picture = tmp_path / "demo.svg"
    argv = ["demo", "--store", str(tmp_path / "demo.nrm"), "--picture", str(picture)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for text in ("Conservation", "joint", "conditional", "mean_relevance", "Try next", "svg"):
        assert text in out
    assert picture.stat().st_size > 1000
