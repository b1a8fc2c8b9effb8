"""Graphs in the formats of other programs, read back with theirs."""

from __future__ import annotations

import csv
import json
import math
from typing import TYPE_CHECKING, Any

import duckdb
import networkx as nx
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.attribution_schema import valid
from hypothesis import given, settings
from hypothesis import strategies as st

from nrm_graph.errors import InputError
from nrm_graph.graphs.formats import to_arrow, write_graph
from nrm_graph.graphs.formats.attribution_json import attribution_graph
from nrm_graph.graphs.formats.columns import flat

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.smoke

ODD = 'a "quoted", <b> & \u00e9\u732b; \n\\x'


def circuit() -> nx.DiGraph:
    """Graph like a circuit: pseudo-units, NumPy scalars, None, NaN, tuples, odd names."""
    graph = nx.DiGraph(
        share=np.float64(1) / 3,
        inputs=np.int64(7),
        keys=("test-1", "test-2"),
        where=None,
        target=3,
        shapes={"x": (1, 2, 3)},
        title=ODD,
    )
    graph.add_node(
        ("x", 0),
        layer="x",
        unit=0,
        relevance=0.1 + 0.2,
        depth=0,
        position="0, 0, 0",
        name="neuron 0, 0, 0",
        std=None,
        inputs=7,
    )
    graph.add_node(
        ("x", 5),
        layer="x",
        unit=5,
        relevance=-1e-300,
        depth=0,
        position="0, 1, 2",
        name="neuron 0, 1, 2",
        activation=np.float32(0.1),
        inputs=0,
    )
    graph.add_node(
        (ODD, 2), layer=ODD, unit=2, relevance=np.float32(0.7), depth=1, name="unit 2", std=1 / 3
    )
    graph.add_node(
        (ODD, -1),
        layer=f"{ODD} bias",
        unit=-1,
        relevance=0.25,
        depth=1,
        name="bias",
        std=float("nan"),
    )
    graph.add_node((ODD, -2), layer=f"{ODD} stabilizer", unit=-2, relevance=0.0, depth=1)
    graph.add_node(("out", 3), layer="out", unit=3, relevance=1.0, depth=2, name="neuron 3")
    graph.add_edge(("x", 0), (ODD, 2), relevance=0.1, agreement=1, top_share=0.5)
    graph.add_edge(("x", 5), (ODD, 2), relevance=-2 / 3, agreement=0.5, std=None)
    graph.add_edge((ODD, -1), (ODD, 2), relevance=0.25)
    graph.add_edge((ODD, -2), (ODD, 2), relevance=5e-324)
    graph.add_edge((ODD, 2), ("out", 3), relevance=1 - 2**-53)
    return graph


def expected(data: dict[str, Any]) -> dict[str, Any]:
    """Attributes as formats of scalars hold them: what is not there is left out."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in data.items()}
    return {
        k: v
        for k, v in plain.items()
        if v is not None and not (isinstance(v, float) and math.isnan(v))
    }


def ident(node: tuple[str, int]) -> str:
    return f"{node[0]}:{node[1]}"


# XML


@pytest.mark.parametrize("form", ["graphml", "gexf"])
def test_xml_is_read_back_by_networkx(tmp_path: Path, form: str) -> None:
    graph = circuit()
    path = tmp_path / f"c.{form}"
    assert write_graph(graph, path) == [path]
    again = nx.read_graphml(path) if form == "graphml" else nx.read_gexf(path)
    assert set(again) == {ident(node) for node in graph}
    assert again.is_directed()
    for node, data in graph.nodes(data=True):
        found = dict(again.nodes[ident(node)])
        if form == "gexf":
            assert found.pop("label") == f"{node[0]} {data.get('name', node[1])}"
        assert found == expected(data)
    assert set(again.edges) == {(ident(a), ident(b)) for a, b in graph.edges}
    for a, b, data in graph.edges(data=True):
        found = dict(again.edges[ident(a), ident(b)])
        if form == "gexf":
            assert found.pop("weight") == abs(data["relevance"])
            found.pop("id")
        assert found == expected(data)
        assert all(type(v) is float for v in found.values())  # agreement is 1 here, 0.5 there
    facts = {**graph.graph, "share": 1 / 3, "keys": ["test-1", "test-2"]}
    facts["shapes"] = {"x": [1, 2, 3]}
    if form == "graphml":
        read = again.graph
        assert {"share", "inputs", "keys", "target", "shapes", "title"} <= set(read)
        assert "where" not in read
        assert read["share"] == 1 / 3
        assert read["title"] == ODD
        assert json.loads(read["keys"]) == facts["keys"]
        assert json.loads(read["shapes"]) == facts["shapes"]
    else:
        import xml.etree.ElementTree as ET

        (text,) = ET.parse(path).getroot().iter("{http://www.gexf.net/1.2draft}description")
        assert json.loads(text.text or "") == facts


@pytest.mark.parametrize("form", ["graphml", "gexf"])
@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\r", "\ufffe", "\ud800"])
@pytest.mark.parametrize("where", ["layer", "name", "attribute", "title"])
def test_xml_refuses_what_it_cannot_hold(
    tmp_path: Path, form: str, letter: str, where: str
) -> None:
    graph = nx.DiGraph()
    data = {"layer": "x", "unit": 0, "relevance": 0.5, "depth": 0}
    if where == "title" and form == "gexf":
        return  # escaped in JSON text
    if where == "title":
        graph.graph["title"] = letter
    if where == "name":
        data["name"] = letter
    if where == "attribute":
        data[letter] = 1
    graph.add_node((letter if where == "layer" else "x", 0), **data)
    with pytest.raises(InputError, match=r"for which XML has no form; choose \.json or \.parquet"):
        write_graph(graph, tmp_path / f"c.{form}")
    assert not list(tmp_path.iterdir())


# Tables


def test_arrow_and_parquet_have_the_same_numbers(tmp_path: Path) -> None:
    graph = circuit()
    nodes, edges = to_arrow(graph)
    assert nodes.num_rows == 6
    for (layer, unit), row in zip(graph, nodes.to_pylist(), strict=True):
        data = expected(graph.nodes[layer, unit]) | {"layer": layer, "unit": unit}
        assert {k: v for k, v in row.items() if v is not None} == data
    for row, (src, dst, data) in zip(edges.to_pylist(), graph.edges(data=True), strict=True):
        assert ((row.pop("src_layer"), row.pop("src_unit")), row.pop("dst_layer")) == (src, dst[0])
        assert row.pop("dst_unit") == dst[1]
        assert {k: v for k, v in row.items() if v is not None} == expected(data)
    paths = write_graph(graph, tmp_path / "c.parquet")
    assert [path.name for path in paths] == ["c.nodes.parquet", "c.edges.parquet"]
    for path, table in zip(paths, (nodes, edges), strict=True):
        read = pq.read_table(path)
        assert read.equals(table)
        assert json.loads(read.schema.metadata[b"graph"])["keys"] == ["test-1", "test-2"]
    found = duckdb.sql(
        f"SELECT count(*), sum(n.relevance) FROM '{paths[1]}' e JOIN '{paths[0]}' n "
        "ON (e.src_layer, e.src_unit) = (n.layer, n.unit)"
    ).fetchall()
    assert found[0] == (5, pytest.approx(0.3 - 1e-300 + 0.25 + float(np.float32(0.7)), abs=1e-15))
    frame = pd.read_parquet(paths[1])
    assert frame["relevance"].tolist() == [r for *_, r in graph.edges(data="relevance")]


# Neo4j


def imported(path: Path) -> list[dict[str, Any]]:
    """Read a file as the documentation of Neo4j's importer says: types are in the header."""
    parse = {
        "": str,
        "string": str,
        "long": int,
        "double": float,
        "boolean": lambda v: v == "true",
        "ID": str,
        "START_ID": str,
        "END_ID": str,
        "TYPE": str,
    }
    found = []
    with path.open(encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream)
        for line in lines:
            row: dict[str, Any] = {}
            assert len(line) == len(header)
            for field, value in zip(header, line, strict=True):
                name, kind = field.split(":")
                if value == "":
                    continue
                if kind == "LABEL":
                    row[":LABEL"] = value.split(";")
                elif kind.endswith("[]"):
                    known = parse | {"int": int}
                    row[name] = [known[kind[:-2]](item) for item in value.split(";")]
                else:
                    row[name or f":{kind}"] = parse[kind](value)
            found.append(row)
    return found


def test_neo4j_files(tmp_path: Path) -> None:
    graph = circuit()
    nodes, edges, facts = write_graph(graph, tmp_path / "c.neo4j.csv")
    assert [p.name for p in (nodes, edges, facts)] == [
        "c.nodes.csv",
        "c.relationships.csv",
        "c.graph.csv",
    ]
    assert nodes.read_text().startswith(":ID,:LABEL,layer:string,unit:long,relevance:double,depth")
    assert edges.read_text().startswith(":START_ID,:END_ID,:TYPE,relevance:double,agreement:double")
    labels = [["Unit"]] * 3 + [["Pseudo", "Bias"], ["Pseudo", "Stabilizer"], ["Unit"]]
    for row, node, label in zip(imported(nodes), graph, labels, strict=True):
        assert row.pop(":ID") == ident(node)
        assert row.pop(":LABEL") == label
        data = expected(graph.nodes[node]) | {"layer": node[0]}
        if "position" in data:
            data["position"] = [int(i) for i in data["position"].split(", ")]
        assert row == data
    for row, (src, dst, data) in zip(imported(edges), graph.edges(data=True), strict=True):
        assert (row.pop(":START_ID"), row.pop(":END_ID")) == (ident(src), ident(dst))
        assert row.pop(":TYPE") == "FLOWS_TO"
        assert row == expected(data)
    (row,) = imported(facts)
    assert json.loads(row.pop("shapes")) == {"x": [1, 2, 3]}
    assert row == {
        ":ID": "graph",
        ":LABEL": ["Graph"],
        "share": 1 / 3,
        "inputs": 7,
        "keys": ["test-1", "test-2"],
        "target": 3,
        "title": ODD,
    }


def test_neo4j_refuses_what_its_importer_would_divide(tmp_path: Path) -> None:
    graph = nx.DiGraph(keys=("a", "b;c"))
    with pytest.raises(InputError, match=r"'b;c' among the keys cannot be one item of an array"):
        write_graph(graph, tmp_path / "c.neo4j.csv")
    graph = nx.DiGraph()
    graph.add_node(("x", 0), **{"a:int": "1"})
    with pytest.raises(InputError, match="names of attributes without ':', found 'a:int'"):
        write_graph(graph, tmp_path / "c.neo4j.csv")
    assert not list(tmp_path.iterdir())


def test_attribution_graph(tmp_path: Path) -> None:
    graph = circuit()
    write_graph(graph, tmp_path / "c.attribution.json")
    data = json.loads((tmp_path / "c.attribution.json").read_text())
    valid(data)
    assert data["metadata"]["prompt"] == ODD
    assert data["metadata"]["slug"] == "a-quoted-b-x"
    assert data["metadata"]["generation_settings"]["keys"] == ["test-1", "test-2"]
    assert data["metadata"]["prompt_tokens"] == [
        "(absorbed)",
        "neuron 0, 0, 0",
        "neuron 0, 1, 2",
        "(units)",
    ]
    short = [
        (n["node_id"], n["feature"], n["layer"], n["ctx_idx"], n["feature_type"], n["activation"])
        for n in data["nodes"]
    ]
    assert short == [
        ("E_0_1", 0, "E", 1, "embedding", None),
        ("E_5_2", 5, "E", 2, "embedding", float(np.float32(0.1))),
        ("0_2_3", 5, "0", 3, "cross layer transcoder", None),  # Cantor pair of 0 and 2
        ("0_-1_0", -1, "0", 0, "mlp reconstruction error", None),
        ("0_-2_0", -2, "0", 0, "mlp reconstruction error", None),
        ("1_3_3", 3, "1", 3, "logit", None),
    ]
    assert data["nodes"][5]["clerp"] == 'Output "neuron 3" (p=1.000)'
    assert data["nodes"][5]["is_target_logit"]
    held = float(np.float32(0.7))
    assert [n["influence"] for n in data["nodes"]] == [
        1.0,
        1.0,
        held / (held + 0.25),
        1.0,
        1.0,
        None,
    ]
    for node, (name, given_) in zip(data["nodes"], graph.nodes(data=True), strict=True):
        assert node["nrm_graph"] == expected(given_) | {"layer": name[0], "unit": name[1]}
    ids = {name: n["node_id"] for name, n in zip(graph, data["nodes"], strict=True)}
    for link, (src, dst, given_) in zip(data["links"], graph.edges(data=True), strict=True):
        assert (link["source"], link["target"]) == (ids[src], ids[dst])
        assert link["weight"] == given_["relevance"]
        assert link["nrm_graph"] == expected(given_)


def test_attribution_graph_of_tokens() -> None:
    graph = nx.DiGraph(where="label = 'cat'")
    for unit, (place, token) in enumerate([(0, "a"), (0, "a"), (2, "a")]):
        graph.add_node(("ids", unit), relevance=0.5, depth=0, token=token, token_index=place)
    graph.add_node(("mlp", 1), relevance=0.5, depth=1, token="cat", token_index=1)
    graph.add_node(("head", 1), relevance=0.5, depth=1)
    graph.add_node(("out", 0), relevance=0.75, depth=2)
    graph.add_node(("out", 1), relevance=0.25, depth=2)
    data = attribution_graph(flat(graph))
    valid(data)
    assert data["metadata"]["prompt"] == "label = 'cat'"
    assert data["metadata"]["prompt_tokens"] == ["(absorbed)", "a", "cat", "a", "(units)"]
    assert [node["ctx_idx"] for node in data["nodes"]] == [1, 1, 3, 2, 4, 4, 4]
    assert [node["token_prob"] for node in data["nodes"]] == [0, 0, 0, 0, 0, 0.75, 0.25]


# All of them

FORMATS = ["graphml", "gexf", "json", "attribution.json", "parquet", "neo4j.csv"]


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_graph(tmp_path: Path, form: str) -> None:
    for path in write_graph(nx.DiGraph(), tmp_path / f"c.{form}"):
        assert path.stat().st_size
    if form == "graphml":
        assert not len(nx.read_graphml(tmp_path / "c.graphml"))
    if form == "gexf":
        assert not len(nx.read_gexf(tmp_path / "c.gexf"))
    if form == "parquet":
        names = pq.read_table(tmp_path / "c.edges.parquet").column_names
        assert names == ["src_layer", "src_unit", "dst_layer", "dst_unit", "relevance"]
    if form == "neo4j.csv":
        assert imported(tmp_path / "c.nodes.csv") == []
    if form == "attribution.json":
        valid(json.loads((tmp_path / "c.attribution.json").read_text()))


@pytest.mark.parametrize("form", FORMATS)
def test_refusals_are_one_sentence(tmp_path: Path, form: str) -> None:
    with pytest.raises(InputError, match=r"^cannot write .*: there is no folder .*create it first"):
        write_graph(circuit(), tmp_path / "no" / f"c.{form}")
    (tmp_path / f"folder.{form}").mkdir()
    with pytest.raises(InputError, match=r"^cannot write .*: it is a folder$"):
        write_graph(circuit(), tmp_path / f"folder.{form}")
    if form == "json":
        return  # node-link holds any names
    with pytest.raises(InputError, match=r"expected nodes \(layer name, unit\).*found 'x:0'"):
        write_graph(nx.DiGraph([("x:0", "y:0")]), tmp_path / f"c.{form}")
    lone = nx.DiGraph()
    lone.add_node(("\ud800", 0), relevance=1.0, depth=0)
    if form != "attribution.json":  # JSON escapes it
        with pytest.raises(InputError, match=r"no form|is no text"):
            write_graph(lone, tmp_path / f"c.{form}")


def test_a_name_must_have_more_than_a_suffix(tmp_path: Path) -> None:
    for name in (".gexf", ".neo4j.csv", "c.csv", "c"):
        with pytest.raises(InputError, match="expected a name that ends in"):
            write_graph(circuit(), tmp_path / name)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"))
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.tuples(texts, st.integers(-4, 2**31 - 1))


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(names, st.tuples(numbers, texts.filter(bool)), max_size=5), st.data())
def test_any_names_and_numbers_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    nodes: dict[tuple[str, int], tuple[float, str]],
    data: st.DataObject,
) -> None:
    graph = nx.DiGraph()
    for node, (relevance, name) in nodes.items():
        graph.add_node(node, relevance=relevance, name=name, depth=1)
    for node in nodes:
        for other in data.draw(st.sets(st.sampled_from(list(nodes)), max_size=2)):
            graph.add_edge(node, other, relevance=data.draw(numbers))
    folder = tmp_path_factory.mktemp("any")
    for form in FORMATS:
        write_graph(graph, folder / f"c.{form}")
    wanted = {ident(n): (relevance, name) for n, (relevance, name) in nodes.items()}
    edges = {(ident(a), ident(b)): r for a, b, r in graph.edges(data="relevance")}
    for again in (nx.read_graphml(folder / "c.graphml"), nx.read_gexf(folder / "c.gexf")):
        assert {n: (d["relevance"], d["name"]) for n, d in again.nodes(data=True)} == wanted
        assert {(a, b): r for a, b, r in again.edges(data="relevance")} == edges
    rows = pq.read_table(folder / "c.nodes.parquet").to_pylist()
    assert {f"{r['layer']}:{r['unit']}": (r["relevance"], r["name"]) for r in rows} == wanted
    rows = imported(folder / "c.nodes.csv")
    assert {r[":ID"]: (r["relevance"], r["name"]) for r in rows} == wanted
    rows = imported(folder / "c.relationships.csv")
    assert {(r[":START_ID"], r[":END_ID"]): r["relevance"] for r in rows} == edges
    read = json.loads((folder / "c.attribution.json").read_text())
    found = [(n["nrm_graph"]["relevance"], n["nrm_graph"]["name"]) for n in read["nodes"]]
    assert found == list(nodes.values())
    assert sorted(link["weight"] for link in read["links"]) == sorted(edges.values())
