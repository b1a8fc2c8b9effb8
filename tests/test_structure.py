"""The structure of package and tests: rooms, small files and functions, a smoke test a room."""

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
