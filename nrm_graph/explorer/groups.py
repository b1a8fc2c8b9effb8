"""What the page asks of many inputs: groups, circuits and contrasts, and who carries an edge."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.edges import edge_values
from nrm_graph.errors import EventError, InputError
from nrm_graph.events.parser import parse
from nrm_graph.events.unit_sets import unit_set
from nrm_graph.explorer.answers import STORED, usual_units
from nrm_graph.graphs.formats import to_arrow
from nrm_graph.network.grouped_units import asked_units, grouped_units
from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.network.units import automatic
from nrm_graph.store.input_group import group
from nrm_graph.store.read.table_queries import literal

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import networkx as nx

    from nrm_graph.circuits.contrast import Contrast
    from nrm_graph.database import Database
    from nrm_graph.events.sets import Event
    from nrm_graph.explorer.answers import Answers
    from nrm_graph.explorer.page import Page
    from nrm_graph.network.grouped_units import By
    from nrm_graph.store.input_group import InputGroup

MOST_EDGES = 400
"""Edges of a circuit that the page shows at most: what it sends stays small."""
LONGEST = 1000
"""Letters of a label that is offered as a group."""
CARRIERS = 50
"""Inputs that are listed of an edge."""


@dataclass(frozen=True)
class Choice:
    """A group of inputs that one click chooses.

    Attributes
    ----------
    text : str
        Its label, with the target where the label has several and that is not of its name.
    where : str
        SQL condition over ``inputs``.
    inputs : int
        How many it chooses.
    """

    text: str
    where: str
    inputs: int


@dataclass(frozen=True)
class Question:
    """What an address asks of many inputs.

    Attributes
    ----------
    db : Database
        The store.
    where : str or None
        SQL condition over ``inputs`` that chooses the group.
    against : str or None
        The same of a second group.
    other : Database or None
        A second store, in place of a second group.
    by : str, mapping or None
        Coarser units, as :meth:`nrm_graph.database.Database.circuit` takes them.
    edges : int
        Edges of the graph, at most.
    given : Event or None
        What the circuit is conditioned on: the address's event, where the store has its tables.
    """

    db: Database
    where: str | None
    against: str | None
    other: Database | None
    by: By | None
    edges: int
    given: Event | None

    @property
    def contrasts(self) -> bool:
        """Whether two groups are compared."""
        return self.against is not None or self.other is not None

    @property
    def name(self) -> tuple[Hashable, ...]:
        """What its answers are remembered by."""
        stores = tuple(str(db.path) for db in (self.db, self.other) if db is not None)
        by = tuple(self.by.items()) if isinstance(self.by, dict) else self.by
        return stores, self.where, self.against, by, self.edges, self.given


def question(page: Page) -> Question:
    """Return what the address of a page asks.

    Raises
    ------
    InputError
        If there is no other store, or the number of edges or ``by`` does not fit.
    """
    address = page.address
    if not 1 <= address.edges <= MOST_EDGES:
        raise InputError(f"edges must be from 1 to {MOST_EDGES}, found {address.edges}")
    other = None
    if address.other:
        if len(page.stores) < 2:
            raise InputError("there is no other store: start the explorer with two")
        other = page.stores[0 if page.db is page.stores[1] else 1]
    against = None if other is not None else address.against.strip() or None
    return Question(
        page.db,
        address.where.strip() or None,
        against,
        other,
        units_of(page.db, address.by),
        address.edges,
        None if against is not None or other is not None else materialized(page),
    )


def materialized(page: Page) -> Event | None:
    """Return the event of the address, where the store has tables that are conditioned on it."""
    if not page.address.event.strip():
        return None
    event = parse(page.address.event)
    known = page.db._conditions.values()
    return event if any(c.nodes is None and c.event == event for c in known) else None


def units_of(db: Database, text: str) -> By | None:
    """Read the units of a circuit: ``channel``, ``layer=channel,other=head``, or ``stored``.

    Without a text they are those that people think in, where the store's can be summed to them.

    Raises
    ------
    InputError
        If the text is none of these.
    """
    if not text.strip():
        usual = usual_units(db)
        with contextlib.suppress(InputError):  # a store of other units shows its own
            if usual != STORED:
                grouped_units(db.topology, db.partitions, usual)
                return usual
        return None
    if "=" not in text:
        return None if text.strip() == STORED else text.strip()
    pairs = [[side.strip() for side in part.rpartition("=")] for part in text.split(",")]
    if not all(layer and units for layer, _, units in pairs):
        raise InputError(f"by must be units or LAYER=UNITS,..., found {text!r:.200}")
    return {layer: units for layer, _, units in pairs}


def kinds(page: Page) -> list[str]:
    """Return the kinds of units that those of the store can be summed to."""

    def compute() -> list[str]:
        db, found = page.db, []
        for kind in sorted(set(automatic(db.topology)) - {"neuron"}):
            with contextlib.suppress(InputError):
                if grouped_units(db.topology, db.partitions, kind) is not None:
                    found.append(kind)
        return found

    return page.answers.remembered(("kinds", str(page.db.path)), compute)


def offered(page: Page) -> list[Choice]:
    """Return the groups that labels name; see :func:`choices`."""
    return page.answers.remembered(("groups", str(page.db.path)), lambda: choices(page.db))


def is_chosen(page: Page) -> bool:
    """Whether the address says of which inputs a circuit is, or there is one group alone."""
    return bool(page.address.where.strip()) or len(offered(page)) == 1


def choices(db: Database) -> list[Choice]:
    """Return the groups that labels name, those of most inputs first.

    A circuit is of one target: of a label whose inputs explain several, it is that of most.  Labels
    of more than :data:`LONGEST` letters are left out.
    """
    every = group(db, mixed_targets=True)
    by_label: dict[str | None, Counter[int | str]] = defaultdict(Counter)
    for label, aim in zip(every.labels, every.aims, strict=True):
        by_label[label][aim] += 1
    listed = []
    for label, aims in by_label.items():
        if label is not None and len(label) > LONGEST:  # its condition makes no address
            continue
        ((aim, inputs),) = aims.most_common(1)
        where = "label IS NULL" if label is None else f"label = {literal(label)}"
        text = "no label" if label is None else label
        if len(aims) > 1:
            column = "target" if isinstance(aim, int) else "weights"
            where += f" AND {column} = {aim if isinstance(aim, int) else literal(aim)}"
            words = db.outputs.text(aim, db.classes)
            text += "" if words == f"{aim} ({label})" else f", target {words}"
        listed.append(Choice(text, where, inputs))
    return sorted(listed, key=lambda choice: (-choice.inputs, choice.text))


def circuit(answers: Answers, asked: Question) -> nx.DiGraph:
    """Return the circuit of a group, or the graph of a contrast's strongest differences."""
    if asked.contrasts:
        return answers.remembered(
            ("contrast graph", asked.name), lambda: contrast(answers, asked).graph(asked.edges)
        )
    return answers.remembered(
        ("circuit", asked.name),
        lambda: asked.db.circuit(asked.where, top=asked.edges, by=asked.by, given=asked.given),
    )


def contrast(answers: Answers, asked: Question) -> Contrast:
    """Return the contrast of two groups, or of two stores."""
    return answers.remembered(
        ("contrast", asked.name),
        lambda: asked.db.contrast(asked.where, asked.against, other=asked.other, by=asked.by),
    )


def is_layer(db: Database, text: str) -> bool:
    """Whether a text names a layer, and no unit of one."""
    try:
        db.topology.layer(text)
    except EventError:
        return False
    return True


def edges_of(asked: Question, graph: nx.DiGraph) -> pa.Table:
    """Return the edges of a circuit as a table, the strongest first.

    ``source`` and ``destination`` are expressions of the ends (see :func:`expression`), with names
    of the user's own in ``source_name`` and ``destination_name`` where any unit bears one.
    """
    _, edges = to_arrow(graph)
    size = np.abs(edges["relevance"].to_numpy())
    edges = edges.take(np.argsort(-size, kind="stable")).replace_schema_metadata(None)
    columns: dict[str, list[str]] = {}
    named = any("own_name" in data for _, data in graph.nodes(data=True))
    for end, title in (("src", "source"), ("dst", "destination")):
        nodes = zip(
            edges[f"{end}_layer"].to_pylist(), edges[f"{end}_unit"].to_pylist(), strict=True
        )
        ends = list(nodes)
        columns[title] = [expression(asked, *node) for node in ends]
        if named:
            columns[f"{title}_name"] = [graph.nodes[node].get("own_name") for node in ends]
    for place, (name, column) in enumerate(columns.items()):
        edges = edges.add_column(place, name, pa.array(column, pa.string()))
    return edges


def edge_text(row: Mapping[str, Any]) -> str:
    """Write an edge of :func:`edges_of` as the address has it."""
    return f"{row['source']} -> {row['destination']}"


def expression(asked: Question, name: str, unit: int) -> str:
    """Write a unit as expressions of events do, or a pseudo-unit in words: ``conv bias``."""
    if unit < 0:
        return f"{name} {PSEUDO_UNITS[unit]}"
    layer, units = asked.db.topology.layer(name), asked.db.partitions
    if asked.by is not None:
        units = asked_units(asked.db.topology, units, asked.by)
    return repr(unit_set(layer, units[layer.layer_id].resolution, unit))


def ends_of(
    asked: Question, graph: nx.DiGraph, text: str
) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the nodes that an edge of the address joins.

    Raises
    ------
    InputError
        If the graph has none of this text.
    """
    for src, dst in graph.edges:
        row = {"source": expression(asked, *src)}
        row["destination"] = expression(asked, *dst)
        if edge_text(row) == text:
            return src, dst
    raise InputError(
        "the graph has no such edge: choose one of the table, or show more edges with it"
    )


@dataclass(frozen=True)
class Carrier:
    """An input of a group and the relevance that an edge has in it.

    Attributes
    ----------
    store : int
        0 for the store that is looked at, 1 for the other.
    key : str
        Of the input.
    label : str or None
        Of the input.
    target : int or str
        What is explained of it.
    place : str
        ``a`` or ``b``: the group of a contrast.
    relevance : float
        Of the edge; times the logit in a contrast, as its means are; of edge and event where the
        circuit is conditioned on one.
    """

    store: int
    key: str
    label: str | None
    target: int | str
    place: str
    relevance: float


def carriers(
    answers: Answers, asked: Question, src: tuple[str, int], dst: tuple[str, int]
) -> list[Carrier]:
    r"""Return every input of the groups that an edge has relevance in, the largest \|.\| first."""
    if not asked.contrasts:
        sides = [(asked.db, group(asked.db, asked.where), "a", 0)]
    else:
        found = contrast(answers, asked)
        second = asked.db if asked.other is None else asked.other
        sides = [(asked.db, found.a, "a", 0), (second, found.b, "b", int(second is not asked.db))]
    weight = "logit" if asked.contrasts else "unit"

    def compute() -> list[Carrier]:
        listed = [
            Carrier(store, key, label, aim, place, float(value))
            for db, inside, place, store in sides
            for key, label, aim, value in zip(
                inside.keys,
                inside.labels,
                inside.aims,
                _values(asked, db, inside, weight, src, dst),
                strict=True,
            )
            if value
        ]
        return sorted(listed, key=lambda one: (-abs(one.relevance), one.key))

    return answers.remembered(("carriers", asked.name, src, dst), compute)


def _values(
    asked: Question,
    db: Database,
    inside: InputGroup,
    weight: str,
    src: tuple[str, int],
    dst: tuple[str, int],
) -> list[float]:
    """Relevance of an edge for every input of a group; layers are known by name in each store."""
    ends = {
        f"{end}_{what}": pa.array([value], kind)
        for end, (name, unit) in (("dst", dst), ("src", src))
        for what, value, kind in (
            ("layer", db.topology.layer(name).layer_id, pa.int16()),
            ("unit", unit, pa.int32()),
        )
    }
    edge = pa.table(ends).select(["dst_layer", "dst_unit", "src_layer", "src_unit"])
    values: list[float] = edge_values(db, inside, edge, weight, given=asked.given, by=asked.by)[
        :, 0
    ].tolist()
    return values
