"""Circuits in a real browser: of a class, two groups, two stores, and what carries an edge."""

from __future__ import annotations

import pytest
from helpers.explorer_pages import Looked

import nrm_graph as ng
from nrm_graph.cli.demo.fashion_cnn import CLASSES, load_demo
from nrm_graph.explorer.address import Address
from nrm_graph.explorer.parts import number

pytestmark = pytest.mark.slow

EDGES = 30


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same network with other weights."""
    model, images = load_demo()
    model.features[0].weight.data *= 0.9
    path = tmp_path_factory.mktemp("other") / "other.nrm"
    options = {"resolution": "channel", "classes": CLASSES, "progress": False}
    with ng.extract(model, images[:12], path, **options) as db:
        yield db


@pytest.fixture(scope="module")
def looked(chrome, store, other):
    with ng.explore(store, other, browser=False) as explorer:
        looked = Looked(chrome, explorer)
        yield looked
        assert looked.serious() == []


def numbers(graph):
    """Relevance of the edges, the strongest first, as the page writes it."""
    relevances = [float(r) for *_, r in graph.edges(data="relevance")]
    return [number(r) for r in sorted(relevances, key=lambda r: -abs(r))]


def shows(looked, graph):
    """The table has the numbers of the graph."""
    looked.until(lambda: [row[1] for row in looked.cells(".circuit-edges")] == numbers(graph))


def test_of_a_class_and_the_inputs_that_carry_an_edge(looked, db):
    looked.open(Address(view="circuit", edges=EDGES), "#circuit-groups")
    looked.follow("trouser", "#circuit-groups")
    looked.see(".circuit-edges")
    graph = db.circuit("label = 'trouser'", top=EDGES)
    shows(looked, graph)
    assert len(looked.drawn_units("circuit")) <= graph.number_of_nodes()
    first = looked.cells(".circuit-edges")[0][0]
    looked.click_mark("circuit", "edges", first.replace("→", "->"))
    looked.until(lambda: looked.cells(".circuit-inputs"))
    assert first.replace("→", "->") in looked.texts(".circuit-inputs h2")[0]
    rows = looked.cells(".circuit-inputs")
    inputs = graph.graph["inputs"]
    strongest = max(graph.edges(data="relevance"), key=lambda edge: abs(edge[2]))
    assert sum(float(row[2]) for row in rows) / inputs == pytest.approx(strongest[2], rel=1e-3)
    looked.follow(rows[0][0], ".circuit-inputs")
    looked.until(lambda: looked.texts(".side > h2"))
    assert looked.texts(".side > h2")[0].startswith(rows[0][0])
    assert float(looked.facts()["logit"]) == db.measure(rows[0][0]).logit


def test_two_groups_and_two_stores(looked, db, other):
    where, against = "label = 'trouser'", "label = 'pullover'"
    looked.open(Address(view="circuit", where=where, edges=EDGES), ".circuit-edges")
    looked.fill("against", against)
    shows(looked, db.contrast(where, against).graph(EDGES))
    assert looked.texts(".circuit-edges th")[1] == "difference"
    looked.fill("against", "")
    shows(looked, db.circuit(where, top=EDGES))
    looked.pick("other", "minus the other")
    shows(looked, db.contrast(where, other=other).graph(EDGES))


def test_a_click_on_a_unit_shows_it(looked):
    looked.open(Address(view="circuit", where="label = 'trouser'", edges=EDGES), ".circuit-edges")
    unit = looked.drawn_units("circuit")[-1]
    looked.click_unit(unit, figure="circuit")
    looked.see(".unit-heading")
    assert unit in looked.texts(".unit-heading h2")[0]
