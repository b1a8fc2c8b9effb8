"""Charts of tables as Plotly figures, whose texts are escaped: a browser reads tags in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.explorer.parts import number
from nrm_graph.plots.common import NEGATIVE, POSITIVE, TEXT
from nrm_graph.plots.interactive import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go
    import pyarrow as pa

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
    labels = [plain(row.name, 48) for row in rows]
    figure.update_yaxes(
        tickvals=places, ticktext=labels, range=[len(rows) - 0.5, -0.5], zeroline=False
    )
    figure.update_xaxes(zeroline=True, zerolinecolor="#999999")
    return figure


def chart(rows: pa.Table, kind: str) -> go.Figure:
    """Draw the first columns of a table: the first one across, each further one of numbers up.

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
    import plotly.graph_objects as go

    names = [str(name) for name in rows.column_names]
    columns = [rows.column(i).slice(0, POINTS).to_pylist() for i in range(rows.num_columns)]
    numeric = [i for i, column in enumerate(columns) if _numbers(column)]
    if not len(rows) or not numeric:
        raise InputError(
            "there is nothing to draw: a chart takes rows with a column of numbers, "
            f"found {len(rows):,} rows of {', '.join(names)}"[:300]
        )
    upwards = [i for i in numeric if i][:SERIES] or [0]
    first = columns[0] if upwards != [0] else list(range(len(rows)))
    # A bar for every row, in their order: those of equal names would be stacked.
    spaced = kind != "bar" and _numbers(first)
    across: list[Any] = _finite(first) if spaced else list(range(len(first)))
    labels = [plain(number(value), 40) for value in first]
    figure = go.Figure()
    for i in upwards:
        values, name = _finite(columns[i]), plain(names[i], 40)
        pairs = zip(labels, values, strict=True)
        told = [f"{label}<br>{name}: {value}" for label, value in pairs]
        about = {"name": name, "hovertext": told, "hoverinfo": "text"}
        if kind == "bar":
            figure.add_bar(x=across, y=values, **about)
        else:
            mode = "lines" if kind == "line" else "markers"
            figure.add_scatter(x=across, y=values, mode=mode, **about)
    several = len(upwards) > 1
    title = "row" if upwards == [0] else names[0]
    _plain_axes(figure, title, "" if several else names[upwards[0]], height=340)
    figure.update_layout(showlegend=several)
    if not spaced:
        shown = range(0, len(first), -(-len(first) // TICKS))
        figure.update_xaxes(tickvals=list(shown), ticktext=[labels[i] for i in shown])
    return figure


def _plain_axes(figure: go.Figure, across: str, upwards: str, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        font={"size": 12, "color": TEXT},
        showlegend=False,
        colorway=["#0072B2", "#D55E00", "#009E73", "#CC79A7"],
    )
    figure.update_xaxes(title={"text": plain(across, 80)}, automargin=True)
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
