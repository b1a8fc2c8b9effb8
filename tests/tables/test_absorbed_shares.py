"""What pseudo-neurons absorb is summed by unit from sums that are there already."""

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.network import units
from nrm_graph.propagation import prepared_network
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.kernels import kernel_of
from nrm_graph.propagation.relevance_pass import relevance_pass, shares_of
from nrm_graph.tables.absorbed_shares import absorbed_shares
from nrm_graph.tables.plan import plan
from nrm_graph.tables.unit_sums import unit_axis


class Tokens(nn.Module):
    """A map whose channels come last behind the first layer, and a bias for every place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.out = nn.Conv2d(2, 3, 3), nn.Linear(3, 4), nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)
        self.places = nn.Parameter(torch.randn(16, 4))

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.norm(torch.relu(self.linear(x)) + self.places)
        return self.out(x.mean(1))


GROUPED = {"conv": "channel", "linear": "feature", "norm": "feature", "add": "feature"}

RULES = [
    ng.rules.Gamma(),
    ng.rules.Gamma(zero_params="bias"),
    ng.rules.Epsilon(0.1),
    ng.rules.AlphaBeta(2.0, 1.0, 0.1),
    ng.rules.ZPlus(0.1),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("resolution", [GROUPED, "neuron"], ids=["grouped", "neuron"])
def test_sums_are_those_of_every_neuron(rule, resolution):
    torch.manual_seed(0)
    module, x = Tokens().double(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    kinds = {"convolution": rule, "dense": rule, "layer_norm": rule, "sum": rule}
    composite = ng.composites.composite("one", kinds)
    net = prepared_network.network(ng.trace(module, x[:1]), composite, torch.float64)
    partitions = units.resolve(net.layout.topology, resolution)
    tables, state = plan(net, partitions), forward(net, x)
    compared = 0

    def weigh(name, relevance):
        nonlocal compared
        kernel, layer_id = kernel_of(state, name), net.layout.layer_of[name]
        weighed = [share.weigh(relevance) for share in kernel.shares]
        absorbed = absorbed_shares(tables, state, name, relevance, kernel, weighed)
        expected = dict(kernel.absorbed())
        assert {part.unit for part in absorbed} == set(expected)
        part = partitions[layer_id]
        for unit, taken, _ in absorbed:
            of_neurons = state.samples(name, relevance * expected[unit]).flatten(1).numpy()
            for sample, lost in zip(taken.numpy(), of_neurons, strict=True):
                sums = np.bincount(part.labels.ravel(), lost, part.n_units)
                size = np.bincount(part.labels.ravel(), abs(lost), part.n_units)
                assert (abs(sample - sums) <= 1e-13 * (size + abs(lost).sum())).all()
            compared += 1
        yield from shares_of(state, name, relevance)

    with torch.no_grad():
        relevance_pass(state, torch.eye(2, dtype=torch.float64), weigh=weigh)
    assert compared >= 6
    if resolution == GROUPED:
        axes = [unit_axis(tables, i) for i, part in enumerate(partitions) if part.labels.ndim > 1]
        assert {1, 2} <= set(axes)
