"""Conditioned tables of many inputs: measures given an event, stored, listed and dropped."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError, StoreError, UndefinedConditional
from nrm_graph.events.conjunctions import expand
from nrm_graph.events.sets import Event, checked
from nrm_graph.network.topology import PRUNED
from nrm_graph.progress import Progress
from nrm_graph.signals import ending_in_order
from nrm_graph.store.format.manifest import MAX_ERROR
from nrm_graph.store.format.schema import EDGES, NODES, Record
from nrm_graph.store.input_group import group
from nrm_graph.store.measure import measure, program
from nrm_graph.store.read.conditions import check_name, create, undropped
from nrm_graph.store.write import dropping
from nrm_graph.store.write.writer import Writer
from nrm_graph.tables import pruning
from nrm_graph.tables.arrow import blocks_of, edge_rows, with_left_out
from nrm_graph.tables.rounding import rounded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from nrm_graph.measures.measure import Measure
    from nrm_graph.store.format.manifest import Entry
    from nrm_graph.store.view import View
    from nrm_graph.tables.bounded import Kept
    from nrm_graph.tables.edge_block import Block
    from nrm_graph.tables.pruning import Limit


def materialize(
    db: View,
    event: Event,
    *,
    name: str,
    where: str | None = None,
    inputs: Sequence[str | int] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> None:
    """Store the tables of many inputs, conditioned on an event, for SQL.

    They become ``<name>_nodes`` and ``<name>_edges``, with the columns of ``nodes`` and
    ``edges``, where a relevance is R(node and event) / R(event); and ``<name>_inputs``, with
    ``input_id``, ``relevance`` (R(event)), its ``error``, ``amplification``, ``absorbed``,
    ``status`` (``defined`` or ``undefined``) and ``reason``.  Inputs of which R(event) is below
    rounding are undefined: they have no nodes and edges, and ``reason`` says why.

    The same call again goes on where the last one stopped, and adds inputs that were
    extracted since; several processes may do so at once.

    Parameters
    ----------
    db : Database
        The store.
    event : Event
        The condition.
    name : str
        At most 60 ASCII letters, digits and underscores, a letter first; unlike the names
        of other conditions, letter case ignored.
    where : str, optional
        SQL condition over ``inputs`` that chooses the inputs; all by default.  Part of the
        condition, as the event is.
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
        If the name cannot be used, no input is chosen, one is not there, or the store keeps no
        tensors.
    EventError
        If the event does not fit the network.
    QueryError
        If ``where`` is not one SQL condition over ``inputs``.
    StoreError
        If the name has another event or ``where``, or the store is damaged.
    SystemExit
        At SIGTERM and SIGHUP; what is computed is committed first, as at Ctrl-C.

    Notes
    -----
    Units, pruning and rounding are those of the store: as many edges of an input at most, or of a
    pair of layers the same coverage and number of edges, of the conditioned relevance; the rest
    stands in rows of the pseudo-unit -3.  ``<name>_thresholds`` is as ``thresholds``.
    """
    try:
        check_name(name)
        event = checked(event)
        expand(event, db.topology, db.partitions)  # whether it fits the network
        chosen = _chosen(db, where, inputs)
        form = stored_form(db)
        if chosen:
            _check_first(db, chosen[0], device)
        meter = Progress(f"materialize {name}", len(chosen), "inputs", progress)
        with ending_in_order(), contextlib.ExitStack() as stack:
            stack.enter_context(undropped(db.path, name))
            folder = create(db.path, db.meta, name, event, where)
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


def conditions(db: View) -> pa.Table:
    """Conditions that were materialized, one row each.

    Returns
    -------
    pyarrow.Table
        Columns ``name``, ``event``, ``where``, ``inputs`` (their number), ``undefined`` (of
        how many R(event) is below rounding) and ``mean_relevance`` (of R(event)).
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
                "event": repr(condition.event),
                "where": condition.where,
                "inputs": inputs,
                "undefined": undefined,
                "mean_relevance": mean,
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


def _add(writer: Writer, m: Measure, entry: Entry, event: Event, form: TableForm) -> None:
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
        conditional = m.given(event)
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


def _undefined(m: Measure, event: Event, reason: str) -> dict[str, Any]:
    relevance = float(m(event))
    return {
        "relevance": relevance if math.isfinite(relevance) else None,
        "error": None,
        "amplification": None,
        "absorbed": None,
        "status": "undefined",
        # Text of others may hold anything; what UTF-8 cannot hold is escaped.
        "reason": reason.encode("utf-8", "backslashreplace").decode()[:MAX_ERROR],
    }


@dataclass(frozen=True)
class TableForm:
    """How the store keeps tables: limits of pairs of layers, and mantissa bits of edges."""

    limits: Mapping[tuple[int, int], Limit]
    most: int | None
    bits: int | None

    def tables(
        self, m: Measure, event: Event | None = None
    ) -> tuple[pa.Table, pa.Table, Kept | None]:
        """Tables of a measure, pruned and rounded as the store's own are, and what was kept.

        With an event they are joint with it, as of :meth:`Measure.tables`.
        """
        kept: Kept | None = None
        if self.most is None:
            nodes, edges = m.tables(event)
            if self.limits:
                nodes, edges = _pruned(nodes, edges, self.limits)
        else:
            from nrm_graph.measures.edge_tables import bounded_tables

            nodes, edges, kept = bounded_tables(m, self.most, event)
        return nodes, edges if self.bits is None else rounded(edges, self.bits), kept


def stored_form(db: View) -> TableForm:
    """Limits and rounding of a store's tables.

    Raises
    ------
    StoreError
        If ``store.json`` is malformed.
    """
    limits, most = pruning.stored(db.meta, db.topology), db.meta.get("max_edges")
    return TableForm(limits, most, db.meta["mantissa_bits"])


def _pruned(
    nodes: pa.Table, edges: pa.Table, limits: Mapping[tuple[int, int], Limit]
) -> tuple[pa.Table, pa.Table]:
    """Keep the strongest edges of the pairs of layers that have a limit."""
    blocks: list[Block] = []
    lost: dict[int, float] = {}
    for block in blocks_of(edges):
        limit = limits.get((block.dst_layer, block.src_layer))
        if limit is not None:
            block = pruning.prune(block, limit)
            removed = block.relevance[(block.src == PRUNED) & (block.dst >= 0)]
            before = lost.get(block.dst_layer, 0.0)
            lost[block.dst_layer] = before + float(removed.sum(dtype=np.float64))
        blocks.append(block)
    kind = edges.schema.field("relevance").type.to_pandas_dtype()
    return with_left_out(nodes, lost), edge_rows(blocks, kind)
