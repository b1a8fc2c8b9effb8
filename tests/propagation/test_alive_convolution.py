"""Convolutions neuron by neuron: the whole one, wherever something is asked for."""

import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.propagation import alive_convolution
from nrm_graph.propagation.alive_convolution import apply

SHAPES = {
    "3 x 3": ((1, 1), (1, 1), (1, 1), (3, 3)),
    "stride": ((2, 1), (1, 1), (1, 1), (3, 3)),
    "dilation": ((1, 1), (2, 0), (2, 1), (3, 2)),
    "1 x 1": ((1, 1), (0, 0), (1, 1), (1, 1)),
    "nothing padded": ((1, 2), (0, 0), (1, 1), (2, 3)),
}


@pytest.fixture
def always(monkeypatch):
    """Take every convolution neuron by neuron, and count how many are."""
    taken = []
    plain = alive_convolution._few

    def few(*args):
        taken.append(args)
        return plain(*args)

    monkeypatch.setattr(alive_convolution, "DENSE", float("inf"))
    monkeypatch.setattr(alive_convolution, "FEW", 2)
    monkeypatch.setattr(alive_convolution, "_few", few)
    return taken


def convolution(name):
    stride, padding, dilation, size = SHAPES[name]
    return Convolution(stride, padding, dilation, False, (0, 0), 1, (0, 0)), size


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_it_is_the_whole_convolution_where_asked(always, shape, share):
    torch.manual_seed(0)
    kind, size = convolution(shape)
    x = torch.randn(9, 4, 7, 6, dtype=torch.float64) * (torch.rand(4, 7, 6) < share)
    weight = torch.randn(5, 4, *size, dtype=torch.float64)
    whole = kind.apply(x, weight)
    asked = torch.rand(1, *whole.shape[1:]) < 0.4
    got = apply(kind, x, weight, asked)
    assert len(always) == 1
    assert got.shape == whole.shape
    torch.testing.assert_close(got * asked, whole * asked, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("groups", "skip"), [(2, (0, 0)), (1, (1, 0))])
def test_others_are_taken_whole(always, groups, skip):
    kind = Convolution((1, 1), (1, 1), (1, 1), False, (0, 0), groups, skip)
    x, weight = torch.randn(3, 4, 5, 5), torch.randn(4, 4 // groups, 3, 3)
    whole = kind.apply(x, weight)
    assert torch.equal(apply(kind, x, weight, torch.ones(1, *whole.shape[1:]) > 0), whole)
    assert always == []


def test_it_is_chosen_where_few_neurons_are_awake(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    torch.manual_seed(0)
    kind, size = convolution("3 x 3")
    weight = torch.randn(256, 256, *size)
    chosen = []
    for share in (0.05, 1.0):
        x = torch.randn(32, 256, 4, 4) * (torch.rand(256, 4, 4) < share)
        asked = torch.rand(1, 256, 4, 4) < share
        whole = kind.apply(x, weight)
        chosen.append(not torch.equal(apply(kind, x, weight, asked), whole))
    assert chosen == [True, False]


@pytest.mark.smoke
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_gamma"])
def test_joint_relevance_is_that_of_pairs_of_events(always, composite):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(45, 3),
    )
    x = torch.randn(2, 6, 6)
    m = ng.measure(net.eval(), x, target=1, composite=composite, resolution="channel")
    joint = m.joint("5", "0")
    assert len(always) >= 2  # in float64, and some units in float32
    upper, lower = ng.Layer("5"), ng.Layer("0")
    pairs = [upper[a] & lower[b] for a in range(5) for b in range(3)]
    torch.testing.assert_close(
        torch.tensor(joint.values).flatten(), torch.tensor(m.many(pairs)), rtol=1e-9, atol=1e-12
    )
