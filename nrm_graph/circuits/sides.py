"""Two groups of inputs that are compared, of one store or of two, edge by edge and node by node.

Layers of two stores are the same where their names, shapes and units are; what is compared is named
by the first store's ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nrm_graph.circuits import statistics
from nrm_graph.circuits.edges import blocks, by_size, key_means, pruned_edges
from nrm_graph.circuits.engines import EDGE, local, merged
from nrm_graph.circuits.nodes import node_means
from nrm_graph.circuits.sums import SUMS, WHOLE, edge_sums
from nrm_graph.errors import InputError
from nrm_graph.network.units import compact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from nrm_graph.circuits.source import Source
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Partition
    from nrm_graph.store.view import View

    Means = tuple[tuple[str, ...], NDArray[np.float64]]
    """Keys, and their means, (K, columns)."""

_KNOWN = ("known_a", "known_b")

STATISTICS = ("mean_a", "mean_b", "stderr", "welch_p", "welch_q", "permutation_p", "permutation_q")


@dataclass(frozen=True, eq=False)
class Side:
    """A group with the store that holds it.

    Attributes
    ----------
    db : View
        The store.
    rows : Source
        Rows of the group.
    ids : ndarray of int64, (layers of the first store,)
        Id of each layer in this store; -1 where there is none like it.
    """

    db: View
    rows: Source
    ids: NDArray[np.int64]

    def own(self, table: pa.Table) -> pa.Table:
        """Name the layers of a table by this store's ids."""
        return _renamed(table, self.ids)

    def shared(self, table: pa.Table) -> pa.Table:
        """Keep the rows of a table between layers that are shared, named by the first store's."""
        places = np.full(len(self.db.topology.layers), -1)
        places[self.ids[self.ids >= 0]] = np.flatnonzero(self.ids >= 0)
        layers = [places[table[f"{end}_layer"].to_numpy()] for end in ("dst", "src")]
        keep = (layers[0] >= 0) & (layers[1] >= 0)
        return _renamed(table.filter(pa.array(keep)), places)


def _renamed(table: pa.Table, ids: NDArray[np.int64]) -> pa.Table:
    for name in ("dst_layer", "src_layer", "layer_id"):
        if name in table.column_names:
            place = table.column_names.index(name)
            column = pa.array(ids[table[name].to_numpy()], pa.int16())
            table = table.set_column(place, name, column)
    return table


def two_sides(
    db: View, rows: Source, other: View, others: Source
) -> tuple[Side, Side, tuple[str, ...]]:
    """Match the layers of two stores, or of one with itself.

    Returns
    -------
    first, second : Side
        Both groups.
    apart : tuple of str
        Layers of either store that the other has none like.

    Raises
    ------
    InputError
        If the stores share no two layers.
    """
    every = np.arange(len(db.topology.layers))
    if other is db:
        return Side(db, rows, every), Side(other, others, every), ()
    theirs = {layer.name: layer for layer in other.topology.layers}
    units, their_units = rows.partitions(db), others.partitions(other)
    ids = np.full(len(every), -1)
    for layer in db.topology.layers:
        same = theirs.get(layer.name)
        if same and _alike(layer, same, units[layer.layer_id], their_units[same.layer_id]):
            ids[layer.layer_id] = same.layer_id
    apart = [layer.name for layer in db.topology.layers if ids[layer.layer_id] < 0]
    apart += [layer.name for layer in other.topology.layers if layer.layer_id not in ids]
    if (ids >= 0).sum() < 2:
        raise InputError(
            f"the networks of {db.path} and {other.path} share no two layers of the same name, "
            "shape and units: expected checkpoints of one network, or networks that share layers"
        )
    own = np.where(ids >= 0, every, -1)
    return Side(db, rows, own), Side(other, others, ids), tuple(dict.fromkeys(apart))


def _alike(layer: LayerInfo, other: LayerInfo, units: Partition, others: Partition) -> bool:
    if layer.shape != other.shape or units.n_units != others.n_units:
        return False
    return np.array_equal(compact(units.labels), compact(others.labels))


def choose_edges(sides: Sequence[Side], count: int, exact: bool) -> tuple[pa.Table, int]:
    """Choose the edges of the largest root mean square over both groups together.

    Returns
    -------
    edges : pyarrow.Table
        Columns of :data:`nrm_graph.circuits.engines.EDGE`, the largest first.
    unknown : int
        Edges left out: an input has no row of them, which a store prunes.
    """
    parts = []
    for place, side in enumerate(sides):
        partials = edge_sums(side.db, side.rows, local, tuple(SUMS), None)
        known = partials[WHOLE if side.rows.incomplete else "n"]
        columns = partials.select([*EDGE, "squares"])
        for i, name in enumerate(_KNOWN):
            column = known if i == place else pa.array(np.zeros(len(known), np.int64))
            columns = columns.append_column(name, column)
        parts.append(side.shared(columns))
    partials = merged(parts)
    if any(side.db.meta.get("max_edges") is not None for side in sides):
        # Bounded tables hold what a layer absorbs in nodes alone.
        partials = partials.filter(pc.field("src_unit") >= 0)
    unknown = np.zeros(len(partials), bool)
    for name, side in zip(_KNOWN, sides if not exact else (), strict=False):
        lacking = partials[name].to_numpy() < len(side.rows.group)
        unknown |= pruned_edges(side.rows, side.own(partials)) & lacking
    partials = partials.filter(pa.array(~unknown))
    order = by_size(partials, partials["squares"].to_numpy(), count)
    return partials.select(EDGE).take(pa.array(order)), int(unknown.sum())


def edge_tests(
    sides: Sequence[Side], edges: pa.Table, is_paired: bool, draws: int, seed: int, exact: bool
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """Statistics of every edge by name, and whether permutations were enumerated."""

    def means(side: Side, block: pa.Table) -> Means:
        return key_means(side.db, side.rows, side.own(block), exact)

    return _tests(sides, edges, means, is_paired, draws, seed)


def node_tests(
    sides: Sequence[Side], nodes: pa.Table, is_paired: bool, draws: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Statistics of every node by name."""

    def means(side: Side, block: pa.Table) -> Means:
        return node_means(side.db, side.rows, side.own(block))

    return _tests(sides, nodes, means, is_paired, draws, seed)[0]


def _tests(
    sides: Sequence[Side],
    table: pa.Table,
    means_of: Callable[[Side, pa.Table], Means],
    is_paired: bool,
    draws: int,
    seed: int,
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    names = ("mean_a", "mean_b", "difference", "stderr", "welch_p", "permutation_p")
    columns = {name: np.zeros(len(table)) for name in names}
    exact = False
    for part, block in blocks(table, sum(len(side.rows.group) for side in sides)):
        keys: list[str] = []
        means = []
        for side in sides:
            group_keys, mean = means_of(side, block)
            keys += group_keys
            means.append(mean)
        columns["mean_a"][part], columns["mean_b"][part] = (m.mean(0) for m in means)
        if is_paired:
            within = means[0] - means[1]
            columns["stderr"][part], columns["welch_p"][part] = statistics.paired(within)
            p, exact = statistics.sign_flips(within, draws, seed)
        else:
            columns["stderr"][part], columns["welch_p"][part] = statistics.welch(*means)
            order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
            values = np.concatenate(means)[order]
            p, exact = statistics.label_permutations(values, order < len(means[0]), draws, seed)
        columns["permutation_p"][part] = p
    columns["difference"] = columns["mean_a"] - columns["mean_b"]
    return columns, exact
