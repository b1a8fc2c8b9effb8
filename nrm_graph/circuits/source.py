"""Where the rows of a circuit come from: a store's own tables, or those beside them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.positions import shared_length
from nrm_graph.errors import InputError, UndefinedConditional
from nrm_graph.events.sets import Event
from nrm_graph.network.grouped_units import grouped_units, kinds_of
from nrm_graph.store.format.schema import EDGES, NODES
from nrm_graph.store.grouped_tables import REGROUPED, grouped_edges, grouped_nodes, regrouped
from nrm_graph.store.measure import measure
from nrm_graph.store.table_form import stored_form
from nrm_graph.tables import pruning

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from nrm_graph.network.grouped_units import By, GroupedUnits
    from nrm_graph.network.unit_names import UnitKind
    from nrm_graph.network.units import Partition
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.read.conditions import Condition
    from nrm_graph.store.read.reduced import RecordedNodes
    from nrm_graph.store.reduced_tables import ReducedForm
    from nrm_graph.store.view import View
    from nrm_graph.tables.pruning import Limit

_TABLES = ("edges", "nodes", "thresholds")

_THRESHOLDS = pa.schema(
    [
        ("input_id", pa.int64()),
        ("dst_layer", pa.int16()),
        ("src_layer", pa.int16()),
        ("threshold", pa.float32()),
    ]
)

ROUNDING = 32 * 2.0**-23
"""R(B) of a group counts as vanished below this share of the sum of |R| it is made of."""


@dataclass(frozen=True, eq=False)
class Source:
    """Rows to aggregate: v = relevance x weight, over sums of base.

    Attributes
    ----------
    group : InputGroup
        The inputs whose rows count.
    edges, nodes, thresholds : str
        What SQL reads them from, and what no absent edge exceeds.
    weight : ndarray of float64, (N,)
        What the relevance of an input's rows is multiplied by.
    base : ndarray of float64, (N,)
        Means are sums of v over the sum of this: ones, or R(condition) of every input.
    tables : mapping of str to pyarrow.Table
        Further tables that ``edges`` and ``nodes`` name.
    undefined : int
        Inputs whose conditional measure is undefined.
    amplification : float
        Sum of |R| that R(condition) is made of, over |R(condition)|: how far rounding may have
        been amplified.
    limits : mapping of (dst layer, src layer) to Limit
        Pairs of layers of which edges may be left out.
    nodes_of : RecordedNodes or None
        Nodes of reduced tables.
    condition : str or None
        Name of the condition, or of the reduced tables.
    divisor : ndarray of float64, (N,), or None
        What rows are divided by: R(condition), and 1 where it is undefined; None without one.
    units : GroupedUnits or None
        Coarser units that the store's are summed to.
    tokens : int or None
        Of texts: how many each has, where units tell positions apart.
    """

    group: InputGroup
    edges: str
    nodes: str
    thresholds: str
    weight: npt.NDArray[np.float64]
    base: npt.NDArray[np.float64]
    tables: Mapping[str, pa.Table]
    undefined: int
    amplification: float
    limits: Mapping[tuple[int, int], Limit]
    nodes_of: RecordedNodes | None = None
    condition: str | None = None
    divisor: npt.NDArray[np.float64] | None = None
    units: GroupedUnits | None = None
    tokens: int | None = None

    @property
    def pruned(self) -> bool:
        """Whether rows of the pseudo-unit -3 may occur."""
        return bool(self.limits)

    def pairs(self, db: View) -> list[tuple[int, int]]:
        """List the layers that edges may link, (dst layer, src layer)."""
        if self.nodes_of is None:
            return [(group.dst, group.src) for group in db.topology.groups]
        return list(itertools.combinations(self.nodes_of.ids, 2))

    def kinds(self, db: View) -> tuple[UnitKind, ...]:
        """Return what the units of every layer are."""
        if self.nodes_of is not None:
            return self.nodes_of.kinds(self.partitions(db))
        return kinds_of(self.partitions(db), db.partitions)

    def partitions(self, db: View) -> tuple[Partition, ...]:
        """Return the units of every layer, but for nodes of reduced tables."""
        return db.partitions if self.units is None else self.units.partitions

    @property
    def incomplete(self) -> bool:
        """Whether a row may be the sum of some of what it stands for."""
        return self.units is not None and self.pruned

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return bool((self.weight != 1).any())

    @property
    def weights(self) -> pa.Table:
        """The table ``weights``."""
        ids = self.group.ids
        return pa.table({"input_id": ids, "weight": self.weight, "base": self.base})


def source(
    db: View,
    group: InputGroup,
    weight: str = "unit",
    given: str | Event | None = None,
    per_input: bool = False,
    tables: str | None = None,
    by: By | None = None,
) -> Source:
    """Choose the rows of a group.

    Parameters
    ----------
    db : Database
        The store.
    group : InputGroup
        The inputs.
    weight : "unit" or "logit"
        What relevance is multiplied by.
    given : str or Event, optional
        A condition that was materialized: its name, or its event.
    per_input : bool
        Of a condition: the mean of every input's conditional measure, over the inputs where it is
        defined.  By default the ratio of means, in which an input counts by its R(condition).
    tables : str, optional
        Reduced tables that were materialized, by their name; with an event they are conditioned.
    by : str or mapping, optional
        Coarser units, see :func:`nrm_graph.network.grouped_units.grouped_units`.

    Raises
    ------
    InputError
        If the tables are not materialized for every input of the group, or units are of positions
        of texts that differ in length.
    UndefinedConditional
        If the group's R(condition) is below rounding, or no input's is above.
    """
    rows = _stored(db, group, weight, given, per_input, tables)
    units = None if by is None else grouped_units(db.topology, db.partitions, by)
    if by is not None and tables is not None:
        raise InputError(
            "give by= or tables=: nodes of reduced tables are not summed; "
            "db.materialize(name=..., watch=..., by=...) chooses their units"
        )
    if units is not None:
        rows = replace(
            rows,
            edges=grouped_edges(rows.edges),
            nodes=grouped_nodes(rows.nodes),
            tables={**rows.tables, REGROUPED: regrouped(units)},
            units=units,
        )
    return replace(rows, tokens=shared_length(db, group.ids, rows.partitions(db), rows.nodes_of))


def _stored(
    db: View,
    group: InputGroup,
    weight: str,
    given: str | Event | None,
    per_input: bool,
    tables: str | None,
) -> Source:
    """Choose rows of the store's own units."""
    weights = group.weights(weight)
    if given is not None and tables is not None:
        raise InputError("give given= or tables=: reduced tables have their own condition")
    condition = None
    if tables is not None:
        condition = reduced_tables(db, tables)
    elif given is not None:
        condition = _condition(db, given)
    if condition is not None:
        _check_complete(condition, group)
    if condition is not None and condition.event is not None:
        return _conditioned(db, group, condition, weights, per_input)
    if per_input:
        raise InputError(
            "per_input goes with given, or tables of an event: else every input counts"
        )
    ones = np.ones(len(group))
    if condition is None:
        limits = pruning.stored(db.meta, db.topology)
        return Source(group, *_TABLES, weights, ones, {}, 0, 1.0, limits)
    _check_defined(db, condition, group)
    names = tuple(f"{condition.name}_{kind}" for kind in _TABLES)
    return Source(
        group,
        edges=names[0],
        nodes=names[1],
        thresholds=names[2],
        weight=weights,
        base=ones,
        tables={},
        undefined=0,
        amplification=1.0,
        limits={},
        nodes_of=condition.nodes,
        condition=condition.name,
    )


def single(
    db: View, group: InputGroup, weight: str, tables: str | None = None, by: By | None = None
) -> Source:
    """Choose the rows of a group whose inputs are compared with each other.

    Of conditioned tables each input has its own conditional relevances.

    Raises
    ------
    InputError
        If that of an input is undefined, or the tables are not materialized for all.
    """
    conditioned = tables is not None and reduced_tables(db, tables).event is not None
    if conditioned:
        condition = reduced_tables(db, str(tables))
        _check_complete(condition, group)
        _check_defined(db, condition, group)
    return source(db, group, weight, tables=tables, per_input=conditioned, by=by)


def reduced_tables(db: View, name: object) -> Condition:
    """Return what the reduced tables of a name are.

    Raises
    ------
    InputError
        If there are none.
    """
    named = {other: c for other, c in db._conditions.items() if c.nodes is not None}
    if isinstance(name, str) and name in named:
        return named[name]
    if isinstance(name, str) and name in db._conditions:
        raise InputError(f"{name!r} holds tables of all units: given={name!r} names them")
    raise InputError(
        f"there are no reduced tables {name!r:.100} in {db.path}: expected one of "
        f"{', '.join(sorted(named)) or 'those it holds, which are none'}; "
        "db.materialize(name=..., watch=...) makes them"
    )


def _condition(db: View, given: str | Event) -> Condition:
    conditions = db._conditions
    if isinstance(given, str):
        if given not in conditions:
            raise InputError(
                f"there is no condition {given!r} in {db.path}: expected one of "
                f"{', '.join(sorted(conditions)) or 'those it holds, which are none'}; "
                f"db.materialize(event, name={given!r}) makes it"
            )
        if conditions[given].nodes is not None:
            raise InputError(f"{given!r} holds reduced tables: tables={given!r} names them")
        return conditions[given]
    if not isinstance(given, Event):
        raise InputError(f"given takes an event or a condition's name, found {given!r}")
    for condition in conditions.values():
        if condition.nodes is None and condition.event == given:
            return condition
    raise InputError(
        f"the event {given!r} is not materialized in {db.path}: "
        "db.materialize(event, name='given_b') computes it for every input, once"
    )


def _check_complete(condition: Condition, group: InputGroup) -> None:
    missing = [
        key
        for identity, key in zip(group.ids.tolist(), group.keys, strict=True)
        if identity not in condition.snapshot.entries
    ]
    if missing:
        raise InputError(
            f"{condition.name!r} is not computed for {len(missing):,} of the "
            f"{len(group):,} inputs, such as {missing[0]!r}: materialize it for them (the same "
            "call goes on; one with another where= needs another name)"
        )


def _check_defined(db: View, condition: Condition, group: InputGroup) -> None:
    """Refuse inputs without rows, which are no zeros."""
    undefined = db.sql(
        f"SELECT key, reason FROM {condition.name}_inputs JOIN inputs USING (input_id) "
        "WHERE status <> 'defined' ORDER BY key",
        inputs=group.ids.tolist(),
    ).fetchall()
    if undefined:
        key, reason = undefined[0]
        raise InputError(
            f"{condition.name!r} is undefined for {len(undefined):,} of the {len(group):,} inputs, "
            f"such as {key!r}: {reason}; leave them out by where"
        )


def _conditioned(
    db: View,
    group: InputGroup,
    condition: Condition,
    weights: npt.NDArray[np.float64],
    per_input: bool,
) -> Source:
    """Rows of a condition, which a store holds divided by R(condition)."""
    name = condition.name
    limits = pruning.stored(db.meta, db.topology) if condition.nodes is None else {}
    facts = db.sql(
        f"SELECT relevance, amplification, status = 'defined' AS defined FROM {name}_inputs "
        "ORDER BY input_id",
        inputs=group.ids.tolist(),
    ).to_arrow_table()
    defined = facts["defined"].to_numpy()
    undefined = int((~defined).sum())
    if per_input:
        if not defined.any():
            raise UndefinedConditional(
                f"the conditional measure given {name} is undefined for all {len(group):,} inputs: "
                f"SELECT reason FROM {name}_inputs says why"
            )
        defined_group = group.take(np.flatnonzero(defined))
        return Source(
            defined_group,
            f"{name}_edges",
            f"{name}_nodes",
            f"{name}_thresholds",
            weights[defined],
            np.ones(len(defined_group)),
            {},
            undefined,
            float(facts["amplification"].to_numpy()[defined].max()),
            limits,
            condition.nodes,
            name,
            facts["relevance"].to_numpy().astype(np.float64)[defined],
        )
    value = facts["relevance"].to_numpy().astype(np.float64)
    size = np.abs(value) * facts["amplification"].to_numpy()
    joint = _joint(db, group, condition, ~defined, value, size)
    base = value * weights
    extent = float(np.abs(size * weights).sum())
    if not abs(base.sum()) > ROUNDING * extent:
        raise UndefinedConditional(
            f"the group's R({name}) is {base.mean():.3g}, below rounding: its conditional measure "
            "is undefined; choose inputs whose relevances do not cancel, or per_input=True"
        )
    factor = np.where(defined, base, weights)  # rows of undefined inputs are not divided
    edges, nodes, thresholds = (
        f"(SELECT * FROM {name}_{kind} UNION ALL SELECT * FROM joint_{kind}) AS whole_{kind}"
        if undefined
        else f"{name}_{kind}"
        for kind in _TABLES
    )
    joint_tables = {}
    if undefined:
        joint_tables = dict(zip((f"joint_{kind}" for kind in _TABLES), joint, strict=True))
    amplification = extent / abs(float(base.sum()))
    return Source(
        group,
        edges,
        nodes,
        thresholds,
        factor,
        base,
        joint_tables,
        undefined,
        amplification,
        limits,
        condition.nodes,
        name,
        np.where(defined, value, 1.0),
    )


def _joint(
    db: View,
    group: InputGroup,
    condition: Condition,
    undefined: npt.NDArray[np.bool_],
    value: npt.NDArray[np.float64],
    size: npt.NDArray[np.float64],
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Joint relevances of inputs whose R(condition) vanishes, computed now, and their thresholds.

    R(A & B) need not vanish where R(B) does: without these inputs a ratio of means would be
    wrong.  Fills in what their R(condition) is and of how much it is made.
    """
    event = condition.event
    assert event is not None
    form = stored_form(db) if condition.nodes is None else _reduced_form(db, condition.nodes, group)
    edges, nodes = [EDGES.empty_table()], [NODES.empty_table()]
    thresholds = [_THRESHOLDS.empty_table()]
    pairs = [(group.dst, group.src) for group in db.topology.groups]
    for place in np.flatnonzero(undefined).tolist():
        m = measure(db, int(group.ids[place]))
        *tables, kept = form.tables(m, event)
        value[place], size[place] = m.extent(event)
        for rows, table, schema in zip((nodes, edges), tables, (NODES, EDGES), strict=True):
            identity: Any = pa.array(np.full(len(table), group.ids[place], np.int64))
            rows.append(table.add_column(0, schema.field(0), identity).cast(schema))
        if kept is not None:
            dst, src = np.array(pairs).T
            ids = np.full(len(pairs), group.ids[place])
            arrays = [ids, dst, src, np.array(kept.bounds(pairs))]
            thresholds.append(pa.table(arrays, _THRESHOLDS.names).cast(_THRESHOLDS))
    return pa.concat_tables(edges), pa.concat_tables(nodes), pa.concat_tables(thresholds)


def _reduced_form(db: View, nodes: RecordedNodes, group: InputGroup) -> ReducedForm:
    from nrm_graph.store.reduced_tables import reduced_form

    return reduced_form(db, nodes, group.ids.tolist())
