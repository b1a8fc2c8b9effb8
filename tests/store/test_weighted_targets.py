"""Signed weights of outputs as one target: what is stored, found again, aggregated and verified."""

import json
import types
from fractions import Fraction

import click
import numpy as np
import pytest
import torch
from helpers import small, tiny_stores
from helpers.make_format1 import PATH as FORMAT1
from helpers.small import NET, X, extract, program, rows
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import overview
from nrm_graph.evaluate import faithfulness
from nrm_graph.extraction import batches
from nrm_graph.graphs.formats import write_graph
from nrm_graph.network import weighted_targets
from nrm_graph.network.targets import Outputs, asked_for
from nrm_graph.plots import plot_circuit, plot_references
from nrm_graph.store.format.manifest import WEIGHTED_VERSION
from nrm_graph.store.format.schema import input_id
from nrm_graph.store.write.compaction import compact

pytestmark = pytest.mark.usefixtures("remembered_traces")

DIFFERENCE = {0: 1, 1: -1}
TEXT = '{"0":1.0,"1":-1.0}'


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("weighted") / "s.nrm"
    data = [{"input": X[i], "key": f"k{i}", "label": "ab"[i % 2]} for i in range(8)]
    targets = [DIFFERENCE, 2, {2: 0.5, 3: -2.0}]
    with extract(path, data, target=targets, batch_size=3) as db:
        db.materialize(ng.Layer("0")[0], name="given", progress=False)
    return path


@pytest.fixture
def db(store):
    with ng.open(store) as opened:
        yield opened


# --- what is a target -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "found None"),
        (1.5, "found 1.5"),
        (True, "found True"),
        (b"label", "found b'label'"),
        ("predict", "found 'predict'"),
        (object(), "found <object"),
        (torch.tensor(1.5), "found 1.5"),
        (torch.tensor(True), "found True"),
        ([None], "found None"),
        ([[0, 1]], r"found \[0, 1\]"),
        ([0, 2.0], "found 2.0"),
        ([], "names nothing"),
        ((), "names nothing"),
        (np.array([]), "names nothing"),
        ({}, "empty mapping"),
        ([0, {}], "empty mapping"),
        ({0: 0.0}, "the weight of target 0 is zero"),
        ({0: 1, 1: 0}, "the weight of target 1 is zero"),
        ({0: np.nan}, "must be a finite number, found nan"),
        ({0: np.inf}, "must be a finite number, found inf"),
        ({0: 10**400}, "must be a finite number"),
        ({0: True}, "must be a finite number, found True"),
        ({0: "1"}, "must be a finite number, found '1'"),
        ({0: None}, "must be a finite number, found None"),
        ({0: 1j}, "must be a finite number"),
        ({True: 1}, "target weighs True"),
        ({"predicted": 1}, "target weighs 'predicted'"),
        ({1.0: 1}, "target weighs 1.0"),
        (dict.fromkeys(range(1001), 1), "weighs 1,001 outputs: expected at most 1,000"),
    ],
)
def test_targets_that_mean_nothing_are_refused_before_anything_is_traced(tmp_path, target, message):
    with pytest.raises(ng.InputError, match=message) as caught:
        ng.extract(None, None, tmp_path / "s.nrm", target=target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", [{4: 1}, {-1: 1}, {(0, 1): 1}, {0: 1, 9: -1}, {0: 1e300}])
def test_weights_of_what_the_network_has_not(tmp_path, target):
    with pytest.raises(ng.InputError, match=r"out of range|entries for an output|must be finite"):
        extract(tmp_path / "s.nrm", [X[0]], target=target)


def test_what_is_asked_for_is_plain():
    assert asked_for(torch.tensor([1, 2])) == [1, 2]
    assert asked_for(np.array(3)) == 3
    assert asked_for(np.int32(3)) == 3
    assert asked_for([np.int64(1), {np.int64(3): np.float32(1)}]) == [1, {3: 1.0}]
    assert asked_for(types.MappingProxyType({1: Fraction(1, 2)})) == {1: 0.5}
    assert asked_for((0, {1: 1})) == (0, {1: 1.0})
    lone, grid = Outputs((("", (4,)),)), Outputs((("", (5, 100)),))
    assert lone.targets({1: 1.0}) == [{1: 1.0}]
    assert lone.targets([{1: 1.0}, 2]) == [{1: 1.0}, 2]
    assert grid.aim({(-1, 65): -1, 464: 1}) == grid.aim({464: 1.0, (4, 65): -1.0})
    assert grid.aim({(-1, 65): 1, 465: 2}) == '{"465":3.0}'
    with pytest.raises(ng.InputError, match="cancel"):
        grid.aim({(-1, 65): 1, 465: -1})
    assert grid.text('{"464":1.0,"465":-1.0}') == "{(4, 64): 1, (4, 65): -1}"
    assert grid.text(weighted_targets.text_of(dict.fromkeys(range(9), 0.5))).endswith(", 5 more}")
    assert lone.text(TEXT, ["a", "b", "c", "d"]) == "{0 (a): 1, 1 (b): -1}"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "3", "null", '{"0":1}', '{"0": 1.0}', '{"1":1.0,"0":1.0}', '{"00":1.0}'),
        *('{"0":NaN}', '{"0":0.0}', '{"0":1e999}', '{"0":true}', '{"0":1.0,"0":1.0}', '{"-1":1.0}'),
        *('{"a":1.0}', '{"4294967296":1.0}', '{"0":"1"}', "[" * 9999, '{"0":1.0}\n', "label"),
        "{" + ",".join(f'"{i}":1.0' for i in range(9999)) + "}",
    ],
    ids=lambda text: text[:20],
)
def test_only_the_one_text_of_weights_is_read(db, text):
    with pytest.raises(ng.InputError, match="is not how a store names weights"):
        weighted_targets.weights_of(text)
    with pytest.raises(ng.InputError):
        db.measure("k0", target=text)
    with pytest.raises(ng.InputError):
        db.circuit(target=text)


# --- what is stored ---------------------------------------------------------------------------


def test_one_row_an_input_whose_target_is_null(db):
    assert rows(db, "item, target, weights", "ALL LIMIT 3") == [
        (0, 2, None),
        (0, None, TEXT),
        (0, None, '{"2":0.5,"3":-2.0}'),
    ]
    types_ = db.sql("SELECT target, weights FROM inputs").types
    assert [str(t) for t in types_] == ["INTEGER", "VARCHAR"]
    ids = {i for (i,) in rows(db, "input_id", "input_id")}
    assert ids == {input_id(f"k{i}", t) for i in range(8) for t in (2, TEXT, '{"2":0.5,"3":-2.0}')}
    for (file,) in (sorted((db.path / "shards").glob("*.json")),):
        assert json.loads(file.read_text())["format_version"] == WEIGHTED_VERSION


@pytest.mark.parametrize("target", [DIFFERENCE, {2: 0.5, 3: -2.0}])
def test_stored_tables_are_the_measures_own(db, target):
    text = weighted_targets.text_of(target)
    for i in range(8):
        m = ng.measure(program(), X[i], target=target, composite="epsilon")
        identity = input_id(f"k{i}", text)
        ((logit,),) = db.sql("SELECT logit FROM inputs", inputs=[identity]).fetchall()
        output = NET(X[i])
        assert logit == pytest.approx(
            sum(float(output[k]) * w for k, w in target.items()), abs=1e-6
        )
        nodes = db._snapshot.rows(identity, "nodes")
        for layer in m.topology.layers:
            mine = (np.asarray(nodes["layer_id"]) == layer.layer_id) & (
                np.asarray(nodes["unit"]) >= 0
            )
            held = np.zeros(len(m.marginal(layer.name)))
            held[np.asarray(nodes["unit"])[mine]] = np.asarray(nodes["relevance"])[mine]
            np.testing.assert_allclose(held, m.marginal(layer.name), rtol=1e-3, atol=1e-4)


def test_measures_find_the_stored_pair(db):
    pairs = [
        db.measure("k0", target={1: -1, 0: 1.0}),
        db.measure("k0", target=TEXT),
        db.measure(input_id("k0", TEXT)),
    ]
    fresh = ng.measure(program(), X[0], target=DIFFERENCE, composite="epsilon")
    for m in pairs:
        assert m.target is None
        assert m.logit == pytest.approx(fresh.logit, rel=1e-5)
        np.testing.assert_allclose(m.marginal("0"), fresh.marginal("0"), rtol=1e-4, atol=1e-5)
    assert db._compared == {input_id("k0", TEXT)}  # the stored output of the pair itself
    other = db.measure("k0", target={0: 1, 3: -1})  # need not be stored
    assert other.logit == pytest.approx(float(NET(X[0])[0] - NET(X[0])[3]), rel=1e-5)
    with pytest.raises(
        ng.InputError, match=r"targets 2, \{0: 1, 1: -1\}, \{2: 0\.5, 3: -2\}: name"
    ):
        db.measure("k0")
    with pytest.raises(ng.InputError, match="name one of them"):
        db.subgraph("k0", {0: 1, 3: -1})
    graph = db.subgraph("k0", {1: -1.0, 0: 1.0}, top=10)
    own = pairs[0].subgraph(top=10)
    assert set(graph.edges) == set(own.edges)


def test_equal_weights_are_one_target_and_go_on(tmp_path, monkeypatch):
    path = tmp_path / "s.nrm"
    extract(path, X[:2], target=DIFFERENCE).close()
    calls = []
    plain = batches.forward
    monkeypatch.setattr(batches, "forward", lambda net, x: calls.append(1) or plain(net, x))
    for same in ({1: -1.0, 0: np.float64(1)}, [DIFFERENCE, {(0,): 1, (1,): -1}]):
        with extract(path, X[:2], target=same) as db:
            assert len(db) == 2
    assert not calls
    with extract(path, X[:4], target={1: -1, 0: 1}) as db:
        assert rows(db, "item, weights") == [(i, TEXT) for i in range(4)]
    with extract(path, X[:4], target=[{0: 2, 1: -2}, "predicted"]) as db:
        assert len(db) == 12
        assert overview.facts(db)["targets"] == str(2 + len({int(NET(x).argmax()) for x in X[:4]}))


class Tokens(nn.Module):
    """Four positions, three classes each."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def test_places_and_what_each_input_has_of_its_own(tmp_path):
    torch.manual_seed(1)
    net = Tokens().eval()
    data = [{"input": X[i].reshape(1, 4, 2), "key": f"k{i}", "label": i} for i in range(3)]
    targets = [
        {(-1, 2): 1.0, (0, 0): -0.5},
        {(-1, "predicted"): 1.0, (1, 0): -2.0},
        {(1, "label"): 1.0, (2, 0): 1.0},
    ]
    options = {"composite": "epsilon", "progress": False}
    with ng.extract(net, data, tmp_path / "s.nrm", target=targets, **options) as db:
        for i, row in enumerate(data):
            best = 9 + int(net(row["input"])[0, 3].argmax())
            wanted = {
                '{"0":-0.5,"11":1.0}',
                weighted_targets.text_of({3: -2.0, best: 1.0}),
                weighted_targets.text_of({3 + i: 1.0, 6: 1.0}),
            }
            found = db.sql("SELECT weights FROM inputs", inputs=[f"k{i}"]).fetchall()
            assert {text for (text,) in found} == wanted
        m = db.measure("k0", target={(0, 0): -0.5, (3, 2): 1})
        own = ng.measure(net, data[0]["input"], target=targets[0], composite="epsilon")
        np.testing.assert_allclose(m.marginal("up"), own.marginal("up"), rtol=1e-4, atol=1e-5)
        assert db.circuit(target={(-1, 2): 1.0, (0, 0): -0.5}, top=5).graph["inputs"] == 3
        assert db.verify().sound
    count = len(db)
    with ng.extract(net, data, tmp_path / "s.nrm", target=targets, **options) as db:
        assert len(db) == count


def test_outputs_that_cancel_are_named_and_can_be_skipped(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
    data = [{"input": torch.tensor(x), "key": k} for k, x in (("a", [2.0, 1]), ("b", [1.0, 1]))]
    options = {"composite": "epsilon", "progress": False, "target": DIFFERENCE}
    with pytest.raises(
        ng.InputError, match="input 'b': the weighted sum of the target outputs is z"
    ):
        ng.extract(net, data, tmp_path / "s.nrm", **options)
    with ng.extract(net, data, tmp_path / "s.nrm", on_error="skip", **options) as db:
        assert rows(db, "key") == [("a",)]
        assert "weighted sum" in db.sql("SELECT error FROM failures").fetchall()[0][0]


# --- what reads targets -----------------------------------------------------------------------


def test_circuits_of_weights(db, tmp_path):
    for graph in (
        db.circuit(target=DIFFERENCE, top=20),
        db.circuit("weights = $$" + TEXT + "$$", top=20),
    ):
        assert graph.graph["target"] == TEXT
        assert graph.graph["inputs"] == 8
        sums = {}
        for i in range(8):
            for *edge, r in (
                ng.measure(program(), X[i], target=DIFFERENCE, composite="epsilon")
                .subgraph(top=999)
                .edges(data="relevance")
            ):
                sums[tuple(edge)] = sums.get(tuple(edge), 0) + r / 8
        for *edge, r in graph.edges(data="relevance"):
            assert r == pytest.approx(sums[tuple(edge)], rel=1e-3, abs=1e-4)
    with pytest.raises(
        ng.InputError, match=r"24 inputs explain 3 different targets: .*\{0: 1, 1: -1\} \(8\)"
    ):
        db.circuit()
    with pytest.raises(ng.InputError, match="explain 2 different targets"):
        db.circuit("weights IS NOT NULL")
    assert "target" not in db.circuit(mixed_targets=True).graph
    with pytest.raises(ng.InputError, match="no input is chosen"):
        db.circuit(target={0: 1, 2: -1})
    with pytest.raises(ng.InputError, match="number or place, or weights such as"):
        db.circuit(target="cat")
    assert db.circuit(target=2).graph["target"] == 2
    assert db.circuit(target=DIFFERENCE, given="given").graph["inputs"] == 8
    assert overview.circuit(graph)["target"] == "{0: 1, 1: -1}"
    assert plot_circuit(graph) is not None
    for name in ("g.graphml", "g.json", "g.parquet", "g.gexf"):
        assert write_graph(graph, tmp_path / name)


def test_contrasts_prototypes_references_and_evaluation_of_weights(db):
    found = db.contrast("label = 'a'", "label = 'b'", target=DIFFERENCE, draws=10)
    assert found.targets == ((TEXT,), (TEXT,))
    assert found.graph(top=5).graph["target"] == TEXT
    assert not [note for note in found.notes if "different outputs" in note]
    mixed = db.contrast("target = 2", "weights LIKE '%:-1.0}'", draws=10)
    assert mixed.targets == ((2,), (TEXT,))
    assert any("different outputs, 2 and {0: 1, 1: -1}" in note for note in mixed.notes)
    circuit = db.circuit("item < 4", target=DIFFERENCE, top=30)
    near = db.prototypes(circuit, target=DIFFERENCE, k=2)
    assert near["side"].to_pylist()[:4] == ["nearest"] * 2 + ["farthest"] * 2
    assert set(near["target"].to_pylist()) == {None}
    assert set(db.prototypes(circuit, target=2, k=2)["target"].to_pylist()) == {2}
    best = db.references(ng.Layer("0")[0], k=3, where="weights IS NOT NULL", share=None)
    assert best.table["target"].to_pylist() == [None] * 3
    curves = faithfulness(db, circuit, draws=2, progress=False, fractions=(0.0, 0.5, 1.0))
    whole = [float(NET(X[i])[0] - NET(X[i])[1]) for i in range(4, 8)]
    held = dict(zip(curves.keys, curves.unablated[:, 0], strict=True))
    assert [held[f"k{i}"] for i in range(4, 8)] == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert np.isnan(curves.unablated[:, 1:]).all()
    assert curves.target == TEXT
    assert "random" in repr(curves)


def test_pictures_of_references_without_a_target():
    import pyarrow as pa

    from nrm_graph.circuits.references import References

    table = pa.table(
        {
            "key": ["a"], "label": ["cat"], "target": pa.nulls(1, pa.int64()), "relevance": [0.25],
            "activation": [1.5], "held": [0.75], "reason": pa.nulls(1, pa.string()),
            "box": [{"top": 0, "left": 1, "bottom": 2, "right": 3}],
        }
    )  # fmt: skip
    picture = np.arange(12.0).reshape(3, 4)
    args = "relevance", "unit", None, 10, 0.5, table, (picture,), (picture - 5,)
    figure = plot_references(References(ng.Layer("0")[0], *args), classes=["x", "y"])
    assert any("weighted outputs" in text.get_text() for text in figure.texts)


def test_verify_and_compaction(store, tmp_path):
    import shutil

    path = shutil.copytree(store, tmp_path / "s.nrm")
    with ng.open(path) as db:
        report = db.verify(sample=24)
        assert report.sound, report.findings
        assert report.recomputed == 24
        before = (
            tiny_stores.all_rows(db),
            db.sql("SELECT * FROM given_inputs ORDER BY ALL").fetchall(),
        )
    extract(path, [{"input": X[8], "key": "k8"}], target=DIFFERENCE).close()
    compact(path, progress=False)
    ng.open(path)
    extract(path, [{"input": X[8], "key": "k8"}], target={1: -1, 0: 1}).close()
    with ng.open(path) as db:
        assert len(db) == 25
        assert db.verify(sample=2).sound
        told = [set(map(str, rows["inputs"])) for rows in (before[0], tiny_stores.all_rows(db))]
        assert told[0] < told[1]
        db.materialize(ng.Layer("0")[0], name="given", progress=False)
        assert len(db.sql("SELECT * FROM given_inputs").fetchall()) == 25
        assert db.verify(sample=1).sound


def edited(path, change):
    (file,) = (path / "shards").glob("*.json")
    raw = json.loads(file.read_text())
    del raw["seal"]
    change(raw)
    file.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["inputs"][0].update(weights='{"0": 1.0}'), "weights to be weights of outputs"),
        (lambda m: m["inputs"][0].update(weights=3), "weights to be null or text, found 3"),
        (lambda m: m["inputs"][0].update(target=0), "target to be null beside weights, found 0"),
        (lambda m: m["inputs"][0].pop("weights"), "target to be an integer, found None"),
        (lambda m: m.update(format_version=1), "weights to be null in version 1, found"),
        (lambda m: m.update(format_version=3), "version 3; this release reads version 1 and 2"),
        (lambda m: m["inputs"][0].update(weights='{"1":1.0}'), "expected input_id of 'input0'"),
    ],
)
def test_hostile_manifests_of_weights(tmp_path, change, message):
    from dataclasses import replace

    path = tiny_stores.make(tmp_path / "s.nrm")
    item = replace(tiny_stores.record(0), target=None, weights='{"0":1.0}')
    tiny_stores.write(path, [item])
    assert len(ng.open(path)) == 1
    edited(path, change)
    with pytest.raises(ng.StoreError, match=message):
        ng.open(path)


def test_records_of_no_target_or_two(tmp_path):
    from dataclasses import replace

    path = tiny_stores.make(tmp_path / "s.nrm")
    for target, weights in ((None, None), (0, '{"0":1.0}'), (None, '{"0":1}')):
        item = replace(tiny_stores.record(0), target=target, weights=weights)
        with pytest.raises(ng.InputError, match=r"a target or weights|names weights"):
            tiny_stores.write(path, [item])
    beyond = replace(tiny_stores.record(0), target=None, weights='{"2":1.0}')
    tiny_stores.write(path, [beyond])
    with ng.open(path) as db:
        told = [f.problem for f in db.verify(sample=0).errors]
    assert "weights of outputs that are none: the network has 2" in told


def test_plain_stores_stay_as_they_were(tmp_path):
    """A shard without weighted targets is one of format 1."""
    with extract(tmp_path / "s.nrm", X[:2], target=1) as db:
        (file,) = (db.path / "shards").glob("*.json")
        raw = json.loads(file.read_text())
        assert raw["format_version"] == 1
        assert raw["metadata"] == {"item": "int", "flags": "strings", "kept": "float"}
    with ng.open(FORMAT1) as db:
        assert db.circuit(target=1).graph["inputs"] == 2
        assert db.measure("a.png", target=0).target == 0
        assert db.measure("a.png", target={0: 1, 1: -1}).target is None
    assert small.NET is NET


def test_weights_on_the_command_line():
    from nrm_graph.cli import arguments

    assert arguments.target("3=1,5=-1") == {3: 1.0, 5: -1.0}
    assert arguments.target("-1:464=2") == {(-1, 464): 2.0}
    assert arguments.target("3,5") == [3, 5]
    for wrong in ("3=x", "3=1,5", "cat=1"):
        with pytest.raises(click.BadParameter, match="expected"):
            arguments.target(wrong)
