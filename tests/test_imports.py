"""The direction of imports: rooms, circles, and what is light stays light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import nrm_graph

PACKAGE = Path(nrm_graph.__file__).parent
ROOT = Path(__file__).parents[1]

DUCKDB = {"store"}
MATPLOTLIB = {"plots"}
MSGSPEC = {"foreign_errors", "network", "store"}

HEAVY = {
    "language",
    "network.copies",
    "network.device",
    "network.ir",
    "network.layer_names",
    "network.layout",
    "network.maps",
    "network.tracing",
    "rules",
    "propagation",
    "tables",
    "measures",
    "store.named_weights",
    "store.program_files",
    "store.reduced_tables",
    "store.stored_edges",
    "store.stored_measure",
    "store.verify.recompute",
    "evaluate",
    "explorer",
    "extraction",
    "cli.demo.fashion_cnn",
    "cli.demo.induction",
    "cli.demo.induction_heads",
    "cli.inputs",
    "cli.models",
}
"""Rooms and modules that may load torch when they are imported; all others are light."""


@functools.cache
def modules() -> dict[str, ast.Module]:
    trees = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        trees[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return trees


@functools.cache
def imports(tree: ast.AST) -> frozenset[str]:
    """Absolute names that run at import or in a function; not those under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        names |= imports(node)
    return frozenset(names)


def rooms_that_import(library: str) -> set[str]:
    return {
        name.split(".")[0]
        for name, tree in modules().items()
        if any(i.split(".")[0] == library for i in imports(tree))
    }


def test_contracts_of_pyproject_hold(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert lint_imports("pyproject.toml", no_cache=True, no_logo=True) == 0, capsys.readouterr().out


def test_heavy_libraries_stay_where_they_belong():
    assert rooms_that_import("duckdb") == DUCKDB
    assert rooms_that_import("matplotlib") == MATPLOTLIB
    assert rooms_that_import("msgspec") == MSGSPEC


def test_light_modules_load_no_torch():
    def heavy(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:i]) in HEAVY for i in range(1, len(parts) + 1))

    light = sorted(n for n in modules() if n not in ("__init__", "__main__") and not heavy(n))
    assert {"events.sets", "database", "circuits.contrast", "cli.main", "plots.flow"} < set(light)
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'nrm_graph.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, *light], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_help_loads_no_libraries():
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('nrm_graph', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'duckdb', 'matplotlib', 'msgspec') if m in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    path = tmp_path_factory.mktemp("imports") / "tiny.nrm"
    rows = [{"input": torch.ones(3), "key": "a"}]
    with nrm_graph.extract(net, rows, path, target=0, progress=False):
        return path


SNIPPETS = {
    "import": "import sys, nrm_graph as ng",
    "events": "~(ng.Layer('a')[1, :] & ng.Layer('b')[[1, 2]]) | ng.Edge("
    "ng.Layer('a')[1], ng.Layer('b')[2]) | ng.stay({'a': [1]})",
    "open": "db = ng.open(sys.argv[1])",
    "sql": "assert db.sql('SELECT count(*) FROM edges').fetchall()[0][0]",
    "verify": "from nrm_graph.store.verify import verify; "
    "assert verify(sys.argv[1], sample=0).sound",
}


def test_light_uses_import_neither_torch_nor_matplotlib(store):
    """One after the other, in one process."""
    check = "print({name!r}, [m for m in ('torch', 'matplotlib') if m in sys.modules])"
    code = "\n".join(
        line for name, use in SNIPPETS.items() for line in (use, check.format(name=name))
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(store)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == [f"{name} []" for name in SNIPPETS]
