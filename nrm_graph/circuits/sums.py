"""Sums over inputs that can be merged: one SQL query each, over edges or nodes.

The SQL keeps to what DuckDB and Spark both run (GROUP BY, FILTER, joins), so that the same
queries aggregate the shards anywhere; sums of partials are the partials of the whole.  A query
reads the tables ``weights`` (input_id, weight, base) and ``chosen`` (place and the columns of
:data:`EDGE` or :data:`NODE`) beside those of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.circuits.engines import EDGE, local
from nrm_graph.circuits.source import source
from nrm_graph.network.topology import PRUNED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from nrm_graph.circuits.engines import Engine
    from nrm_graph.circuits.source import Source
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.view import View

NODE = ("layer_id", "unit")
"""What names a node."""

SUMS: Mapping[str, str] = {
    "n": "count(*)",
    "total": "sum(v)",
    "squares": "sum(v * v)",
    "positive": "CAST(sum(CAST(v > 0 AS DOUBLE)) AS BIGINT)",
    "negative": "CAST(sum(CAST(v < 0 AS DOUBLE)) AS BIGINT)",
}
"""Sums of v = relevance x weight over the rows of an edge; absent rows add nothing to any.

A sum of doubles counts exactly, and in half the time of FILTER.
"""

WHOLE = "whole"
"""Rows that are the sum of all that they stand for, of units that are summed."""


def partials_query(
    sums: Sequence[str] = tuple(SUMS),
    *,
    table: str = "edges",
    weighted: bool = False,
    layers: Sequence[int] | None = None,
    pruned: bool = False,
    floor: float | None = None,
    nonzero: bool = False,
    incomplete: bool = False,
) -> str:
    """Write the SQL of mergeable sums by edge.

    Parameters
    ----------
    sums : sequence of str
        Names in :data:`SUMS`.
    table : str
        The edges.
    weighted : bool
        Multiply by ``weight`` of the table ``weights``.
    layers : sequence of int, optional
        Only edges with both ends in these layers.
    pruned : bool
        Whether rows of the pseudo-unit -3 may occur; they are no edges.
    floor : float, optional
        Rows of at least this abs(relevance) are not summed: each stands on its own.
    nonzero : bool
        Skip rows of relevance 0.
    incomplete : bool
        Count the rows that are :data:`WHOLE`.

    Returns
    -------
    str
        A SELECT with the columns of :data:`EDGE` and one for each sum; with a floor further
        ``above``, the input of a row that stands on its own, else -1, and, of weighted ones,
        ``size``, its abs(relevance).
    """
    value = "CAST(relevance AS DOUBLE)" + (" * weight" if weighted else "")
    source = f"{table} JOIN weights USING (input_id)" if weighted else table
    keys = ", ".join(EDGE)
    columns = ", ".join(f"{SUMS[name]} AS {name}" for name in sums)
    values = f"{keys}, {value} AS v"
    if incomplete:
        values += f", {WHOLE}"
        columns += f", CAST(sum(CAST({WHOLE} AS DOUBLE)) AS BIGINT) AS {WHOLE}"
    if floor is not None:
        least = f"CAST({np.float32(floor):.17e} AS FLOAT)"
        values += f", CASE WHEN abs(relevance) >= {least} THEN input_id ELSE -1 END AS above"
        keys += ", above"
        if weighted:
            values += ", abs(relevance) AS size"
            columns += ", max(size) AS size"
    return (
        f"SELECT {keys}, {columns} FROM (SELECT {values} FROM {source}"
        f"{edge_filter(layers, pruned, nonzero)}) AS valued GROUP BY {keys}"
    )


def edge_filter(layers: Sequence[int] | None, pruned: bool, nonzero: bool = False) -> str:
    """WHERE clause of the rows that are edges, between the given layers; empty for all."""
    tests = ["relevance <> 0"] if nonzero else []
    if layers is not None:
        listed = ", ".join(str(int(i)) for i in layers)
        tests += [f"dst_layer IN ({listed})", f"src_layer IN ({listed})"]
    if pruned:
        tests += [f"dst_unit <> {PRUNED}", f"src_unit <> {PRUNED}"]
    return f" WHERE {' AND '.join(tests)}" if tests else ""


def edge_sums(
    db: View,
    rows: Source,
    engine: Engine,
    sums: Sequence[str],
    layers: Sequence[int] | None,
    floor: float | None = None,
    nonzero: bool = False,
) -> pa.Table:
    """Sum the rows of a source by edge; see :func:`edge_partials` and :func:`partials_query`."""
    query = partials_query(
        sums,
        table=rows.edges,
        weighted=rows.weighted,
        layers=layers,
        pruned=rows.pruned,
        floor=floor,
        nonzero=nonzero,
        incomplete=rows.incomplete,
    )
    tables = {**rows.tables, "weights": rows.weights} if rows.weighted else rows.tables
    keys = EDGE if floor is None else (*EDGE, "above")
    return engine(db, query, rows.group.ids.tolist(), tables, keys)


def values_by_input(db: View, rows: Source, relation: str, chosen: pa.Table) -> NDArray[np.float64]:
    """Relevance of chosen edges or nodes for every input that rows are of, (N, M).

    Parameters
    ----------
    db : Database
        The store.
    rows : Source
        Whose inputs and further tables are read.
    relation : str
        ``rows.edges`` or ``rows.nodes``.
    chosen : pyarrow.Table
        Columns of :data:`EDGE` or :data:`NODE`, M rows.

    Returns
    -------
    ndarray of float64, (N, M)
        0 where an input has no row.
    """
    relevances = db.sql(
        f"SELECT input_id, place, CAST(relevance AS DOUBLE) AS v FROM {relation} "
        f"JOIN chosen USING ({', '.join(chosen.column_names)})",
        inputs=rows.group.ids.tolist(),
        tables={**rows.tables, "chosen": chosen.append_column("place", [np.arange(len(chosen))])},
    ).to_arrow_table()
    values = np.zeros((len(rows.group), len(chosen)))
    row = np.searchsorted(rows.group.ids, relevances["input_id"].to_numpy())
    values[row, relevances["place"].to_numpy()] = relevances["v"].to_numpy()
    return values


def edge_partials(
    db: View,
    group: InputGroup,
    weight: str = "unit",
    layers: Sequence[int] | None = None,
    sums: Sequence[str] = tuple(SUMS),
) -> pa.Table:
    """Sum edges over a group of inputs.

    Parameters
    ----------
    db : Database
        The store.
    group : InputGroup
        The inputs.
    weight : "unit" or "logit"
        What relevance is multiplied by.
    layers : sequence of int, optional
        Only edges with both ends in these layers.
    sums : sequence of str
        Names in :data:`SUMS`.

    Returns
    -------
    pyarrow.Table
        Columns of :data:`EDGE`, then ``n`` (rows), ``total``, ``squares`` (float64), ``positive``
        and ``negative`` (numbers of rows), in no particular order.
    """
    return edge_sums(db, source(db, group, weight), local, sums, layers)
