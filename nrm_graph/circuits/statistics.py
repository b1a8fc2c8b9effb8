"""Tests of many edges at once, over arrays whose rows are keys; no store here.

The unit of replication is the *key*: several explanations of one input (its targets) are one
observation.  Undefined numbers are NaN here and null in tables.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph._optional import stats_library
from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ADJUSTMENTS = ("bh", "by")
CHUNK_BYTES = 64 << 20
"""Permutations are drawn and multiplied in chunks of about this size."""

_EPS = float(np.finfo(np.float64).eps)
_SAME = 32 * _EPS


def key_sums(
    keys: Sequence[str], values: NDArray[np.float64]
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.int64]]:
    """Add up the rows of each key.

    Parameters
    ----------
    keys : sequence of str, (N,)
        Key of every row.
    values : ndarray of float64, (N, E)
        One row per (key, target) pair.

    Returns
    -------
    keys : tuple of str, (K,)
        Each key once, sorted, so that nothing after depends on the order of rows.
    sums : ndarray of float64, (K, E)
        Sum of the rows of each key.
    counts : ndarray of int64, (K,)
        Number of rows of each key.
    """
    unique_keys = tuple(sorted(set(keys)))
    place = {key: i for i, key in enumerate(unique_keys)}
    row = np.fromiter((place[key] for key in keys), np.int64, len(keys))
    counts = np.bincount(row, minlength=len(unique_keys))
    if len(unique_keys) == len(keys):
        return unique_keys, values[np.argsort(row)], counts
    sums = np.zeros((len(unique_keys), values.shape[1]))
    np.add.at(sums, row, values)
    return unique_keys, sums, counts


def welch(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Test of equal means, column by column, without assuming equal variances.

    Parameters
    ----------
    a, b : ndarray of float64, (n, E) and (m, E)
        One row per key.

    Returns
    -------
    stderr : ndarray of float64, (E,)
        Standard error of the difference of means; NaN where a group has one key.
    p : ndarray of float64, (E,)
        Two-sided p-value of Welch's t-test (:func:`scipy.stats.ttest_ind_from_stats`); NaN where
        a group has one key.  Where neither group varies it is 1 if their values are equal, else
        NaN: there is no spread to judge the difference by.
    """
    if min(len(a), len(b)) < 2:
        return np.full(a.shape[1], np.nan), np.full(a.shape[1], np.nan)
    means = a.mean(0), b.mean(0)
    spreads = _deviation(a), _deviation(b)
    stderr = np.sqrt(spreads[0] ** 2 / len(a) + spreads[1] ** 2 / len(b))
    scale = np.maximum(np.abs(a).max(0), np.abs(b).max(0))
    p = _unvarying(means[0] - means[1], scale)
    varying = stderr > 0
    if varying.any():
        test = stats_library("scipy.stats").ttest_ind_from_stats
        (ma, mb), (sa, sb) = [m[varying] for m in means], [s[varying] for s in spreads]
        p[varying] = test(ma, sa, len(a), mb, sb, len(b), equal_var=False).pvalue
    return stderr, p


def paired(difference: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Paired t-test of differences within keys, (n, E); returns as :func:`welch` does."""
    n = len(difference)
    if n < 2:
        return np.full(difference.shape[1], np.nan), np.full(difference.shape[1], np.nan)
    mean = difference.mean(0)
    stderr = _deviation(difference) / math.sqrt(n)
    p = _unvarying(mean, np.abs(difference).max(0))
    varying = stderr > 0
    if varying.any():
        t = np.abs(mean[varying] / stderr[varying])
        p[varying] = 2 * stats_library("scipy.stats").t.sf(t, n - 1)
    return stderr, p


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the standard deviation of every column; 0 where values differ by rounding alone."""
    spread: NDArray[np.float64] = values.std(0, ddof=1)
    spread[np.ptp(values, 0) <= _SAME * np.abs(values).max(0)] = 0
    return spread


def _unvarying(difference: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values where nothing varies."""
    return np.where(np.abs(difference) <= _SAME * scale, 1.0, np.nan)


def label_permutations(
    values: NDArray[np.float64], first: NDArray[np.bool_], draws: int, seed: int
) -> tuple[NDArray[np.float64], bool]:
    """P-values of a difference of means, by permuting the groups' labels over keys.

    The hypothesis is that labels are exchangeable; the statistic is the absolute difference of
    means.  All labelings are enumerated where there are at most ``draws``; otherwise labelings
    are drawn and the observed one is counted as one more (Phipson and Smyth 2010), so that
    p-values are valid at any number of draws.  Every column sees the same labelings, which
    depend on the seed and the groups' sizes only.

    Parameters
    ----------
    values : ndarray of float64, (K, E)
        One row per key of both groups, in an order that does not depend on the groups.
    first : ndarray of bool, (K,)
        Which keys are in the first group.
    draws : int
        Number of random labelings.
    seed : int
        Seed of the labelings.

    Returns
    -------
    p : ndarray of float64, (E,)
        Two-sided p-values; NaN where a group has one key.
    exact : bool
        Whether all labelings were enumerated.
    """
    n, size = len(first), int(first.sum())
    if min(size, n - size) < 2:
        return np.full(values.shape[1], np.nan), False
    if 2 * size > n:  # of two groups the smaller is labeled, whichever is called the first
        first, size = ~first, n - size
    centered = values - values.mean(0)
    exact = math.comb(n, size) <= draws
    rows = _chunk(n, values.shape[1])
    labelings = _every_subset(n, size, rows) if exact else _subsets(n, size, draws, rows, seed)
    return _share(centered, first.astype(np.float64), labelings, exact), exact


def sign_flips(
    difference: NDArray[np.float64], draws: int, seed: int
) -> tuple[NDArray[np.float64], bool]:
    """P-values of mean differences within keys, by exchanging a key's two values.

    As :func:`label_permutations`, where every key is in both groups: (K, E) to (E,).
    """
    n = len(difference)
    if n < 2:
        return np.full(difference.shape[1], np.nan), False
    exact = n < 63 and 2**n <= draws
    rows = _chunk(n, difference.shape[1])
    labelings = _every_sign(n, rows) if exact else _signs(n, draws, rows, seed)
    return _share(difference, np.ones(n), labelings, exact), exact


def _share(
    values: NDArray[np.float64],
    observed: NDArray[np.float64],
    labelings: Iterator[NDArray[np.float64]],
    exact: bool,
) -> NDArray[np.float64]:
    """Share of labelings whose statistic is at least the observed one."""
    # What ties in exact arithmetic may differ by the rounding of a sum of n products.
    slack = 2 * len(values) * _EPS * np.abs(values).sum(0)
    least = np.abs(observed @ values) - slack
    count, total = np.zeros(values.shape[1], np.int64), 0
    for labeling in labelings:
        count += (np.abs(labeling @ values) >= least).sum(0)
        total += len(labeling)
    return count / total if exact else (count + 1) / (total + 1)


def _chunk(n: int, edges: int) -> int:
    return max(16, CHUNK_BYTES // (8 * (3 * n + 2 * edges)))


def _every_subset(n: int, size: int, rows: int) -> Iterator[NDArray[np.float64]]:
    subsets = itertools.combinations(range(n), size)
    while part := list(itertools.islice(subsets, rows)):
        yield _indicator(np.array(part), n)


def _subsets(n: int, size: int, draws: int, rows: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    for start in range(0, draws, rows):
        order = rng.random((min(rows, draws - start), n))
        yield _indicator(np.argpartition(order, size - 1, axis=1)[:, :size], n)


def _indicator(chosen: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    indicator = np.zeros((len(chosen), n))
    np.put_along_axis(indicator, chosen, 1.0, axis=1)
    return indicator


def _every_sign(n: int, rows: int) -> Iterator[NDArray[np.float64]]:
    for start in range(0, 2**n, rows):
        number = np.arange(start, min(start + rows, 2**n))[:, None]
        yield np.where((number >> np.arange(n)) & 1, -1.0, 1.0)


def _signs(n: int, draws: int, rows: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    for start in range(0, draws, rows):
        yield np.where(rng.random((min(rows, draws - start), n)) < 0.5, 1.0, -1.0)


def q_values(
    p: NDArray[np.float64], groups: NDArray[np.int64], adjust: str = "bh"
) -> NDArray[np.float64]:
    """Adjust p-values for the number of tests, within each group of them.

    Parameters
    ----------
    p : ndarray of float64, (E,)
        P-values; NaN where there is none, which is not counted as a test.
    groups : ndarray, (E,)
        Group of each.
    adjust : {"bh", "by"}
        Benjamini and Hochberg (1995), or Benjamini and Yekutieli (2001), which holds under any
        dependence; :func:`scipy.stats.false_discovery_control`.

    Returns
    -------
    ndarray of float64, (E,)
        q-values; NaN where p is.
    """
    check_adjustment(adjust)
    control = stats_library("scipy.stats").false_discovery_control
    q = np.full(p.shape, np.nan)
    for group in np.unique(groups):
        tested = (groups == group) & ~np.isnan(p)
        if tested.any():
            q[tested] = control(p[tested], method=adjust)
    return q


def check_adjustment(adjust: str) -> None:
    """Refuse an adjustment that is not known."""
    if adjust not in ADJUSTMENTS:
        raise InputError(f"adjust must be one of {', '.join(ADJUSTMENTS)}, found {adjust!r}")
