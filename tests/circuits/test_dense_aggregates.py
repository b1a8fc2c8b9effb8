"""Aggregates of a group against dense arrays of the raw rows, absent edges as zeros."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference import dense_stores

import nrm_graph as ng
from nrm_graph.circuits import circuit as module
from nrm_graph.circuits import edge_statistics
from nrm_graph.circuits.edges import edge_values
from nrm_graph.circuits.engines import EDGE, local, merged
from nrm_graph.circuits.prototypes import prototypes
from nrm_graph.circuits.sums import edge_partials
from nrm_graph.errors import InputError
from nrm_graph.store.input_group import group
from nrm_graph.store.write.writer import Writer

NAMES = {0: "x", 1: "0", 2: "1"}
# Sums of at most 60 terms in float64, in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module", params=[0, 1, 2])
def held(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "s.nrm"
    dense_stores.random_store(path, request.param, targets=1 + request.param)
    dense = dense_stores.read(path)
    manifests = [json.loads(m.read_text()) for m in (path / "shards").glob("*.json")]
    assert len(manifests) > 3
    assert sum(len(m["inputs"]) for m in manifests) == len(dense.ids) + 3  # three stand twice
    assert (dense.values == 0).any(0).all()  # every edge is missing from some input
    with ng.open(path) as db:
        yield db, dense


def chosen(dense, label, target=0):
    return dense.where(np.array([k == label for k in dense.labels]) & (dense.targets == target))


def by_edge(table):
    return {tuple(row[name] for name in EDGE): row for row in table.to_pylist()}


def test_a_pair_that_stands_twice_counts_once(held):
    db, dense = held
    every = group(db, mixed_targets=True)
    assert every.ids.tolist() == dense.ids.tolist()
    assert list(every.keys) == dense.keys
    assert list(every.labels) == dense.labels
    np.testing.assert_array_equal(every.logits, dense.logits)
    np.testing.assert_array_equal(every.targets, dense.targets)


@pytest.mark.parametrize("weight", ["unit", "logit"])
def test_partials_are_sums_over_dense_columns(held, weight):
    db, dense = held
    one = group(db, "label = 'cat'", target=0)
    mine = chosen(dense, "cat")
    values = mine.values * (mine.logits[:, None] if weight == "logit" else 1)
    found = by_edge(edge_partials(db, one, weight))
    assert set(found) == {e for e, v in zip(dense.edges, values.T, strict=True) if v.any()}
    for edge, row in found.items():
        column = values[:, dense.edges.index(edge)]
        np.testing.assert_allclose(row["total"], column.sum(), **CLOSE)
        np.testing.assert_allclose(row["squares"], (column**2).sum(), **CLOSE)
        counts = [row[name] for name in ("n", "positive", "negative")]
        assert counts == [(column != 0).sum(), (column > 0).sum(), (column < 0).sum()]


def test_partials_of_parts_merge_to_those_of_the_whole(held):
    db, _ = held
    parts = [
        edge_partials(db, group(db, f"fold = {f}", mixed_targets=True), "logit") for f in range(3)
    ]
    whole = by_edge(edge_partials(db, group(db, mixed_targets=True), "logit"))
    together = by_edge(merged(parts))
    assert together.keys() == whole.keys()
    for edge, row in whole.items():
        for name, value in row.items():
            np.testing.assert_allclose(together[edge][name], value, **CLOSE)


@pytest.mark.parametrize("weight", ["unit", "logit"])
def test_edge_values_are_dense_rows(held, weight):
    db, dense = held
    one = group(db, "label = 'dog'", mixed_targets=True)
    mine = dense.where(np.array([k == "dog" for k in dense.labels]))
    edges = edge_partials(db, group(db, mixed_targets=True)).select(EDGE)
    edges = edges.take(np.random.default_rng(0).permutation(len(edges))[:20])
    found = edge_values(db, one, edges, weight)
    for i, row in enumerate(edges.to_pylist()):
        column = mine.column(row[name] for name in EDGE)
        expected = column * (mine.logits if weight == "logit" else 1)
        np.testing.assert_array_equal(found[:, i], expected)


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["unit", "logit"])
@pytest.mark.parametrize("top", [7, 1000])
def test_a_circuit_is_what_dense_arrays_say(held, weight, top):
    db, dense = held
    graph = db.circuit("label = 'cat'", target=0, top=top, weight=weight, connected=False)
    mine = chosen(dense, "cat")
    n = len(mine.ids)
    scale = mine.logits[:, None] if weight == "logit" else 1
    values, nodes = mine.values * scale, mine.held * scale
    means = values.mean(0)
    strongest = np.argsort(-np.abs(means))[: min(top, (means != 0).sum())]
    expected = {
        ((NAMES[s], su), (NAMES[d], du)) for d, du, s, su in (dense.edges[i] for i in strongest)
    }
    assert set(graph.edges) == expected
    # An input's own strongest edges: no two of them are equal here.
    rank = np.argsort(np.argsort(-np.abs(mine.values), axis=1), axis=1)
    own = (rank < top) & (mine.values != 0)
    for i in strongest:
        d, du, s, su = dense.edges[i]
        data = graph.edges[(NAMES[s], su), (NAMES[d], du)]
        check(data, values[:, i], n)
        np.testing.assert_allclose(data["top_share"], own[:, i].mean(), **CLOSE)
    for (name, unit), data in graph.nodes(data=True):
        layer = {v: k for k, v in NAMES.items()}[name]
        if (layer, unit) in dense.nodes:
            i = dense.nodes.index((layer, unit))
            check(data, nodes[:, i], n)
            if unit >= 0:
                np.testing.assert_allclose(data["activation"], mine.activations[:, i].mean())
    np.testing.assert_allclose(
        graph.graph["share"], np.abs(means[strongest]).sum() / np.abs(means).sum(), **CLOSE
    )
    lost = np.array([unit in (-1, -2, -4) for _, unit in dense.nodes])
    np.testing.assert_allclose(graph.graph["absorbed"], nodes[:, lost].sum() / n, **CLOSE)
    assert graph.graph["inputs"] == n
    assert graph.graph["keys"] == tuple(sorted(set(mine.keys)))
    assert graph.graph["target"] == 0


def check(data, column, n):
    np.testing.assert_allclose(data["relevance"], column.mean(), **CLOSE)
    np.testing.assert_allclose(data["std"], column.std(ddof=1), rtol=1e-9)
    np.testing.assert_allclose(data["stderr"], column.std(ddof=1) / n**0.5, rtol=1e-9)
    nonzero = column[column != 0]
    assert data["inputs"] == len(nonzero)
    if len(nonzero):
        same = (np.sign(nonzero) == np.sign(column.mean())).mean()
        np.testing.assert_allclose(data["agreement"], same, **CLOSE)


def test_strongest_edges_of_a_few_inputs_at_a_time_are_the_same(held, monkeypatch):
    db, _ = held
    whole = db.circuit("label = 'cat'", target=0, top=7)
    asked = []

    def engine(db, query, ids, tables, keys):
        asked.append((keys, len(ids)))
        return local(db, query, ids, tables, keys)

    monkeypatch.setattr(edge_statistics, "ABOVE_AT_ONCE", 0)
    monkeypatch.setattr(edge_statistics, "VALUES_AT_ONCE", 15)  # two inputs with 7 edges each
    db._limits.clear()
    found = module.circuit(db, "label = 'cat'", target=0, top=7, engine=engine)
    assert [n for keys, n in asked if keys == ("input_id",)] == [2, 2, 2, 1]
    assert set(found.edges) == set(whole.edges)
    for edge in whole.edges:
        assert found.edges[edge]["top_share"] == whole.edges[edge]["top_share"]


def test_an_edge_may_be_asked_for_twice(held):
    db, _ = held
    one = group(db, target=0)
    edges = edge_partials(db, one).select(EDGE).slice(0, 3)
    found = edge_values(db, one, pa.concat_tables([edges, edges]))
    np.testing.assert_array_equal(found[:, :3], edge_values(db, one, edges))
    np.testing.assert_array_equal(found[:, 3:], found[:, :3])


@pytest.mark.parametrize("layers", ["x", 5, [], ()])
def test_layers_are_a_list_of_names(held, layers):
    with pytest.raises(InputError, match="layers must be a list of names"):
        held[0].circuit(target=0, layers=layers)


def test_a_circuit_of_one_input_is_its_own_rows(held):
    db, dense = held
    graph = db.circuit("key = 'k3'", target=0, top=1000, connected=False)
    mine = dense.where(np.array([k == "k3" for k in dense.keys]) & (dense.targets == 0))
    assert len(graph.edges) == (mine.values != 0).sum()
    for src, dst, data in graph.edges(data=True):
        layer = {v: k for k, v in NAMES.items()}
        edge = (layer[dst[0]], dst[1], layer[src[0]], src[1])
        assert data["relevance"] == mine.column(edge)[0]
        assert "std" not in data
        assert "stderr" not in data
        assert data["agreement"] == data["inputs"] == data["top_share"] == 1


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory):
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(9, 4)
    x[0] = -1e3 * torch.ones(4)
    rows = [{"input": x[i], "key": f"k{i}", "label": "ab"[i % 2]} for i in range(9)]
    path = tmp_path_factory.mktemp("given") / "s.nrm"
    with ng.extract(net, rows, path, composite="epsilon", target=0, progress=False) as db:
        db.materialize(ng.Layer("2")[[0, 2]], name="b", progress=False)
        yield db, path


def condition_rows(path):
    """Of every input R(B), and R(edge & B) by edge, out of the raw shards of a condition."""
    base, joint = {}, {}
    for manifest in (path / "conditions" / "b" / "shards").glob("*.json"):
        files = {
            n: pq.read_table(manifest.with_name(f"{manifest.stem}.{n}.parquet")).to_pylist()
            for n in ("inputs", "edges")
        }
        # Where it is undefined here, no walk reaches B: joint relevances are 0 too.
        assert all(r["relevance"] == 0 for r in files["inputs"] if r["status"] != "defined")
        base |= {r["input_id"]: r["relevance"] for r in files["inputs"]}
        for row in files["edges"]:
            name = tuple(row[c] for c in EDGE)
            joint[row["input_id"], name] = row["relevance"] * base[row["input_id"]]
    return base, joint


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["unit", "logit"])
def test_conditionals_of_a_group_are_ratios_of_means(conditioned, weight):
    db, path = conditioned
    base, joint = condition_rows(path)
    facts = db.sql("SELECT input_id, logit, label FROM inputs").fetchall()
    ids = [i for i, _, label in facts if label == "a"]
    defined = [i for i in ids if base[i]]
    assert 2 < len(defined) < len(ids)
    logit = {i: v if weight == "logit" else 1.0 for i, v, _ in facts}
    whole = sum(base[i] * logit[i] for i in ids)
    graph = db.circuit("label = 'a'", given="b", weight=weight, top=10_000)
    names = [layer.name for layer in db.topology.layers]
    edges = {name for i, name in joint if i in ids}
    found = {}
    for src, dst, data in graph.edges(data=True):
        found[names.index(dst[0]), dst[1], names.index(src[0]), src[1]] = data
    assert len(edges) > 20
    for name in edges:
        column = np.array([joint.get((i, name), 0.0) * logit[i] for i in ids])
        expected = column.sum() / whole
        # Stored rows are float32 quotients.
        if name in found:
            np.testing.assert_allclose(found[name]["relevance"], expected, rtol=1e-9, atol=1e-12)
            d = column - expected * np.array([base[i] * logit[i] for i in ids])
            scale = abs(whole / len(ids))
            # A variance out of sums of squares: its root is off by up to sqrt(eps) of their root.
            slack = 1e-7 * np.sqrt((column**2).mean()) / scale
            np.testing.assert_allclose(found[name]["std"], d.std(ddof=1) / scale, atol=slack)
        else:
            assert abs(expected) < 1e-12
    each = db.circuit("label = 'a'", given="b", per_input=True, top=10_000)
    assert graph.graph["undefined"] == each.graph["undefined"] == len(ids) - len(defined)
    for name in edges & {(names.index(d[0]), d[1], names.index(s[0]), s[1]) for s, d in each.edges}:
        data = each.edges[(names[name[2]], name[3]), (names[name[0]], name[1])]
        ratios = [joint.get((i, name), 0.0) / base[i] for i in defined]
        np.testing.assert_allclose(data["relevance"], np.mean(ratios), rtol=1e-9, atol=1e-12)


def test_prototypes_under_a_condition_compare_joint_relevances(conditioned):
    db, path = conditioned
    base, joint = condition_rows(path)
    circuit = db.circuit("label = 'a'", given="b", top=15)
    names = [layer.name for layer in db.topology.layers]
    edges = [(names.index(d[0]), d[1], names.index(s[0]), s[1]) for s, d in circuit.edges]
    flows = {i: np.array([joint.get((i, e), 0.0) for e in edges]) for i in base}
    ours = [i for (i,) in db.sql("SELECT input_id FROM inputs WHERE label = 'a'").fetchall()]
    mean = np.mean([flows[i] for i in ours], axis=0)
    found = {r["input_id"]: r["similarity"] for r in prototypes(db, circuit, k=20).to_pylist()}
    assert found.keys() == base.keys()
    for i, flow in flows.items():
        if base[i]:
            expected = flow @ mean / np.linalg.norm(flow) / np.linalg.norm(mean)
            np.testing.assert_allclose(found[i], expected, atol=1e-9)
        else:
            assert found[i] is None
    each = db.circuit("label = 'a'", given="b", per_input=True, top=15)
    with pytest.raises(InputError, match="per_input=False"):
        prototypes(db, each)


@pytest.mark.parametrize("weight", ["unit", "logit"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99, 1.0])
def test_statistics_do_not_depend_on_the_floor(held, monkeypatch, weight, share):
    db, dense = held
    options = {"where": "label = 'cat'", "target": 0, "top": 7, "weight": weight}
    monkeypatch.setattr(edge_statistics, "_floor", lambda *_: None)
    whole = db.circuit(**options)
    sizes = np.abs(chosen(dense, "cat").values)
    # Below every row, above all rows of some inputs and edges, above all but the largest.
    floor = float(np.quantile(sizes[sizes > 0], share))
    monkeypatch.setattr(edge_statistics, "_floor", lambda *_: floor)
    db._limits.clear()
    graph = db.circuit(**options)
    assert set(graph.edges) == set(whole.edges)
    for edge, data in whole.edges.items():
        assert graph.edges[edge].keys() == data.keys()
        for name, value in data.items():
            np.testing.assert_allclose(graph.edges[edge][name], value, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(graph.graph["share"], whole.graph["share"], **CLOSE)


@pytest.mark.parametrize("cancelled", [0.0, 2.0])
def test_standard_deviations_of_one_scan_are_those_of_two(held, monkeypatch, cancelled):
    db, _ = held
    exact = db.circuit("label = 'cat'", target=0, top=7)
    monkeypatch.setattr(edge_statistics, "CANCELLED", cancelled)  # none, and all, are read again
    graph = db.circuit("label = 'cat'", target=0, top=7)
    assert set(graph.edges) == set(exact.edges)
    for edge, data in exact.edges.items():
        np.testing.assert_allclose(graph.edges[edge]["std"], data["std"], rtol=1e-9)


def test_edges_that_hardly_vary_keep_their_digits(tmp_path):
    # Around a mean of 1 a deviation of 1e-6 is lost in a sum of squares.
    edges = dense_stores.edge_list()
    noise = np.random.default_rng(0).standard_normal((40, len(edges)))
    values = (1 + 1e-6 * noise).astype(np.float32)
    dense_stores.make(tmp_path / "s")
    with Writer(tmp_path / "s") as writer:
        for i, row in enumerate(values):
            writer.add(dense_stores.record(f"k{i}", 0, edges, row))
    with ng.open(tmp_path / "s") as db:
        graph = db.circuit(top=10, connected=False)
    expected = values.astype(np.float64).std(0, ddof=1)
    ids = {name: layer for layer, name in NAMES.items()}
    assert len(graph.edges) == 10
    for (src_layer, src), (dst_layer, dst), data in graph.edges(data=True):
        place = edges.index((ids[dst_layer], dst, ids[src_layer], src))
        np.testing.assert_allclose(data["std"], expected[place], rtol=1e-8)
