"""Reduced tables of many inputs: nodes chosen once for all of them, and the rows of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError, StoreError, UndefinedConditional
from nrm_graph.events.serialization import to_json
from nrm_graph.measures.joint import NeuronGroups
from nrm_graph.measures.reduced.nodes import (
    Layers,
    WatchedLayer,
    chosen_nodes,
    listed,
    node_sizes,
    numbers_of_nodes,
    shares_held,
)
from nrm_graph.measures.reduced.reduced import of_watched
from nrm_graph.measures.reduced.tables import with_ends
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.progress import Progress
from nrm_graph.store.format.recorded_nodes import LayerNodes, without_repetition
from nrm_graph.store.format.schema import content_hash
from nrm_graph.store.measure import measure
from nrm_graph.store.read.reduced import Proposal

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from nrm_graph.events.sets import Event
    from nrm_graph.measures.measure import Measure
    from nrm_graph.measures.reduced.nodes import Budget, By, Watch
    from nrm_graph.network.topology import Topology
    from nrm_graph.store.format.manifest import Entry
    from nrm_graph.store.read.reduced import RecordedNodes
    from nrm_graph.store.view import View

    Sizes = list[npt.NDArray[np.float64]]


def proposed(
    db: View,
    ids: Sequence[int],
    event: Event | None,
    watch: Watch,
    by: By,
    nodes: Budget,
    device: str | torch.device,
    progress: bool,
) -> Proposal:
    """Say what is asked for, and how its nodes are chosen by all of some inputs.

    Parameters
    ----------
    db : Database
        The store.
    ids : sequence of int
        The inputs, whose mean |R| given the event decides.
    event, watch, by, nodes, device, progress
        See :func:`nrm_graph.store.materialize.materialize`.

    Raises
    ------
    InputError, EventError
        If what is asked for are no nodes of the network.
    """
    asked = _asked(db.topology, watch, by, nodes)
    if not ids:
        raise InputError(f"{db.path} holds no input to choose nodes by: extract some first")
    m = measure(db, ids[0], device=device)
    units = Layers(m.network, m.partitions).watched(_targets(db, ids), watch, by)
    numbers_of_nodes(m.topology.layers, units[1:], nodes)

    def choose() -> list[LayerNodes]:
        sizes = _stored_sizes(db, ids, units[1:]) if event is None else None
        if sizes is None:
            sizes = _computed_sizes(db, ids, event, units[1:], device, progress)
        return _chosen(m.topology, units, sizes, nodes)

    return Proposal(asked, choose)


def _asked(topology: Topology, watch: Watch, by: By, nodes: Budget) -> dict[str, Any]:
    """Write what is asked for as JSON that is equal where it is."""
    watched = listed(watch)
    whole = by if isinstance(by, Mapping) else {"": by}
    units = {
        name and topology.layer(name).name: choice if isinstance(choice, str) else _custom(choice)
        for name, choice in whole.items()
    }
    numbers = nodes
    if isinstance(nodes, Mapping):
        numbers = {topology.layer(name).name: int(count) for name, count in nodes.items()}
    return {
        "watch": [part if isinstance(part, str) else to_json(part) for part in watched],
        "by": units if isinstance(by, Mapping) else units[""],
        "nodes": numbers if numbers is None or isinstance(numbers, dict) else int(numbers),  # type: ignore[arg-type]
    }


def _custom(labels: object) -> str:
    try:
        units = np.asarray(labels)
    except ValueError:
        units = np.zeros(0, object)
    if units.dtype.kind not in "iu":
        raise InputError(
            "by takes 'unit', 'layer', a resolution, an integer array of a layer's shape, or a "
            f"mapping of layer name to these; found {labels!r:.100}"
        )
    return f"custom {content_hash(units.astype(np.int64))}"


def _chosen(
    topology: Topology, units: Sequence[WatchedLayer], sizes: Sizes, nodes: Budget
) -> list[LayerNodes]:
    """Choose nodes by their sizes; those of the target are all that any input explains."""
    first, *candidates = units
    watched = chosen_nodes(topology.layers, candidates, sizes, nodes)
    shares = shares_held(candidates, sizes, watched)
    rows = zip((first, *watched), (1.0, *shares), strict=True)
    return [_nodes(topology, layer, share) for layer, share in rows]


def _targets(db: View, ids: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Mask of the outputs that some inputs explain."""
    info = db.topology.output
    mask = np.zeros(info.n_neurons, bool)
    for identity in ids:
        mask[_explained(db, db._snapshot.entries[identity])] = True
    return mask.reshape(info.shape)


def _explained(db: View, entry: Entry) -> list[int]:
    """List the outputs that walks of an input begin at."""
    outputs = list(weights_of(entry.aim)) if isinstance(entry.aim, str) else [entry.aim]
    if not all(0 <= output < db.topology.output.n_neurons for output in outputs):
        raise StoreError(
            f"{db.path} explains the output {max(outputs)} of {entry.key!r}, of "
            f"{db.topology.output.n_neurons}: copy the store again"
        )
    return outputs


def _nodes(topology: Topology, layer: WatchedLayer, share: float) -> LayerNodes:
    labels = np.append(layer.units, np.int32(-1))[layer.groups.labels]
    info = topology.layers[layer.layer_id]
    return LayerNodes(info, layer.resolution, share, without_repetition(labels))


def _stored_sizes(db: View, ids: Sequence[int], watched: Sequence[WatchedLayer]) -> Sizes | None:
    """Mean |R| of units from the store's nodes; None where these do not add up to them."""
    places = []
    for layer in watched:
        part = db.partitions[layer.layer_id]
        labels, units = layer.groups.labels.ravel(), part.labels.ravel()
        member = np.zeros(part.n_units, np.int64)
        member[units] = np.arange(len(units))
        node = labels[member]
        if not np.array_equal(node[units], labels):
            return None
        inside = np.flatnonzero(node >= 0)
        columns = np.full(len(inside), layer.layer_id), inside, node[inside]
        places.append(pa.table(dict(zip(("layer_id", "unit", "node"), columns, strict=True))))
    sums = db.sql(
        "SELECT layer_id, node, sum(abs(r)) AS size FROM (SELECT input_id, layer_id, node, "
        "sum(CAST(relevance AS DOUBLE)) AS r FROM nodes JOIN places USING (layer_id, unit) "
        "GROUP BY input_id, layer_id, node) AS by_input GROUP BY layer_id, node",
        inputs=list(ids),
        tables={"places": pa.concat_tables(places) if places else _NO_PLACES},
    ).to_arrow_table()
    layer_id, node, size = (sums[name].to_numpy() for name in ("layer_id", "node", "size"))
    sizes = [np.zeros(layer.groups.count) for layer in watched]
    for mean, layer in zip(sizes, watched, strict=True):
        own = layer_id == layer.layer_id
        mean[node[own]] = size[own] / len(ids)
    return sizes


_NO_PLACES = pa.table({name: pa.array([], pa.int64()) for name in ("layer_id", "unit", "node")})


def _computed_sizes(
    db: View,
    ids: Sequence[int],
    event: Event | None,
    watched: Sequence[WatchedLayer],
    device: str | torch.device,
    progress: bool,
) -> Sizes:
    """Mean |R| of units, of inputs that are computed; the undefined ones do not count."""
    sizes = [np.zeros(layer.groups.count) for layer in watched]
    defined = 0
    with Progress("choose nodes", len(ids), "inputs", progress) as meter:
        for identity in ids:
            try:
                m = measure(db, identity, device=device)
                m = m if event is None else m.given(event)
            except UndefinedConditional:
                pass
            else:
                defined += 1
                for total, size in zip(sizes, node_sizes(m, watched), strict=True):
                    total += size
            meter.advance()
    if not defined:
        raise UndefinedConditional(
            f"the conditional measure given {event!r} is undefined for all {len(ids):,} inputs: "
            "no node can be chosen by it"
        )
    return [total / defined for total in sizes]


@dataclass(frozen=True, eq=False)
class ReducedForm:
    """Tables of the same nodes for every input.

    Attributes
    ----------
    recorded : RecordedNodes
        The nodes.
    """

    recorded: RecordedNodes

    @cached_property
    def watched(self) -> tuple[WatchedLayer, ...]:
        """Nodes as a measure takes them."""
        return tuple(map(_watched, self.recorded.labels))

    def tables(self, m: Measure, event: Event | None = None) -> tuple[pa.Table, pa.Table, None]:
        """Nodes, and steps with ends; joint with an event where one is given."""
        if event is not None:
            m = replace(m, terms=m._joint_terms(event))
        shares = tuple(layer.share for layer in self.recorded.layers)
        r = of_watched(m, self.watched, shares)
        return with_ends(r.nodes, r.ends), pa.concat_tables([r.edges, r.ends]), None


def _watched(layer: LayerNodes) -> WatchedLayer:
    labels = np.broadcast_to(layer.labels, layer.info.shape)
    groups = np.full(labels.shape, -1, np.int64)
    groups[labels >= 0] = np.searchsorted(layer.units, labels[labels >= 0])
    return WatchedLayer(
        NeuronGroups(layer.info.layer_id, groups, len(layer.units)), layer.units, layer.resolution
    )


def reduced_form(db: View, recorded: RecordedNodes, ids: Sequence[int]) -> ReducedForm:
    """Tables of the nodes on record, for some inputs.

    Raises
    ------
    InputError
        If one of these explains an output that is no node.
    """
    known = set(recorded.labels[0].units.tolist())
    for identity in ids:
        entry = db._snapshot.entries[identity]
        other = set(_explained(db, entry)) - known
        if other:
            listed = ", ".join(map(str, sorted(known)[:10]))
            raise InputError(
                f"{entry.key!r} explains the output {min(other)}, and the target nodes on record, "
                f"of the inputs when nodes were chosen, are {listed}: use another name for all, or "
                "inputs= for the others"
            )
    return ReducedForm(recorded)
