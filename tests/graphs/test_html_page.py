"""Graphs as one page: nothing from outside, exact numbers, hostile names, clicks in a browser."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import sys

import networkx as nx
import numpy as np
import pytest
import torch
from helpers.browser import chrome, console
from PIL import Image
from torch import nn

import nrm_graph as ng
from nrm_graph.graphs.formats import graph_path, write_graph
from nrm_graph.graphs.formats.html_page import DRAWN, POLICY
from nrm_graph.plots.common import percent
from nrm_graph.plots.interactive import EDGES, UNITS

pytest.importorskip("plotly")

SCRIPT = "</script><script>document.title='ran'</script><!--"
HOSTILE = f"{SCRIPT}<img src=x onerror=alert(1)> \"'&amp; \u202eabc\u2028\0{'x' * 10_000}"


class Page(html.parser.HTMLParser):
    """A page: its tags with their attributes, text, and the JSON that it holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts = [], "", []
        self.feed(text)
        self.close()
        (self.data,) = (
            json.loads(script)
            for script, (_, attributes) in zip(self.scripts, self.of("script"), strict=True)
            if attributes.get("type") == "application/json"
        )

    def of(self, name):
        return [(tag, attributes) for tag, attributes in self.tags if tag == name]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.lasttag in ("script", "style") and self.cdata_elem:
            self.scripts += [data] if self.cdata_elem == "script" else []
        else:
            self.text += data


def page_of(graph, folder, **options):
    (path,) = write_graph(graph, folder / "graph.html", **options)
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def reduced():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    m = ng.measure(net, torch.rand(1, 6, 6), target=1, resolution="channel", dtype="float64")
    return m.given(ng.Layer("2")[:3]).reduced(["0", "2"])


def hostile():
    graph = nx.DiGraph(title=HOSTILE, flags=(HOSTILE,), share=0.5, store=HOSTILE, input=HOSTILE)
    for depth, layer in enumerate((HOSTILE, "fc")):
        names = {"name": HOSTILE, "own_name": HOSTILE, "event": HOSTILE, HOSTILE: HOSTILE}
        graph.add_node((layer, 0), layer=layer, unit=0, relevance=1.0, depth=depth, **names)
    graph.add_edge((HOSTILE, 0), ("fc", 0), relevance=0.25, **{HOSTILE: HOSTILE})
    return graph


@pytest.mark.smoke
def test_a_page_holds_the_numbers_of_its_graph(reduced, tmp_path):
    graph = reduced.graph()
    page = page_of(graph, tmp_path)
    nodes, edges = page.data["nodes"], page.data["edges"]
    assert [node["relevance"] for node in nodes] == [r for _, r in graph.nodes(data="relevance")]
    names = list(graph)
    found = {(names[e["src"]], names[e["dst"]]): e for e in edges}
    assert found.keys() == set(graph.edges)
    for (src, dst), edge in found.items():
        data = graph.edges[src, dst]
        assert edge["relevance"] == data["relevance"]
        assert edge["text"] == f"{data['relevance']:.6g}"
        lines = dict(edge["lines"])
        if "conditional" in data:
            assert lines["R(source given destination)"] == f"{data['conditional']:.6g}"
        assert lines.get("passes over") == (", ".join(data.get("steps_over", ())) or None)
        whole = graph.nodes[dst]["relevance"]
        assert edge["of_dst"] == percent(data["relevance"] / whole)
    for number, node in enumerate(names):
        event = graph.nodes[node].get("event")
        assert (["expression", event] in nodes[number]["lines"]) == (event is not None)
    figure = {trace.get("name"): trace for trace in page.data["figure"]["data"]}
    # A click says the number of a point: that of an edge, or of a node of a kind.
    assert len(figure[EDGES]["x"]) == len(edges)
    units = [i for i, node in enumerate(names) if node[1] >= 0]
    assert [nodes[i]["end"] for i in units] == [False] * len(figure[UNITS]["x"])


def test_a_page_says_what_it_is_of(reduced, tmp_path):
    graph = reduced.graph(8)
    graph.graph |= {"store": "relevance.nrm", "input": "cat <1>.png"}
    page = page_of(graph, tmp_path)
    for text in (
        "relevance.nrm", "cat <1>.png", "target1", "given2[:3]", "absorbed",
        reduced.measure.meaning, percent(graph.graph["share"]),
    ):  # fmt: skip
        assert text in page.text
    assert page.of("h1")
    assert "Reduced graph of cat <1>.png, target 1, given 2[:3]" in page.text


def test_a_page_asks_nobody(reduced, tmp_path):
    page = page_of(reduced.graph(), tmp_path, images=reduced.maps(), image=np.eye(6))
    (policy,) = (a["content"] for _, a in page.of("meta") if "http-equiv" in a)
    assert policy == POLICY
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"https?:|\*|'self'|'unsafe-eval'", policy)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "a")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:image/png;base64,"[:5])
        assert "href" not in attributes
    styles = (tmp_path / "graph.html").read_text("utf-8").partition("<style>")[2]
    assert not re.search(r"url\(|@import", styles.partition("</style>")[0])


def test_maps_and_the_input_are_inside(reduced, tmp_path):
    graph, maps = reduced.graph(), reduced.maps()
    page = page_of(graph, tmp_path, images=maps, image=np.arange(36).reshape(6, 6))
    names = list(graph)
    images = page.data["figure"]["layout"]["images"]
    assert [names[i] for i in page.data["pictured"]] == [node for node in maps if node in graph]
    assert len(images) == len(page.data["pictured"])
    (shown,) = (a["src"] for _, a in page.of("img"))
    picture = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
    assert picture.size == (6, 6)
    with pytest.raises(ng.InputError, match=r"shown in \.html alone"):
        write_graph(graph, tmp_path / "graph.svg", images=maps)


def test_hostile_names_are_text(tmp_path):
    page = page_of(hostile(), tmp_path)
    assert len(page.of("script")) == 3
    assert not page.of("b")
    assert [tag for tag, _ in page.of("img")] == []
    assert "document.title" not in "".join(page.scripts[1:])
    shown = page.data["nodes"][0]["title"]
    assert shown.startswith(SCRIPT) or SCRIPT in shown
    assert len(shown) <= 300
    for trace in page.data["figure"]["data"]:
        trace.pop("customdata", None)  # which nobody sees
    assert not set("\u202e\u2028\0") & set(json.dumps(page.data, ensure_ascii=False))
    text = (tmp_path / "graph.html").read_text("utf-8")
    raw = text.partition('id="data">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(raw)
    size = len(json.dumps({k: page.data[k] for k in ("nodes", "edges")}))
    assert size < 20_000


def test_of_a_large_graph_the_strongest_edges_are_drawn(tmp_path):
    graph = nx.DiGraph(share=1.0)
    for unit in range(DRAWN + 30):
        graph.add_node(("x", unit), layer="x", unit=unit, relevance=0.1, depth=0)
    graph.add_node(("fc", 0), layer="fc", unit=0, relevance=1.0, depth=1)
    for unit in range(DRAWN + 30):
        graph.add_edge(("x", unit), ("fc", 0), relevance=float(unit + 1))
    page = page_of(graph, tmp_path)
    figure = {trace.get("name"): trace for trace in page.data["figure"]["data"]}
    assert len(figure[EDGES]["x"]) == DRAWN
    assert len(page.data["edges"]) == DRAWN + 30
    drawn = [edge["relevance"] for edge in page.data["edges"][:DRAWN]]
    assert drawn == sorted(range(31, DRAWN + 31))
    notes = next(a for a in page.data["figure"]["layout"]["annotations"] if a["xref"] == "paper")
    assert f"drawn: the {DRAWN} strongest" in notes["text"]


def test_without_plotly_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ng.InputError, match=r"pip install 'nrm-graph\[explorer\]'"):
        graph_path(tmp_path / "graph.html")


@pytest.mark.slow
def test_a_click_lists_neighbours_in_a_browser(reduced, tmp_path):
    graph = reduced.graph()
    (path,) = write_graph(graph, tmp_path / "graph.html", images=reduced.maps())
    names = list(graph)
    target = names.index(("2", 1))
    with chrome() as running:
        running.get(path.as_uri())
        asked = running.execute_script("return performance.getEntriesByType('resource')")
        assert not [entry["name"] for entry in asked if not entry["name"].startswith("data:")]
        table = "[...document.querySelectorAll('#facts tbody tr[data-node]')]"
        listed = running.execute_script(f"return {table}.map(tr => tr.innerText)")
        assert len(listed) == len(names)
        place = running.execute_script(
            "const plot = document.getElementById('plot'), {xaxis, yaxis} = plot._fullLayout;"
            "const trace = plot.data.find(trace => trace.name === 'units');"
            "const i = trace.customdata.findIndex(data => data[0] === '2[1]');"
            "const box = plot.getBoundingClientRect();"
            "return [box.left + xaxis._offset + xaxis.l2p(trace.x[i]),"
            " box.top + yaxis._offset + yaxis.l2p(trace.y[i])].map(Math.round);"
        )
        mouse = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            running.execute_cdp_cmd("Input.dispatchMouseEvent", mouse | {"type": kind})
        _numbers(running, graph, names, target)
        hover = "return document.querySelector('.hoverlayer').textContent"
        relevance = graph.nodes[names[target]]["relevance"]
        assert f"R: {relevance:.6g}" in running.execute_script(hover)
        # Another unit by its name in the table, then back by the keyboard.
        running.find_element("css selector", "#sources button").click()
        assert running.execute_script("return document.getElementById('facts').dataset.node")
        running.find_element("css selector", "body").send_keys("\ue00c")
        assert running.execute_script(f"return {table}.length") == len(names)
        assert console(running) == []


def _numbers(running, graph, names, number):
    """Check what the panel lists of a node."""
    shown = running.execute_script(
        "return ['sources', 'destinations'].map(side => [...document.querySelectorAll("
        "`#${side} tr[data-node]`)].map(tr => [+tr.dataset.node, tr.children[1].textContent]))"
    )
    node = names[number]
    for rows, edges in zip(shown, (graph.in_edges(node), graph.out_edges(node)), strict=True):
        expected = {
            (names.index(src if dst == node else dst), f"{graph.edges[src, dst]['relevance']:.6g}")
            for src, dst in edges
        }
        assert {(i, text) for i, text in rows} == expected
        assert expected


@pytest.mark.slow
def test_a_hostile_page_is_quiet_in_a_browser(tmp_path):
    (path,) = write_graph(hostile(), tmp_path / "graph.html")
    with chrome() as running:
        running.get(path.as_uri())
        running.find_element("css selector", "#facts button").click()
        assert "document.title" in running.title  # as text
        assert running.title != "ran"
        assert SCRIPT in running.find_element("css selector", "#facts h2").text
        assert (
            running.execute_script("return document.querySelectorAll('#plot script').length") == 0
        )
        assert console(running) == []
