"""The calls that give what a view shows, to be copied; every text in them is a literal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.errors import NrmError
from nrm_graph.explorer import as_sql, groups
from nrm_graph.explorer.answers import STORED, usual_units
from nrm_graph.explorer.circuit_checks import DRAWS, RESAMPLES, SPLITS
from nrm_graph.explorer.flow import STEPS
from nrm_graph.explorer.unit_references import SHARE, SHOWN
from nrm_graph.network.target_texts import read_target

if TYPE_CHECKING:
    from nrm_graph.database import Database
    from nrm_graph.explorer.groups import Question
    from nrm_graph.explorer.page import Page


def python_of(page: Page) -> str:
    """Return the calls that give what the page shows.

    Raises
    ------
    NrmError
        If the address does not fit the store.
    """
    lines = {"gallery": _gallery, "flow": _flow, "unit": _unit, "circuit": _circuit, "sql": _sql}
    calls = lines[page.address.view](page)
    imports = ["import nrm_graph as ng"]
    if any("parse(" in call for call in calls):
        imports.append("from nrm_graph.events.parser import parse")
    return "\n".join([*imports, "", _open("db", page.db), *calls]) + "\n"


def _open(name: str, db: Database) -> str:
    call = f"{name} = ng.open({str(db.path)!r}"
    return f"{call})" if db.weights is None else f"{call}, weights=...)  # those that it lacks"


def _gallery(page: Page) -> list[str]:
    return [f"inputs = db.sql({_text(as_sql.gallery(page))}).to_arrow_table()"]


def _sql(page: Page) -> list[str]:
    query = page.address.query
    return [f"rows = db.sql({_text(query)}).to_arrow_table()"] if query.strip() else []


def _flow(page: Page) -> list[str]:
    address = page.address
    if not address.input:
        return []
    calls = _of_input(page, "", address.input, address.target)
    if address.second:
        calls += ["", *_of_input(page, "2", address.second, address.second_target)]
    return calls


def _of_input(page: Page, number: str, key: str, target: str) -> list[str]:
    address, db = page.address, page.db
    m, graph = f"m{number}", f"graph{number}"
    aim = read_target(target, db.classes, db.outputs) if target else None
    calls = [f"{m} = db.measure({key!r}{'' if aim is None else f', target={aim!r}'})"]
    units = address.by or usual_units(db)
    if units != STORED:
        calls.append(f"{m} = {m}.with_units({units!r})")
    if address.event.strip():
        calls.append(f"{m} = {m}.given(parse({address.event!r}))")
    top = STEPS * max(1, address.nodes)
    if address.graph == "reduced":
        watch = address.watch.split() or "auto"
        calls.append(f"{graph} = {m}.reduced({watch!r}, nodes={address.nodes}).graph({top})")
    else:
        calls.append(f"{graph} = {m}.subgraph({top})")
    if address.sign or address.threshold:
        tests = [f"abs(r) >= {address.threshold!r}"] if address.threshold else []
        tests += [{"positive": "r > 0", "negative": "r < 0"}[address.sign]] if address.sign else []
        edges = f'{graph}.edges(data="relevance")'
        calls += [
            f"kept = [(a, b) for a, b, r in {edges} if {' and '.join(tests)}]",
            f"{graph} = {graph}.edge_subgraph(kept)",
        ]
    inputs = ", ".join(
        f"{info.name!r}: {m}.marginal({info.name!r}, by='neuron')" for info in db.topology.inputs
    )
    return [*calls, f"heat{number} = {{{inputs}}}", f"layers{number} = {m}.report()"]


def _unit(page: Page) -> list[str]:
    address = page.address
    text = address.unit.strip()
    if not text or groups.is_layer(page.db, text):
        return []
    where = f", where={address.where!r}" if address.where.strip() else ""
    options = f"k={SHOWN}, by={address.ranked!r}{where}, share={SHARE}"
    return [f"references = db.references(parse({text!r}), {options})"]


def _circuit(page: Page) -> list[str]:
    if not groups.is_chosen(page):
        return []
    asked, address = groups.question(page), page.address
    by = "" if asked.by is None else f", by={asked.by!r}"
    if asked.other is not None:
        return [
            _open("other", asked.other),
            f"contrast = db.contrast({asked.where!r}, other=other{by})",
            f"graph = contrast.graph({asked.edges})",
        ]
    if asked.against is not None:
        return [
            f"contrast = db.contrast({asked.where!r}, {asked.against!r}{by})",
            f"graph = contrast.graph({asked.edges})",
        ]
    options = f"top={asked.edges}{by}"
    given = "" if asked.given is None else f", given=parse({address.event!r})"
    calls = [f"graph = db.circuit({asked.where!r}, {options}{given})"]
    if address.edge.strip():
        calls += _carriers(page, asked)
    if asked.given is not None:  # what is computed beside it is of whole inputs
        return calls
    if address.computed == "stability":
        draws = f"splits={SPLITS}, draws={RESAMPLES}"
        calls.append(f"stability = db.stability({asked.where!r}, {options}, {draws})")
    if address.computed == "faithfulness":
        own = "" if asked.where is None else f"({asked.where}\n) AND "
        calls += [
            f"parts = ng.evaluate.split(db, {asked.where!r})",
            f"circuit = db.circuit({asked.where!r}, inputs=parts.circuit, {options})",
            f"held_out = {own!r} + parts.held_out_where",
            f"curves = ng.evaluate.faithfulness(db, circuit, held_out, draws={DRAWS})",
        ]
    return calls


def _carriers(page: Page, asked: Question) -> list[str]:
    """Return the call for the inputs that carry an edge, where one SELECT gives them."""
    try:
        graph = groups.circuit(page.answers, asked)
        query = as_sql.carriers_of(page, *groups.ends_of(asked, graph, page.address.edge.strip()))
    except NrmError:  # the view says what is wrong with the edge
        return []
    return [] if query is None else [f"inputs = db.sql({_text(query)}).to_arrow_table()"]


def _text(query: str) -> str:
    """Write SQL as a literal over several lines, where that is the same text."""
    literal = f'"""\n{query}\n"""'
    plain = all(letter.isprintable() or letter == "\n" for letter in query)
    if "\n" in query and plain and '"""' not in query and "\\" not in query:
        return literal
    return repr(query)
