"""Pictures of reduced graphs: connected, with a map at every unit, and names that fit."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from reference.brute_networks import measure
from torch import nn

import nrm_graph as ng
from nrm_graph.network.topology import UNWATCHED
from nrm_graph.plots import plot_subgraph


@pytest.fixture(scope="module")
def reduced():
    return measure("inception", "epsilon_gamma").reduced(by="channel", nodes=None)


def test_the_graph_is_connected_and_says_what_it_keeps(reduced):
    whole, few = reduced.graph(), reduced.graph(6)
    assert whole.number_of_edges() == len(reduced.edges) + len(reduced.ends)
    assert few.number_of_edges() <= 6
    assert nx.number_weakly_connected_components(few) == 1
    assert few.graph["connected"]
    assert 0 < few.graph["share"] <= few.graph["share_strongest"] <= 1
    (target,) = (node for node in few if few.out_degree(node) == 0)
    for node in few:
        assert nx.has_path(few, node, target)
    ends = {unit for _, unit in whole if unit < 0}
    assert UNWATCHED in ends


def test_steps_that_pass_a_watched_layer_say_which():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = net

        def forward(self, x):
            y = self.first(x)
            return self.last(y + self.second(y))

    m = ng.measure(Skip(), torch.rand(1, 3), resolution="feature")
    graph = m.reduced(["first", "second"], "layer", nodes=None).graph()
    assert graph.edges[("first", 0), ("last", m.target)]["steps_over"] == ("second",)
    assert "steps_over" not in graph.edges[("second", 0), ("last", m.target)]


def test_maps_stand_at_units(reduced):
    ax = reduced.plot(top=12, images=True)
    units = [n for n, unit in reduced.graph(12).nodes(data="unit") if unit >= 0]
    assert len(ax.child_axes) == len(units) - 1  # the target has none
    frames = [child.get_window_extent() for child in ax.child_axes]
    assert all(not a.overlaps(b) for i, a in enumerate(frames) for b in frames[:i])
    assert "steps with" in ax.get_xlabel()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any("input not watched" in text for text in legend)


def test_an_image_has_two_axes(reduced):
    graph = reduced.graph(4)
    node = next(iter(graph))
    with pytest.raises(ng.InputError, match=r"shape \(H, W\)"):
        plot_subgraph(graph, images={node: np.zeros(3)})
    plot_subgraph(graph, images={("elsewhere", 0): np.zeros((2, 2))})
