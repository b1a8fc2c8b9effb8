"""Statistics of a group's chosen edges, out of one scan of the edges wherever that is exact.

The scan groups rows by edge; a row of at least a floor keeps a group of its own.  These few rows
say which edges are among the strongest of each input, and those of an edge are added to the rest
of it.  The floor is a guess, from a few inputs, that nothing depends on: an input with fewer rows
above it than are asked for is read again, as edges are whose standard deviation would cancel in a
sum of squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.absent import absent, rivals
from nrm_graph.circuits.engines import EDGE
from nrm_graph.circuits.sums import SUMS, WHOLE, edge_filter, edge_sums
from nrm_graph.graphs.connected import Ends
from nrm_graph.graphs.connected import connected as connected_edges
from nrm_graph.graphs.largest import largest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nrm_graph.circuits.absent import Absent, Rivals
    from nrm_graph.circuits.engines import Engine
    from nrm_graph.circuits.source import Source
    from nrm_graph.store.view import View

MOST_EDGES = 999_999
"""Edges of a circuit: DuckDB's max(x, n) takes no larger n."""

VALUES_AT_ONCE = 1 << 26
"""Values that the strongest edges of inputs are kept in at once: max(x, n) takes room for n of
every input, however few edges it has."""

ABOVE_AT_ONCE = 1 << 20
"""Strongest edges of all inputs together that a scan keeps apart: each takes a hundred bytes."""

DEPTH = 8
"""Rows above the floor that an input may be expected to have, in units of those asked for."""

SAMPLE, SHARE = 4, 32
"""Inputs at most that the floor is guessed from, and of how many one may be."""

CANCELLED = 1e-3
"""Below this share of the sum of squares, what is left of it has lost digits."""

# The k-th largest value without a sort of all; where windows are all there is, as in Spark:
# row_number() OVER (PARTITION BY input_id ORDER BY abs(relevance) DESC) = k.
LIMITS = """
SELECT input_id, list_min(max(abs(relevance), {top})) AS least
FROM {edges}{filter} GROUP BY input_id
"""

# Around the mean, which is known.  Every row's input is in weights and limits: with inner joins
# there DuckDB 2.0 joins them first, with all edges, five times slower.
_AGAIN = """
SELECT place, sum((v - mean * base) * (v - mean * base)) AS scatter, sum(base * base) AS present,
  count(*) FILTER (WHERE size >= least AND size > 0) AS strong
FROM (
  SELECT place, mean, CAST(relevance AS DOUBLE) * weight AS v, base, abs(relevance) AS size, least
  FROM {edges} JOIN chosen USING ({keys})
    LEFT JOIN weights USING (input_id) LEFT JOIN limits USING (input_id)
) AS valued GROUP BY place
"""


@dataclass(frozen=True, eq=False)
class Scan:
    """Sums of every edge, and the rows that kept a group of their own.

    Attributes
    ----------
    table : pyarrow.Table, E rows
        Columns of EDGE and of :data:`nrm_graph.circuits.sums.SUMS`, without the rows above; no
        ``negative`` where it is the rest of ``n``.
    total : ndarray of float64, (E,)
        Sums of all rows; some are zero, of edges that stand elsewhere.
    rows : ndarray of int64, (S,)
        Places in ``table`` of the rows of at least the floor.
    row_edge : ndarray of int64, (S,)
        Place in ``total`` of the edge of each.
    row_input : ndarray of int64, (S,)
        Its input.
    row_size : ndarray of float64, (S,)
        Its abs(relevance).
    """

    table: pa.Table
    total: NDArray[np.float64]
    rows: NDArray[np.int64]
    row_edge: NDArray[np.int64]
    row_input: NDArray[np.int64]
    row_size: NDArray[np.float64]

    def sums(self, places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the sums of all rows of some edges."""
        at = np.full(len(self.total), -1)
        at[places] = np.arange(len(places))
        mine = np.flatnonzero(at[self.row_edge] >= 0)
        part = self.table.take(self.rows[mine])
        sums = {}
        for name in (name for name in (*SUMS, WHOLE) if name in self.table.column_names):
            values = self.table[name].take(places).to_numpy().copy()
            values[np.isin(places, self.rows[mine])] = 0  # added below, as all rows above are
            np.add.at(values, at[self.row_edge[mine]], part[name].to_numpy())
            sums[name] = values
        sums["total"] = self.total[places]
        sums.setdefault("negative", sums["n"] - sums["positive"])
        return sums

    def counts(self) -> NDArray[np.int64]:
        """Return the number of rows of every edge, (E,); 0 of those that stand elsewhere."""
        counts: NDArray[np.int64] = self.table["n"].to_numpy().copy()
        alone = counts[self.rows]
        counts[self.rows] = 0
        np.add.at(counts, self.row_edge, alone)
        return counts

    def limits(self, ids: NDArray[np.int64], top: int) -> NDArray[np.float64]:
        """Size of the k-th strongest row of every input; NaN where fewer are above the floor.

        ``ids`` are the inputs, ascending, as a group has them.
        """
        limits = np.full(len(ids), np.nan)
        order = np.lexsort([-self.row_size, self.row_input])
        inputs, first, count = np.unique(
            self.row_input[order], return_index=True, return_counts=True
        )
        enough = count >= top
        size = self.row_size[order][first[enough] + top - 1]
        limits[np.searchsorted(ids, inputs[enough])] = size
        return limits

    def strong(
        self, places: NDArray[np.int64], ids: NDArray[np.int64], limits: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """In how many inputs of known limit each edge is among the strongest."""
        least = limits[np.searchsorted(ids, self.row_input)]
        count = np.bincount(
            self.row_edge[self.row_size >= least],  # false where the limit is NaN
            minlength=len(self.total),
        )
        return count[places]


@dataclass(frozen=True, eq=False)
class Chosen:
    r"""The chosen edges, that of the largest \|mean\| first.

    Attributes
    ----------
    edges : pyarrow.Table
        Columns of EDGE, ``mean``, those of :data:`nrm_graph.circuits.sums.SUMS`, ``strong``
        (inputs of which it is among their own strongest; -1 where that is not certain),
        ``scatter`` (sum of squares around the mean over the inputs that have a row), ``present``
        (sum of base squared over these) and, where edges are bounded, ``lacking``: what the sum
        may be off by for what is absent.
    size : float
        Sum of \|total\| over all edges.
    strongest : float
        The same over the edges where it is largest, as many as were asked for.
    cut : frozenset of (layer, unit)
        Of a connected choice, the units that no edge leads on from; see
        :class:`nrm_graph.graphs.connected.Choice`.
    limits : ndarray of float64, (N,)
        Size of the k-th strongest row of every input.
    bounds : Absent or None
        Of absent edges, where edges are bounded; with them
    rivals : Rivals or None
        the edges that were not chosen, where the largest were.
    """

    edges: pa.Table
    size: float
    strongest: float
    cut: frozenset[tuple[int, int]]
    limits: NDArray[np.float64]
    bounds: Absent | None
    rivals: Rivals | None


def chosen_edges(
    db: View,
    rows: Source,
    top: int,
    pairs: list[int] | None,
    engine: Engine,
    connected: bool,
) -> Chosen:
    r"""Aggregate the edges of the largest \|mean\|, or those that make a connected graph.

    Absent rows count as zeros.
    """
    scan = _scan(db, rows, _floor(db, rows, top, pairs, engine), pairs, engine)
    size = np.abs(scan.total)
    # Ties by the edge's name: the same circuit whatever the order of threads.
    ends = [scan.table[name].to_numpy() for name in EDGE]
    places = largest(size, top, ends)
    places = places[size[places] > 0]
    strongest, cut = float(size[places].sum()), frozenset[tuple[int, int]]()
    if connected:
        dst_layer, dst_unit, src_layer, src_unit = ends
        joined = Ends(dst_layer, dst_unit, src_layer, src_unit, size)
        choice = connected_edges(joined, _read(rows.pairs(db), pairs), top)
        places, cut = choice.places, choice.cut
    columns = scan.sums(places)
    total, squares, n = (columns[name] for name in ("total", "squares", "n"))
    mean = total / rows.base.sum()
    every = squares - mean * total  # around the mean, over all inputs: absent ones are 0
    columns["scatter"] = np.maximum(every - mean**2 * (len(rows.group) - n), 0.0)
    columns["present"] = n.astype(np.float64)
    ids = rows.group.ids
    limits = scan.limits(ids, top)
    columns["strong"] = scan.strong(places, ids, limits)
    edges = scan.table.select(EDGE).take(places).append_column("mean", [mean])
    late = np.isnan(limits)
    limits = _limits(db, rows, top, pairs, limits, engine)
    unclear = (every <= CANCELLED * squares) & (len(ids) > 1) | (rows.base != 1).any()
    whole = late.all() or unclear.all()
    if late.any() and not whole:
        again = _again(db, rows, edges, ids[late], limits[late], engine)
        columns["strong"] = columns["strong"] + again["strong"]
    if whole or unclear.any():
        at = np.arange(len(n)) if whole else np.flatnonzero(unclear)
        again = _again(db, rows, edges.take(at), ids, limits, engine)
        for name in ("scatter", "present", *(["strong"] if whole else [])):
            columns[name][at] = again[name]
    bounds, others = absent(db, rows, pairs), None
    if bounds is not None:
        columns["lacking"] = bounds.errors(edges, columns.get(WHOLE, n))
        # What is absent may be among an input's strongest.
        if rows.incomplete or (limits < bounds.largest).any():
            columns["strong"] = np.full(len(n), -1)
        if not connected and not rows.incomplete:
            others = rivals(bounds, scan.table, size, scan.counts(), places, top, pairs)
    for name, values in columns.items():
        edges = edges.append_column(name, [values])
    return Chosen(edges, float(size.sum()), strongest, cut, limits, bounds, others)


def _read(every: list[tuple[int, int]], layers: list[int] | None) -> list[tuple[int, int]]:
    """Layers that read each other, dst and src, of those that are asked for."""
    return [pair for pair in every if layers is None or set(pair) <= set(layers)]


def _floor(
    db: View, rows: Source, top: int, pairs: list[int] | None, engine: Engine
) -> float | None:
    """Guess what is below the k-th strongest row of most inputs; None where that is too many."""
    ids = rows.group.ids
    if top * len(ids) > ABOVE_AT_ONCE or top * DEPTH > MOST_EDGES:
        return None
    some = ids[:: max(1, len(ids) // SAMPLE)][: max(1, min(SAMPLE, len(ids) // SHARE))].tolist()
    deep, least = (
        engine(db, _limits_query(rows, k, pairs), some, rows.tables, ("input_id",))["least"]
        for k in (top * DEPTH, top)
    )
    if not len(least):
        return None
    floor = max(min(least.to_pylist()) / 2, *deep.to_pylist())
    return floor if floor > 0 else None


def _scan(
    db: View, rows: Source, floor: float | None, pairs: list[int] | None, engine: Engine
) -> Scan:
    """Sum the rows of every edge, those of at least the floor on their own."""
    # Where a row that is not 0 has a sign, one count less is needed; of a pair of layers that is
    # pruned a row of 0 counts too, as it is known.
    signed = not rows.pruned and bool((rows.weight != 0).all())
    names = [name for name in SUMS if name != "negative" or not signed]
    table = edge_sums(db, rows, engine, names, pairs, floor, signed)
    total = table["total"].to_numpy()
    if floor is None:
        none = np.zeros(0, np.int64)
        return Scan(table, total, none, none, none, none.astype(np.float64))
    owner = table["above"].to_numpy()
    above = np.flatnonzero(owner >= 0)
    size = table["size"].to_numpy()[above] if rows.weighted else np.abs(total[above])
    # Where the other rows of their edges are: most edges have no row above the floor, and a hash
    # says so of nearly all of them.
    hashes = _hashes(table)
    listed = np.zeros(1 << 20, bool)
    listed[hashes[above]] = True
    listed_rows = np.flatnonzero(listed[hashes])
    rest = listed_rows[owner[listed_rows] < 0]
    both = np.concatenate([rest, above])  # the first of an edge stands for it
    _, first, edge = np.unique(_codes(table, both), return_index=True, return_inverse=True)
    place = both[first][edge[len(rest) :]]
    alone = total[above]
    total = total.copy()
    total[above] = 0
    np.add.at(total, place, alone)
    return Scan(table, total, above, place, owner[above], size)


def _codes(edges: pa.Table, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each edge, among those at some places."""
    part = edges.select(EDGE).take(places)
    columns = [part[name].to_numpy().astype(np.int64) for name in EDGE]
    ends = [(columns[i] << 32) + columns[i + 1] for i in (0, 2)]
    (_, dst), (known, src) = (np.unique(end, return_inverse=True) for end in ends)
    codes: NDArray[np.int64] = dst * len(known) + src
    return codes


def _hashes(edges: pa.Table) -> NDArray[np.uint32]:
    """20 bits of the name of each edge, (E,)."""
    hashes = np.zeros(len(edges), np.uint32)
    for name in EDGE:
        hashes += edges[name].to_numpy().astype(np.uint32)
        hashes *= np.uint32(0x9E3779B1)
    return hashes >> np.uint32(12)


def _limits_query(rows: Source, top: int, pairs: list[int] | None) -> str:
    return LIMITS.format(top=int(top), edges=rows.edges, filter=edge_filter(pairs, rows.pruned))


def _limits(
    db: View,
    rows: Source,
    top: int,
    pairs: list[int] | None,
    known: NDArray[np.float64],
    engine: Engine,
) -> NDArray[np.float64]:
    """Fill in the size of the k-th strongest edge of inputs; what was asked is remembered."""
    limits: dict[int, float] = {}
    if not rows.tables:
        name = rows.edges, int(top), None if pairs is None else tuple(pairs)
        limits = db._limits.setdefault(name, limits)
    ids = rows.group.ids.tolist()
    clear = np.flatnonzero(~np.isnan(known)).tolist()
    limits |= {ids[i]: float(known[i]) for i in clear}
    missing = [identity for identity in ids if identity not in limits]
    query = _limits_query(rows, top, pairs)
    size = max(1, VALUES_AT_ONCE // int(top))
    for start in range(0, len(missing), size):
        part = missing[start : start + size]
        new_limits = engine(db, query, part, rows.tables, ("input_id",))
        limits |= dict.fromkeys(part, 0.0)  # one may have no edges
        limits |= zip(
            new_limits["input_id"].to_pylist(), new_limits["least"].to_pylist(), strict=True
        )
    return np.array([limits[i] for i in ids])


def _kind(rows: Source) -> type[np.floating[Any]]:
    """Type of relevance: that of the tables, or of their sums."""
    return np.float32 if rows.units is None else np.float64


def _again(
    db: View,
    rows: Source,
    edges: pa.Table,
    ids: NDArray[np.int64],
    limits: NDArray[np.float64],
    engine: Engine,
) -> dict[str, NDArray[Any]]:
    """Read the rows of chosen edges of some inputs; 0 where there is none."""
    tables = {
        **rows.tables,
        "weights": rows.weights,
        "chosen": edges.append_column("place", [np.arange(len(edges))]),
        "limits": pa.table({"input_id": ids, "least": limits.astype(_kind(rows))}),
    }
    query = _AGAIN.format(edges=rows.edges, keys=", ".join(EDGE))
    sums = engine(db, query, ids.tolist(), tables, ("place",))
    columns = {}
    for name in sums.column_names[1:]:
        column = sums[name].fill_null(0).to_numpy()
        values = np.zeros(len(edges), np.float64 if column.dtype.kind == "f" else np.int64)
        values[sums["place"].to_numpy()] = column
        columns[name] = values
    return columns
