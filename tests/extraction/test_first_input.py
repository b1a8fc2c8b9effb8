"""The network's run on the first input, before an extraction, is taken over by its first batch."""

import warnings

import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.extraction import batches, input_targets

KEYS = ("a", "b", "c")


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    return ng.trace(net, torch.randn(1, 4))


def items():
    torch.manual_seed(1)
    return [{"input": torch.randn(4), "key": key} for key in KEYS]


def tables(db):
    queries = (f"SELECT * FROM {name} ORDER BY ALL" for name in ("inputs", "nodes", "edges"))
    return [db.sql(query).fetchall() for query in queries]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [1, 1, 1]), (2, [1, 2, 1]), (16, [1, 3])],
    ids=["alone", "in pairs", "together"],
)
def test_runs_of_an_extraction(program, tmp_path, monkeypatch, size, expected):
    ran = []

    def forward(net, xs):
        ran.append(len(xs[0]))
        return real(net, xs)

    real = batches.forward
    for module in (batches, input_targets):
        monkeypatch.setattr(module, "forward", forward)
    with ng.extract(program, items(), tmp_path / "s.nrm", batch_size=size, progress=False) as db:
        assert ran == expected
        found = tables(db)
    monkeypatch.setattr(batches.Extraction, "_run", lambda self, xs: real(self.plan.network, xs))
    other = tmp_path / "other.nrm"
    with ng.extract(program, items(), other, batch_size=size, progress=False) as db:
        assert tables(db) == found


def test_the_run_is_of_the_first_input_that_can_be_read(program, tmp_path):
    broken = {"input": torch.full((4,), torch.nan), "key": "broken"}
    options = {"batch_size": 1, "progress": False, "on_error": "skip"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ng.extract(program, [broken, *items()], tmp_path / "s.nrm", **options) as db:
            found = db.sql("SELECT key, logit FROM inputs ORDER BY key").fetchall()
    with ng.extract(program, items(), tmp_path / "t.nrm", batch_size=1, progress=False) as db:
        assert db.sql("SELECT key, logit FROM inputs ORDER BY key").fetchall() == found
