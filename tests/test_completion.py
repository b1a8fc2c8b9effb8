"""What tab completion shows: the public names, and nothing that is there by accident."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from helpers.tiny_stores import make, record, write

import nrm_graph as ng

pytestmark = pytest.mark.smoke


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_and_nothing_else():
    names = fresh("import nrm_graph as ng; print(*dir(ng))").split()
    assert names == sorted(ng.__all__) == dir(ng)
    for name in (
        "explore",
        "extract",
        "open",
        "join",
        "measure",
        "trace",
        "Layer",
        "plots",
        "circuits",
        "stay",
    ):
        assert name in names
    assert not {"TYPE_CHECKING", "Any", "importlib", "annotations", "errors", "store"} & set(names)
    importlib.import_module("nrm_graph.store.read.sql")
    assert dir(ng) == names
    everything: dict[str, object] = {}
    exec("from nrm_graph import *", everything)
    assert {name for name in everything if name != "__builtins__"} == set(names)


def test_every_public_name_is_there():
    assert len(set(ng.__all__)) == len(ng.__all__)
    for name in ng.__all__:
        assert getattr(ng, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        ng.plot  # noqa: B018


def test_plots_and_circuits_in_a_fresh_process():
    code = (
        "import sys, nrm_graph as ng; print(ng.circuits.stability.stability.__name__, "
        "ng.circuits.Contrast.__name__, 'matplotlib' in sys.modules, "
        "ng.plots.plot_heatmap.__name__, 'torch' in sys.modules)"
    )
    assert fresh(code) == "stability Contrast False plot_heatmap False"


@pytest.mark.parametrize("name", ["circuits", "composites", "evaluate", "plots", "rules"])
def test_modules_complete_with_what_they_are_for(name):
    module = getattr(ng, name)
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, public) is not None for public in module.__all__)


def test_composites_complete_with_every_name_that_extract_takes():
    assert set(ng.composites.NAMED) < set(dir(ng.composites))


def test_relations_complete(tmp_path):
    with ng.open(write(make(tmp_path / "s.nrm"), [record(0)])) as db:
        assert {"sql", "measure", "circuit", "conditions"} <= set(dir(db))
        relation = db.sql("SELECT key FROM inputs")
        names = {name for name in dir(relation) if not name.startswith("_")}
        assert names - {"relation", "cancel", "to_pandas"} == {
            n for n in dir(relation.relation) if not n.startswith("_")
        }
        for name in ("fetchall", "to_arrow_table", "df", "columns", "limit", "filter"):
            assert name in names
        assert "limit" in dir(relation.limit(1))
        assert relation.fetchall.__name__ == "fetchall"
        assert "fetch" in relation.fetchall.__doc__.lower()
        with pytest.raises(AttributeError):
            relation.fetch_nothing  # noqa: B018
