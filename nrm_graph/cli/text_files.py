"""INPUTS of a language model: prompts in a file, a text a line or a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, first_line

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    import pyarrow as pa

TEXT = "text"
_TEXTUAL = (TEXT, "key", "label", "target", "against")
"""Columns whose values are text even where they look like numbers: ``42`` may be a token."""


def read_texts(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read prompts from a file.

    Parameters
    ----------
    path : path-like
        ``.txt``, a prompt a line, empty lines left out; ``.jsonl``, an object a line with
        ``text``; ``.csv`` or ``.parquet`` with a column ``text``.  Of the last three, ``key``,
        ``label``, ``target`` and ``against`` are those of the text, and further fields its
        metadata.

    Returns
    -------
    list of dict
        As :func:`nrm_graph.extract` takes them of a language model.  Without a key, a text is
        called after the file and its line or row, ``prompts-00012``, from 0.

    Raises
    ------
    InputError
        If the file is missing or damaged, of another kind, or holds no text.
    """
    place = Path(path)
    reader = _READERS.get(place.suffix.lower())
    if reader is None:
        raise InputError(
            f"cannot read texts from {place}: expected {', '.join(_READERS)}, or --prompt TEXT"
        )
    try:
        rows = reader(place)
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror or first_line(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} is no text in UTF-8 (byte {error.start}): convert it, or save it as UTF-8"
        ) from None
    if not rows:
        raise InputError(f"{place} holds no text")
    stem = place.stem.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return [
        {"key": f"{stem}-{number:05d}"} | {k: v for k, v in row.items() if v is not None}
        for number, row in rows
    ]


_Rows = list[tuple[int, dict[str, Any]]]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers from 0."""
    # Only line feeds end a line: a prompt may hold other separators.
    text = path.read_bytes().decode("utf-8-sig")
    lines = enumerate(line.removesuffix("\r") for line in text.split("\n"))
    return [(number, line) for number, line in lines if line.strip()]


def _plain(path: Path) -> _Rows:
    return [(number, {TEXT: line}) for number, line in _lines(path)]


def _objects(path: Path) -> _Rows:
    rows = []
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"line {number + 1} of {path} is no JSON ({first_line(error)})"
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get(TEXT), str):
            raise InputError(
                f"line {number + 1} of {path}: expected an object with 'text', a string"
            )
        rows.append((number, row))
    return rows


def _comma_separated(path: Path) -> _Rows:
    import pyarrow as pa
    import pyarrow.csv as pc

    options = pc.ConvertOptions(
        column_types=dict.fromkeys(_TEXTUAL, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    parsing = pc.ParseOptions(newlines_in_values=True)
    return _of_table(
        path, lambda: pc.read_csv(path, parse_options=parsing, convert_options=options)
    )


def _parquet(path: Path) -> _Rows:
    import pyarrow.parquet as pq

    return _of_table(path, lambda: pq.ParquetFile(path).read())


def _of_table(path: Path, read: Callable[[], pa.Table]) -> _Rows:
    import pyarrow as pa

    try:
        table = read()
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
    names = table.column_names
    if TEXT not in names:
        listed = ", ".join(names) or "none"
        raise InputError(f"{path} has no column 'text': found {listed}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns {twice!r}: name one of them otherwise")
    kind = table.schema.field(TEXT).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"the column 'text' of {path} holds {kind}, expected text")
    rows = table.to_pylist()
    missing = next((i for i, row in enumerate(rows) if row[TEXT] is None), None)
    if missing is not None:
        raise InputError(f"row {missing + 1} of {path} has no text")
    return list(enumerate(rows))


_READERS: dict[str, Callable[[Path], _Rows]] = {
    ".txt": _plain,
    ".jsonl": _objects,
    ".csv": _comma_separated,
    ".parquet": _parquet,
}


def prompts(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return prompts of the command line as texts with keys, ``prompt-0`` and on."""
    return [{"key": f"prompt-{i}", TEXT: text} for i, text in enumerate(texts)]
