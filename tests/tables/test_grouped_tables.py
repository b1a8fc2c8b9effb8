"""Tables of any units are sums of neuron-level tables: attention, norms, gates, upsampling."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nrm_graph as ng
from nrm_graph.network import units

torch.set_num_threads(1)


class Block(nn.Module):
    """Attention of two heads over a class token and three others, norms, a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.rms, self.head = nn.RMSNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mix.transpose(1, 2).flatten(2))
        y = self.rms(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x[:, 0] + x.mean(1))


class Maps(nn.Module):
    """Group and instance norms, squeeze and excitation, padding, bilinear upsampling, a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(8, 4, 3)
        self.group, self.instance = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.group(self.a(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = x * gate
        low = F.interpolate(F.max_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = self.b(F.pad(torch.cat([x, low], 1), (1, 1, 1, 1)))
        return self.head(self.instance(x).relu().sum((2, 3)))


NETWORKS = {"block": (Block, (3, 4)), "maps": (Maps, (2, 4, 4))}


@functools.cache
def neurons(name: str):
    """Measure with neuron-level tables as arrays, by pair of layers."""
    torch.manual_seed(0)
    kind, shape = NETWORKS[name]
    net, x = kind().double(), torch.randn(1, *shape, dtype=torch.float64)
    m = ng.measure(net, x, target=1, composite="attn_lrp", resolution="neuron")
    _, edges = m.tables()
    return m, {key: edges[key].to_numpy() for key in edges.column_names[:5]}


def choices(name: str, rng: np.random.Generator):
    """Resolutions: one for all, and for each layer one at random or groups at random."""
    m, _ = neurons(name)
    if name == "block":
        yield from ("token", "feature", "head", "channel")
    else:
        yield "channel"
    for _ in range(6):
        chosen = {}
        for layer in m.topology.layers:
            n = int(rng.integers(1, 5))
            labels = rng.integers(0, n, layer.shape)
            _, labels = np.unique(labels, return_inverse=True)
            some = ("neuron", "channel", "feature", "token", labels.reshape(layer.shape))
            chosen[layer.name] = some[int(rng.integers(5))]
        yield chosen


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("given", [False, True])
def test_tables_of_units_are_sums_of_neuron_tables(name, given):
    rng = np.random.default_rng(7)
    m, single = neurons(name)
    condition = ng.Layer("norm")[1:] if name == "block" else ng.Layer("squeeze")[0]
    if given:
        _, edges = m.given(condition).tables()
        single = {key: edges[key].to_numpy() for key in edges.column_names[:5]}
    for how in choices(name, rng):
        found = ng.measure(
            m.network.program, m.state.values["x"], target=1, composite="attn_lrp", resolution=how
        )
        found = found.given(condition) if given else found
        _, edges = found.tables()
        parts = units.resolve(m.topology, how)
        labels = [part.labels.ravel() for part in parts]

        def place(layer, unit, labels=labels):
            mapped = [
                int(labels[a][u]) if u >= 0 else int(u) for a, u in zip(layer, unit, strict=True)
            ]
            return np.array(mapped)

        def total(table, dst, src):
            sums = {}
            keys = zip(table["dst_layer"], dst, table["src_layer"], src, strict=True)
            for key, value in zip(keys, table["relevance"], strict=True):
                key = tuple(map(int, key))
                sums[key] = sums.get(key, 0.0) + value
            return sums

        expected = total(
            single,
            place(single["dst_layer"], single["dst_unit"]),
            place(single["src_layer"], single["src_unit"]),
        )
        table = {key: edges[key].to_numpy() for key in edges.column_names[:5]}
        rows = total(table, table["dst_unit"], table["src_unit"])
        size = sum(map(abs, expected.values()))
        for key in expected.keys() | rows.keys():
            # Sums of at most some hundred terms.
            assert abs(expected.get(key, 0.0) - rows.get(key, 0.0)) < 1e-13 * size, (how, key)
