"""Biases and constants left out of the denominators: the neurons carry the whole."""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from reference import dense_rules
from torch import nn

import nrm_graph as ng

pytestmark = pytest.mark.usefixtures("remembered_traces")

RULES = {
    "epsilon": ng.rules.Epsilon(),
    "gamma": ng.rules.Gamma(),
    "zplus": ng.rules.ZPlus(),
    "alpha_beta": ng.rules.AlphaBeta(),
    "zbox": ng.rules.ZBox(-2.0, 3.0),
    "wsquare": ng.rules.WSquare(),
    "flat": ng.rules.Flat(),
}


@functools.cache
def program():
    return ng.trace(convolutional(), torch.zeros(1, 1, 4, 4, dtype=torch.float64))


def convolutional(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.Tanh(),
        nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            nn.init.normal_(module.bias)
    return net.double().eval()


def composite(rule: ng.rules.Rule, bias: str = "ignored"):
    kinds = dict.fromkeys(("convolution", "dense", "batch_norm"), rule)
    return ng.composites.composite("mine", kinds, bias=bias)


def lawful(m: ng.Measure) -> None:
    """No bias anywhere, and every layer that is a cut holds all but stabilizer and remainder."""
    rows = m.report().to_pylist()
    assert not any(row["bias"] for row in rows)
    size = max(1.0, *(row["total_variation"] for row in rows))
    for layer in m.topology.layers:
        assert m.cut(layer.name).total == pytest.approx(1.0, abs=1e-10 * size)
    nodes = m.tables()[0].to_pandas()
    inputs = [layer.layer_id for layer in m.topology.inputs]
    ends = nodes[nodes.layer_id.isin(inputs) | (nodes.unit < 0)]
    assert ends.relevance.sum() == pytest.approx(1.0, abs=1e-10 * size)
    assert not len(nodes[nodes.unit == -1])


@pytest.mark.parametrize("rule", RULES)
def test_dense_matrices_without_biases(rule):
    net, x = convolutional(), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    chosen = RULES[rule]
    m = ng.measure(program(), x, target=1, composite=composite(chosen), resolution="neuron")
    lawful(m)
    assert m.meaning.endswith("biases and constants are left out")
    names = [layer.name for layer in m.topology.layers]
    assert names == ["input", "0", "2", "5", "7"]
    fused = copy.deepcopy(net)
    with torch.no_grad():  # the batch-norm behind the convolution folds into it
        scale = fused[3].weight / (fused[3].running_var + fused[3].eps).sqrt()
        fused[2].weight *= scale[:, None, None, None]
    shapes = {"0": (1, 4, 4), "2": (3, 3, 3), "5": (2, 2, 2), "7": (8,)}
    with torch.no_grad():
        values = {"0": x, "2": net[:2](x), "5": net[:5](x), "7": net[:7](x)}
    parameters = dataclasses.asdict(chosen)
    relevance = np.eye(3)[1]
    for name in names[:0:-1]:
        found = np.asarray(m.marginal(name, by="neuron")).ravel()
        scale = max(1.0, np.abs(relevance).sum())
        np.testing.assert_allclose(found, relevance, rtol=0, atol=1e-10 * scale)
        op = dense_rules.linear(fused[int(name)], shapes[name])
        op = dataclasses.replace(op, bias=np.zeros_like(op.bias))
        k = dense_rules.kernel(op, values[name].numpy(), type(chosen).__name__, **parameters)
        relevance = relevance @ k.q
    found = np.asarray(m.marginal("input", by="neuron")).ravel()
    scale = max(1.0, np.abs(relevance).sum())
    np.testing.assert_allclose(found, relevance, rtol=0, atol=1e-10 * scale)


class Tokens(nn.Module):
    """A class token with a position, norms, attention, padding, numbers in sums."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.position = nn.Parameter(torch.randn(1, 4, 4))
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 3)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2)
        x = x + torch.softmax(scores, -1) @ self.v(y) + 0.5
        return self.out(x)[:, 0]


class Padded(nn.Module):
    """Constants that are padded and joined in, and a gate that is one in part."""

    def __init__(self) -> None:
        super().__init__()
        self.fill = nn.Parameter(torch.randn(1, 2))
        self.left, self.right, self.out = nn.Linear(7, 4), nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat(
            [nn.functional.pad(x, (1, 1), value=0.7), self.fill.expand(x.shape[0], -1)], 1
        )
        return self.out(self.left(x) * torch.sigmoid(self.right(x)))


@pytest.mark.parametrize("name", ["attn_lrp", "cp_lrp", "relp"])
def test_constant_neurons_are_left_out_at_every_reader(name):
    torch.manual_seed(1)
    net, x = Tokens().double().eval(), torch.randn(1, 3, 4, dtype=torch.float64)
    rules = getattr(ng.composites, name)(bias="ignored")
    m = ng.measure(net, x, target=0, composite=rules, resolution="neuron")
    lawful(m)
    for layer in ("norm", "q", "k", "v"):
        assert not np.asarray(m.marginal(layer, by="neuron"))[0].any(), layer
    stabilised = sum(abs(row["stabilizer"] or 0.0) for row in m.report().to_pylist())
    assert stabilised < 1e-3  # nothing ends at the class token


SLOW = (
    *("epsilon_gamma_box", "epsilon_plus_flat", "epsilon_alpha2_beta1_flat", "epsilon"),
    *("cp_lrp", "relp"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in ng.composites.NAMED],
)
def test_routed_constants_are_left_out(name):
    torch.manual_seed(2)
    net, x = Padded().double().eval(), torch.randn(1, 3, dtype=torch.float64)
    rules = ng.composites.get(name, "ignored")
    lawful(ng.measure(net, x, target=0, composite=rules, resolution="neuron"))


def test_excitation_backprop_ignores_constants_that_are_routed_in():
    torch.manual_seed(3)
    net, x = Padded().double().eval(), torch.rand(1, 3, dtype=torch.float64)
    lawful(ng.measure(net, x, target=0, composite="excitation_backprop"))
    with pytest.raises(ng.CompositeError, match="ignores biases by its definition"):
        ng.composites.get("excitation_backprop", "absorbed")


@pytest.mark.parametrize("rule", RULES)
def test_events_and_joint_relevance_agree_with_edges(rule):
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    m = ng.measure(program(), x, target=0, composite=composite(RULES[rule]), resolution="neuron")
    joint = np.asarray(m.joint("5", "2").values)
    size = max(1.0, np.abs(joint).sum())
    np.testing.assert_allclose(joint.sum(0), m.marginal("2"), rtol=0, atol=1e-10 * size)


@dataclasses.dataclass(frozen=True)
class Tithe(ng.rules.Rule):
    """Give a tenth to a bias of its own; where biases are left out it may heed that."""

    where: str
    heeding: bool = False

    def groups(self, op, signs):
        (w,) = op.tensors
        parts = (ng.rules.Part(0, torch.abs, w.abs()),)
        share = None if self.heeding and signs.ignoring else w.new_full((len(w),), 0.1)
        bias, following = (share, None) if self.where == "bias" else (None, share)
        return (ng.rules.Group(parts, bias, 1e-9, following=parts, following_bias=following),)


@pytest.mark.parametrize("where", ["bias", "following_bias"])
def test_a_rule_that_gives_to_a_bias_all_the_same_is_refused(where):
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)

    def measure(bias: str, heeding: bool = False):
        kinds = dict.fromkeys(("convolution", "dense"), Tithe(where, heeding))
        mine = ng.composites.composite("mine", kinds, bias=bias)
        return ng.measure(program(), x, target=0, composite=mine, resolution="neuron")

    assert any(row["bias"] for row in measure("absorbed").report().to_pylist())
    with pytest.raises(ng.CompositeError) as refused:
        measure("ignored").report()
    assert str(refused.value) == (
        "the rule Tithe gives a share to a bias, which a composite with bias='ignored' leaves "
        "out: expected no bias where signs.ignoring is true"
    )
    lawful(measure("ignored", heeding=True))  # as the message says


def test_the_reading_is_on_record():
    rules = ng.composites.epsilon(bias="ignored")
    assert rules.to_json()["bias"] == "ignored"
    assert ng.composites.from_json(rules.to_json()) == rules
    assert "bias" not in ng.composites.epsilon().to_json()
    assert ng.composites.from_json(ng.composites.epsilon().to_json()).bias == "absorbed"
    with pytest.raises(ng.CompositeError, match="bias must be 'absorbed' or 'ignored'"):
        ng.composites.epsilon(bias="left out")


def test_another_reading_is_another_store(tmp_path):
    x = torch.randn(2, 1, 4, 4, dtype=torch.float32)
    path, rows = tmp_path / "r.nrm", [{"input": t, "key": str(i)} for i, t in enumerate(x)]
    net, rules = convolutional().float(), ng.composites.epsilon_gamma(bias="ignored")
    with ng.extract(net, rows[:1], path, composite=rules, progress=False) as db:
        assert db.meta["composite"]["bias"] == "ignored"
        assert not db.sql("SELECT * FROM nodes WHERE unit = -1").fetchall()
        m = db.measure("0")
        found = dict(db.sql("SELECT unit, relevance FROM nodes WHERE layer_id = 0").fetchall())
        expected = m.marginal("input")
        scale = max(row["total_variation"] for row in m.report().to_pylist())
        for unit, relevance in found.items():
            assert relevance == pytest.approx(expected[unit], abs=1e-5 * scale)
    with pytest.raises(ng.NrmError, match="composite"):
        ng.extract(net, rows, path, composite="epsilon_gamma", progress=False)


@pytest.mark.slow
def test_the_command_line_takes_the_reading(tmp_path, capsys):
    from nrm_graph.cli.main import main

    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((1, 3, 32, 32), np.float32))
    model = "torchvision:squeezenet1_1@random:0"
    store = str(tmp_path / "r.nrm")
    words = ["extract", model, str(tmp_path / "x.npy"), "--store", store, "--bias", "ignored"]
    assert main([*words, "--quiet"]) == 0
    assert main(["info", store]) == 0
    assert "biases ignored" in capsys.readouterr().out
