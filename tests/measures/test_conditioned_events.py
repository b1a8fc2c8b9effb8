"""Events at the edge: conditions that cancel, sets that overlap, are empty or are everything."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)


class Branches(nn.Module):
    """Two parallel branches, and a sum that one of them and a skip meet in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Linear(3, 4), nn.Linear(4, 3)
        self.right, self.deep, self.head = nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(7, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.deep(self.right(x).relu()) + x
        return self.head(torch.cat([self.left(x).relu(), y], 1))


@functools.cache
def branches(scale: str = "unit") -> ng.Measure:
    torch.manual_seed(6)
    net, x = Branches().double(), torch.randn(1, 3, dtype=torch.float64)
    return ng.measure(net, x, target=0, composite="epsilon", scale=scale)


def cancelling(bias: float = 0.0, dtype=torch.float64) -> nn.Sequential:
    """``y = (x0 + bias) - (x0 + bias) + (x1 + bias) - bias``: a hidden neuron for each bracket."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).to(dtype)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        net[0].bias.fill_(bias)
        net[1].weight.copy_(torch.tensor([[1.0, -1.0, 1.0]]))
        net[1].bias.fill_(-bias)
    return net


def close(found, expected) -> None:
    # float64 through five layers; nothing here is larger than some tens.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


EVERYTHING = ng.Layer("head")[...]


# Conditions that vanish


def test_a_condition_that_cancels_is_undefined():
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    m = ng.measure(cancelling(), x, target=0, composite="epsilon")
    hidden = ng.Layer("0")
    np.testing.assert_allclose(m.marginal("0", by="neuron"), [2, -2, 1], rtol=1e-5)
    with pytest.raises(ng.UndefinedConditional, match=r"below rounding.*does not cancel"):
        m.given(hidden[:2])
    with pytest.raises(ng.UndefinedConditional, match="below rounding"):
        m(hidden[2], given=hidden[:2])
    with pytest.raises(ng.UndefinedConditional, match="below rounding"):
        m.given(hidden[:2] & ng.Layer("input")[0])
    # Each half for itself is not small, and both together are what is left of the whole.
    assert m.given(hidden[0]).amplification == pytest.approx(1, rel=1e-12)
    assert m.given(hidden[...]).amplification == pytest.approx(5, rel=1e-5)
    assert m(hidden[:2] | hidden[2]) == pytest.approx(1, rel=1e-5)


def test_a_condition_that_nearly_cancels_says_so():
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    net = cancelling()
    with torch.no_grad():
        net[0].weight[1, 0] = 1 - 1e-6
    c = ng.measure(net, x, target=0, composite="epsilon").given(ng.Layer("0")[:2])
    assert c.amplification == pytest.approx(2e6, rel=1e-3)
    assert any("amplified" in flag for flag in c.flags)
    assert c(ng.Layer("0")[0]).amplification == c.amplification


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_avoiding_is_undefined_where_biases_cancel(kind):
    """What avoids the input ended in biases of 10^4 and -10^4: no more than rounding is left."""
    x = torch.tensor([[0.7, 0.3]], dtype=kind)
    exact = ng.composites.epsilon(1e-13)  # in float64, what 10^-6 absorbs is no rounding
    m = ng.measure(cancelling(1.1e4, kind), x, target=0, composite=exact)
    rounding = torch.finfo(kind).eps * 1e4
    assert abs(m(~ng.Layer("input")[...])) < 100 * rounding
    with pytest.raises(ng.UndefinedConditional, match="below rounding"):
        m.given(~ng.Layer("input")[...])


def test_amplification_of_avoiding_counts_what_is_left():
    m = branches()
    for layer in m.topology.layers:
        if layer == m.topology.output:  # which every walk passes
            continue
        c = m.given(~ng.Layer(layer.name)[0])
        assert c.amplification >= 1 - 1e-12


# Sets of one layer


def test_overlapping_sets_of_a_layer_meet():
    m, stem = branches(), ng.Layer("stem")
    values = m.marginal("stem", by="neuron")
    assert np.abs(values).min() >= 0
    close(m(stem[[0, 1, 2]] & stem[[1, 2, 3]]), values[1] + values[2])
    close(m(stem[[0, 1, 2]] | stem[[1, 2, 3]]), values.sum())
    chosen = int(np.abs(values).argmax())
    other = (chosen + 1) % 4
    twice = m.given(stem[[chosen, other]]).given(stem[[chosen, (chosen + 2) % 4]])
    once = m.given(stem[chosen])
    close(twice.condition_relevance, once.condition_relevance)
    for layer in m.topology.layers:
        close(twice.marginal(layer.name), once.marginal(layer.name))
    close(once(stem[chosen]), 1)
    assert once(stem[other]) == 0
    with pytest.raises(ng.UndefinedConditional):
        once.given(stem[other])


def test_a_layer_with_itself_is_diagonal():
    m = branches()
    c = m.given(ng.Layer("add")[...])
    for measure in (m, c):
        for layer in m.topology.layers:
            expected = np.diag(measure.marginal(layer.name, by="neuron").ravel())
            close(measure.joint(layer.name, layer.name).values, expected)
    close(m.joint(ng.Layer("stem")[:2], ng.Layer("stem")[1:]).values.sum(), m(ng.Layer("stem")[1]))


# Nothing, and everything


def test_an_empty_set():
    m = branches()
    stem = ng.Layer("stem")
    for empty in (stem[[]], stem[...] - stem[...], stem[:2] & stem[2:]):
        assert m(empty) == 0
        close(m(~empty), 1)
        assert m(empty & EVERYTHING) == 0
        close(m(empty | stem[0]), m(stem[0]))
        with pytest.raises(ng.UndefinedConditional):
            m.given(empty)
        sure = m.given(~empty)
        close(sure.condition_relevance, 1)
        close(sure.marginal("stem"), m.marginal("stem"))
    assert m.joint(stem[[]], "left").values.shape == (0, 3)
    assert m.joint("left", stem[[]]).values.shape == (3, 0)
    assert m.joint(stem[[]], stem[[]]).values.shape == (0, 0)


def test_a_full_set_is_not_the_sure_event():
    m = branches()
    whole = m.given(EVERYTHING)
    close(whole.condition_relevance, 1)
    for layer in m.topology.layers:
        close(whole.marginal(layer.name), m.marginal(layer.name))
        assert whole.tables()[1].num_rows == m.tables()[1].num_rows
    right = m.given(ng.Layer("right")[...])  # the skip passes it by
    assert abs(right.condition_relevance - 1) > 1e-3
    assert right(ng.Layer("left")[...]) == 0
    close(right(ng.Layer("deep")[...]), 1)
    close(right.cut("stem").total, 1)
    past = m.given(~ng.Layer("right")[...])
    assert past(ng.Layer("right")[0]) == 0
    mixed = right.condition_relevance + past.condition_relevance
    close(mixed, 1)


def test_parallel_branches_exclude_each_other():
    m = branches()
    left, right, deep = (ng.Layer(name)[...] for name in ("left", "right", "deep"))
    assert m(left & right) == 0
    assert m(left & deep & EVERYTHING) == 0
    assert not m.joint("left", "right").values.any()
    assert not m.joint("deep", "left").values.any()
    c = m.given(left)
    for name in ("right", "deep", "add"):
        assert not c.marginal(name).any()
        assert not c.joint(name, "stem").values.any()
        close(c.cut(name).total, 1)
    with pytest.raises(ng.UndefinedConditional):
        m.given(left & right)
    with pytest.raises(ng.UndefinedConditional):
        c.given(deep)
    close(c(~right), 1)


# Scale, and what is refused


def test_the_logit_scales_what_is_not_conditioned():
    m, scaled = branches(), branches("logit")
    A, B = ng.Layer("stem")[0], ng.Layer("add")[...]
    assert scaled.scale == pytest.approx(m.logit)
    close(scaled(A & B), m(A & B) * m.logit)
    close(scaled.joint("add", "stem").values, m.joint("add", "stem").values * m.logit)
    close(scaled.cut("stem").total, m.logit)
    close(scaled.interaction(A, B), m.interaction(A, B))
    c, d = scaled.given(B), m.given(B)
    assert c.scale == 1
    close(c.condition_relevance, d.condition_relevance)
    close(c(A), d(A))
    close(scaled(A, given=B), d(A))
    close(c.joint("add", "stem").values, d.joint("add", "stem").values)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.given("stem"), "expected an event"),
        (lambda m: m.given(ng.Layer("nowhere")[0]), "nowhere"),
        (lambda m: m.given(ng.Layer("stem")[9]), "stem"),
        (lambda m: m.many([ng.Layer("stem")[0], "x"]), "expected an event"),
        (lambda m: m.many(ng.Layer("stem")[0]), "a list of events"),
        (lambda m: m.interaction(ng.Layer("stem")[0], "x"), "expected an event"),
        (lambda m: m.edges("left", "stem", by=np.zeros(3)), "by must be one of"),
        (lambda m: m.joint("stem", 3), "a layer's name or a neuron set"),
        (lambda m: m.joint(ng.Layer("stem")[0] & ng.Layer("left")[0], "left"), "neuron set"),
        (lambda m: m.joint("stem", "nowhere"), "nowhere"),
        (lambda m: m.joint("stem", "left", by=("neuron",)), "a pair"),
        (lambda m: m.joint("stem", "left", by="pixel"), "pixel"),
        (lambda m: m.cut("nowhere"), "nowhere"),
        (lambda m: m.strongest("stem", 0), "k must be"),
        (lambda m: m.strongest("stem", 5), "from 1 to 4"),
        (lambda m: m.strongest("stem", True), "k must be"),
        (lambda m: m.edges("left", "right"), "does not read"),
    ],
)
def test_what_does_not_fit_is_refused(call, text):
    m = branches()
    for measure in (m, m.given(ng.Layer("add")[...])):
        with pytest.raises((ng.EventError, ng.InputError, TypeError), match=text):
            call(measure)


@pytest.mark.parametrize("weight", [1e300, -(10**400), 3e38, float("nan")])
def test_weights_that_the_pass_cannot_hold_are_refused(weight):
    net, x = nn.Linear(1, 2, bias=False), torch.full((1, 1), 3.0)
    nn.init.ones_(net.weight)
    with pytest.raises(ng.InputError, match=r"must be finite|sum of the target outputs is inf"):
        ng.measure(net, x, target={0: weight, 1: 1.0}, composite="epsilon")


def test_no_events_have_no_relevance():
    assert branches().many([]).shape == (0,)
    assert branches().many(ng.Layer("stem")[i] for i in range(2)).shape == (2,)
    assert branches().given(EVERYTHING).many([]).shape == (0,)
