"""Conditioned measures at the edge: layers without axes, rows that no walk makes, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)


class Scalars(nn.Module):
    """An average without axes that a sum reads again, and an input to match."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(1, 4), nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x):  # (n,)
        y = self.a(x[:, None]).relu() + x[:, None]
        mean = y.mean(1)
        y = self.b(y + mean[:, None])
        return (self.head(y)[:, 0] + mean).unsqueeze(1)


@pytest.mark.parametrize("resolution", ["neuron", "channel"])
def test_layers_without_axes(resolution):
    torch.manual_seed(1)
    net, x = Scalars().double(), torch.tensor([0.7], dtype=torch.float64)
    m = ng.measure(net, x, target=0, composite="epsilon", dtype="float64", resolution=resolution)
    assert [layer.name for layer in m.topology.layers if layer.shape == ()][:2] == ["x", "average"]
    everything = ng.Layer("average")[...]
    for condition in (everything, ~everything, ng.Layer("b")[1], everything | ng.Layer("b")[1]):
        c = m.given(condition)
        for layer in m.topology.layers:
            whole = ng.Layer(layer.name)[...]
            joint = m(whole & condition) / m(condition)
            np.testing.assert_allclose(c.marginal(layer.name).sum(), joint, atol=1e-12)
            matrix = m.joint(layer.name, "average").values
            np.testing.assert_allclose(matrix.sum(), m(whole & everything), atol=1e-12)
            for source in m.topology.sources(layer.layer_id):
                below = m.topology.layers[source].name
                step = ng.Edge(whole, ng.Layer(below)[...])
                expected = m(step & condition) / m(condition)
                for by in ("unit", "neuron"):
                    found = c.edges(layer.name, below, by=by)["relevance"].to_numpy().sum()
                    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("resolution", [{"2": "channel", "0": "neuron"}, "neuron"])
def test_a_condition_leaves_no_rows_of_what_it_excludes(resolution):
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3, padding=1),
        nn.Flatten(),
        nn.Linear(32, 2),
    ).double()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    m = ng.measure(net, x, target=0, dtype="float64", resolution=resolution)
    inside = m.marginal("0", by="neuron") != 0
    inside[:, :, 2:] = False
    for c in (m.given(ng.Layer("0")[inside]), m.given(~ng.Layer("0")[~inside])):
        neurons = np.flatnonzero(inside)
        for by in ("unit", "neuron"):
            for source in ("input", "0"):
                rows = c.edges("0", source, by=by)
                assert set(rows["dst_unit"].to_pylist()) <= set(neurons.tolist())
                assert len(rows)
                assert rows["conditional"].null_count == 0
            assert set(c.edges("2", "0", by=by)["src_unit"].to_pylist()) == set(neurons.tolist())


def test_no_walk_is_absorbed_where_a_layer_is_silent():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    m = ng.measure(net, torch.randn(1, 3, dtype=torch.float64), target=0, dtype="float64")
    heard = np.flatnonzero(m.marginal("0", by="neuron")).tolist()
    assert 0 < len(heard) < 8
    for by in ("unit", "neuron"):
        for source in ("0", "input"):
            assert sorted(set(m.edges("0", source, by=by)["dst_unit"].to_pylist())) == heard
