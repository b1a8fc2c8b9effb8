"""The commands over many inputs: circuit, contrast, compact, delete."""

from __future__ import annotations

import csv
import io
import json
import shutil

import networkx as nx
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.cli.main import main

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    rows = [
        {"input": torch.rand(4) + (i % 2), "key": f"k{i}", "label": "ab"[i % 2]} for i in range(10)
    ]
    path = tmp_path_factory.mktemp("circuits") / "s.nrm"
    with ng.extract(
        net, rows, path, target=[0, 1], classes=["cat", "dog", "cow"], progress=False
    ) as db:
        db.materialize(ng.Layer("0")[1], name="given_b", progress=False)
    return path


@pytest.fixture
def store(made, tmp_path):
    path = tmp_path / "s.nrm"
    shutil.copytree(made, path)
    return path


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_circuit_prints_what_the_library_says(store, capsys):
    code, out, _ = run(
        capsys, "circuit", store, "--where", "label = 'a'", "--target", "dog", "--format", "json"
    )
    assert code == 0
    with ng.open(store) as db:
        graph = db.circuit("label = 'a'", target=1)
    rows = json.loads(out)
    assert len(rows) == graph.number_of_edges()
    for row in rows:
        src, dst = (row["src_layer"], row["src_unit"]), (row["dst_layer"], row["dst_unit"])
        for name in ("relevance", "std", "stderr", "inputs", "top_share"):
            assert row[name] == pytest.approx(graph.edges[src, dst][name], rel=1e-9)
    sizes = [abs(row["relevance"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)


def test_circuit_for_people(store, capsys):
    code, out, _ = run(capsys, "circuit", store, "--target", "1", "--top", "3")
    assert code == 0
    assert "target      1 (dog)" in out
    assert "absorbed" in out
    assert "  the edges shown, of the sum of |mean relevance| over all edges\n" in out
    assert out.count("\n") == 7 + 1 + 2 + 2  # facts, a blank line, two headings, rows
    with ng.open(store) as db:
        facts = db.circuit(target=1, top=3).graph
        strongest = db.circuit(target=1, top=3, connected=False).graph
    assert f"share kept  {facts['share']:.6g}" in out
    assert f"strongest   would keep {facts['share_strongest']:.6g}" in out
    code, out, _ = run(capsys, "circuit", store, "--target", "1", "--top", "3", "--no-connected")
    assert code == 0
    assert out.count("\n") == 6 + 1 + 2 + 3
    assert f"share kept  {strongest['share']:.6g}" in out
    assert strongest["share"] == pytest.approx(facts["share_strongest"])


def test_circuit_under_a_condition(store, capsys):
    options = ("circuit", store, "--target", "1", "--format", "csv")
    by_name = run(capsys, *options, "--given", "given_b")
    by_event = run(capsys, *options, "--given", "0[1]")
    assert by_name[0] == by_event[0] == 0
    named, same = (list(csv.DictReader(io.StringIO(out))) for _, out, _ in (by_name, by_event))
    assert [row["src_unit"] for row in named] == [row["src_unit"] for row in same]
    for row, other in zip(named, same, strict=True):
        assert float(row["std"]) == pytest.approx(float(other["std"]), rel=1e-6, abs=1e-6)
    code, out, _ = run(capsys, "circuit", store, "--target", "1", "--given", "0[1]", "--per-input")
    assert code == 0
    assert "undefined" in out


def test_circuit_as_a_file(store, tmp_path, capsys):
    file = tmp_path / "c.graphml"
    code, out, _ = run(capsys, "circuit", store, "--target", 1, "--output", file)
    assert code == 0
    assert str(file) in out
    with ng.open(store) as db:
        expected = db.circuit(target=1).number_of_edges()
    assert nx.read_graphml(file).number_of_edges() == expected > 10


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 3, "explain 2 different targets: 0 (cat) (10), 1 (dog) (10)"),
        (("--target", "cow"), 3, "no input is chosen"),
        (("--target", "1=1,0=-1"), 3, "no input is chosen"),
        (("--where", "label"), 7, "Conversion Error"),
        (("--where", "true) OR (true"), 7, "one SQL condition over inputs"),
        (("--target", "1", "--layers", "nix"), 5, "there is no layer 'nix'"),
        (("--target", "1", "--layers", "input,2"), 3, "no edges between"),
        (("--target", "1", "--top", "1000000"), 3, "at most 999,999"),
        (("--target", "1", "--given", "0[2]"), 3, "not materialized"),
        (("--target", "1", "--given", "given_c"), 3, "no condition 'given_c'"),
        (("--target", "1", "--format", "csv", "--output", "c.json"), 3, "leave it out"),
        (("--target", "1", "--given", "0[9"), 5, ""),
        (("--target", "1", "--output", "/nix/c.svg"), 3, "there is no folder"),
        (("--target", "1", "--output", "c.xyz"), 3, "expected a name that ends in"),
    ],
)
def test_circuit_refuses(store, capsys, options, code, message):
    found, _, err = run(capsys, "circuit", store, *options)
    assert found == code
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.smoke
def test_contrast(store, tmp_path, capsys):
    file = tmp_path / "d.csv"
    options = ("contrast", store, "label = 'a'", "label = 'b'", "--target", "1")
    code, out, _ = run(capsys, *options)
    assert code == 0
    assert "5 keys (label = 'a') minus 5 (label = 'b')" in out
    code, _, _ = run(capsys, *options, "--edges", "7", "--output", file)
    assert code == 0
    with file.open() as text:
        rows = csv.DictReader(text)
        assert rows.fieldnames[:5] == ["src", "src_unit", "dst", "dst_unit", "dst_layer"]
        assert len(list(rows)) == 7
    graph = tmp_path / "d.graphml"
    code, out, _ = run(capsys, *options, "--output", graph)
    assert code == 0
    with ng.open(store) as db:
        difference = db.contrast("label = 'a'", "label = 'b'", target=1).graph()
    assert nx.read_graphml(graph).number_of_edges() == difference.number_of_edges()
    assert out.startswith(f"{graph}: {len(difference)} nodes, ")
    code, _, err = run(capsys, "contrast", store, "label = 'a'", "label = 'b'")
    assert code == 3
    assert "different targets" in err
    code, _, err = run(capsys, "contrast", store, "label = 'a'", "true", "--target", "1")
    assert code == 3


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    rows = [{"input": torch.rand(4), "key": f"k{i}", "label": "ab"[i % 2]} for i in range(8)]
    path = tmp_path_factory.mktemp("bounded") / "s.nrm"
    ng.extract(net, rows, path, target=1, max_edges=20, progress=False).close()
    return path


def test_what_a_bounded_store_leaves_out_is_told_or_computed(bounded, capsys):
    code, out, err = run(capsys, "circuit", bounded, "--top", "15", "--no-connected")
    assert code == 0
    assert "may belong" in out
    code, out, err = run(capsys, "circuit", bounded, "--top", "15")
    assert code == 0
    assert "may belong" not in out
    assert "others may belong in their place" in err
    assert {"low", "high", "missing"} <= set(out.split())
    assert "not stored of every input" in err
    code, out, err = run(capsys, "circuit", bounded, "--top", "15", "--exact")
    assert code == 0
    assert not {"low", "high", "missing"} & set(out.split())
    assert "not stored of every input" not in err
    code, out, _ = run(capsys, "circuit", bounded, "--top", "15", "--exact", "--format", "json")
    with ng.open(bounded) as db:
        graph = db.circuit(top=15, exact=True)
    means = {
        (r["src_unit"], r["dst_layer"], r["dst_unit"]): r["relevance"] for r in json.loads(out)
    }
    assert means == {
        (src[1], *dst): pytest.approx(r) for src, dst, r in graph.edges(data="relevance")
    }
    groups = ("label = 'a'", "label = 'b'")
    _, out, _ = run(capsys, "contrast", bounded, *groups)
    assert "are left out" in out
    code, out, _ = run(capsys, "contrast", bounded, *groups, "--exact")
    assert code == 0
    assert "are left out" not in out


def test_delete_and_compact(store, capsys):
    stale = ng.open(store)
    code, out, _ = run(capsys, "delete", store, "k1", "k2")
    assert code == 0
    assert "deleted 4 inputs of 2 keys" in out
    with ng.open(store) as db:
        assert len(db) == 16
        before = db.sql("SELECT * FROM edges ORDER BY ALL").fetchall()
        code, _, err = run(capsys, "delete", store, "k1")
        assert code == 3
        assert "did you mean k0, k3, k4?" in err
        code, out, _ = run(capsys, "compact", store, "--older-than", "0")
        assert code == 0
        with ng.open(store) as again:
            assert again.sql("SELECT * FROM edges ORDER BY ALL").fetchall() == before
        with pytest.raises(ng.NrmError, match="no longer there: open the store again"):
            stale.sql("SELECT * FROM edges").fetchall()
    stale.close()
    code, _, err = run(capsys, "compact", store, "--older-than", "-1")
    assert code == 3
    assert "older_than must be" in err
