"""The circuit view shows what ``db.circuit`` and ``db.contrast`` give, and who carries an edge."""

import json

import plotly
import pytest
from dash import html
from helpers import explored

import nrm_graph as ng
from nrm_graph.explorer import circuit, groups
from nrm_graph.explorer.as_python import python_of
from nrm_graph.explorer.as_sql import sql_of
from nrm_graph.explorer.stored_texts import tame


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    return explored.store(tmp_path_factory.mktemp("circuit") / "s.nrm", target=2)


def strongest(graph):
    return max(graph.edges(data=True), key=lambda edge: abs(edge[2]["relevance"]))


def edge(graph):
    src, dst, data = strongest(graph)
    return f"{src[0]}[{src[1]}] -> {dst[0]}[{dst[1]}]", data


@pytest.mark.smoke
def test_edges_are_those_of_the_circuit_with_their_errors(db):
    graph = db.circuit("label = 'a'", top=20)
    page = explored.page(db, view="circuit", where="label = 'a'", edges=20)
    table = circuit.table_of(page).to_pylist()
    assert len(table) == graph.number_of_edges()
    for row in table:
        data = graph.edges[(row["src_layer"], row["src_unit"]), (row["dst_layer"], row["dst_unit"])]
        assert (row["relevance"], row["stderr"]) == (data["relevance"], data["stderr"])
    text, data = edge(graph)
    head, first, *_ = explored.cells(circuit.render(page), "circuit-edges")
    assert head[:3] == ["edge", "relevance", "stderr"]
    assert first[0] == text.replace("->", "→")
    assert float(first[1]) == pytest.approx(data["relevance"], rel=1e-3)


def test_an_edge_leads_to_the_inputs_that_carry_it(db):
    text, data = edge(db.circuit("label = 'a'", top=20))
    page = explored.page(db, view="circuit", where="label = 'a'", edges=20)
    (link,) = explored.links(circuit.render(page), text.replace("->", "→")).values()
    assert link.edge == text
    page = explored.page(db, **vars(link))
    view = circuit.render(page)
    src, dst, _ = strongest(db.circuit("label = 'a'", top=20))
    rows = db.sql(
        "SELECT key, relevance FROM flows WHERE label = 'a' AND src = ? AND src_unit = ? "
        "AND dst = ? AND dst_unit = ? ORDER BY abs(relevance) DESC, key",
        params=[*src, *dst],
    ).fetchall()
    shown = explored.cells(view, "circuit-inputs")[1:]
    assert [row[0] for row in shown] == [key for key, _ in rows]
    assert [float(row[2]) for row in shown] == pytest.approx([r for _, r in rows], rel=1e-3)
    assert sum(r for _, r in rows) / 6 == pytest.approx(data["relevance"], rel=1e-6)
    flow = explored.links(view, rows[0][0])[rows[0][0]]
    assert (flow.view, flow.input, flow.event) == ("flow", rows[0][0], "")
    given = [
        a
        for a in explored.walk(view)
        if explored.texts(getattr(a, "children", "")) == "given the edge"
    ]
    event = next(iter(explored.links(given).values())).event
    m = page.answers.measure(db, rows[0][0], "2", event)
    assert m.condition_relevance == pytest.approx(rows[0][1], rel=1e-5)


def test_labels_are_groups_of_one_target(tmp_path):
    db = explored.store(tmp_path / "s.nrm", labels="aaabbbcc")
    listed = groups.choices(db)
    assert [choice.inputs for choice in listed] == sorted(
        (choice.inputs for choice in listed), reverse=True
    )
    for choice in listed:
        assert db.circuit(choice.where).graph["inputs"] == choice.inputs
    view = circuit.render(explored.page(db, view="circuit"))
    assert "Choose a group" in explored.texts(view)
    for choice in listed:
        found = [link.where for link in explored.links(view, choice.text).values()]
        assert choice.where in found


def test_a_contrast_of_two_groups(db):
    found = db.contrast("label = 'a'", "label = 'b'")
    page = explored.page(db, view="circuit", where="label = 'a'", against="label = 'b'", edges=9)
    rows = circuit.table_of(page).to_pylist()
    expected = found.table.slice(0, 9).to_pylist()
    for name in ("mean_a", "mean_b", "stderr", "welch_q"):
        assert [r[name] for r in rows] == [r[name] for r in expected]
    assert [r["relevance"] for r in rows] == [r["difference"] for r in expected]
    page = explored.page(db, **vars(page.address) | {"edge": groups.edge_text(rows[0])})
    shown = explored.cells(circuit.render(page), "circuit-inputs")[1:]
    by_group = {name: [float(r[2]) for r in shown if r[3] == name] for name in "ab"}
    assert sum(by_group["a"]) / 6 == pytest.approx(expected[0]["mean_a"], rel=1e-3)
    assert sum(by_group["b"]) / 6 == pytest.approx(expected[0]["mean_b"], rel=1e-3)


def test_a_contrast_of_two_stores(db, tmp_path):
    other = explored.store(tmp_path / "other.nrm", target=2, scale=0.5)
    found = db.contrast("label = 'a'", other=other)
    asked = {"view": "circuit", "where": "label = 'a'", "other": 1, "edges": 5}
    page = explored.page(db, other, **asked)
    rows = circuit.table_of(page).to_pylist()
    assert [r["relevance"] for r in rows] == found.table["difference"].to_pylist()[:5]
    page = explored.page(db, other, **asked, edge=groups.edge_text(rows[0]))
    links = explored.links(circuit.render(page), "k").values()
    assert {link.store for link in links if link.view == "flow"} == {0, 1}
    # Seen from the other store, the sign turns.
    page = explored.page(db, other, store=1, **asked)
    assert circuit.table_of(page)["relevance"].to_pylist() == pytest.approx(
        [-r["relevance"] for r in rows]
    )
    view = circuit.render(explored.page(db, **asked))
    assert "start the explorer with two" in explored.texts(view)


def test_a_circuit_is_conditioned_where_the_store_has_the_tables(tmp_path):
    db = explored.store(tmp_path / "s.nrm", target=2)
    asked = {"view": "circuit", "where": "label = 'a'", "edges": 9, "event": "0[2]"}
    view = circuit.render(explored.page(db, **asked))
    assert "the store has no tables that are conditioned on it" in explored.texts(view)
    assert circuit.graph_of(explored.page(db, **asked)).graph.get("given") is None
    event = ng.Layer("0")[2]
    db.materialize(event, name="given_b", progress=False)
    page = explored.page(db, **asked)
    expected = db.circuit("label = 'a'", top=9, given=event)
    graph = circuit.graph_of(page)
    assert graph.graph["given"] == "given_b"
    assert list(graph.edges(data="relevance")) == list(expected.edges(data="relevance"))
    text, data = edge(graph)
    view = circuit.render(explored.page(db, **asked, edge=text))
    assert "Given this event" in explored.texts(view)
    shown = [float(row[2]) for row in explored.cells(view, "circuit-inputs")[1:]]
    base = graph.graph["condition_relevance"]
    assert sum(shown) / 6 / base == pytest.approx(data["relevance"], rel=1e-3)
    names = {}
    exec(python_of(page), names)
    assert list(names["graph"].edges(data="relevance")) == list(graph.edges(data="relevance"))
    assert sql_of(page) is None
    view = circuit.render(explored.page(db, **asked, against="label = 'b'"))
    assert "a contrast is of whole inputs" in explored.texts(view)
    view = circuit.render(explored.page(db, **asked | {"event": "0[2"}))
    assert "expected" in explored.texts(view)


def test_units_are_summed_when_asked(db):
    page = explored.page(db, view="circuit", where="label = 'a'", by="0=token", edges=9)
    graph = db.circuit("label = 'a'", by={"0": "token"}, top=9)
    assert circuit.graph_of(page).graph["by"] == graph.graph["by"] == {"0": "token"}
    text = explored.texts(
        circuit.render(explored.page(db, view="circuit", where="label = 'a'", by="x="))
    )
    assert "by must be units or LAYER=UNITS" in text


def test_what_was_computed_stands_there_without_being_asked_for(db):
    pytest.importorskip("scipy")
    asked = {"view": "circuit", "where": "label = 'a'", "edges": 9}
    page = explored.page(db, **asked)
    view = circuit.render(page)
    assert {link.computed for link in explored.links(view, "Compute it").values()}
    assert "1,000 resamples" in explored.texts(view)
    asking = type(page)(page.address.changed(computed="stability"), page.stores, page.answers)
    found = db.stability("label = 'a'", top=9)
    for seen in (asking, page):  # the second time nobody asks
        rows = explored.cells(circuit.render(seen), "stability")[1:]
        assert [float(row[1]) for row in rows] == pytest.approx(
            found.edges["mean"].to_pylist(), rel=1e-3
        )
        assert f"Jaccard {found.jaccard:.3f}" in explored.texts(circuit.render(seen))


def test_faithfulness_is_of_inputs_that_the_circuit_was_not_computed_from(db):
    page = explored.page(db, view="circuit", where="label = 'a'", edges=9, computed="faithfulness")
    from nrm_graph import evaluate

    parts = evaluate.split(db, "label = 'a'")
    curves = evaluate.faithfulness(
        db,
        db.circuit("label = 'a'", inputs=parts.circuit, top=9),
        f"label = 'a' AND {parts.held_out_where}",
        progress=False,
    )
    rows = {row[0]: row for row in explored.cells(circuit.render(page), "faithfulness")[1:]}
    for area in curves.areas().to_pylist():
        if area["score"] == "logit":
            assert float(rows[area["method"]][1]) == pytest.approx(area["area"], rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"where": "label = 'none'"}, "no input is chosen"),
        ({"where": "label = "}, "condition"),
        ({"where": "true) UNION SELECT 1 --"}, "condition"),
        ({"where": "label = 'a'", "edge": "x[99] -> y[1]"}, "no such edge"),
        ({"where": "label = 'a'", "edges": 0}, "edges must be from 1 to 400"),
        ({"where": "label = 'a'", "edges": 401}, "edges must be from 1 to 400"),
    ],
)
def test_mistakes_are_sentences(db, asked, sentence):
    assert sentence in explored.texts(circuit.render(explored.page(db, view="circuit", **asked)))


def test_hostile_texts_stay_texts_and_little_is_sent(tmp_path):
    hostile = explored.HOSTILE
    db = explored.store(tmp_path / "s.nrm", labels=[hostile] * 12, target=1, key=hostile + "{}")
    (choice,) = groups.choices(db)
    page = explored.page(db, view="circuit", where=choice.where, edges=9)
    text, _ = edge(circuit.graph_of(page))
    page = explored.page(db, view="circuit", where=choice.where, edges=9, edge=text)
    view = circuit.render(page)
    sent = json.dumps(html.Div(view), cls=plotly.utils.PlotlyJSONEncoder)
    assert len(sent) < 200_000
    figures = json.dumps(
        [explored.figure(view, name) for name in ("circuit", "errors")],
        cls=plotly.utils.PlotlyJSONEncoder,
    )
    assert "<b onload" not in figures
    assert "<script" not in figures
    assert explored.texts(view).count(tame(hostile, 40)) > 12
    assert "dangerously" not in sent
