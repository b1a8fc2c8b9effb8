"""Conditioned measures at the edge: layers without axes, rows that no walk makes, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng

pytestmark = pytest.mark.usefixtures("remembered_traces")

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


def mlp(seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def test_a_union_within_a_layer_is_one_conjunction():
    net, x = mlp().double(), torch.randn(1, 3, dtype=torch.float64)
    m = ng.measure(net, x, target=0, composite="epsilon", dtype="float64")
    layer = ng.Layer("2")
    one = m.given(layer[:2])
    for union in (
        ~(~layer[0] & ~layer[1]),
        layer[0] | ng.Layer("3")[1],  # an alias
        layer[0] | (layer[1] - layer[2]),
    ):
        c = m.given(union)
        assert len(c.terms) == 1
        assert c.amplification == pytest.approx(one.amplification, rel=1e-12)
        assert c.tables()[1].equals(one.tables()[1])


def test_interaction_where_the_logit_is_zero():
    net, x = mlp(), torch.randn(1, 3)
    with torch.no_grad():
        net[4].weight[0] = 0
        net[4].bias[0] = 0
    plain, scaled = (
        ng.measure(net, x, target=0, composite="epsilon", scale=scale)
        for scale in ("unit", "logit")
    )
    assert scaled.logit == 0
    A, B = ng.Layer("4")[0], ng.Layer("0")[1]
    assert scaled.interaction(A, B) == plain.interaction(A, B)


def test_a_condition_too_small_for_its_inverse_is_undefined():
    """In float32 the pass would begin with infinity."""
    net, x = mlp(), torch.rand(1, 3)
    for tiny, defined in ((1e-30, True), (1e-38, False)):
        with torch.no_grad():
            net[4].weight[0, 1] = tiny
        for kind in ("float32", "float64"):
            m = ng.measure(net, x, target=0, composite="epsilon", dtype=kind)
            if not defined and kind == "float32":
                with pytest.raises(ng.UndefinedConditional, match="too small for its inverse"):
                    m.given(ng.Layer("2")[1])
                continue
            c = m.given(ng.Layer("2")[1])
            np.testing.assert_allclose(c.marginal("2"), [0, 1, 0], rtol=1e-5)
            assert np.isfinite(c.marginal("0")).all()


def test_long_chains_of_sets_are_conditions_as_any():
    net, x = mlp().double(), torch.randn(1, 3, dtype=torch.float64)
    m = ng.measure(net, x, target=0, composite="epsilon", dtype="float64")

    def chain() -> ng.Event:
        event = ng.Layer("2")[0]
        for i in range(5000):
            event = event | ng.Layer("2")[i % 2]
        return event

    assert m.given(chain()).condition_relevance == m.given(chain()).condition_relevance


def test_many_takes_any_iterable():
    net, x = mlp().double(), torch.randn(1, 3, dtype=torch.float64)
    m = ng.measure(net, x, target=0, composite="epsilon", dtype="float64")
    events = [ng.Layer("0")[i] for i in range(4)]
    np.testing.assert_array_equal(m.many(event for event in events), m.many(events))


def test_a_cut_names_no_layer_that_no_walk_comes_to():
    net, x = mlp().double(), torch.randn(1, 3, dtype=torch.float64)
    m = ng.measure(net, x, target=0, composite="epsilon", dtype="float64")
    for condition in (ng.Layer("input")[0], ng.Layer("0")[1] & ng.Layer("input")[0]):
        cut = m.given(condition).cut("2")
        assert not cut.bypass
        assert cut.total == pytest.approx(1, abs=1e-12)
