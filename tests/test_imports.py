"""The direction of imports: what is light stays light, and nothing depends on the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nrm_graph

PACKAGE = Path(nrm_graph.__file__).parent

# Module prefixes that may import a library, also inside a function.
ALLOWED = {
    "torch": (
        *("tracing", "trace", "program", "operations", "layers", "linear", "rules", "propagate"),
        *("edges", "exact", "measure", "conditioned", "joint", "extraction", "extract", "sources"),
        *("demo", "stored", "database", "composites", "store", "cli", "paths", "transformer"),
        *("models", "inputs", "kernels", "routing", "benchmark"),
    ),
    "duckdb": (
        "store",
        "database",
        "circuits",
        "circuit",
        "aggregate",
        "conditions",
        "queries",
        "cli",
    ),
    "matplotlib": ("plots",),
    "networkx": ("graph", "paths", "circuits", "circuit", "export", "plots", "database", "demo"),
}
PURE = ("errors", "topology", "events")
"""Modules that need neither torch nor a file format, and import only each other."""


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


@pytest.mark.parametrize("library", ALLOWED)
def test_who_imports_a_heavy_library(library):
    users = {
        name
        for name, tree in modules().items()
        if any(i.split(".")[0] == library for i in imports(tree))
    }
    wrong = {name for name in users if not name.startswith(ALLOWED[library])}
    assert not wrong, f"{library} is imported by {sorted(wrong)}"


def test_pure_modules_import_only_each_other():
    for name in PURE:
        own = {i.split(".")[1] for i in imports(modules()[name]) if i.startswith("nrm_graph.")}
        assert own <= set(PURE), f"{name} imports {own - set(PURE)}"
    assert "nrm_graph" not in {i.split(".")[0] for i in imports(modules()["errors"])}


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
