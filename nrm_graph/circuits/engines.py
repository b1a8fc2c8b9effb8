"""Where mergeable sums are computed: in this process, or by tasks of Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from nrm_graph.database import Database


class Engine(Protocol):
    """Something that runs a query of mergeable sums over some inputs."""

    def __call__(
        self,
        db: Database,
        query: str,
        ids: Sequence[int],
        tables: Mapping[str, pa.Table],
        keys: Sequence[str],
    ) -> pa.Table:
        """Return the query's sums over all inputs, one row for each value of the keys."""


def local(
    db: Database,
    query: str,
    ids: Sequence[int],
    tables: Mapping[str, pa.Table],
    keys: Sequence[str],
) -> pa.Table:
    """Run a query of mergeable sums in this process."""
    return db.sql(query, inputs=ids, tables=tables).to_arrow_table()


def named(engine: str) -> Engine:
    """Return the engine of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    if engine == "local":
        return local
    if engine == "ray":
        from nrm_graph.circuits.ray_engine import Remote

        return Remote()
    raise InputError(f"engine must be 'local' or 'ray', found {engine!r}")
