"""What is copied gives the numbers of the view when it is run, and exports can be read."""

import csv
import io
import json
import xml.etree.ElementTree as ET

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pytest
from helpers import explored, small_convolution
from PIL import Image

import nrm_graph as ng
from nrm_graph.errors import InputError, QueryError
from nrm_graph.explorer import as_python, circuit, exports, flow, gallery
from nrm_graph.explorer.as_python import python_of
from nrm_graph.explorer.as_sql import sql_of
from nrm_graph.explorer.groups import edge_text
from nrm_graph.explorer.input_filters import filters_of


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    return explored.store(tmp_path_factory.mktemp("exports") / "s.nrm", target=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A store of single neurons of a network that has channels."""
    x = small_convolution.image()
    inputs = [
        {"input": x * (1 + i / 5) + i / 9, "key": f"p{i}", "label": "ab"[i % 2]} for i in range(6)
    ]
    path = tmp_path_factory.mktemp("pictures") / "p.nrm"
    options = {"target": 1, "resolution": "neuron", "composite": "epsilon", "progress": False}
    return ng.extract(small_convolution.program(), inputs, path, **options)


def run(page):
    """What the copied Python computes, by name."""
    names = {}
    exec(python_of(page), names)
    return names


def same_graphs(one, other):
    assert dict(one.nodes(data="relevance")) == dict(other.nodes(data="relevance"))
    assert {(a, b): r for a, b, r in one.edges(data="relevance")} == {
        (a, b): r for a, b, r in other.edges(data="relevance")
    }


@pytest.mark.smoke
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"event": "0[2] & ~input[2]"},
        {"graph": "connected", "sign": "positive", "threshold": 0.01, "target": "2"},
        {"sign": "negative", "nodes": 5, "watch": "0 2"},
    ],
)
def test_python_of_a_flow(db, asked):
    page = explored.page(db, view="flow", input="k3", **asked)
    names = run(page)
    same_graphs(names["graph"], flow.graph_of(page))
    m = flow.Side(page, "flow").measure
    np.testing.assert_array_equal(names["heat"]["input"], m.marginal("input", by="neuron"))
    assert names["layers"] == m.report()


def test_python_of_two_flows_and_of_channels(db, pictures):
    page = explored.page(db, view="flow", input="k1", second="k2", event="0[1]")
    names = run(page)
    for number, key in (("", "k1"), ("2", "k2")):
        m = db.measure(key).given(ng.Layer("0")[1])
        assert names[f"layers{number}"] == m.report()
    page = explored.page(pictures, view="flow", input="p1", event="3[1]")
    same_graphs(run(page)["graph"], flow.graph_of(page))


def test_python_of_circuits_and_contrasts(db, pictures, tmp_path, monkeypatch):
    for name in ("SPLITS", "RESAMPLES", "DRAWS"):
        monkeypatch.setattr(as_python, name, 5)
    page = explored.page(db, view="circuit", where="label = 'a'", edges=9)
    text = edge_text(circuit.table_of(page).to_pylist()[0])
    page = explored.page(db, **vars(page.address) | {"edge": text, "computed": "stability"})
    names = run(page)
    same_graphs(names["graph"], circuit.graph_of(page))
    shown = explored.cells(circuit.render(page), "circuit-inputs")[1:]
    assert names["inputs"]["key"].to_pylist() == [row[0] for row in shown]
    assert (
        names["stability"].jaccard == db.stability("label = 'a'", top=9, splits=5, draws=5).jaccard
    )
    other = explored.store(tmp_path / "other.nrm", target=2, scale=0.5)
    for asked in ({"against": "label = 'b'"}, {"other": 1}, {"by": "0=token"}, {"by": "stored"}):
        page = explored.page(db, other, view="circuit", where="label = 'a'", edges=9, **asked)
        same_graphs(run(page)["graph"], circuit.graph_of(page))
    page = explored.page(pictures, view="circuit", where="true -- all", edges=9)
    assert run(page)["graph"].graph["by"] == dict.fromkeys(("input", "0", "3"), "channel")
    page = explored.page(db, view="circuit", where="label = 'a'", edges=9, computed="faithfulness")
    assert len(run(page)["curves"].keys) == 2  # a quarter of six


def test_python_of_the_others(db):
    page = explored.page(db, view="sql", query="SELECT \"key\", 'it''s\n\\n' AS t\nFROM inputs")
    assert run(page)["rows"] == db.sql(page.address.query).to_arrow_table()
    page = explored.page(db, view="unit", unit="0[1]", where="label = 'a'")
    assert run(page)["references"].table == exports._references(page).table
    page = explored.page(db, view="gallery", label="a")
    assert run(page)["inputs"]["key"].to_pylist() == [f"k{i}" for i in range(6)]
    for view in ("flow", "unit", "circuit", "sql"):  # nothing is chosen
        assert run(explored.page(db, view=view))["db"].path == db.path


@pytest.mark.parametrize("by", ["", "stored"])
def test_sql_of_circuits(db, pictures, by):
    for store in (db, pictures):
        page = explored.page(store, view="circuit", where="label = 'a' -- cats", edges=12, by=by)
        rows = store.sql(sql_of(page)).to_arrow_table()
        table = circuit.table_of(page).select(rows.column_names)
        key = ("src_layer", "src_unit", "dst_layer", "dst_unit")
        expected = {tuple(r[k] for k in key): r for r in table.to_pylist()}
        assert len(rows) == len(table) > 5
        for row in rows.to_pylist():
            shown = expected[tuple(row[k] for k in key)]
            assert row["relevance"] == pytest.approx(shown["relevance"], rel=1e-6)
            assert row["stderr"] == pytest.approx(shown["stderr"], rel=1e-5, abs=1e-9)
            assert row["inputs"] == shown["inputs"]


def test_sql_of_contrasts(pictures):
    asked = {"where": "label = 'a'", "against": "label = 'b'", "edges": 12}
    page = explored.page(pictures, view="circuit", **asked)
    rows = pictures.sql(sql_of(page)).to_arrow_table()
    table = circuit.table_of(page)
    assert rows["difference"].to_pylist() == pytest.approx(table["relevance"].to_pylist(), rel=1e-5)
    for name in ("mean_a", "mean_b"):
        assert rows[name].to_pylist() == pytest.approx(table[name].to_pylist(), rel=1e-5)
    two = explored.page(pictures, pictures, view="circuit", where="label = 'a'", other=1)
    assert sql_of(two) is None
    assert "ng.join" in exports.refused(two)


def test_sql_of_flows_and_units(db, pictures):
    for store, key in ((db, "k2"), (pictures, "p2")):
        page = explored.page(store, view="flow", input=key)
        rows = store.sql(sql_of(page)).fetchall()
        relevance = {(layer, unit): r for layer, unit, r in rows}
        for (layer, unit), value in flow.graph_of(page).nodes(data="relevance"):
            if unit >= 0:
                assert relevance[layer, unit] == pytest.approx(value, rel=1e-4, abs=1e-7)
        assert sql_of(explored.page(store, view="flow", input=key, event="0[1]")) is None
    for unit, store in (("0[1]", db), ("3[2]", pictures), ("3[2, 0, 1]", pictures)):
        page = explored.page(store, view="unit", unit=unit, where="label = 'a' -- those")
        found = exports._references(page).table if store is db else None
        found = (
            found
            or store.references(
                ng.Layer(unit[0])[tuple(map(int, unit[2:-1].split(", ")))], k=8, where="label = 'a'"
            ).table
        )
        rows = store.sql(sql_of(page)).to_arrow_table()
        assert rows["key"].to_pylist() == found["key"].to_pylist()
        assert rows["relevance"].to_pylist() == pytest.approx(found["relevance"].to_pylist())
    assert sql_of(explored.page(pictures, view="unit", unit="3[2]", ranked="activation")) is None
    assert sql_of(explored.page(db, view="unit", unit="0")) is None


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"label": "a"},
        {"where": "target = 2 -- two", "text": "K1"},
        {"prediction": "2"},
        {"outcome": "wrong"},
        {"outcome": "right", "label": "0"},
    ],
)
def test_sql_of_galleries(tmp_path, db, asked):
    store = explored.store(tmp_path / "s.nrm", labels="012301230123") if "out" in str(asked) else db
    page = explored.page(store, view="gallery", **asked)
    rows = store.sql(sql_of(page)).to_arrow_table()
    shown = gallery._Question(page, filters_of(page)).rows(0)
    assert rows["key"].to_pylist() == [row["key"] for row in shown]
    written = exports.export(page, "csv")[2]
    assert pc.read_csv(io.BytesIO(written))["key"].to_pylist() == rows["key"].to_pylist()


def test_a_condition_cannot_leave_its_place(db):
    for where in ("true) OR (false", "1 = 1) UNION SELECT 1 --", "x", "true; SELECT 1"):
        page = explored.page(db, view="gallery", where=where)
        with pytest.raises(QueryError):
            db.sql(sql_of(page))


def test_graphs_are_written_and_read_back(db):
    for asked in (
        {"view": "flow", "input": "k3", "event": "0[2]"},
        {"view": "circuit", "where": "true"},
    ):
        page = explored.page(db, **asked)
        graph = (flow if asked["view"] == "flow" else circuit).graph_of(page)
        name, kind, data = exports.export(page, "graphml")
        again = nx.read_graphml(io.BytesIO(data))
        assert again.number_of_edges() == graph.number_of_edges()
        assert kind == "application/graphml+xml"
        edge, relevance = next(((a, b), r) for a, b, r in graph.edges(data="relevance"))
        written = again.edges[tuple(f"{layer}:{unit}" for layer, unit in edge)]
        assert written["relevance"] == pytest.approx(relevance)
        name, kind, data = exports.export(page, "json")
        assert name.endswith(".attribution.json")
        assert {"nodes", "links"} <= set(json.loads(data))
        if asked["view"] == "flow":
            name, kind, data = exports.export(page, "svg")
            assert ET.fromstring(data).tag.endswith("svg")
        else:
            name, kind, data = exports.export(page, "png")
            assert Image.open(io.BytesIO(data)).width > 300
        name, kind, data = exports.export(page, "csv")
        assert len(pc.read_csv(io.BytesIO(data))) > 1


def test_the_page_of_a_graph_is_written(pictures):
    name, kind, data = exports.export(explored.page(pictures, view="flow", input="p1"), "html")
    assert (name, kind) == ("p-flow-p1.html", "text/html")
    assert data.lstrip().lower().startswith(b"<!doctype html>")


def test_pictures_of_flows_and_units(pictures):
    page = explored.page(pictures, view="flow", input="p1", nodes=6)
    plain = explored.page(pictures, view="flow", input="p1", nodes=6, graph="connected")
    sizes = [len(exports.export(p, "svg")[2]) for p in (page, plain)]
    assert b"<image" in exports.export(page, "svg")[2]  # the units' maps
    assert min(sizes) > 1000
    page = explored.page(pictures, view="unit", unit="3[2]")
    assert Image.open(io.BytesIO(exports.export(page, "png")[2])).height > 100
    rows = list(csv.DictReader(io.StringIO(exports.export(page, "csv")[2].decode())))
    assert [row["key"] for row in rows] == exports._references(page).table["key"].to_pylist()


@pytest.mark.parametrize("kind", ["bar", "line"])
def test_pictures_of_charts(db, kind):
    query = (
        "SELECT label || ' $x$' AS label, count(*) AS n, sum(target) AS s FROM inputs GROUP BY 1"
    )
    page = explored.page(db, view="sql", query=query, chart=kind)
    assert list(explored.hrefs(exports.bar(page))) == ["PNG", "SVG", "CSV"]
    assert Image.open(io.BytesIO(exports.export(page, "png")[2])).width > 500
    page = explored.page(db, view="sql", query="SELECT i FROM range(9000) t(i)", chart=kind)
    assert ET.fromstring(exports.export(page, "svg")[2]).tag.endswith("svg")


@pytest.mark.parametrize(
    ("asked", "form", "sentence"),
    [
        ({"view": "gallery"}, "graphml", "the gallery view has nothing to write as graphml"),
        (
            {"view": "sql", "query": "SELECT 1"},
            "png",
            "SQL view has nothing to write as png",
        ),
        ({"view": "sql"}, "csv", "a query: write one"),
        ({"view": "flow"}, "png", "an input: choose one"),
        ({"view": "unit", "unit": "0"}, "png", "one unit"),
        ({"view": "gallery"}, "exe", "there is no export 'exe'"),
        ({"view": "circuit", "where": "label = 'none'"}, "csv", "no input is chosen"),
        ({"view": "flow", "input": "nobody"}, "json", "nobody"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(db, asked, form, sentence):
    with pytest.raises(InputError, match=sentence):
        exports.export(explored.page(db, **asked), form)


def test_formulas_are_no_formulas_in_spreadsheets(tmp_path):
    page = explored.page(
        explored.store(tmp_path / "s.nrm", labels=["=1+1", "-2", "+a", "@b", "-c"] * 2, target=1),
        view="sql",
        query="SELECT label, -1 AS n, -0.5 AS x, [1, 2] AS l FROM inputs ORDER BY key LIMIT 5",
    )
    rows = list(csv.reader(io.StringIO(exports.export(page, "csv")[2].decode())))
    assert [row[0] for row in rows] == ["label", "'=1+1", "-2", "'+a", "'@b", "'-c"]
    assert rows[1][1:] == ["-1", "-0.5", "[1, 2]"]


def test_hostile_texts(tmp_path):
    hostile = explored.HOSTILE + '\n"""\\'
    store = explored.store(tmp_path / "s.nrm", labels=[hostile] * 12, target=1, key=hostile + "{}")
    where = "label = '" + hostile.replace("'", "''") + "'"
    for asked in (
        {"view": "gallery", "label": hostile, "text": hostile},
        {"view": "flow", "input": hostile + "3"},
        {"view": "circuit", "where": where},
        {"view": "sql", "query": f"SELECT key FROM inputs WHERE {where}"},
    ):
        page = explored.page(store, **asked)
        names = run(page)
        assert set(names) & {"graph", "rows", "inputs"}
        assert len(store.sql(sql_of(page)).to_arrow_table()) > 0
        name, _, data = exports.export(page, "csv")
        assert name.isascii()
        assert not set(name) & set("/\\\"'<>;\n`= ")
        assert isinstance(
            pc.read_csv(io.BytesIO(data), parse_options=pc.ParseOptions(newlines_in_values=True)),
            pa.Table,
        )
        bar = exports.bar(page)
        assert python_of(page) in explored.texts(bar)
        assert all(href.startswith("/export/") for href in explored.hrefs(bar).values())
    page = explored.page(store, view="circuit", where=where)
    assert b"<b onload" not in exports.export(page, "svg")[2]


def test_the_bar_offers_what_fits(db):
    def offered(**asked):
        bar = exports.bar(explored.page(db, **asked))
        return list(explored.hrefs(bar)), explored.texts(bar)

    assert offered(view="gallery")[0] == ["CSV"]
    forms = ["PNG", "SVG", "CSV", "GraphML", "attribution JSON", "HTML"]
    names, text = offered(view="flow", input="k1", event="0[1]")
    assert names == forms
    assert "conditioned relevance stands in no table" in text
    assert offered(view="flow") == ([], offered(view="flow")[1])
    assert offered(view="circuit", where="label = 'a'")[0] == forms
    assert offered(view="unit", unit="0[1]")[0] == ["PNG", "SVG", "CSV"]
    assert offered(view="flow", input="nobody", target="x y")[0] == forms  # the view says so
