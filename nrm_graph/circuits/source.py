"""Where the rows of a circuit come from: a store's own tables, or those of a condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError, UndefinedConditional
from nrm_graph.events.sets import Event
from nrm_graph.store.format.schema import EDGES, NODES
from nrm_graph.store.measure import measure
from nrm_graph.store.table_form import stored_form
from nrm_graph.tables import pruning

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.read.conditions import Condition
    from nrm_graph.store.view import View

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
    pruned : bool
        Whether rows of the pseudo-unit -3 may occur.
    condition : str or None
        Name of the condition.
    divisor : ndarray of float64, (N,), or None
        What rows are divided by: R(condition), and 1 where it is undefined; None without one.
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
    pruned: bool
    condition: str | None = None
    divisor: npt.NDArray[np.float64] | None = None

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

    Raises
    ------
    InputError
        If the condition is not materialized for every input of the group.
    UndefinedConditional
        If the group's R(condition) is below rounding, or no input's is above.
    """
    weights = group.weights(weight)
    pruned = bool(pruning.stored(db.meta, db.topology))
    if given is None:
        if per_input:
            raise InputError("per_input goes with given: without a condition every input counts")
        ones = np.ones(len(group))
        return Source(group, *_TABLES, weights, ones, {}, 0, 1.0, pruned)
    condition = _condition(db, given)
    _check_complete(condition, group)
    return _conditioned(db, group, condition, weights, per_input, pruned)


def _condition(db: View, given: str | Event) -> Condition:
    conditions = db._conditions
    if isinstance(given, str):
        if given not in conditions:
            raise InputError(
                f"there is no condition {given!r} in {db.path}: expected one of "
                f"{', '.join(sorted(conditions)) or 'none'}; db.materialize(event, name={given!r}) "
                "makes it"
            )
        return conditions[given]
    if not isinstance(given, Event):
        raise InputError(f"given takes an event or a condition's name, found {given!r}")
    for condition in conditions.values():
        if condition.event == given:
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
            f"the condition {condition.name!r} is not computed for {len(missing):,} of the "
            f"{len(group):,} inputs, such as {missing[0]!r}: materialize it for them (the same "
            "call goes on; one with another where= needs another name)"
        )


def _conditioned(
    db: View,
    group: InputGroup,
    condition: Condition,
    weights: npt.NDArray[np.float64],
    per_input: bool,
    pruned: bool,
) -> Source:
    """Rows of a condition, which a store holds divided by R(condition)."""
    name = condition.name
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
            pruned,
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
        pruned,
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
    form, edges, nodes = stored_form(db), [EDGES.empty_table()], [NODES.empty_table()]
    thresholds = [_THRESHOLDS.empty_table()]
    pairs = [(group.dst, group.src) for group in db.topology.groups]
    for place in np.flatnonzero(undefined).tolist():
        m = measure(db, int(group.ids[place]))
        *tables, kept = form.tables(m, condition.event)
        value[place], size[place] = m.extent(condition.event)
        for rows, table, schema in zip((nodes, edges), tables, (NODES, EDGES), strict=True):
            identity: Any = pa.array(np.full(len(table), group.ids[place], np.int64))
            rows.append(table.add_column(0, schema.field(0), identity).cast(schema))
        if kept is not None:
            dst, src = np.array(pairs).T
            ids = np.full(len(pairs), group.ids[place])
            arrays = [ids, dst, src, np.array(kept.bounds(pairs))]
            thresholds.append(pa.table(arrays, _THRESHOLDS.names).cast(_THRESHOLDS))
    return pa.concat_tables(edges), pa.concat_tables(nodes), pa.concat_tables(thresholds)
