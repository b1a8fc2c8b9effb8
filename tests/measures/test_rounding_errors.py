"""Stated errors: never below the true one, and not far above it."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
import torch
from reference.reordered import case, tally
from torch import nn

import nrm_graph as ng
from nrm_graph.propagation.kernels import awake

pytestmark = pytest.mark.usefixtures("remembered_traces")

cases = functools.cache(case)


def holds(result, sets):
    assert len(result.ratios) >= 0.9 * sets
    assert result.too_small == 0
    assert result.law == 0
    assert result.answered >= 0.95 * result.sound
    assert np.median(result.ratios) <= 30


@pytest.mark.parametrize("name", ["residual", "pooled"])
def test_errors_of_cancelling_sets(name):
    holds(tally(cases(name, 12, 3), 8), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "pooled"])
def test_errors_of_five_hundred_cancelling_sets(name):
    result = tally(cases(name), 500, seed=1)
    holds(result, 500)
    assert min(result.amplifications) < 3
    assert max(result.amplifications) > 1e5


@pytest.mark.parametrize("name", ["residual", "pooled"])
def test_both_precisions_decide_alike_and_differ_by_rounding(name):
    m = cases(name, 12, 3).measure
    runs = m._precisions
    assert runs.single.state is m.state
    double, single = runs.double.state, runs.single.state
    for node, winners in single.winners.items():
        assert torch.equal(winners, double.winners[node])
    for name_ in m.network.layout.weighings:
        a, b = (awake(state, name_) for state in (double, single))
        assert (a is None and b is None) or torch.equal(a, b)
    for layer in m.topology.layers:
        exact, rough = (
            run.relevance(layer.layer_id)[0].double() for run in (runs.double, runs.single)
        )
        assert float((exact - rough).abs().sum()) <= 1e-2 * float(exact.abs().sum())
        cut = m.cut(layer.name)
        assert cut.total == pytest.approx(1, abs=1e-3)


def test_conditioned_tables_are_in_float64_where_float32_loses_too_much():
    found = cases("pooled", 12, 3)
    m, layer = found.measure, "convs.0"
    relevance = m._precisions.double.relevance(m.topology.layer(layer).layer_id)[0].numpy()
    from reference.reordered import cancelling

    rng = np.random.default_rng(3)
    dtypes = set()
    for amplification in (1.0, 1e7):
        mask = cancelling(relevance, amplification, rng)
        given = m.given(ng.Layer(layer)[mask])
        right = found.truth.given(ng.Layer(layer)[mask[found.orders[layer]]])
        dtypes.add(given.start.dtype)
        for other in ("convs.1", layer, "head"):
            own, true = (g.marginal(other, "neuron") for g in (given, right))
            order = found.orders.get(other)
            apart = np.abs((own if order is None else own[order]) - true).sum()
            assert apart <= given.error * np.abs(true).sum()
        sums = given.tables()[0].to_pandas().query("unit >= 0").groupby("layer_id").relevance.sum()
        assert sums[m.topology.layer(layer).layer_id] == pytest.approx(
            1, abs=1e-6 * given.amplification
        )
    assert dtypes == {torch.float32, torch.float64}


def test_errors_of_joint_matrices_and_interactions():
    found = cases("pooled", 12, 3)
    m, truth = found.measure, found.truth
    upper, lower = "convs.2", "convs.1"
    matrix = m.joint(upper, lower, by="channel")
    right = truth.joint(upper, lower, by="channel").values
    rows, columns = (np.argsort(found.orders[path]) for path in (upper, lower))
    apart = np.abs(matrix.values - right[rows][:, columns]).max()
    assert apart <= matrix.error <= 1e-4 * np.abs(matrix.values).max()
    a, b = ng.Layer(upper)[3], ng.Layer(lower)[5]
    own = m.interaction(a, b)
    other = truth.interaction(ng.Layer(upper)[int(rows[3])], ng.Layer(lower)[int(columns[5])])
    assert abs(own - other) <= own.error <= 1e-6
    assert pickle.loads(pickle.dumps(own)).error == own.error


@pytest.mark.parametrize("composite", ["epsilon_gamma", "epsilon_plus", "epsilon_alpha2_beta1"])
def test_rules_that_branch_keep_their_decisions(composite):
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Conv2d(6, 4, 3), nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()  # fmt: skip
    x = torch.randn(1, 2, 8, 8)
    for dtype in ("float32", "float64"):
        m = ng.measure(net, x, target=1, composite=composite, dtype=dtype)
        runs = m._precisions
        for layer in m.topology.layers:
            exact, rough = (run.relevance(layer.layer_id) for run in (runs.double, runs.single))
            torch.testing.assert_close(rough.double(), exact, rtol=1e-3, atol=1e-4)
        c = m(ng.Layer("0")[2], given=ng.Layer("3")[1])
        assert 0 < c.error <= 1e-6 * max(1.0, abs(c)) * c.amplification
        assert pickle.loads(pickle.dumps(c)).error == c.error


def test_weighted_targets_and_scales():
    torch.manual_seed(5)
    net, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval(), torch.randn(1, 5)
    weights = {0: 1.0, 2: -0.3}
    m = ng.measure(net, x, target=weights, composite="epsilon")
    double = ng.measure(net, x, target=weights, composite="epsilon", dtype="float64")
    some = ng.Layer("0")[:4]
    assert m(some) == pytest.approx(double(some), rel=1e-12)
    logit = ng.measure(net, x, target=weights, composite="epsilon", scale="logit")
    assert logit.joint("0", "2").error == pytest.approx(m.joint("0", "2").error * abs(m.logit))
