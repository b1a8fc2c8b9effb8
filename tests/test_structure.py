"""The structure of package and tests: rooms, small files and functions, a smoke test a room."""

import ast
import re
from pathlib import Path

import pytest

import nrm_graph

pytestmark = pytest.mark.smoke

TESTS = Path(__file__).parent
SHARED = {"helpers", "oracles", "reference"}
"""Folders that are no room of the package."""

MODULES = [path for path in TESTS.rglob("*.py") if "__pycache__" not in path.parts]


def rooms():
    return {path.parent.name for path in MODULES if path.parent != TESTS}


def test_tests_mirror_the_rooms():
    packages = {path.parent.name for path in Path(nrm_graph.__file__).parent.glob("*/__init__.py")}
    assert rooms() == packages | SHARED


def test_few_tests_belong_to_no_room():
    assert len(list(TESTS.glob("test_*.py"))) <= 12


def test_no_file_is_long():
    lengths = {str(p.relative_to(TESTS)): p.read_text("utf-8").count("\n") for p in MODULES}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


@pytest.mark.parametrize("room", sorted(rooms() - {"helpers"}))
def test_every_room_has_a_smoke_test(room):
    files = (TESTS / room).glob("test_*.py")
    assert any("pytest.mark.smoke" in file.read_text("utf-8") for file in files)


PACKAGE = Path(nrm_graph.__file__).parent
ROOT = TESTS.parent


def test_few_modules_belong_to_no_room():
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_no_module_and_no_function_is_long():
    """A function's docstring, comments and empty lines do not count."""
    long = []
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text("utf-8").splitlines()
        if len(lines) > 450:
            long.append(f"{path.name}: {len(lines)} lines")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                first = body[0].lineno - 1 if body else node.end_lineno
                code = [line for line in lines[first : node.end_lineno] if line.strip()]
                if sum(not line.strip().startswith("#") for line in code) > 80:
                    long.append(f"{path.name}: {node.name}")
    assert long == []


def test_contributing_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    names = {name.partition(":")[0] for name in re.findall(r"`([\w./-]+\.(?:py|md|toml))", text)}
    everything = [*PACKAGE.rglob("*.py"), *TESTS.rglob("*.py"), *ROOT.glob("*.*")]
    known = ["/" + str(path.relative_to(ROOT)) for path in everything]
    assert [n for n in sorted(names) if not any(k.endswith(f"/{n}") for k in known)] == []
