"""Bounds of what paths may still hold: channel by channel and of whole maps, the same."""

import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.measures.paths import bounds
from nrm_graph.propagation.state import repeated


def test_masses_of_channels_through_several_convolutions_are_those_of_whole_maps():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Flatten(),
        nn.Linear(45, 2),
    )
    m = ng.measure(net.eval(), torch.randn(2, 6, 6), target=0, composite="epsilon")
    lower, upper = (m.topology.layer(name).layer_id for name in ("0", "5"))
    worth = torch.rand(4, 6, 6)
    of_channels = bounds.mass_of_channels(m.state, {}, worth, range(1, 4), lower, upper)
    whole = torch.zeros(3, 4, 6, 6)
    for row, channel in enumerate(range(1, 4)):
        whole[row, channel] = worth[channel]
    expected = bounds.mass(repeated(m.state, 3), {}, whole, lower, upper)
    torch.testing.assert_close(of_channels, expected)
    assert bounds._way(m.state, lower, upper)[-1] == m.network.values[lower + 1]
