"""The attribute ``event`` of nodes: an expression that names exactly their neurons, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import reduced as small
from torch import nn

import nrm_graph as ng
from nrm_graph.events.parser import parse
from nrm_graph.network.topology import LayerInfo
from nrm_graph.network.units import partition, whole_units

HALVES = (np.arange(27).reshape(3, 3, 3) > 12).astype(int)


@pytest.fixture(scope="module")
def measure():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
    units = {"input": "feature", "0": "channel"}
    return ng.measure(net, torch.rand(2, 5, 5), target=1, resolution=units, dtype="float64")


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    with small.extract(tmp_path_factory.mktemp("events") / "s.nrm") as db:
        small.materialize(db)
        parts = ng.Layer("stem")[:2, :2] | ng.Layer("stem")[2]
        db.materialize(name="parts", watch=[parts, "block"], by="channel", nodes=None)
        yield db


def events(graph):
    return {n: data["event"] for n, data in graph.nodes(data=True) if "event" in data}


def hold(measure, graph):
    """Whether every expression has the relevance of its node."""
    for node, event in events(graph).items():
        # Stores hold float32, and a small sum is of larger numbers of both signs.
        relevance = pytest.approx(graph.nodes[node]["relevance"], rel=1e-5, abs=1e-6)
        assert measure(parse(event)) * measure.scale == relevance
    return events(graph)


@pytest.mark.smoke
def test_expressions_name_the_units_of_a_graph(measure):
    graph = measure.subgraph(60)
    spelled = hold(measure, graph)
    assert spelled.keys() == {node for node in graph if node[1] >= 0}
    assert spelled["0", 2] == "0[2]"
    assert spelled["input", 4] == "input[..., 4]"
    assert hold(measure, measure.subgraph(60, by="neuron"))["0", 10] == "0[1, 0, 1]"


def test_units_that_a_call_alone_knows_have_none(measure):
    graph = measure.subgraph(60, by={"0": HALVES})
    assert {layer for layer, _ in hold(measure, graph)} == {"input", "3"}
    known = measure.with_units({"0": HALVES})
    assert hold(known, known.subgraph(60))["0", 1] == "0.units([1])"


def test_nodes_of_reduced_graphs(measure):
    assert hold(measure, measure.reduced("0").graph())["0", 1] == "0[1]"
    assert hold(measure, measure.reduced("0", "layer").graph())["0", 0] == "0[:]"
    assert ("0", 1) not in events(measure.reduced("0", {"0": HALVES}).graph())
    part, whole = ng.Layer("0")[:2, :2], ng.Layer("0")[:2]
    assert events(measure.reduced(part).graph()).keys() == {("3", 1)}
    assert hold(measure, measure.reduced(whole).graph()).keys() == {("3", 1), ("0", 0), ("0", 1)}
    conditioned = measure.given(parse("0[1]"))
    hold(conditioned, conditioned.reduced("0", nodes=2).graph())


def test_graphs_of_a_store(db):
    key, other = (
        row[0] for row in db.sql("SELECT key FROM inputs GROUP BY key LIMIT 2").fetchall()
    )
    target = small.TARGETS[0]
    graph = db.subgraph(key, target, top=40)
    assert hold(db.measure(key, target), graph).keys() == {n for n in graph if n[1] >= 0}
    grouped = db.subgraph(key, target, top=40, by="channel")
    hold(db.measure(key, target), grouped)
    circuit = db.circuit(top=40, target=target)
    assert events(circuit).keys() == {node for node in circuit if node[1] >= 0}
    steps = db.circuit(top=40, target=target, tables="steps")
    assert events(steps).keys() == {node for node in steps if node[1] >= 0}
    assert all(e == f"{n[0]}[{n[1]}]" for n, e in events(steps).items() if n[0] == "stem")
    parts = db.circuit(top=40, target=target, tables="parts")
    assert {layer for layer, _ in events(parts)} == {"block", "head"}
    contrast = db.contrast(f"key = '{key}'", f"key = '{other}'", target=target)
    assert events(contrast.graph(20))


def test_whole_units():
    layer = LayerInfo(1, "conv", "convolution", (2, 3), 1)
    held = partition(layer, np.array([[0, 0, 1], [1, 1, 1]]))
    assert whole_units(layer, "custom", np.array([[0, 0, -1], [-1, -1, -1]]), held)
    assert not whole_units(layer, "custom", np.array([[-1, -1, 1], [1, 1, -1]]), held)
    assert not whole_units(layer, "custom", np.array([[0, 0, 0], [1, 1, 1]]), held)
    assert whole_units(layer, "neuron", np.array([[0, -1, -1], [-1, 4, -1]]), held)
    assert whole_units(layer, "layer", np.zeros((1, 1), int), held)
    assert not whole_units(layer, "layer", np.array([[0, 0, -1], [0, 0, 0]]), held)
