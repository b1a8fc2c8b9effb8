"""Contrasts of groups against NumPy and SciPy on dense arrays, absent edges as zeros."""

import itertools
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dense_stores
from scipy import stats

import nrm_graph as ng
from nrm_graph.circuits import edges as chosen_edges
from nrm_graph.circuits.contrast import contrast
from nrm_graph.circuits.engines import EDGE
from nrm_graph.errors import InputError, QueryError
from nrm_graph.graphs.formats import write_graph
from nrm_graph.plots import plot_subgraph
from nrm_graph.store.write.writer import Writer

NULLABLE = ("stderr", "welch_p", "welch_q", "permutation_p", "permutation_q")
# Means of at most 40 terms in float64, in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """14 keys with 3 targets each in several shards; every edge is missing from some input."""
    path = dense_stores.random_store(tmp_path_factory.mktemp("contrast") / "s.nrm", 5, targets=3)
    with ng.open(path) as db:
        yield db, dense_stores.read(path)


def key_means(dense, mask, weight="logit"):
    """Mean of each key's rows, (K, E), with the keys in order."""
    part = dense.where(mask)
    values = part.values * (part.logits[:, None] if weight == "logit" else 1)
    keys = sorted(set(part.keys))
    rows = [values[np.array([k == key for k in part.keys])].mean(0) for key in keys]
    return keys, np.array(rows)


def is_label(dense, label):
    return np.array([k == label for k in dense.labels])


def aligned(table, dense):
    """Columns of a contrast's table as arrays in the order of the dense edges; null is NaN."""
    places = [dense.edges.index(tuple(row[c] for c in EDGE)) for row in table.to_pylist()]
    assert len(set(places)) == len(table)
    columns = {}
    for name in ("mean_a", "mean_b", "difference", *NULLABLE):
        assert not np.isnan(table[name].drop_null().to_numpy()).any()  # NaN never, null instead
        columns[name] = table[name].to_numpy()
    return np.array(places), SimpleNamespace(**columns)


def dense_q(p, edges, adjust):
    groups = np.array([10 * e[0] + e[2] for e in edges])
    q = np.full(len(p), np.nan)
    for g in np.unique(groups):
        of = (groups == g) & ~np.isnan(p)
        q[of] = stats.false_discovery_control(p[of], method=adjust)
    return q


@pytest.mark.parametrize("adjust", ["bh", "by"])
@pytest.mark.parametrize("weight", ["unit", "logit"])
def test_a_contrast_is_what_scipy_says_of_dense_arrays(held, weight, adjust):
    db, dense = held
    cats, dogs = (is_label(dense, label) & (dense.targets == 0) for label in ("cat", "dog"))
    found = contrast(db, "label = 'cat'", "label = 'dog'", target=0, weight=weight, adjust=adjust)
    _, a = key_means(dense, cats, weight)
    _, b = key_means(dense, dogs, weight)
    assert (dense.values[cats | dogs] == 0).any(0).all()
    places, got = aligned(found.table, dense)
    present = np.flatnonzero((np.concatenate([a, b]) != 0).any(0))
    assert sorted(places) == present.tolist()
    a, b = a[:, places], b[:, places]
    np.testing.assert_allclose(got.mean_a, a.mean(0), **CLOSE)
    np.testing.assert_allclose(got.mean_b, b.mean(0), **CLOSE)
    np.testing.assert_allclose(got.difference, a.mean(0) - b.mean(0), **CLOSE)
    stderr = np.sqrt(a.var(0, ddof=1) / 7 + b.var(0, ddof=1) / 7)
    np.testing.assert_allclose(got.stderr, stderr, **CLOSE)
    both = (np.ptp(a, 0) > 0) & (np.ptp(b, 0) > 0)
    assert both.sum() > 30
    welch = stats.ttest_ind(a[:, both], b[:, both], equal_var=False).pvalue
    np.testing.assert_allclose(got.welch_p[both], welch, rtol=1e-9)
    assert found.exact
    every = np.concatenate([a, b])
    masks = np.array([np.isin(range(14), s) for s in itertools.combinations(range(14), 7)])
    others = np.abs(masks @ every / 7 - ~masks @ every / 7)
    least = np.abs(a.mean(0) - b.mean(0)) - 1e-12 * np.abs(every).sum(0)
    np.testing.assert_array_equal(got.permutation_p, (others >= least).mean(0))
    edges = [dense.edges[i] for i in places]
    for test in ("welch", "permutation"):
        q = dense_q(getattr(got, f"{test}_p"), edges, adjust)
        np.testing.assert_allclose(getattr(got, f"{test}_q"), q, rtol=1e-12)
    assert (np.diff(np.abs(got.difference)) <= 0).all()
    assert found.targets == ((0,), (0,))
    assert not found.paired
    negative = [(dense.logits[mask] < 0).any() for mask in (cats, dogs)] if weight == "unit" else []
    assert len(found.notes) == sum(negative)
    assert all("negative logit" in note for note in found.notes)
    assert set(found.table["n_a"].to_pylist()) == set(found.table["n_b"].to_pylist()) == {7}
    lost = [i for i, (_, unit) in enumerate(dense.nodes) if unit < 0]
    shares = [dense.held[mask][:, lost].sum() / mask.sum() for mask in (cats, dogs)]
    np.testing.assert_allclose(found.absorbed, shares, **CLOSE)


def test_targets_of_a_key_are_one_observation(held):
    db, dense = held
    found = contrast(db, "label = 'cat'", "label = 'dog'", mixed_targets=True)
    _, a = key_means(dense, is_label(dense, "cat"))
    _, b = key_means(dense, is_label(dense, "dog"))
    assert len(a) == len(b) == 7  # of 21 rows each
    places, got = aligned(found.table, dense)
    a, b = a[:, places], b[:, places]
    np.testing.assert_allclose(got.mean_a, a.mean(0), **CLOSE)
    both = (np.ptp(a, 0) > 0) & (np.ptp(b, 0) > 0)
    welch = stats.ttest_ind(a[:, both], b[:, both], equal_var=False).pvalue
    np.testing.assert_allclose(got.welch_p[both], welch, rtol=1e-9)
    assert found.table["n_a"][0].as_py() == 7
    assert "explain different outputs, 0, 1, 2 and 0, 1, 2" in found.notes[0]


@pytest.mark.smoke
def test_keys_in_both_groups_are_pairs(held):
    db, dense = held
    found = contrast(db, "target = 0", "target = 2", draws=20_000)
    _, a = key_means(dense, dense.targets == 0)
    _, b = key_means(dense, dense.targets == 2)
    places, got = aligned(found.table, dense)
    a, b = a[:, places], b[:, places]
    assert found.paired
    assert found.exact
    varying = np.ptp(a - b, 0) > 0
    expected = stats.ttest_rel(a[:, varying], b[:, varying]).pvalue
    np.testing.assert_allclose(got.welch_p[varying], expected, rtol=1e-9)
    np.testing.assert_allclose(got.stderr, stats.sem(a - b), **CLOSE)
    signs = 1 - 2 * ((np.arange(2**14)[:, None] >> np.arange(14)) & 1)
    least = np.abs((a - b).sum(0)) - 1e-12 * np.abs(a - b).sum(0)
    np.testing.assert_array_equal(got.permutation_p, (np.abs(signs @ (a - b)) >= least).mean(0))
    assert found.targets == ((0,), (2,))
    assert "explain different outputs, 0 and 2: a difference may" in found.notes[0]


def test_a_group_against_itself_has_no_difference(held):
    db, _ = held
    found = contrast(db, "target = 1", "target = 1")
    assert set(found.table["difference"].to_pylist()) == {0.0}
    assert set(found.table["welch_p"].to_pylist()) == {1.0}
    assert set(found.table["permutation_q"].to_pylist()) == {1.0}


def test_groups_that_share_some_keys_are_refused(held):
    db, _ = held
    with pytest.raises(InputError, match=r"3 of 14 keys are in both groups, such as 'k0'"):
        contrast(db, "label = 'cat'", "fold = 0 OR label = 'dog'", target=1, draws=1)


def test_edges_are_chosen_by_their_size_over_both_groups(held):
    db, dense = held
    found = contrast(db, "label = 'cat'", "label = 'dog'", target=0, edges=9)
    part = dense.where(dense.targets == 0)
    squares = ((part.values * part.logits[:, None]) ** 2).sum(0)
    expected = {dense.edges[i] for i in np.argsort(-squares)[:9]}
    assert {tuple(row[c] for c in EDGE) for row in found.table.to_pylist()} == expected


def test_blocks_of_edges_change_nothing(held, monkeypatch):
    db, _ = held
    whole = contrast(db, "label = 'cat'", "label = 'dog'", target=0, draws=500)
    monkeypatch.setattr(chosen_edges, "BLOCK_BYTES", 8 * 14 * 3)
    parts = contrast(db, "label = 'cat'", "label = 'dog'", target=0, draws=500)
    assert parts.table.equals(whole.table)


def keys_where(keys):
    return f"key IN ({', '.join(repr(key) for key in sorted(keys))})"


@settings(deadline=None, max_examples=6)
@given(st.permutations([f"k{i}" for i in range(14)]), st.integers(2, 12), st.integers(3, 14))
def test_swapping_groups_negates_the_difference_alone(held, keys, cut, end):
    db, dense = held
    first, second = keys[:cut], keys[cut : max(end, cut + 1)]
    there = contrast(db, keys_where(first), keys_where(second), target=0, draws=300, edges=20)
    back = contrast(db, keys_where(second), keys_where(first), target=0, draws=300, edges=20)
    (p, one), (q, other) = (aligned(c.table, dense) for c in (there, back))
    assert sorted(p) == sorted(q)
    p, q = np.argsort(p), np.argsort(q)
    np.testing.assert_allclose(one.difference[p], -other.difference[q], **CLOSE)
    np.testing.assert_array_equal(one.mean_a[p], other.mean_b[q])
    for name in NULLABLE:
        np.testing.assert_allclose(getattr(one, name)[p], getattr(other, name)[q], rtol=1e-9)


def planted(path, seed, scale=1.0, order=None, n=8):
    """Two labels; of the 51 edges the first of each pair of layers differ."""
    rng = np.random.default_rng(seed)
    edges = dense_stores.edge_list()
    values = dense_stores.heavy(rng, (2 * n, len(edges)), present=0.7)
    values[:n, [0, 1, 40]] += 30
    dense_stores.make(path)
    with Writer(path, shard_inputs=5) as writer:
        for i in range(2 * n) if order is None else order:
            label = "a" if i < n else "b"
            row = dense_stores.record(f"k{i:02}", 0, edges, values[i] * scale, label=label)
            writer.add(row)
    return path


def test_scale_and_order_of_inputs_change_no_p_value(tmp_path):
    tables = []
    for i, (scale, order) in enumerate([(1, None), (2.0**-20, None), (1, range(15, -1, -1))]):
        with ng.open(planted(tmp_path / f"{i}.nrm", 3, scale, order)) as db:
            tables.append(contrast(db, "label = 'a'", "label = 'b'", draws=400).table)
    for table, scale in zip(tables[1:], [2.0**-20, 1], strict=True):
        for name in ("dst_unit", "src_unit", "permutation_p", "permutation_q"):
            assert table[name].equals(tables[0][name])
        for name in ("welch_p", "welch_q"):
            np.testing.assert_allclose(table[name], tables[0][name], rtol=1e-9)
        np.testing.assert_allclose(
            table["difference"], tables[0]["difference"].to_numpy() * scale, rtol=1e-9
        )
    strongest = {tuple(r[c] for c in EDGE) for r in tables[0].to_pylist() if r["welch_q"] < 0.01}
    assert {dense_stores.edge_list()[i] for i in (0, 1, 40)} <= strongest


@pytest.mark.parametrize(("a", "b"), [("'k0'", "'k1'"), ("'k0'", "'k1', 'k2', 'k5'")])
def test_groups_of_one_key_have_a_difference_and_no_test(held, a, b):
    db, dense = held
    found = contrast(db, f"key IN ({a})", f"key IN ({b})", target=0)
    places, got = aligned(found.table, dense)
    assert len(places) > 10
    for name in NULLABLE:
        assert found.table[name].null_count == len(found.table)
    mask = np.array([k in b for k in dense.keys]) & (dense.targets == 0)
    expected = (dense.values * dense.logits[:, None])[mask].mean(0)
    np.testing.assert_allclose(got.mean_b, expected[places], **CLOSE)
    assert any("a test needs at least 2 in each" in note for note in found.notes)
    graph = found.graph(top=5)
    assert all(nx.get_edge_attributes(graph, "relevance").values())
    assert not nx.get_edge_attributes(graph, "welch_p")


def test_what_pruning_hid_is_left_out_and_counted(tmp_path):
    edges = dense_stores.edge_list()
    rng = np.random.default_rng(1)
    values = dense_stores.heavy(rng, (12, len(edges)), present=0.9)
    always = [e for e in edges if e[0] == 1 and e[2] == 0][:4]
    for edge in always:
        values[:, edges.index(edge)] = rng.normal(5, 1, 12)
    lost = (1, -3, 0, -3)
    path = dense_stores.make(tmp_path / "p.nrm", coverage=0.9, pruned=[[1, 0, 0.9, None]])
    with Writer(path) as writer:
        for i in range(12):
            row = [*values[i], 0.5]
            label = "ab"[i % 2]
            writer.add(dense_stores.record(f"k{i}", 0, [*edges, lost], row, label=label))
    with ng.open(path) as db:
        found = contrast(db, "label = 'a'", "label = 'b'")
    got = {tuple(row[c] for c in EDGE) for row in found.table.to_pylist()}
    inside = {e for e in got if (e[0], e[2]) == (1, 0)}
    assert inside == set(always)
    stored = [e for e, v in zip(edges, values.T, strict=True) if v.any()]
    assert got - inside == {e for e in stored if (e[0], e[2]) != (1, 0)}
    assert found.unknown == sum((e[0], e[2]) == (1, 0) for e in stored) - len(always)
    assert any(f"{found.unknown} edges are left out" in note for note in found.notes)


def test_a_graph_of_differences_is_drawn_and_exported(held, tmp_path):
    db, dense = held
    found = contrast(db, "label = 'cat'", "label = 'dog'", target=1)
    graph = found.graph(top=12)
    assert graph.number_of_edges() == 12
    rows = found.table.slice(0, 12).to_pylist()
    for row in rows:
        data = graph.edges[(row["src"], row["src_unit"]), (row["dst"], row["dst_unit"])]
        assert data["relevance"] == row["difference"]
        for name in ("mean_a", "welch_p", "permutation_q", "stderr"):
            assert data[name] == row[name]
    size = np.abs(found.table["difference"].to_numpy())
    np.testing.assert_allclose(graph.graph["share"], size[:12].sum() / size.sum())
    assert graph.graph["target"] == 1
    names = {"x": 0, "0": 1, "1": 2}
    part = [dense.where(is_label(dense, k) & (dense.targets == 1)) for k in ("cat", "dog")]
    for (name, unit), data in graph.nodes(data=True):
        i = dense.nodes.index((names[name], unit))
        expected = [(p.held[:, i] * p.logits).mean() for p in part]
        np.testing.assert_allclose(data["relevance"], expected[0] - expected[1], **CLOSE)
    plot_subgraph(graph)
    write_graph(graph, tmp_path / "g.graphml")
    assert len(nx.read_graphml(tmp_path / "g.graphml").edges) == 12


@pytest.mark.smoke
def test_one_look_tells_what_was_compared(held):
    db, _ = held
    found = contrast(db, "label = 'cat'", "label = 'dog'", draws=100, target=0)
    text, first = repr(found), found.table.to_pylist()[0]
    ends = "{src}[{src_unit}] -> {dst}[{dst_unit}]: ".format(**first)
    assert f"{ends}{first['difference']:.4g} +- " in text  # as graphs and pictures draw it
    assert "Contrast of R x logit: 7 keys (label = 'cat') minus 7 (label = 'dog')" in text
    assert "BH q < 0.05: " in text
    assert "100 drawn" in text
    assert "absorbed (mean share" in text


def test_what_cannot_be_compared_is_refused(held):
    db, _ = held
    a, b = "label = 'cat'", "label = 'dog'"
    for options, words in [
        ({"edges": 0}, "edges must be a whole number of at least 1, found 0"),
        ({"draws": 2.5}, "draws must be"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"adjust": "holm"}, "adjust must be one of bh, by"),
        ({"weight": "odds"}, "weight must be 'unit' or 'logit'"),
        ({}, "explain 3 different targets"),
    ]:
        with pytest.raises(InputError, match=words):
            contrast(db, a, b, **{"target": 0, **options} if options else {})
    with pytest.raises(InputError, match="no input is chosen"):
        contrast(db, a, "label = 'cow'", target=0)
    with pytest.raises(QueryError):
        contrast(db, a, "true; DROP TABLE inputs", target=0)


def test_inputs_without_edges_are_compared_too(tmp_path):
    path = dense_stores.make(tmp_path / "e.nrm")
    edges = dense_stores.edge_list()
    with Writer(path) as writer:
        for i in range(4):
            writer.add(
                dense_stores.record(f"k{i}", 0, edges, [0.0] * len(edges), label="ab"[i % 2])
            )
    with ng.open(path) as db:
        found = contrast(db, "label = 'a'", "label = 'b'")
    assert len(found.table) == 0
    assert "0 edges" in repr(found)
    assert found.graph().number_of_edges() == 0
    assert found.table.schema.field("welch_p").type == pa.float64()


def shuffled(tmp_path, trials, n, seed):
    """Contrasts of labels that mean nothing: heavy tails, absent edges, sizes that differ."""
    path = tmp_path / f"null{seed}.nrm"
    rng = np.random.default_rng(seed)
    edges = dense_stores.edge_list()
    values = dense_stores.heavy(rng, (n, len(edges)), present=0.7)
    dense_stores.make(path)
    with Writer(path) as writer:
        for i in range(n):
            logit = rng.normal(3, 1)
            writer.add(dense_stores.record(f"k{i}", 0, edges, values[i], logit=logit))
    with ng.open(path) as db:
        for trial in range(trials):
            order = [f"k{i}" for i in rng.permutation(n)]
            a, b = keys_where(order[: n // 3]), keys_where(order[n // 3 :])
            yield contrast(db, a, b, draws=2000, seed=trial).table


def check_null(tables):
    """No more discoveries than their rate, in families (pairs of layers) and p-values alone."""
    families, alone = {"welch": [], "permutation": []}, {"welch": [], "permutation": []}
    for table in tables:
        pairs = chosen_edges.pair_codes(table)
        for test in families:
            q, p = (table[f"{test}_{kind}"].to_numpy() for kind in "qp")
            families[test] += [bool((q[pairs == g] < 0.05).any()) for g in np.unique(pairs)]
            alone[test].append((p < 0.05).sum() / len(p))
    for test, hits in families.items():
        # Under a global null the false discovery rate is the chance of any discovery.
        most = stats.binom.ppf(1 - 1e-4, len(hits), 0.05)
        assert sum(hits) <= most, (test, sum(hits), len(hits))
        # Edges of a trial share its labels but are independent otherwise.
        assert np.mean(alone[test]) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / (40 * len(tables)))


def test_labels_that_mean_nothing_discover_nothing(tmp_path):
    check_null(list(shuffled(tmp_path, 12, 24, 0)))


@pytest.mark.slow
def test_many_shuffles_of_labels_discover_no_more_than_their_rate(tmp_path):
    for seed in (1, 2, 3):
        check_null(list(shuffled(tmp_path, 50, 30, seed)))
