"""How far a circuit depends on which inputs it was computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph._optional import stats_library
from nrm_graph.circuits.absent import absent
from nrm_graph.circuits.checks import check_count
from nrm_graph.circuits.edge_graph import with_names
from nrm_graph.circuits.edges import blocks, by_size, known_partials, nullable, weighted_values
from nrm_graph.circuits.engines import EDGE
from nrm_graph.circuits.source import single
from nrm_graph.circuits.statistics import key_sums
from nrm_graph.errors import InputError
from nrm_graph.graphs.largest import check_top, largest
from nrm_graph.store.input_group import InputGroup, group
from nrm_graph.tables.html_tables import Description, HtmlTable, Tabular, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from nrm_graph.circuits.source import Source
    from nrm_graph.network.grouped_units import By
    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View

MEANS_BYTES = 1 << 30
"""Means of all candidate edges in all resamples are kept in at most this."""


@dataclass(frozen=True, eq=False, repr=False)
class Stability(Tabular):
    r"""Agreement of a circuit between halves of its keys, and between resamples of them.

    Attributes
    ----------
    group : InputGroup
        The inputs.
    edges : pyarrow.Table
        The circuit's edges, that of the largest \|mean\| first: ``dst_layer``, ``dst_unit``,
        ``src_layer``, ``src_unit``, the layers' names ``dst`` and ``src``, ``mean``, ``low`` and
        ``high`` (percentile bootstrap interval) and ``frequency``, the share of resamples in
        which the edge is among the top.
    splits : pyarrow.Table
        One row per random halving of the keys: ``jaccard`` (common top edges over all of both
        halves), ``overlap`` (over those of the smaller top) and ``rank_correlation`` (Spearman,
        of the two halves' means over the circuit's edges; null where there are fewer than two).
    top, draws : int
        Edges of a circuit; resamples.
    level : float
        Of the intervals.
    weight : str
        As asked.
    candidates : int
        Edges whose means were computed in every half and resample.
    certified : bool
        Whether it is proven that no other edge is among the top of any half or resample.
    unknown : int
        Edges left out because the store prunes their pair of layers and an input has no row of
        them.
    n_keys : int
        Keys of the group.
    """

    group: InputGroup
    edges: pa.Table
    splits: pa.Table
    top: int
    draws: int
    level: float
    weight: str
    candidates: int
    certified: bool
    unknown: int
    n_keys: int

    @property
    def jaccard(self) -> float:
        """Mean over the splits."""
        return float(np.mean(self.splits["jaccard"].to_numpy()))

    @property
    def overlap(self) -> float:
        """Mean over the splits."""
        return float(np.mean(self.splits["overlap"].to_numpy()))

    @property
    def rank_correlation(self) -> float | None:
        """Mean over the splits in which it is defined, or None."""
        values = self.splits["rank_correlation"].drop_null().to_numpy()
        return float(values.mean()) if len(values) else None

    def _description(self) -> Description:
        ranks = self.rank_correlation
        always = (self.edges["frequency"].to_numpy() >= self.level).sum()
        chosen = "all inputs" if self.group.where is None else self.group.where
        title = f"Stability of the top {self.top:,} edges over {self.n_keys:,} keys ({chosen})"
        lines = [
            f"{len(self.splits):,} split halves: Jaccard {self.jaccard:.3f}, overlap "
            f"{self.overlap:.3f}, rank correlation {'none' if ranks is None else f'{ranks:.3f}'}",
            f"{self.draws:,} resamples: {always:,} of {len(self.edges):,} edges are among the "
            f"top in at least {self.level:.0%}",
        ]
        if not self.certified:
            lines.append(f"not certified: only the {self.candidates:,} largest edges were compared")
        if self.unknown:
            lines.append(
                f"{self.unknown:,} edges of pruned pairs are left out; exact=True computes them"
            )
        return Description(title, tuple(lines))

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        columns = ("src", "src_unit", "dst", "dst_unit", "mean", "low", "high", "frequency")
        return (table_of(self.edges, columns, caption="Its edges, the largest mean first"),)

    def to_arrow(self) -> pa.Table:
        """Return :attr:`edges`."""
        return self.edges


def stability(
    db: View,
    where: str | None = None,
    *,
    top: int = 200,
    weight: str = "unit",
    target: Sought | None = None,
    mixed_targets: bool = False,
    splits: int = 100,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    exact: bool = False,
    tables: str | None = None,
    by: By | None = None,
) -> Stability:
    r"""Tell how a circuit's edges hold in halves and resamples of its keys.

    Keys are halved and resampled, with all their targets; means are over inputs, as a circuit's.

    Parameters
    ----------
    db : Database
        The store.
    where : str, optional
        SQL condition over ``inputs``; all by default.
    top : int
        Edges of the circuit, of a half and of a resample: those of the largest \|mean\|.
    weight : "unit" or "logit"
        What relevance is multiplied by.
    target, mixed_targets
        As in :meth:`nrm_graph.database.Database.circuit`.
    splits : int
        Number of random halvings.
    draws : int
        Number of bootstrap resamples.
    level : float
        Of the intervals.
    seed : int
        Seed of both.
    exact : bool
        Of a store that leaves edges out: compute the chosen edges for every input from the stored
        program, where an input has no row of one as well, instead of leaving edges out.
        An interrupted call goes on where it stopped when it is made again of the same ``Database``.
    tables : str, optional
        Reduced tables that ``db.materialize(name=..., watch=...)`` made, by their name, in place of
        the store's own; with an event, the inputs' conditional relevances, defined of all.
    by : str or mapping of layer name to str or array, optional
        Sum the store's units to coarser ones, as in :meth:`nrm_graph.database.Database.circuit`.

    Returns
    -------
    Stability
        Tables ``edges`` and ``splits``.

    Raises
    ------
    InputError
        If no input is chosen, targets differ, there are fewer than two keys, or scipy is not
        installed (``nrm-graph[stats]``).

    Notes
    -----
    An edge can be among the top of a resample without being a strong one over all.  A mean with
    weights w is at most \|w\| times the root of the edge's sum of squares (Cauchy and Schwarz), so
    edges are added by falling sum of squares until that is below the last of every top.

    With ``exact`` the candidates are fixed first, by the stored rows of all keys: four times
    ``top`` edges, and 1000 at least.  What is among the top of one half alone may not be among
    them, which raises the agreement, unless it is ``certified``: then the thresholds of what is
    absent prove that nothing else is among the top of any half or resample.

    Examples
    --------
    >>> stability(db, "label = 'cat'", top=100).jaccard  # doctest: +SKIP
    """
    check_top(top)
    for name, value, least in (("splits", splits, 1), ("draws", draws, 1), ("seed", seed, 0)):
        check_count(name, value, least)
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, found {level!r}")
    chosen = group(db, where, target=target, mixed_targets=mixed_targets)
    keys, _, counts = key_sums(chosen.keys, np.zeros((len(chosen), 0)))
    if len(keys) < 2:
        raise InputError(
            f"the group has one key, {keys[0]!r}: stability over keys needs at least 2"
        )
    rng = np.random.default_rng(seed)
    halves = _halves(rng, splits, len(keys))
    resamples = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), draws)
    key_weights = np.concatenate([np.ones((1, len(keys))), halves, 1 - halves, resamples])
    rows = single(db, chosen, weight, tables, by)
    edges, means, certified, unknown = _means(db, rows, top, key_weights, counts, exact)
    tops = [_top(row, top) for row in means]
    circuit, first, second = tops[0], tops[1 : 1 + splits], tops[1 + splits : 1 + 2 * splits]
    again = means[1 + 2 * splits :][:, circuit]
    times = np.bincount(np.concatenate(tops[1 + 2 * splits :]), minlength=means.shape[1])
    low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2], axis=0)
    table = with_names(db.topology, rows.kinds(db), edges.take(pa.array(circuit)))
    for name, column in (
        ("mean", means[0, circuit]),
        ("low", low),
        ("high", high),
        ("frequency", times[circuit] / draws),
    ):
        table = table.append_column(name, pa.array(column, pa.float64()))
    return Stability(
        chosen,
        table,
        _agreement(first, second, means[1 : 1 + 2 * splits][:, circuit]),
        top,
        draws,
        level,
        weight,
        len(edges),
        certified,
        unknown,
        len(keys),
    )


def _halves(rng: np.random.Generator, splits: int, n: int) -> NDArray[np.float64]:
    """Draw indicators of a random half of n keys, (splits, n)."""
    rank = np.argsort(rng.random((splits, n)), axis=1)
    half: NDArray[np.float64] = (rank < n // 2).astype(np.float64)
    return half


def _means(
    db: View,
    rows: Source,
    top: int,
    weights: NDArray[np.float64],
    counts: NDArray[np.int64],
    exact: bool,
) -> tuple[pa.Table, NDArray[np.float64], bool, int]:
    """Means of edges under weights of keys, of as many edges as may be among a top.

    Returns
    -------
    edges : pyarrow.Table
        Columns of :data:`nrm_graph.circuits.engines.EDGE`.
    means : ndarray of float64, (draws, edges)
        Mean over inputs of each edge.
    certified : bool
        Whether no other edge can be among the top.
    unknown : int
        Edges of pruned pairs that are left out.
    """
    partials, unknown = known_partials(db, rows, exact)
    size = np.sqrt(partials["squares"].to_numpy())
    order = by_size(partials, size, len(size))
    names, size = partials.select(EDGE).take(pa.array(order)), size[order]
    others, fixed = size, False
    if exact and rows.pruned:
        others, fixed = _others(db, rows, partials.take(pa.array(order))), True
    total = weights @ counts
    largest = np.sqrt(weights**2 @ counts) / total
    most = max(top, MEANS_BYTES // (8 * len(weights)))
    covered, count = 0, min(len(names), most, max(4 * top, 1000))
    parts = [np.zeros((len(weights), 0))]
    while True:
        for _, block in blocks(names.slice(covered, count - covered), len(rows.group)):
            values = weighted_values(db, rows, block, exact)
            _, sums, _ = key_sums(rows.group.keys, values)
            parts.append(weights @ sums / total[:, None])
        covered = count
        parts = [np.concatenate(parts, axis=1)]
        if covered == len(others):
            return names, parts[0], True, unknown
        last = np.zeros(len(weights))
        if covered >= top:
            last = np.partition(np.abs(parts[0]), -top, axis=1)[:, -top]
        certified = bool((last > largest * others[covered:].max()).all())
        if certified or covered == most or fixed:
            return names.slice(0, covered), parts[0], certified, unknown
        count = min(len(names), most, 2 * covered)


def _others(db: View, rows: Source, edges: pa.Table) -> NDArray[np.float64]:
    """Root of the largest sum of squares that edges may have, and one more that none has a row of.

    Infinite where nothing bounds what is absent.
    """
    bounds = absent(db, rows)
    if bounds is None or bounds.summed:
        return np.full(len(edges) + 1, np.inf)
    count = edges["n"].to_numpy()
    squares = edges["squares"].to_numpy() + bounds.errors(edges, count, squares=True)
    unseen = bounds.squares[bounds.unseen(edges, count, None) > 0, -1].max(initial=0.0)
    others: NDArray[np.float64] = np.sqrt(np.append(squares, unseen))
    return others


def _top(means: NDArray[np.float64], top: int) -> NDArray[np.int64]:
    """Places of the largest |mean|, those of 0 left out, the largest first."""
    size = np.abs(means)
    places = largest(size, top)
    return places[size[places] > 0]


def _agreement(
    first: Sequence[NDArray[np.int64]],
    second: Sequence[NDArray[np.int64]],
    means: NDArray[np.float64],
) -> pa.Table:
    """Table of split halves; ``means`` are those of the circuit's edges, all first halves first."""
    rows: dict[str, list[float]] = {"jaccard": [], "overlap": []}
    for ours, theirs in zip(first, second, strict=True):
        common, least = len(np.intersect1d(ours, theirs)), min(len(ours), len(theirs))
        union = len(ours) + len(theirs) - common
        rows["jaccard"].append(common / union if union else 1.0)
        rows["overlap"].append(common / least if least else 1.0)
    ranks = stats_library("scipy.stats").rankdata(means, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    a, b = ranks[: len(first)], ranks[len(first) :]
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    correlation = np.full(len(first), np.nan)
    np.divide((a * b).sum(1), spread, out=correlation, where=spread > 0)
    return pa.table(
        {
            **{name: pa.array(values, pa.float64()) for name, values in rows.items()},
            "rank_correlation": nullable(correlation),
        }
    )
