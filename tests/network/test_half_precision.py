"""Networks in half precision: float32's answer for the same weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.network.ir.held_weights import LOWEST
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace

HALF = (torch.bfloat16, torch.float16)
KEEP = torch.tensor([[1, 1, 1, 0, 0]])


class Attend(nn.Module):
    """Attention whose scores a function masks."""

    def __init__(self, mask):
        super().__init__()
        self.q, self.h, self.mask = nn.Linear(4, 4), nn.Linear(4, 3), mask

    def forward(self, x, keep):
        scores = self.mask(self.q(x) @ x.transpose(1, 2), keep[:, None])
        return self.h((scores.softmax(-1) @ x).mean(1))


def least(scores):
    return torch.finfo(scores.dtype).min


def added(scores, keep, number):
    return scores + (1 - keep.to(scores.dtype)) * number


def triangle(scores, number):
    return torch.full((5, 5), number, dtype=scores.dtype).triu(1)


def padded(scores, keep):
    """As older language models wrote it: what is hidden twice is hidden once."""
    mask = triangle(scores, least(scores))[None].expand(keep.shape[0], 5, 5).clone()
    hidden = (mask + keep.to(scores.dtype)) == 0
    return scores + mask.masked_fill(hidden, least(scores))


MASKS = {
    "filled": lambda s, k: s.masked_fill(k == 0, least(s)),
    "filled with infinity": lambda s, k: s.masked_fill(k == 0, -torch.inf),
    "filled with 10,000": lambda s, k: s.masked_fill(k == 0, -1e4),
    "where": lambda s, k: torch.where(k == 1, s, least(s)),
    "where of tensors": lambda s, k: torch.where(k == 1, s, torch.full_like(s, least(s))),
    "added": lambda s, k: added(s, k, least(s)),
    "added 10,000": lambda s, k: added(s, k, -1e4),
    "cast down": lambda s, k: s + ((1 - k.float()) * torch.finfo(torch.float32).min).to(s.dtype),
    "chosen, then cast": lambda s, k: s + torch.where(k == 1, 0.0, least(s)).to(s.dtype),
    "causal": lambda s, k: s + triangle(s, least(s)),
    "causal infinity": lambda s, k: s + triangle(s, -torch.inf),
    "padded": padded,
    "bounded below": lambda s, k: torch.max(
        s + triangle(s, least(s)), torch.tensor(least(s), dtype=s.dtype)
    ),
    "in float32": lambda s, k: s.float().masked_fill(k == 0, LOWEST).type_as(s),
    "all": lambda s, k: s + (k.to(s.dtype) * 0 + 1) * least(s),
}
QUICK = {("filled", HALF[1]), ("cast down", HALF[0])}


def pair(net, kind):
    """A network in half precision, and the same weights in float32."""
    half = net.eval().to(kind)
    return half, copy.deepcopy(half).float()


def same(half, full, xs, kind, composite="attn_lrp", **options):
    """Both have the same layers and the same relevance; return the measure of the first."""
    halves = tuple(x.to(kind) if x.is_floating_point() else x for x in xs)
    floats = tuple(x.float() if x.is_floating_point() else x for x in halves)
    m = ng.measure(half, halves, target=1, composite=composite, **options)
    n = ng.measure(full, floats, target=1, composite=composite, **options)
    assert [(layer.name, layer.kind) for layer in m.topology.layers] == [
        (layer.name, layer.kind) for layer in n.topology.layers
    ]
    assert m.logit == pytest.approx(n.logit, rel=1e-5, abs=1e-6)
    with torch.no_grad():
        own = float(half(*halves)[0, 1])
    assert m.logit == pytest.approx(own, rel=0.05, abs=0.01)
    for layer in m.topology.layers:
        found, expected = (np.asarray(k.marginal(layer.name, by="neuron")) for k in (m, n))
        size = max(1.0, float(np.abs(expected).sum()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * size)
    return m


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in QUICK else [pytest.mark.slow])
        for name in MASKS
        for kind in HALF
    ],
)
def test_masks(name, kind):
    torch.manual_seed(0)
    half, full = pair(Attend(MASKS[name]), kind)
    same(half, full, (torch.randn(1, 5, 4), KEEP), kind)


class Block(nn.Module):
    """An encoder layer with both masks."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu")
        self.h = nn.Linear(4, 3)

    def forward(self, x, keep):
        mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
        hidden = torch.zeros_like(keep, dtype=x.dtype).masked_fill(keep == 0, -torch.inf)
        return self.h(self.block(x, src_mask=mask, src_key_padding_mask=hidden).mean(1))


@pytest.mark.slow
def test_encoder_layers():
    torch.manual_seed(0)
    half, full = pair(Block(), torch.bfloat16)
    same(half, full, (torch.randn(1, 5, 4), KEEP), torch.bfloat16)


class Casts(nn.Module):
    """Norms and an activation in another precision than the layers around them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.gain, self.norm = nn.Parameter(torch.rand(6)), nn.LayerNorm(6)

    def forward(self, x):
        h = self.a(x).float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        h = self.b((h * (1.0 + self.gain.float())).type_as(self.gain)).half().relu()
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        h = nn.functional.layer_norm(h.float(), (6,), weight, bias)
        return self.c(h.to(torch.bfloat16))


def test_casts_are_passed_through_and_parameters_keep_their_names():
    torch.manual_seed(0)
    half = Casts().eval().bfloat16()
    program = trace(half, torch.randn(1, 4).bfloat16())
    assert {"norm.weight", "norm.bias"} < set(program.weights)
    assert {w.dtype for w in program.weights.values()} == {torch.float32}
    assert [layer.name for layer in layout(program).topology.layers][-1] == "c"
    m = ng.measure(program, torch.randn(1, 4), target=1, composite="attn_lrp", dtype="float64")
    assert m.cut("b").total == pytest.approx(1, abs=1e-9)


class Automatic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.b(self.a(x).relu()).float()


def test_autocast_is_the_network_itself():
    torch.manual_seed(0)
    net, x = Automatic().eval(), torch.randn(1, 6)
    m = ng.measure(net, x, target=1, composite="epsilon")
    expected = net.b(net.a(x).relu())[0, 1].item()
    assert m.logit == pytest.approx(expected, rel=1e-5)
    assert [layer.name for layer in m.topology.layers] == ["x", "a", "b"]


class Wide(nn.Module):
    """Half precision below, float32 above, and a buffer in float64."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(4, 6).bfloat16(), nn.LayerNorm(6), nn.Linear(6, 3)
        self.register_buffer("scale", torch.rand(6, dtype=torch.float64))

    def forward(self, x):
        return self.b(self.n((self.a(x) * self.scale).float()))


def test_mixed_precision():
    torch.manual_seed(0)
    net, x = Wide().eval(), torch.randn(1, 4).bfloat16()
    m = ng.measure(net, x, target=1, composite="attn_lrp")
    full = copy.deepcopy(net)
    full.a.float()
    assert m.logit == pytest.approx(float(full(x.float())[0, 1].detach()), rel=1e-5)


@pytest.mark.slow
def test_a_row_that_is_hidden_as_a_whole_is_uniform():
    torch.manual_seed(0)
    half, full = pair(Attend(MASKS["all"]), torch.float16)
    x = torch.randn(1, 5, 4).half()
    m = same(half, full, (x, KEEP), torch.float16)
    assert m.logit == pytest.approx(full.h(x.float().mean(1))[0, 1].item(), rel=1e-5)


@pytest.mark.parametrize("kind", [HALF[0], pytest.param(HALF[1], marks=pytest.mark.slow)])
def test_extraction(tmp_path, kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval().to(kind)
    x = torch.randn(6).to(kind)
    m = ng.measure(net, x, target=1, composite="epsilon")
    rows = [{"input": x, "key": "a"}]
    with ng.extract(
        net, rows, tmp_path / "s.nrm", target=1, composite="epsilon", progress=False
    ) as db:
        assert db.sql("SELECT logit FROM inputs").fetchall() == [(pytest.approx(m.logit),)]
    with ng.open(tmp_path / "s.nrm") as db:
        again = db.measure("a")
        assert again.logit == pytest.approx(m.logit, rel=1e-6)
        np.testing.assert_allclose(again.marginal("0"), m.marginal("0"), atol=1e-6)
        assert db.verify().sound


def test_an_input_keeps_its_own_precision(tmp_path):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval().bfloat16()
    x = torch.randn(6)
    wide = copy.deepcopy(net).float()
    right = float(wide(x)[1].detach())
    assert right != float(wide(x.bfloat16().float())[1].detach())
    assert ng.measure(net, x, target=1, composite="epsilon").logit == pytest.approx(right, rel=1e-6)
    with ng.extract(net, [x], tmp_path / "s", composite="epsilon", target=1, progress=False) as db:
        ((logit,),) = db.sql("SELECT logit FROM inputs").fetchall()
    assert logit == pytest.approx(right, rel=1e-6)


def test_a_first_parameter_of_another_precision():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3).bfloat16()

        def forward(self, x):
            if x.dtype != torch.bfloat16:
                raise TypeError(f"expected bfloat16, found {x.dtype}")
            return self.head(self.norm(x.float()).to(x.dtype))

    net, x = Normed().eval(), torch.randn(1, 6).bfloat16()
    m = ng.measure(net, x, target=1, composite="attn_lrp")
    assert m.logit == pytest.approx(float(net(x)[0, 1].detach()), rel=1e-2)
