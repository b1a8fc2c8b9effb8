"""A DuckDB connection that reads what it was given and opens nothing else."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nrm_graph.store.read.table_queries import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import duckdb
    import pyarrow as pa


def load(con: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table]) -> None:
    """Copy small tables: registered Arrow data is seen by one cursor only."""
    for name, table in tables.items():
        con.register("__arrow", table)
        con.execute(f'CREATE TABLE {quoted(name)} AS SELECT * FROM "__arrow"')
        con.unregister("__arrow")


def lock(con: duckdb.DuckDBPyConnection, *settings: str) -> None:
    """Close a connection and its cursors off from files, networks and Python's variables.

    Parameters
    ----------
    con : DuckDBPyConnection
        The connection.
    *settings : str
        Further settings, which cannot be changed any more either.
    """
    # Unique: DuckDB makes it when it spills and removes it at the end.
    spill = Path(tempfile.gettempdir()) / f"nrm_graph_{secrets.token_hex(8)}"
    text = str(spill).replace("'", "''")
    for setting in (
        *settings,
        f"temp_directory = '{text}'",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        con.execute(f"SET GLOBAL {setting}")  # for every cursor
