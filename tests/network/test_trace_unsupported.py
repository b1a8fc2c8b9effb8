"""What is refused names what is unsupported alone; what torch writes in several ways is one."""

from __future__ import annotations

import pytest
import torch
from helpers.traced import kinds, same
from torch import nn

import nrm_graph as ng
from nrm_graph.network.tracing.trace import trace


class Between(nn.Module):
    """A function of the neurons between two layers."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(6, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


def build(function):
    torch.manual_seed(0)
    return Between(function).double().eval()


def rows():
    torch.manual_seed(1)
    return torch.randn(3, 6, dtype=torch.float64)


def gelu(y):
    return 0.5 * y * (1 + torch.tanh(0.8 * (y + 0.044 * y**3)))


def weighed(x):
    values, places = x.topk(3)
    return x + (x.gather(1, places) * values).sum(-1, keepdim=True)


def mean(x):
    return x.mean(-1, keepdim=True)


REFUSED = {
    "a function by hand": (lambda x: gelu(x.sort(-1)[0]), ["aten.sort.default"]),
    "a norm": (
        lambda x: (lambda y: y * torch.rsqrt(mean(y**2) + 1e-5))(x.cumprod(-1)),
        ["aten.cumprod.default"],
    ),
    "a gate by hand": (
        lambda x: x * torch.special.erfinv(x.tanh() / 2) / (1 + x.exp()),
        ["aten.special_erfinv.default"],
    ),
    "places": (weighed, ["aten.topk.default"]),
    "unbiased": (
        lambda x: (x - mean(x)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
        ["aten.var.dim"],
    ),
    "a deviation": (lambda x: (x - mean(x)) / x.std(-1, keepdim=True), ["aten.std.dim"]),
    "whole numbers": (lambda x: x.round().long().double() * x, ["aten.round.default"]),
    "two of their own": (
        lambda x: x.cumprod(-1) / x.sum(-1, keepdim=True),
        ["aten.cumprod.default", "aten.div.Tensor"],
    ),
    "one after the other": (
        lambda x: torch.digamma(x.sort(-1)[0].exp()),
        ["aten.sort.default", "aten.digamma.default"],
    ),
}


def some(names, quick):
    return [pytest.param(n, marks=[] if n in quick else [pytest.mark.slow]) for n in names]


@pytest.mark.parametrize("name", some(REFUSED, {"a gate by hand", "places", "unbiased"}))
def test_only_what_is_unsupported_is_named(name):
    function, expected = REFUSED[name]
    with pytest.raises(ng.TraceError, match=r"^operations without a rule: ") as error:
        trace(build(function), rows()[:1])
    listed = str(error.value).removeprefix("operations without a rule: ").partition(". Reg")[0]
    found = listed.split("; ")
    assert [line.split()[0] for line in found] == expected
    assert all(line.endswith(" in the model itself") for line in found)


SPELLED = {
    "words": lambda x: torch.concat(
        [
            torch.multiply(torch.clip(x[:, :3], -1, 1), 2.0),
            torch.subtract(
                torch.negative(x[:, 3:]), torch.true_divide(torch.absolute(x), 3)[:, :3]
            ),
        ],
        1,
    ),
    "larger than a number": lambda x: torch.max(x, torch.tensor(0.1)),
    "smaller than a number": lambda x: torch.minimum(torch.tensor(0.1), x),
    "between tensors": lambda x: torch.clamp(x, torch.tensor(-0.3), torch.tensor(0.4)),
    "infinities looked for": lambda x: torch.clamp(
        x, max=torch.where(torch.isinf(x).any(), torch.tensor(0.1), torch.tensor(0.5))
    ),
}


@pytest.mark.parametrize("name", some(SPELLED, {"words", "infinities looked for"}))
def test_one_operation_in_many_words(name):
    same(build(SPELLED[name]), rows())


class Scored(nn.Module):
    """Axes of one are dropped, whichever they are: the samples' own too, if there is one."""

    def __init__(self):
        super().__init__()
        self.a, self.score = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x):
        return self.a(x) + self.score(x).squeeze()[..., None]


def test_squeeze_keeps_the_samples():
    torch.manual_seed(0)
    net = Scored().double().eval()
    program = same(net, rows())
    assert set(kinds(program).values()) == {"input", "dense", "sum"}
    x = rows()[:1]
    m = ng.measure(program, x, target=1, composite="epsilon")
    assert m.logit == pytest.approx(net(x)[0, 1].item())
    assert m.cut("x").total == pytest.approx(1, abs=1e-9)
