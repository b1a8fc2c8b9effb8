"""Tables of many inputs beside a store's own: conditioned on an event, reduced to nodes, or both.

They are made, listed and dropped here.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nrm_graph.errors import InputError, StoreError, UndefinedConditional
from nrm_graph.events.conjunctions import expand
from nrm_graph.events.sets import Event, checked
from nrm_graph.progress import Progress
from nrm_graph.signals import ending_in_order
from nrm_graph.store.format.manifest import MAX_ERROR
from nrm_graph.store.format.schema import EDGES, NODES, Record
from nrm_graph.store.input_group import group
from nrm_graph.store.measure import measure, program
from nrm_graph.store.read.conditions import check_name, create, read_condition, undropped
from nrm_graph.store.table_form import stored_form
from nrm_graph.store.write import dropping
from nrm_graph.store.write.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Protocol

    import torch

    from nrm_graph.events.sets import NeuronSet
    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.units import Resolution
    from nrm_graph.store.format.manifest import Entry
    from nrm_graph.store.read.reduced import Proposal
    from nrm_graph.store.view import View
    from nrm_graph.tables.bounded import Kept

    class Form(Protocol):
        """What tables of a measure are stored."""

        def tables(self, m: Measure) -> tuple[pa.Table, pa.Table, Kept | None]:
            """Nodes, edges, and what was kept of these."""


NODE_COUNT = 200
"""Nodes of reduced tables where no number is asked for."""


def materialize(
    db: View,
    event: Event | None = None,
    *,
    name: str,
    where: str | None = None,
    watch: str | NeuronSet | Sequence[str | NeuronSet] | None = None,
    by: Resolution | Mapping[str, Resolution] = "unit",
    nodes: int | Mapping[str, int] | None = NODE_COUNT,
    inputs: Sequence[str | int] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> None:
    r"""Store the tables of many inputs, conditioned on an event or reduced to nodes, for SQL.

    They become ``<name>_nodes`` and ``<name>_edges``, with the columns of ``nodes`` and
    ``edges``, where a relevance is R(node and event) / R(event); and ``<name>_inputs``, with
    ``input_id``, ``relevance`` (R(event)), its ``error``, ``amplification``, ``absorbed``,
    ``status`` (``defined`` or ``undefined``) and ``reason``.  Inputs of which R(event) is below
    rounding are undefined: they have no nodes and edges, and ``reason`` says why.

    With ``watch`` they are reduced tables, of :meth:`nrm_graph.measures.measure.Measure.reduced`:
    the nodes are the same for all inputs, ``<name>_layers`` lists the watched layers, and rows of
    ``<name>_edges`` from a node to its own layer hold what ends below it, in the pseudo-units -1
    bias, -2 stabilizer, -4 remainder and -5, an input that is not watched.

    The same call again goes on where the last one stopped, and adds inputs that were
    extracted since; several processes may do so at once.

    Parameters
    ----------
    db : Database
        The store.
    event : Event, optional
        The condition; needed without ``watch``.
    name : str
        At most 60 ASCII letters, digits and underscores, a letter first; unlike the names
        of other conditions, letter case ignored.
    where : str, optional
        SQL condition over ``inputs`` that chooses the inputs; all by default.  Part of the
        condition, as the event is.
    watch, by, nodes
        As of :meth:`nrm_graph.measures.measure.Measure.reduced`, where \|R\| is its mean over all
        inputs that ``where`` chooses.  Nodes are chosen once, by the first call, and recorded.
    inputs : sequence of key or input_id, optional
        Compute only these of the chosen inputs in this call.
    device : str or torch.device
        As in :func:`nrm_graph.measure`.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.

    Raises
    ------
    InputError
        If the name cannot be used, no input is chosen, one is not there, units or numbers of
        nodes do not fit, or the store keeps no tensors.
    EventError
        If the event or a watched set does not fit the network.
    QueryError
        If ``where`` is not one SQL condition over ``inputs``.
    StoreError
        If the name has another event, ``where`` or nodes, or the store is damaged.
    SystemExit
        At SIGTERM and SIGHUP; what is computed is committed first, as at Ctrl-C.

    Notes
    -----
    Units, pruning and rounding are those of the store: as many edges of an input at most, or of a
    pair of layers the same coverage and number of edges, of the conditioned relevance; the rest
    stands in rows of the pseudo-unit -3.  ``<name>_thresholds`` is as ``thresholds``.

    Reduced tables are neither pruned nor rounded.  Where inputs explain different outputs, all of
    these are nodes: walks of an input begin at its own, and the others hold 0.  \|R\| is read from
    the stored nodes where these are no coarser than what is watched and there is no event; else
    all inputs are computed once more before the first is stored.
    """
    try:
        check_name(name)
        if event is not None:
            event = checked(event)
            expand(event, db.topology, db.partitions)  # whether it fits the network
        _check_kind(event, watch, by, nodes)
        chosen = _chosen(db, where, inputs)
        if chosen:
            _check_first(db, chosen[0], device)
        proposal = None
        if watch is not None:
            from nrm_graph.store.reduced_tables import proposed

            everything = _chosen(db, where, None)
            proposal = proposed(db, everything, event, watch, by, nodes, device, progress)
        meter = Progress(f"materialize {name}", len(chosen), "inputs", progress)
        with ending_in_order(), contextlib.ExitStack() as stack:
            stack.enter_context(undropped(db.path, name))
            folder = create(db.path, db.meta, name, event, where, proposal)
            form = _form(db, folder, chosen, proposal)
            writer = stack.enter_context(Writer(folder))
            stack.enter_context(meter)
            for identity in chosen:
                entry = db._snapshot.entries[identity]
                if writer.content(entry.key) not in (None, entry.content):
                    raise StoreError(
                        f"the condition {name} holds {entry.key!r} as it was before it was "
                        "deleted: compact the store, which removes such rows, and run the same "
                        "call again"
                    )
                if not writer.committed(entry.key, entry.aim, entry.content):
                    _add(writer, measure(db, identity, device=device), entry, event, form)
                meter.advance()
    finally:
        db._refresh_conditions()


def _check_kind(event: object, watch: object, by: object, nodes: object) -> None:
    """Refuse a call that asks for nothing, and options of nodes where none are asked for."""
    if watch is not None:
        return
    if event is None:
        raise InputError(
            "expected an event to condition on, or watch=... for reduced tables: found neither"
        )
    if not (isinstance(by, str) and by == "unit" and nodes == NODE_COUNT):
        raise InputError("by and nodes go with watch=...: without it tables are of all units")


def _form(db: View, folder: Path, chosen: Sequence[int], proposal: Proposal | None) -> Form:
    """Return what is stored of every input: its units, or the nodes on record."""
    if proposal is None:
        return stored_form(db)
    from nrm_graph.store.reduced_tables import reduced_form

    recorded = read_condition(folder, db.meta, db._snapshot.entries).nodes
    assert recorded is not None
    return reduced_form(db, recorded, chosen)


def conditions(db: View) -> pa.Table:
    """Conditions that were materialized, one row each.

    Returns
    -------
    pyarrow.Table
        Columns ``name``, ``event`` (null of reduced tables without one), ``where``, ``inputs``
        (their number), ``undefined`` (of how many R(event) is below rounding), ``mean_relevance``
        (of R(event)) and ``nodes`` (how many reduced tables have; null of others).
    """
    rows = []
    for name, condition in sorted(db._conditions.items()):
        ((inputs, undefined, mean),) = db.sql(
            "SELECT count(*), count(*) FILTER (WHERE status <> 'defined'), avg(relevance) "
            f"FROM {name}_inputs"
        ).fetchall()
        rows.append(
            {
                "name": name,
                "event": None if condition.event is None else repr(condition.event),
                "where": condition.where,
                "inputs": inputs,
                "undefined": undefined,
                "mean_relevance": mean,
                "nodes": None if condition.nodes is None else condition.nodes.count,
            }
        )
    return pa.Table.from_pylist(rows, _SUMMARY)


_SUMMARY = pa.schema(
    [
        ("name", pa.string()),
        ("event", pa.string()),
        ("where", pa.string()),
        ("inputs", pa.int64()),
        ("undefined", pa.int64()),
        ("mean_relevance", pa.float64()),
        ("nodes", pa.int64()),
    ]
)


def drop(db: View, name: str) -> None:
    """Drop a condition and its tables.

    Another event may be materialized under its name then.  Databases that were opened before
    keep its tables until they are refreshed, or until a compaction deletes the files, by age.

    Parameters
    ----------
    db : Database
        The store.
    name : str
        The condition, as ``db.conditions()`` lists it.

    Raises
    ------
    InputError
        If there is none of this name.
    StoreError
        If it is being materialized, a compaction or deletion is at work, or the store is
        damaged.
    """
    dropping.drop(db.path, name)
    db._refresh_conditions()


def _chosen(db: View, where: str | None, inputs: Sequence[str | int] | None) -> list[int]:
    """Input ids that are asked for, in the order of the store's shards; a choice of none fails."""
    everything = list(db._snapshot.entries)
    if where is None and inputs is None:
        return everything
    chosen = set(group(db, where, inputs=inputs, mixed_targets=True).ids.tolist())
    return [i for i in everything if i in chosen]


def _check_first(db: View, identity: int, device: str | torch.device) -> None:
    """Refuse a store without input tensors or weights, or a device, before anything is made."""
    from nrm_graph.network.device import device_of

    device_of(device)
    try:
        db._snapshot.tensors(identity)
    except InputError as error:
        raise InputError(
            f"conditioned tables are computed from the inputs themselves: {error}; extract "
            "with tensors='keep' to materialize"
        ) from None
    program(db)


def _add(writer: Writer, m: Measure, entry: Entry, event: Event | None, form: Form) -> None:
    """Compute and hand over the tables of one input, or why there are none."""

    def record(nodes: pa.Table, edges: pa.Table, **facts: object) -> Record:
        return Record(
            key=entry.key,
            target=entry.target,
            label=None,
            predicted=m.predicted,
            logit=m.logit,
            metadata=facts,
            content=entry.content,
            tensor=None,
            nodes=nodes,
            edges=edges,
            weights=entry.weights,
        )

    try:
        conditional = m if event is None else m.given(event)
    except UndefinedConditional as error:
        reason = str(error)
    else:
        nodes, edges, kept = form.tables(conditional)
        facts = {
            "relevance": float(conditional.condition_relevance),
            "error": float(conditional.condition_error),
            "amplification": float(conditional.amplification),
            "absorbed": float(conditional.absorbed),
            "status": "defined",
            "reason": None,
        }
        try:
            stored = record(nodes, edges, **facts)
            if kept is not None:
                pairs = [(group.dst, group.src) for group in m.topology.groups]
                stored = replace(stored, kept=kept.share, thresholds=kept.bounds(pairs))
            writer.add(stored)
            return
        except InputError as error:  # a number that is not finite in float32
            reason = str(error)
    no_nodes, no_edges = (schema.remove(0).empty_table() for schema in (NODES, EDGES))
    writer.add(record(no_nodes, no_edges, **_undefined(m, event, reason)))


def _undefined(m: Measure, event: Event | None, reason: str) -> dict[str, Any]:
    relevance = 1.0 if event is None else float(m(event))
    return {
        "relevance": relevance if math.isfinite(relevance) else None,
        "error": None,
        "amplification": None,
        "absorbed": None,
        "status": "undefined",
        # Text of others may hold anything; what UTF-8 cannot hold is escaped.
        "reason": reason.encode("utf-8", "backslashreplace").decode()[:MAX_ERROR],
    }
