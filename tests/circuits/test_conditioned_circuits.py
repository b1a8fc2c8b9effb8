"""Circuits under a condition: ratios of means, and means of ratios, against exact events."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng

B = ng.Layer("0")[[0, 1]]  # h1 - h2 of the output: cancels where the two are equal
INPUTS = {
    "equal": [1.0, 1.0, 0.5],  # R(B) = 0 although R(B's edges) are not
    "first": [2.0, 0.5, 1.0],
    "second": [0.25, 1.5, 2.0],
    "third": [1.0, 0.0, 0.0],
    "halves": [0.0, 0.0, 1.0],  # again
}


def network():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0.25, 0.25, 1]]))
        net[2].weight.copy_(torch.tensor([[1.0, -1, 2], [0.5, 1, 0]]))
        net[2].bias.copy_(torch.tensor([0.25, 0.0]))
    return net


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    rows = [{"input": torch.tensor(x), "key": key, "label": key} for key, x in INPUTS.items()]
    path = tmp_path_factory.mktemp("given") / "s.nrm"
    made = ng.extract(network(), rows, path, composite="epsilon", target=0, progress=False)
    with made as db:
        db.materialize(B, name="b", progress=False)
        yield db


def exact(db, event_of, keys=INPUTS):
    """R(event & B) and R(B) of every input, from exact events in float64."""
    joint, base, logits = [], [], []
    for key in keys:
        m = db.measure(key, dtype="float64")
        joint.append(m(event_of(ng) & B) if event_of else m(B))
        base.append(m(B))
        logits.append(m.logit)
    return np.array(joint), np.array(base), np.array(logits)


def neuron(name, unit):
    return ng.Layer(name)[unit]


@pytest.mark.parametrize("weight", ["unit", "logit"])
@pytest.mark.parametrize("given", ["b", B], ids=["name", "event"])
def test_ratio_of_means(db, weight, given):
    found = db.circuit(given=given, weight=weight, top=100)
    assert found.graph["undefined"] == 2
    assert found.graph["given"] == "b"
    assert found.graph["inputs"] == 5
    pairs = [(s, d) for s, d in found.edges if s[1] >= 0]
    assert len(pairs) > 5
    for src, dst in pairs:
        joint, base, logits = exact(db, lambda ng, s=src, d=dst: ng.Edge(neuron(*d), neuron(*s)))
        w = logits if weight == "logit" else np.ones(5)
        data = found.edges[src, dst]
        ratio = (w * joint).sum() / (w * base).sum()
        assert data["relevance"] == pytest.approx(ratio, rel=2e-6, abs=2e-6)
        scatter = w * (joint - ratio * base)
        std = np.sqrt((scatter**2).sum() / 4) / abs((w * base).mean())
        assert data["std"] == pytest.approx(std, rel=1e-5, abs=1e-5)
        assert data["stderr"] == pytest.approx(std / np.sqrt(5), rel=1e-5, abs=1e-5)
    for node, data in found.nodes(data=True):
        if node[1] >= 0:
            joint, base, logits = exact(db, lambda ng, n=node: neuron(*n))
            w = logits if weight == "logit" else np.ones(5)
            ratio = (w * joint).sum() / (w * base).sum()
            assert data["relevance"] == pytest.approx(ratio, rel=2e-6, abs=2e-6)
    assert found.graph["condition_relevance"] == pytest.approx((w * base).mean(), rel=1e-6)


def test_without_the_undefined_input_the_ratio_would_be_wrong(db):
    src, dst = ("input", 0), ("0", 0)
    joint, base, _ = exact(db, lambda ng: ng.Edge(neuron(*dst), neuron(*src)))
    whole = joint.sum() / base.sum()
    assert db.circuit(given="b").edges[src, dst]["relevance"] == pytest.approx(whole, rel=2e-6)
    assert abs(joint[1:].sum() / base[1:].sum() - whole) > 0.1


def test_mean_of_ratios_leaves_out_where_it_is_undefined(db):
    keys = [k for k in INPUTS if k not in ("equal", "halves")]
    found = db.circuit("label <> 'halves'", given="b", per_input=True)
    assert found.graph["undefined"] == 1
    assert found.graph["inputs"] == 3
    assert set(found.graph["keys"]) == set(keys)
    for src, dst in [(("input", 0), ("0", 0)), (("input", 2), ("0", 1))]:
        joint, base, _ = exact(db, lambda ng, s=src, d=dst: ng.Edge(neuron(*d), neuron(*s)), keys)
        ratios = joint / base
        data = found.edges[src, dst]
        assert data["relevance"] == pytest.approx(ratios.mean(), rel=2e-6)
        assert data["std"] == pytest.approx(ratios.std(ddof=1), rel=1e-5)


def test_a_group_whose_condition_cancels_is_undefined(db):
    with pytest.raises(ng.UndefinedConditional, match="below rounding"):
        db.circuit("label = 'equal'", given="b")
    with pytest.raises(ng.UndefinedConditional, match="undefined for all 1"):
        db.circuit("label = 'equal'", given="b", per_input=True)


def test_refusals(db):
    other = ng.Layer("0")[2]
    for given, message in [
        ("c", "there is no condition 'c'.*expected one of b"),
        (other, "is not materialized"),
        (3, "takes an event or a condition's name"),
    ]:
        with pytest.raises(ng.InputError, match=message):
            db.circuit(given=given)
    with pytest.raises(ng.InputError, match="per_input goes with given"):
        db.circuit(per_input=True)
    with db.__class__(db.path) as again:
        again.materialize(other, name="some", where="label = 'first'", progress=False)
        with pytest.raises(ng.InputError, match="not computed for 4 of the 5 inputs"):
            again.circuit(given="some")
        assert again.circuit("label = 'first'", given=other).graph["inputs"] == 1
