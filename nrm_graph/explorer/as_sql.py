"""The SELECT that gives the table of a view, to be copied; every text in it is a quoted literal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.circuits.references import whole_units
from nrm_graph.errors import EventError
from nrm_graph.events.parser import parse
from nrm_graph.events.sets import NeuronSet
from nrm_graph.explorer import groups
from nrm_graph.explorer.answers import STORED, usual_units
from nrm_graph.explorer.input_filters import filters_of
from nrm_graph.explorer.unit_references import SHOWN
from nrm_graph.network.target_texts import read_target
from nrm_graph.store.lookups import pair_or_weights
from nrm_graph.store.read.sql_guard import chosen_inputs
from nrm_graph.store.read.table_queries import literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.explorer.groups import Question
    from nrm_graph.explorer.page import Page

CHANNEL = "channel"

# A unit by its channel, where its layer has channels; others, and pseudo-units, as they are.
_CHANNELS = """
  LEFT JOIN units d ON d.layer = dst AND d.unit = dst_unit
  LEFT JOIN units s ON s.layer = src AND s.unit = src_unit"""
_CIRCUIT = """\
WITH members AS (
  SELECT input_id FROM inputs WHERE {where}
), sums AS (
  SELECT input_id, src, {src} AS source, dst, {dst} AS destination,
    sum(CAST(relevance AS DOUBLE)) AS r
  FROM flows JOIN members USING (input_id){joins}
  GROUP BY ALL
), means AS (
  SELECT src, source, dst, destination, (SELECT count(*) FROM members) AS n,
    sum(r) AS total, sum(r * r) AS squares, count(*) FILTER (WHERE r <> 0) AS inputs
  FROM sums GROUP BY src, source, dst, destination
)
SELECT src AS src_layer, source AS src_unit, dst AS dst_layer, destination AS dst_unit,
  total / n AS relevance, {stderr}inputs
FROM means JOIN (VALUES
{edges}
) AS shown(src, source, dst, destination) USING (src, source, dst, destination)
ORDER BY abs(total) DESC"""
_STDERR = "sqrt(greatest(squares - total * total / n, 0) / nullif(n - 1, 0) / n) AS stderr, "
# The targets of a key are averaged first: keys are what is compared.
_CONTRAST = """\
WITH a AS (
  SELECT input_id, logit / count(*) OVER (PARTITION BY key) AS logit, key
  FROM inputs WHERE {where}
), b AS (
  SELECT input_id, logit / count(*) OVER (PARTITION BY key) AS logit, key
  FROM inputs WHERE {against}
), members AS (
  SELECT input_id, logit / (SELECT count(DISTINCT key) FROM a) AS in_a, 0.0 AS in_b FROM a
  UNION ALL
  SELECT input_id, 0.0, logit / (SELECT count(DISTINCT key) FROM b) FROM b
), means AS (
  SELECT src, {src} AS source, dst, {dst} AS destination,
    sum(relevance * in_a) AS mean_a, sum(relevance * in_b) AS mean_b
  FROM flows JOIN members USING (input_id){joins}
  GROUP BY ALL
)
SELECT src AS src_layer, source AS src_unit, dst AS dst_layer, destination AS dst_unit,
  mean_a - mean_b AS difference, mean_a, mean_b
FROM means JOIN (VALUES
{edges}
) AS shown(src, source, dst, destination) USING (src, source, dst, destination)
ORDER BY abs(mean_a - mean_b) DESC"""
_CARRIERS = """\
SELECT key, label, {target}sum(CAST(relevance AS DOUBLE)) AS relevance
FROM flows JOIN inputs USING (input_id, key, label){joins}
WHERE {where}
  AND src = {src_layer} AND {src} = {src_unit} AND dst = {dst_layer} AND {dst} = {dst_unit}
GROUP BY ALL HAVING sum(relevance) <> 0 ORDER BY abs(sum(relevance)) DESC, key"""
_UNITS = """\
SELECT layers.name AS layer, {unit} AS unit, sum(CAST(relevance AS DOUBLE)) AS relevance
FROM nodes JOIN layers USING (layer_id){joins}
WHERE input_id = {identity} AND nodes.unit >= 0
GROUP BY ALL ORDER BY abs(sum(relevance)) DESC"""
_REFERENCES = """\
SELECT key, label, coalesce(sum(CAST(relevance AS DOUBLE)), 0) AS relevance
FROM inputs LEFT JOIN nodes ON nodes.input_id = inputs.input_id
  AND layer_id = {layer} AND {units}
WHERE {where}
GROUP BY inputs.input_id, key, label ORDER BY relevance DESC, key LIMIT {most}"""


def sql_of(page: Page) -> str | None:
    """Return the SELECT that gives the table of the page, or None where no table holds it.

    Conditioned numbers stand in no table: the network is asked for them.

    Raises
    ------
    NrmError
        If the address does not fit the store.
    """
    address = page.address
    if address.view == "gallery":
        return gallery(page)
    if address.view == "flow":
        return _flow(page) if address.input else None
    if address.view == "unit":
        return _unit(page) if address.unit.strip() else None
    if address.view == "circuit":
        return _circuit(page) if groups.is_chosen(page) else None
    return address.query.strip() or None


def gallery(page: Page, *, words: bool = False) -> str:
    """Return the SELECT of the inputs that the filters of the gallery leave.

    Parameters
    ----------
    page : Page
        The page.
    words : bool
        Give predictions in words, too, and whether they are right, which a filter may need anyway.
    """
    address, filters = page.address, filters_of(page)
    order = "ORDER BY item NULLS LAST, key, target NULLS LAST, input_id"
    columns = "key, label, target, predicted, logit"
    if not (words or address.prediction or address.outcome or address.text):
        conditions = [condition(address.where)] if address.where.strip() else []
        conditions += [f"label = {literal(address.label)}"] if address.label else []
        where = f"WHERE {' AND '.join(conditions)}\n" if conditions else ""
        return f"SELECT {columns}\nFROM inputs\n{where}{order}"
    where = filters.where(values=True)
    return f"SELECT {columns}, words, is_right\nFROM {filters.source()}\n{where}\n{order}"


def condition(where: str | None) -> str:
    """Write a condition over inputs, which was checked to be one, so that others can follow it."""
    if where is None or not where.strip():
        return "true"
    chosen_inputs(where)  # refused here where it is no single condition
    end = "\n  " if "--" in where else ""  # a comment ends at the end of its line
    return f"({where.strip()}{end})"


def _flow(page: Page) -> str | None:
    """Relevance of the units of one input, which is not conditioned."""
    address, db = page.address, page.db
    units = address.by or usual_units(db)
    if address.event.strip() or units not in (STORED, CHANNEL):
        return None
    identity, weights = pair_or_weights(
        db, address.input, read_target(address.target, db.classes, db.outputs)
    )
    if weights is not None:  # of a target that is not stored
        return None
    unit, joins = "nodes.unit", ""
    if units == CHANNEL:
        unit = "coalesce(u.channel, nodes.unit)"
        joins = "\n  LEFT JOIN units u ON u.layer_id = nodes.layer_id AND u.unit = nodes.unit"
    return _UNITS.format(unit=unit, joins=joins, identity=identity)


def _unit(page: Page) -> str | None:
    """Rank the inputs by the relevance of a unit that the store holds whole."""
    address, db = page.address, page.db
    if address.ranked != "relevance" or groups.is_layer(db, address.unit.strip()):
        return None
    event = parse(address.unit)
    if not isinstance(event, NeuronSet):
        return None
    info = db.topology.layer(event.layer)
    try:
        _, units, _ = whole_units(db, event)
    except EventError:  # the store does not hold it whole
        return None
    return _REFERENCES.format(
        layer=info.layer_id,
        units=_among(units.tolist()),
        where=condition(address.where),
        most=SHOWN,
    )


def _among(units: Sequence[int]) -> str:
    first, last = units[0], units[-1]
    if len(units) == last - first + 1:
        return f"unit BETWEEN {first} AND {last}" if last > first else f"unit = {first}"
    return f"unit IN ({', '.join(map(str, units))})"


def _circuit(page: Page) -> str | None:
    """Means of a circuit's edges, or differences of a contrast's."""
    asked = groups.question(page)
    if asked.other is not None or asked.given is not None or asked.by not in (None, CHANNEL):
        return None
    graph = groups.circuit(page.answers, asked)
    if not graph.number_of_edges():
        return None
    edges = ",\n".join(
        f"  ({literal(src[0])}, {src[1]}, {literal(dst[0])}, {dst[1]})" for src, dst in graph.edges
    )
    parts = {**_ends_of(asked), "where": condition(asked.where), "edges": edges}
    if asked.contrasts:
        return _CONTRAST.format(**parts, against=condition(asked.against))
    lacking = any("missing" in data for *_, data in graph.edges(data=True))
    return _CIRCUIT.format(**parts, stderr="" if lacking else _STDERR)


def carriers_of(page: Page, src: tuple[str, int], dst: tuple[str, int]) -> str | None:
    """Return the SELECT of the inputs that carry an edge of a circuit."""
    asked = groups.question(page)
    if asked.contrasts or asked.given is not None or asked.by not in (None, CHANNEL):
        return None
    return _CARRIERS.format(
        **_ends_of(asked),
        where=f"input_id IN ({chosen_inputs(asked.where)})" if asked.where else "true",
        target="target, ",
        src_layer=literal(src[0]),
        src_unit=src[1],
        dst_layer=literal(dst[0]),
        dst_unit=dst[1],
    )


def _ends_of(asked: Question) -> dict[str, str]:
    """How the units of an edge's ends are written, and what must be joined for it."""
    if asked.by is None:
        return {"src": "src_unit", "dst": "dst_unit", "joins": ""}
    return {
        "src": "coalesce(s.channel, src_unit)",
        "dst": "coalesce(d.channel, dst_unit)",
        "joins": _CHANNELS,
    }


def refused(page: Page) -> str:
    """Say why a view has no SELECT."""
    if page.address.view == "flow":
        return "none: conditioned relevance stands in no table, the network is asked for it"
    if page.address.view == "circuit" and page.address.other:
        return "none: SQL asks one store; ng.join(...) opens both for one connection"
    return "none: no single SELECT gives these numbers; the Python does"
