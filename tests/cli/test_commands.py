"""The command line: each command on the demo network, and as a process."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pytest
import torch
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph.cli import main, models, overview
from nrm_graph.cli.demo.fashion_cnn import FashionCNN, load_demo

pytestmark = pytest.mark.usefixtures("remembered_traces")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(spec: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load_model", stop)
    np.save(tmp_path / "i.npy", np.ones((1, 2)))
    argv = ["extract", "m:f", str(tmp_path / "i.npy"), "--store", str(tmp_path / "never.nrm")]
    assert main.main(argv) == 130
    assert "interrupted" in capsys.readouterr().err


# Commands, on three images of the demo


@pytest.fixture(scope="module")
def module() -> Iterator[str]:
    """Name of a function that gives the demo network."""
    made = types.ModuleType("nrm_cli_models")
    made.demo = lambda: load_demo()[0]  # type: ignore[attr-defined]
    sys.modules[made.__name__] = made
    yield "nrm_cli_models:demo"
    del sys.modules[made.__name__]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, module: str) -> Path:
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
    argv = ["extract", module, str(folder / "three.npz"), "--store", str(path)]
    assert main.main([*argv, "--quiet"]) == 0
    return path


@pytest.mark.smoke
def test_sql(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT key, label FROM inputs ORDER BY key"
    output = tmp_path / "t.csv"
    assert main.main(["sql", str(store), query, "--output", str(output)]) == 0
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["key"] for row in rows] == ["three-00000", "three-00001", "three-00002"]
    assert rows[0]["label"] == "ankle boot"
    capsys.readouterr()
    assert main.main(["sql", str(store), "DROP TABLE inputs"]) == 7
    assert main.main(["sql", str(store), "SELECT nothing FROM inputs"]) == 7
    assert main.main(["sql", str(store), "SELECT CAST(key AS INTEGER) FROM inputs"]) == 7
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.smoke
def test_relevance(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*argv: str) -> dict[str, Any]:
        base = ["relevance", str(store), "--input", "three-00000", "--format", "json"]
        assert main.main([*base, *argv]) == 0
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


@pytest.mark.smoke
@pytest.mark.parametrize("suffix", [".graphml", ".json", ".png"])
@pytest.mark.parametrize("connected", [True, False])
def test_subgraph(
    store: Path,
    tmp_path: Path,
    suffix: str,
    connected: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / f"g{suffix}"
    argv = ["subgraph", str(store), "--input", "three-00000", "--top", "30"]
    argv += [] if connected else ["--no-connected"]
    assert main.main([*argv, "--output", str(output)]) == 0
    with ng.open(store) as db:
        graph = db.measure("three-00000").subgraph(30, connected=connected)
    assert nx.is_weakly_connected(graph) == connected
    if suffix == ".graphml":
        assert nx.read_graphml(output).number_of_edges() == graph.number_of_edges()
        assert 20 < graph.number_of_edges() <= 30
    assert output.stat().st_size > 1000
    said = capsys.readouterr().out
    assert f"sum of |relevance|: {graph.graph['share']:.6g}" in said
    assert ("strongest edges would keep" in said) == connected


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
    assert main.main(argv) == code
    printed = capsys.readouterr().err
    assert printed.startswith("nrm-graph: ")
    assert "Traceback" not in printed


def test_demo_of_three_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import nrm_graph.cli.demo.fashion_cnn

    model, inputs = load_demo()
    assert isinstance(model, FashionCNN)
    monkeypatch.setattr(nrm_graph.cli.demo.fashion_cnn, "load_demo", lambda: (model, inputs[:3]))
    picture = tmp_path / "demo.svg"
    argv = ["demo", "--store", str(tmp_path / "demo.nrm"), "--picture", str(picture)]
    assert main.main(argv) == 0
    out = capsys.readouterr().out
    for text in ("Conservation", "joint", "conditional", "mean_relevance", "Try next", "svg"):
        assert text in out
    assert picture.stat().st_size > 1000


def test_info_says_what_a_store_holds(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["info", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in lines[: lines.index("")])
    with ng.open(store) as db:
        edges = db.sql("SELECT count(*) FROM edges").fetchall()[0][0]
    assert [facts[n] for n in ("inputs", "keys", "targets", "failures")] == ["3", "3", "3", "0"]
    assert facts["edges"] == f"{edges:,}"
    assert re.fullmatch(r"3: [\w ]+ \(1\), [\w ]+ \(1\), [\w ]+ \(1\)", facts["labels"])
    assert facts["some keys"] == "three-00000, three-00001, three-00002"
    tables = dict(re.findall(r"(\w+) \(([\d,]+)\)", facts["tables"]))
    with ng.open(store) as db:
        for name, count in tables.items():
            assert count == f"{len(db.sql(f'FROM {name}')):,}"
        everything = [name for (name,) in db.sql("SHOW TABLES").fetchall()]
    assert sorted(re.findall(r"(\w+)(?: \(.*?\))?(?:, |$)", facts["tables"])) == everything
    assert {*everything} - {*tables} == {"flows", "thresholds", "units"}
    assert facts["composite"] == "epsilon_gamma (convolution Gamma, dense Epsilon)"
    assert facts["resolution"] == "neuron for 6 layers"
    assert facts["pruning"] == "none: every edge is stored"
    assert facts["precision"] == "lossless (float32)"
    assert facts["preprocessing"] == "pixels / 255"
    assert "torch" in facts["versions"]
    size = sum(file.stat().st_size for file in (store / "shards").glob("*.edges.parquet"))
    assert facts["bytes per edge"] == f"{size / edges:.2f}"
    assert facts["size of edges"] == f"{size / 1e6:,.1f} MB"
    assert main.main(["info", str(store), "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)[1]
    assert row["name"] == "features.0"
    (alias,) = row["aliases"]
    ask = ["relevance", str(store), "--input", "three-00000", "--format", "json"]
    found = []
    for name in (row["name"], alias):
        assert main.main([*ask, f"{name}[2]"]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["relevance"])
    assert found[0] == found[1]


def test_info_names_the_largest_labels_and_the_first_keys(tmp_path: Path) -> None:
    labels = [*"abcdefghi", "i", "h", "i", None]
    records = [record(n, label=label) for n, label in enumerate(labels)]
    with ng.open(write(make(tmp_path / "s.nrm"), records)) as db:
        facts = overview.facts(db)
    assert facts["labels"] == "9: i (3), h (2), a (1), b (1), c (1), d (1), e (1), f (1), ..."
    assert facts["some keys"] == ", ".join([*sorted(f"input{n}" for n in range(13))[:8], "..."])
    with ng.open(write(make(tmp_path / "none.nrm"), [record(0, label=None)])) as db:
        assert overview.facts(db)["labels"] == "none"


def test_a_small_store(
    store: Path, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "small.nrm")
    options = "--coverage 0.9 --top 500 --mantissa-bits 8 --tensors omit --on-error skip"
    inputs = str(store.parent / "three.npz")
    assert main.main(["extract", module, inputs, "--store", path, *options.split(), "--quiet"]) == 0
    capsys.readouterr()
    assert main.main(["info", path]) == 0
    shown = capsys.readouterr().out
    for text in ("coverage 0.9, top 500, 5 of 5 pairs", "rounded to 8 bits", "0 (inputs left out)"):
        assert text in shown
    assert main.main(["relevance", path, "--input", "three-00000", "features.0[1]"]) == 3
    assert "db.measure takes it as input=" in capsys.readouterr().err


def test_relevance_in_words(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["relevance", str(store), "--input", "three-00000", "features.3[2]"]
    assert main.main(ask) == 0
    words = dict(
        re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()
    )
    assert words["event"] == "features.3[2]"
    relevance, meaning = re.split("  +", words["relevance"])
    assert meaning == "share of the logit, 1 in all"
    assert "  share that ends in biases, stabilizers and remainders" in words["absorbed"]
    product = float(relevance) * float(words["logit"])
    value, meaning = re.split("  +", words["of the logit"])
    assert (float(value), meaning) == (pytest.approx(product, rel=1e-4), "relevance x logit")
    assert main.main([*ask, "--given", "features.6[5]"]) == 0
    assert "amplification" in capsys.readouterr().out
    assert main.main([*ask, "--format", "csv"]) == 0
    header = '"input","target","logit","event","relevance","absorbed"\n'
    assert capsys.readouterr().out.startswith(header)


# As a process


def process(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which ``nrm`` is the command."""
    call = f'nrm() {{ "{sys.executable}" -m nrm_graph "$@"; }}; set -o pipefail; {command}'
    return subprocess.run(
        ["bash", "-c", call],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env},
    )


def seldom(*case: object) -> object:
    """One of a kind of which another runs every time: a process takes as long as it starts."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("command", "env", "code", "out", "err"),
    [
        ("nrm info /nothing", {}, 6, "", "nrm-graph: there is no store at /nothing"),
        seldom("nrm info", {}, 2, "", "Usage: nrm-graph info"),
        ("nrm --help | head -n 1", {}, 0, "Usage: nrm-graph", ""),
        ("nrm --help > /dev/full", {}, 1, "", "cannot write the output: No space left"),
        ("nrm --help >&-", {}, 0, "", ""),
        ("nrm info 2>&-", {}, 2, "", ""),
        ("nrm é", {"PYTHONIOENCODING": "ascii"}, 2, "", r"No such command '\xe9'"),
        seldom("nrm info '{store}' | head -n 1", {}, 0, "inputs", ""),
        (
            "nrm sql '{store}' 'SELECT * FROM range(3000000)' --format csv | head -n 1",
            {},
            0,
            "",
            "",
        ),
        seldom(
            "nrm info '{store}' > /dev/full", {}, 1, "", "cannot write the output: No space left"
        ),
        seldom("nrm info '{store}' >&-", {}, 0, "", ""),
        seldom(
            "nrm sql '{store}' \"SELECT 'é漢' AS x\"", {"PYTHONIOENCODING": "utf-8"}, 0, "é漢", ""
        ),
        (
            "nrm sql '{store}' \"SELECT 'é漢' AS x\"",
            {"PYTHONIOENCODING": "ascii"},
            0,
            r"\xe9\u",
            "",
        ),
        seldom("nrm info '{store}/é漢'", {"PYTHONIOENCODING": "ascii"}, 6, "", r"/\xe9\u6f22"),
        seldom("nrm sql '{store}' $'SELECT \\'\\xff\\''", {}, 7, "", "cannot be parsed"),
    ],
)
def test_a_process(
    store: Path, command: str, env: dict[str, str], code: int, out: str, err: str
) -> None:
    done = process(command.replace("{store}", str(store)), **env)
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert "Traceback" not in done.stderr
    if not err:
        assert done.stderr == ""
    else:
        assert done.stderr.count("\n") == 1


def test_messages_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["info", "/no\x1b[2Jthing\nnext\u202e"]) == 6
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert r"/no\x1b[2Jthing next\u202e" in shown


def test_there_is_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(spec: str) -> None:
        raise errors[0]

    errors: list[Exception] = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ]
    monkeypatch.setattr(models, "load_model", fails)
    np.save(tmp_path / "i.npy", np.ones((1, 2)))
    argv = ["extract", "m:f", str(tmp_path / "i.npy"), "--store", str(tmp_path / "never.nrm")]
    while errors:
        assert main.main(argv) == 1
        assert "not enough memory" in capsys.readouterr().err
        del errors[0]
