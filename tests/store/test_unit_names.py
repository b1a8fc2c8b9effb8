"""The user's own names of units: written, read without trust, and shown wherever units are."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import nrm_graph as ng
from nrm_graph import plots
from nrm_graph.cli.parser import cli
from nrm_graph.store.format import unit_names
from nrm_graph.store.verify import verify

CONV, HEAD = "0", "3"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    data = [{"input": torch.rand(1, 4, 4), "key": f"k{i}", "label": "ab"[i % 2]} for i in range(6)]
    path = tmp_path_factory.mktemp("names") / "s.nrm"
    options = {"composite": "epsilon", "resolution": {CONV: "channel"}, "progress": False}
    ng.extract(net, data, path, target=0, **options)
    return path


@pytest.fixture
def path(original, tmp_path):
    return shutil.copytree(original, tmp_path / "s.nrm")


@pytest.fixture(scope="module")
def named(original, tmp_path_factory):
    copy = shutil.copytree(original, tmp_path_factory.mktemp("named") / "s.nrm")
    with ng.open(copy) as db:
        nodes = "SELECT unit FROM nodes WHERE layer_id = 1 AND unit >= 0 GROUP BY 1 ORDER BY "
        strongest = db.sql(nodes + "sum(relevance) DESC").fetchall()[0][0]
    ng.name_units(copy, CONV, {strongest: "big eyes"})
    with ng.open(copy) as db:
        yield db, strongest


def texts(figure):
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]


@pytest.mark.smoke
def test_names_come_and_go(path):
    with ng.open(path) as db:
        before = (path / "store.json").read_bytes()
        assert ng.name_units(db, CONV, {1: "eyes", 2: "it's \N{SNOWMAN}"}) == {
            1: "eyes",
            2: "it's \N{SNOWMAN}",
        }
        query = "SELECT unit, name, channel FROM units WHERE layer = '0' ORDER BY unit"
        assert db.sql(query).fetchall() == [(i, None, i) for i in range(3)]
        db.refresh()
        told = [(0, None, 0), (1, "eyes", 1), (2, "it's \N{SNOWMAN}", 2)]
        assert db.sql(query).fetchall() == told
        with db.connect() as con:
            assert con.sql(query).fetchall() == told
        assert db.partitions[1].names == {1: "eyes", 2: "it's \N{SNOWMAN}"}
    assert ng.name_units(path, CONV, {1: None, 0: "ear"}) == {0: "ear", 2: "it's \N{SNOWMAN}"}
    assert ng.name_units(str(path), "1", {0: "", 2: ""}) == {}  # by an alias: the activation
    with ng.open(path) as db:
        assert {n for (n,) in db.sql("SELECT DISTINCT name FROM units").fetchall()} == {None}
        assert db.verify().sound
    assert (path / "store.json").read_bytes() == before


def test_sets_that_are_units_name_them(path):
    assert ng.name_units(path, CONV, {ng.Layer(CONV)[1]: "a", ng.Layer("1")[2, :, :]: "b"}) == {
        1: "a",
        2: "b",
    }
    assert ng.name_units(path, HEAD, {ng.Layer(HEAD)[2]: "c"}) == {2: "c"}
    for event in (ng.Layer(CONV)[1, 0], ng.Layer(CONV)[:2], ng.Layer(CONV)[[]]):
        with pytest.raises(ng.EventError, match="is not one unit of 0"):
            ng.name_units(path, CONV, {event: "x"})
    with pytest.raises(ng.EventError, match="another layer"):
        ng.name_units(path, CONV, {ng.Layer(HEAD)[0]: "x"})


@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[31m", "a\u202eb", " a", "x" * 101, "\u2028", "\ud800", 7, ["a"], True]
)
def test_what_is_no_name_is_refused(path, name):
    with pytest.raises(ng.InputError, match="cannot name unit 1 of 0"):
        ng.name_units(path, CONV, {0: "fine", 1: name})
    assert not (path / "names").exists()


@pytest.mark.parametrize("unit", [3, -1, "1", 1.0, True, None])
def test_what_is_no_unit_is_refused(path, unit):
    with pytest.raises(ng.InputError, match="has the units 0 to 2"):
        ng.name_units(path, CONV, {unit: "x"})
    with pytest.raises(ng.EventError, match="there is no layer"):
        ng.name_units(path, "nowhere", {0: "x"})
    with pytest.raises(ng.StoreError, match="there is no store"):
        ng.name_units(path / "no", CONV, {0: "x"})
    with pytest.raises(ng.InputError, match="must be a mapping"):
        ng.name_units(path, CONV, {})


GOOD = {"format_version": 1, "layer": CONV, "names": {"1": "eyes"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        (GOOD | {"format_version": 2}, "format version 2"),
        (GOOD | {"layer": "2"}, "layer"),
        (GOOD | {"more": 1}, "malformed"),
        (GOOD | {"names": {"3": "x"}}, "units below 3"),
        (GOOD | {"names": {"-1": "x"}}, "malformed"),
        (GOOD | {"names": {"01": "x"}}, "malformed"),
        (GOOD | {"names": {"1": "a\nb"}}, "breaks lines"),
        (GOOD | {"names": {"1": 3}}, "malformed"),
        (GOOD | {"names": [1]}, "malformed"),
    ],
)
def test_hostile_names_are_refused(path, content, message):
    (path / "names").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (path / "names" / "1.json").write_text(text)
    for use in (ng.open, lambda p: ng.name_units(p, CONV, {0: "x"})):
        with pytest.raises(ng.StoreError, match=message):
            use(path)
    (path / "names" / "1.json").write_text(json.dumps(GOOD))
    assert ng.open(path).partitions[1].names == {1: "eyes"}


def test_links_folders_sizes_and_layers_that_are_not_there(path, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.json").write_text(json.dumps(GOOD))
    (path / "names").symlink_to(outside)
    with pytest.raises(ng.StoreError, match="symbolic link"):
        ng.open(path)
    with pytest.raises(ng.StoreError, match="symbolic link"):
        ng.name_units(path, CONV, {0: "x"})
    (path / "names").unlink()
    (path / "names").mkdir()
    (path / "names" / "1.json").symlink_to(outside / "1.json")
    with pytest.raises(ng.StoreError, match="plain file"):
        ng.open(path)
    (path / "names" / "1.json").unlink()
    (path / "names" / "99.json").write_text(json.dumps(GOOD))
    with pytest.raises(ng.StoreError, match="a number below"):
        ng.open(path)
    (path / "names" / "99.json").unlink()
    ng.name_units(path, CONV, {0: "x"})
    monkeypatch.setattr(unit_names, "MAX_BYTES", 10)
    with pytest.raises(ng.StoreError, match="at most 10 bytes"):
        ng.open(path)
    with pytest.raises(ng.InputError, match="name fewer units"):
        ng.name_units(path, HEAD, {0: "x"})


def test_a_write_that_fails_leaves_the_names_of_before(path, monkeypatch):
    ng.name_units(path, CONV, {0: "old"})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unit_names, "write_synced", full)
    with pytest.raises(ng.StoreError, match="No space left"):
        ng.name_units(path, CONV, {0: "new"})
    assert [file.name for file in (path / "names").iterdir()] == ["1.json"]
    assert ng.open(path).partitions[1].names == {0: "old"}


def test_writers_at_once_leave_whole_files(path):
    def write(n):
        for i in range(8):
            ng.name_units(path, CONV, {n % 3: f"{n}-{i}" * 5})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with ng.open(path) as db:
            assert all(len(name) >= 15 for name in db.partitions[1].names.values())
    assert [file.name for file in (path / "names").iterdir()] == ["1.json"]


def test_upkeep_keeps_names_and_clears_what_writers_left(path):
    ng.name_units(path, CONV, {0: "eyes"})
    left = path / "names" / f".{'0' * 16}.tmp"
    left.write_text("{")
    os.utime(left, (0, 0))
    with ng.open(path) as db:
        report = db.verify()
        assert report.sound
        assert any(left.name in str(finding) for finding in report.findings)
    ng.delete(path, ["k0"], progress=False)
    ng.compact(path, older_than=0, progress=False)
    assert not left.exists()
    with ng.open(path) as db:
        assert (len(db), db.partitions[1].names) == (5, {0: "eyes"})
    (path / "names" / "1.json").write_text("[]")
    report = verify(path, sample=0)
    assert not report.sound
    assert any("1.json" in str(error) for error in report.errors)


def test_graphs_tables_and_pictures_show_names(named):
    db, unit = named
    node, words = (CONV, unit), f"big eyes (channel {unit})"
    for graph in (
        db.circuit(None),
        db.subgraph("k0"),
        db.measure("k0").subgraph(),
        db.measure("k0").subgraph(by="channel"),
        db.circuit(None, by={CONV: "channel"}),
        db.measure("k0").reduced([CONV], by="channel").graph(),
    ):
        assert graph.nodes[node]["name"] == words
        assert sum("own_name" in data for _, data in graph.nodes(data=True)) == 1
    assert "big eyes" in " ".join(texts(plots.plot_subgraph(db.subgraph("k0")).figure))
    shown = f"big eyes (0[{unit}])"
    flows = db.sql("SELECT DISTINCT src_name FROM flows WHERE src_name LIKE 'big%'").fetchall()
    assert flows == [(shown,)]
    found = db.contrast("label = 'a'", "label = 'b'", draws=20)
    assert shown in found.table["src_name"].to_pylist()
    assert found.graph(99).nodes[node]["name"] == words
    assert shown in db.stability(None, splits=2, draws=5).edges["src_name"].to_pylist()
    assert db.concepts(None, CONV, k=1, examples=1)[0].name == words
    references = db.references(ng.Layer(CONV)[unit], k=1)
    assert (references.name, references.event_text) == ("big eyes", shown)
    assert shown in repr(references)
    assert "big eyes" in " ".join(texts(plots.plot_references(references))).replace("\n", " ")


def test_other_units_than_those_that_were_named_have_no_names(named, original):
    db, _ = named
    graph = db.measure("k0").subgraph(by="neuron")
    assert not any("own_name" in data for _, data in graph.nodes(data=True))
    with ng.open(original) as plain:
        found = plain.contrast("label = 'a'", "label = 'b'", draws=20)
    assert {"dst_name", "src_name"}.isdisjoint(found.table.column_names)


def test_the_command_line(path):
    def run(*arguments):
        return CliRunner().invoke(cli, [str(a) for a in arguments])

    done = run("name", path, CONV, 1, "eyes")
    assert done.exit_code == 0
    assert done.output == "0, unit 1 is 'eyes'; the layer has 1 name\n"
    assert "named: 0: 1 eyes" in run("info", path).output
    for unit in (0, 2):
        run("name", path, CONV, unit, "ears")
    assert "ears (channel " in run("circuit", path, "--format", "csv").output
    assert run("name", path, CONV, 1).output == "0, unit 1 has no name; the layer has 2 names\n"
    assert "named: 0: 0 ears, 2 ears" in run("info", path).output
