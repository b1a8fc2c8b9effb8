"""Circuits of drawn weights: what they must share with the network's own, and what not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import InputError
from nrm_graph.evaluate import randomization
from nrm_graph.evaluate.weight_randomization import spearman


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(54, 40), nn.ReLU(), nn.Linear(40, 3),
    ).double()  # fmt: skip
    rows = [
        {"input": torch.randn(1, 8, 8, dtype=torch.float64), "key": f"k{i}", "fold": i % 2}
        for i in range(12)
    ]
    path = tmp_path_factory.mktemp("randomized") / "s.nrm"
    how = {"0": "channel", "input": "token"}
    with ng.extract(
        net, rows, path, composite="epsilon", target=1, resolution=how, progress=False
    ) as db:
        yield net, db


@pytest.fixture(scope="module")
def circuit(store):
    return store[1].circuit("fold = 0", top=60)


def test_layers_are_drawn_from_the_output_down(store, circuit):
    _, db = store
    found = randomization(db, circuit, draws=8)
    assert found.stages == ("6", "4", "0")
    assert found.layers == ("4", "0", "input")
    assert found.overlap.shape == found.correlation.shape == (8, 3, 3)
    units = {name: [u for n, u in circuit if n == name and u >= 0] for name in found.layers}
    assert found.strongest == tuple(len(units[name]) for name in found.layers)
    assert found.units == (40, 6, 8)
    # Once its weights are drawn, a hidden layer's strongest units are other ones.
    row = found.table().to_pylist()[3]
    assert (row["randomized"], row["layer"]) == ("4", "4")
    assert abs(row["correlation"]) < 0.25
    assert abs(row["overlap"] - row["chance"]) < 0.2
    assert "after the last" in repr(found)


def test_all_layers_at_once(store, circuit):
    _, db = store
    whole = randomization(db, circuit, cascading=False, draws=2)
    steps = randomization(db, circuit, draws=2)
    assert whole.stages == ("all",)
    # The same numbers are drawn, in the same order.
    np.testing.assert_array_equal(whole.overlap[:, 0], steps.overlap[:, -1])
    np.testing.assert_array_equal(whole.correlation[:, 0], steps.correlation[:, -1])


def test_seeds(store, circuit):
    _, db = store
    one, two, three = (randomization(db, circuit, draws=2, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.correlation, two.correlation)
    assert (one.correlation != three.correlation).any()
    small = randomization(db, circuit, draws=2, seed=3, batch_size=2)
    np.testing.assert_allclose(small.correlation, one.correlation, atol=1e-12)


@pytest.mark.parametrize("weight", ["unit", "logit"])
def test_weights_that_stay_give_the_same_circuit(store, weight, monkeypatch):
    _, db = store
    circuit = db.circuit("fold = 0", top=60, weight=weight)
    monkeypatch.setattr(
        "nrm_graph.evaluate.weight_randomization._drawn", lambda tensor, rng: tensor
    )
    kept = []
    spearman_ = spearman

    def record(a, b):
        kept.append(a)
        return spearman_(a, b)

    monkeypatch.setattr("nrm_graph.evaluate.weight_randomization.spearman", record)
    found = randomization(db, circuit, draws=1)
    np.testing.assert_allclose(found.correlation, 1.0)
    # The circuit's own units are the strongest, but where edges of weaker units are stronger.
    for k, name in enumerate(found.layers):
        for (layer, unit), data in circuit.nodes(data=True):
            if layer == name and unit >= 0:
                assert abs(data["relevance"]) == pytest.approx(kept[k][unit], rel=1e-4, abs=1e-6)


def test_what_is_refused(store, circuit):
    _, db = store
    conditioned = circuit.copy()
    conditioned.graph["given"] = "0[2]"
    with pytest.raises(InputError, match="the circuit is conditioned"):
        randomization(db, conditioned)
    for option, value in (("draws", 0), ("batch_size", 0), ("seed", -1)):
        with pytest.raises(InputError, match=f"{option} must be a whole number"):
            randomization(db, circuit, **{option: value})
    lone = circuit.subgraph([("6", 1)]).copy()
    with pytest.raises(InputError, match="no units below the output"):
        randomization(db, lone)


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 6, 30).astype(float), rng.normal(size=30)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
