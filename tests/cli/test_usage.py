"""The command line: help, wrong usage, what is an option and what not, and completion."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import Any

import click
import pytest

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.cli.parser import cli


def test_help_shows_an_example_and_the_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main(["-h"]) == 0
    overview = capsys.readouterr().out
    listed = re.findall(
        r"^  (\w+)  ", overview.partition("Commands:")[2].partition("Start")[0], re.M
    )
    assert listed == list(cli.commands)
    for name, command in cli.commands.items():
        assert main.main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"Example:\n  nrm-graph {name} " in text
        assert "Exit codes:" in text
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or f"\n  {parameter.opts[0]} " in text
        assert max(map(len, text.splitlines())) <= 80
        first = text.split("\n\n")[1]
        assert " ".join(first.split()) in " ".join(overview.split())
    assert main.main(["extract", "--help"]) == 0
    text = capsys.readouterr().out
    assert "trust" in text
    parameters = set(inspect.signature(ng.extract).parameters) - {"model", "path", "progress"}
    for name in parameters:
        assert ("INPUTS" if name == "inputs" else f"--{name.replace('_', '-')}") in text


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "COMMAND"),
        (["nothing"], 2, "No such command 'nothing'"),
        (["sql", "s.nrm", "q", "--form", "csv"], 2, "Did you mean"),
        (["sql", "s.nrm", "q", "--format", "xml"], 2, "'xml' is not one of 'table', 'csv'"),
        (["sql", "s.nrm", "q", "--format"], 2, "expects a value, found nothing"),
        (["sql", "s.nrm", "q", "--output", "--format"], 2, "expects a value, found '--format'"),
        (["sql", "s.nrm", "-- q"], 6, "there is no store"),
        (["sql", "s.nrm"], 2, "Missing argument 'QUERY'"),
        (["relevance", "s.nrm", "a[1]"], 2, "Missing option '--input'"),
        (["info", "s.nrm", "\x1b[2J"], 2, r"unexpected extra argument (\x1b[2J)"),
        (["extract", "m", "i", "--store", "s", "--coverage", "x"], 2, "'x' is not a valid float"),
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
    assert main.main(argv) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("nrm-graph: ")
    assert printed.err.count("\n") == 1
    assert ("--help)" in printed.err) == (code == 2)
    assert not printed.out


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["sql", "s", "-- comment\nSELECT 1"], {"query": "-- comment\nSELECT 1"}),
        (["sql", "--format", "csv", "s", "--", "--x"], {"query": "--x", "form": "csv"}),
        (["delete", "s", "-1", "a", "-.5", "-c d"], {"keys": ("-1", "a", "-.5", "-c d")}),
        (["delete", "--", "s", "--"], {"store": "s", "keys": ("--",)}),
        (["contrast", "s", "-logit > 1", "b", "--seed", "3"], {"a": "-logit > 1", "seed": 3}),
        (["circuit", "--where", "-logit > 1", "s"], {"where": "-logit > 1", "store": "s"}),
        (["circuit", "s", "--where=--x", "--top=3"], {"where": "--x", "top": 3}),
        (["compact", "s", "--older-than", "-1"], {"older_than": -1.0}),
        (["relevance", "s", "f", "--input", "-5"], {"key": "-5", "target": None}),
        (["relevance", "s", "f", "--input", "k", "--target", "-1:4=1"], {"target": "-1:4=1"}),
        (["extract", "m", "i", "--store", "", "--target", "-1,464"], {"target": ("-1,464",)}),
        (["extract", "m", "--store", "s", "i", "--target", "3=1,5=-1"], {"target": ("3=1,5=-1",)}),
        (["extract", "m", "i", "--store", "s", "--store", "t"], {"store": "t", "top": None}),
    ],
)
def test_what_begins_with_a_dash_is_no_option(
    argv: list[str], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(click.Command, "invoke", lambda _, context: called.append(context.params))
    command = cli.commands[argv[0]]
    with command.make_context(argv[0], argv[1:]) as context:
        command.invoke(context)
    assert values.items() <= called[0].items()


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("nrm-graph s", ["plain,sql", "plain,subgraph"]),
        ("nrm-graph sql s --fo", ["plain,--format"]),
        ("nrm-graph sql s --format p", ["plain,parquet"]),
        ("nrm-graph extract m i --on-error s", ["plain,stop", "plain,skip"]),
        ("nrm-graph paths --input k --by t", ["plain,token"]),
        ("nrm-graph info ph", ["file,ph"]),
        ("nrm-graph extract m ph", ["file,ph"]),
        ("nrm-graph extract m i --classes ph", ["file,ph"]),
        ("nrm-graph sql s q --output ph", ["file,ph"]),
        ("nrm-graph relevance s --save-event ph", ["file,ph"]),
    ],
)
def test_a_shell_completes(
    words: str,
    completions: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_NRM_GRAPH_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert main.main([]) == 0
    assert capsys.readouterr().out.split() == completions


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_switched_on_as_help_says(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["--help"]) == 0
    assert f"_NRM_GRAPH_COMPLETE={shell}_source nrm-graph" in capsys.readouterr().out
    monkeypatch.setenv("_NRM_GRAPH_COMPLETE", f"{shell}_source")
    assert main.main([]) == 0
    assert "_nrm_graph_completion" in capsys.readouterr().out


def test_help_is_light() -> None:
    code = (
        "import sys; from nrm_graph.cli.main import main; main(['--help'])\n"
        "names = {'torch', 'duckdb', 'pyarrow', 'matplotlib', 'networkx', 'numpy'}\n"
        "heavy = names & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
