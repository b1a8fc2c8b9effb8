"""Tests over arrays of keys and edges, against SciPy and plain enumeration."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nrm_graph.circuits import statistics as found
from nrm_graph.errors import InputError


def heavy(seed, n, edges, present=0.5):
    """Signed heavy tails with absent values."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(1.5, (n, edges)) * rng.lognormal(0, 2, edges)
    return np.where(rng.random((n, edges)) < present, values, 0.0).astype(np.float32).astype(float)


sizes = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))


def test_rows_of_a_key_are_added_whatever_their_order():
    keys = ["b", "a", "b", "a\0", "b"]
    values = np.arange(10.0).reshape(5, 2)
    order, sums, counts = found.key_sums(keys, values)
    assert order == ("a", "a\0", "b")
    assert counts.tolist() == [1, 1, 3]
    assert sums.tolist() == [[2, 3], [6, 7], [0 + 4 + 8, 1 + 5 + 9]]
    once = found.key_sums(["b", "c", "a"], values[:3])
    assert once[0] == ("a", "b", "c")
    assert once[1].tolist() == [[4, 5], [0, 1], [2, 3]]


@pytest.mark.smoke
@settings(deadline=None, max_examples=40)
@given(sizes)
def test_welch_is_scipys_where_scipy_has_an_answer(drawn):
    n, m, seed = drawn
    a, b = heavy(seed, n, 30), heavy(seed + 1, m, 30)
    stderr, p = found.welch(a, b)
    dense = np.sqrt(a.var(0, ddof=1) / n + b.var(0, ddof=1) / m)
    np.testing.assert_allclose(stderr, dense, rtol=1e-12)
    varying = (np.ptp(a, 0) > 0) & (np.ptp(b, 0) > 0)  # scipy warns of the others
    expected = stats.ttest_ind(a[:, varying], b[:, varying], equal_var=False).pvalue
    np.testing.assert_allclose(p[varying], expected, rtol=1e-9)
    absent = (a == 0).all(0) & (b == 0).all(0)
    assert (p[absent] == 1).all()


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_paired_test_is_scipys(drawn):
    n, _, seed = drawn
    a, b = heavy(seed, n, 20), heavy(seed + 1, n, 20)
    stderr, p = found.paired(a - b)
    varying = np.ptp(a - b, 0) > 0
    expected = stats.ttest_rel(a[:, varying], b[:, varying]).pvalue
    np.testing.assert_allclose(p[varying], expected, rtol=1e-9)
    np.testing.assert_allclose(stderr, stats.sem(a - b), rtol=1e-12)
    assert (p[((a - b) == 0).all(0)] == 1).all()


def test_values_that_do_not_vary_have_a_defined_p():
    a = np.tile([0.0, 0.1, 0.1, 0.3], (3, 1))
    b = np.tile([0.0, 0.1, 0.2, 0.3], (4, 1))
    b[:, 3] += [0, 1e-17, -1e-17, 5e-17]  # rounding of sums over targets
    stderr, p = found.welch(a, b)
    assert stderr.tolist() == [0, 0, 0, 0]
    assert p[[0, 1, 3]].tolist() == [1, 1, 1]
    assert np.isnan(p[2])
    one_varies = found.welch(a[:, :1], np.array([[1.0], [2], [3], [4]]))[1]
    expected = stats.ttest_1samp([1.0, 2, 3, 4], 0).pvalue
    np.testing.assert_allclose(one_varies, expected, rtol=1e-12)
    stderr, p = found.paired(np.tile([0.0, 0.1], (5, 1)))
    assert p[0] == 1
    assert np.isnan(p[1])
    assert stderr.tolist() == [0, 0]


def test_a_group_of_one_key_has_no_test():
    one, many = np.ones((1, 3)), heavy(0, 5, 3)
    for stderr, p in (found.welch(one, many), found.welch(many, one), found.paired(one)):
        assert np.isnan(stderr).all()
        assert np.isnan(p).all()
    p, _ = found.label_permutations(many, np.arange(5) == 2, 100, 0)
    assert np.isnan(p).all()
    assert np.isnan(found.sign_flips(one, 100, 0)[0]).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 10**6))
def test_few_labelings_are_enumerated(n, m, seed):
    values = heavy(seed, n + m, 12)
    values[:, 0] = 0.1  # every labeling ties
    values[:, 1] = np.arange(n + m) < n  # few values: many ties
    rng = np.random.default_rng(seed)
    first = rng.permutation(n + m) < n
    p, exact = found.label_permutations(values, first, 1000, seed)
    assert exact
    expected = np.zeros(12)
    subsets = list(itertools.combinations(range(n + m), n))
    observed = np.abs(values[first].mean(0) - values[~first].mean(0))
    for subset in subsets:
        mask = np.isin(np.arange(n + m), subset)
        other = np.abs(values[mask].mean(0) - values[~mask].mean(0))
        expected += other >= observed * (1 - 1e-9) - 1e-12 * np.abs(values).max(0)
    np.testing.assert_array_equal(p, expected / len(subsets))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 8), st.integers(0, 10**6))
def test_few_sign_flips_are_enumerated(n, seed):
    d = heavy(seed, n, 12)
    d[:, 0] = 0.1
    p, exact = found.sign_flips(d, 256, seed)
    assert exact
    expected = np.zeros(12)
    for signs in itertools.product([1, -1], repeat=n):
        other = np.abs((np.array(signs)[:, None] * d).mean(0))
        expected += other >= np.abs(d.mean(0)) - 1e-12 * np.abs(d).max(0)
    np.testing.assert_array_equal(p, expected / 2**n)


@pytest.mark.smoke
def test_permutations_agree_with_scipys():
    values, first = heavy(5, 40, 6, present=0.9), np.arange(40) < 15
    values[first] += np.median(np.abs(values), 0) * np.array([0, 0, 1, 1, 2, 2])
    p, exact = found.label_permutations(values, first, 20_000, 1)
    assert not exact
    expected = stats.permutation_test(
        (values[first], values[~first]),
        lambda a, b, axis: np.abs(a.mean(axis) - b.mean(axis)),
        n_resamples=20_000,
        alternative="greater",
        rng=np.random.default_rng(2),
        vectorized=True,
        batch=2000,
    ).pvalue
    # Two Monte Carlo estimates: 5 standard errors of their difference.
    bound = 5 * np.sqrt(2 * expected * (1 - expected) / 20_000) + 1e-4
    assert (np.abs(p - expected) < bound).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(6, 30), st.integers(2, 12), st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_permutation_p_values_know_neither_names_nor_scales(n, size, seed, scale):
    size = min(size, n - 2)
    values = heavy(seed, n, 8)
    first = np.random.default_rng(seed).permutation(n) < size
    p, exact = found.label_permutations(values, first, 200, 3)
    np.testing.assert_array_equal(found.label_permutations(values, ~first, 200, 3)[0], p)
    np.testing.assert_array_equal(found.label_permutations(values * 4, first, 200, 3)[0], p)
    np.testing.assert_array_equal(found.label_permutations(-values, first, 200, 3)[0], p)
    assert (p >= (0 if exact else 1 / 201)).all()
    assert (p <= 1).all()
    np.testing.assert_array_equal(
        found.sign_flips(values, 200, 3)[0], found.sign_flips(-values, 200, 3)[0]
    )
    several, _ = found.label_permutations(values * scale, first, 200, 3)
    np.testing.assert_array_equal(several, p)


def test_edges_in_blocks_and_permutations_in_chunks_change_nothing(monkeypatch):
    values, first = heavy(1, 30, 40), np.arange(30) < 12
    flips, _ = found.sign_flips(values, 500, 9)
    whole, _ = found.label_permutations(values, first, 500, 9)
    every, exact = found.label_permutations(values[:12], first[:12] & (np.arange(12) > 8), 500, 9)
    assert exact
    monkeypatch.setattr(found, "CHUNK_BYTES", 1)
    parts = [found.label_permutations(v, first, 500, 9)[0] for v in np.split(values, 4, axis=1)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    parts = [found.sign_flips(v, 500, 9)[0] for v in np.split(values, 4, axis=1)]
    np.testing.assert_array_equal(np.concatenate(parts), flips)
    again, _ = found.label_permutations(values[:12], first[:12] & (np.arange(12) > 8), 500, 9)
    np.testing.assert_array_equal(again, every)


def plain_q(p, by):
    """Step-up, as Benjamini and Hochberg write it."""
    m = len(p)
    harmonic = sum(1 / i for i in range(1, m + 1)) if by else 1
    order = sorted(range(m), key=lambda i: p[i])
    q, least = [0.0] * m, 1.0
    for rank in range(m, 0, -1):
        i = order[rank - 1]
        least = min(least, p[i] * m * harmonic / rank)
        q[i] = least
    return q


@pytest.mark.smoke
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2), st.booleans()), max_size=30),
    st.sampled_from(["bh", "by"]),
)
def test_q_values_within_groups(rows, adjust):
    p = np.array([np.nan if missing else p for p, _, missing in rows])
    groups = np.array([g for _, g, _ in rows])
    q = found.q_values(p, groups, adjust)
    assert (np.isnan(q) == np.isnan(p)).all()
    for g in range(3):
        of = (groups == g) & ~np.isnan(p)
        np.testing.assert_allclose(q[of], plain_q(p[of], adjust == "by"), rtol=1e-12, atol=1e-300)


def test_what_is_not_known_or_not_installed_is_said(monkeypatch):
    with pytest.raises(InputError, match="one of bh, by, found 'holm'"):
        found.q_values(np.ones(2), np.zeros(2), "holm")
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InputError, match=r"need scipy.*pip install 'nrm-graph\[stats\]'"):
        found.welch(heavy(0, 4, 2), heavy(1, 4, 2))


def rejections(trials, n, m, edges, draws, seed):
    """Share of null edges with p <= 0.05, and p-values of one edge each."""
    rng = np.random.default_rng(seed)
    ps = []
    for trial in range(trials):
        values = heavy(seed + trial, n + m, edges)
        first = rng.permutation(n + m) < n
        ps.append(found.label_permutations(values, first, draws, trial)[0])
    return np.array(ps)


def check_uniform_or_larger(ps):
    """P(p <= t) <= t for independent p-values, within 4 standard errors."""
    for t in (0.01, 0.05, 0.1, 0.25, 0.5):
        most = stats.binom.ppf(1 - 3e-5, ps.size, t)
        assert (ps <= t).sum() <= most, (t, (ps <= t).mean())


def test_permutation_p_values_are_valid_with_few_draws():
    # Edges are independent here. 19 draws: without the +1, P(p <= 1/19) would be near 0.1.
    check_uniform_or_larger(rejections(40, 12, 20, 50, 19, 0))
    check_uniform_or_larger(rejections(40, 3, 4, 50, 1000, 10**6))  # enumerated


@pytest.mark.slow
def test_permutation_p_values_are_valid_in_many_trials():
    check_uniform_or_larger(rejections(400, 25, 40, 200, 199, 5))
    ps = []
    for trial in range(400):
        d = heavy(trial, 15, 100)
        ps.append(found.sign_flips(d, 99, trial)[0])
    check_uniform_or_larger(np.array(ps))
