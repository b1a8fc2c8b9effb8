"""Graphs and tables as files: GraphML, node-link JSON, pictures; CSV, JSON, Parquet, text."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    import networkx as nx
    import numpy.typing as npt
    import pyarrow as pa

GRAPH_SUFFIXES = (".graphml", ".json", ".svg", ".png")
TABLE_FORMATS = ("table", "csv", "json", "parquet")
_TABLE_SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table"}
SHOWN_ROWS = 50
_WIDEST = 60


def graph_path(path: str | os.PathLike[str]) -> Path:
    """Check that a graph can be written to a path, before anything is computed for it.

    Raises
    ------
    InputError
        If the suffix is not known or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in GRAPH_SUFFIXES:
        raise InputError(
            f"cannot write a graph to {path}: expected a name that ends in "
            f"{', '.join(GRAPH_SUFFIXES)}"
        )
    return _in_folder(path)


def _in_folder(path: Path) -> Path:
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}, create it first")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    return path


def write_graph(
    graph: nx.DiGraph, path: str | os.PathLike[str], *, image: npt.NDArray[Any] | None = None
) -> None:
    """Write a graph in the format that the suffix of the path names.

    Parameters
    ----------
    graph : networkx.DiGraph
        Nodes are (layer, unit); attributes are scalars.
    path : path-like
        ``.graphml`` (nodes become ``layer:unit``), ``.json`` (node-link; read it back with
        ``networkx.node_link_graph(data, edges="edges")``), ``.svg`` or ``.png``.
    image : ndarray, (H, W) or (H, W, 3), optional
        The input, shown in a picture; see :func:`nrm_graph.plots.plot_subgraph`.

    Raises
    ------
    InputError
        If the suffix is not known or the file cannot be written.
    """
    path = graph_path(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".graphml":
            import networkx as nx

            nx.write_graphml(_stringified(graph), path)
        elif suffix == ".json":
            path.write_text(_node_link(graph), encoding="utf-8")
        else:
            from nrm_graph.plots import save_subgraph

            save_subgraph(graph, path, image=image)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _scalar(value: Any) -> Any:
    """Return a NumPy scalar as Python's, and None for what is not a finite scalar."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _scalars(attributes: Mapping[str, Any]) -> dict[str, Any]:
    plain = {str(name): _scalar(value) for name, value in attributes.items()}
    return {n: v for n, v in plain.items() if isinstance(v, bool | int | float | str)}


def _stringified(graph: nx.DiGraph) -> nx.DiGraph:
    import networkx as nx

    names = {node: _node_id(node) for node in graph}
    plain = nx.DiGraph(**_scalars(graph.graph))
    plain.add_nodes_from((names[node], _scalars(data)) for node, data in graph.nodes(data=True))
    plain.add_edges_from(
        (names[src], names[dst], _scalars(data)) for src, dst, data in graph.edges(data=True)
    )
    return plain


def _node_id(node: Any) -> str:
    return ":".join(str(part) for part in node) if isinstance(node, tuple) else str(node)


def _node_link(graph: nx.DiGraph) -> str:
    import networkx as nx

    plain = nx.DiGraph(**_scalars(graph.graph))
    plain.add_nodes_from((node, _scalars(data)) for node, data in graph.nodes(data=True))
    plain.add_edges_from((src, dst, _scalars(data)) for src, dst, data in graph.edges(data=True))
    return json.dumps(nx.node_link_data(plain, edges="edges"), indent=1, allow_nan=False) + "\n"


def table_format(form: str | None, output: str | os.PathLike[str] | None) -> str:
    """Choose the format of a table: what was asked, else by the suffix of the output."""
    if form is not None:
        return form
    return "table" if output is None else _TABLE_SUFFIXES.get(Path(output).suffix.lower(), "table")


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
        If the file cannot be written, or Parquet is to be shown in a terminal.
    """
    form = table_format(form, output)
    if output is None and form == "parquet" and sys.stdout.isatty():
        raise InputError("Parquet is not for a terminal: give --output FILE or redirect the output")
    if output is None and form == "table":
        print(text_table(table, SHOWN_ROWS))
        return
    data = encode_table(table, form)
    if output is None:
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            sys.stdout.write(data.decode())
        return
    path = _in_folder(Path(output))
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Write a value as JSON.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    path = _in_folder(Path(path))
    try:
        path.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def one_line(text: str) -> str:
    """Return text on one line, without characters that would steer a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in " ".join(text.split())
    )


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, aligned, each pair on one line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        print(f"{name:<{width}}  {one_line(shown)}")


def encode_table(table: pa.Table, form: str) -> bytes:
    """Encode a table as CSV, JSON records, Parquet or aligned text."""
    import pyarrow as pa

    if form == "table":
        return (text_table(table) + "\n").encode()
    if form == "json":
        rows = [{k: _plain(v) for k, v in row.items()} for row in table.to_pylist()]
        lines = ",\n".join(json.dumps(row, allow_nan=False, default=str) for row in rows)
        return f"[\n{lines}\n]\n".encode() if rows else b"[]\n"
    sink = pa.BufferOutputStream()
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, sink)
    else:
        import pyarrow.csv as pc

        pc.write_csv(_flat(table), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: NaN and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _flat(table: pa.Table) -> pa.Table:
    """Write lists and structures as JSON text, which CSV has no other form for."""
    import pyarrow as pa

    for position, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            column = [
                None if v is None else json.dumps(_plain(v), default=str)
                for v in table.column(position).to_pylist()
            ]
            table = table.set_column(position, field.name, pa.array(column, pa.string()))
    return table


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
