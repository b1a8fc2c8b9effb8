"""Edges that statistics speak of: chosen without looking at labels, and read input by input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.engines import EDGE, local
from nrm_graph.circuits.source import source
from nrm_graph.circuits.statistics import key_sums
from nrm_graph.circuits.sums import SUMS, WHOLE, edge_sums, values_by_input
from nrm_graph.graphs.largest import largest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from nrm_graph.circuits.source import Source
    from nrm_graph.events.sets import Event
    from nrm_graph.network.grouped_units import By
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.view import View

BLOCK_BYTES = 256 << 20
"""Values of all inputs of a group are read for as many edges at once as fit into this."""


def known_partials(db: View, rows: Source, exact: bool = False) -> tuple[pa.Table, int]:
    """Sum the edges whose relevance is known in every input that rows are of.

    With ``exact`` any can be computed, and none is left out; sums are of what is stored.

    Returns
    -------
    partials : pyarrow.Table
        As of :func:`nrm_graph.circuits.sums.edge_partials`.
    unknown : int
        Edges left out: the store prunes their pair of layers, and an input has no row of them.
    """
    partials = edge_sums(db, rows, local, tuple(SUMS), None)
    if exact:
        return partials, 0
    known = partials[WHOLE if rows.incomplete else "n"].to_numpy()
    unknown = pruned_edges(rows, partials) & (known < len(rows.group))
    return partials.filter(pa.array(~unknown)), int(unknown.sum())


def pair_codes(edges: pa.Table) -> NDArray[np.int64]:
    """One number for each pair of layers, (E,)."""
    dst, src = (edges[f"{end}_layer"].to_numpy().astype(np.int64) for end in ("dst", "src"))
    code: NDArray[np.int64] = (dst << 16) + src
    return code


def by_size(partials: pa.Table, size: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of at most so many edges, the largest first; none of size 0.  Ties by name."""
    order = largest(size, count, [partials[name].to_numpy() for name in EDGE])
    return order[size[order] > 0]


def varying_edges(db: View, rows: Source, count: int, exact: bool = False) -> tuple[pa.Table, int]:
    """Choose the edges of the largest standard deviation over a group.

    Returns
    -------
    edges : pyarrow.Table
        Columns of :data:`nrm_graph.circuits.engines.EDGE`, the largest first.
    unknown : int
        As of :func:`known_partials`.
    """
    partials, unknown = known_partials(db, rows, exact)
    squares = partials["squares"].to_numpy() / len(rows.group)
    variance = squares - (partials["total"].to_numpy() / len(rows.group)) ** 2
    # A variance of rounding is none: an edge that is alike in all inputs tells nothing.
    order = by_size(partials, np.where(variance > 1e-12 * squares, variance, 0.0), count)
    return partials.select(EDGE).take(pa.array(order)), unknown


def blocks(edges: pa.Table, rows: int) -> Iterator[tuple[slice, pa.Table]]:
    """Divide edges so that an array of that many rows over each part stays bounded."""
    width = max(1, BLOCK_BYTES // (8 * max(rows, 1)))
    for start in range(0, len(edges), width):
        yield slice(start, min(start + width, len(edges))), edges.slice(start, width)


def nullable(values: NDArray[np.float64]) -> pa.Array:
    """Arrow column in which NaN is null."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def key_means(
    db: View, rows: Source, edges: pa.Table, exact: bool = False
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Keys of a group in order, and the mean over targets of each key's edges, (K, E)."""
    keys, sums, counts = key_sums(rows.group.keys, weighted_values(db, rows, edges, exact))
    return keys, sums / counts[:, None]


def edge_values(
    db: View,
    group: InputGroup,
    edges: pa.Table,
    weight: str = "unit",
    given: str | Event | None = None,
    exact: bool = False,
    tables: str | None = None,
    by: By | None = None,
) -> NDArray[np.float64]:
    """Relevance of edges for every input of a group.

    Parameters
    ----------
    db : Database
        The store.
    group : InputGroup
        N inputs.
    edges : pyarrow.Table
        E edges: columns dst_layer, dst_unit, src_layer, src_unit.
    weight : "unit" or "logit"
        What relevance is multiplied by.
    given : str or Event, optional
        A materialized condition: then R(edge & condition), not divided by R(condition).
    exact : bool
        Compute what the store may leave out, see :mod:`nrm_graph.store.stored_edges`.
    tables : str, optional
        Reduced tables, by their name; with an event as ``given`` is.
    by : str or mapping, optional
        Coarser units, of which the edges are, as of :meth:`nrm_graph.database.Database.circuit`.

    Returns
    -------
    ndarray of float64, (N, E)
        An edge without a row has 0, which it is in a complete store; in a pair of layers that the
        store prunes it is unknown without ``exact``: see :func:`nrm_graph.tables.pruning.stored`.
    """
    rows = source(db, group, weight, given, tables=tables, by=by)
    return weighted_values(db, rows, edges, exact)


def weighted_values(
    db: View, rows: Source, edges: pa.Table, exact: bool = False
) -> NDArray[np.float64]:
    """Relevance of edges times the weight of their input, (N, E); see :func:`edge_values`."""
    values = row_values(db, rows, edges)
    if exact:
        values = computed_values(db, rows, edges, values)
    return values * rows.weight[:, None]


def row_values(db: View, rows: Source, edges: pa.Table) -> NDArray[np.float64]:
    """Relevance of edges as the rows of a source have it, (N, E); see :func:`edge_values`."""
    return values_by_input(db, rows, rows.edges, edges.select(EDGE))


def computed_values(
    db: View, rows: Source, edges: pa.Table, stored: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Put what is computed in the place of rows, of all pairs of layers that the store prunes.

    ``stored`` is what :func:`row_values` gives.
    """
    pruned = np.flatnonzero(pruned_edges(rows, edges))
    if not len(pruned):
        return stored
    from nrm_graph.store.stored_edges import computed_edges

    names = {name: edges[name].to_numpy()[pruned].astype(np.int64) for name in EDGE}
    event = None if rows.condition is None else db._conditions[rows.condition].event
    relevance = computed_edges(db, rows.group, names, event, rows.partitions(db))
    if rows.divisor is not None:
        relevance = relevance / rows.divisor[:, None]
    values = stored.copy()
    values[:, pruned] = relevance
    return values


def pruned_edges(rows: Source, edges: pa.Table) -> NDArray[np.bool_]:
    """Whether the store may leave edges out of the pair of layers of each, (E,)."""
    return np.isin(pair_codes(edges), [(d << 16) + s for d, s in rows.limits])
