"""The view of one input: its graph, its heat map and its numbers, conditioned by clicks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dash import dcc, html

from nrm_graph.errors import InputError, NrmError
from nrm_graph.explorer import clicks, input_picture, parts
from nrm_graph.explorer.answers import STORED, usual_units
from nrm_graph.explorer.stored_texts import shown, tame
from nrm_graph.measures.reduced.unit_maps import picture
from nrm_graph.network.target_texts import read_target
from nrm_graph.network.units import automatic
from nrm_graph.plots.graph_parts import most_units
from nrm_graph.plots.interactive import flow_drawing

if TYPE_CHECKING:
    from collections.abc import Hashable

    import networkx as nx

    from nrm_graph.explorer.answers import Owner
    from nrm_graph.explorer.page import Page
    from nrm_graph.measures.measure import Measure
    from nrm_graph.measures.reduced.reduced import Reduced

TALL, ROW, LEAST = 720, 46, 20
"""Pixels of a graph's height that a page has, and of a unit's, where there is room and at least."""
STEPS = 5
"""Edges that a graph has for every node, at most."""
LISTED = 25
"""Units that the table beside the graph lists."""
_ASKED = ("event", "graph", "watch", "nodes", "by")
"""Fields of the address on which the graph of an input depends, before sign and threshold."""
_REPORT = ("layer", "sum", "total_variation", "bias", "stabilizer", "remainder")
_LAYERS = (
    "sum: of R over the layer's neurons; total_variation: of |R|; bias, stabilizer, remainder: "
    "what the layer itself takes up."
)
_KEYS = (
    "Click a unit to condition on it; hold shift to add one, alt to avoid it; click it again to "
    "take it away. Shares are of what satisfies the event."
)


@dataclass(frozen=True)
class Side:
    """One input of the view, of which a page shows one, or two side by side.

    Attributes
    ----------
    page : Page
        The page, its address naming this input.
    figure : str
        Name of its figure: ``flow`` or ``flow2``.
    """

    page: Page
    figure: str

    @property
    def owner(self) -> Owner:
        """Name of the input among the answers."""
        asked = self.page.address
        return str(self.page.db.path), asked.input, asked.target

    @property
    def measure(self) -> Measure:
        """The measure, conditioned on the event."""
        asked = self.page.address
        return self.page.answers.measure(
            self.page.db, asked.input, asked.target, asked.event, asked.by
        )

    @property
    def reduced(self) -> Reduced:
        """Steps between the watched units."""
        asked = self.page.address
        return self.page.answers.remembered(
            self._name("reduced"),
            lambda: self.measure.reduced(asked.watch.split() or "auto", nodes=asked.nodes),
            self.owner,
        )

    @property
    def whole_graph(self) -> nx.DiGraph:
        """The graph before sign and threshold."""
        asked = self.page.address
        top = STEPS * max(1, asked.nodes)
        if asked.graph == "reduced":
            return self.page.answers.remembered(
                self._name("reduced graph"), lambda: self.reduced.graph(top), self.owner
            )
        return self.page.answers.remembered(
            self._name("connected graph"), lambda: self.measure.subgraph(top), self.owner
        )

    @property
    def maps_name(self) -> tuple[Hashable, ...]:
        """Name under which the maps of its units are remembered."""
        return self._name("maps")

    def maps(self) -> dict[Any, Any]:
        """Where in the input the relevance goes that passes through each unit."""
        return self.page.answers.remembered(
            self.maps_name, lambda: self.reduced.maps() or {}, self.owner
        )

    @property
    def has_maps(self) -> bool:
        """Whether units have a heat map: those of a reduced graph of a picture."""
        return self.page.address.graph == "reduced" and picture(self.page.db.topology) is not None

    def _name(self, what: str) -> tuple[Hashable, ...]:
        asked = self.page.address
        return what, *(getattr(asked, name) for name in _ASKED)


def sides(page: Page) -> list[Side]:
    """Return what the address asks to see: an input, and one that it is compared with."""
    asked = page.address
    chosen = [Side(replace(page, address=replace(asked, second="")), "flow")]
    if asked.second:
        other = replace(asked, input=asked.second, target=asked.second_target, second="")
        chosen.append(Side(replace(page, address=other), "flow2"))
    return chosen


def graph_of(page: Page) -> nx.DiGraph:
    """Return the graph of the address's input, after its sign and threshold.

    Raises
    ------
    NrmError
        If there is no such input, the event does not fit, or nothing is left.
    """
    address, whole = page.address, Side(page, "flow").whole_graph
    if not address.sign and not address.threshold:
        return whole
    wanted = {"positive": 1.0, "negative": -1.0}.get(address.sign)
    kept = [
        (src, dst)
        for src, dst, relevance in whole.edges(data="relevance")
        if abs(relevance) >= address.threshold and (wanted is None or relevance * wanted > 0)
    ]
    if not kept:
        raise InputError(
            f"no edge of {whole.number_of_edges():,} is {address.sign or 'signed'} and at least "
            f"{address.threshold:g}: lower the threshold, or show both signs"
        )
    graph = whole.edge_subgraph(kept).copy()
    sizes = [abs(r) for *_, r in whole.edges(data="relevance")]
    left = 1 - sum(abs(r) for *_, r in graph.edges(data="relevance")) / (sum(sizes) or 1.0)
    dropped = (
        f"{len(sizes) - len(kept):,} of {len(sizes):,} edges are not drawn, by sign or threshold; "
        f"they hold {left:.1%} of the sum of |relevance|"
    )
    graph.graph["flags"] = (*graph.graph.get("flags", ()), dropped)
    return graph


def figure(side: Side, *, maps: bool) -> dict[str, Any]:
    """Draw the graph of a side, with the maps of its units or without."""
    passed, avoided = clicks.units(side.page.address.event)
    graph = graph_of(side.page)

    def among(expressions: set[str]) -> list[Any]:
        return [node for node, text in graph.nodes(data="event") if text in expressions]

    # Nothing moves below the pointer when the maps come.
    images = side.maps() if maps else {} if side.has_maps else None
    crowd = most_units(graph)
    height = max(TALL, LEAST * crowd) if ROW * crowd > TALL else None
    return flow_drawing(graph, images, among(passed), among(avoided), height)


def render(page: Page) -> list[Any]:
    """Return the view."""
    if not page.address.input:
        return [
            parts.note("Choose an input first: "),
            parts.link(page.href(view="gallery"), "gallery"),
        ]
    return [
        _controls(page),
        _event(page),
        html.Div([_side(side) for side in sides(page)], className="columns"),
    ]


def _controls(page: Page) -> html.Div:
    asked = page.address
    fields: list[Any] = [
        parts.choice(
            "graph",
            asked.graph,
            "graph",
            {"reduced": "between chosen units", "connected": "layer by layer"},
        ),
        parts.control(
            "watch",
            asked.watch,
            "layers",
            placeholder="the usual ones",
            disabled=asked.graph != "reduced",
        ),
        parts.choice("by", asked.by, "units", units_of(page)),
        parts.control("nodes", asked.nodes, "how many", type="number", min=1, max=400, step=1),
        parts.choice(
            "sign", asked.sign, "sign", {"": "both", "positive": "for", "negative": "against"}
        ),
        parts.control(
            "threshold", asked.threshold, "|R| at least", type="number", min=0, step="any"
        ),
    ]
    targets = targets_of(page)
    if len(targets) > 1:
        if asked.target not in targets:
            targets = {asked.target: asked.target or "choose one"} | targets
        fields.insert(0, parts.choice("target", asked.target, "target", targets))
    return html.Div(fields, className="controls")


def targets_of(page: Page) -> dict[str, str]:
    """Return what the store explains of the address's input: as the address has it, in words."""
    db = page.db
    rows = db.sql(
        "SELECT target, weights FROM inputs WHERE key = ? ORDER BY input_id",
        params=[page.address.input],
    ).fetchall()
    texts = {}
    for target, weights in rows:
        if target is None:
            texts[str(weights)] = f"weights {weights}"
        else:
            texts[str(target)] = tame(db.outputs.text(target, db.classes))
    return texts


def units_of(page: Page) -> dict[str, str]:
    """Return the units that may be asked for, the usual ones first."""
    usual = usual_units(page.db)
    kinds = [STORED, "neuron", *automatic(page.db.topology)]
    words = {kind: "as stored" if kind == STORED else f"{kind}s" for kind in kinds}
    # Of texts, the graph between chosen units has them by position where nothing is asked.
    return {"": "the usual ones" if usual == STORED else words.pop(usual)} | words


def _event(page: Page) -> html.Div:
    asked = page.address
    entry = parts.control(
        "event", asked.event, "given that walks pass", placeholder="everything", spellCheck=False
    )
    try:
        passed, avoided = clicks.units(asked.event)
    except NrmError:  # the view says what is wrong with it
        passed, avoided = set(), set()
    chips = [
        parts.link(
            page.href(event=clicks.clicked(asked.event, unit)),
            f"{'not ' if unit in avoided else ''}{unit} \N{MULTIPLICATION SIGN}",
            className="chip",
            title="take it away",
        )
        for unit in sorted(passed) + sorted(avoided)
    ]
    if asked.event:
        chips.append(parts.link(page.href(event=""), "everything", className="chip"))
    return html.Div(
        [entry, html.Div(chips, className="chips"), parts.note(_KEYS)], className="event"
    )


def _side(side: Side) -> html.Div:
    page = side.page
    try:
        m = side.measure
    except NrmError as error:
        return html.Div([parts.problem(str(error)), *_stored(page)], className="side")
    blocks: list[Any] = []
    try:
        graph = graph_of(page)
        known = page.answers.knows(side.maps_name, side.owner)
        blocks += [
            parts.graph(side.figure, figure(side, maps=side.has_maps and known)),
            dcc.Store(
                id={"figure": side.figure, "maps": "asked"},
                data=page.address.query_text() if side.has_maps and not known else "",
            ),
        ]
    except NrmError as error:
        graph = None
        blocks.append(parts.problem(str(error)))
    beside = [
        parts.section("Input", input_picture.picture(m), name="input"),
        parts.section("Totals", _totals(m), name="totals"),
    ]
    layers = parts.table(m.report(), _REPORT)
    below: list[Any] = [parts.section("Layers", layers, parts.note(_LAYERS), name="layers")]
    if graph is not None:
        below.insert(0, parts.section("Units", _units(page, graph), name="units"))
    return html.Div(
        [
            html.H2([shown(page.address.input, 200), ": ", shown(m.target_text(), 200)]),
            html.Div([html.Div(blocks, className="drawing"), html.Div(beside, className="beside")]),
            html.Div(below, className="panels"),
        ],
        className="side",
    )


def _stored(page: Page) -> list[Any]:
    """Return the graph of the stored tables, where the network or the input is not at hand."""
    asked, db = page.address, page.db
    if asked.event:
        return []
    try:
        target = read_target(asked.target, db.classes, db.outputs)
        graph = db.subgraph(asked.input, target=target, top=STEPS * asked.nodes)
    except NrmError:
        return []
    return [
        parts.note("From the stored tables, which cannot be conditioned:"),
        parts.graph("stored", flow_drawing(graph)),
    ]


def _totals(m: Measure) -> html.Div:
    facts: list[tuple[str, Any]] = [
        ("logit", m.logit),
        ("predicted", m.outputs.text(m.predicted, m.classes)),
        ("absorbed by biases and stabilizers", m.absorbed),
    ]
    if m.condition is not None:
        facts += [
            ("R(event)", m.condition_relevance),
            ("its error, at most", m.condition_error),
            ("amplification", m.amplification),
        ]
    listed = [
        item
        for name, value in facts
        for item in (html.Dt(name), html.Dd(_exactly(value), title=tame(str(value), 400)))
    ]
    notes = [parts.note(m.meaning), *(parts.note(str(flag)) for flag in m.flags)]
    return html.Div([html.Dl(listed), *notes])


def _exactly(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else tame(str(value), 200)


def _units(page: Page, graph: nx.DiGraph) -> html.Div:
    """Return the strongest units of the graph, each with what a click on it does."""
    nodes, asked = _strongest(graph), page.address

    def row(data: dict[str, Any]) -> list[Any]:
        unit = data["event"]
        ways = [
            parts.link(page.href(event=clicks.clicked(asked.event, unit)), "given", title=unit),
            parts.link(page.href(event=clicks.clicked(asked.event, unit, add=True)), "and"),
            parts.link(page.href(event=clicks.clicked(asked.event, unit, avoid=True)), "not"),
            parts.link(page.href(view="unit", unit=unit), "unit"),
        ]
        name = shown(data.get("own_name") or data.get("name", ""))
        return [html.Bdi(unit), name, float(data["relevance"]), html.Td(ways, className="ways")]

    heads = ("unit", "name", "R", "condition on it")
    return parts.grid(heads, [row(data) for data in nodes[:LISTED]], write=_exactly)


def table_of(page: Page) -> pa.Table:
    """Return the units of the graph and their relevance, as the view's table."""
    return pa.Table.from_pylist(
        [
            {
                "unit": data["event"],
                "name": data.get("name", ""),
                "layer": data["layer"],
                "relevance": data["relevance"],
            }
            for data in _strongest(graph_of(page))
        ]
    )


def _strongest(graph: nx.DiGraph) -> list[dict[str, Any]]:
    """Return the units of a graph that an expression names, the strongest first."""
    units = [data for _, data in graph.nodes(data=True) if "event" in data]
    return sorted(units, key=lambda data: -abs(data["relevance"]))
