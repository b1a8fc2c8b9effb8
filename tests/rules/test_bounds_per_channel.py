"""ZBox with bounds that differ by channel: dense matrices, zennit, stores, what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from rules.test_dense_rules import compare, drawn
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import StoreError
from nrm_graph.rules import ZBox, registry

pytestmark = pytest.mark.usefixtures("remembered_traces")

LOW, HIGH = [-3.0, 0.0, -1.0, -2.5, -0.5], [3.5, 1.0, 0.0, 2.0, 0.25]


@pytest.mark.parametrize(
    "operation", ["dense", "conv1d_strided", "conv2d", "conv2d_grouped", "transposed2d_grouped"]
)
def test_dense_matrices(operation):
    net, op, head, x, program = drawn("operations", operation, 21)
    n = x.shape[1]
    for low, high in ((LOW[:n], HIGH[:n]), (-4.0, HIGH[:n]), (LOW[:n], 4.0)):
        compare(net, op, head, x, program, "0", "ZBox", {"low": low, "high": high})


def test_features_of_tokens_are_bounded_by_feature():
    torch.manual_seed(0)
    dense, x = nn.Linear(3, 4).double(), torch.randn(1, 5, 3, dtype=torch.float64)
    of_tokens = nn.Sequential(dense, nn.Flatten(), nn.Linear(20, 2).double())
    chosen = {"low": LOW[:3], "high": HIGH[:3]}
    rules = ng.composites.composite(
        "mine", {"dense": ng.rules.Epsilon()}, layers={"0": ZBox(**chosen)}
    )
    m = ng.measure(of_tokens, x, target=1, composite=rules)
    at, found = np.asarray(m.marginal("0", by="neuron")), m.marginal("input", by="neuron")
    w, low, high = dense.weight.detach().numpy(), np.array(LOW[:3]), np.array(HIGH[:3])
    for t in range(5):
        n = x[0, t].numpy() * w - low * w.clip(0) - high * w.clip(max=0)
        d = n.sum(1)
        expected = at[t] @ (n / (d + 1e-6 * np.where(d >= 0, 1, -1))[:, None])
        np.testing.assert_allclose(found[t], expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of zennit's hooks
def test_zennit():
    from oracles.test_convolutional import close, picture, plain, zennit_relevance
    from zennit.composites import EpsilonGammaBox

    net, x = plain(), picture(3, 12, 12)
    low, high = (torch.tensor(v[:3], dtype=torch.float64).view(1, 3, 1, 1) for v in (LOW, HIGH))
    _, expected = zennit_relevance(net, EpsilonGammaBox(low=low, high=high), x, 2)
    m = ng.measure(net, x, target=2, composite=ng.composites.epsilon_gamma_box(low, high))
    close(m.marginal("input", by="neuron"), expected, 1e-10)


@pytest.mark.parametrize(
    "bound",
    [
        LOW[:3],
        tuple(LOW[:3]),
        np.array(LOW[:3], np.float32),
        torch.tensor(LOW[:3]).view(1, 3, 1, 1),
        torch.tensor(LOW[:3]).view(3, 1, 1).requires_grad_(),
    ],
)
def test_bounds_are_stored_as_lists(bound):
    rule = ZBox(bound, 4)
    assert rule == ZBox(LOW[:3], 4)
    assert hash(rule) == hash(ZBox(LOW[:3], 4))
    data = rule.to_json()
    assert data == {"rule": "ZBox", "low": LOW[:3], "high": 4, "stabilizer": 1e-6}
    assert registry.from_json(json.loads(json.dumps(data))) == rule


def test_a_store_answers_with_them(tmp_path):
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 2)),
        torch.rand(1, 2, 3, 3),
    )
    rules = ng.composites.epsilon_gamma_box([0.0, -1.0], [1.0, 2.0])
    options = {"composite": rules, "progress": False}
    ng.extract(net, [(x[0], 0)], tmp_path / "s.nrm", **options).close()
    with ng.extract(net, [(x[0], 0), (x[0] / 2, 0)], tmp_path / "s.nrm", **options) as db:
        assert len(db) == 2  # it goes on with the same rules
        (key, target), *_ = db.sql("SELECT key, target FROM inputs").fetchall()
        m = db.measure(key, target=target)
    expected = ng.measure(net, x, target=target, composite=rules).marginal("input", by="neuron")
    np.testing.assert_allclose(m.marginal("input", by="neuron"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (2.0, 1.0, r"low must not be above high, found low=2 and high=1$"),
        ([0, 3], [1, 2], r"low must not be above high, found low=3 and high=2 in channel 1"),
        ([0, 3], 2, r"low must not be above high, found low=3 and high=2 in channel 1"),
        ([0, 1], [2, 2, 2], r"low is of 2 channels and high of 3: give as many of both"),
        ([0, float("nan")], 1, r"low must be a finite number"),
        ([], 1, r"low must be a number, or one for every channel, found \[\]"),
        ("0", 1, r"low must be a number, or one for every channel, found '0'"),
        ([[0, 1], [1]], 2, r"low must be a number, or one for every channel"),
        (torch.zeros(1, 3, 4, 4), 1, r"low must be a number, or one for every channel"),
        ([True], 1, r"low must be a number, or one for every channel"),
    ],
)
def test_wrong_bounds(low, high, message):
    with pytest.raises(ng.CompositeError, match=message):
        ZBox(low, high)


def test_bounds_that_do_not_fit_the_layer():
    net, x = (
        nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 2)),
        torch.rand(1, 3, 3, 3),
    )
    rules = ng.composites.epsilon_gamma_box([0.0, 0.0], 1.0)
    with pytest.raises(ng.CompositeError, match=r"reads 3 channels, found bounds of 2: give 3"):
        ng.measure(net, x, target=0, composite=rules).report()
    pooled = ng.composites.composite(
        "mine", {"average": ZBox([0.0] * 3, 1.0), "dense": ng.rules.Epsilon()}
    )
    net = nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(3, 2))
    message = r"per channel needs a convolution or nn.Linear, found another operation \(average\)"
    with pytest.raises(ng.CompositeError, match=message):
        ng.measure(net, x, target=0, composite=pooled).report()


@pytest.mark.parametrize("low", [["0"], [None], [1e31], [[0.0]], [True], {"0": 1}])
def test_hostile_bounds_of_a_store(low):
    with pytest.raises(StoreError, match=r"rule ZBox: low cannot be " + re.escape(repr(low))):
        registry.from_json({"rule": "ZBox", "low": low, "high": 1.0})
    with pytest.raises(StoreError, match="rule Gamma: gamma cannot be"):
        registry.from_json({"rule": "Gamma", "gamma": [0.25]})
