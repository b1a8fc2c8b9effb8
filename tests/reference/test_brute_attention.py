"""Random events against all walks of networks with attention and gates, float64.

The walks come from the dense kernels of ``dense_attention``, chained; nothing of the package takes
part.  The largest attention network has two layers with two heads each on three tokens, and
millions of walks; every walk is listed.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nrm_graph as ng
from reference.attention_networks import ClassToken, heads
from reference.brute_networks import close, random_event, random_mask, random_set
from reference.dense_attention import REMAINDER, KernelWalks, Reference, table

torch.set_num_threads(1)

TARGET = 1


class SelfAttention(nn.Module):
    """Two heads of one feature each, causal."""

    def __init__(self, d: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.q, self.k, self.v = (nn.Linear(d, 2) for _ in range(3))
        self.o = nn.Linear(2, d)
        self.register_buffer("hidden", torch.ones(tokens, tokens, dtype=torch.bool).triu(1))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (2, 1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        s = (q @ k.transpose(-2, -1) * 0.8).masked_fill(self.hidden, -torch.inf)
        return x + self.o((s.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, blocks=2, d=3, tokens=3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SelfAttention(d, tokens) for _ in range(blocks))
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 2), nn.Linear(2, d)
        self.head = nn.Linear(d, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x[:, 1])

    @staticmethod
    def norm_of(ref: Reference, name, x, norm):
        groups = np.arange(len(x.value))[:, None]
        gamma, beta = norm.weight.detach().numpy(), norm.bias.detach().numpy()
        return ref.layer_norm(name, "layer_norm", x, groups, gamma, beta, norm.eps)

    def reference(self, ref: Reference, x):
        for i, block in enumerate(self.blocks):
            y = self.norm_of(ref, f"blocks.{i}.norm", x, block.norm)
            q, k, v = (
                ref.module(f"blocks.{i}.{n}", "dense", y, getattr(block, n)).to(
                    lambda a: heads(a, 2)
                )
                for n in "qkv"
            )
            s = ref.matmul(
                f"blocks.{i}.product", "product", q, k.to(lambda a: a.transpose(0, 2, 1))
            )
            s = s.map(lambda t: t * 0.8).fill(block.hidden.numpy(), -np.inf)
            a = ref.softmax(f"blocks.{i}.attention_weights", s)
            y = ref.matmul(f"blocks.{i}.attention", "attention", a, v)
            y = y.to(lambda t: t.transpose(1, 0, 2).reshape(t.shape[1], -1))
            x = ref.add(f"blocks.{i}", x, ref.module(f"blocks.{i}.o", "dense", y, block.o))
        y = self.norm_of(ref, "norm", x, self.norm)
        y = ref.module("up", "dense", y, self.up).map(F.gelu)
        x = ref.add("add", x, ref.module("down", "dense", y, self.down))
        return ref.module("head", "dense", x.to(lambda a: a[1]), self.head)


class Gated(nn.Module):
    """A residual block with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 2)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.down, self.up = nn.Conv2d(2, 1, 1), nn.Conv2d(1, 2, 1)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.silu(self.conv(x))
        g = torch.sigmoid(self.up(F.silu(self.down(y.mean((2, 3), keepdim=True)))))
        return self.head((x + y * g).mean((2, 3)))

    def reference(self, ref: Reference, x):
        x = ref.module("stem", "convolution", x, self.stem).map(torch.relu)
        y = ref.module("conv", "convolution", x, self.conv).map(F.silu)
        g = ref.affine("average", "average", y, lambda t: t.mean((2, 3), keepdim=True))
        g = ref.module("down", "convolution", g, self.down).map(F.silu)
        g = ref.module("up", "convolution", g, self.up).map(torch.sigmoid)
        y = ref.multiply("gate", "gate", y, g, held=ref.cp)
        y = ref.affine("average_1", "average", ref.add("add", x, y), lambda t: t.mean((2, 3)))
        return ref.module("head", "dense", y, self.head)


NETS = {
    "gated": (Gated, (1, 3, 3)),
    "block": (lambda: Transformer(blocks=1), (3, 3)),
    "two_blocks": (lambda: Transformer(tokens=2), (2, 3)),
    "transformer": (Transformer, (3, 3)),
    "tokens": (ClassToken, (2, 3)),
}


@functools.cache
def both(name: str, cp: bool, bias: str = "absorbed") -> tuple[KernelWalks, ng.Measure]:
    make, shape = NETS[name]
    torch.manual_seed(1)
    net = make().double().eval()
    with torch.no_grad():
        for name_, parameter in net.named_parameters():
            parameter.normal_(0, 0.3 if name_.endswith("bias") else 1.2)
    x = torch.randn((1, *shape), dtype=torch.float64)
    composite = (ng.composites.cp_lrp if cp else ng.composites.attn_lrp)(epsilon=1e-3, bias=bias)
    m = ng.measure(ng.trace(net, x[0]), x, target=TARGET, composite=composite, resolution="neuron")
    ref = Reference(epsilon=1e-3, cp=cp, bias=bias)
    with torch.no_grad():
        out = net.reference(ref, ref.input("x", x[0].numpy()))
        np.testing.assert_allclose(out.value.ravel(), net(x)[0].numpy(), rtol=0, atol=1e-12)
    found = [(layer.kind, layer.shape) for layer in m.topology.layers]
    assert found == list(zip(ref.kinds, ref.shapes, strict=True))
    ref.names = [layer.name for layer in m.topology.layers]
    return KernelWalks(ref, TARGET), m


SMALL = [("gated", False), ("gated", True), ("block", False), ("block", True)]
TWO = [("two_blocks", True)]
LARGE = [  # up to 2.7 million walks
    pytest.param(("transformer", cp), marks=pytest.mark.slow) for cp in (False, True)
]
IGNORED = [
    pytest.param((*chosen, "ignored"), marks=pytest.mark.slow)
    for chosen in (*SMALL, ("tokens", False), ("tokens", True))
]


@pytest.fixture(params=[*SMALL, *TWO, *LARGE, *IGNORED], ids=str)
def case(request):
    return both(*request.param)


def test_the_walks_are_all(case):
    w, m = case
    # A sum of millions of terms, with their own rounding.
    assert abs(w.total() - 1) < 1e-13 * max(1, np.abs(w.value).sum())
    assert len(w) > 200
    report = {row["layer"]: row for row in m.report().to_pylist()}
    for layer in w.layers:
        close(m.marginal(layer, by="neuron").ravel(), w.marginal(layer), w.variation())
        if layer in w.steps:
            row = report[layer]
            for unit, kind in ((-1, "bias"), (-2, "stabilizer"), (REMAINDER, "remainder")):
                close(row[kind] or 0.0, w.total(w.ends(layer, unit)), w.variation())


def test_single_sets_their_complements_and_unions(case):
    w, m = case
    rng = np.random.default_rng(1)
    few = rng.choice(w.layers, size=min(6, len(w.layers)), replace=False)
    for layer in map(str, few if len(w) > 1e5 else w.layers):  # seconds each, of millions of walks
        (A, on), (B, on_b) = random_set(rng, w, layer), random_set(rng, w)
        close(m(A), w.total(on), w.variation())
        close(m(~A), w.total(~on), w.variation())
        close(m(ng.Layer(layer)[...] - A), w.total(w.visits(layer) & ~on), w.variation())
        close(m(A & B), w.total(on & on_b), w.variation())
        close(m(A | B), w.total(on | on_b), w.variation())
        close(m(A - B), w.total(on & ~on_b), w.variation())
        close(m(~A & ~B), w.total(~on & ~on_b), w.variation())


def test_random_events(case):
    w, m = case
    rng = np.random.default_rng(2)
    for _ in range(25):
        event, on = random_event(rng, w, 2)
        close(m(event), w.total(on), w.variation())


def test_edges_and_staying(case):
    w, m = case
    rng = np.random.default_rng(3)
    links = [(dst, src) for dst, step in w.steps.items() for src in step.q]
    for dst, src in links:
        d, s = (random_mask(rng, w.shapes[name]) for name in (dst, src))
        edge, on = ng.Edge(ng.Layer(dst)[d], ng.Layer(src)[s]), w.edge(dst, d, src, s)
        close(m(edge), w.total(on), w.variation())
    for _ in range(6):
        chosen = [str(n) for n in rng.choice(w.layers, size=4, replace=False)]
        masks = {name: rng.random(w.shapes[name]) < 0.7 for name in chosen}
        inside = np.ones(len(w), bool)
        for name, mask in masks.items():
            inside &= w.passes(name, mask) | ~w.visits(name)
        close(m(ng.stay(masks)), w.total(inside), w.variation())


def test_conditioned_measures(case):
    w, m = case
    rng = np.random.default_rng(4)
    seen = 0
    for _ in range(60):
        given, on = random_event(rng, w, 1)
        r = w.total(on)
        if abs(r) < 1e-2 * w.variation() or seen == 4:
            continue
        seen += 1
        c, scale = m.given(given), w.variation() / abs(r)
        event, on_event = random_event(rng, w, 1)
        close(m(event, given=given), w.total(on_event & on) / r, scale)
        report = {row["layer"]: row for row in c.report().to_pylist()}
        for layer in w.layers:
            close(c.marginal(layer, by="neuron").ravel(), w.marginal(layer, on) / r, scale)
            for unit, kind in ((-1, "bias"), (-2, "stabilizer"), (REMAINDER, "remainder")):
                expected = w.total(w.ends(layer, unit) & on) / r
                close(report[layer][kind] or 0.0, expected, scale)
        links = [(dst, src) for dst, step in w.steps.items() for src in step.q]
        for i in rng.choice(len(links), size=5, replace=False):
            dst, src = links[i]
            expected = w.flow(dst, src, on) / r
            for rows in (c.edges(dst, src), c.edges(dst, src, by="neuron")):
                rows = rows.drop_columns("conditional").append_column(
                    "conditional", rows["relevance"]
                )
                close(table(rows, *expected.shape)[0], expected, scale)
    assert seen


def test_joint_matrices(case):
    w, m = case
    rng = np.random.default_rng(5)
    pairs = [(a, b) for i, a in enumerate(w.layers) for b in w.layers[:i]]
    for i in rng.choice(len(pairs), size=8, replace=False):
        close(m.joint(*pairs[i]).values, w.joint(*pairs[i]), w.variation())
