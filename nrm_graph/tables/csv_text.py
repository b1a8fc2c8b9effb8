"""Tables as CSV."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as pc

from nrm_graph.output_files import plain

if TYPE_CHECKING:
    from collections.abc import Callable

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(table: pa.Table, *, spreadsheet: bool = False) -> bytes:
    r"""Write a table as CSV, lists and structures as JSON text.

    Parameters
    ----------
    table : pyarrow.Table
        The rows.
    spreadsheet : bool
        Put an apostrophe before texts that a spreadsheet would compute as a formula: those that
        begin with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return and are no number.

    Examples
    --------
    >>> csv_text(pa.table({"a": [1, 2], "b": ["=1+1", "-3"]}), spreadsheet=True)
    b'"a","b"\n1,"\'=1+1"\n2,"-3"\n'
    """
    names = list(table.column_names)
    for position, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            table = _mapped(table, position, lambda value: json.dumps(plain(value), default=str))
        elif spreadsheet and not _is_number(field.type):
            table = _mapped(table, position, _quoted)
    if spreadsheet:
        table = table.rename_columns([_quoted(name) for name in names])
    sink = pa.BufferOutputStream()
    pc.write_csv(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _mapped(table: pa.Table, position: int, text: Callable[[Any], str]) -> pa.Table:
    column = [None if v is None else text(v) for v in table.column(position).to_pylist()]
    name = table.schema.field(position).name
    return table.set_column(position, name, pa.array(column, pa.string()))


def _is_number(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
    )


def _quoted(value: Any) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    text = str(value)
    if not text.startswith(_FORMULAS):
        return text
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return f"'{text}"
