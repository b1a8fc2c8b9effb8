"""Language models on the command line: from a folder and a file of prompts to a graph."""

import json
import signal
import subprocess
import sys
import time

import networkx as nx
import pytest
from helpers import language_models

import nrm_graph as ng
from nrm_graph.cli import main

CITIES = ("Paris", "Rome", "London")
TEMPLATE = "The capital of {} is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return language_models.save(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


def run(capsys, *argv):
    code = main.main([str(a) for a in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def prompts(path, count):
    countries = ("France", "Italy", "England")
    rows = [
        {"text": TEMPLATE.format(countries[i % 3]), "key": f"p{i}", "label": countries[i % 3]}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_prompts_are_explained_by_tokens(folder, tmp_path, capsys):
    store = tmp_path / "s.nrm"
    reader = ng.load_model(f"hf:{folder}").reader
    code, _, err = run(
        capsys, "extract", f"hf:{folder}", "--prompt", "The capital of France is",
        "--prompt", "A cat", "--target", " is", "--against", " the", "--store", store, "--quiet",
    )  # fmt: skip
    assert code == 0, err
    weights = {reader.output_of(" is"): 1.0, reader.output_of(" the"): -1.0}
    text = json.dumps({str(k): weights[k] for k in sorted(weights)}, separators=(",", ":"))
    with ng.open(store) as db:
        rows = db.sql("SELECT key, target, weights FROM inputs ORDER BY key").fetchall()
        assert rows == [("prompt-0", None, text), ("prompt-1", None, text)]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["p.txt", "--prompt", "a"], 3, "takes INPUTS, a file of texts, or --prompt TEXT"),
        ([], 3, "takes INPUTS, a file of texts, or --prompt TEXT"),
        (["p.png"], 3, "expected .txt, .jsonl, .csv, .parquet, or --prompt TEXT"),
        (["p.txt"], 3, "cannot read p.txt"),
        (["--prompt", "A cat", "--target", " catastrophe"], 3, "its tokenizer splits it into"),
        (["--prompt", "A cat sat", "--length", "1"], 3, "tokens, and the store holds 1"),
    ],
)
def test_what_is_asked_wrongly(folder, tmp_path, capsys, monkeypatch, argv, code, message):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, "extract", f"hf:{folder}", *argv, "--store", "s.nrm")
    assert (found, message in err) == (code, True), err
    assert not (tmp_path / "s.nrm").exists()


def test_options_of_language_models_are_refused_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in (["--prompt", "a"], ["--against", "b"], ["--length", "3"]):
        code, _, err = run(
            capsys, "extract", "torchvision:vgg16@random:0", "x.npy", *option, "--store", "s.nrm"
        )
        assert (code, f"{option[0]} is for language models" in err) == (3, True), err
    code, _, err = run(capsys, "extract", "torchvision:vgg16@random:0", "--store", "s.nrm")
    assert (code, "Missing argument 'INPUTS'" in err) == (2, True), err


@pytest.mark.slow
def test_from_a_folder_to_a_contrast_and_a_graph_interrupted_and_resumed(folder, tmp_path, capsys):
    rows = prompts(tmp_path / "prompts.jsonl", 200)
    store = tmp_path / "relevance.nrm"
    command = [
        sys.executable, "-m", "nrm_graph", "extract", f"hf:{folder}", tmp_path / "prompts.jsonl",
        "--store", store, "--batch-size", "4", "--resolution", "auto",
    ]  # fmt: skip
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE) as process:
        begun = time.monotonic()
        while not list(store.glob("shards/*")) and time.monotonic() - begun < 120:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    with ng.open(store) as db:
        first = len(db)
    assert first < 200
    code, out, err = run(capsys, *command[3:], "--quiet")
    assert code == 0, err
    assert "holds 200 inputs" in out
    weights = ("--weights", folder / "model.safetensors")
    code, out, err = run(
        capsys, "contrast", store, "label = 'France'", "label = 'Italy'",
        "--output", tmp_path / "contrast.csv",
    )  # fmt: skip
    assert code == 0, err
    graph = tmp_path / "graph.graphml"
    code, out, err = run(
        capsys, "reduce", store, "--input", rows[0]["key"], "--nodes", "30", *weights,
        "--output", graph,
    )  # fmt: skip
    assert code == 0, err
    tokens = {data.get("token") for _, data in nx.read_graphml(graph).nodes(data=True)}
    assert {" France", " is"} & tokens
    code, out, err = run(
        capsys, "reduce", store, "--input", rows[0]["key"], "--nodes", "30", *weights,
        "--output", tmp_path / "graph.attribution.json",
    )  # fmt: skip
    assert code == 0, err
    written = json.loads((tmp_path / "graph.attribution.json").read_text())
    assert " is" in written["metadata"]["prompt_tokens"]


def test_reduced_graphs_speak_in_tokens(folder, tmp_path, capsys):
    store, graph = tmp_path / "s.nrm", tmp_path / "g"
    code, _, err = run(
        capsys, "extract", f"hf:{folder}", "--prompt", "The capital of France is",
        "--store", store, "--quiet",
    )  # fmt: skip
    assert code == 0, err
    ask = ["reduce", store, "--input", "prompt-0", "--weights", folder / "model.safetensors"]
    code, out, err = run(capsys, *ask, "--output", f"{graph}.svg")
    assert code == 0, err
    with ng.open(store, weights=folder / "model.safetensors") as db:
        m = db.measure("prompt-0")
        r = m.reduced()
        assert len(r.edges) + len(r.ends) > 60
        assert f"{len(r.graph(60))} nodes, {r.graph(60).number_of_edges()} edges" in out
        answer = m.classes[m.target]
        steps = [line.split("  ")[0] for line in out.partition("src  ")[2].splitlines()[2:]]
        ends = [step.partition(" '")[0] for step in steps if step and not step.startswith("(")]
        assert ends
        assert set(ends) <= {
            data["event"] for _, data in r.graph().nodes(data=True) if "event" in data
        }
    assert f"output[{m.target}] {answer!r}" in out
    assert (tmp_path / "g.svg").stat().st_size
    _, out, _ = run(capsys, "info", store)
    assert f"tokens, of which 1 are explained or predicted: {answer!r}" in out
