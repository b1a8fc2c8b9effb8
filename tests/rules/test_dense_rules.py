"""Every rule on every kind of operation against its dense matrix form, in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from reference import dense_rules
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

TARGET = 1

RULES = {
    "epsilon": ("Epsilon", {}),
    "epsilon_large": ("Epsilon", {"epsilon": 0.1}),
    "gamma": ("Gamma", {"gamma": 0.25}),
    "gamma_large": ("Gamma", {"gamma": 10.0, "stabilizer": 0.01}),
    "zplus": ("ZPlus", {}),
    "zplus_large": ("ZPlus", {"stabilizer": 0.1}),
    "zplus_no_bias": ("ZPlus", {"zero_params": "bias"}),
    "alpha2_beta1": ("AlphaBeta", {}),
    "alpha1_beta0": ("AlphaBeta", {"alpha": 1.0, "beta": 0.0}),
    "alpha3_beta2": ("AlphaBeta", {"alpha": 3.0, "beta": 2.0, "stabilizer": 0.05}),
    "zbox": ("ZBox", {"low": -3.0, "high": 3.5}),
    "zbox_positive": ("ZBox", {"low": 0.0, "high": 1.0, "stabilizer": 1e-3}),
    "wsquare": ("WSquare", {}),
    "wsquare_large": ("WSquare", {"stabilizer": 0.1}),
    "flat": ("Flat", {"stabilizer": 1e-6}),
    "flat_large": ("Flat", {"stabilizer": 0.1}),
    "norm": ("Norm", {"stabilizer": 1e-6}),
    "norm_large": ("Norm", {"stabilizer": 0.1}),
}

# name: (module, input shape without batch)
OPERATIONS = {
    "dense": (lambda: nn.Linear(5, 4), (5,)),
    "dense_no_bias": (lambda: nn.Linear(5, 4, bias=False), (5,)),
    "dense_tokens": (lambda: nn.Linear(4, 3), (3, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 7)),
    "conv1d_strided": (lambda: nn.Conv1d(4, 2, 2, stride=2, dilation=2, groups=2), (4, 8)),
    "conv1d_same": (lambda: nn.Conv1d(2, 2, 4, padding="same"), (2, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 4, 5)),
    "conv2d_no_bias": (lambda: nn.Conv2d(2, 3, (2, 3), bias=False), (2, 4, 5)),
    "conv2d_strided": (lambda: nn.Conv2d(2, 2, 3, stride=2, padding=(2, 1)), (2, 6, 5)),
    "conv2d_unread_border": (lambda: nn.Conv2d(1, 2, 2, stride=2), (1, 5, 5)),
    "conv2d_dilated": (lambda: nn.Conv2d(1, 2, (2, 3), dilation=(3, 2), padding=2), (1, 5, 5)),
    "conv2d_grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 4, 3)),
    "conv2d_depthwise": (lambda: nn.Conv2d(3, 3, 2, groups=3, stride=(1, 2)), (3, 4, 4)),
    "conv2d_same": (lambda: nn.Conv2d(2, 2, (2, 3), padding="same", dilation=(2, 1)), (2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, padding=1, stride=(1, 2, 1)), (2, 2, 3, 2)),
    "conv3d_grouped": (
        lambda: nn.Conv3d(2, 4, (1, 2, 2), groups=2, dilation=(1, 1, 2)),
        (2, 2, 3, 4),
    ),
    "transposed1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), (2, 4)),
    "transposed2d": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 3, 2)),
    "transposed2d_grouped": (
        lambda: nn.ConvTranspose2d(
            4, 6, (2, 3), stride=(2, 3), groups=2, dilation=(2, 1), output_padding=(1, 0)
        ),
        (4, 2, 2),
    ),
    "transposed2d_no_bias": (
        lambda: nn.ConvTranspose2d(1, 2, 2, padding=1, bias=False),
        (1, 4, 3),
    ),
    "average": (lambda: nn.AvgPool2d(2, stride=1), (2, 3, 4)),
    "average_padded": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (2, 4, 4)),
    "average_real_only": (
        lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        (1, 4, 5),
    ),
    "average_global": (lambda: nn.AdaptiveAvgPool2d(1), (3, 3, 2)),
}


SQUARE = {  # shape-preserving: Pass applies
    "dense": (lambda: nn.Linear(4, 4), (4,)),
    "conv2d": (lambda: nn.Conv2d(2, 2, 3, padding=1), (2, 3, 3)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(2), (2, 3, 3)),
    "batch_norm1d": (lambda: nn.BatchNorm1d(4), (4,)),
}

TABLES = {
    "operations": OPERATIONS,
    "square": SQUARE,
    "large": {
        "transposed3d": (lambda: nn.ConvTranspose3d(1, 2, 2, (1, 2, 1), (0, 1, 0)), (1, 2, 3, 2))
    },
}


def draw(make, shape, seed: int, *, rectified: bool = False, between: nn.Module | None = None):
    """One operation with random signed parameters under a dense head, and an input."""
    generator = torch.Generator().manual_seed(seed)
    op = make().double()
    with torch.no_grad():
        for parameter in op.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values)
        if getattr(op, "running_mean", None) is not None:
            op.running_mean.normal_(generator=generator)
            op.running_var.uniform_(0.5, 2.0, generator=generator)
    op.eval()
    x = torch.randn((1, *shape), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        n = op(x).numel()
    head = nn.Linear(n, 3).double()
    with torch.no_grad():
        for parameter in head.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values)
    first = [nn.ReLU()] if rectified else []
    rest = [between] if between is not None else []
    return nn.Sequential(*first, op, *rest, nn.Flatten(), head).eval(), op, head, x


@functools.cache
def drawn(table: str, operation: str, seed: int, rectified: bool = False):
    """Draw one operation of a table and trace it, once for all rules: tracing takes the time."""
    make, shape = TABLES[table][operation]
    net, op, head, x = draw(make, shape, seed, rectified=rectified)
    return net, op, head, x, ng.trace(net, x)


def composite(layer: str, rule: str, params: dict):
    epsilon, norm = ng.rules.Epsilon(), ng.rules.Norm()
    kinds = {
        "convolution": epsilon,
        "dense": epsilon,
        "sum": norm,
        "average": norm,
        "batch_norm": epsilon,
    }
    return ng.composites.composite("mine", kinds, layers={layer: getattr(ng.rules, rule)(**params)})


def compare(
    net, op, head, x, program, layer: str, rule: str, params: dict, *, rectified=False
) -> None:
    """Input relevance, layer relevance and both pseudo-neurons against dense matrices."""
    a = torch.relu(x) if rectified else x
    with torch.no_grad():
        y = net[:-1](x).reshape(-1).numpy()
    top = dense_rules.kernel(dense_rules.linear(head, y.shape), y, "Epsilon")
    k = dense_rules.kernel(dense_rules.linear(op, tuple(x.shape[1:])), a.numpy(), rule, **params)
    relevance = top.q[TARGET]
    expected = relevance @ k.q
    m = ng.measure(
        net if program is None else program,
        x,
        target=TARGET,
        composite=composite(layer, rule, params),
        dtype="float64",
        resolution="neuron",
    )
    scale = max(1.0, np.abs(relevance).sum(), (np.abs(relevance) @ np.abs(k.q)).sum())
    atol = 1e-11 * scale

    def close(found, wanted, what):
        found = np.asarray(found, np.float64).reshape(-1)
        np.testing.assert_allclose(found, np.reshape(wanted, -1), rtol=0, atol=atol, err_msg=what)

    close(m.marginal(layer, by="neuron"), relevance, "layer")
    close(m.marginal("input", by="neuron"), expected, "input")
    report = {row["layer"]: row for row in m.report().to_pylist()}
    close(report[layer]["bias"] or 0.0, relevance @ k.bias, "bias")
    close(report[layer]["stabilizer"] or 0.0, relevance @ k.stabilizer, "stabilizer")
    head_row = next(row for name, row in report.items() if name not in (layer, "input"))
    close(head_row["bias"], top.bias[TARGET], "bias of the head")
    close(head_row["stabilizer"], top.stabilizer[TARGET], "stabilizer of the head")
    close(m.cut(layer).total, 1.0, "cut")

    # Edges at neuron resolution: relevance of the step and q itself.
    table = m.edges(layer, "input").to_pydict()
    q, flow = np.zeros_like(k.q), np.zeros_like(k.q)
    q[table["dst_unit"], table["src_unit"]] = table["conditional"]
    flow[table["dst_unit"], table["src_unit"]] = table["relevance"]
    np.testing.assert_allclose(q, k.q, rtol=0, atol=1e-11 * max(1.0, np.abs(k.q).max()))
    np.testing.assert_allclose(flow, relevance[:, None] * k.q, rtol=0, atol=atol)


COMMON = {"dense", "conv1d_strided", "conv2d", "conv2d_grouped", "transposed2d", "average_padded"}
PLAIN = {"epsilon_large", "gamma", "zplus", "alpha2_beta1", "zbox", "wsquare", "flat", "norm"}


def of_signed_input(rule, operation):
    """Parameters; slow where both are a further form of one that is not."""
    both = operation not in COMMON and rule not in PLAIN
    return pytest.param(rule, operation, marks=[pytest.mark.slow] if both else [])


@pytest.mark.parametrize(
    ("rule", "operation"),
    [of_signed_input(rule, operation) for operation in OPERATIONS for rule in RULES],
)
def test_rule_on_signed_input(rule, operation):
    name, params = RULES[rule]
    compare(*drawn("operations", operation, len(operation)), "0", name, params)


@pytest.mark.smoke
@pytest.mark.parametrize("operation", ["dense", "conv2d", "conv2d_grouped", "transposed2d"])
@pytest.mark.parametrize("rule", RULES)
def test_rule_behind_a_relu(rule, operation):
    name, params = RULES[rule]
    compare(*drawn("operations", operation, 3, True), "1", name, params, rectified=True)


@pytest.mark.parametrize("rule", RULES)
def test_rule_on_transposed_conv3d(rule):
    name, params = RULES[rule]
    compare(*drawn("large", "transposed3d", 4), "0", name, params)


@pytest.mark.parametrize("operation", SQUARE)
def test_pass(operation):
    make, shape = SQUARE[operation]
    net, op, head, x = draw(make, shape, seed=5)
    if operation.startswith("batch_norm"):
        compare(net, op, head, x, None, "0", "Pass", {})
    else:
        with pytest.raises(ng.CompositeError, match="Pass needs an elementwise operation"):
            compare(net, op, head, x, None, "0", "Pass", {})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("operation", ["batch_norm2d", "batch_norm1d"])
def test_rule_on_unfolded_batch_norm(rule, operation):
    name, params = RULES[rule]
    compare(*drawn("square", operation, 6), "0", name, params)


# Corners of the formulas


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: nn.Conv1d(1, 3, 4)])
def test_alpha_beta_with_an_empty_negative_part(make):
    shape = (4,) if isinstance(make(), nn.Linear) else (1, 4)
    net, op, head, x = draw(make, shape, seed=7)
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.abs_()
    x = x.abs()
    compare(net, op, head, x, None, "0", "AlphaBeta", {"alpha": 2.0, "beta": 1.0})
    k = dense_rules.kernel(dense_rules.linear(op, shape), x.numpy(), "AlphaBeta")
    assert (k.stabilizer < -0.99).all()  # the share -beta has no place


def test_a_neuron_that_nothing_reaches():
    net, op, head, x = draw(lambda: nn.Linear(4, 3), (4,), seed=8)
    with torch.no_grad():
        op.weight[1] = 0.0
        op.bias[1:] = 0.0
    program = ng.trace(net, x)
    for rule in ("Gamma", "ZPlus", "Epsilon", "Norm", "WSquare", "AlphaBeta"):
        compare(net, op, head, x, program, "0", rule, {})
        k = dense_rules.kernel(dense_rules.linear(op, (4,)), x.numpy(), rule)
        assert k.stabilizer[1] == pytest.approx(1.0), rule
        assert not k.q[1].any(), rule


def test_flat_counts_connections_with_weight_zero():
    net, op, head, x = draw(lambda: nn.Conv2d(1, 2, 2, padding=1), (1, 3, 3), seed=9)
    with torch.no_grad():
        op.weight[0, 0, 0, 0] = 0.0
    compare(net, op, head, x, None, "0", "Flat", {"stabilizer": 1e-6})


def test_an_input_of_zeros():
    net, op, head, x = draw(lambda: nn.Conv2d(1, 2, 2), (1, 3, 3), seed=10)
    program = ng.trace(net, x * 0)
    for rule in ("WSquare", "Flat", "ZBox"):
        params = {"low": -1.0, "high": 2.0} if rule == "ZBox" else {}
        compare(net, op, head, x * 0, program, "0", rule, params)


# Rules on sums


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
        self.out = nn.Linear(3, 2).double()

    def forward(self, x):
        return self.out(self.left(x) + self.right(x))


@functools.cache
def of_a_sum():
    torch.manual_seed(11)
    net = Sum().eval()
    x = torch.randn((1, 4), dtype=torch.float64)
    return net, x, ng.trace(net, x)


@pytest.mark.parametrize("rule", ["epsilon", "norm", "norm_large", "zplus", "gamma"])
def test_rule_on_a_sum(rule):
    name, params = RULES[rule]
    net, x, program = of_a_sum()
    with torch.no_grad():
        left, right = net.left(x)[0].numpy(), net.right(x)[0].numpy()
    eye = np.hstack([np.eye(3), np.eye(3)])
    stacked = dense_rules.Linear(eye, np.zeros(3), eye != 0)
    k = dense_rules.kernel(stacked, np.concatenate([left, right]), name, **params)
    top = dense_rules.kernel(dense_rules.linear(net.out, (3,)), left + right, "Epsilon")
    relevance = top.q[TARGET]
    m = ng.measure(
        program,
        x,
        target=TARGET,
        composite=composite("add", name, params),
        dtype="float64",
        resolution="neuron",
    )
    atol = 1e-11 * max(1.0, np.abs(relevance).sum(), (np.abs(relevance) @ np.abs(k.q)).sum())
    found = np.concatenate([np.asarray(m.marginal(n, by="neuron")) for n in ("left", "right")])
    np.testing.assert_allclose(found, relevance @ k.q, rtol=0, atol=atol)
    report = {row["layer"]: row for row in m.report().to_pylist()}
    np.testing.assert_allclose(
        report["add"]["stabilizer"], relevance @ k.stabilizer, rtol=0, atol=atol
    )
    assert (report["add"]["bias"] or 0.0) == 0


class Elementwise(nn.Module):
    """A sum with a number, or one that is scaled: numbers that float32 does not hold."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(3, 3).double()

    def forward(self, x):
        y = self.inner(x)
        if self.kind == "constant":
            return y + 0.1
        if self.kind == "alpha":
            return torch.add(y, x, alpha=0.1)
        return torch.relu(-x) + torch.relu(-2 * x)


def all_ends(m) -> float:
    """Relevance of the ends of all walks, as the tables have it."""
    rows = m.tables()[0].to_pandas()
    inputs = [layer.layer_id for layer in m.topology.inputs]
    return float(rows[rows.layer_id.isin(inputs) | (rows.unit < 0)].relevance.sum())


@pytest.mark.parametrize("kind", ["constant", "alpha"])
def test_numbers_in_a_sum_are_those_of_the_network(kind):
    torch.manual_seed(12)
    x = torch.randn(1, 3, dtype=torch.float64)
    m = ng.measure(Elementwise(kind), x, target=0, composite="epsilon")
    assert m.cut("x").total == pytest.approx(1.0, abs=1e-14)
    assert all_ends(m) == pytest.approx(1.0, abs=1e-14)


def test_a_denominator_of_minus_zero_counts_as_positive():
    x = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    m = ng.measure(Elementwise("negative"), x, target=0, composite="excitation_backprop")
    assert m.cut("x").total == all_ends(m) == 1.0


def test_gamma_without_a_stabilizer_loses_nothing_twice():
    """Where z is 0, and where only the denominator of the other sign is."""
    net = nn.Sequential(nn.Conv1d(1, 1, 2, bias=False), nn.Flatten(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[4.0, -5.0]]]))
    kinds = {"convolution": ng.rules.Gamma(0.25, 0.0), "dense": ng.rules.Flat()}
    x = torch.tensor([[[1.0, 1.0, 0.8]]], dtype=torch.float64)
    program = ng.trace(net, x)
    for scale in (0.0, 1.0):
        composite = ng.composites.composite("no stabilizer", kinds)
        m = ng.measure(program, x * scale, target=0, composite=composite)
        assert m.cut("input").total == pytest.approx(1.0, abs=1e-14)
        assert all_ends(m) == pytest.approx(1.0, abs=1e-14)


class Parts(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.token = nn.Parameter(torch.ones(1, 2))
        self.left, self.right = nn.Linear(5, 2), nn.Linear(3, 2)

    def forward(self, x):
        if self.kind == "pad":
            x = nn.functional.pad(x, (0, 2), value=1.0)
        else:
            x = torch.cat([x, self.token.expand(x.shape[0], -1)], 1)
        left, right = x.split([5, 3], 1)
        return self.left(left) + self.right(right)


@pytest.mark.parametrize("kind", ["pad", "token"])
def test_constants_that_are_routed_in_and_split_off(kind):
    torch.manual_seed(13)
    net, x = Parts(kind).double(), torch.randn(1, 6, dtype=torch.float64)
    m = ng.measure(net, x, target=0, composite="epsilon")
    assert m.cut("x").total == pytest.approx(1.0, abs=1e-13)
    assert all_ends(m) == pytest.approx(1.0, abs=1e-13)
    inner = net.right.weight[0, 1:].sum() + net.right.bias[0]
    share = float((inner / net(x)[0, 0]).detach())  # but for what epsilon absorbs
    found = {row["layer"]: row["bias"] for row in m.report().to_pylist()}
    assert found["right"] == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        ("Epsilon", {"epsilon": -0.1}),
        ("ZPlus", {"stabilizer": float("nan")}),
        ("Gamma", {"gamma": -0.25}),
        ("ZBox", {"high": float("inf")}),
        ("ZPlus", {"zero_params": ["bias"]}),
        ("WSquare", {"zero_params": "weight"}),
    ],
)
def test_parameters_that_would_be_wrong_in_silence_are_refused(rule, parameters):
    with pytest.raises(ng.CompositeError, match=f"{rule}: {next(iter(parameters))} must be"):
        getattr(ng.rules, rule)(**parameters)


class Broadcast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 1), nn.Linear(4, 2)
        self.shift = nn.Parameter(torch.tensor([1.0, -1.0, 2.0, -3.0]))

    def forward(self, x):
        return self.out(self.inner(x) + self.shift)


def test_gamma_without_bias_on_a_sum_that_is_wider_than_its_operand():
    torch.manual_seed(14)
    kinds = {"dense": ng.rules.Epsilon(), "sum": ng.rules.Gamma(zero_params="bias")}
    composite = ng.composites.composite("wide", kinds)
    x = torch.randn(1, 3, dtype=torch.float64)
    m = ng.measure(Broadcast().double(), x, target=0, composite=composite)
    assert all_ends(m) == pytest.approx(m.cut("x").total, abs=1e-13)
