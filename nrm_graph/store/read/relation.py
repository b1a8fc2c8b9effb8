"""Results of a query that can be interrupted and whose errors are this package's."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NoReturn

import duckdb

from nrm_graph._optional import data_frames
from nrm_graph.errors import QueryError
from nrm_graph.store.read.forks import unended_in_children
from nrm_graph.tables.html_tables import Description, HtmlTable, table_of

if TYPE_CHECKING:
    import pandas as pd

    from nrm_graph.store.read.interruptible import Cursor


COUNTED = 1000
"""Rows at most that are counted to say how many a notebook leaves out."""


class Relation:
    """A DuckDB relation whose methods can be interrupted.

    Everything of ``duckdb.DuckDBPyRelation`` is there: ``fetchall``, ``fetchmany``, ``df``,
    ``to_arrow_table``, ``columns``, ``limit`` and so on; ``relation`` is the relation itself.
    Notebooks show its first rows.
    It belongs to the process that made it.
    """

    def __init__(self, cursor: Cursor, relation: duckdb.DuckDBPyRelation) -> None:
        self._cursor = cursor
        self.relation = relation
        unended_in_children(self)

    def cancel(self) -> None:
        """Stop what this relation, or one made from it, runs now in another thread.

        The call there raises :class:`nrm_graph.QueryError`; the relation can be used further.
        """
        self._cursor.cancel()

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_repr_", "_ipython_")):  # what notebooks ask for first
            raise AttributeError(name)
        self._cursor.check()
        if isinstance(getattr(type(self.relation), name, None), property):
            return self._cursor.call(lambda: getattr(self.relation, name))  # shape runs the query
        attribute = getattr(self.relation, name)
        if not callable(attribute):
            return attribute

        @functools.wraps(attribute)
        def method(*args: object, **kwargs: object) -> Any:
            plain = [a.relation if isinstance(a, Relation) else a for a in args]
            value = self._cursor.call(lambda: attribute(*plain, **kwargs))
            if isinstance(value, duckdb.DuckDBPyRelation):
                return Relation(self._cursor, value)
            return value

        return method

    def __dir__(self) -> list[str]:
        public = (name for name in dir(self.relation) if not name.startswith("_"))
        return sorted({*super().__dir__(), *public})

    def __getstate__(self) -> NoReturn:
        raise QueryError(
            "a relation cannot be copied or pickled, for it belongs to an open connection: copy "
            "the database, or what relation.to_arrow_table() returns"
        )

    def __len__(self) -> int:
        return int(self._cursor.call(lambda: len(self.relation)))

    def __repr__(self) -> str:
        return str(self._cursor.call(lambda: repr(self.relation)))

    def __str__(self) -> str:
        return repr(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a data frame.

        Raises
        ------
        InputError
            If pandas is not installed.
        QueryError
            If the query fails.
        """
        data_frames()
        return self.df()

    def _repr_html_(self) -> str:
        return Description(f"Relation of {len(self.columns)} columns").html(first_rows(self))


def first_rows(relation: Relation, caption: str = "") -> HtmlTable:
    """Return the first rows of a relation for a notebook; of a long one the rest is not counted."""
    rows = relation.limit(COUNTED + 1).to_arrow_table()
    return table_of(rows, caption=caption, total=-1 if len(rows) <= COUNTED else None)
