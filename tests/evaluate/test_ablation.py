"""Ablated units and edges against hand-edited torch modules, float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import TwoInputs
from helpers.networks import unusual
from helpers.transformer_networks import IDS, drawn
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import InputError
from nrm_graph.evaluate.ablation import Ablation, means, place_of
from nrm_graph.network import units
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation import prepared_network
from nrm_graph.rules import composites

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


KNOWN: dict[nn.Module, prepared_network.Network] = {}


def prepared(model, x, resolution="neuron", composite="epsilon", baselines=None):
    if model not in KNOWN:
        program = trace(model, x[:1])
        KNOWN[model] = prepared_network.network(program, composites.get(composite), torch.float64)
    net = KNOWN[model]
    return Ablation(net, units.resolve(net.layout.topology, resolution), baselines)


def layer(ablation, name):
    return ablation.net.layout.topology.layer(name).layer_id


def hooked(model, x, **changes):
    """Output where modules, by path with _ for dots, return something else."""
    handles = []
    for path, change in changes.items():
        module = model.get_submodule(path.replace("_", "."))
        handles.append(module.register_forward_hook(lambda m, i, out, f=change: f(out.clone())))
    try:
        with torch.no_grad():
            return model(x)
    finally:
        for handle in handles:
            handle.remove()


def setting(index, value):
    def change(out):
        out[:, index] = value
        return out

    return change


@pytest.fixture(scope="module")
def mlp():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    return net, torch.randn(9, 5, dtype=torch.float64)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3)
        self.head = nn.Linear(12, 3)

    def forward(self, x, masks=None, seen=None):
        """``masks`` changes what b sees of a, ``seen`` what the head sees of b, before pooling."""
        y = F.relu(self.a(x))
        y = y if masks is None else masks(y)
        z = F.relu(self.b(F.max_pool2d(y, 2)))
        z = z if seen is None else seen(z)
        return self.head(F.max_pool2d(z, 2, 1, 1).flatten(1)[:, :12])


@pytest.fixture(scope="module")
def pooled():
    torch.manual_seed(1)
    return Pooled().double(), torch.randn(6, 2, 8, 8, dtype=torch.float64)


# Units


@pytest.mark.smoke
def test_units_of_an_mlp_are_zeroed_after_the_activation(mlp):
    net, x = mlp
    found = prepared(net, x)
    chosen = {layer(found, "0"): {1, 4}, layer(found, "2"): {0}}
    expected = hooked(net, x, **{"1": setting([1, 4], 0.0), "3": setting([0], 0.0)})
    torch.testing.assert_close(found.without_units(x[None], chosen), expected, **CLOSE)


def test_nothing_ablated_is_the_network(mlp):
    net, x = mlp
    found = prepared(net, x)
    with torch.no_grad():
        expected = net(x)
    for empty in ({}, {layer(found, "0"): set()}):
        torch.testing.assert_close(found.without_units([x], empty), expected, **CLOSE)
    torch.testing.assert_close(found.without_edges([x], {(2, 1): {0: frozenset()}}), expected)


def test_units_get_their_mean(mlp):
    net, x = mlp
    plain = prepared(net, x)
    ids = [layer(plain, "0"), layer(plain, "2")]
    base = means(plain.net, ids, [(x[:4],), (x[4:],)])
    with torch.no_grad():
        first = net[:2](x).mean(0)
        second = net[:4](x).mean(0)
    torch.testing.assert_close(base[ids[0]], first, **CLOSE)
    torch.testing.assert_close(base[ids[1]], second, **CLOSE)
    found = prepared(net, x, baselines=base)
    expected = hooked(net, x, **{"1": setting([2], first[2]), "3": setting([5], second[5])})
    torch.testing.assert_close(
        found.without_units([x], {ids[0]: {2}, ids[1]: {5}}), expected, **CLOSE
    )


def test_channels_before_a_pool(pooled):
    net, x = pooled
    found = prepared(net, x, "channel")
    with torch.no_grad():
        expected = net(x, setting([0, 3], 0.0), setting([1], 0.0))
    chosen = {layer(found, "a"): {0, 3}, layer(found, "b"): {1}}
    torch.testing.assert_close(found.without_units([x], chosen), expected, **CLOSE)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.act, self.bn, self.norm = nn.ReLU(), nn.BatchNorm2d(3), nn.GroupNorm(3, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x, change=lambda name, value: value):
        x = change("stem", self.act(self.stem(x)))
        y = change("bn", self.bn(x)) + change("conv", F.gelu(self.conv(x)))
        y = change("sum", self.act(y))
        return self.head(change("norm", F.relu(self.norm(y))).mean((2, 3)))


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(2)
    net = Block().double().eval()
    with torch.no_grad():
        for tensor in (net.bn.running_mean, net.bn.bias, net.norm.bias, net.bn.weight):
            tensor.normal_()
        net.bn.running_var.uniform_(0.5, 2.0)
    return net, torch.randn(5, 1, 5, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "at"),
    [("stem", "stem"), ("conv", "conv"), ("bn", "bn"), ("add", "sum"), ("norm", "norm")],
)
@pytest.mark.parametrize("value", [0.0, "mean"])
def test_residual_sums_and_norms(block, name, at, value):
    net, x = block
    found = prepared(net, x, "channel")
    i = layer(found, name)
    base = means(found.net, [i], [(x,)]) if value == "mean" else None
    found = Ablation(found.net, found.partitions, base)
    held = {}

    def change(where, values):
        if where == at:
            held[at] = values.mean(0)
            values = setting([1], held[at][1] if value == "mean" else 0.0)(values.clone())
        return values

    with torch.no_grad():
        expected = net(x, change)
    torch.testing.assert_close(found.without_units([x], {i: {1}}), expected, **CLOSE)


def test_embeddings_and_masked_scores():
    net = drawn("gpt2")
    found = prepared(net, IDS, "auto", "attn_lrp")
    ids = torch.cat([IDS, IDS.flip(1)])
    wte = layer(found, "model.transformer.wte")
    part = units.partition(found.net.layout.topology.layers[wte], "feature")
    found = Ablation(
        found.net, tuple(part if k == wte else p for k, p in enumerate(found.partitions))
    )
    with torch.no_grad():
        vectors = net.model.transformer.wte(ids)
        vectors[..., [2, 5]] = 0.0
        expected = net.model(inputs_embeds=vectors, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found.without_units([ids], {wte: {2, 5}}), expected, **CLOSE)
    # Scores of a causal mask are hidden by -inf: they stay hidden, and every output finite.
    for info in found.net.layout.topology.layers[1:-1]:
        everything = set(range(found.partitions[info.layer_id].n_units))
        assert found.without_units([ids], {info.layer_id: everything}).isfinite().all(), info.name


def test_a_selection_of_layers_cannot_be_ablated_but_what_it_reads():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return torch.cat([self.a(x), self.b(x)], 1)

    net, x = Two().double(), torch.randn(2, 3, dtype=torch.float64)
    found = prepared(net, x)
    output, b = layer(found, "output"), layer(found, "b")
    with pytest.raises(InputError, match="cannot be ablated"):
        place_of(found.net, output)
    with torch.no_grad():
        expected = net(x)
    expected[:, 3] = 0.0
    cut = {(output, b): {3: frozenset({1}), 0: frozenset({1})}}
    torch.testing.assert_close(found.without_edges([x], cut), expected, **CLOSE)


# Edges


@pytest.mark.smoke
def test_edges_of_an_mlp_are_edited_weights(mlp):
    net, x = mlp
    found = prepared(net, x)
    removed = [(0, 1), (0, 2), (5, 6), (3, 1)]
    one, two = layer(found, "0"), layer(found, "2")
    with torch.no_grad():
        weight = net[2].weight.clone()
        for j, i in removed:
            weight[j, i] = 0.0
        hidden = F.relu(F.linear(net[:2](x), weight, net[2].bias))
        expected = net[4](hidden)
    cut = {0: frozenset({1, 2}), 5: frozenset({6}), 3: frozenset({1})}
    torch.testing.assert_close(found.without_edges([x], {(two, one): cut}), expected, **CLOSE)


def test_edges_get_the_mean(mlp):
    net, x = mlp
    plain = prepared(net, x)
    one, two = layer(plain, "0"), layer(plain, "2")
    found = Ablation(plain.net, plain.partitions, means(plain.net, [one], [(x,)]))
    with torch.no_grad():
        a = net[:2](x)
        z = net[2](a)
        z[:, 4] -= net[2].weight[4, 3] * (a[:, 3] - a[:, 3].mean())
        expected = net[4](F.relu(z))
    cut = {(two, one): {4: frozenset({3})}}
    torch.testing.assert_close(found.without_edges([x], cut), expected, **CLOSE)


def test_edges_of_two_steps_at_once(mlp):
    net, x = mlp
    found = prepared(net, x)
    ids = [layer(found, name) for name in ("input", "0", "2", "4")]
    with torch.no_grad():
        weights = [net[k].weight.clone() for k in (0, 2, 4)]
        weights[0][1, 2] = weights[1][5, 1] = weights[2][0, 5] = 0.0
        y = F.relu(F.linear(x, weights[0], net[0].bias))
        y = F.relu(F.linear(y, weights[1], net[2].bias))
        expected = F.linear(y, weights[2], net[4].bias)
    cut = {
        (ids[1], ids[0]): {1: frozenset({2})},
        (ids[2], ids[1]): {5: frozenset({1})},
        (ids[3], ids[2]): {0: frozenset({5})},
    }
    torch.testing.assert_close(found.without_edges([x], cut), expected, **CLOSE)


def test_channel_edges_through_a_pool_are_edited_kernels(pooled):
    net, x = pooled
    found = prepared(net, x, "channel")
    a, b = layer(found, "a"), layer(found, "b")
    kept = net.b.weight.detach().clone()
    with torch.no_grad():
        net.b.weight[0, [1, 2]] = 0.0
        net.b.weight[2, 3] = 0.0
        expected = net(x)
        net.b.weight.copy_(kept)
    cut = {(b, a): {0: frozenset({1, 2}), 2: frozenset({3})}}
    torch.testing.assert_close(found.without_edges([x], cut), expected, **CLOSE)


def test_neuron_edges_through_a_pool(pooled):
    """The pool of that reader alone chooses again, without the neuron."""
    net, x = pooled
    found = prepared(net, x)
    a, b = layer(found, "a"), layer(found, "b")
    with torch.no_grad():
        y = F.relu(net.a(x))
        z = net.b(F.max_pool2d(y, 2))
        edited = z.clone().flatten(1)
        rng = np.random.default_rng(0)
        cut = {}
        for unit in rng.choice(12, 5, replace=False).tolist():
            lost = rng.choice(256, 60, replace=False)
            own = y.clone().flatten(1)
            own[:, lost] = 0.0
            again = net.b(F.max_pool2d(own.view(y.shape), 2)).flatten(1)
            edited[:, unit] = again[:, unit]
            cut[unit] = frozenset(lost.tolist())
        z = F.relu(edited.view(z.shape))
        expected = net.head(F.max_pool2d(z, 2, 1, 1).flatten(1)[:, :12])
    assert (edited != net.b(F.max_pool2d(y, 2)).flatten(1)).any()
    torch.testing.assert_close(found.without_edges([x], {(b, a): cut}), expected, **CLOSE)


def test_edges_of_a_norm_take_its_spread_along():
    torch.manual_seed(5)
    net, x = Block().double().eval(), torch.randn(4, 1, 5, 5, dtype=torch.float64)
    net.norm = nn.GroupNorm(1, 3).double()
    held: dict[str, torch.Tensor] = {}

    def change(where, values):
        held[where] = values
        if where == "norm":  # channel 2 alone does not see channel 0
            values = values.clone()
            values[:, 2] = F.relu(net.norm(setting([0], 0.0)(held["sum"].clone())))[:, 2]
        return values

    with torch.no_grad():
        net.norm.weight.normal_()
        net.norm.bias.normal_()
        expected = net(x, change)
    found = prepared(net, x, "channel")
    cut = {(layer(found, "norm"), layer(found, "add")): {2: frozenset({0})}}
    torch.testing.assert_close(found.without_edges([x], cut), expected, **CLOSE)


def test_layers_must_read_each_other(mlp):
    net, x = mlp
    found = prepared(net, x)
    with pytest.raises(InputError, match="4 does not read 0 directly"):
        found.without_edges([x], {(layer(found, "4"), layer(found, "0")): {0: frozenset({1})}})


FAMILIES = {
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (3, 4), "epsilon"),
    "block": lambda: (Block().eval(), (3, 1, 5, 5), "epsilon"),
    "vit": lambda: (drawn("vit"), (2, 3, 32, 32), "attn_lrp"),
    "swin": lambda: (drawn("swin"), (2, 3, 32, 32), "attn_lrp"),
}


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "block", "gpt2", "windows", "sequence_first", "batch_inside", "splits"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vit", "swin", "llama", "frames")
        ),
    ],
)
def test_all_edges_that_leave_a_unit_are_the_unit(name):
    """Of every layer, whatever reads it: sums, norms, products, softmaxes, moved batches."""
    torch.manual_seed(3)
    if name in FAMILIES:
        model, shape, composite = FAMILIES[name]()
        model, x = model.double(), torch.randn(*shape, dtype=torch.float64)
    elif name in ("gpt2", "llama"):
        model, x, composite = drawn(name), torch.cat([IDS, IDS.flip(1)]), "attn_lrp"
    else:
        model, x = unusual(name)
        composite = "epsilon"
    found = prepared(model, x, "auto", composite)
    topology = found.net.layout.topology
    rng = np.random.default_rng(4)
    moved = 0
    with torch.no_grad():
        before = found.without_units([x], {})
    for info in topology.layers[:-1]:
        readers = [g.dst for g in topology.groups if g.src == info.layer_id]
        count = found.partitions[info.layer_id].n_units
        chosen = frozenset(rng.choice(count, max(1, count // 3), replace=False).tolist())
        cut = {
            (dst, info.layer_id): dict.fromkeys(range(found.partitions[dst].n_units), chosen)
            for dst in readers
        }
        expected = found.without_units([x], {info.layer_id: chosen})
        torch.testing.assert_close(found.without_edges([x], cut), expected, **CLOSE)
        moved += not torch.allclose(expected, before)
    assert moved > len(topology.layers) // 2


def test_networks_of_several_inputs():
    torch.manual_seed(6)
    model = TwoInputs().double()
    xs = tuple(torch.randn(1, *shape, dtype=torch.float64) for shape in ((1, 6, 6), (3,)))
    net = prepared_network.network(ng.trace(model, xs), composites.get("epsilon"), torch.float64)
    found = Ablation(net, units.resolve(net.layout.topology, "auto"))
    with torch.no_grad():
        expected = model(xs[0] * 0, xs[1])
    first = net.layout.topology.layers[0].layer_id
    everything = set(range(found.partitions[first].n_units))
    torch.testing.assert_close(found.without_units(xs, {first: everything}), expected, **CLOSE)
