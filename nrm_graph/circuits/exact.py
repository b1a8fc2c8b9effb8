"""Statistics of chosen edges whose relevance is computed for every input, not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.circuits.edges import blocks, computed_values, row_values
from nrm_graph.circuits.engines import EDGE

if TYPE_CHECKING:
    from typing import Any

    import pyarrow as pa
    from numpy.typing import NDArray

    from nrm_graph.circuits.edge_statistics import Chosen
    from nrm_graph.circuits.source import Source
    from nrm_graph.store.view import View

ROUNDING = 1e-5
"""By which share two computations of a relevance in float32 may differ, amply."""


def exact_sums(db: View, rows: Source, chosen: Chosen) -> pa.Table:
    """Aggregate edges as :class:`nrm_graph.circuits.edge_statistics.Chosen` has them.

    Every input counts with what is computed of it.  ``strong`` is -1 where it is not certain: which
    edges are an input's own strongest is known as far as they are stored.
    """
    edges = chosen.edges.select(EDGE)
    if not rows.pruned:
        return chosen.edges  # where every edge is stored
    parts: list[dict[str, NDArray[Any]]] = []
    base = rows.base[:, None]
    for _, block in blocks(edges, len(rows.group)):
        stored = row_values(db, rows, block)
        relevance = computed_values(db, rows, block, stored)
        values = relevance * rows.weight[:, None]
        total = values.sum(0)
        mean = total / base.sum()
        parts.append(
            {
                "mean": mean,
                "n": np.full(len(block), len(values)),
                "total": total,
                "squares": (values**2).sum(0),
                "positive": (values > 0).sum(0),
                "negative": (values < 0).sum(0),
                "strong": _strong(chosen, np.abs(stored), np.abs(relevance)),
                "scatter": ((values - mean * base) ** 2).sum(0),
                "present": np.full(len(block), (base**2).sum()),
            }
        )
    for name in parts[0] if parts else ():
        edges = edges.append_column(name, [np.concatenate([part[name] for part in parts])])
    return edges if parts else chosen.edges


def _strong(
    chosen: Chosen, stored: NDArray[np.float64], size: NDArray[np.float64]
) -> NDArray[np.int64]:
    """In how many inputs each edge is among the strongest; -1 where that is not certain.

    ``stored`` and ``size`` are |relevance| as rows have it, 0 where there is none, and as it is.
    """
    limits, bounds = chosen.limits[:, None], chosen.bounds
    largest = np.inf if bounds is None else bounds.largest[:, None]
    surely = (stored >= np.maximum(limits, largest)) & (stored > 0)
    unstored = (stored == 0) & (size > 0) & (size >= limits * (1 - ROUNDING))
    perhaps = (stored >= limits) & (stored > 0) | unstored
    certain = (surely == perhaps).all(0) & (bounds is None or not bounds.summed)
    count: NDArray[np.int64] = np.where(certain, surely.sum(0), -1)
    return count
