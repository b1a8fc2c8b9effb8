"""What stands at the head of every view: its export, and the same as Python and as SQL."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dash import dcc, html

from nrm_graph.errors import InputError, NrmError, first_line
from nrm_graph.events.parser import parse
from nrm_graph.explorer import circuit, flow, groups, sql
from nrm_graph.explorer.as_python import python_of
from nrm_graph.explorer.as_sql import gallery, refused, sql_of
from nrm_graph.explorer.charts import picture
from nrm_graph.explorer.unit_references import SHARE, SHOWN
from nrm_graph.graphs.formats import PICTURES, write_graph
from nrm_graph.tables.csv_text import csv_text

if TYPE_CHECKING:
    from nrm_graph.circuits.references import References
    from nrm_graph.explorer.page import Page

KINDS = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "csv": "text/csv",
    "graphml": "application/graphml+xml",
    "json": "application/json",
    "html": "text/html",
}
"""Forms of an export, and their kinds of media."""

_TITLES = {
    "png": "a picture",
    "svg": "a picture of lines",
    "csv": "the table of the view; apostrophes keep spreadsheets from computing texts",
    "graphml": "the graph, for NetworkX and other tools",
    "json": "the attribution graph of circuit-tracer and Neuronpedia",
    "html": "one file that opens by double click and stays interactive",
}
_GRAPHS = ("png", "svg", "graphml", "csv", "json", "html")
_OF_VIEW = {
    "gallery": ("csv",),
    "flow": _GRAPHS,
    "unit": ("png", "svg", "csv"),
    "circuit": _GRAPHS,
    "sql": ("csv", "png", "svg"),
}
_NEEDED = {
    "flow": "an input: choose one in the gallery",
    "unit": "one unit: choose one",
    "circuit": "a group of inputs: choose one",
    "sql": "a query: write one",
}
_NAME = re.compile(r"[^\w.@-]+")


def bar(page: Page) -> html.Div:
    """Return the links of a view's exports, and its Python and SQL to be copied."""
    address = page.address
    links: list[Any] = []
    copied = _copied("python", "Python", lambda: python_of(page), "")
    if _is_there(page):
        copied += _copied("sql", "SQL", lambda: sql_of(page), refused(page))
        links = [
            html.A(
                form.upper() if form in ("png", "svg", "csv", "html") else _WORDS[form],
                href=f"/export/{form}{address.query_text()}",
                title=_TITLES[form],
                className="export",
                id=f"export-{form}",
            )
            for form in KINDS
            if form in forms(page)
        ]
    return html.Div(
        [
            html.Span(["Export: ", *links] if links else "", className="exports"),
            *copied,
        ],
        className="copies",
    )


_WORDS = {"graphml": "GraphML", "json": "attribution JSON"}


def _copied(name: str, title: str, write: Any, otherwise: str) -> list[Any]:
    """Return a text that unfolds, with what copies it."""
    try:
        text = write()
    except NrmError:  # the view says what is wrong
        return []
    if text is None:
        return [html.Span(f"as {title}: {otherwise}", className="none", id=f"no-{name}")]
    return [
        dcc.Clipboard(content=text, title=f"copy as {title}", className="copy", id=f"copy-{name}"),
        html.Details(
            [html.Summary(f"as {title}"), html.Pre(html.Code(text, id=f"as-{name}"))],
            className="copied",
        ),
    ]


def export(page: Page, form: str) -> tuple[str, str, bytes]:
    """Return the view as a file: its name, the kind of media and what is in it.

    Parameters
    ----------
    page : Page
        What is looked at.
    form : str
        One of :data:`KINDS`.

    Raises
    ------
    InputError
        If there is no such form, it does not fit the view, or it cannot hold a name.
    NrmError
        As the view itself does.
    """
    view = page.address.view
    if form not in KINDS:
        raise InputError(f"there is no export {form!r:.40}: expected one of {', '.join(KINDS)}")
    name = "SQL" if view == "sql" else view
    if not _is_there(page):
        raise InputError(f"there is nothing to export: the {name} view takes {_NEEDED[view]}")
    if form not in forms(page):
        listed = ", ".join(forms(page))
        raise InputError(
            f"the {name} view has nothing to write as {form}: it is exported as {listed}"
            + (", and a chart as png, svg" if view == "sql" and not page.address.chart else "")
        )
    data = _csv(_table(page)) if form == "csv" else _file(page, form)
    return _name(page, form), KINDS[form], data


def forms(page: Page) -> tuple[str, ...]:
    """Return the forms in which a view is exported."""
    address = page.address
    if address.view == "sql" and not address.chart:
        return ("csv",)
    return _OF_VIEW[address.view]


def _is_there(page: Page) -> bool:
    address = page.address
    if address.view == "circuit":
        return groups.is_chosen(page)
    if address.view == "unit":
        text = address.unit.strip()
        return bool(text) and not groups.is_layer(page.db, text)
    needed = {"flow": address.input, "sql": address.query.strip()}
    return bool(needed.get(address.view, "there"))


def _name(page: Page, form: str) -> str:
    """Name a file after what is in it, in letters that every system takes."""
    address = page.address
    subject = {
        "flow": address.input,
        "unit": address.unit,
        "circuit": address.where,
    }.get(address.view, "")
    words = [page.db.path.stem, address.view, subject]
    if address.view == "flow" and address.event:
        words.append(f"given_{address.event}")
    ascii_ = unicodedata.normalize("NFKD", "-".join(filter(None, words)))
    plain = ascii_.encode("ascii", "ignore").decode()
    name = _NAME.sub("_", plain).strip("._-")[:80] or address.view
    return f"{name}.{'attribution.json' if form == 'json' else form}"


def _table(page: Page) -> pa.Table:
    view = page.address.view
    if view == "gallery":
        return page.db.sql(gallery(page, words=True)).to_arrow_table()
    if view == "flow":
        return flow.table_of(page)
    if view == "circuit":
        return circuit.table_of(page)
    if view == "unit":
        return _references(page).table
    return sql.answer(page).rows


def _csv(table: pa.Table) -> bytes:
    try:
        return csv_text(table, spreadsheet=True)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InputError(
            f"cannot write these values as CSV ({first_line(error)}): CAST them to VARCHAR"
        ) from error


def _file(page: Page, form: str) -> bytes:
    """Write a graph or picture by its own writer, and read what that wrote."""
    suffix = "attribution.json" if form == "json" else form
    with tempfile.TemporaryDirectory(prefix="nrm_graph_") as folder:
        path = Path(folder) / f"view.{suffix}"
        try:
            _write(page, path)
        except InputError as error:  # which names the file
            raise InputError(str(error).replace(str(path), f"the view as {form}")) from error
        return path.read_bytes()


def _write(page: Page, path: Path) -> None:
    from nrm_graph import plots
    from nrm_graph.plots.common import save_figure

    view = page.address.view
    if view == "unit":
        save_figure(plots.plot_references(_references(page)), path)
        return
    if view == "sql":
        save_figure(picture(sql.answer(page).rows, page.address.chart), path)
        return
    if view == "circuit":
        write_graph(circuit.graph_of(page), path)
        return
    graph, maps = flow.graph_of(page), _maps(page)
    if path.suffix in PICTURES:
        figure: Any = plots.plot_subgraph(graph, images=maps).get_figure(root=True)
        save_figure(figure, path)
        return
    options: dict[str, Any] = {"images": maps} if path.suffix == ".html" else {}
    write_graph(graph, path, **options)


def _maps(page: Page) -> dict[Any, Any] | None:
    """Return maps of the units that the page shows, if they are of a picture."""
    side = flow.Side(page, "flow")
    return side.maps() if side.has_maps else None


def _references(page: Page) -> References:
    address = page.address
    name = ("exported references", str(page.db.path), address.unit, address.ranked, address.where)
    return page.answers.remembered(
        name,
        lambda: page.db.references(
            parse(address.unit),  # type: ignore[arg-type]
            k=SHOWN,
            by=address.ranked,
            where=address.where if address.where.strip() else None,
            share=SHARE,
        ),
    )
