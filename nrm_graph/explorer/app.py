"""The page itself: its frame, and the few calls between browser and views."""

from __future__ import annotations

import contextlib
import sys
import traceback
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dash
from dash import ALL, MATCH, ClientsideFunction, Input, Output, State, dcc, html, no_update
from flask import Response, abort, jsonify, request

from nrm_graph.errors import InputError, NrmError
from nrm_graph.explorer import (
    circuit,
    clicks,
    exports,
    flow,
    gallery,
    parts,
    sql,
    unit,
)
from nrm_graph.explorer.address import Address, from_query
from nrm_graph.explorer.answers import Answers
from nrm_graph.explorer.page import Page
from nrm_graph.progress import Ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from nrm_graph.database import Database
    from nrm_graph.explorer.jobs import Jobs

_VIEWS: dict[str, Callable[[Page], Any]] = {
    "gallery": gallery.render,
    "flow": flow.render,
    "unit": unit.render,
    "circuit": circuit.render,
    "sql": sql.render,
}
_TITLES = {
    "gallery": "Gallery",
    "flow": "Flow",
    "unit": "Unit",
    "circuit": "Circuit",
    "sql": "SQL",
}
_BROKEN = (
    "this view met an error of its own, which the terminal shows: please report it, with the "
    "address and what stands there"
)


@dataclass(frozen=True)
class Shown:
    """What a server shows.

    Attributes
    ----------
    stores : tuple of Database
        One, or two.
    answers : Answers
        Remembers what was computed.
    jobs : Jobs
        What is computed now.
    """

    stores: tuple[Database, ...]
    answers: Answers
    jobs: Jobs

    def page(self, query: str) -> Page:
        """Return the page of an address.

        Raises
        ------
        InputError
            If a value of the address does not fit.
        """
        return Page(from_query(query), self.stores, self.answers)


def create(stores: tuple[Database, ...], jobs: Jobs) -> dash.Dash:
    """Return the application for one store or two; ``jobs`` has what it computes."""
    app = dash.Dash(
        "nrm_graph",
        assets_folder=str(Path(__file__).parent / "assets"),
        title="nrm-graph explore",
        update_title="",
        serve_locally=True,
        suppress_callback_exceptions=True,  # what views hold is not there at first
        enable_mcp=False,
    )
    shown = Shown(stores, Answers(), jobs)
    app.layout = lambda: _frame(stores)
    _callbacks(app, shown)
    _routes(app, shown)
    return app


def _frame(stores: tuple[Database, ...]) -> html.Div:
    tab = uuid.uuid4().hex
    marked: dict[str, Any] = {"data-tab": tab}
    names = " and ".join(str(db.path) for db in stores)
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Store(id="tab", data=tab),
            dcc.Store(id="click"),
            html.Header(
                [
                    html.Nav(id="views"),
                    html.Span(html.Bdi(names), className="store", title=names),
                ]
            ),
            html.Div(
                [html.Progress(id="bar"), html.Span(id="told")],
                id="busy",
                role="status",
                hidden=True,
                **marked,
            ),
            html.Main(id="view"),
        ]
    )


def _callbacks(app: dash.Dash, shown: Shown) -> None:
    @app.callback(
        Output("view", "children"),
        Output("views", "children"),
        Input("url", "search"),
        State("tab", "data"),
    )
    def show(query: str | None, tab: str) -> tuple[Any, Any]:
        try:
            page = shown.page(query or "")
        except NrmError as error:
            return parts.problem(str(error)), _tabs(Address())
        content = _answer(shown, tab, lambda: _rendered(page))
        return content, _tabs(page.address)

    @app.callback(
        Output({"figure": MATCH}, "figure"),
        Output({"figure": MATCH}, "style"),
        Input({"figure": MATCH, "maps": "asked"}, "data"),
        State("tab", "data"),
        prevent_initial_call=False,
    )
    def draw_maps(query: str, tab: str) -> tuple[Any, Any]:
        if not query:
            return no_update, no_update
        name = dash.ctx.outputs_list[0]["id"]["figure"]

        def drawn() -> Any:
            return flow.figure(flow.Side(shown.page(query), name), maps=True)

        with contextlib.suppress(Ended, NrmError):  # the graph stands there without
            figure = shown.jobs.run(tab, drawn, part=name)
            return figure, parts.tall(figure)
        return no_update, no_update

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("nrm", "clicked"),
        Output("click", "data"),
        Input({"figure": ALL}, "clickData"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("url", "search", allow_duplicate=True),
        Input("click", "data"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def condition(click: dict[str, Any] | None, query: str | None) -> Any:
        if not click:
            return no_update
        return _after_click(query or "", click)

    @app.callback(
        Output("url", "search", allow_duplicate=True),
        Input({"control": ALL}, "value"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def control(_: list[Any], query: str | None) -> Any:
        asked = {
            entry["id"]["control"]: entry.get("value")
            for entry in dash.ctx.inputs_list[0]
            if {"control": entry["id"]["control"]} in dash.ctx.triggered_prop_ids.values()
        }
        return _changed(query or "", asked)

    @app.callback(
        Output("url", "search", allow_duplicate=True),
        Input({"submit": ALL}, "n_clicks"),
        State({"text": ALL}, "value"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def submit(presses: list[int | None], _: list[Any], query: str | None) -> Any:
        if not any(presses):
            return no_update
        return _changed(
            query or "",
            {entry["id"]["text"]: entry.get("value") for entry in dash.ctx.states_list[0]},
        )


def _changed(query: str, values: dict[str, Any]) -> Any:
    """Return the address with the values of controls; nothing where none differs."""
    with contextlib.suppress(NrmError):
        address = from_query(query)
        for name, value in values.items():
            try:
                address = address.changed(**{name: value})
            except InputError:
                continue  # half a number, say: the control shows what it holds
        if address != from_query(query):
            return replace(address, first=0).query_text()
    return no_update


def _after_click(query: str, click: dict[str, Any]) -> Any:
    with contextlib.suppress(NrmError):
        address = from_query(query)
        subject, figure = str(click.get("subject", "")), click.get("figure")
        if click.get("edge"):
            if figure == "circuit":
                return address.changed(edge=subject).query_text()
        elif figure == "circuit":
            return address.changed(view="unit", unit=subject).query_text()
        elif figure in ("flow", "flow2"):
            event = clicks.clicked(
                address.event, subject, add=bool(click.get("shift")), avoid=bool(click.get("alt"))
            )
            return address.changed(event=event).query_text()
    return no_update


def _tabs(address: Address) -> list[Any]:
    return [
        parts.link(
            address.changed(view=view).query_text(),
            title,
            className="here" if view == address.view else "",
        )
        for view, title in _TITLES.items()
    ]


def _rendered(page: Page) -> Any:
    view = _VIEWS[page.address.view](page)
    return [exports.bar(page), *(view if isinstance(view, list) else [view])]


def _answer(shown: Shown, tab: str, compute: Callable[[], Any]) -> Any:
    """Compute a part of the page; what goes wrong stands in its place as a sentence."""
    try:
        return shown.jobs.run(tab, compute)
    except Ended:  # a newer call has the tab
        return no_update
    except NrmError as error:
        return parts.problem(str(error))
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return parts.problem(_BROKEN)


def _routes(app: dash.Dash, shown: Shown) -> None:
    @app.server.route("/progress")  # type: ignore[untyped-decorator]
    def progress() -> Response:
        return jsonify(shown.jobs.progress(request.args.get("tab", "")))

    @app.server.route("/export/<form>")  # type: ignore[untyped-decorator]
    def export(form: str) -> Response:
        query = request.query_string.decode("utf-8", "replace")
        try:
            name, kind, data = shown.jobs.run(
                f"export {uuid.uuid4().hex}", lambda: exports.export(shown.page(query), form)
            )
        except NrmError as error:
            abort(Response(f"{error}\n", 400, mimetype="text/plain"))
        except Ended:  # with the server
            abort(503)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(data, mimetype=kind, headers=headers)
