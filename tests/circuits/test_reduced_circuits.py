"""Circuits and statistics of reduced tables against the reduced graphs of every input."""

from __future__ import annotations

from collections import defaultdict

import networkx as nx
import numpy as np
import pytest
from helpers import reduced

import nrm_graph as ng
from nrm_graph.circuits.engines import EDGE
from nrm_graph.circuits.sums import NODE
from nrm_graph.evaluate.faithfulness import faithfulness
from nrm_graph.evaluate.weight_randomization import randomization
from nrm_graph.graphs.formats import write_graph
from nrm_graph.store.reduced_tables import ReducedForm

PIXEL = ng.Layer("stem")[2, 0, 3]  # R is 0 in some inputs


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    path = tmp_path_factory.mktemp("reduced") / "s.nrm"
    # Bounded, so that what is told of absent edges must not be told of steps.
    with reduced.extract(path, max_edges=40) as db:
        reduced.materialize(db)
        reduced.materialize(db, "given", reduced.EVENT)
        reduced.materialize(db, "pixel", PIXEL)
        yield db


def steps(db, name, identity, event=None):
    """Relevance of steps and ends of one input; joint with an event where one is given."""
    r = reduced.reduced_of(db, name, identity)
    scale = 1.0 if event is None else db.measure(identity)(event)
    rows = r.edges.to_pylist() + r.ends.to_pylist()
    names = [layer.name for layer in db.topology.layers]
    return {
        ((names[s], i), (names[d], j)): row["relevance"] * scale
        for row in rows
        for d, j, s, i in [tuple(row[name] for name in EDGE)]
    }


def by_edge(inputs):
    """Values of every edge over inputs, 0 where an input has none."""
    values = defaultdict(lambda: np.zeros(len(inputs)))
    for place, edges in enumerate(inputs):
        for edge, relevance in edges.items():
            values[edge][place] = relevance
    return values


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["unit", "logit"])
def test_a_circuit_is_the_mean_over_reduced_graphs(db, weight):
    graph = db.circuit(tables="steps", weight=weight, mixed_targets=True, top=1000)
    ids = list(db._snapshot.entries)
    w = np.array([db.measure(i).logit if weight == "logit" else 1.0 for i in ids])
    expected = by_edge([steps(db, "steps", i) for i in ids])
    assert graph.graph["tables"] == "steps"
    assert {"given", "rivals", "undefined"}.isdisjoint(graph.graph)
    for edge, data in graph.edges.items():
        values = expected[edge] * w
        assert data["relevance"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
        assert data["std"] == pytest.approx(values.std(ddof=1), rel=1e-4, abs=1e-6)
        assert data["inputs"] == np.count_nonzero(values)
        assert data["agreement"] == np.mean(
            np.sign(values[values != 0]) == np.sign(data["relevance"])
        )
        assert {"missing", "low", "high"}.isdisjoint(data)
    left = [v for edge, v in expected.items() if edge not in graph.edges]
    assert all(abs((values * w).mean()) < 1e-6 for values in left)
    absorbed = [db.measure(i).absorbed for i in ids]
    assert graph.graph["absorbed"] == pytest.approx(np.mean(absorbed * w), rel=1e-4, abs=1e-6)
    for (layer, unit), data in graph.nodes.items():
        if unit >= 0:
            sums = [v * w for (_, d), v in expected.items() if d == (layer, unit)]
            if layer != "x":
                assert data["relevance"] == pytest.approx(sum(sums).mean(), rel=1e-4, abs=1e-5)
    names = nx.get_node_attributes(graph, "name")
    assert names["stem", 2] == "channel 2"


@pytest.mark.parametrize("name", ["given", "pixel"])
def test_a_conditioned_circuit_is_a_ratio_of_means(db, name):
    event = db._conditions[name].event
    graph = db.circuit(tables=name, mixed_targets=True, top=1000)
    ids = list(db._snapshot.entries)
    base = np.array([db.measure(i, dtype="float64")(event) for i in ids])
    defined = [row[0] for row in db.sql(f"SELECT status = 'defined' FROM {name}_inputs").fetchall()]
    assert graph.graph["undefined"] == defined.count(False) == (4 if name == "pixel" else 0)
    assert graph.graph["condition_relevance"] == pytest.approx(base.mean(), rel=1e-5)
    sums = defaultdict(float)
    for i in ids:
        try:
            joint = steps(db, name, i, event)
        except ng.UndefinedConditional:
            continue  # its walks of the event vanish one by one
        for edge, relevance in joint.items():
            sums[edge] += relevance
    for edge, data in graph.edges.items():
        expected = sums[edge] / base.sum()
        assert data["relevance"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    mean = db.circuit(tables=name, mixed_targets=True, per_input=True, top=1000)
    known = [i for i in ids if abs(db.measure(i)(event)) > 1e-9]
    single = by_edge([steps(db, name, i) for i in known])
    for edge, data in mean.edges.items():
        assert data["relevance"] == pytest.approx(single[edge].mean(), rel=1e-3, abs=1e-4)


def test_joint_tables_are_conditioned_ones_times_the_relevance_of_the_event(db):
    """What stands for an input where R(event) vanishes, and conditioned rows cannot."""
    form = ReducedForm(db._conditions["given"].nodes)
    for identity in list(db._snapshot.entries)[:2]:
        m = db.measure(identity, dtype="float64")
        joint, conditioned = (
            keyed(*form.tables(*asked))
            for asked in ((m, reduced.EVENT), (m.given(reduced.EVENT), None))
        )
        whole = m(reduced.EVENT)
        for mine, yours in zip(joint, conditioned, strict=True):
            expected = {key: relevance * whole for key, relevance in yours.items()}
            assert mine == pytest.approx(expected, rel=1e-9, abs=1e-12)


def keyed(nodes, edges, kept):
    return [
        {tuple(row[key] for key in keys): row["relevance"] for row in table.to_pylist()}
        for table, keys in ((nodes, NODE), (edges, EDGE))
    ]


def test_layers_are_watched_ones(db):
    graph = db.circuit(tables="steps", layers=["head", "stem"], mixed_targets=True)
    assert {node[0] for node in graph} == {"head", "stem"}
    assert (("stem", 2), ("head", 0)) in graph.edges  # by the skip
    with pytest.raises(ng.InputError, match="no edges between the layers 'head', 'inner'"):
        db.circuit(tables="steps", layers=["head", "inner"], mixed_targets=True)


def test_statistics_are_of_the_steps(db):
    ids = [i for i, e in db._snapshot.entries.items() if e.target == 0]
    inputs = [steps(db, "steps", i) for i in sorted(ids)]
    labels = [db._snapshot.facts(i)["label"] for i in sorted(ids)]
    values = by_edge(inputs)
    contrast = db.contrast(
        "label = 'a'", "label = 'b'", tables="steps", target=0, weight="unit", edges=5
    )
    first = np.array([label == "a" for label in labels])
    assert len(contrast.table) == 5
    for row in contrast.table.to_pylist():
        edge = (row["src"], row["src_unit"]), (row["dst"], row["dst_unit"])
        expected = values[edge][first].mean() - values[edge][~first].mean()
        assert row["difference"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert contrast.unknown == 0
    assert contrast.graph().number_of_nodes()
    for absorbed, chosen in zip(contrast.absorbed, (first, ~first), strict=True):
        own = np.array([db.measure(i).absorbed for i in sorted(ids)])
        assert absorbed == pytest.approx(own[chosen].mean(), rel=1e-4, abs=1e-6)
    stability = db.stability(tables="steps", target=0, top=5, splits=3, draws=10)
    strongest = sorted(values.values(), key=lambda v: -abs(v.mean()))[:5]
    means = [abs(v.mean()) for v in strongest]
    assert np.abs(stability.edges["mean"].to_numpy()) == pytest.approx(means, rel=1e-4)
    assert stability.certified
    clusters = db.clusters(tables="steps", target=0, k=2, edges=10)
    assert clusters.k == 2
    assert clusters.unknown == 0
    circuit = db.circuit("label = 'a'", tables="steps", target=0)
    near = db.prototypes(circuit, k=1, target=0)
    assert near["label"][0].as_py() == "a"


def test_units_of_a_circuit_are_ablated(db):
    circuit = db.circuit("key <> 'k2'", tables="steps", target=0)
    curves = faithfulness(db, circuit, draws=2, progress=False)
    assert curves.available["stem"] == 3
    assert set(curves.available) == {"stem", "block"}  # by default no inputs and outputs
    with pytest.raises(ng.InputError, match="a step of reduced tables stands for all"):
        faithfulness(db, circuit, by="edges")
    with pytest.raises(ng.InputError, match="nodes were chosen in this network"):
        randomization(db, circuit)
    reduced.materialize(db, "parts", watch=ng.Layer("stem")[:, :2], by="channel", nodes=None)
    with pytest.raises(ng.InputError, match="the nodes of stem are no whole units"):
        faithfulness(db, db.circuit("key <> 'k2'", tables="parts", target=0))
    db.drop("parts")


def test_refusals(db):
    db.materialize(reduced.EVENT, name="whole", progress=False)
    every = {"mixed_targets": True}
    for call, message in [
        (lambda: db.circuit(tables="none", **every), "no reduced tables 'none'.*given, pixel, st"),
        (lambda: db.circuit(tables=3, **every), "no reduced tables 3"),
        (lambda: db.circuit(tables="whole", **every), "'whole' holds tables of all units: given="),
        (lambda: db.circuit(given="steps", **every), "'steps' holds reduced tables: tables="),
        (lambda: db.circuit(given="whole", tables="steps", **every), "give given= or tables="),
        (lambda: db.circuit(tables="steps", per_input=True, **every), "per_input goes with given"),
        (lambda: db.stability(tables="pixel", **every), "'pixel' is undefined for 4 of the 6"),
    ]:
        with pytest.raises(ng.InputError, match=message):
            call()
    # An event finds the tables of all units, not reduced ones.
    assert db.circuit(given=reduced.EVENT, **every).graph["given"] == "whole"


@pytest.mark.parametrize("suffix", [".graphml", ".json", ".parquet", ".neo4j.csv", ".svg"])
def test_circuits_of_reduced_tables_are_written(db, tmp_path, suffix):
    graph = db.circuit(tables="steps", target=0)
    files = write_graph(graph, tmp_path / f"g{suffix}")
    assert all(file.stat().st_size for file in files)
