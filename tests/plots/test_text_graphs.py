"""Pictures of graphs of texts: upright, every unit above its token, the output on top."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import language_models
from helpers.transformer_networks import IDS, drawn

import nrm_graph as ng
from nrm_graph.graphs.formats.attribution_json import attribution_graph
from nrm_graph.graphs.formats.columns import flat
from nrm_graph.plots import plot_subgraph
from nrm_graph.plots.graph_parts import with_absorbed
from nrm_graph.plots.interactive import ENDS, UNITS, flow_figure, plain
from nrm_graph.plots.text_layout import tells_tokens

torch.set_num_threads(1)

HOSTILE = "$x^{$ \x1b[31m</b>"


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    folder = language_models.save(tmp_path_factory.mktemp("lm") / "bert", "bert")
    return ng.measure(ng.load_model(f"hf:{folder}"), "The capital of [MASK] is Paris")


def by_hand(count: int, tokens: tuple[str, ...]) -> nx.DiGraph:
    """So many units of the first token in one layer, one of the last in another."""
    graph = nx.DiGraph(tokens=tokens)
    last = len(tokens) - 1
    top = {"layer": "out", "unit": 3, "relevance": 1.0, "depth": 2, "output": HOSTILE}
    graph.add_node(("out", 3), **top)
    for unit in range(count):
        data = {"token": tokens[0], "token_index": 0, "position": f"0, {unit}"}
        graph.add_node(("mlp", unit), layer="mlp", unit=unit, relevance=0.5, depth=1, **data)
        graph.add_edge(("mlp", unit), ("out", 3), relevance=0.5)
    data = {"token": tokens[last], "token_index": last}
    graph.add_node(("ids", last), layer="ids", unit=last, relevance=0.1, depth=0, **data)
    graph.add_edge(("ids", last), ("mlp", 0), relevance=0.1)
    return graph


def marks(ax):
    """Places of units and of squares, in the axes' numbers."""
    units, *squares = (
        np.asarray(c.get_offsets()) for c in ax.collections if hasattr(c, "get_sizes")
    )
    return units, squares


def test_units_stand_above_their_tokens(m):
    graph = m.reduced(nodes=40).graph(60)
    assert tells_tokens(graph)
    assert graph.graph["tokens"] == m.tokens
    ax = plot_subgraph(graph)
    columns = dict(zip(*_ticks(ax.xaxis), strict=True))
    rows = dict(zip(*_ticks(ax.yaxis), strict=True))
    names = [text for text in columns.values() if text != "absorbed"]
    assert len(names) == len(columns) - 1
    assert names == ["[CLS]", "the", "capital", "of", "[MASK]", "is", "paris", "[SEP]"]
    layer_names = list(rows.values())
    assert layer_names[0].endswith("word_embeddings")
    assert layer_names[-1] == "output"
    units, _ = marks(ax)
    assert len(np.unique(units.round(6), axis=0)) == len(units)
    texts = [t.get_text() for t in ax.texts]
    assert m.classes[m.target] in texts
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
    assert len(spans) == len(names)
    assert all(end < start for (_, end), (start, _) in pairwise(spans))
    layers: dict[tuple[int, str], list[int]] = {}
    for (name, unit), data in graph.nodes(data=True):
        if unit >= 0:
            layers.setdefault((data["depth"], name), []).append(data.get("token_index", -1))
    assert len(layers) == len(rows) == 5
    for row, (_, places) in enumerate(sorted(layers.items())):
        here = units[units[:, 1].round() == row]
        assert len(here) == len(places)
        if -1 not in places:
            columns = [i for x in here[:, 0] for i, (a, b) in enumerate(spans) if a < x < b]
            assert sorted(columns) == sorted(places)


def _ticks(axis):
    return [float(x) for x in axis.get_ticklocs()], [t.get_text() for t in axis.get_ticklabels()]


def test_many_units_of_one_token_stand_in_lines_within_their_column():
    graph = by_hand(30, ("a", "cat", HOSTILE))
    ax = plot_subgraph(graph)
    units, _ = marks(ax)
    mlp = units[(units[:, 1] > 0.5) & (units[:, 1] < 1.5)]
    assert len(np.unique(mlp.round(6), axis=0)) == 30
    names = dict(zip(reversed(_ticks(ax.xaxis)[1]), reversed(_ticks(ax.xaxis)[0]), strict=True))
    assert mlp[:, 0].max() < names["cat"]
    ax.figure.canvas.draw()  # no text is read as a formula
    shown = [t.get_text() for t in ax.texts]
    assert {str(unit) for unit in range(30)} <= set(shown)
    assert all(letter.isprintable() for text in shown for letter in text)


def test_units_beyond_the_text_and_ends_of_other_kinds_have_a_place():
    graph = by_hand(3, ("a", "cat"))
    last = {"layer": "out", "unit": 4, "relevance": 0.1, "depth": 2}
    graph.add_node(("out", 4), **last, token="", token_index=7)
    graph.add_edge(("mlp", 1), ("out", 4), relevance=0.1)
    graph.add_node(("mlp", -9), layer="mlp", unit=-9, relevance=0.1, depth=1)
    graph.add_edge(("mlp", -9), ("mlp", 0), relevance=0.1)
    ax = plot_subgraph(graph)
    assert _ticks(ax.xaxis)[1] == ["-9", "a", "cat"]
    assert len(marks(ax)[0]) == 6


def test_of_a_long_text_tokens_with_units_are_shown():
    ax = plot_subgraph(by_hand(1, tuple(f"t{i}" for i in range(60))))
    assert _ticks(ax.xaxis)[1] == ["t0", "t59"]
    assert "2 of 60 tokens" in ax.get_xlabel()


def test_graphs_that_tell_no_tokens_apart_lie():
    net = drawn("llama")
    m = ng.measure(net, IDS, composite="attn_lrp", tokens=list("abcde"))
    heads = m.subgraph(40, by="auto")
    assert heads.graph["tokens"] == tuple("abcde")
    graph = by_hand(2, ("a", "b"))
    del graph.nodes["ids", 1]["token_index"]
    assert not tells_tokens(graph)
    assert [t.get_text() for t in plot_subgraph(graph).get_xticklabels()] == ["ids", "mlp", "out"]


def test_outputs_bear_their_texts(m):
    graph = m.reduced(nodes=10).graph()
    (output,) = (data for _, data in graph.nodes(data=True) if "output" in data)
    text = m.classes[m.target]
    assert output["output"] == text
    assert output["name"] == f"neuron {m.target} {text!r}"
    data = attribution_graph(flat(graph))
    assert data["metadata"]["prompt"].startswith("[CLS] the capital of [MASK]")
    assert data["metadata"]["prompt_tokens"][1:-1] == list(m.tokens)
    assert f'Output "{text}" (p=1.000)' in [node["clerp"] for node in data["nodes"]]
    for node in data["nodes"]:
        place = node["nrm_graph"].get("token_index")
        assert node["ctx_idx"] == place + 1 if place is not None else True


def test_interactive_figures_stand_upright_too(m):
    graph = m.reduced(nodes=40).graph(60)
    figure = flow_figure(graph)
    names = list(figure.layout.xaxis.ticktext)
    assert names == ["absorbed", *map(plain, m.tokens)]
    rows = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert list(rows.values())[-1] == "output"
    places = {}
    for trace, chosen in ((UNITS, lambda unit: unit >= 0), (ENDS, lambda unit: unit < 0)):
        (drawn,) = figure.select_traces({"name": trace})
        nodes = [node for node in with_absorbed(graph, list(graph)) if chosen(node[1])]
        places |= dict(zip(nodes, zip(drawn.x, drawn.y, strict=True), strict=True))
    assert len(set(places.values())) == len(places)
    heights: dict[int, list[float]] = {}
    for node, (_, y) in places.items():
        if node[1] >= 0:
            heights.setdefault(graph.nodes[node]["depth"], []).append(y)
    layers = [heights[depth] for depth in sorted(heights)]
    assert all(max(lower) < min(upper) for lower, upper in pairwise(layers))
    assert [sum(layer) / len(layer) for layer in layers] == pytest.approx(list(rows))
    left = [x for (_, unit), (x, _) in places.items() if unit < 0]
    assert max(left) < min(x for (_, unit), (x, _) in places.items() if unit >= 0)
    (units,) = figure.select_traces({"name": UNITS})
    assert plain(m.classes[m.target]) in units.text
    assert "H1" in units.text or "H0" in units.text
