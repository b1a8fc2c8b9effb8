"""The certificate of every supported architecture: cuts, edges, laws, conditions; float64."""

from __future__ import annotations

import copy
import functools
import zlib

import numpy as np
import pytest
import torch
from helpers.architectures import ARCHITECTURES, CASES, edge_sums, inputs, network, randomise
from helpers.transformer_networks import NETWORKS, tiny
from reference import attention_gradients
from torch import nn

import nrm_graph as ng
from nrm_graph.measures.reduced.nodes import watched_layers

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("remembered_traces")

# Rounding of float64 through up to a few hundred layers with sums of some thousand terms,
# relative to the largest sum of |R| of a layer.
TOLERANCE = 1e-10


@functools.cache
def program(name: str):
    xs = inputs(name)
    return ng.trace(network(name), xs if len(xs) > 1 else xs[0])


def measure(name: str, rules: str) -> ng.Measure:
    xs = inputs(name)
    return ng.measure(
        program(name),
        xs if len(xs) > 1 else xs[0],
        target=ARCHITECTURES[name].target,
        composite=rules,
        dtype="float64",
    )


@functools.cache
def measured(name: str, rules: str) -> ng.Measure:
    return measure(name, rules)


def size(m: ng.Measure) -> float:
    """The largest total variation of a layer."""
    return max(1.0, *(row["total_variation"] for row in m.report().to_pylist()))


def close(found, expected, scale: float, what: object = "") -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale, err_msg=str(what))


def random_set(rng, layer):
    mask = rng.random(layer.shape) < 0.6
    return ng.Layer(layer.name)[mask], mask


def edges_sum_to_nodes(m: ng.Measure, scale: float) -> None:
    """From both sides, in the units of the tables."""
    for layer, relevance, found in edge_sums(m):
        close(found, relevance, scale, layer.name)


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    m = measured(*request.param)
    # A seed of its own for each network.
    return m, size(m), np.random.default_rng(zlib.crc32("-".join(request.param).encode()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_program_is_the_network(name):
    from nrm_graph.network.ir.interpreter import run

    xs = inputs(name)
    with torch.no_grad():
        expected = network(name)(*xs)
    found = run(program(name), *xs)
    # Folding changes an output by some roundings; constants may have been made in float32.
    bound = 1e-6 if name in ("gpt2", "bert", "llama") else 1e-11
    torch.testing.assert_close(found, expected, rtol=0, atol=bound * float(expected.abs().max()))


@pytest.mark.slow
def test_cuts_and_edges(case):
    m, scale, rng = case
    layers = m.topology.layers
    chosen = rng.choice(len(layers), min(5, len(layers)), replace=False)
    for i in {0, *chosen.tolist()}:
        close(m.cut(layers[i].name).total, 1.0, scale, layers[i].name)
    edges_sum_to_nodes(m, scale)


@pytest.mark.slow
def test_laws_and_conditions(case):
    m, scale, rng = case
    conditions = []
    for _ in range(3):
        chosen = rng.choice(len(m.topology.layers), 3, replace=False)
        (A, _), (B, mask), (C, _) = (random_set(rng, m.topology.layers[i]) for i in chosen)
        events = [A, B, A | B, A & B, ~A, C, A & C, (A & B) | C, A & B & C, A - C]
        a, b, union, both, rest, c, other, mixed, all_three, without = m.many(events)
        close(union + both, a + b, scale)
        close(rest, 1 - a, scale)
        close(mixed + all_three, both + c, scale)
        close(without + other, a, scale)
        try:
            given = m.given(B)
        except ng.UndefinedConditional:
            continue
        close(given(A) * b, both, scale)
        relative = scale / abs(b)
        # Tables of the condition: sums of neurons in B, cuts and edges.
        info = m.topology.layers[chosen[1]]
        close(given.marginal(info.name, by="neuron")[mask].sum(), 1.0, relative)
        close(given.cut(m.topology.layers[chosen[0]].name).total, 1.0, relative)
        conditions.append((given, relative))
    edges_sum_to_nodes(*conditions[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attn_lrp_is_gradient_times_input(name):
    """At every module; ``attention_gradients`` says how."""
    net, xs, leaf = network(name), inputs(name), NETWORKS.get(name, ("", ""))[1]
    if name in ("lstm", "gru"):  # their functions are fused
        net = copy.deepcopy(net)
        net.rnn = attention_gradients.Unrolled(net.rnn)
    with torch.no_grad():
        target = int(net(*xs)[0].argmax())
    expected = attention_gradients.relevance(net, list(xs), target, (leaf,) if leaf else ())
    rules = tiny(ng.composites.attn_lrp())
    m = ng.measure(program(name), xs if len(xs) > 1 else xs[0], target=target, composite=rules)
    first, compared, modules = m.topology.inputs[0].name, 0, dict(net.named_modules())
    for layer in m.topology.layers:
        paths = [layer.name, *layer.aliases]
        if any(isinstance(modules.get(p), nn.modules.batchnorm._BatchNorm) for p in paths[1:]):
            paths = paths[1:]  # what is folded has the relevance of the batch-norm
        for path in paths:
            there = expected.get(leaf or "x" if layer.name == first else path)
            # Of one input, windows are on the batch axis.
            if there is None or layer.shape not in (there.shape[1:], there.shape):
                continue
            there = there.numpy().reshape(layer.shape)
            # 1e-14 of stabiliser over small denominators, layer after layer.
            close(m.marginal(layer.name, by="neuron"), there, 1e3 * np.abs(there).sum(), path)
            compared += 1
    assert compared > len(m.topology.layers) / 4 or name in ("lstm", "gru")


class TwoOutputs(nn.Module):
    def __init__(self, only: str | None = None) -> None:
        super().__init__()
        self.only = only
        self.body, self.scores, self.box = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x):
        x = torch.relu(self.body(x))
        found = {"scores": self.scores(x), "box": self.box(x) * torch.sigmoid(x[:, :1])}
        return found if self.only is None else found[self.only]


@pytest.mark.parametrize(("name", "index"), [("scores", 2), ("box", 1)])
def test_two_outputs(name, index):
    """One of them is what a network gives that returns it alone; both are one measure."""
    torch.manual_seed(0)
    net, alone = TwoOutputs().double(), TwoOutputs(name).double()
    alone.load_state_dict(net.state_dict())
    x = torch.randn(1, 4, dtype=torch.float64)
    expected = ng.measure(alone, x, target=index, composite="attn_lrp")
    for target, output in ((index, name), ((name, index), ["scores", "box"])):
        m = ng.measure(net, x, target=target, output=output, composite="attn_lrp")
        assert m.logit == pytest.approx(expected.logit, rel=1e-14)
        for layer in ("x", "body", name):
            found = m.marginal(layer, by="neuron")
            close(found, expected.marginal(layer, by="neuron"), 1.0, layer)
        for layer in m.topology.layers:
            close(m.cut(layer.name).total, 1.0, size(m), layer.name)
        edges_sum_to_nodes(m, size(m))
    m = ng.measure(
        net,
        x,
        target={("scores", 0): 1.0, ("box", 1): -2.0},
        output=["scores", "box"],
        composite="attn_lrp",
    )
    for layer in m.topology.layers:
        close(m.cut(layer.name).total, 1.0, size(m), layer.name)
    close(m(ng.Layer(m.topology.output.name)[...]), 1.0, size(m))
    edges_sum_to_nodes(m, size(m))


# Real input sizes


REAL = {
    "resnet50": ((3, 224, 224), "epsilon_plus"),
    "vit_b_16": ((3, 224, 224), "attn_lrp"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_size_in_single_precision(name):
    """Errors of a few roundings of the cut for each layer that a walk may pass."""
    import torchvision

    shape, rules = REAL[name]
    torch.manual_seed(0)
    net = randomise(getattr(torchvision.models, name)(num_classes=10), shape)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    m = ng.measure(net, x, composite=rules)
    layers = m.topology.layers
    rounding = 2.0**-23 * max(layer.depth for layer in layers)
    variation = {row["layer"]: row["total_variation"] for row in m.report().to_pylist()}
    scale = max(1.0, *variation.values())
    rng = np.random.default_rng(0)
    chosen = [layers[i].name for i in rng.choice(len(layers) - 1, 2, replace=False)]
    for layer in ("x", *chosen):
        cut = m.cut(layer)
        parts = [*cut.bypass.values(), *cut.absorbed.values()]
        assert abs(cut.total - 1) <= rounding * (variation[layer] + sum(map(abs, parts))), layer
    A, B = (random_set(rng, m.topology.layer(layer))[0] for layer in chosen)
    a, b, union, both, rest = m.many([A, B, A | B, A & B, ~A])
    assert abs(union + both - a - b) <= rounding * scale
    assert abs(a + rest - 1) <= rounding * scale


@pytest.mark.slow
def test_reduced_graphs_keep_both_laws(case):
    m, scale, rng = case
    around, _ = random_set(rng, m.topology.layers[int(rng.integers(len(m.topology.layers) - 1))])
    if rng.random() < 0.5 and abs(m(~around)) > 1e-3:
        m = m.given(~around)
        scale = max(scale, size(m))
    r = m.reduced(nodes=2 * len(watched_layers(m)))
    assert len(r.watched) > 1
    rows = r.report().to_pylist()
    for row in rows:
        close((row["into"] or 0.0, row["out_of"] or 0.0), 0.0, scale, row["layer"])
    ends = [rows[0][kind] for kind in ("bias", "stabilizer", "remainder", "input")]
    close(rows[0]["steps_out"] + sum(ends), 1.0, scale)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rules"), CASES)
def test_neurons_carry_the_whole_where_biases_are_ignored(name, rules):
    m = measure(name, ng.composites.get(rules, "ignored"))
    rows, scale = m.report().to_pylist(), size(m)
    assert not any(row["bias"] for row in rows)
    lost = {row["layer"]: (row["stabilizer"] or 0.0) + (row["remainder"] or 0.0) for row in rows}
    ends = sum(m.marginal(layer.name).sum() for layer in m.topology.inputs)
    close(ends + sum(lost.values()), 1.0, scale)
    for layer in m.topology.layers:
        cut = m.cut(layer.name)
        close(cut.total, 1.0, scale, layer.name)
        for above, share in cut.absorbed.items():
            close(share, lost[above], scale, f"{above} above {layer.name}")
    edges_sum_to_nodes(m, scale)
