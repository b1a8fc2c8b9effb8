"""Exports by a click on their links, and copied Python, against the numbers of Python."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from urllib.parse import urlsplit

import networkx as nx
import numpy as np
import pyarrow.csv as pc
import pytest
from PIL import Image

import nrm_graph as ng
from nrm_graph.explorer.address import Address, from_query

pytestmark = pytest.mark.slow

KEY, NODES = "test-00000", 24
EVENT = ng.Layer("features.6")[15]
FLOW = Address(view="flow", input=KEY, nodes=NODES, event=repr(EVENT))
CIRCUIT = Address(view="circuit", where="label = 'trouser'", edges=20)


@pytest.fixture(scope="module")
def graph(db):
    return db.measure(KEY).given(EVENT).reduced(nodes=NODES).graph(5 * NODES)


def saved(looked, downloads, form):
    """Click the link of an export; return the file that the browser saved."""
    before = set(downloads.iterdir())
    looked.one(f"#export-{form}").click()

    def complete():
        new = [path for path in set(downloads.iterdir()) - before if path.suffix != ".crdownload"]
        return [path for path in new if not path.name.startswith(".")]

    deadline = time.monotonic() + 30
    while not (files := complete()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (path,) = files
    assert path.stat().st_size > 0
    return path


def picture(path):
    """Read a picture; there is something in it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 1
    return pixels


def relevances(edges):
    return sorted(edges, key=abs)


def test_a_flow_in_every_form(looked, downloads, graph):
    looked.open(FLOW, ".units")
    assert picture(saved(looked, downloads, "png")).shape[1] > 600
    svg = ET.parse(saved(looked, downloads, "svg")).getroot()
    assert svg.tag.endswith("svg")
    expected = {
        data["event"]: data["relevance"] for _, data in graph.nodes(data=True) if "event" in data
    }
    rows = pc.read_csv(saved(looked, downloads, "csv")).to_pylist()
    assert {row["unit"]: row["relevance"] for row in rows} == expected
    written = nx.read_graphml(saved(looked, downloads, "graphml"))
    edges = [r for *_, r in graph.edges(data="relevance")]
    again = [r for *_, r in written.edges(data="relevance")]
    np.testing.assert_allclose(relevances(again), relevances(edges), rtol=1e-12)
    attribution = json.loads(saved(looked, downloads, "json").read_text())
    links = [link["weight"] for link in attribution["links"]]
    assert len(links) == len(edges)
    np.testing.assert_allclose(relevances(links), relevances(edges), rtol=1e-6)


def test_the_page_that_opens_by_itself_is_interactive(looked, downloads, graph):
    looked.open(FLOW, ".units")
    path = saved(looked, downloads, "html")
    chrome = looked.chrome
    chrome.get(path.as_uri())
    rows = "return document.querySelectorAll('#facts tbody tr[data-node]').length"
    looked.until(lambda: chrome.execute_script(rows) == graph.number_of_nodes())
    looked.one("#facts tbody tr[data-node]:first-child button").click()
    number = int(looked.until(lambda: looked.one("#facts").get_attribute("data-node")))
    node = list(graph)[number]
    shown = chrome.execute_script(
        "return [...document.querySelectorAll('#sources tr[data-node], #destinations tr[data-node]'"
        ")].map((row) => row.children[1].textContent)"
    )
    around = [*graph.in_edges(node, data="relevance"), *graph.out_edges(node, data="relevance")]
    assert sorted(shown) == sorted(f"{r:.6g}" for *_, r in around)
    asked = chrome.execute_script("return performance.getEntriesByType('resource')")
    assert [entry["name"] for entry in asked if not entry["name"].startswith("data:")] == []


def test_other_views(looked, downloads, db):
    looked.open(CIRCUIT, ".circuit-edges")
    circuit = db.circuit(CIRCUIT.where, top=CIRCUIT.edges)
    edges = [r for *_, r in circuit.edges(data="relevance")]
    rows = pc.read_csv(saved(looked, downloads, "csv"))
    np.testing.assert_allclose(relevances(rows["relevance"].to_pylist()), relevances(edges))
    assert nx.read_graphml(saved(looked, downloads, "graphml")).number_of_edges() == len(edges)
    looked.open(Address(view="unit", unit=repr(EVENT)), ".reference-cards")
    keys = pc.read_csv(saved(looked, downloads, "csv"))["key"].to_pylist()
    assert keys == db.references(EVENT, k=len(keys)).table["key"].to_pylist()
    assert picture(saved(looked, downloads, "png")).shape[0] > 100
    looked.open(Address(label="trouser"), ".card")
    assert len(pc.read_csv(saved(looked, downloads, "csv"))) == len(looked.texts(".card"))
    looked.open(Address(view="sql", query="SELECT key, logit FROM inputs"), ".result table")
    rows = pc.read_csv(saved(looked, downloads, "csv"))
    logits = db.sql("SELECT logit FROM inputs").to_arrow_table()["logit"].to_pylist()
    np.testing.assert_allclose(rows["logit"].to_pylist(), logits, rtol=1e-6)


def run(looked):
    names = {}
    (text,) = looked.texts("#as-python")
    exec(text, names)
    names["db"].close()
    return names


def test_copied_python_gives_the_numbers_shown(looked):
    looked.open(FLOW, ".units")
    names = run(looked)
    assert float(looked.facts()["R(event)"]) == names["m"].condition_relevance
    nodes = dict(names["graph"].nodes(data=True)).values()
    assert looked.units() == {
        data["event"]: float(f"{data['relevance']:.6g}") for data in nodes if "event" in data
    }
    looked.open(CIRCUIT, ".circuit-edges")
    shown = [float(row[1]) for row in looked.cells(".circuit-edges")]
    edges = run(looked)["graph"].edges(data="relevance")
    expected = sorted((float(r) for *_, r in edges), key=lambda r: -abs(r))
    np.testing.assert_allclose(shown, expected, rtol=1e-3)
    looked.open(Address(where="logit > 8"), ".card")
    keys = run(looked)["inputs"]["key"].to_pylist()
    assert keys == looked.texts(".gallery .card strong")
    assert from_query(urlsplit(looked.chrome.current_url).query).where == "logit > 8"
