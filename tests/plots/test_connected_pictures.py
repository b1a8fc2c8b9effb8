"""Pictures of connected graphs: what layers absorb, edges that pass layers, and what is cut."""

import itertools

import networkx as nx
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from nrm_graph.plots import plot_circuit, plot_subgraph

pytestmark = pytest.mark.smoke

LAYERS = ("x", "a", "b", "sum", "out")


def residual(**facts):
    """Two units of each layer; the sum reads a past b."""
    graph = nx.DiGraph(
        **{"share": 0.25, "share_strongest": 0.375, "connected": True, "shapes": {}} | facts
    )
    for depth, layer in enumerate(LAYERS):
        for unit in range(1 if layer == "out" else 2):
            graph.add_node((layer, unit), layer=layer, unit=unit, relevance=0.5, depth=depth)
    for (below, above), unit in itertools.product(itertools.pairwise(LAYERS), range(2)):
        graph.add_edge((below, unit), (above, 0 if above == "out" else unit), relevance=0.25)
    for unit in range(2):
        graph.add_edge(("a", unit), ("sum", unit), relevance=0.25, steps_over=("b",))
    return graph


def labels(ax):
    return [text.get_text() for text in ax.texts]


def squares(ax):
    """Places of grey squares, and how large they are."""
    ax.figure.canvas.draw()
    collections = [c for c in ax.collections if isinstance(c, PathCollection)]
    square = [c for c in collections if len(c.get_paths()[0].vertices) == 5]
    return [tuple(row) for c in square for row in np.column_stack([c.get_offsets(), c.get_sizes()])]


def test_a_square_is_all_that_a_layer_absorbs():
    ax = plot_subgraph(residual(absorbed_in={"a": 0.125, "sum": -0.5, "b": 1e-9, "away": 1.0}))
    assert {"0.12", "-0.5"} <= set(labels(ax))
    (first, y, small), (second, same, large) = sorted(squares(ax))
    assert (first, second) == pytest.approx((1 - 0.3, 3 - 0.3))  # left of their columns
    assert y == same < -1.1  # below all units
    assert large == pytest.approx(2 * small)  # roots: areas fall slower than relevance
    assert "absorbed by bias, stabiliser or remainder" in [
        text.get_text() for text in ax.get_legend().get_texts()
    ]


def test_pseudo_units_take_no_place_of_units():
    """With or without what is absorbed units stand where they stood, as large as they were."""
    plain, full = residual(), residual(absorbed_in=dict.fromkeys(LAYERS[1:], 0.25))
    for kind, number in (("bias", -1), ("stabilizer", -2)):
        node = {"layer": f"a {kind}", "unit": number, "relevance": 0.25, "depth": 1}
        full.add_node(("a", number), **node)
        full.add_edge(("a", number), ("a", 0), relevance=0.125)
    offsets = []
    for graph in (plain, full):
        circles = [c for c in plot_subgraph(graph).collections if isinstance(c, PathCollection)]
        offsets.append(np.column_stack([circles[0].get_offsets(), circles[0].get_sizes()]))
    np.testing.assert_allclose(*offsets)
    ax = plot_subgraph(full)
    assert len(squares(ax)) == 5
    assert labels(ax).count("0.25") == 3  # a has its own
    assert {"bias", "stabilizer"} <= set(labels(ax))
    for graph in (plain, full):
        graph.graph |= {"inputs": 1, "absorbed": 0.25, "target": 0}
    titles = [
        [ax.get_title(loc="left") for ax in plot_circuit(graph).axes[1:]] for graph in (plain, full)
    ]
    assert titles[0] == titles[1]


def test_without_connected_nothing_is_added():
    graph = residual(absorbed_in={"a": 0.125})
    del graph.graph["connected"]
    assert squares(plot_subgraph(graph)) == []


def test_edges_that_pass_a_layer_are_arched_and_none_meets_a_unit():
    graph = residual()
    ax = plot_subgraph(graph)
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    units = np.concatenate(
        [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    )
    assert len(np.unique(units, axis=0)) == len(units) == len(graph)
    arched = 0
    for line in lines.get_segments():
        between = units[(units[:, 0] > line[0, 0] + 0.1) & (units[:, 0] < line[-1, 0] - 0.1)]
        if not len(between):
            assert (np.diff(line[:, 1]) >= 0).all() or (np.diff(line[:, 1]) <= 0).all()
            continue
        arched += 1
        heights = [np.interp(x, *line.T) for x, _ in between]
        assert (np.abs(heights - between[:, 1]) > 0.02).all()
        assert np.abs(line[:, 1]).max() <= 1.1
    assert arched == 2
    assert "arched: past layers" in ax.get_xlabel()
    graph.remove_edges_from([(("a", unit), ("sum", unit)) for unit in range(2)])
    assert "arched" not in plot_subgraph(graph).get_xlabel()


def test_what_is_cut_has_a_ring():
    graph = residual()
    before = plot_subgraph(graph)
    assert "cut here" not in [text.get_text() for text in before.get_legend().get_texts()]
    graph.nodes["x", 1]["cut"] = True
    ax = plot_subgraph(graph)
    (ring,) = ax.collections[len(before.collections) :]
    (place,) = ring.get_offsets()
    assert place[0] == 0
    assert "cut here" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_shares_are_told():
    note = plot_subgraph(residual()).get_xlabel()
    assert "10 edges with 25 % of the sum over all of |relevance| (the strongest: 38 %)" in note
    figure = plot_circuit(residual(inputs=1, absorbed=0.25, target=0))
    (said,) = (text.get_text() for text in figure.texts if text.get_text().startswith("N = 1"))
    assert "kept share of the sum of |mean|: 25 % (the strongest: 38 %)" in said.replace("\n", " ")
