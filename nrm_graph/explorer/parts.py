"""Pieces that the views are built from: links, controls, tables, pictures, errors.

Text that comes from a store stands in children of components, which the browser shows as text;
what goes into a Plotly figure is escaped by :func:`nrm_graph.plots.interactive.plain`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from dash import dcc, html

from nrm_graph.explorer.stored_texts import tame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    from dash.development.base_component import Component

    from nrm_graph.explorer.page import Page

ROWS = 200
"""Rows of a table that are shown."""
LETTERS = 2_000
"""Letters of an error, or of a table's cell."""


CONFIG: Any = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "responsive": True,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
"""Of Plotly's figures: nothing that leads elsewhere."""


def control(name: str, value: Any, label: str, **options: Any) -> html.Label:
    """Return a field that changes one value of the address when Enter is pressed or it is left.

    Parameters
    ----------
    name : str
        Field of :class:`nrm_graph.explorer.address.Address`.
    value : str, int or float
        What it holds now.
    label : str
        What stands above it.
    **options
        Of :class:`dash.dcc.Input`, such as ``placeholder`` or ``type``.
    """
    entry = dcc.Input(id={"control": name}, value=value, debounce=True, **options)
    return html.Label([html.Span(label), entry], className="control")


def choice(name: str, value: Any, label: str, options: Mapping[Any, str]) -> html.Label:
    """Return a list of which one value is chosen; ``options`` are values and what is shown."""
    # A plain <select> would need code of its own: Dash has no property for what is chosen in it.
    listed = [{"value": key, "label": text} for key, text in options.items()]
    entry = dcc.Dropdown(
        id={"control": name},
        value=value,
        options=listed,
        clearable=False,
        searchable=len(listed) > 9,
    )
    return html.Label([html.Span(label), entry], className="control")


def store_choice(page: Page) -> list[Component]:
    """Return the choice of the store that is looked at, where there are two."""
    if len(page.stores) < 2:
        return []
    names = {i: f"{i + 1}: {tame(db.path.name, 40)}" for i, db in enumerate(page.stores)}
    return [choice("store", page.stores.index(page.db), "store", names)]


def link(href: str, text: Any, **options: Any) -> dcc.Link:
    """Return a link within the page, which needs no reload; see :meth:`Page.href`."""
    return dcc.Link(text, href=href, **options)


def section(title: str, *children: Any, name: str = "") -> html.Section:
    """Return a part of a view under its heading."""
    return html.Section([html.H2(title), *children], className=f"part {name}".strip())


def note(text: str) -> html.P:
    """Return what a reader should know, in small print."""
    return html.P(text, className="note")


def problem(text: str) -> html.Div:
    """Return an error as a sentence."""
    said = " ".join(tame(line, LETTERS) for line in text.splitlines())
    return html.Div(said, className="problem", role="alert")


def graph(name: str, drawn: Any) -> dcc.Graph:
    """Return a figure of Plotly's."""
    return dcc.Graph(id={"figure": name}, figure=drawn, config=CONFIG, style=tall(drawn))


def tall(drawn: Any) -> dict[str, str]:
    """Return the style of a figure's frame: without it, a window of another size halves it."""
    return {"height": f"{drawn['layout']['height']}px"}


def number(value: Any) -> str:
    """Write a number as the page shows it: four digits, integers whole, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else tame(str(value), LETTERS)


def table(
    rows: pa.Table, columns: Sequence[str] | None = None, links: Mapping[str, Any] | None = None
) -> html.Div:
    """Return the first rows of a table.

    Parameters
    ----------
    rows : pyarrow.Table
        The table.
    columns : sequence of str, optional
        Those that are shown.
    links : mapping of column to callable, optional
        Given a row (dict), the link of its cell, or None.
    """
    names = list(columns or rows.column_names)
    links = links or {}

    def cell(row: dict[str, Any], name: str) -> Any:
        href = links[name](row) if name in links else None
        if href is None:
            return row[name] if _is_number(row[name]) else number(row[name])
        return link(href, number(row[name]))

    shown = rows.slice(0, ROWS).to_pylist()
    listed = grid(names, [[cell(row, name) for name in names] for row in shown])
    left = len(rows) - len(shown)
    if left:
        listed.children.append(note(f"{left:,} more rows: the export has all of them"))
    return listed


def grid(
    heads: Sequence[str],
    rows: Sequence[Sequence[Any]],
    name: str = "",
    write: Callable[[Any], str] = number,
) -> html.Div:
    """Return a table of texts, components and numbers, which ``write`` writes, on the right."""

    def cell(value: Any) -> html.Td:
        if isinstance(value, html.Td):
            return value
        return html.Td(write(value), className="figure") if _is_number(value) else html.Td(value)

    figures = {i for row in rows for i, value in enumerate(row) if _is_number(value)}
    titles = [
        html.Th(text, className="figure" if i in figures else "") for i, text in enumerate(heads)
    ]
    body = [html.Tr([cell(value) for value in row]) for row in rows]
    return html.Div(
        [html.Table([html.Thead(html.Tr(titles)), html.Tbody(body)])],
        className=f"table {name}".strip(),
        tabIndex=0,  # a long table scrolls, by keyboard too
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def picture(png: bytes, text: str, **options: Any) -> html.Img:
    """Return a PNG as an image; ``text`` says what it shows to who cannot see it."""
    data = base64.b64encode(png).decode()
    return html.Img(src=f"data:image/png;base64,{data}", alt=text, **options)
