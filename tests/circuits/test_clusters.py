"""Planted sub-strategies are found by their flows, and none where there are none."""

import sys

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dense_stores
from sklearn.metrics import adjusted_rand_score, silhouette_samples

import nrm_graph as ng
from nrm_graph.circuits import clustering
from nrm_graph.circuits.clusters import clusters
from nrm_graph.circuits.engines import EDGE
from nrm_graph.errors import InputError
from nrm_graph.store.write.writer import Writer

SIZES = (10, 14, 4)  # 196 edges and 36 pseudo-edges


def patterns(rng, count, edges, differ=0.25):
    """Signed heavy tails in common, and what each pattern has of its own."""

    def tails():
        return rng.standard_t(1.5, edges) * rng.lognormal(0, 1, edges)

    common = tails()
    own = [(rng.random(edges) < differ) * tails() for _ in range(count)]
    return np.array([common + 1.5 * part for part in own])


def noisy(rng, rows):
    """Noise of every key: factors, heavy tails, and edges that are absent."""
    values = rows * rng.lognormal(0, 0.4, rows.shape)
    values += 0.05 * rng.standard_t(2, rows.shape) * np.abs(rows).mean(0)
    values *= rng.lognormal(0, 1, (len(rows), 1))  # keys differ in scale
    values[rng.random(rows.shape) < 0.15] = 0
    values[rng.integers(len(rows), size=rows.shape[1]), np.arange(rows.shape[1])] = 0
    return values


def planted(path, seed, count, keys=64, targets=1):
    """Store of one class with planted patterns, and the pattern of every key."""
    rng = np.random.default_rng(seed)
    edges = dense_stores.edge_list(SIZES)
    kinds = patterns(rng, count, len(edges))
    pattern = rng.permutation(np.arange(keys) % count)
    dense_stores.make(path, sizes=SIZES)
    with Writer(path, shard_inputs=9) as writer:
        for target in range(targets):
            values = noisy(rng, kinds[pattern])
            for i in range(keys):
                row = dense_stores.record(
                    f"k{i:03}",
                    target,
                    edges,
                    values[i],
                    label="cat",
                    nodes={(1, 2): pattern[i] + 1},
                )
                writer.add(row)
    return path, pattern


@pytest.mark.parametrize(("seed", "count"), [pytest.param(0, 2, marks=pytest.mark.slow), (2, 3)])
def test_planted_strategies_are_recovered(tmp_path, seed, count):
    path, pattern = planted(tmp_path / "s.nrm", seed, count)
    with ng.open(path) as db:
        found = clusters(db, "label = 'cat'")
    assert (dense_stores.read(path).values == 0).any(0).all()
    assert found.k == count
    assert found.assignment["key"].to_pylist() == [f"k{i:03}" for i in range(64)]
    assert adjusted_rand_score(pattern, found.assignment["cluster"].to_numpy()) == 1
    assert found.reference < found.silhouette
    sizes = found.clusters["size"].to_pylist()
    assert sizes == sorted(np.bincount(pattern).tolist(), reverse=True)
    text = repr(found)
    assert f"<{count} clusters of 64 keys (label = 'cat'), silhouette 0." in text
    assert "that of structureless data up to" in text


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_strategy_is_one_cluster(tmp_path, seed):
    path, _ = planted(tmp_path / "s.nrm", 10 + seed, 1)
    with ng.open(path) as db:
        found = clusters(db)
    assert found.k == 1
    assert found.silhouette is None
    assert max(found.choice["silhouette"].to_pylist()) <= found.reference
    assert found.assignment["silhouette"].null_count == 64
    assert found.edges["rest"].null_count == len(found.edges)


@pytest.mark.slow
def test_strategies_are_seldom_missed_or_made_up():
    hits = {1: 0, 2: 0, 3: 0}
    for count in hits:
        for seed in range(12):
            rng = np.random.default_rng(1000 * count + seed)
            kinds = np.arange(80) % count
            flows = noisy(rng, patterns(rng, count, 200)[kinds])
            points = clustering.rotated(clustering.normalized(clustering.standardized(flows)))
            k, _, _ = clustering.choose(points, 80, seed)
            of = clustering.divide(points, k, seed)
            hits[count] += k == count and adjusted_rand_score(kinds, of) == 1
    # A level of 1 / 20: at least 9 of 12 without structure with a probability of 0.998.
    assert hits[1] >= 9
    assert min(hits[2], hits[3]) >= 11


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    path, pattern = planted(tmp_path_factory.mktemp("c") / "s.nrm", 3, 2, keys=24, targets=2)
    with ng.open(path) as db:
        yield db, dense_stores.read(path), pattern


@pytest.mark.smoke
def test_means_and_silhouettes_are_those_of_dense_arrays(held):
    db, dense, pattern = held
    found = clusters(db, mixed_targets=True, k=2, edges=100)
    assert adjusted_rand_score(pattern, found.assignment["cluster"].to_numpy()) == 1
    keys = found.assignment["key"].to_pylist()
    assert keys == sorted(set(dense.keys))  # each once, of two targets
    assert len(found.choice) == 0
    assert found.reference is None
    mean = np.array([dense.values[np.array(dense.keys) == key].mean(0) for key in keys])
    order = np.argsort(-dense.values.std(0))[:100]
    assert len(found.edges) == 200
    cluster = found.assignment["cluster"].to_numpy()
    root = np.sign(mean) * np.sqrt(np.abs(mean))
    root = root[:, order] / np.linalg.norm(root[:, order], axis=1, keepdims=True)
    standard = (root - root.mean(0)) / root.std(0)
    for row in found.edges.to_pylist():
        edge = tuple(row[c] for c in EDGE)
        i = dense.edges.index(edge)
        assert i in order
        mine = cluster == row["cluster"]
        np.testing.assert_allclose(row["mean"], mean[mine, i].mean(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(row["rest"], mean[~mine, i].mean(), rtol=1e-10, atol=1e-12)
        # Share of variance that two groups explain: the squared correlation with membership.
        column = standard[:, order.tolist().index(i)]
        np.testing.assert_allclose(
            row["separation"], np.corrcoef(mine, column)[0, 1] ** 2, atol=1e-10
        )
    for c in range(2):
        told = found.edges["separation"].to_numpy()[100 * c : 100 * c + 100]
        assert (np.diff(told) <= 0).all()
        assert told[0] > 0.8
    points = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    expected = silhouette_samples(points, cluster)
    np.testing.assert_allclose(found.assignment["silhouette"], expected, atol=1e-9)
    np.testing.assert_allclose(found.silhouette, expected.mean(), atol=1e-9)


def test_a_clusters_graph_is_its_mean_flow(held):
    db, _, pattern = held
    found = clusters(db, target=1, k=2)
    cluster = found.assignment["cluster"].to_numpy()
    for c in range(2):
        graph = found.graph(c, top=30)
        assert graph.number_of_edges() == 30
        rows = [r for r in found.edges.to_pylist() if r["cluster"] == c]
        rows = sorted(rows, key=lambda r: -abs(r["mean"]))[:30]
        for row in rows:
            data = graph.edges[(row["src"], row["src_unit"]), (row["dst"], row["dst_unit"])]
            assert data["relevance"] == row["mean"]
            assert data["separation"] == row["separation"]
        assert graph.graph["inputs"] == (cluster == c).sum()
        assert graph.graph["target"] == 1
        if ("0", 2) in graph:  # the pattern's number, in every key
            value = pattern[cluster == c][0] + 1
            np.testing.assert_allclose(graph.nodes["0", 2]["relevance"], value, rtol=1e-12)
    with pytest.raises(InputError, match="there are 2 clusters, from 0 on: there is no 2"):
        found.graph(2)
    assert isinstance(graph, nx.DiGraph)


def test_inputs_in_any_order_make_the_same_clusters(tmp_path, held):
    db, dense, _ = held
    edges = dense.edges
    path = dense_stores.make(tmp_path / "o.nrm", sizes=SIZES)
    with Writer(path) as writer:
        for i in np.random.default_rng(0).permutation(len(dense.ids)):
            row = dense_stores.record(
                dense.keys[i], int(dense.targets[i]), edges, dense.values[i] * 2**7, label="cat"
            )
            writer.add(row)
    with ng.open(path) as other:
        one, two = clusters(db, target=0), clusters(other, target=0)
    assert one.assignment["cluster"].equals(two.assignment["cluster"])
    np.testing.assert_allclose(
        one.assignment["silhouette"], two.assignment["silhouette"], atol=1e-9
    )


def few(tmp_path, values, **options):
    edges = dense_stores.edge_list()
    path = dense_stores.make(tmp_path / f"few{len(values)}.nrm")
    with Writer(path) as writer:
        for i, row in enumerate(values):
            whole = np.zeros(len(edges))
            whole[: len(row)] = row
            writer.add(dense_stores.record(f"k{i}", 0, edges, whole))
    with ng.open(path) as db:
        return clusters(db, **options)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_inputs_that_are_all_alike_are_one_cluster(tmp_path, count):
    found = few(tmp_path, [[1, -2, 3.0]] * count)
    assert found.k <= 1
    assert found.assignment["cluster"].null_count == count * (len(found.edges) == 0)
    assert "no edge's relevance differs between the keys" in repr(found)
    for cluster in ("a", 0.5, 0):
        with pytest.raises(InputError, match=r"cluster"):
            found.graph(cluster)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_inputs_are_divided_only_when_asked_to(tmp_path, count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=(count, 20))
    assert few(tmp_path, values).k <= 1


def test_few_inputs_can_all_be_apart(tmp_path):
    found = few(tmp_path, np.random.default_rng(0).normal(size=(4, 20)), k=4)
    assert found.clusters["size"].to_pylist() == [1, 1, 1, 1]
    assert found.silhouette is None
    assert sorted(found.assignment["cluster"].to_pylist()) == [0, 1, 2, 3]


def test_inputs_without_relevance_are_in_no_cluster(tmp_path):
    values = np.vstack([np.random.default_rng(0).normal(size=(5, 20)), np.zeros((1, 20))])
    found = few(tmp_path, values, k=2)
    assert found.assignment["cluster"].to_pylist()[5] is None
    assert found.assignment["silhouette"].to_pylist()[5] is None
    assert sum(found.clusters["size"].to_pylist()) == 5
    assert "1 keys have no relevance on the chosen edges" in repr(found)


def test_what_makes_no_sense_is_refused(tmp_path, held, monkeypatch):
    db, _, _ = held
    for options, words in [
        ({"k": 0}, "k must be a whole number of at least 1"),
        ({"edges": 0}, "edges must be"),
        ({"k": 25}, "25 clusters were asked for, and there are 24 different flows"),
        ({"where": "label = 'cow'"}, "no input is chosen"),
    ]:
        with pytest.raises(InputError, match=words):
            clusters(db, **{"target": 0, **options})
    with pytest.raises(InputError, match="2 different targets"):
        clusters(db)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(InputError, match=r"need sklearn.*pip install 'nrm-graph\[stats\]'"):
        clusters(db, target=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 30))
def test_normalised_flows_know_no_scale(seed, keys, edges):
    rng = np.random.default_rng(seed)
    flows = dense_stores.heavy(rng, (keys, edges)).astype(float)
    scales = 4.0 ** rng.integers(-20, 20, (keys, 1))
    one, two = clustering.standardized(flows), clustering.standardized(flows * scales)
    np.testing.assert_allclose(one, two, atol=1e-9)
    spread = one.std(0)
    assert ((np.abs(spread - 1) < 1e-9) | (spread == 0)).all()
    points = clustering.normalized(one)
    near = clustering.rotated(points)
    gram = points @ points.T
    np.testing.assert_allclose(near @ near.T, gram, atol=1e-12)


def test_the_number_of_clusters_is_chosen_on_a_sample_of_many_keys(monkeypatch):
    monkeypatch.setattr(clustering, "SAMPLE", 40)
    rng = np.random.default_rng(0)
    kinds = np.arange(300) % 2
    flows = noisy(rng, patterns(rng, 2, 100)[kinds])
    points = clustering.rotated(clustering.normalized(clustering.standardized(flows)))
    k, tried, reference = clustering.choose(points, 300, 0)
    assert k == 2
    assert [n for n, _ in tried] == [2, 3, 4, 5, 6, 7, 8]
    assert tried[0][1] > reference
