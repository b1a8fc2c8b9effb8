"""The circuit of a group of inputs, or where two groups or two stores differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dash import html

from nrm_graph.errors import NrmError
from nrm_graph.explorer import groups, parts
from nrm_graph.explorer.answers import STORED
from nrm_graph.explorer.charts import Whisker, whiskers
from nrm_graph.explorer.circuit_checks import checks
from nrm_graph.explorer.stored_texts import shown, tame
from nrm_graph.plots.graph_parts import reach
from nrm_graph.plots.interactive import flow_drawing

if TYPE_CHECKING:
    import networkx as nx
    from dash.development.base_component import Component

    from nrm_graph.explorer.groups import Question
    from nrm_graph.explorer.page import Page

CHOICES = 24
"""Groups that one click chooses."""
WHISKERS = 14
"""Edges whose errors are drawn."""

_MEANS = ("stderr", "inputs", "agreement", "top_share", "low", "high", "missing")
_DIFFERENCES = ("stderr", "mean_a", "mean_b", "welch_q")
_MEANINGS = {
    "relevance": "mean over the group",
    "difference": "of the means of relevance times logit, a minus b",
    "stderr": "standard error of it",
    "inputs": "in how many inputs the edge is not 0",
    "agreement": "share of these that have the sign of the mean",
    "top_share": "share of inputs of which it is among their own strongest",
    "low": "the mean lies between low and high: some inputs have no row of the edge",
    "missing": "inputs without a row of the edge",
    "welch_q": "q-value of Welch's test, or of a paired t-test",
}

_ONE_TARGET = (
    "A circuit is of one target: each group above has one, and in a condition AND target = 3, say, "
    "chooses it."
)


def render(page: Page) -> list[Component]:
    """Return the circuit of a group, the contrast of two, and what carries an edge.

    Raises
    ------
    NrmError
        If there is no such group, or it explains several targets.
    """
    head = [_controls(page), _chips(page, groups.offered(page))]
    if not groups.is_chosen(page):
        return [*head, parts.note("Choose a group, or write a condition: its circuit is shown.")]
    try:
        asked = groups.question(page)
        graph = groups.circuit(page.answers, asked)
    except NrmError as error:
        return [*head, parts.problem(str(error)), parts.note(_ONE_TARGET)]
    beside = _edges(page, asked, groups.edges_of(asked, graph))
    errors, carried = _errors(asked, graph), _carriers(page, asked, graph)
    return [
        *head,
        *_event(page, asked),
        _figure(graph),
        html.Div([beside, *(carried or [errors])], className="columns"),
        *([errors] if carried else []),
        *checks(page, asked),
    ]


def graph_of(page: Page) -> nx.DiGraph:
    """Return the graph that the page shows.

    Raises
    ------
    NrmError
        As :func:`render`.
    """
    return groups.circuit(page.answers, groups.question(page))


def table_of(page: Page) -> pa.Table:
    """Return the edges that the page shows, with all columns."""
    asked = groups.question(page)
    return groups.edges_of(asked, groups.circuit(page.answers, asked))


def _controls(page: Page) -> html.Div:
    address = page.address
    usual = groups.units_of(page.db, "")
    units = {"": "as stored" if usual is None else f"{usual}s"}
    units |= {kind: f"{kind}s" for kind in groups.kinds(page) if kind != usual}
    if usual is not None:
        units[STORED] = "as stored"
    units.setdefault(address.by, address.by)
    fields: list[Component] = [
        parts.control("where", address.where, "group: SQL condition", placeholder="label = 'cat'"),
        parts.control("against", address.against, "minus the group", placeholder="label = 'dog'"),
        parts.choice("by", address.by, "units", units),
        parts.control("edges", address.edges, "edges", type="number", min=1, max=groups.MOST_EDGES),
    ]
    if len(page.stores) > 1:
        fields.append(
            parts.choice("other", address.other, "other store", {0: "no", 1: "minus the other"})
        )
    fields += parts.store_choice(page)
    return html.Div(fields, className="controls conditions")


def _chips(page: Page, listed: list[groups.Choice]) -> html.Div:
    links: list[Any] = [
        parts.link(
            page.href(where=choice.where, edge="", computed=""),
            [shown(choice.text, 48), html.Small(f" {choice.inputs:,}")],
            className="chip chosen" if page.address.where == choice.where else "chip",
            title=tame(choice.where, 300),
        )
        for choice in listed[:CHOICES]
    ]
    if len(listed) > CHOICES:
        links.append(html.Small(f"and {len(listed) - CHOICES:,} more labels"))
    return html.Div(links, className="chips", id="circuit-groups")


def _event(page: Page, asked: Question) -> list[Component]:
    """Say what the event of the address does here: it was clicked together in another view."""
    event = page.address.event.strip()
    if not event:
        return []
    away = parts.link(
        page.href(event=""), [shown(event, 100), " \N{MULTIPLICATION SIGN}"], className="chip"
    )
    if asked.given is not None:
        said = "Given this event: ratios of means, R(edge and event) over R(event)."
    elif asked.contrasts:
        said = "This event does not count here: a contrast is of whole inputs."
    else:
        said = (
            "This event does not count here: the store has no tables that are conditioned on it. "
            f"db.materialize(parse({tame(event, 200)!r}), name='given_b') makes them, for every "
            "input; then open the store again."
        )
    return [html.Div([away, parts.note(said)], className="chips given")]


def _figure(graph: nx.DiGraph) -> html.Section:
    """Draw the graph; title, kept share, meaning and flags are in the figure."""
    figure = parts.graph("circuit", flow_drawing(graph))
    return html.Section(figure, className="part circuit")


def _edges(page: Page, asked: Question, edges: pa.Table) -> html.Section:
    """Return the table of edges; a click on one shows the inputs that carry it."""
    number = "difference" if asked.contrasts else "relevance"
    shown = edges.rename_columns(
        [number if name == "relevance" else name for name in edges.column_names]
    )
    rows = [groups.edge_text(row).replace(" -> ", " → ") for row in edges.to_pylist()]
    shown = shown.append_column("edge", pa.array(rows, pa.string()))
    ends = [name for name in ("source_name", "destination_name") if name in shown.column_names]
    for name in ends:
        cut = [None if text is None else tame(text, 30) for text in shown[name].to_pylist()]
        shown = shown.drop_columns(name).append_column(name, pa.array(cut, pa.string()))
    wanted = ("edge", number, *(_DIFFERENCES if asked.contrasts else _MEANS), *ends)
    columns = [name for name in wanted if name in shown.column_names]
    links = {"edge": lambda row: page.href(edge=groups.edge_text(row))}
    said = "; ".join(f"{name}: {_MEANINGS[name]}" for name in columns if name in _MEANINGS)
    return parts.section(
        "Its edges",
        parts.table(shown, columns, links),
        parts.note(f"Choose an edge to see which inputs carry it. {said}."),
        name="circuit-edges",
    )


def _carriers(page: Page, asked: Question, graph: nx.DiGraph) -> list[Component]:
    """Return the inputs of the edge that the address names."""
    text = page.address.edge.strip()
    if not text:
        return []
    title = f"Inputs that carry {tame(text, 120)}"
    try:
        src, dst = groups.ends_of(asked, graph, text)
        listed = groups.carriers(page.answers, asked, src, dst)
    except NrmError as error:
        return [parts.section(title, parts.problem(str(error)), name="circuit-inputs")]
    given = "" if min(src[1], dst[1]) < 0 else " -> ".join(text.split(" -> ")[::-1])
    number = "R of the edge" if asked.given is None else "R of edge and event"
    heads = ["input", "label", "R x logit" if asked.contrasts else number]
    heads += ["group"] * asked.contrasts + [""]
    rows = [_carrier(page, asked, one, given) for one in listed[: groups.CARRIERS]]
    said = f"{len(listed):,} inputs have relevance on it"
    if len(listed) > groups.CARRIERS:
        said += f", the strongest {groups.CARRIERS} are shown"
    if asked.db.meta.get("pruned") or asked.db.meta.get("max_edges") is not None:
        said += (
            "; the store leaves edges out: of an input that is not listed it may hold no row, which"
            " is not known to be 0"
        )
    return [
        parts.section(
            title,
            parts.grid(heads, rows),
            parts.note(said + "."),
            name="circuit-inputs",
        )
    ]


def _carrier(page: Page, asked: Question, one: groups.Carrier, given: str) -> list[Any]:
    place = page.stores.index(asked.db)
    store = place if one.store == 0 else 1 - place
    view = {"view": "flow", "store": store, "input": one.key, "target": str(one.target)}
    view |= {"second": "", "event": "", "unit": ""}
    cells = [
        parts.link(page.href(**view), shown(one.key, 40)),
        "" if one.label is None else shown(one.label, 40),
        one.relevance,
    ]
    if asked.contrasts:
        cells.append(one.place)
    way = parts.link(page.href(**view | {"event": given}), "given the edge") if given else ""
    return [*cells, way]


def _errors(asked: Question, graph: nx.DiGraph) -> html.Section:
    """Draw the strongest edges with two standard errors, or with what bounds their means."""
    strongest = sorted(graph.edges(data=True), key=lambda edge: -abs(edge[2]["relevance"]))
    rows = [
        Whisker(
            f"{groups.expression(asked, *src)} → {groups.expression(asked, *dst)}",
            float(data["relevance"]),
            *reach(data),
        )
        for src, dst, data in strongest[:WHISKERS]
        if "stderr" in data or "low" in data
    ]
    title = "How sure its strongest edges are"
    if not rows:
        return parts.section(title, parts.note("One input has no standard errors."))
    number = "difference of means" if asked.contrasts else "mean relevance"
    return parts.section(
        title,
        parts.graph("errors", whiskers(rows, f"{number}, whiskers: two standard errors")),
        parts.note(
            "The edges were chosen by the inputs that their errors are computed from: the strongest"
            " are overestimated, and whiskers that keep from 0 are no test."
            if not asked.contrasts
            else "The edges were chosen without their groups; q-values stand in the table."
        ),
        name="circuit-errors",
    )
