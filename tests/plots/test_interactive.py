"""The interactive picture of a graph: numbers where one points, escaped texts, what is marked."""

from __future__ import annotations

import base64
import io
import json
import sys

import networkx as nx
import numpy as np
import pytest
from helpers.drawn import CHANNELS
from PIL import Image

import nrm_graph as ng
from nrm_graph.network.topology import BIAS
from nrm_graph.plots.common import NEGATIVE, NEUTRAL, POSITIVE, percent
from nrm_graph.plots.gallery import heat_map
from nrm_graph.plots.interactive import EDGES, ENDS, UNITS, flow_figure, plain

pytest.importorskip("plotly")

HOSTILE = {
    "tags": "<b onclick=\"x()\">'bold'</b></script><script>alert(1)</script>",
    "link": '<a href="javascript:alert(1)">click</a><br>',
    "entities": "&lt;b&gt; &#60; &amp;",
    "template": "%{x} %{customdata[0]} $E=mc^2$",
    "long": "w" * 10_000,
    "turned": "a\u202eb\u2066c\u200f",
    "hebrew": "\u05d0\u05d1 0.5",
    "lines": "one\ntwo\r\u2028\0",
}


def trace(figure, name):
    return next(figure.select_traces({"name": name}))


def named(text, **facts):
    """A graph of which everything bears a text."""
    graph = nx.DiGraph(title=text, meaning=text, flags=(text,), reading="absorbed", **facts)
    for depth, layer in enumerate((text, f"{text}.fc")):
        names = {"name": text, "own_name": text, "token": text, "event": text, "note": text}
        graph.add_node((layer, 0), layer=layer, unit=0, relevance=1.0, depth=depth, **names)
    graph.add_node((layer, BIAS), layer=layer, unit=BIAS, relevance=0.1, depth=1, text=text)
    graph.add_edge((text, 0), (layer, 0), relevance=0.9, steps_over=(text,), **{text: text})
    graph.add_edge((layer, BIAS), (layer, 0), relevance=0.1)
    return graph


def texts(figure):
    """Every text of a figure that Plotly reads tags in."""
    layout = figure.layout
    yield layout.title.text
    yield from layout.xaxis.ticktext
    yield from (annotation.text for annotation in layout.annotations)
    for one in figure.data:
        yield from (one.text if isinstance(one.text, tuple) else ())
        yield from one.hovertext or ()
        yield one.name or ""


@pytest.fixture(scope="module")
def graph(residual):
    return residual.subgraph(40)


@pytest.mark.smoke
def test_one_points_at_exact_numbers(graph):
    figure = flow_figure(graph)
    units, ends, edges = (trace(figure, name) for name in (UNITS, ENDS, EDGES))
    drawn = [node for node in graph if node[1] >= 0]
    assert len(units.x) == len(drawn)
    for node, hover, data in zip(drawn, units.hovertext, units.customdata, strict=True):
        facts = graph.nodes[node]
        assert f"<br>R: {facts['relevance']:.6g}<br>" in hover
        assert f"mean activation: {facts['activation']:.6g}" in hover
        assert hover.startswith(f"<b>{node[0]}: {facts['name']}</b>")
        assert list(data) == [facts["event"]]
        assert f"expression: {facts['event']}<br>" in hover
    assert ends.customdata is None
    by_size = sorted(graph.edges, key=lambda edge: abs(graph.edges[edge]["relevance"]))
    for (src, dst), hover, data in zip(by_size, edges.hovertext, edges.customdata, strict=True):
        relevance = graph.edges[src, dst]["relevance"]
        assert f"<br>R: {relevance:.6g}<br>" in hover
        share = relevance / graph.nodes[dst]["relevance"]
        assert f"share of the destination's: {plain(percent(share))}" in hover
        assert list(data) == [graph.nodes[end].get("event", "") for end in (src, dst)]


def test_columns_colours_and_sizes(graph):
    figure = flow_figure(graph)
    units = trace(figure, UNITS)
    layers = list(figure.layout.xaxis.ticktext)
    assert layers[0] == "x"
    assert layers[-1] == "head"
    drawn = [node for node in graph if node[1] >= 0]
    for node, x, shade in zip(drawn, units.x, units.marker.color, strict=True):
        assert layers[round(x)] == node[0]
        red, blue = int(shade[1:3], 16), int(shade[5:], 16)
        assert (red > blue) == (graph.nodes[node]["relevance"] > 0)
    order = sorted(range(len(drawn)), key=lambda i: abs(graph.nodes[drawn[i]]["relevance"]))
    sizes = [units.marker.size[i] for i in order]
    assert sizes == sorted(sizes)
    ends = trace(figure, ENDS)
    assert max(ends.y) < min(units.y)
    assert set(ends.marker.symbol) == set("square")
    lines = [one for one in figure.data if one.mode == "lines"]
    assert {one.line.color for one in lines} == {POSITIVE, NEGATIVE, NEUTRAL}
    count = sum(one.x.count(None) for one in lines)
    assert count == graph.number_of_edges()
    assert len(lines) <= 24


def test_what_is_drawn_is_said(graph):
    (notes,) = (a.text for a in flow_figure(graph).layout.annotations if a.xref == "paper")
    assert f"{graph.number_of_edges()} edges with" in notes
    assert plain(percent(graph.graph["share"])) in notes
    assert "peaks for the target" in notes
    assert "arched: past layers" in notes


def test_maps_stand_inside_their_frames(residual):
    reduced = residual.reduced(["first", "second"], nodes=None)
    graph, maps = reduced.graph(), reduced.maps()
    assert set(maps) >= {node for node in graph if node[1] >= 0 and node[0] != "head"}
    for (layer, unit), array in maps.items():
        both = ng.Layer(layer)[unit] & ng.Layer("x")[:]
        assert array.sum() == pytest.approx(residual(both), abs=1e-12)
    maps = {node: maps[node] for node in graph if node in maps}
    figure = flow_figure(graph, images=maps)
    assert len(figure.layout.images) == len(maps)
    units = trace(figure, UNITS)
    places = {(x, y): size for x, y, size in zip(units.x, units.y, units.marker.size, strict=True)}
    for image, array in zip(figure.layout.images, maps.values(), strict=True):
        assert 0 < image.sizey < places[image.x, image.y]
        data = base64.b64decode(image.source.removeprefix("data:image/png;base64,"))
        assert data == heat_map(array)
        assert Image.open(io.BytesIO(data)).size == array.shape[::-1]
    columns: dict[float, list[float]] = {}
    for x, y in places:
        columns.setdefault(x, []).append(y)
    largest = max(units.marker.size)
    assert all(np.diff(sorted(ys)).min(initial=np.inf) > largest for ys in columns.values())
    with pytest.raises(ng.InputError, match=r"shape \(H, W\)"):
        flow_figure(graph, images={next(iter(graph)): np.zeros(3)})


def test_conditions_are_marked(graph):
    first, second = [node for node in graph if node[1] >= 0][:2]
    figure = flow_figure(graph, chosen=[first], avoided=[second, ("elsewhere", 3)])
    ring, dotted, stroke = figure.layout.shapes
    units = trace(figure, UNITS)
    assert (ring.xanchor, ring.yanchor) == (units.x[0], units.y[0])
    assert (dotted.xanchor, dotted.yanchor) == (units.x[1], units.y[1])
    assert (ring.line.dash, dotted.line.dash, stroke.type) == ("solid", "dot", "line")
    assert {"conditioned on", "avoided"} <= {one.name for one in figure.data}
    (notes,) = (a.text for a in figure.layout.annotations if a.xref == "paper")
    assert "conditioned on, but not drawn: elsewhere 3" in notes
    assert not flow_figure(graph).layout.shapes


@pytest.mark.parametrize("kind", HOSTILE)
def test_texts_of_strangers_are_text(kind):
    text = HOSTILE[kind]
    figure = flow_figure(named(text, share=0.5))
    for shown in texts(figure):
        left = shown.replace("<br>", "").replace("<b>", "").replace("</b>", "")
        assert not set("<>$%") & set(left)
        assert "&" not in left.replace("&lt;", "").replace("&gt;", "").replace("&amp;", "").replace(
            "&#36;", ""
        ).replace("&#37;", "")
        assert "%{" not in shown
        assert not set("\u202e\u202b\u2066\u200f\u2028\0\n\r") & set(shown)
        assert len(shown) < 2500
    assert len(figure.to_json()) < 60_000
    assert trace(figure, UNITS).customdata[0][0] == text


def test_plain_shows_texts_as_they_are():
    assert plain("<b>%{x}</b> & $1") == "&lt;b&gt;&#37;{x}&lt;/b&gt; &amp; &#36;1"
    assert plain("x" * 300) == "x" * 199 + "…"
    assert plain("<" * 9, most=3) == "&lt;&lt;…"  # nothing is cut inside an entity
    assert plain("a\u202eb\n") == "a␣b␣"
    assert plain("\u05d0 1") == "\u2068\u05d0 1\u2069"


def test_circuits_and_contrasts_say_how_sure_they_are():
    graph = nx.DiGraph(inputs=20, share=0.5, weight="logit", contrast=True, where="(a) minus (b)")
    for depth, layer in enumerate("xy"):
        graph.add_node((layer, 0), layer=layer, unit=0, relevance=0.5, depth=depth, mean_a=0.75)
    graph.add_edge(("x", 0), ("y", 0), relevance=0.5, stderr=0.375, mean_a=0.75, mean_b=0.25)
    figure = flow_figure(graph)
    assert figure.layout.title.text.startswith("Contrast of 20 inputs where (a) minus (b)")
    hover = trace(figure, EDGES).hovertext[0]
    for line in ("difference of means of R x logit: 0.5", "standard error: 0.375",
                 "mean of the first group: 0.75", "mean of the second group: 0.25"):  # fmt: skip
        assert line in hover
    pale, line = (one for one in figure.data if one.mode == "lines")
    assert pale.opacity < line.opacity
    assert pale.line.width > line.line.width
    assert line.line.dash == "dot"  # within two standard errors of 0


@pytest.mark.parametrize("units", [1, 60, 200])
def test_columns_of_any_length_stay_apart(units):
    graph = nx.DiGraph()
    for unit in range(units):
        graph.add_node(("x", unit), layer="x", unit=unit, relevance=1.0 - unit, depth=0)
    figure = flow_figure(graph)
    ys = sorted(trace(figure, UNITS).y)
    assert np.diff(ys).min(initial=np.inf) > 14
    assert figure.layout.height >= 14 * units
    low = flow_figure(graph, height=500)
    assert low.layout.height == pytest.approx(500, abs=1)
    assert any(trace(low, UNITS).text) == (units < 60)  # names that would lie on one another


def test_a_large_figure_is_small_enough_to_send():
    rng = np.random.default_rng(0)
    graph = nx.DiGraph(share=0.5, meaning="positive relevance speaks for the target", flags=())
    for depth in range(6):
        for unit in range(10):
            data = {"name": f"channel {unit}", "event": f"features.{depth}[{unit}]"}
            data |= {"layer": f"features.{depth}", "unit": unit, "depth": depth}
            graph.add_node((data["layer"], unit), relevance=rng.normal(), **data)
    nodes = list(graph)
    while graph.number_of_edges() < 400:
        a, b = sorted(rng.integers(0, 60, 2))
        if a // 10 < b // 10:
            graph.add_edge(nodes[a], nodes[b], relevance=rng.normal(), conditional=1 / 3)
    size = len(flow_figure(graph).to_json())
    assert size < 300_000
    maps = {node: rng.normal(size=(224, 224)) for node in nodes}
    assert len(flow_figure(graph, images=maps).to_json()) < 1_000_000


@pytest.mark.parametrize("kind", ["reduced", "connected", "strongest", "by"])
def test_graphs_of_every_kind_are_drawn(residual, kind):
    graph = {
        "reduced": lambda: residual.reduced(["first", "second"], nodes=4).graph(12),
        "connected": lambda: residual.subgraph(12),
        "strongest": lambda: residual.subgraph(12, connected=False),
        "by": lambda: residual.subgraph(60, by=dict.fromkeys(CHANNELS, "neuron")),
    }[kind]()
    figure = flow_figure(graph)
    units = trace(figure, UNITS)
    assert len(units.x) == sum(node[1] >= 0 for node in graph)
    assert json.loads(figure.to_json())["layout"]["height"] > 200
    cut = sum(bool(data.get("cut")) for _, data in graph.nodes(data=True))
    assert list(units.marker.line.color).count("black") == cut


def test_what_cannot_be_drawn_is_said(graph, monkeypatch):
    with pytest.raises(ng.InputError, match="nothing to draw"):
        flow_figure(nx.DiGraph())
    with pytest.raises(ng.InputError, match="attribute 'depth'"):
        flow_figure(_bare())
    for broken in (np.nan, np.inf, None, "1"):
        lone = _bare(depth=0)
        lone.nodes["x", 0]["relevance"] = broken
        for draw in (flow_figure, ng.plots.plot_subgraph):
            with pytest.raises(ng.InputError, match=r"node \('x', 0\) .* must be a finite number"):
                draw(lone)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ng.InputError, match=r"pip install 'nrm-graph\[explorer\]'"):
        flow_figure(graph)


def _bare(**facts):
    graph = nx.DiGraph()
    graph.add_node(("x", 0), layer="x", unit=0, relevance=1.0, **facts)
    return graph
