"""What attn_lrp, cp_lrp and relp hold constant, as gradient times input, and cannot see."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from helpers.transformer_networks import IDS, NETWORKS, drawn, tiny
from reference import attention_gradients

import nrm_graph as ng

torch.set_num_threads(1)

TARGET = 2
GRADIENTS = {"attn_lrp": (False, False), "cp_lrp": (True, False), "relp": (True, True)}
"""Whether attention weights are detached, and whether products are halved all the same."""

ONE_LAYER = {"gpt2": {"n_layer": 1}, "llama": {"num_hidden_layers": 1}}


@functools.cache
def traced(name: str):
    net = drawn(name, **ONE_LAYER[name])
    return net, ng.trace(net, IDS)


@functools.cache
def measured(name: str, composite: str) -> ng.Measure:
    rules = tiny(getattr(ng.composites, composite)())
    return ng.measure(traced(name)[1], IDS, target=TARGET, composite=rules, dtype="float64")


@pytest.mark.parametrize("composite", GRADIENTS)
@pytest.mark.parametrize("name", ONE_LAYER)
def test_marginals_are_input_times_gradient_where_the_rest_is_detached(name, composite):
    net, _ = traced(name)
    leaf = NETWORKS[name][1]
    expected = attention_gradients.relevance(net, [IDS], TARGET, (leaf,), *GRADIENTS[composite])
    m = measured(name, composite)
    compared = 0
    for layer in m.topology.layers:
        path = leaf if layer is m.topology.inputs[0] else layer.name
        if path in expected:
            there = expected[path].numpy().reshape(layer.shape)
            # To 1e-7 of the largest: stabilisers of 1e-14 over small denominators.
            atol = 1e-7 * max(np.abs(there).max(), 1e-9)
            found = m.marginal(layer.name, by="neuron")
            np.testing.assert_allclose(found, there, rtol=0, atol=atol, err_msg=path)
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("composite", GRADIENTS)
@pytest.mark.parametrize("name", ONE_LAYER)
def test_relevance_is_conserved(name, composite):
    m = measured(name, composite)
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-8), layer.name


def projection(m: ng.Measure, letter: str) -> np.ndarray:
    (name,) = [la.name for la in m.topology.layers if la.name.endswith(f"{letter}_proj")]
    return np.asarray(m.marginal(name, by="neuron"))


def test_queries_and_keys_have_equal_shares_by_the_rule():
    m = measured("llama", "attn_lrp")
    q, k = (projection(m, letter).sum() for letter in "qk")
    assert abs(q) > 1e-6
    assert q == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize("composite", ["cp_lrp", "relp"])
def test_nothing_flows_through_queries_and_keys(composite):
    m = measured("llama", composite)
    for letter in "qk":
        assert not projection(m, letter).any()
    assert projection(m, "v").any()
    assert all(row["remainder"] == 0 for row in m.report().to_pylist())


def test_gates_are_halved_by_relp_and_held_by_cp_lrp():
    """Signal and gate of SwiGLU: equal shares by the rule, or all to the signal."""
    held, halved = (
        [m.marginal(f"model.model.layers.0.mlp.{part}_proj").sum() for part in ("gate", "up")]
        for m in (measured("llama", "cp_lrp"), measured("llama", "relp"))
    )
    assert held[0] == 0
    assert abs(held[1]) > 1e-3
    assert halved[0] == pytest.approx(halved[1], rel=1e-6)
    assert sum(halved) == pytest.approx(held[1], rel=1e-6)


def test_relp_is_cp_lrp_without_gates():
    relp, cp = measured("gpt2", "relp"), measured("gpt2", "cp_lrp")
    for layer in relp.topology.layers:
        np.testing.assert_array_equal(relp.marginal(layer.name), cp.marginal(layer.name))
