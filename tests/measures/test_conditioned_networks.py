"""Conditioned measures of networks with batches on other axes, routed constants and splits.

References: torch's autograd, in place of the adjoint pass; and input times gradient, which is
what Epsilon with a vanishing stabiliser gives on piecewise linear networks.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from helpers.networks import ROUTED, UNUSUAL, network
from torch import nn

import nrm_graph as ng
from nrm_graph.events.conjunctions import Literal, expand
from nrm_graph.measures.create import from_network
from nrm_graph.propagation import prepared_network
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.relevance_pass import _lost, relevance_pass, shares_of
from nrm_graph.propagation.routing import send

torch.set_num_threads(1)


NETWORKS = [*UNUSUAL, *ROUTED]


@functools.cache
def measure(name: str, rules: str, row: int = 0) -> ng.Measure:
    return from_network(
        network(name, rules)[2], network(name, rules)[1][row : row + 1], 1, "neuron"
    )


def size(m: ng.Measure) -> float:
    """What rounding is relative to: the largest sum of |R(j -> i)| of a layer."""
    _, rows = m.tables()
    return max(1.0, float(np.bincount(rows["dst_layer"], np.abs(rows["relevance"])).max()))


def close(found, expected, scale: float) -> None:
    # float64 through fewer than ten layers, whose columns may hold |q| of some hundreds.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * scale)


def random_set(rng, m: ng.Measure, layer: str | None = None):
    info = m.topology.layer(layer or str(rng.choice([i.name for i in m.topology.layers])))
    return ng.Layer(info.name)[rng.random(info.shape) < 0.6]


def random_conjunction(rng, m: ng.Measure) -> ng.Event:
    event = random_set(rng, m)
    for _ in range(int(rng.integers(0, 3))):
        other = random_set(rng, m)
        event = event & (other if rng.random() < 0.5 else ~other)
    return event


def given_some(rng, m: ng.Measure, count: int, make=random_conjunction):
    """Measures conditioned on random events that do not nearly cancel."""
    found = []
    for _ in range(50 * count):
        event = make(rng, m)
        try:
            c = m.given(event)
        except ng.UndefinedConditional:
            continue
        if abs(c.condition_relevance) > 1e-2:
            found.append((event, c))
        if len(found) == count:
            return found
    raise AssertionError("too few conditions")


each_network = pytest.mark.parametrize("name", NETWORKS)

SELDOM = pytest.mark.slow
OFTEN = {("padded", "epsilon_plus"), ("splits", "epsilon_plus"), ("windows", "epsilon_plus")}
"""Besides all networks with exact rules; the others are slow."""

each_case = pytest.mark.parametrize(
    ("name", "rules"),
    [
        pytest.param(*case, marks=[] if rules == "exact" or case in OFTEN else [SELDOM])
        for rules in ("exact", "epsilon_plus", "epsilon_gamma")
        for case in ((name, rules) for name in NETWORKS)
    ],
)


# Autograd in place of the adjoint pass


def weighted_pass(state, start, clause, weights):
    """Value of a conjunction where every neuron and pseudo-neuron has a weight.

    The value is multilinear in the weights: at weights of 1 the derivative is R(n & clause).
    """
    net, layout = state.network, state.network.layout
    top = net.values[layout.topology.output.layer_id]
    pending = {top: layout.batches[top].native(start.reshape(1, *layout.topology.output.shape))}
    value = start.new_zeros(())
    for name, node in reversed(net.order):
        r, layer_id = pending.pop(name, None), layout.layer_of.get(name)
        if layer_id is None:
            if r is not None:
                send(node, r, state.values, state.winners, net.program.weights, pending, 1)
            continue
        literal = clause.get(layer_id)
        r = torch.zeros_like(state.values[name]) if r is None else r
        r = layout.batches[name].samples(r)
        if literal is not None:
            mask = torch.from_numpy(literal.mask).to(r.dtype)
            r = r * (mask if literal.passes else 1 - mask)
            if literal.passes:
                pending, value = {}, start.new_zeros(())
        r = r * weights[layer_id]
        if name not in layout.weighings:
            value = value + r.sum()
            continue
        native = layout.batches[name].native(r)
        for operand, share in shares_of(state, name, native):
            pending[operand] = pending[operand] + share if operand in pending else share
        for kind, part in _lost(state, name, native):
            value = value + (part * weights[layer_id, kind]).sum()
    return value


def by_autograd(m: ng.Measure, clause):
    weights = {
        key: torch.ones(1, *layer.shape, dtype=m.start.dtype, requires_grad=True)
        for layer in m.topology.layers
        for key in (
            layer.layer_id,
            (layer.layer_id, "bias"),
            (layer.layer_id, "stabilizer"),
        )
    }
    value = weighted_pass(m.state, m.start, clause, weights)
    if not value.requires_grad:
        return 0.0, {key: np.zeros(w.shape[1:]) for key, w in weights.items()}
    grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return float(value.detach()), {
        key: np.zeros(w.shape[1:]) if g is None else g[0].numpy()
        for (key, w), g in zip(weights.items(), grads, strict=True)
    }


@each_case
def test_all_neurons_are_one_gradient(name, rules):
    m = measure(name, rules)
    rng = np.random.default_rng(0)
    for event, c in given_some(rng, m, 3):
        ((coefficient, clause),) = expand(event, m.topology, m.partitions)
        assert coefficient == 1
        value, grads = by_autograd(m, clause)
        scale = size(m) / abs(value)
        close(c.condition_relevance, value, size(m))
        for layer in m.topology.layers:
            close(c.marginal(layer.name, by="neuron"), grads[layer.layer_id] / value, scale)
            row = next(r for r in c.report().to_pylist() if r["layer"] == layer.name)
            for kind in ("bias", "stabilizer"):
                close(row[kind], grads[layer.layer_id, kind].sum() / value, scale)


def test_an_event_of_every_layer_is_one_gradient_of_float_masks():
    """A sequential network: the pass itself is differentiated, with masks for literals."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(3, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    ).double()
    m = ng.measure(net, torch.randn(1, 2, 5, 5, dtype=torch.float64), target=0)
    masks = {
        layer.layer_id: torch.ones(layer.shape, dtype=torch.float64, requires_grad=True)
        for layer in m.topology.layers
    }
    clause = {i: Literal(True, mask) for i, mask in masks.items()}
    value = relevance_pass(m.state, m.start, clause).value.sum()
    grads = torch.autograd.grad(value, list(masks.values()))
    c = m.given(ng.Layer("input")[...])  # every such walk passes every layer
    close(c.condition_relevance, float(value.detach()), size(m))
    for layer, grad in zip(m.topology.layers, grads, strict=True):
        found = c.marginal(layer.name, by="neuron") * c.condition_relevance
        close(found, grad.numpy(), size(m))


@each_case
def test_what_is_still_to_come_is_a_gradient_of_what_arrives(name, rules):
    """From any layer, skipped by other walks or not: h = d value / d R."""
    m = measure(name, rules)
    rng = np.random.default_rng(1)
    for _ in range(4):
        found = expand(random_conjunction(rng, m), m.topology, m.partitions)
        if not found:  # two sets of one layer that do not meet
            continue
        ((_, clause),) = found
        h = reach(m.state, clause)
        for layer in m.topology.layers:
            start = torch.ones(1, *layer.shape, dtype=torch.float64, requires_grad=True)
            below = {i: v for i, v in clause.items() if i <= layer.layer_id}
            value = relevance_pass(m.state, start, below, at=layer.layer_id).value.sum()
            grad = torch.zeros_like(start)
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value, start)
            # Where no walk arrives, a silent layer's rule need not have a kernel.
            reached = m.marginal(layer.name, by="neuron") != 0
            with torch.no_grad():
                mine = h.times(m.state, layer.layer_id, torch.ones_like(start))
            mine, grad = mine[0].numpy()[reached], grad[0].numpy()[reached]
            # h is what the columns of a kernel are: of the size of its largest entries.
            close(mine, grad, max(1.0, float(np.abs(grad).max(initial=0))) * size(m))


# Input times gradient


CUT = {
    "windows": ("conv", "inner", "norm"),
    "sequence_first": ("up", "down"),
    "frames": ("bn",),
    "frames_in_front": ("conv", "mix"),
    "batch_inside": ("a",),
    "padded": ("conv1", "conv2"),
    "token": ("up", "mix", "down"),
    "splits": ("a", "b", "c"),
}


@each_network
def test_joint_tables_are_products_of_two_jacobians(name):
    """R(a & b) = dy/da da/db b / y, with total derivatives: walks may pass anything between."""
    net, batch, _ = network(name, "exact")
    m = measure(name, "exact")
    x = batch[:1].clone().requires_grad_(True)
    kept = {m.topology.inputs[0].name: x}
    hooks = [
        getattr(net, module).register_forward_hook(
            lambda _, inputs, output, module=module: kept.__setitem__(module, output)
        )
        for module in CUT[name]
    ]
    y = net(x)[0, 1]
    for hook in hooks:
        hook.remove()
    seen = 0
    for upper, a in kept.items():
        (outer,) = torch.autograd.grad(y, a, retain_graph=True)
        close(m.marginal(upper, by="neuron").ravel(), (a * outer / y).detach().ravel(), size(m))
        for lower, b in kept.items():
            if m.topology.layer(lower).layer_id >= m.topology.layer(upper).layer_id:
                continue
            rows = [
                torch.autograd.grad(a.reshape(-1)[i], b, retain_graph=True, allow_unused=True)[0]
                for i in range(a.numel())
            ]
            rows = [torch.zeros_like(b) if row is None else row for row in rows]
            jacobian = torch.stack([row.reshape(-1) for row in rows])
            expected = outer.reshape(-1, 1) * jacobian * b.reshape(1, -1) / y
            found = m.joint(upper, lower)
            assert np.abs(found.values).max() > 0
            close(found.values, expected.detach().numpy(), size(m))
            close(m.joint(lower, upper).values, found.values.T, size(m))
            seen += 1
    assert seen


# Laws


@each_case
def test_many_events_at_once_are_single_events(name, rules):
    m = measure(name, rules, 2)
    rng = np.random.default_rng(2)
    # A few forms, each of several sets: what one batch of copies answers.
    layers = [info.name for info in m.topology.layers]
    found = []
    for _ in range(2):
        chosen = [str(rng.choice(layers)) for _ in range(2)]
        for _ in range(3):
            A, B = (random_set(rng, m, layer) for layer in chosen)
            found += [A & B, A & ~B, ~A & ~B, A | B]
    alone = [measure(name, rules, 2)(event) for event in found]
    fresh = from_network(m.network, network(name, rules)[1][2:], 1, "neuron")
    close(fresh.many(found), alone, size(m))
    ((_, c),) = given_some(rng, m, 1)
    together = c.many(found)
    close(together, [c(event) for event in found], size(m) / abs(c.condition_relevance))
    expected = [m(event & c.condition) / c.condition_relevance for event in found]
    close(together, expected, size(m) / abs(c.condition_relevance))


@each_case
def test_joint_tables_are_events_one_by_one(name, rules):
    m = measure(name, rules)
    rng = np.random.default_rng(3)
    for _, c in [(None, m), *given_some(rng, m, 2)]:
        scale = size(m) / abs(c.condition_relevance)
        for _ in range(3):
            upper, lower = (m.topology.layers[i] for i in rng.choice(len(m.topology.layers), 2))
            a, b = (
                np.sort(rng.choice(i.n_neurons, min(3, i.n_neurons), replace=False))
                for i in (upper, lower)
            )
            A, B = ng.Layer(upper.name).units(a), ng.Layer(lower.name).units(b)
            units = [
                [ng.Layer(upper.name).units([i]) & ng.Layer(lower.name).units([j]) for j in b]
                for i in a
            ]
            expected = np.stack([c.many(row) for row in units])
            close(c.joint(A, B).values, expected, scale)
            close(c.joint(upper.name, B).values[a], expected, scale)
            close(c.joint(A, lower.name).values[:, b], expected, scale)


@each_case
def test_totals_and_tables(name, rules):
    m = measure(name, rules, 1)
    rng = np.random.default_rng(4)
    for _, c in given_some(rng, m, 4):
        scale = size(m) / abs(c.condition_relevance)
        _, rows = c.tables()
        edge = {k: rows[k].to_numpy() for k in rows.column_names[:5]}
        for layer in m.topology.layers:
            close(c.cut(layer.name).total, 1.0, scale)
            relevance = c.marginal(layer.name, by="neuron").ravel()
            out = edge["dst_layer"] == layer.layer_id
            into = (edge["src_layer"] == layer.layer_id) & (edge["src_unit"] >= 0)
            for chosen, unit, ends in (
                (out, "dst_unit", layer.kind == "input"),
                (into, "src_unit", layer == m.topology.output),
            ):
                if not ends:
                    found = np.bincount(
                        edge[unit][chosen], edge["relevance"][chosen], layer.n_neurons
                    )
                    close(found, relevance, scale)


@each_network
def test_single_precision(name):
    """Float32 against float64: to some roundings of what is summed, over R(condition)."""
    _, x, _ = network(name, "epsilon_gamma")
    m = measure(name, "epsilon_gamma")
    single = prepared_network.network(m.network.program, m.network.composite, torch.float32)
    low = from_network(single, x[:1].float(), 1, "neuron")
    rng = np.random.default_rng(5)
    # Up to eight layers and sums of some 20 terms: about 64 roundings.
    tolerance = 64 * 2**-23 * size(m)
    for event, c in given_some(rng, m, 4):
        found = low.given(event)
        scale = tolerance / abs(c.condition_relevance) * max(1.0, 1 / abs(c.condition_relevance))
        for layer in m.topology.layers:
            values = found.marginal(layer.name, by="neuron")
            assert values.dtype == np.float32
            expected = c.marginal(layer.name, by="neuron")
            np.testing.assert_allclose(values, expected, rtol=0, atol=scale)
            assert abs(found.cut(layer.name).total - 1) <= scale
        A = random_set(rng, m)
        assert abs(found(A) - c(A)) <= scale
        assert abs(found(A) + found(~A) - 1) <= scale


class LateEmbedding(nn.Module):
    """An embedding that is looked up after a dense layer ran: walks end above that layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.words, self.last = nn.Linear(3, 4), nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, x, ids):
        hidden = torch.relu(self.first(x))
        return self.last(hidden + self.words(ids))


def test_walks_that_end_above_what_they_must_pass():
    torch.manual_seed(0)
    inputs = (torch.rand(1, 3, dtype=torch.float64), torch.tensor([2]))
    m = ng.measure(LateEmbedding().double(), inputs, target=0, composite="epsilon")
    names = [layer.name for layer in m.topology.layers]
    assert names.index("words") > names.index("first")
    for condition in (ng.Layer("first")[:], ng.Layer("first")[:] & ~ng.Layer("words")[1]):
        given = m.given(condition)
        for name in names:
            neurons = range(m.topology.layer(name).n_neurons)
            alone = [float(given(ng.Layer(name).units([i]))) for i in neurons]
            close(given.marginal(name, by="neuron").ravel(), alone, size(m))
        _, rows = given.tables()
        assert not np.isin(rows["src_layer"], names.index("words")).any()
