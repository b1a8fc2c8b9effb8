"""Every notebook runs in a fresh kernel and prints the numbers that are committed with it."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import nrm_graph

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = [pytest.param(path, marks=pytest.mark.slow, id=path.stem) for path in NOTEBOOKS]
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?")
"""Numbers in printed text, with thousands separators; not the digits of names."""


def printed(notebook: Any) -> list[tuple[str, str]]:
    """Text of every code cell: what it printed, and its value as plain text."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        parts = [
            output.text if output.output_type == "stream" else output.data.get("text/plain", "")
            for output in cell.outputs
            if output.output_type in ("stream", "execute_result")
        ]
        found.append((cell.source, "".join(parts)))
    return found


def numbers(text: str) -> list[float]:
    """All numbers of a text."""
    return [float(found.replace(",", "").rstrip("%")) for found in NUMBER.findall(text)]


def execute(notebook: Any, folder: Path) -> None:
    """Run a notebook; what Jupyter's own packages deprecate is not our failure."""
    with warnings.catch_warnings():
        for module in ("nbclient", "jupyter_client", "jupyter_core", "zmq", "traitlets"):
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module=rf"{module}(\..*)?"
            )
        NotebookClient(
            notebook,
            timeout=240,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        ).execute()


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", EXECUTED)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel starts elsewhere and imports the package under test, and our real VGG16.
    folders = (Path(nrm_graph.__file__).parents[1], ROOT / "tests", ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    committed = nbformat.read(path, as_version=4)
    nbformat.validate(committed)
    fresh = nbformat.read(path, as_version=4)
    execute(fresh, tmp_path)  # raises CellExecutionError with the cell's traceback
    assert not list(tmp_path.iterdir()), "the notebook left files behind"

    for (source, before), (_, now) in zip(printed(committed), printed(fresh), strict=True):
        expected, found = numbers(before), numbers(now)
        assert len(found) == len(expected), f"{source}\n\ncommitted:\n{before}\nnow:\n{now}"
        # Rounding differs between machines, in the last printed digit or where sums cancel.
        assert found == pytest.approx(expected, rel=0.02, abs=2e-3), source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_executed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    text = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "Warning" not in text
    assert str(Path.home()) not in text


def test_numbers() -> None:
    assert numbers("R(features.6[18]) 0.1905, 2,311,953 edges, -4.5e-08; 38%") == [
        18.0,
        0.1905,
        2311953.0,
        -4.5e-08,
        38.0,
    ]
