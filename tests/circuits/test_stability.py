"""Split halves and resamples against plain loops over dense arrays; prototypes of a circuit."""

import networkx as nx
import numpy as np
import pytest
from reference import dense_stores
from scipy import stats

import nrm_graph as ng
from nrm_graph.circuits import edges as chosen
from nrm_graph.circuits import stability as module
from nrm_graph.circuits.engines import EDGE
from nrm_graph.circuits.prototypes import prototypes
from nrm_graph.circuits.stability import stability
from nrm_graph.errors import InputError
from nrm_graph.store.write.writer import Writer

NAMES = {"x": 0, "0": 1, "1": 2}


@pytest.fixture(scope="module", params=[1, 3])
def held(request, tmp_path_factory):
    targets = request.param
    path = dense_stores.random_store(tmp_path_factory.mktemp("s") / "s.nrm", 11, 13, targets)
    with ng.open(path) as db:
        yield db, dense_stores.read(path)


def dense_means(dense, weights, weight):
    """Mean over inputs of every edge, where a key counts ``weights[key]`` times."""
    times = np.array([weights[key] for key in dense.keys], float)
    values = dense.values * (dense.logits[:, None] if weight == "logit" else 1)
    return times @ values / times.sum()


def dense_top(means, top):
    order = np.argsort(-np.abs(means), kind="stable")[:top]
    return {i for i in order if means[i] != 0}


@pytest.mark.parametrize("weight", ["unit", "logit"])
@pytest.mark.parametrize("top", [8, 500])
def test_stability_is_what_loops_over_dense_arrays_say(held, top, weight):
    db, dense = held
    found = stability(
        db, top=top, weight=weight, mixed_targets=True, splits=15, draws=60, level=0.9, seed=4
    )
    keys = sorted(set(dense.keys))
    n = len(keys)
    halves = rng_halves(4, 15, n)
    resamples = rng_resamples(4, 15, 60, n)

    def means(times):
        return dense_means(dense, dict(zip(keys, times, strict=True)), weight)

    whole = means(np.ones(n))
    circuit = sorted(dense_top(whole, top), key=lambda i: -abs(whole[i]))
    names = [tuple(row[c] for c in EDGE) for row in found.edges.to_pylist()]
    assert names == [dense.edges[i] for i in circuit]
    np.testing.assert_allclose(found.edges["mean"], whole[circuit], rtol=1e-12)
    for i, half in enumerate(halves):
        a, b = means(half), means(1 - half)
        one, other = dense_top(a, top), dense_top(b, top)
        assert found.splits["jaccard"][i].as_py() == len(one & other) / len(one | other)
        least = min(len(one), len(other))
        assert found.splits["overlap"][i].as_py() == len(one & other) / least
        expected = stats.spearmanr(a[circuit], b[circuit]).statistic
        np.testing.assert_allclose(found.splits["rank_correlation"][i].as_py(), expected)
    drawn = np.array([means(times) for times in resamples])
    low, high = np.quantile(drawn[:, circuit], [0.05, 0.95], axis=0)
    np.testing.assert_allclose(found.edges["low"], low, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.edges["high"], high, rtol=1e-10, atol=1e-12)
    tops = [dense_top(row, top) for row in drawn]
    share = [np.mean([i in t for t in tops]) for i in circuit]
    np.testing.assert_allclose(found.edges["frequency"], share, rtol=1e-12)
    assert found.certified
    assert 0 < found.jaccard <= found.overlap <= 1


def rng_halves(seed, splits, n):
    order = np.argsort(np.random.default_rng(seed).random((splits, n)), axis=1)
    return (order < n // 2).astype(int)


def rng_resamples(seed, splits, draws, n):
    rng = np.random.default_rng(seed)
    rng.random((splits, n))
    return rng.multinomial(n, np.full(n, 1 / n), draws)


@pytest.fixture
def wide(tmp_path):
    """3,500 edges: 40 shared by all inputs, the others heavy tails that come and go."""
    rng = np.random.default_rng(0)
    sizes = (50, 60, 8)
    edges = dense_stores.edge_list(sizes)
    values = dense_stores.heavy(rng, (10, len(edges)), present=0.4) * 0.02
    values[:, :40] += rng.normal(20, 6, 40)
    dense_stores.make(tmp_path / "w.nrm", sizes=sizes)
    with Writer(tmp_path / "w.nrm") as writer:
        for i in range(10):
            writer.add(dense_stores.record(f"k{i}", 0, edges, values[i]))
    with ng.open(tmp_path / "w.nrm") as db:
        yield db, len(edges)


def test_candidates_are_certified_before_all_edges_are_read(wide):
    db, edges = wide
    found = stability(db, top=20, splits=10, draws=100)
    assert found.certified
    assert found.candidates == 1000 < edges
    # Every edge is a candidate here: nothing changes.
    everything = stability(db, top=1000, splits=10, draws=100)
    assert everything.candidates > 3000
    assert everything.edges.slice(0, 20)["mean"].equals(found.edges["mean"])
    assert "top 20 edges over 10 keys (all inputs)" in repr(found)


def test_what_is_not_certified_is_said(wide, monkeypatch):
    db, _ = wide
    monkeypatch.setattr(module, "MEANS_BYTES", 1)
    found = stability(db, top=200, splits=10, draws=100)
    assert not found.certified
    assert found.candidates == 200
    assert "not certified: only the 200 largest edges were compared" in repr(found)


def test_shared_structure_is_stable_and_noise_is_not(wide):
    db, _ = wide
    shared = stability(db, top=40, splits=20, draws=200)
    assert shared.jaccard > 0.9
    assert shared.rank_correlation > 0.9
    assert shared.edges["frequency"].to_numpy().min() > 0.9
    lower, upper = (shared.edges[c].to_numpy() for c in ("low", "high"))
    assert (lower > 0).all()
    assert (
        (lower <= shared.edges["mean"].to_numpy()) & (shared.edges["mean"].to_numpy() <= upper)
    ).all()
    noise = stability(db, top=400, splits=20, draws=200)
    assert noise.jaccard < 0.6


def test_intervals_cover_the_mean_as_often_as_they_say(tmp_path):
    """Of normal values of 40 keys a percentile interval at 0.9 covers in about 0.88."""
    rng = np.random.default_rng(3)
    sizes = (30, 20, 3)
    edges = dense_stores.edge_list(sizes)
    values = rng.normal(1, 0.5, (40, len(edges)))
    dense_stores.make(tmp_path / "n.nrm", sizes=sizes)
    with Writer(tmp_path / "n.nrm") as writer:
        for i in range(40):
            writer.add(dense_stores.record(f"k{i}", 0, edges, values[i]))
    with ng.open(tmp_path / "n.nrm") as db:
        found = stability(db, top=1000, splits=1, draws=500, level=0.9)
    low, high = (found.edges[c].to_numpy() for c in ("low", "high"))
    covered = ((low < 1) & (high > 1)).mean()
    assert len(low) > 600
    assert 0.84 < covered < 0.93


def test_two_keys_are_halved_and_one_is_refused(held):
    db, _ = held
    found = stability(db, "key IN ('k1', 'k2')", target=0, top=3, splits=4, draws=10)
    assert len(found.splits) == 4
    with pytest.raises(InputError, match="one key, 'k1': stability over keys needs at least 2"):
        stability(db, "key = 'k1'", target=0)
    one = stability(db, "key IN ('k1', 'k2')", target=0, top=1, splits=4, draws=10)
    assert one.splits["rank_correlation"].null_count == 4
    assert one.rank_correlation is None
    assert "rank correlation none" in repr(one)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 0}, "top must be at least 1"),
        ({"splits": 0}, "splits must be"),
        ({"draws": True}, "draws must be"),
        ({"level": 1}, "level must be between 0 and 1, found 1"),
        ({"weight": "x"}, "weight must be"),
        ({"where": "label = 'cow'"}, "no input is chosen"),
    ],
)
def test_what_makes_no_sense_is_refused(held, options, words):
    with pytest.raises(InputError, match=words):
        stability(held[0], **{"target": 0, **options})


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["unit", "logit"])
def test_prototypes_are_cosines_of_dense_rows(held, weight):
    db, dense = held
    circuit = db.circuit("label = 'cat'", target=0, top=12, weight=weight)
    found = prototypes(db, circuit, k=100)
    edges = [(NAMES[d[0]], d[1], NAMES[s[0]], s[1]) for s, d in circuit.edges]
    mean = np.array([data["relevance"] for _, _, data in circuit.edges(data=True)])
    flows = np.column_stack([dense.column(e) for e in edges])
    flows *= dense.logits[:, None] if weight == "logit" else 1
    cosine = flows @ mean / (np.linalg.norm(flows, axis=1) * np.linalg.norm(mean))
    nearest = found.filter(np.array(found["side"]) == "nearest")
    farthest = found.filter(np.array(found["side"]) == "farthest")
    assert len(nearest) + len(farthest) == len(dense.ids)
    rows = nearest.to_pylist() + farthest.to_pylist()[::-1]
    # Means are sums of threads in any order: of two cosines that agree to rounding either is first.
    similarity = np.array([row["similarity"] for row in rows])
    assert (np.diff(similarity) <= 1e-12).all()
    place = {identity: i for i, identity in enumerate(dense.ids.tolist())}
    order = [place[row["input_id"]] for row in rows]
    assert sorted(order) == list(range(len(dense.ids)))
    np.testing.assert_allclose(similarity, cosine[order], atol=1e-12)
    assert [row["key"] for row in rows] == [dense.keys[i] for i in order]
    assert [row["label"] for row in rows] == [dense.labels[i] for i in order]
    assert [row["target"] for row in rows] == [dense.targets[i] for i in order]


def test_prototypes_of_other_inputs(held):
    db, _ = held
    circuit = db.circuit("label = 'cat'", target=0, top=12)
    found = prototypes(db, circuit, "label = 'dog'", k=2, target=0)
    assert found["side"].to_pylist() == ["nearest", "nearest", "farthest", "farthest"]
    assert set(found["label"].to_pylist()) == {"dog"}
    one, two, three, four = found["similarity"].to_pylist()
    assert one >= two >= four >= three
    with pytest.raises(InputError, match="k must be"):
        prototypes(db, circuit, k=0)
    circuit.clear()
    with pytest.raises(InputError, match="no edges"):
        prototypes(db, circuit)


def test_prototypes_of_blocks_of_edges_are_the_same(held, monkeypatch):
    db, dense = held
    circuit = db.circuit("label = 'cat'", target=0, top=12)
    whole = prototypes(db, circuit, k=100)
    monkeypatch.setattr(chosen, "BLOCK_BYTES", 8 * 5 * len(dense.ids))
    parts = prototypes(db, circuit, k=100)
    assert parts["input_id"].to_pylist() == whole["input_id"].to_pylist()
    np.testing.assert_allclose(parts["similarity"], whole["similarity"], atol=1e-12)


def test_prototypes_are_of_a_graph_of_relevance(held):
    numbers, bare = nx.DiGraph([(1, 2)]), nx.DiGraph([(("x", 0), ("0", 1))])
    for graph, words in (
        ("cats", "expected a circuit"),
        (numbers, r"nodes are \(layer name, unit\), found 1"),
        (bare, "has no relevance"),
    ):
        with pytest.raises(InputError, match=words):
            prototypes(held[0], graph)


def test_an_input_without_the_circuits_edges_has_no_similarity(tmp_path):
    edges = dense_stores.edge_list()
    dense_stores.make(tmp_path / "z.nrm")
    values = np.zeros((4, len(edges)))
    values[0, :2] = 1, 2
    values[1, :2] = -1, -2
    values[2, 9] = 1
    with Writer(tmp_path / "z.nrm") as writer:
        for i in range(4):
            writer.add(dense_stores.record(f"k{i}", 0, edges, values[i], label="ab"[i // 3]))
    with ng.open(tmp_path / "z.nrm") as db:
        found = prototypes(db, db.circuit("key = 'k0'"), k=5).to_pylist()
    assert [(r["side"], r["key"], r["similarity"]) for r in found[:1]] == [
        ("nearest", "k0", pytest.approx(1))
    ]
    assert [(r["side"], r["key"]) for r in found[1:2]] == [("farthest", "k1")]
    np.testing.assert_allclose(found[1]["similarity"], -1)
    assert [(r["side"], r["key"], r["similarity"]) for r in found[2:]] == [
        ("undefined", "k2", None),
        ("undefined", "k3", None),
    ]
