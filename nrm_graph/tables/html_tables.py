"""What an object says of itself, as text and in notebooks, and its table as a data frame."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nrm_graph._optional import data_frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    import pyarrow as pa

ROWS, COLUMNS = 20, 16
"""Of a table, what a notebook shows at most."""
MAX_TEXT = 300
"""Characters of one cell at most."""

# MathJax, which notebooks run over what they show, leaves these classes alone: $...$ in a label is
# no formula, and a formula may hold links.
_UNTOUCHED = "tex2jax_ignore mathjax_ignore"


@dataclass(frozen=True)
class Picture:
    """A small picture in a cell.

    Attributes
    ----------
    png : bytes
        The picture itself.
    text : str
        What it shows, in words.
    """

    png: bytes
    text: str

    def html(self) -> str:
        """Return it as HTML that holds the picture."""
        data = base64.b64encode(self.png).decode()
        style = "width:64px;height:64px;object-fit:contain;image-rendering:pixelated"
        return f'<img src="data:image/png;base64,{data}" alt="{_cell(self.text)}" style="{style}">'


@dataclass(frozen=True)
class HtmlTable:
    """Some rows of a table, and how many there are.

    Attributes
    ----------
    columns : tuple of str
        Names of the columns.
    rows : tuple of tuple
        The first rows.
    total : int or None
        Rows of the whole table; None where there are more than are known.
    caption : str
        What the rows are, or what precedes them.
    left_out : int
        Columns that are left out.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    total: int | None = 0
    caption: str = ""
    left_out: int = 0

    def html(self) -> str:
        """Return the table as HTML; whatever it holds is text there."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        sides = [_side(values) for values in columns]
        head = _row("th", self.columns, sides) if any(self.columns) else ""
        rows = "".join(_row("td", row, sides) for row in self.rows)
        caption = f"<div>{_cell(self.caption)}</div>" if self.caption else ""
        rest = f"<div><i>{_cell(self._rest())}</i></div>" if self._rest() else ""
        table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
        return f'<div style="margin-top:0.5em">{caption}{table}{rest}</div>'

    def _rest(self) -> str:
        """Say what is left out."""
        parts = []
        if self.total is None:
            parts.append(f"the first {len(self.rows):,} rows, more are left out")
        elif self.total > len(self.rows):
            left = self.total - len(self.rows)
            parts.append(f"the first {len(self.rows):,} of {self.total:,} rows, {left:,} left out")
        if self.left_out:
            columns = "column" if self.left_out == 1 else "columns"
            parts.append(f"{self.left_out:,} {columns} left out")
        return "; ".join(parts)


def table_of(
    table: pa.Table,
    columns: Sequence[str] | None = None,
    *,
    caption: str = "",
    total: int | None = -1,
) -> HtmlTable:
    """Return the first rows of an Arrow table.

    Parameters
    ----------
    table : pyarrow.Table
        The table.
    columns : sequence of str, optional
        Those to show, in order, of which some may be missing; all by default.
    caption : str
        What the rows are.
    total : int or None
        Rows of the whole, where the table holds not all of them; None where that is not known.
    """
    names = list(table.column_names if columns is None else columns)
    names = [name for name in names if name in table.column_names]
    shown = table.select(names[:COLUMNS]).slice(0, ROWS)
    rows = tuple(zip(*(column.to_pylist() for column in shown.columns), strict=True))
    count = table.num_rows if total == -1 else total
    return HtmlTable(tuple(names[:COLUMNS]), rows, count, caption, max(0, len(names) - COLUMNS))


def pairs_of(pairs: Iterable[tuple[str, object]]) -> HtmlTable:
    """Return names with their values, a row each; a value of None is left out."""
    rows = tuple((name, value) for name, value in pairs if value is not None)
    return HtmlTable(("", ""), rows, len(rows))


@dataclass(frozen=True)
class Description:
    """What an object says of itself.

    Attributes
    ----------
    title : str
        What it is, in one line.
    lines : tuple of str
        What else is to be said.
    rows : tuple of str
        Its first rows as text, where notebooks show tables.
    notes : tuple of str
        What is said after them.
    """

    title: str
    lines: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return it as text."""
        return "<" + "\n  ".join([self.title, *self.lines, *self.rows, *self.notes]) + ">"

    def html(self, *tables: HtmlTable) -> str:
        """Return it as HTML, without scripts, styles of the page or anything from outside."""
        parts = [f"<div><b>{_cell(self.title)}</b></div>"]
        parts += [f"<div>{_cell(line)}</div>" for line in self.lines]
        parts += [table.html() for table in tables]
        parts += [f"<div>{_cell(note)}</div>" for note in self.notes]
        inside = "".join(parts)
        return f'<div class="nrm-graph {_UNTOUCHED}" style="overflow-x:auto">{inside}</div>'


class Displayed:
    """An object that notebooks show with tables, and text with the same facts."""

    def _description(self) -> Description:
        raise NotImplementedError

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        return ()

    def __repr__(self) -> str:
        return self._description().text()

    def _repr_html_(self) -> str:
        return self._description().html(*self._html_tables())


class Tabular(Displayed):
    """An object that has a table."""

    def to_arrow(self) -> pa.Table:
        """Return the table."""
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a data frame.

        Raises
        ------
        InputError
            If pandas is not installed.
        """
        data_frames()
        return self.to_arrow().to_pandas()


def _side(values: Sequence[object]) -> str:
    """Side to which a column is set: numbers stand right, so that their places agree."""
    text = any(not isinstance(value, int | float) for value in values if value is not None)
    return "left" if text else "right"


def _row(tag: str, values: Sequence[object], sides: Sequence[str]) -> str:
    cells = (
        f'<{tag} style="text-align:{side}">{_cell(value)}</{tag}>'
        for value, side in zip(values, sides, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: object) -> str:
    """Write a value as text of HTML."""
    if value is None:
        return ""
    if isinstance(value, Picture):
        return value.html()
    if isinstance(value, float):
        text = f"{value:.5g}"
    elif isinstance(value, dict):
        text = ", ".join(f"{name} {item}" for name, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... ({len(text):,} characters)"
    # A lone surrogate has no UTF-8, and would keep the notebook from being saved.
    return html.escape(text.encode("utf-8", "backslashreplace").decode())
