"""The flow view, its numbers compared with the measure's; what is asked wrongly is told."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import explored, small_convolution

import nrm_graph as ng
from nrm_graph.events.parser import parse
from nrm_graph.explorer import flow
from nrm_graph.explorer.answers import INPUTS
from nrm_graph.graphs.formats import to_arrow
from nrm_graph.plots import interactive


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Images of which each explains two outputs, stored neuron by neuron."""
    path = tmp_path_factory.mktemp("flow") / "s.nrm"
    image = small_convolution.image()
    inputs = [{"input": image * (1 + i), "key": f"k{i}", "label": "a"} for i in range(2)]
    program = small_convolution.program()
    ng.extract(program, inputs, path, target=[0, 3], resolution="neuron", progress=False)
    with ng.open(path) as db:
        yield db


def measured(db, event="", target=0):
    m = db.measure("k0", target=target).with_units("channel")
    return m.given(parse(event)) if event else m


def asked(db, **address):
    return explored.page(db, **{"view": "flow", "input": "k0", "target": "0", **address})


@pytest.mark.parametrize("event", ["", "3[1]", "3[0:2] & ~input[0]"])
def test_the_numbers_are_those_of_the_measure(db, event):
    m = measured(db, event)
    page = asked(db, event=event, nodes=6)
    view = flow.render(page)
    expected = m.reduced(nodes=6).graph(30)
    for table, other in zip(to_arrow(flow.graph_of(page)), to_arrow(expected), strict=True):
        assert table.equals(other)
    by_event = {data["event"]: data for _, data in expected.nodes(data=True) if "event" in data}
    listed = explored.cells(view, "units")[1:]
    assert {row[0]: float(row[2]) for row in listed} == {
        unit: float(f"{data['relevance']:.6g}") for unit, data in by_event.items()
    }
    shown = explored.texts(view)
    for number in (m.logit, m.absorbed, *([m.condition_relevance] if event else [])):
        assert f"{number:.6g}" in shown
    assert m.meaning in shown
    figure = explored.figure(view, "flow")
    (units,) = [trace for trace in figure["data"] if trace.get("name") == interactive.UNITS]
    assert {data[0] for data in units["customdata"]} == by_event.keys()
    table = flow.table_of(page)
    assert dict(zip(table["unit"].to_pylist(), table["relevance"].to_pylist(), strict=True)) == {
        unit: data["relevance"] for unit, data in by_event.items()
    }


def test_maps_come_behind_and_are_those_of_conditioned_measures(db):
    page = asked(db, nodes=4)
    side = flow.Side(page, "flow")
    assert not page.answers.knows(side.maps_name, side.owner)
    assert (
        "images" not in flow.figure(side, maps=False)["layout"]
        or not (flow.figure(side, maps=False)["layout"]["images"])
    )
    maps = side.maps()
    assert maps
    without, pictured = (flow.figure(side, maps=shown) for shown in (False, True))
    assert len(pictured["layout"]["images"]) == len(maps)
    assert without["layout"]["height"] == pictured["layout"]["height"]  # nothing moves
    for name in (interactive.UNITS, interactive.ENDS):
        marks = [
            next(trace for trace in drawn["data"] if trace.get("name") == name)
            for drawn in (without, pictured)
        ]
        assert [(t["x"], t["y"]) for t in marks[:1]] == [(t["x"], t["y"]) for t in marks[1:]]
    m = measured(db)
    for (layer, unit), values in maps.items():
        A = ng.Layer(layer)[unit]
        expected = m.given(A).marginal("input", by="neuron").sum(0) * m(A)
        np.testing.assert_allclose(values, expected, atol=1e-6 * abs(expected).max())


@pytest.mark.parametrize("kind", ["neuron", "stored", "channel"])
def test_units_are_chosen(db, kind):
    page = asked(db, nodes=5, by=kind)
    m = db.measure("k0", target=0)
    m = m if kind == "stored" else m.with_units(kind)
    expected = {
        d["event"] for _, d in m.reduced(nodes=5).graph(25).nodes(data=True) if "event" in d
    }
    assert set(flow.table_of(page)["unit"].to_pylist()) == expected


def test_the_connected_graph_goes_layer_by_layer(db):
    page = asked(db, nodes=5, graph="connected")
    expected = measured(db).subgraph(25)
    assert to_arrow(flow.graph_of(page))[1].equals(to_arrow(expected)[1])
    assert explored.figure(flow.render(page), "flow")


def test_sign_and_threshold_leave_edges_out_and_say_so(db):
    whole = flow.graph_of(asked(db, nodes=8))
    page = asked(db, nodes=8, sign="negative", threshold=1e-3)
    kept = {(a, b) for a, b, r in whole.edges(data="relevance") if r <= -1e-3}
    graph = flow.graph_of(page)
    assert set(graph.edges) == kept
    assert (
        f"{len(whole.edges) - len(kept)} of {len(whole.edges)} edges are not drawn"
        in (graph.graph["flags"][-1])
    )
    with pytest.raises(ng.InputError, match=r"no edge of .* is negative and at least 1e"):
        flow.graph_of(asked(db, nodes=8, sign="negative", threshold=1e6))
    assert "lower the threshold" in explored.texts(flow.render(asked(db, threshold=1e6)))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ({"event": "3[99]"}, "3[99] does not fit layer 3"),
        ({"event": "3["}, "cannot read the expression"),
        ({"event": "<b>[1]"}, "a boolean mask cannot be written"),
        ({"event": "nowhere[1]"}, "nowhere"),
        ({"event": "3[1] & 3[2]"}, "below rounding"),
        ({"input": "k9"}, "k9"),
        ({"target": "4"}, "has the targets 0, 3"),
        ({"target": ""}, "has the targets 0, 3"),
        ({"watch": "nowhere*"}, "nowhere"),
        ({"by": "head"}, "by='head'"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_sentence(db, address, message):
    view = flow.render(asked(db, **address))
    assert message in " ".join(
        explored.texts(part)
        for part in explored.walk(view)
        if getattr(part, "className", "") == "problem"
    )


def test_two_inputs_and_two_targets_stand_side_by_side(db):
    view = flow.render(asked(db, second="k0", second_target="3", event="3[1]"))
    shown = explored.texts(view)
    for target in (0, 3):
        m = measured(db, "3[1]", target)
        assert f"{m.condition_relevance:.6g}" in shown
        assert m.target_text() in shown


def test_where_inputs_are_not_stored_the_stored_tables_are_shown(tmp_path):
    inputs = {"input": small_convolution.image(), "key": "k", "label": "a"}
    ng.extract(
        small_convolution.program(), [inputs], tmp_path / "s.nrm", target=1, tensors="omit",
        progress=False,
    )  # fmt: skip
    with ng.open(tmp_path / "s.nrm") as db:
        view = flow.render(explored.page(db, view="flow", input="k"))
        shown = explored.texts(view)
        assert "From the stored tables, which cannot be conditioned" in shown
        (units,) = [
            trace
            for trace in explored.figure(view, "stored")["data"]
            if trace.get("name") == interactive.UNITS
        ]
        graph = db.subgraph("k", top=200)
        events = {d["event"] for _, d in graph.nodes(data=True) if "event" in d}
        assert {data[0] for data in units["customdata"]} == events
        view = flow.render(explored.page(db, view="flow", input="k", event="3[1]"))
        assert "From the stored tables" not in explored.texts(view)


def test_tokens_are_a_strip_with_their_numbers(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(7, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    words = ["the", "<b>cat</b>", "\u202esat", "."]
    path = tmp_path / "t.nrm"
    inputs = [{"input": torch.tensor([1, 2, 3, 4]), "key": "t", "tokens": words}]
    ng.extract(net, inputs, path, target=1, composite="epsilon", progress=False)
    with ng.open(path) as db:
        view = flow.render(explored.page(db, view="flow", input="t"))
        m = db.measure("t")
        spans = [p for p in explored.walk(view) if getattr(p, "className", "") == "strip"]
        shown = [
            (part.children, float(part.title.rpartition("R = ")[2])) for part in spans[0].children
        ]
        expected = m.marginal("0", by="neuron").reshape(4, -1).sum(1)
        assert [word for word, _ in shown] == [*words[:2], "␣sat", "."]
        assert [value for _, value in shown] == [float(f"{value:.6g}") for value in expected]
        end = abs(expected).max()  # of tokens, and not of single neurons
        assert f"colours run from {-end:.3g} (blue, against) to {end:.3g}" in explored.texts(view)


def test_the_answers_of_the_latest_inputs_are_kept(db):
    page = asked(db)
    whole = page.answers.remembered("circuit", lambda: 1)
    m = page.answers.measure(db, "k0", "0")
    for i in range(INPUTS):
        assert page.answers.measure(db, "k0", "0") is m
        page.answers.remembered("measure", object, ("store", f"k{i}", ""))
    page.answers.remembered("measure", object, ("store", "another", ""))
    assert page.answers.measure(db, "k0", "0") is m
    for i in range(INPUTS):
        page.answers.remembered("measure", object, ("store", f"k{i}", ""))
    assert page.answers.measure(db, "k0", "0") is not m
    assert page.answers.remembered("circuit", lambda: 2) == whole


def test_the_name_of_an_answer_is_that_of_what_it_depends_on(db):
    page = asked(db, nodes=6)
    side = flow.Side(page, "flow")
    for name, value in {"event": "3[1]", "nodes": 7, "watch": "3", "by": "neuron"}.items():
        other = flow.Side(
            dataclasses.replace(page, address=page.address.changed(**{name: value})), "flow"
        )
        assert other.maps_name != side.maps_name, name
    other = flow.Side(
        dataclasses.replace(page, address=page.address.changed(view="sql", query="x")), "flow"
    )
    assert other.maps_name == side.maps_name
