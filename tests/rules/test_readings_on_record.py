"""Which reading a number comes from, wherever it is shown; and what the second one costs."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.cli.main import main
from nrm_graph.graphs.formats import to_arrow
from nrm_graph.plots import plot_circuit, plot_heatmap, plot_report

pytestmark = pytest.mark.usefixtures("remembered_traces")

SENSE = "biases and constants are left out"


def network() -> nn.Sequential:
    """A convolution, normalised, with a bias that holds most of its neurons up."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    nn.init.constant_(net[0].bias, 1.0)
    return net.eval()


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["absorbed", "ignored"])
def db(request, tmp_path_factory):
    rows = [{"input": x, "key": str(i), "label": "ab"[i % 2]} for i, x in enumerate(images())]
    path = tmp_path_factory.mktemp("readings") / "r.nrm"
    with ng.extract(network(), rows, path, target=0, bias=request.param, progress=False) as store:
        assert store.bias == request.param
        yield store


def test_graphs_reports_and_pictures_say_it(db):
    bias, m = db.bias, db.measure("0")
    assert m.bias == bias
    assert m.report().schema.metadata == {b"bias": bias.encode()}
    assert ("biases ignored" in repr(m)) is (bias == "ignored")
    graphs = [
        m.subgraph(20),
        db.subgraph("0", top=20),
        m.reduced(nodes=5).graph(),
        db.circuit(top=20),
        db.contrast("label = 'a'", "label = 'b'").graph(20),
    ]
    assert isinstance(graphs[3].graph["bias"], float)  # what biases hold, a mean
    for graph in graphs:
        assert graph.graph["reading"] == bias
        assert (SENSE in graph.graph["meaning"]) is (bias == "ignored")
        assert f'"reading": "{bias}"' in to_arrow(graph)[1].schema.metadata[b"graph"].decode()
    assert graphs[0].graph["flags"] == graphs[1].graph["flags"]
    titles = [
        plot_heatmap(m).get_title(),
        plot_report(m).get_title(),
        plot_circuit(graphs[3]).get_suptitle(),
    ]
    for title in titles:
        assert ("biases ignored" in title.replace("\n", " ")) is (bias == "ignored")


def test_what_the_stabilizer_holds_is_flagged():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():  # the bias held up a neuron whose inputs cancel; another has a 1e-3 left
        net[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 0.0]]))
        net[0].bias.fill_(1.0)
        net[2].weight.fill_(1.0)
        net[2].bias.zero_()
    measures = {
        b: ng.measure(net, torch.ones(2), target=0, bias=b) for b in ("absorbed", "ignored")
    }
    assert "unplaced" not in [flag.name for flag in measures["absorbed"].flags]
    (flag,) = (f for f in measures["ignored"].flags if f.name == "unplaced")
    held = sum(abs(row["stabilizer"]) for row in measures["ignored"].report().to_pylist())
    assert held > 0.3
    assert f"{100 * held:.3g} %" in flag
    assert not any("biases" in f for f in measures["ignored"].flags)


def test_the_flag_is_stored_and_counted(tmp_path):
    net = network()
    x = images(1)
    with torch.no_grad():  # rows of a patch sum to nothing without their bias
        net[0].weight -= net[0].weight.mean((1, 2, 3), keepdim=True)
        x.fill_(1.0)
    with ng.extract(net, x, tmp_path / "s.nrm", target=0, bias="ignored", progress=False) as store:
        ((key,),) = store.sql("SELECT key FROM inputs").fetchall()
        ((flags,),) = store.sql("SELECT flags FROM inputs").fetchall()
        assert "unplaced" in flags
        assert list(flags) == [flag.name for flag in store.measure(key).flags]
        assert "over 1 % in the stabilizer" in store.subgraph(key).graph["flags"]


def test_a_store_goes_on_in_its_own_reading(db, tmp_path):
    other = {"absorbed": "ignored", "ignored": "absorbed"}[db.bias]
    for options in ({}, {"bias": db.bias}, {"composite": "auto"}):
        with ng.extract(db.program, images(), db.path, progress=False, **options) as again:
            assert again.bias == db.bias
    with pytest.raises(ng.StoreError, match=f"biases are {db.bias} in the store"):
        ng.extract(db.program, images(), db.path, bias=other, progress=False)
    with pytest.raises(ng.CompositeError, match="bias must be"):
        ng.extract(db.program, images(), tmp_path / "n.nrm", bias="left out", progress=False)
    with pytest.raises(ng.CompositeError, match="by its definition"):
        ng.measure(db.program, images()[0], composite="excitation_backprop", bias="absorbed")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
        return self.out(weights @ self.v(x))[:, 0]


def test_the_command_line_takes_rules_that_fit(tmp_path, capsys, monkeypatch):
    models = types.ModuleType("reading_models")
    models.attention = Attention
    monkeypatch.setitem(sys.modules, models.__name__, models)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((1, 3, 4), np.float32))
    store = str(tmp_path / "a.nrm")
    words = ["extract", "reading_models:attention", str(tmp_path / "x.npy"), "--store", store]
    assert main([*words, "--bias", "ignored", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "rules: attn_lrp (" in printed
    assert "biases ignored" in printed
    assert main([*words, "--bias", "ignored", "--quiet"]) == 0
    assert "rules:" not in capsys.readouterr().out
    assert main([*words, "--bias", "absorbed", "--quiet"]) == 6
    assert "biases are ignored in the store" in capsys.readouterr().err
    with ng.open(store) as db:
        assert db.meta["composite"]["name"] == "attn_lrp"
    with pytest.raises(ng.CompositeError, match="attn_lrp"):
        ng.measure(Attention(), torch.rand(3, 4))
