"""Chosen edges of many inputs, computed from a store's own program and tensors.

What is computed stays with the opened database, so that a call that was interrupted goes on where
it stopped; nothing is written to the store, whose files are those of its format alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.events import serialization
from nrm_graph.events.conjunctions import expand
from nrm_graph.network.units import compact
from nrm_graph.progress import Progress
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.output_weights import initial_relevance
from nrm_graph.store.program_files import sound
from nrm_graph.store.stored_measure import batch_of, compare, network_of
from nrm_graph.tables.picked_edges import picked_edges
from nrm_graph.tables.picks import picks
from nrm_graph.tables.plan import plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.events.sets import Event
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.view import View
    from nrm_graph.tables.plan import Plan

BATCH_NUMBERS = 1 << 25
"""Activations of a batch, about: what one input has more of is a batch of its own."""

REMEMBERED = 1 << 27
"""Numbers that an opened database keeps; beyond them those of earlier calls are dropped."""


def computed_edges(
    db: View,
    chosen: InputGroup,
    edges: Mapping[str, npt.NDArray[np.int64]],
    event: Event | None = None,
    partitions: tuple[Partition, ...] | None = None,
) -> npt.NDArray[np.float64]:
    """Relevance of edges for every input of a group, whether they are stored or not.

    Parameters
    ----------
    db : View
        The store.
    chosen : InputGroup
        N inputs.
    edges : mapping of str to ndarray of int, (E,)
        ``dst_layer``, ``dst_unit``, ``src_layer``, ``src_unit``; no pseudo-units.
    event : Event, optional
        Give R(edge & event).
    partitions : tuple of Partition, optional
        Units that edges join; those of the store by default.

    Returns
    -------
    ndarray of float64, (N, E)
        0 where an edge is none.

    Raises
    ------
    InputError
        If the store keeps no tensors.
    StoreError
        If the store is damaged.
    """
    known = _remembered(db, edges, event, partitions)
    missing = chosen.take(np.flatnonzero([i not in known for i in chosen.ids.tolist()]))
    if len(missing):
        net, kind = _network(db, missing)
        columns = (edges[name] for name in ("dst_layer", "dst_unit", "src_layer", "src_unit"))
        units = replace(plan(net, partitions or db.partitions), picks=picks(*columns))
        terms: list[tuple[int, Clause]] = [(1, {})]
        if event is not None:
            terms = expand(event, db.topology, db.partitions)
        size = _batch(net)
        with Progress("exact edges", len(missing), "inputs") as meter:
            for first in range(0, len(missing), size):
                part = missing.take(np.arange(first, min(first + size, len(missing))))
                known.update(
                    zip(part.ids.tolist(), _computed(db, part, units, terms, kind), strict=True)
                )
                meter.advance(len(part))
    return np.array([known[i] for i in chosen.ids.tolist()]).reshape(len(chosen), -1)


def _remembered(
    db: View,
    edges: Mapping[str, npt.NDArray[np.int64]],
    event: Event | None,
    partitions: tuple[Partition, ...] | None,
) -> dict[int, npt.NDArray[np.float64]]:
    """Numbers of the same edges that were computed before, by input; the earliest go first."""
    asked = None if event is None else serialization.to_json(event)
    digest = hashlib.sha256(json.dumps(asked).encode())
    for name in sorted(edges):
        digest.update(edges[name].astype("<i8").tobytes())
    for part in partitions or ():
        digest.update(compact(part.labels).astype("<i4").tobytes())
    name = digest.hexdigest()
    known = db._exact.pop(name, {})
    held = [sum(map(len, rows.values())) for rows in db._exact.values()]
    while sum(held) > REMEMBERED:
        db._exact.pop(next(iter(db._exact)))
        held.pop(0)
    db._exact[name] = known
    return known


def _network(db: View, chosen: InputGroup) -> tuple[Network, torch.dtype | None]:
    """Return the stored network in the precision of the stored inputs, and which that is."""
    try:
        xs = batch_of(db, chosen.ids[:1].tolist())
    except InputError as error:
        raise InputError(
            f"exact edges are computed from the inputs themselves: {error}; extract with "
            "tensors='keep', or leave exact=True out"
        ) from None
    kind = next((x.dtype for x in xs if x.is_floating_point()), None)
    return network_of(db, kind, torch.device("cpu")), kind


def _batch(net: Network) -> int:
    """Return the number of inputs of a batch."""
    numbers = sum(math.prod(shape) for shape in net.program.shapes().values())
    return max(1, min(16, BATCH_NUMBERS // max(1, numbers)))


def _computed(
    db: View,
    part: InputGroup,
    units: Plan,
    terms: list[tuple[int, Clause]],
    kind: torch.dtype | None,
) -> npt.NDArray[np.float64]:
    """Compute the edges of a batch of inputs."""
    xs = (x.to(kind) if x.is_floating_point() else x for x in batch_of(db, part.ids.tolist()))
    with sound(db.path):
        state = forward(units.network, tuple(xs))
        outputs = state.output.shape[1]
        weights = torch.from_numpy(part.seeds(0, len(part), outputs))
        if weights.ndim == 1:
            weights = torch.nn.functional.one_hot(weights, outputs)
        start = initial_relevance(state, weights.to(state.output))
        for identity, row in zip(part.ids.tolist(), state.output, strict=True):
            compare(db, identity, row)
        values = np.zeros((len(part), units.picks.count if units.picks else 0))
        for coefficient, clause in terms:
            values += picked_edges(state, start * coefficient, units, clause)
    return values
