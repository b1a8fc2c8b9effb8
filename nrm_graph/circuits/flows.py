"""Relevance of chosen edges, input by input: the dense array that statistics work on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.circuits.source import source
from nrm_graph.circuits.sums import EDGE

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from nrm_graph.circuits.group import Group
    from nrm_graph.database import Database
    from nrm_graph.events.sets import Event


def edge_values(
    db: Database,
    group: Group,
    edges: pa.Table,
    weight: str = "unit",
    given: str | Event | None = None,
) -> npt.NDArray[np.float64]:
    """Relevance of edges for every input of a group.

    Parameters
    ----------
    db : Database
        The store.
    group : Group
        N inputs.
    edges : pyarrow.Table
        E edges: columns dst_layer, dst_unit, src_layer, src_unit.
    weight : "unit" or "logit"
        What relevance is multiplied by.
    given : str or Event, optional
        A materialized condition: then R(edge & condition), not divided by R(condition).

    Returns
    -------
    ndarray of float64, (N, E)
        An edge without a row has 0, which it is in a complete store; in a pair of layers that the
        store prunes it is unknown: see :func:`nrm_graph.tables.pruning.stored`.
    """
    rows = source(db, group, weight, given)
    chosen = edges.select(EDGE).append_column("place", [np.arange(len(edges))])
    keys = ", ".join(EDGE)
    found = db.sql(
        f"SELECT input_id, place, CAST(relevance AS DOUBLE) AS v FROM {rows.edges} "
        f"JOIN chosen USING ({keys})",
        inputs=group.ids.tolist(),
        tables={**rows.tables, "chosen": chosen},
    ).to_arrow_table()
    values = np.zeros((len(group), len(edges)))
    row = np.searchsorted(group.ids, found["input_id"].to_numpy())
    values[row, found["place"].to_numpy()] = found["v"].to_numpy()
    return values * rows.weight[:, None]
