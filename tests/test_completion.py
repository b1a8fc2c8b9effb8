"""What tab completion shows: the public names, and nothing that is there by accident."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiny_stores import make, record, write

import nrm_graph as ng

PRINTED = {
    "dir": "import nrm_graph as ng; print(sorted(ng.__all__) == dir(ng), *dir(ng))",
    "after use": "import nrm_graph as ng; ng.plots, ng.circuits, ng.evaluate, ng.extract; "
    "import nrm_graph.store.sql; print(sorted(ng.__all__) == dir(ng), *dir(ng))",
    "star": "from nrm_graph import *; import nrm_graph as ng; "
    "names = set(globals()) - {'ng'}; "
    "print({n for n in names if not n.startswith('_')} == set(ng.__all__), *names)",
}


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("code", PRINTED.values(), ids=list(PRINTED))
def test_public_names_and_nothing_else(code):
    same, *names = fresh(code).split()
    assert same == "True"
    for name in ("extract", "open", "measure", "trace", "Layer", "plots", "circuits", "stay"):
        assert name in names
    assert not {"TYPE_CHECKING", "Any", "importlib", "annotations", "errors", "store"} & set(names)


def test_every_public_name_is_there():
    assert len(set(ng.__all__)) == len(ng.__all__)
    for name in ng.__all__:
        assert getattr(ng, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        ng.plot  # noqa: B018


@pytest.mark.parametrize(
    ("code", "out"),
    [
        ("ng.plots.plot_heatmap.__name__", "plot_heatmap"),
        ("ng.circuits.stability.stability.__name__", "stability"),
        ("ng.circuits.Contrast.__name__", "Contrast"),
        ("[n for n in dir(ng.plots) if n[0] != '_'] == sorted(ng.plots.__all__)", "True"),
        ("'torch' in __import__('sys').modules or dir(ng.circuits)[0]", "Clusters"),
    ],
)
def test_plots_and_circuits_in_a_fresh_process(code, out):
    assert fresh(f"import nrm_graph as ng; print({code})") == out


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
        assert names - {"relation"} == {n for n in dir(relation.relation) if not n.startswith("_")}
        for name in ("fetchall", "to_arrow_table", "df", "columns", "limit", "filter"):
            assert name in names
        assert "limit" in dir(relation.limit(1))
        assert relation.fetchall.__name__ == "fetchall"
        assert "fetch" in relation.fetchall.__doc__.lower()
        with pytest.raises(AttributeError):
            relation.fetch_nothing  # noqa: B018
