"""Tables as files and text: CSV, JSON, Parquet; and facts for people."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import networkx as nx
    import pyarrow as pa

TABLE_FORMATS = ("table", "csv", "json", "parquet")
_TABLE_SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table"}
SHOWN_ROWS = 50
_WIDEST = 60


def table_format(form: str | None, output: str | os.PathLike[str] | None) -> str:
    """Choose the format of a table, and check that it can be written, before it is computed.

    Parameters
    ----------
    form : str or None
        What was asked for; by default what the suffix of the output names.
    output : path-like, optional
        File to write, else standard output.

    Raises
    ------
    InputError
        If the suffix is not known and no format was asked for, the file cannot be written, or
        Parquet is to be shown in a terminal.
    """
    if output is None:
        if form == "parquet" and sys.stdout is not None and sys.stdout.isatty():
            raise InputError(
                "Parquet is not for a terminal: give --output FILE or redirect the output"
            )
        return form or "table"
    from nrm_graph.output_files import in_folder

    named = _TABLE_SUFFIXES.get(Path(output).suffix.lower())
    if form is None and named is None:
        raise InputError(
            f"cannot write a table to {os.fspath(output)!r}: expected a name that ends in "
            f"{', '.join(_TABLE_SUFFIXES)}, or --format"
        )
    in_folder(Path(output))
    return form or str(named)


def write_table(
    table: pa.Table, form: str | None = None, output: str | os.PathLike[str] | None = None
) -> None:
    """Write a table to a file or to standard output.

    Parameters
    ----------
    table : pyarrow.Table
        The rows.
    form : {"table", "csv", "json", "parquet"}, optional
        The format; by default that of the output's suffix, else ``table``, which is for people
        and shows the first rows only on standard output.
    output : path-like, optional
        File to write.

    Raises
    ------
    InputError
        If the file cannot be written, its suffix is not known, Parquet is to be shown in a
        terminal, or the format cannot hold a value.
    NrmError
        If the disk is full or fails.  A file that was there before is as it was.
    """
    form = table_format(form, output)
    shown = SHOWN_ROWS if output is None else None
    data = encode_table(table, form, shown)
    if output is None and form == "table":
        print(data.decode(), end="")
        return
    if output is None:
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            sys.stdout.write(data.decode())
        return
    from nrm_graph.output_files import write_files

    write_files({Path(output): data})


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Write a value as JSON.

    Raises
    ------
    InputError
        If the file cannot be written.
    NrmError
        If the disk is full or fails.  A file that was there before is as it was.
    """
    from nrm_graph.output_files import write_files

    write_files({Path(path): (json.dumps(value, allow_nan=False) + "\n").encode()})


def draws_graph(output: str | None) -> bool:
    """Whether a file that is asked for can hold a graph and no table."""
    from nrm_graph.graphs.formats import GRAPH_SUFFIXES

    suffix = "" if output is None else Path(output).suffix.lower()
    return suffix in GRAPH_SUFFIXES and suffix not in _TABLE_SUFFIXES


def save_graph(graph: nx.DiGraph, path: Path, *, facts: Mapping[str, str], **pictures: Any) -> None:
    """Write a graph, and say where it is; ``facts`` are what it holds about itself besides.

    ``pictures`` are ``image`` and ``images`` of :func:`nrm_graph.graphs.formats.write_graph`.
    """
    from nrm_graph.graphs.formats import write_graph

    graph.graph |= facts
    files = ", ".join(str(file) for file in write_graph(graph, path, **pictures))
    print(f"{files}: {graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges")
    facts = graph.graph
    kept = f"kept share of the edges' sum of |relevance|: {facts['share']:.6g}"
    if "share_strongest" in facts:
        kept += f"; the strongest edges would keep {facts['share_strongest']:.6g}"
    print(kept)


def one_line(text: str) -> str:
    """Return text on one line, without characters that would steer a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in " ".join(text.split())
    )


def printable(line: str) -> str:
    """Return text without characters that would steer a terminal, its spaces kept."""
    return "".join(c if c.isprintable() else "?" for c in line)


def print_lines(found: object) -> None:
    """Print what an object says of itself."""
    print("\n".join(printable(line) for line in str(found).split("\n")))


def print_notes(flags: Sequence[str]) -> None:
    """Print what to know before trusting an answer, on standard error."""
    for flag in flags:
        print(f"note: {one_line(flag)}", file=sys.stderr)


def print_facts(facts: Mapping[str, Any], meanings: Mapping[str, str] | None = None) -> None:
    """Print names, values and what some of them mean, aligned, each fact on one line."""
    meanings = meanings or {}
    width = max(map(len, facts))
    texts = {
        name: one_line(f"{value:.6g}" if isinstance(value, float) else str(value))
        for name, value in facts.items()
    }
    explained = max((len(text) for name, text in texts.items() if name in meanings), default=0)
    for name, text in texts.items():
        meaning = f"{text:<{explained}}  {meanings[name]}" if name in meanings else text
        print(f"{name:<{width}}  {meaning}")


def encode_table(table: pa.Table, form: str, limit: int | None = None) -> bytes:
    """Encode a table as CSV, JSON records, Parquet or aligned text of at most so many rows.

    Raises
    ------
    InputError
        If the format cannot hold a value.
    """
    import pyarrow as pa

    try:
        return _encoded(table, form, limit)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InputError(
            f"cannot write these values as {form} ({first_line(error)}): CAST them to VARCHAR in "
            "the query, or choose another --format"
        ) from error


def _encoded(table: pa.Table, form: str, limit: int | None) -> bytes:
    import pyarrow as pa

    from nrm_graph.output_files import plain

    if form == "table":
        return (text_table(table, limit) + "\n").encode()
    if form == "json":
        names = table.column_names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(
                f"cannot write these columns as json: two are named {twice!r}; give one another "
                "name in the query (AS), or choose another --format"
            )
        rows = [{k: plain(v) for k, v in row.items()} for row in table.to_pylist()]
        lines = ",\n".join(json.dumps(row, allow_nan=False, default=str) for row in rows)
        return f"[\n{lines}\n]\n".encode() if rows else b"[]\n"
    if form == "csv":
        from nrm_graph.tables.csv_text import csv_text

        return csv_text(table)
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def text_table(table: pa.Table, limit: int | None = None) -> str:
    """Aligned text of a table.

    Parameters
    ----------
    table : pyarrow.Table
        The rows.
    limit : int, optional
        Rows to show; what is left out is said in the last line.

    Returns
    -------
    str
        Lines without a final newline.
    """
    names = table.column_names
    shown = table if limit is None else table.slice(0, limit)
    rows = [[_cell(value) for value in row] for row in _rows(shown)]
    widths = [
        max([len(name), *(len(row[i]) for row in rows)], default=0) for i, name in enumerate(names)
    ]
    numeric = [_is_number(field.type) for field in table.schema]

    def line(cells: Iterable[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    lines = [line(names), line("-" * width for width in widths), *map(line, rows)]
    hidden = table.num_rows - shown.num_rows
    if hidden:
        lines.append(f"... {hidden:,} more rows; --output FILE or --format csv gives all of them")
    elif not rows:
        lines.append("(no rows)")
    return "\n".join(lines)


def _rows(table: pa.Table) -> Iterable[tuple[Any, ...]]:
    columns = [table.column(i).to_pylist() for i in range(table.num_columns)]
    return zip(*columns, strict=True)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
