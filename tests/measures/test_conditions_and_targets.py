"""Conditions that cancel, targets that mean nothing or the same, and the scale of the logit."""

from __future__ import annotations

import copy
import pickle
import types

import numpy as np
import pytest
import torch
from helpers.small_convolution import A, B, L, image, network, program
from torch import nn

import nrm_graph as ng

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def m():
    return ng.measure(network(), image(), target=1, dtype="float64")


def cancelling(below: float = 0.0) -> tuple[nn.Module, torch.Tensor]:
    """Two hidden neurons of relevance 1 and -1 beside one of 1; ``below`` mixes them further."""
    first, second, third = (nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 1))
    with torch.no_grad():
        first.weight.copy_(torch.eye(3) + below)
        second.weight.copy_(torch.eye(3) + below)
        second.bias.zero_()
        x = torch.ones(3)
        hidden = second(first(x))
        third.weight.copy_(torch.tensor([[1.0, -1.0, 1.0]]) / hidden)
        third.bias.zero_()
    return nn.Sequential(first, second, third).double(), x.double()


@pytest.mark.smoke
def test_a_condition_that_cancels_is_undefined():
    net, x = cancelling()
    m = ng.measure(net, x, composite=ng.composites.epsilon(1e-12))
    pair = L("1")[:2]
    np.testing.assert_allclose(m.marginal("1"), [1, -1, 1], atol=1e-9)
    with pytest.raises(ng.UndefinedConditional, match="below rounding"):
        m(L("0")[0], given=pair)
    assert m(L("0")[0] & pair) == pytest.approx(1, abs=1e-9)


def test_a_condition_that_cancels_is_undefined_whatever_is_below():
    # Relevance of the two hidden neurons cancels exactly; below them it grows to ten thousands.
    torch.manual_seed(1)
    first, second = (nn.Linear(3, n, bias=False).double() for n in (3, 1))
    x = (torch.rand(3) + 0.5).double()
    a, b = 24691.356, 108643.82
    with torch.no_grad():
        rows = [[a / x[0], (1 - a) / x[1], 0], [0, b / x[1], (1 - b) / x[2]], [0, 0, 1]]
        first.weight.copy_(torch.tensor(rows))
        hidden = first(x)
        second.weight.copy_(torch.tensor([[1 / hidden[0], -1 / hidden[1], 1]]))
    m = ng.measure(nn.Sequential(first, second), x, composite="epsilon")
    r = m.marginal("0")
    assert r[0] == -r[1]
    with pytest.raises(ng.UndefinedConditional):
        m(L("input")[0], given=L("0")[:2])


def test_amplification_is_the_condition_of_the_quotient(m):
    r = m.marginal("0", by="neuron")[0]
    given = m(B, given=A)
    assert given.amplification == pytest.approx(np.abs(r).sum() / abs(r.sum()), rel=1e-9)
    for event in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert event == given
        assert event.amplification == given.amplification


def test_a_given_of_no_relevance(m):
    for nothing in (L("0")[[]], L("6")[0], A & ~A):
        with pytest.raises(ng.UndefinedConditional):
            m(B, given=nothing)
    assert m(A, given=A) == pytest.approx(1)
    assert m(A, given=L("6")[1]) == pytest.approx(m(A), abs=1e-12)


# Targets


def outputs(*values: float) -> tuple[nn.Module, torch.Tensor]:
    layer = nn.Linear(2, len(values))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[v - 1, 1.0] for v in values]))
        layer.bias.zero_()
    return layer.double(), torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize(
    "target",
    [
        *(5, -1, "label", 1.0, True, None, [1], {}, {9: 1}, {1.5: 1}, {"a": 1}, {True: 1}),
        *({1: 0.0}, {1: np.nan}, {1: np.inf}, {1: "a"}, {1: None}, {1: 1j}),
    ],
    ids=str,
)
def test_targets_that_mean_nothing(target):
    with pytest.raises(ng.InputError):
        ng.measure(program(), image(), target=target)


@pytest.mark.slow
def test_targets_that_mean_the_same():
    net, x = outputs(3.0, 1.0, 2.0)
    r = [
        ng.measure(net, x, target=t, composite="epsilon").marginal("input")
        for t in (0, np.int64(0), "predicted", {0: 1}, {0: -2.0}, types.MappingProxyType({0: 1}))
    ]
    for other in r[1:]:
        np.testing.assert_array_equal(other, r[0])


def test_a_difference_of_equal_logits_is_refused():
    net, x = outputs(2.0, 2.0, 1.0)
    with pytest.raises(ng.InputError, match="zero"):
        ng.measure(net, x, target={0: 1, 1: -1})
    m = ng.measure(net, x, target={0: 1, 2: -1}, composite="epsilon")
    assert m.logit == pytest.approx(1)
    np.testing.assert_allclose(m.marginal("dense"), [2, 0, -1])


def test_zero_and_negative_logits_are_flagged():
    net, x = outputs(0.0, -2.0, 3.0)
    zero = ng.measure(net, x, target=0, composite="epsilon")
    assert any("small" in flag for flag in zero.flags)
    assert zero.cut("input").total == pytest.approx(1)
    negative = ng.measure(net, x, target=1, composite="epsilon")
    assert any("negative" in flag for flag in negative.flags)
    assert ng.measure(net, x, target=2, composite="epsilon").flags == ()


@pytest.mark.smoke
def test_the_logit_scale_multiplies_everything(m):
    scaled = ng.measure(network(), image(), target=1, dtype="float64", scale="logit")
    assert scaled(A) == pytest.approx(m(A) * m.logit, rel=1e-9)
    assert scaled(~A) == pytest.approx(m(~A) * m.logit, rel=1e-9)
    assert scaled(B, given=A) == pytest.approx(m(B, given=A), rel=1e-9)
    np.testing.assert_allclose(scaled.marginal("0"), m.marginal("0") * m.logit, rtol=1e-9)
    assert scaled.cut("0").total == pytest.approx(m.logit, rel=1e-9)
    edges = [np.array(q.edges("3", "0")["relevance"]) for q in (m, scaled)]
    np.testing.assert_allclose(edges[1], edges[0] * m.logit, rtol=1e-9)
    rows = [q.report().to_pydict() for q in (m, scaled)]
    for column in ("sum", "bias", "stabilizer"):
        np.testing.assert_allclose(rows[1][column], np.array(rows[0][column]) * m.logit, rtol=1e-9)
    variation = np.array(rows[0]["total_variation"]) * abs(m.logit)
    np.testing.assert_allclose(rows[1]["total_variation"], variation, rtol=1e-9)
