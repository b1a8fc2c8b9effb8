"""What edges may hold in inputs that have no row of them, in a store that bounds its edges.

No edge that is absent for an input exceeds that input's threshold of the pair of layers.  Of an
edge that k inputs lack it is not looked up which ones: the k largest thresholds bound its sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.circuits.engines import EDGE
from nrm_graph.tables.pruning import table_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from nrm_graph.circuits.source import Source
    from nrm_graph.network.grouped_units import GroupedUnits
    from nrm_graph.store.view import View


@dataclass(frozen=True, eq=False)
class Absent:
    """Bounds of what is absent from the rows of N inputs.

    Attributes
    ----------
    pairs : ndarray of int64, (P, 2)
        Pairs of layers, dst and src; the last one stands for all that are never bounded.
    most : ndarray of float64, (P, N + 1)
        In column k the sum of the k largest thresholds of a pair, times their inputs' weights;
        infinite where a threshold is not known.
    squares : ndarray of float64, (P, N + 1)
        The same of their squares.
    largest : ndarray of float64, (N,)
        Largest threshold of every input, of relevance itself.
    sizes : ndarray of int64, (P,)
        Edges that a pair has at most.
    index : ndarray of int64, (layers, layers)
        Place of a pair.
    units : GroupedUnits or None
        Units that edges join, where those are summed.
    """

    pairs: NDArray[np.int64]
    most: NDArray[np.float64]
    squares: NDArray[np.float64]
    largest: NDArray[np.float64]
    sizes: NDArray[np.int64]
    index: NDArray[np.int64]
    units: GroupedUnits | None = None

    @property
    def summed(self) -> bool:
        """Whether an edge may be the sum of several, each of which may be absent."""
        return self.units is not None

    def places(self, edges: pa.Table) -> NDArray[np.int64]:
        """Place of the pair of every edge, (E,)."""
        dst, src = (edges[f"{end}_layer"].to_numpy() for end in ("dst", "src"))
        places: NDArray[np.int64] = self.index[dst, src]
        return places

    def errors(
        self, edges: pa.Table, rows: NDArray[np.int64], squares: bool = False
    ) -> NDArray[np.float64]:
        """Bounds of what sums over inputs lack, (E,), of edges with so many rows.

        Of edges that are summed, of which all is known in so many inputs; squares have none.
        """
        bounds = self.squares if squares else self.most
        errors: NDArray[np.float64] = bounds[self.places(edges), bounds.shape[1] - 1 - rows]
        if self.units is None:
            return errors
        return np.full(len(edges), np.inf) if squares else errors * self._parts(edges, self.units)

    def _parts(self, edges: pa.Table, units: GroupedUnits) -> NDArray[np.int64]:
        """Of how many edges, at most, each is the sum, (E,)."""
        parts = np.ones(len(edges), np.int64)
        for end in ("dst", "src"):
            layer, unit = (edges[f"{end}_{name}"].to_numpy() for name in ("layer", "unit"))
            for layer_id in np.unique(layer).tolist():
                here = (layer == layer_id) & (unit >= 0)
                parts[here] *= units.sizes(layer_id)[unit[here]]
        return parts

    def unseen(
        self, edges: pa.Table, rows: NDArray[np.int64], layers: Sequence[int] | None
    ) -> NDArray[np.int64]:
        """Edges of every pair that no input may have a row of, at most, (P,).

        Parameters
        ----------
        edges, rows
            Edges with their numbers of rows; those of 0 are none.
        layers : sequence of int, optional
            Only of pairs between these.
        """
        seen = np.bincount(self.places(edges)[rows > 0], minlength=len(self.pairs))
        left = np.where(self.most[:, -1] > 0, self.sizes - seen, 0)
        if layers is not None:
            left[~np.isin(self.pairs, layers).all(1)] = 0
        return left


def absent(db: View, rows: Source, layers: Sequence[int] | None = None) -> Absent | None:
    """Read the thresholds of the inputs that rows are of; None where nothing bounds edges."""
    if db.meta.get("max_edges") is None or not rows.pruned:
        return None
    ids = rows.group.ids
    table = db.sql(
        f"SELECT input_id, dst_layer, src_layer, threshold FROM {rows.thresholds}",
        inputs=ids.tolist(),
        tables=rows.tables,
    ).to_arrow_table()
    groups = db.topology.groups
    pairs = np.array([*((group.dst, group.src) for group in groups), (-1, -1)], np.int64)
    layer_count = len(db.topology.layers)
    index = np.full((layer_count, layer_count), len(groups))
    index[pairs[:-1, 0], pairs[:-1, 1]] = np.arange(len(groups))
    thresholds = np.full((len(pairs), len(ids)), np.inf)
    thresholds[-1] = 0
    dst, src = (table[f"{end}_layer"].to_numpy() for end in ("dst", "src"))
    column = np.searchsorted(ids, table["input_id"].to_numpy())
    thresholds[index[dst, src], column] = table["threshold"].to_numpy()
    inside = np.ones(len(pairs), bool) if layers is None else np.isin(pairs, layers).all(1)
    weight = np.abs(rows.weight)
    weighed = np.multiply(thresholds, weight, out=np.zeros_like(thresholds), where=weight > 0)
    weighed = np.sort(weighed, axis=1)[:, ::-1]
    start = np.zeros((len(pairs), 1))
    return Absent(
        pairs,
        np.concatenate([start, np.cumsum(weighed, axis=1)], axis=1),
        np.concatenate([start, np.cumsum(weighed**2, axis=1)], axis=1),
        thresholds[inside].max(0, initial=0.0),
        np.array([*_sizes(db, rows), 0], np.int64),
        index,
        rows.units,
    )


def _sizes(db: View, rows: Source) -> list[int]:
    """Edges that each pair of layers has at most, in the order of the store's groups.

    A single neuron without relevance, such as an output that is not explained, has none.
    """
    parts = db.partitions
    single = [i for i, part in enumerate(parts) if part.single]
    alive: dict[int, int] = {}
    if single and rows.condition is None:  # under one, what goes on from a neuron may cancel
        counted = db.sql(
            "SELECT layer_id, count(DISTINCT unit) FROM nodes WHERE relevance <> 0 AND unit >= 0 "
            f"AND layer_id IN ({', '.join(map(str, single))}) GROUP BY layer_id",
            inputs=rows.group.ids.tolist(),
        ).fetchall()
        alive = dict.fromkeys(single, 0) | dict(counted)
    return [
        min(
            table_size(group, parts),
            alive.get(group.dst, parts[group.dst].n_units) * parts[group.src].n_units,
        )
        for group in db.topology.groups
    ]


@dataclass(frozen=True, eq=False)
class Rivals:
    """Edges that were not chosen, and how large their sums may be.

    Attributes
    ----------
    stored : ndarray of float64
        Of edges that some input has a row of.
    unseen, counts : ndarray, (P,)
        Of edges that no input has a row of, by pair of layers, and how many there are at most.
    least : float
        So many edges as were asked for have sums of at least this size, whatever is absent.
    """

    stored: NDArray[np.float64]
    unseen: NDArray[np.float64]
    counts: NDArray[np.int64]
    least: float

    def above(self, least: float) -> int:
        """Count those whose sum may exceed a size."""
        return int((self.stored > least).sum() + self.counts[self.unseen > least].sum())


def rivals(
    bounds: Absent,
    edges: pa.Table,
    size: NDArray[np.float64],
    rows: NDArray[np.int64],
    chosen: NDArray[np.int64],
    top: int,
    layers: Sequence[int] | None,
) -> Rivals:
    """Compare the edges that were chosen, at some places, with all others.

    Parameters
    ----------
    edges, size, rows
        All edges, their |sums| of stored rows, and how many rows these are of; no edge where 0.
    """
    errors = np.where(rows > 0, bounds.errors(edges.select(EDGE), rows), 0.0)
    surely = np.where(np.isfinite(errors), np.maximum(size - errors, 0.0), 0.0)
    least = float(np.partition(surely, -top)[-top]) if len(surely) >= top else 0.0
    upper = size + errors
    upper[chosen] = 0
    return Rivals(upper, bounds.most[:, -1], bounds.unseen(edges, rows, layers), least)
