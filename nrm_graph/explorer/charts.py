"""Charts of tables: as Plotly figures, whose texts are escaped for a browser, and as pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.explorer.parts import number
from nrm_graph.plots.common import NEGATIVE, POSITIVE, TEXT, hide_frame, new_axes
from nrm_graph.plots.interactive import plain
from nrm_graph.plots.token_strip import drawn_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go
    import pyarrow as pa
    from matplotlib.figure import Figure

COLOURS = (NEGATIVE, POSITIVE, "#009E73")
POINTS, SERIES, TICKS = 2_000, 3, 40
"""Rows, columns and names of rows that a chart shows at most."""


@dataclass(frozen=True)
class Whisker:
    """A number, and what it lies between.

    Attributes
    ----------
    name : str
        What it is of.
    mean, low, high : float
        The number; two standard errors to both sides of it, or bounds.
    """

    name: str
    mean: float
    low: float
    high: float


def whiskers(rows: Sequence[Whisker], title: str) -> go.Figure:
    """Draw numbers with what they lie between, the first on top."""
    import plotly.graph_objects as go

    # Places and not names: two names may be alike after they were cut.
    places = list(range(len(rows)))
    figure = go.Figure(
        go.Scatter(
            x=[row.mean for row in rows],
            y=places,
            mode="markers",
            marker={"size": 8, "color": [_colour(row.mean) for row in rows]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [row.high - row.mean for row in rows],
                "arrayminus": [row.mean - row.low for row in rows],
                "color": "#777777",
                "thickness": 1.2,
                "width": 3,
            },
            hovertext=[
                f"{plain(row.name)}<br>{row.mean:.6g}, from {row.low:.4g} to {row.high:.4g}"
                for row in rows
            ],
            hoverinfo="text",
        )
    )
    _plain_axes(figure, title, "", height=90 + 22 * len(rows))
    labels = [plain(row.name, 60) for row in rows]
    figure.update_yaxes(
        tickvals=places, ticktext=labels, range=[len(rows) - 0.5, -0.5], zeroline=False
    )
    figure.update_xaxes(zeroline=True, zerolinecolor="#999999")
    return figure


@dataclass(frozen=True)
class Series:
    """What a chart of a table draws.

    Attributes
    ----------
    title : str
        What stands across.
    across : list of float or None
        Places of the rows.
    labels : list of str
        Texts of the rows.
    spaced : bool
        Whether places are numbers of the table, and not those of the rows.
    columns : tuple of (name, values)
        What is drawn upwards.
    """

    title: str
    across: list[float | None]
    labels: list[str]
    spaced: bool
    columns: tuple[tuple[str, list[float | None]], ...]

    @property
    def upwards(self) -> str:
        """What stands beside the vertical axis."""
        return self.columns[0][0] if len(self.columns) == 1 else ""

    @property
    def ticks(self) -> range:
        """Rows whose texts stand below."""
        return range(0, len(self.labels), -(-len(self.labels) // TICKS))


def series(rows: pa.Table, kind: str) -> Series:
    """Choose what is drawn of a table: the first column across, further ones of numbers upwards.

    Parameters
    ----------
    rows : pyarrow.Table
        The table; its first :data:`POINTS` rows are drawn.
    kind : "bar", "line" or "points"
        How.

    Raises
    ------
    InputError
        If there is nothing to draw.
    """
    names = [str(name) for name in rows.column_names]
    columns = [rows.column(i).slice(0, POINTS).to_pylist() for i in range(rows.num_columns)]
    numeric = [i for i, column in enumerate(columns) if _numbers(column)]
    if not len(rows) or not numeric:
        raise InputError(
            "there is nothing to draw: a chart takes rows with a column of numbers, "
            f"found {len(rows):,} rows of {', '.join(names)}"[:300]
        )
    upwards = [i for i in numeric if i][:SERIES] or [0]
    first = columns[0] if upwards != [0] else list(range(len(columns[0])))
    # A bar for every row, in their order: those of equal names would be stacked.
    spaced = kind != "bar" and _numbers(first)
    return Series(
        "row" if upwards == [0] else names[0],
        _finite(first) if spaced else [float(i) for i in range(len(first))],
        [number(value) for value in first],
        spaced,
        tuple((names[i], _finite(columns[i])) for i in upwards),
    )


def chart(rows: pa.Table, kind: str) -> go.Figure:
    """Draw the first columns of a table for the page; see :func:`series`."""
    import plotly.graph_objects as go

    drawn = series(rows, kind)
    labels = [plain(label, 40) for label in drawn.labels]
    figure = go.Figure()
    for title, values in drawn.columns:
        name = plain(title, 40)
        pairs = zip(labels, values, strict=True)
        told = [f"{label}<br>{name}: {value}" for label, value in pairs]
        about = {"name": name, "hovertext": told, "hoverinfo": "text"}
        if kind == "bar":
            figure.add_bar(x=drawn.across, y=values, **about)
        else:
            mode = "lines" if kind == "line" else "markers"
            figure.add_scatter(x=drawn.across, y=values, mode=mode, **about)
    _plain_axes(figure, drawn.title, drawn.upwards, height=340)
    figure.update_layout(showlegend=len(drawn.columns) > 1)
    if not drawn.spaced:
        texts = [labels[i] for i in drawn.ticks]
        figure.update_xaxes(tickvals=list(drawn.ticks), ticktext=texts)
    return figure


def picture(rows: pa.Table, kind: str) -> Figure:
    """Draw the same as a picture, to be exported."""
    drawn = series(rows, kind)
    ax = new_axes(7.0, 3.8)
    across = np.array(drawn.across, np.float64)  # None is NaN, a gap
    width = 0.8 / len(drawn.columns)
    for place, (name, column) in enumerate(drawn.columns):
        values, label = np.array(column, np.float64), drawn_words(name, 40)
        shade = COLOURS[place]
        if kind == "bar":
            ax.bar(across + (place + 0.5) * width - 0.4, values, width, label=label, color=shade)
        else:
            marks: dict[str, Any] = {"linestyle": "-"} if kind == "line" else {"linestyle": ""}
            ax.plot(across, values, **marks, marker="o", markersize=3, label=label, color=shade)
    if not drawn.spaced:
        texts = [drawn_words(drawn.labels[i], 24) for i in drawn.ticks]
        ax.set_xticks(list(drawn.ticks), texts, rotation=40, ha="right", parse_math=False)
    ax.tick_params(labelsize=7)
    ax.set_xlabel(drawn_words(drawn.title, 80), fontsize=8, parse_math=False)
    ax.set_ylabel(drawn_words(drawn.upwards, 80), fontsize=8, parse_math=False)
    if len(drawn.columns) > 1:
        for text in ax.legend(fontsize=7, frameon=False).get_texts():
            text.set_parse_math(False)
    hide_frame(ax, "top", "right")
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _plain_axes(figure: go.Figure, across: str, upwards: str, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        font={"size": 12, "color": TEXT},
        showlegend=False,
        colorway=list(COLOURS),
    )
    figure.update_xaxes(title={"text": plain(across, 80), "standoff": 10}, automargin=True)
    figure.update_yaxes(title={"text": plain(upwards, 80)}, automargin=True)


def _numbers(column: Sequence[Any]) -> bool:
    present = [value for value in column if value is not None]
    return bool(present) and all(
        isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        for value in present
    )


def _finite(column: Sequence[Any]) -> list[float | None]:
    """Return what JSON can hold; elsewhere the chart has a gap."""
    return [None if v is None or not math.isfinite(v) else float(v) for v in column]


def _colour(value: float) -> str:
    return NEGATIVE if value < 0 else POSITIVE
