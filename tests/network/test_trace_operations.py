"""Operations in the many ways in which networks write them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.traced import build, fc, kinds, rows, same, side_by_side, sources
from torch import nn

import nrm_graph as ng
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace


def head(m, x):
    return m.fc(x.flatten(1))


INDEX = torch.tensor([2, 0, 1])

ROUTED = {
    "tile": lambda x: x.tile(1, 2, 1),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "index_select": lambda x: x.index_select(1, INDEX),
    "index": lambda x: x[:, INDEX],
    "two_indices": lambda x: x[:, [0, 1], [1, 2]],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1),
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "unfold": lambda x: F.unfold(x[:, None], 2),
    "select_scatter": lambda x: x.diagonal(dim1=1, dim2=2),
    "hidden": lambda x: torch.where(torch.ones(3, 4).tril() > 0, x, 0.5),
    "shown": lambda x: torch.where(torch.ones(3, 4).tril() > 0, -1.0, x),
    "filled": lambda x: x.masked_fill(torch.ones(3, 4).tril() > 0, torch.tensor(0.25).double()),
    "casts": lambda x: x.to(torch.float64).double(),
}


class Heads(nn.Module):
    """A dense layer for each of many selections of the input, side by side."""

    def __init__(self, how, x):
        super().__init__()
        self.how = how
        self.heads = nn.ModuleDict({name: fc(f(x).flatten(1).shape[1]) for name, f in how.items()})

    def forward(self, x):
        found = [self.heads[name](f(x).flatten(1)) for name, f in self.how.items()]
        return torch.cat(found, 1)


@pytest.mark.smoke
def test_selections():
    torch.manual_seed(0)
    x = rows(3, 4)
    program = same(Heads(ROUTED, x).double().eval(), x)
    assert kinds(program) == {
        "x": "input",
        **{f"heads.{name}": "dense" for name in ROUTED},
        "output": "output",
    }
    composite = ng.composites.composite("exact", {"dense": ng.rules.Epsilon(1e-12)})
    for i, name in enumerate(ROUTED):
        m = ng.measure(program, x[:1], target=2 * i, composite=composite, dtype="float64")
        assert m.cut("x").total == pytest.approx(1, abs=1e-9), name


SUMS = {
    "one_minus": lambda m, x: 1 - m.a(x),
    "number_first": lambda m, x: 2 + m.a(x),
    "rsub": lambda m, x: torch.rsub(m.a(x), m.b(x), alpha=2),
    "addmm": lambda m, x: torch.addmm(m.a(x[:, 0]), x[:, 1], m.b.weight)[:, None],
    "baddbmm": lambda m, x: torch.baddbmm(m.a(x), x, m.b.weight.expand(x.shape[0], 4, 4)),
    "addcmul": lambda m, x: torch.addcmul(m.a(x), x, x.new_ones(()), value=0.5),
    "where": lambda m, x: torch.where(torch.ones(3, 4).tril() > 0, m.a(x), m.b(x)),
}


def test_sums():
    parts = {
        name: build(
            lambda m, x, name=name: m.fc(SUMS[name](m, x).mean(1)),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 4),
            fc=nn.Linear(4, 2),
        )
        for name in SUMS
    }
    for name, found in side_by_side(parts, rows(3, 4))[1].items():
        assert "sum" in found.values(), name


def test_sums_over_axes():
    model = build(lambda m, x: m.fc(x.sum(1) + x.sum((1,), keepdim=True)[:, 0]), fc=fc(4))
    assert list(kinds(same(model, rows(3, 4))).values()).count("sum") == 3


ONE_NEURON = {
    "new_gelu": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3)))),
    "erf_gelu": lambda x: x * 0.5 * (1.0 + torch.erf(x / 1.4142)),
    "swish": lambda x: x * torch.sigmoid(x),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hard_swish": lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    "relu6": lambda x: x * F.relu6(x + 3) / 6,
    "squared": lambda x: torch.square(x),
    "squared_relu": lambda x: F.relu(x) ** 2,
    "product": lambda x: x * x,
    "softsign": F.softsign,
    "erf": torch.erf,
    "exp": lambda x: torch.exp(-x),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp(min=0.1),
    "clamp_max": lambda x: x.clamp_max(0.1),
    "elu": lambda x: x * F.elu(x, 0.5),
    "leaky": lambda x: x * F.leaky_relu(x, 0.2),
    "hardtanh": lambda x: x * F.hardtanh(x),
}


class Written(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x)


def test_activations_written_out():
    """Not layers, but further names of the layers before."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.ModuleDict({name: nn.Linear(4, 4) for name in ONE_NEURON})
            self.act = nn.ModuleDict({name: Written(how) for name, how in ONE_NEURON.items()})
            self.fc = nn.ModuleDict({name: fc(4) for name in ONE_NEURON})

        def forward(self, x):
            found = [self.fc[n](self.act[n](self.a[n](x))) for n in ONE_NEURON]
            return torch.cat(found, 1)

    torch.manual_seed(0)
    program = same(Net().double().eval(), rows(4))
    assert set(kinds(program).values()) == {"input", "dense", "output"}
    for name in ONE_NEURON:
        assert layout(program).topology.layer(f"act.{name}").name == f"a.{name}"


def test_what_reads_two_values_is_no_activation():
    model = build(
        lambda m, x: m.fc(m.a(x) * torch.sigmoid(m.b(x)) + m.a(x) * (1 + m.b(x))),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4),
        fc=fc(4),
    )
    assert [k for k in kinds(same(model, rows(4))).values() if k not in ("dense", "input")] == [
        "gate",
        "sum",
        "multiplication",
        "sum",
    ]


GATES = {
    "sigmoid_first": (lambda a, b: torch.sigmoid(a) * b, "b a"),
    "silu_second": (lambda a, b: a * F.silu(b), "a b"),
    "sigmoid_beats_tanh": (lambda a, b: torch.tanh(a) * torch.sigmoid(b), "a b"),
    "softmax": (lambda a, b: a * torch.softmax(b, -1), None),
    "glu": (lambda a, b: F.glu(torch.cat([a, b], -1)), "a b"),
    "both": (lambda a, b: torch.tanh(a) * F.silu(b), ""),
    "neither": (lambda a, b: a * b, ""),
    "scaled": (lambda a, b: (2 * torch.sigmoid(b)).reshape(-1, 4) * a, "a b"),
    "swish": (lambda a, b: (b * torch.sigmoid(b)) * a, "a b"),
}


def test_gates():
    parts = {
        name: build(
            lambda m, x, how=how: m.fc(how(m.a(x), m.b(x))),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 4),
            fc=fc(4),
        )
        for name, (how, _) in GATES.items()
    }
    program, found = side_by_side(parts, rows(4))
    owners = {n.name: n.module for n in program.nodes}
    made = {n.name: next(n.references(), "") for n in program.nodes}

    def layer(value):
        while owners[value].rpartition(".")[2] not in ("a", "b"):
            value = made[value]
        return owners[value].rpartition(".")[2]

    for name, (_, order) in GATES.items():
        assert ("gate" if order != "" else "multiplication") in found[name], name
        if order and name != "glu":
            (node,) = (
                n
                for n in program.nodes
                if n.op in ("nrm.gate", "nrm.multiply") and n.module == f"parts.{name}"
            )
            assert " ".join(layer(ref.name) for ref in node.args) == order, name


class RMSNorm(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        return self.weight * self.how(x)


NORMS = {
    "llama": lambda x: x.to(torch.float64) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "square_root": lambda x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6),
    "power": lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-6).pow(-0.5),
    "normalize": lambda x: F.normalize(x, dim=-1),
}


class LayerNorm(RMSNorm):
    def __init__(self, how):
        super().__init__(how)
        self.bias = nn.Parameter(torch.rand(4))

    def forward(self, x):
        return super().forward(x) + self.bias


def centered(x):
    return x - x.mean(-1, keepdim=True)


def variance(x):
    return centered(x).pow(2).mean(-1, keepdim=True)


LAYER_NORMS = {
    "bert": lambda x: centered(x) / torch.sqrt(variance(x) + 1e-6),
    "rsqrt": lambda x: (variance(x) + 1e-6).rsqrt() * centered(x),
    "var": lambda x: centered(x) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt(),
    "correction": lambda x: centered(x) * (x.var(-1, correction=0, keepdim=True) + 1e-6).rsqrt(),
}


def normed(norm):
    return build(lambda m, x: m.fc(m.norm(m.a(x)).mean(1)), a=nn.Linear(4, 4), norm=norm, fc=fc(4))


def test_layer_norms_written_out():
    parts = {name: normed(LayerNorm(how)) for name, how in LAYER_NORMS.items()}
    program, found = side_by_side(parts, rows(3, 4))
    nodes = [n for n in program.nodes if n.op == "aten.layer_norm.default"]
    weights = [[a.name for a in node.args[2:4]] for node in nodes]
    assert weights == [[f"parts.{name}.norm.{w}" for w in ("weight", "bias")] for name in parts]
    for name in parts:
        assert found[name]["norm"] == "layer_norm", name


def test_rms_norms_written_out():
    parts = {name: normed(RMSNorm(how)) for name, how in NORMS.items()}
    for name, found in side_by_side(parts, rows(3, 4))[1].items():
        kinds_in_order = [kind for kind in found.values() if kind != "average"]
        assert kinds_in_order == ["dense", "rms_norm", "dense"], name
        if name != "normalize":
            assert found["norm"] == "rms_norm", name


def eager(m, x, mask):
    q, k, v = m.qkv(x).view(x.shape[0], 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * 3**-0.5
    return m.fc((mask(scores).softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


HIDDEN = torch.ones(4, 4, dtype=torch.bool).triu(1)
LOW = torch.finfo(torch.float64).min
MASKS = {
    "none": lambda s: s,
    "infinite": lambda s: s + torch.zeros(4, 4).double().masked_fill(HIDDEN, -torch.inf),
    "lowest": lambda s: s + HIDDEN.double() * LOW,
    "biased": lambda s: s + torch.arange(16.0).double().view(4, 4).masked_fill(HIDDEN, LOW),
    "filled": lambda s: s.masked_fill(HIDDEN, -torch.inf),
    "where": lambda s: torch.where(HIDDEN, torch.tensor(LOW).double(), s),
}


def test_attention_as_it_is_written():
    parts = {
        name: build(lambda m, x, mask=mask: eager(m, x, mask), qkv=nn.Linear(5, 18), fc=fc(6))
        for name, mask in MASKS.items()
    }
    program, found = side_by_side(parts, rows(4, 5))
    for name in parts:
        assert found[name]["attention_weights"] == "softmax", name
        assert list(found[name].values()).count("sum") == (name == "biased"), name
        steps = {n.op for n in program.nodes if n.module == f"parts.{name}"}
        assert ("aten.masked_fill.Scalar" in steps) == (name != "none"), name


def test_grouped_heads_and_einsum():
    def grouped(m, x):
        q = m.q(x).view(-1, 4, 4, 3).transpose(1, 2)
        k, v = m.kv(x).view(-1, 4, 2, 2, 3).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.4, enable_gqa=True)
        return m.fc(y.transpose(1, 2).flatten(2).mean(1))

    program = same(build(grouped, q=nn.Linear(5, 12), kv=nn.Linear(5, 12), fc=fc(12)), rows(4, 5))
    assert kinds(program)["attention"] == "attention"

    def summed(m, x):
        q, k, v = m.qkv(x).chunk(3, -1)
        weights = torch.einsum("bid,bjd->bij", q, k).softmax(-1)
        return m.fc(torch.einsum("bij,bjd->bid", weights, v).mean(1))

    program = same(build(summed, qkv=nn.Linear(5, 9), fc=fc(3)), rows(4, 5))
    assert {"attention_weights", "attention", "product"} <= set(kinds(program))


def test_attention_modules():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    program = same(nn.Sequential(layer, nn.Flatten(), fc(12)).double().eval(), rows(3, 4))
    assert kinds(program)["0.self_attn.attention_weights"] == "softmax"

    def weighed(m, x):
        y, weights = m.attention(x, x, x)
        return m.fc(y.mean(1) + weights.mean((1, 2))[:, None])

    same(
        build(weighed, attention=nn.MultiheadAttention(4, 2, batch_first=True), fc=fc(4)),
        rows(3, 4),
    )


def test_learned_queries_keep_their_name():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 2, 4))
            self.q, self.kv, self.fc = nn.Linear(4, 4), nn.Linear(4, 8), fc(4)

        def forward(self, x):
            q = self.q(self.query.expand(x.shape[0], -1, -1))
            return self.fc((q + self.kv(x)[:, :2, :4]).mean(1))

    program = same(Queries().double().eval(), rows(3, 4))
    assert "constant.q" in program.weights
    assert sources(program, "add") == ["kv"]


def test_all_that_is_not_supported_is_listed_at_once():
    torch.manual_seed(0)
    parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), Sine()) for _ in range(7))

    def how(m, x):
        for part in m.parts:
            x = part(x)
        return m.fc(torch.cumprod(x, 1) / m.fc(x).sum(1, keepdim=True))

    with pytest.raises(ng.TraceError) as error:
        trace(build(how, parts=parts, fc=fc(4)), rows(4)[:1])
    listed = str(error.value)
    assert "\n" not in listed
    assert (
        "aten.sin.default in parts.0.1, parts.1.1, parts.2.1, parts.3.1, parts.4.1 and 2 more; "
        in listed
    )
    assert "; aten.cumprod.default in the model itself" in listed
    assert "; aten.div.Tensor (a quotient of two values" in listed


def test_integers_carry_no_relevance():
    model = nn.Sequential(nn.EmbeddingBag(5, 3), nn.Linear(3, 2))
    with pytest.raises(
        ng.TraceError, match=r"embedding_bag\S* of integers \(they carry no rel.* in 0"
    ):
        trace(model, torch.tensor([1, 2]))


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)
