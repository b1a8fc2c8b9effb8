"""Layers that hold another layer's neurons one to one."""

import pytest
import torch
import torch.nn.functional as F
from helpers.traced import build, rows
from torch import nn

import nrm_graph as ng
from nrm_graph.network.copies import copies
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace


def found(how, x, **modules):
    """Copies of a traced network, by name, and the program."""
    program = trace(build(how, **modules), x[:1])
    where = layout(program)
    names = [layer.name for layer in where.topology.layers]
    return {names[a]: names[b] for a, b in copies(program, where).items()}, program


def test_an_output_that_is_another_layer_in_another_shape():
    def how(net, x):
        return F.relu(net.conv(x)).mean((2, 3), keepdim=True).squeeze(3).flatten(1)

    x = rows(2, 4, 4)
    pairs, program = found(how, x, conv=nn.Conv2d(2, 3, 2))
    assert pairs == {"output": "average"}
    # Neuron by neuron, under a composite whose rules have stabilizers.
    m = ng.measure(program, x[:1], target=1, composite="epsilon_plus", dtype="float64")
    mine, other = (m.marginal(name, by="neuron").ravel() for name in ("output", "average"))
    assert (mine == other).all()


def test_an_activation_in_between_counts_as_the_layer_itself():
    pairs, _ = found(lambda net, x: net.a(x).tanh().flatten(1), rows(2, 3), a=nn.Linear(3, 4))
    assert pairs == {"output": "a"}


def test_an_input_may_be_copied():
    assert found(lambda _, x: x.flatten(1), rows(2, 3))[0] == {"output": "x"}


@pytest.mark.parametrize(
    "ending",
    [
        lambda y: y[:, -1],
        lambda y: y.transpose(1, 2).flatten(1),
        lambda y: y.flip(1).flatten(1),
        lambda y: torch.cat([y, 2 * y], 1).flatten(1),
        lambda y: y.flatten(1) + 1,
    ],
    ids=["a part", "another order", "backwards", "twice", "with a constant"],
)
def test_what_is_no_copy(ending):
    assert found(lambda net, x: ending(net.a(x)), rows(2, 3), a=nn.Linear(3, 4))[0] == {}


def test_an_average_over_one_neuron_is_none():
    """Its rule may leave a share at the stabilizer."""
    pairs, program = found(
        lambda net, x: net.pool(net.conv(x)).flatten(1),
        rows(2, 3, 3),
        conv=nn.Conv2d(2, 3, 3),
        pool=nn.AdaptiveAvgPool2d(1),
    )
    assert pairs == {"output": "pool"}
    m = ng.measure(program, rows(2, 3, 3)[:1], target=0, composite="epsilon_plus", dtype="float64")
    assert m.cut("conv").absorbed["pool"] != 0
    assert m.cut("pool").absorbed == {}
