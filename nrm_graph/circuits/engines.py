"""Where mergeable sums are computed: in this process, or by tasks of Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.store.view import View


EDGE = ("dst_layer", "dst_unit", "src_layer", "src_unit")
"""What names an edge."""


class Engine(Protocol):
    """Something that runs a query of mergeable sums over some inputs."""

    def __call__(
        self,
        db: View,
        query: str,
        ids: Sequence[int],
        tables: Mapping[str, pa.Table],
        keys: Sequence[str],
    ) -> pa.Table:
        """Return the query's sums over all inputs, one row for each value of the keys."""


def local(
    db: View,
    query: str,
    ids: Sequence[int],
    tables: Mapping[str, pa.Table],
    keys: Sequence[str],
) -> pa.Table:
    """Run a query of mergeable sums in this process."""
    return db.sql(query, inputs=ids, tables=tables).to_arrow_table()


def merged(parts: Sequence[pa.Table], keys: Sequence[str] = EDGE) -> pa.Table:
    """Merge partials of disjoint sets of inputs; sorted by the keys."""
    partials = pa.concat_tables(parts)
    sums = [name for name in partials.column_names if name not in keys]
    summed = partials.group_by(list(keys)).aggregate([(name, "sum") for name in sums])
    summed = summed.rename_columns([*keys, *sums]).select(partials.column_names)
    return summed.sort_by([(key, "ascending") for key in keys])
