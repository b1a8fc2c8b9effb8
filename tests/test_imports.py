"""The direction of imports: what is light stays light, and nothing depends on the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nrm_graph

PACKAGE = Path(nrm_graph.__file__).parent

# Every module imports only from rows above its own (and from its own row, which is one part).
LEVELS = (
    ("errors", "_optional", "excerpt", "foreign_errors", "output_files", "signals"),
    ("network",),
    ("events",),
    ("rules",),
    ("propagation",),
    ("tables",),
    (
        "store",
        "whole_files",
        "plots",
        "graphs",
        "measures",
        "database",
        "circuits",
    ),
    ("evaluate",),
    ("extraction",),
    ("cli",),
)
LIGHT = (
    "database",
    "whole_files",
    "graphs",
    "circuits",
    "plots",
    "cli.main",
    "cli.commands",
    "cli.parser",
    "cli.overview",
    "cli.output",
    "cli.demo.tour",
)
"""Modules beside the first three rows that never import torch themselves."""

DUCKDB = ("store",)
MATPLOTLIB = ("plots",)


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imports(tree: ast.AST) -> set[str]:
    """Absolute names that run at import or in a function; not those under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        found |= imports(node)
    return found


def users(library: str, modules_: dict[str, ast.Module]) -> set[str]:
    return {
        name
        for name, tree in modules_.items()
        if any(i.split(".")[0] == library for i in imports(tree))
    }


def test_heavy_libraries_stay_where_they_belong():
    found = modules()
    assert {name.split(".")[0] for name in users("duckdb", found)} == set(DUCKDB)
    assert {name.split(".")[0] for name in users("matplotlib", found)} == set(MATPLOTLIB)
    pure = {"errors", "_optional", "excerpt", "foreign_errors", "output_files", "signals", "events"}
    heavy = users("torch", found)
    assert not ({n.split(".")[0] for n in heavy} | heavy) & (pure | set(LIGHT))


def test_imports_point_one_way():
    level = {name: i for i, row in enumerate(LEVELS) for name in row}
    for name, tree in modules().items():
        own = name.split(".")[0]
        if own in ("__init__", "__main__"):
            continue
        assert own in level, f"give {own} a place in LEVELS"
        for target in imports(tree):
            parts = target.split(".")
            if parts[0] != "nrm_graph" or len(parts) < 2 or parts[1] not in level:
                continue
            assert level[parts[1]] <= level[own], f"{name} imports {target}, which stands below it"


def test_only_main_imports_the_command_line():
    for name, tree in modules().items():
        if name.split(".")[0] not in ("cli", "__main__"):
            assert not [i for i in imports(tree) if i.startswith("nrm_graph.cli")], name


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
    "import": "import nrm_graph as ng",
    "events": "import nrm_graph as ng; ~(ng.Layer('a')[1, :] & ng.Layer('b')[[1, 2]]) | ng.Edge("
    "ng.Layer('a')[1], ng.Layer('b')[2]) | ng.stay({'a': [1]})",
    "open": "import sys, nrm_graph as ng; db = ng.open(sys.argv[1])",
    "sql": "import sys, nrm_graph as ng; db = ng.open(sys.argv[1]); "
    "assert db.sql('SELECT count(*) FROM edges').fetchall()[0][0]",
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_light_uses_import_neither_torch_nor_matplotlib(name, store):
    check = "; import sys; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", SNIPPETS[name] + check, str(store)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
