"""Dividing points into clusters, and how many there are; no store here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph._optional import stats_library

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 8
"""Numbers of clusters up to this are compared."""

REFERENCES = 19
"""Structureless data that the best number of clusters must beat: at a level of 1 / 20."""

SAMPLE = 500
"""Keys that the number of clusters is chosen from, at most."""


def standardized(flows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed roots of shares, of mean 0 and variance 1 over keys; 0 where nothing varies."""
    root = normalized(np.sign(flows) * np.sqrt(np.abs(flows)))
    if not len(root):
        return root
    spread = root.std(0)
    varying = spread > 1e-9
    centered: NDArray[np.float64] = np.where(varying, root - root.mean(0), 0.0)
    return centered / np.where(varying, spread, 1.0)


def normalized(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; those of length 0 stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def rotated(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the same points, with the same distances, into as few coordinates as they need."""
    if points.shape[1] <= len(points):
        return points
    u, s, _ = np.linalg.svd(points, full_matrices=False)
    coordinates: NDArray[np.float64] = u * s
    return coordinates


def divide(points: NDArray[np.float64], k: int, seed: int, starts: int = 10) -> NDArray[np.int64]:
    """Cluster of every point: 0 is the largest, ties by the first point."""
    if k == 1 or not len(points):
        return np.zeros(len(points), np.int64)
    means = stats_library("sklearn.cluster").KMeans(k, n_init=starts, random_state=seed)
    labels = means.fit_predict(points)
    sizes = np.bincount(labels, minlength=k)
    first = np.array([np.argmax(labels == c) for c in range(k)])
    rank = np.argsort(np.lexsort([first, -sizes]))
    clusters: NDArray[np.int64] = rank[labels].astype(np.int64)
    return clusters


def choose(
    points: NDArray[np.float64], distinct: int, seed: int
) -> tuple[int, list[tuple[int, float]], float | None]:
    """Choose a number of clusters by the silhouette, against structureless data.

    Parameters
    ----------
    points : ndarray of float64, (K, D)
        The points.
    distinct : int
        How many of them differ.
    seed : int
        Seed of the starts and references.

    Returns
    -------
    k : int
        1 unless the best silhouette exceeds those of all references.
    tried : list of (int, float)
        Every number that was tried, with its mean silhouette.
    largest : float or None
        The largest silhouette of all references, each with its own best number; None where there
        are too few points to try.
    """
    rng = np.random.default_rng(seed)
    if len(points) > SAMPLE:
        points = rotated(points[rng.choice(len(points), SAMPLE, replace=False)])
        distinct = len(np.unique(points.round(9), axis=0))
    most = min(MOST, distinct, len(points) - 1)
    tried = _silhouettes(points, most, seed)
    if not tried:
        return 1, [], None
    centered = points - points.mean(0)
    largest = -1.0
    for _ in range(REFERENCES):
        mixed = rng.standard_normal((len(points), len(points))) / np.sqrt(len(points) - 1)
        reference = normalized(points.mean(0) + mixed @ centered)
        largest = max(largest, *(value for _, value in _silhouettes(reference, most, seed)))
    best, value = max(tried, key=lambda pair: pair[1])
    return best if value > largest else 1, tried, largest


def _silhouettes(points: NDArray[np.float64], most: int, seed: int) -> list[tuple[int, float]]:
    score = stats_library("sklearn.metrics").silhouette_score
    return [
        (k, float(score(points, divide(points, k, seed, starts=3)))) for k in range(2, most + 1)
    ]
