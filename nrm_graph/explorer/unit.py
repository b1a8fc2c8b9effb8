"""A unit: its reference inputs, its relevance by class, and the units it is linked to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dash import html

from nrm_graph.circuits.references import whole_units
from nrm_graph.errors import EventError, NrmError
from nrm_graph.events.parser import parse
from nrm_graph.events.sets import NeuronSet
from nrm_graph.events.unit_sets import unit_set
from nrm_graph.explorer import groups, parts, unit_numbers
from nrm_graph.explorer.stored_texts import shown
from nrm_graph.explorer.unit_numbers import StoredUnit
from nrm_graph.explorer.unit_references import reference_cards
from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.network.unit_coordinates import written
from nrm_graph.network.unit_names import unit_name
from nrm_graph.plots.common import notes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dash.development.base_component import Component

    from nrm_graph.explorer.page import Page
    from nrm_graph.explorer.unit_numbers import Neighbour, Neighbours
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Partition

SIDES = {"above": "Above, nearer the output", "below": "Below, what it reads"}


def render(page: Page) -> list[Component]:
    """Return what is known of a unit, or where there is none, layers and their units to choose."""
    text = page.address.unit.strip()
    if not text:
        return [_controls(page), _layers(page)]
    try:
        if groups.is_layer(page.db, text):
            return [_controls(page), _strongest(page, page.db.topology.layer(text))]
        return [_controls(page), *_unit(page, text)]
    except NrmError as error:
        return [_controls(page), parts.problem(str(error))]


def _controls(page: Page) -> html.Div:
    address = page.address
    example = {"placeholder": "such as features.28[12], or a layer", "className": "wide"}
    ranked = {"relevance": "relevance", "activation": "activation"}
    where = {"placeholder": "all; SQL such as label = 'cat'", "className": "wide"}
    return html.Div(
        [
            *parts.store_choice(page),
            parts.control("unit", address.unit, "unit", **example),
            parts.choice("ranked", address.ranked, "reference inputs by", ranked),
            parts.control("where", address.where, "condition over inputs", **where),
            parts.link(page.href(unit=""), "all layers", className="all-layers"),
        ],
        className="controls",
    )


def _unit(page: Page, text: str) -> list[Component]:
    """Parts of the view of a unit; where the store does not hold it whole, those that are exact."""
    db, event = page.db, parse(text)
    if not isinstance(event, NeuronSet):
        raise EventError(
            f"expected one unit, neurons of one layer such as features.28[12], found {event!r}"
        )
    info = db.topology.layer(event.layer)
    if not event.mask(info.shape, db.partitions[info.layer_id]).any():
        raise EventError(f"{event!r} holds no neuron of layer {info.name}, of shape {info.shape}")
    sections: list[Any] = []
    try:
        layer_id, units, _ = whole_units(db, event)
    except EventError as error:
        sections.append(parts.problem(str(error)))
        sections += _of_input(page, event)
        return [_heading(page, event, info, None), *sections]
    unit = StoredUnit(event, db.topology.layers[layer_id], units)
    pieces: list[tuple[str, str, Callable[[], Any]]] = [
        ("Reference inputs", "references", lambda: reference_cards(page, event)),
        ("Relevance by label", "labels", lambda: _labels(page, unit)),
        ("Neighbours over the inputs", "neighbours", lambda: _mean_neighbours(page, unit)),
    ]
    sections += [_guarded(*piece) for piece in pieces]
    return [_heading(page, event, info, unit), *sections, *_of_input(page, event)]


def _guarded(title: str, name: str, part: Callable[[], Any]) -> html.Section:
    try:
        return parts.section(title, *part(), name=name)
    except NrmError as error:
        return parts.section(title, parts.problem(str(error)), name=name)


def _heading(
    page: Page, event: NeuronSet, info: LayerInfo, unit: StoredUnit | None
) -> html.Section:
    db, address = page.db, page.address
    part = db.partitions[info.layer_id]
    neurons = int(event.mask(info.shape, part).sum())
    name, held = "", f"part of a {part.resolution}"
    if unit is not None and len(unit.units) == 1:
        name = part.names.get(int(unit.units[0]), "")
        held = unit_name(info, replace(part.kind, names={}), int(unit.units[0]))
    elif unit is not None:
        held = f"{len(unit.units):,} units of kind {part.resolution}"
    facts: list[Any] = ["layer ", parts.link(page.href(unit=info.name), shown(info.name))]
    facts.append(
        f", {info.kind} of shape {info.shape}; {neurons:,} of its {info.n_neurons:,} neurons; in "
        f"the store {held}"
    )
    expression = repr(event)
    given = {"event": expression, "unit": expression}
    links = [
        parts.link(page.href(view="flow", **given), "condition the flow on it")
        if address.input
        else parts.link(page.href(view="gallery", **given), "choose an input to condition on it"),
        parts.link(page.href(view="circuit", **given), "its circuit"),
    ]
    title: list[Any] = (
        [shown(name), " ", html.Code(expression)] if name else [html.Code(expression)]
    )
    return html.Section(
        [html.H2(title), html.P(facts, className="lies"), html.Div(links, className="pages")],
        className="part unit-heading",
    )


def _labels(page: Page, unit: StoredUnit) -> list[Component]:
    rows, whole = unit_numbers.by_label(page.db, unit, page.address.where)
    if not whole["inputs"]:
        return [parts.note("No input matches.")]
    more = len(rows) > unit_numbers.LABELS
    rows = [{**whole, "label": "all of these"}, *rows[: unit_numbers.LABELS]]
    end = max(abs(row["mean"]) for row in rows) or 1.0
    body = []
    for i, row in enumerate(rows):
        label: Any = "no label" if row["label"] is None else shown(row["label"], 40)
        if i and row["label"]:
            label = parts.link(page.href(view="gallery", label=row["label"], first=0), label)
        body.append(
            [
                label,
                _bar(row["mean"], end),
                row["mean"],
                row["stderr"],
                row["inputs"],
                row["present"],
            ]
        )
    heads = ("label", "", "mean R", "standard error", "inputs", "of them not 0")
    texts = [
        "Means of stored relevances, each of its input's own target; an input without a row has "
        "exactly 0. A pair of key and target is one input."
    ]
    if more:
        texts.append(f"The {unit_numbers.LABELS} labels of the largest mean are shown.")
    return [parts.note(" ".join(texts)), _table(heads, body)]


def _mean_neighbours(page: Page, unit: StoredUnit) -> list[Component]:
    db, where, columns = page.db, page.address.where, []
    number = unit_numbers.count(db, where)
    if not number:
        return [parts.note("No input matches.")]
    pruned = grouped = False
    for side, title in SIDES.items():
        near = unit_numbers.stored_neighbours(db, unit, where, side)
        pruned |= near.pruned
        grouped |= near.partitions is not db.partitions
        heads = [
            "unit",
            "",
            "mean R",
            "may be off by" if near.pruned else "standard error",
            "inputs with a row",
        ]
        rows = [_neighbour(page, row, near, pruned=near.pruned) for row in near.rows]
        columns.append(_side(title, heads, rows, "Nothing: it is at the end of the network."))
    texts = [f"Means over {number:,} inputs of the stored edges between the two."]
    if grouped:
        texts.append("Single neurons of neighbouring layers are summed to what they are part of.")
    if pruned:
        texts.append(
            "The store leaves edges out: these are means of what is stored, with 0 for what is "
            "left out. How far off a mean may be stands beside it where the store bounds it; the "
            "numbers of one input are exact."
        )
    else:
        texts.append("The store holds every edge: an input without a row has exactly 0.")
    return [parts.note(" ".join(texts)), html.Div(columns, className="columns")]


def _of_input(page: Page, event: NeuronSet) -> list[Component]:
    """Return the exact numbers of the input that is chosen, if one is."""
    address = page.address
    if not address.input:
        return []

    def part() -> list[Component]:
        m = page.answers.measure(page.db, address.input, address.target)
        about = (
            "Exact for this input and target, computed now from the stored network"
            f"{', without the condition' if address.event.strip() else ''}: R of the edges "
            "between the two, and of what the unit's own layer takes up."
        )
        columns = []
        for side, title in SIDES.items():
            near = unit_numbers.exact_neighbours(page.db, m, event, side)
            rows = [_neighbour(page, row, near)[:3] for row in near.rows]
            columns.append(_side(title, ["unit", "", "R"], rows, "Nothing."))
        return [
            html.P(
                [
                    *(shown(address.input), ", ", shown(m.target_text(), 200)),
                    f": R(unit) = {float(m(event)):.6g}",
                ],
                className="exact",
            ),
            parts.note(f"{about} {notes(m)}"),
            html.Div(columns, className="columns"),
        ]

    return [_guarded("In the input that is chosen", "of-input", part)]


def _side(title: str, heads: Sequence[str], rows: list[list[Any]], none: str) -> html.Div:
    return html.Div([html.H3(title), _table(heads, rows) if rows else parts.note(none)])


def _neighbour(page: Page, row: Neighbour, near: Neighbours, *, pruned: bool = False) -> list[Any]:
    end = max(abs(other.relevance) for other in near.rows) or 1.0
    spread = row.lacking if pruned else row.stderr
    name = _link_to(page, page.db.topology.layers[row.layer_id], near.partitions, row.unit)
    return [name, _bar(row.relevance, end), row.relevance, spread, row.present]


def _link_to(
    page: Page, info: LayerInfo, partitions: tuple[Partition, ...], unit: int
) -> Component:
    """Return a unit as a link to its own view; pseudo-units have none."""
    part = partitions[info.layer_id]
    if unit in PSEUDO_UNITS:
        return shown(f"{info.name} {PSEUDO_UNITS[unit]}")
    expression = repr(unit_set(info, part.resolution, unit))
    return parts.link(page.href(unit=expression), shown(written(info, part.kind, unit)))


def _layers(page: Page) -> html.Section:
    db, rows = page.db, []
    for info in reversed(db.topology.layers):
        part = db.partitions[info.layer_id]
        shape = " x ".join(map(str, info.shape)) or "one number"
        name = parts.link(page.href(unit=info.name), shown(info.name))
        named = len(part.names)
        rows.append([name, info.kind, shape, part.resolution, part.n_units, named or None])
    heads = ("layer", "kind", "shape", "units in the store", "number", "with names of your own")
    return parts.section("Layers, from the output", _table(heads, rows), name="layers")


def _strongest(page: Page, info: LayerInfo) -> html.Section:
    db = page.db
    number = unit_numbers.count(db, page.address.where)
    rows, partitions = unit_numbers.strongest(db, info, page.address.where)
    end = max((row["size"] for row in rows), default=0.0) or 1.0
    body = [
        [
            _link_to(page, info, partitions, row["unit"]),
            _bar(row["mean"], end),
            row["mean"],
            row["size"],
            row["present"],
        ]
        for row in rows
    ]
    part = partitions[info.layer_id]
    texts = [
        f"The {len(rows)} of {part.n_units:,} units with the largest mean of |R| over {number:,} "
        "inputs, by stored values; an input without a row has exactly 0."
    ]
    held = db.resolutions[info.layer_id]
    if held != part.resolution:
        texts.append(
            f"The store holds each {held} of this layer: they are summed to each {part.resolution} "
            f"here, and a single one is written {unit_set(info, held, 0)!r}."
        )
    heads = ("unit", "", "mean R", "mean |R|", "inputs where it is not 0")
    title = f"Units of {info.name}: {info.kind} of shape {info.shape}"
    return parts.section(title, parts.note(" ".join(texts)), _table(heads, body), name="strongest")


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> html.Div:
    def write(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else parts.number(value)

    return parts.grid(heads, rows, "unit-table", write)


def _bar(value: float, end: float) -> html.Div:
    """Return a bar from the middle: to the right where positive, to the left where negative."""
    width = 50 * abs(value) / end
    side = {"left": "50%"} if value >= 0 else {"right": "50%"}
    sign = "positive" if value >= 0 else "negative"
    return html.Div(
        html.Div(className=f"bar {sign}", style={"width": f"{width:.2f}%", **side}),
        className="bars",
    )
