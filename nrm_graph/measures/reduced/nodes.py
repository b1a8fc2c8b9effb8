"""Which neurons a reduced graph watches, and in which groups: its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import EventError, InputError
from nrm_graph.events.sets import NeuronSet
from nrm_graph.measures.joint import NeuronGroups
from nrm_graph.network.copies import copies
from nrm_graph.network.units import Partition, partition, whole_units
from nrm_graph.network.watched_layers import automatic, matching

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.network.topology import LayerInfo, Topology
    from nrm_graph.network.units import Resolution
    from nrm_graph.propagation.prepared_network import Network

    Watch = str | NeuronSet | Sequence[str | NeuronSet]
    By = Resolution | Mapping[str, Resolution]
    Budget = int | Mapping[str, int] | None

AUTOMATIC = "auto"
POSITION = "position"
"""Units of language models: heads and embeddings by position, neurons elsewhere."""


@dataclass(frozen=True, eq=False)
class WatchedLayer:
    """Neurons of one layer that are watched, in nodes.

    Attributes
    ----------
    groups : NeuronGroups
        Node of every neuron, numbered within the layer; -1 where it is not watched.
    units : ndarray of int32, (nodes,)
        Unit of every node under the resolution.
    resolution : str
        What units are.
    """

    groups: NeuronGroups
    units: npt.NDArray[np.int32]
    resolution: str

    @property
    def layer_id(self) -> int:
        """The layer."""
        return self.groups.layer_id

    def holds_whole_units(self, info: LayerInfo, held: Partition) -> bool:
        """Whether every node is all of a unit; ``held`` are those that events know by number."""
        units = np.append(self.units, -1)[self.groups.labels]
        return whole_units(info, self.resolution, units, held)

    def only(self, nodes: npt.NDArray[np.bool_]) -> WatchedLayer:
        """Watch some of the nodes alone."""
        numbers = np.append(np.where(nodes, np.cumsum(nodes) - 1, -1), -1).astype(np.int32)
        groups = replace(
            self.groups, labels=numbers[self.groups.labels], count=int(np.count_nonzero(nodes))
        )
        return WatchedLayer(groups, self.units[nodes], self.resolution)


def listed(watch: Watch) -> list[str | NeuronSet]:
    """Return what is watched, as a list.

    Raises
    ------
    EventError
        If it is neither names nor neuron sets.
    """
    parts = [watch] if isinstance(watch, str | NeuronSet) else watch
    if isinstance(parts, Sequence) and parts:
        asked = list(parts)
        if all(isinstance(part, str | NeuronSet) for part in asked):
            return asked
    raise EventError(
        "watch takes 'auto', layer names, patterns such as 'layer?.?', or neuron sets; found "
        f"{watch!r}"
    )


def watched_layers(
    measure: Algebra, watch: Watch = AUTOMATIC, by: By = "unit"
) -> tuple[WatchedLayer, ...]:
    """Find all units that may be nodes, layer by layer from the output to the input.

    The neurons of the target are the first; of two layers of which one merely copies the other,
    the lower is watched.  Of networks with attention that embed ids, ``auto`` adds the embeddings,
    and units are, if nothing is said of them, those of :data:`POSITION`.
    """
    topology = measure.topology
    if watch == AUTOMATIC and _reads_tokens(topology):
        ids = (*automatic(topology), *(info.layer_id for info in topology.inputs))
        watch = [topology.layers[i].name for i in ids]
        by = POSITION if isinstance(by, str) and by == "unit" else by
    target = measure.weights.cpu().numpy().reshape(measure.topology.output.shape) != 0
    return Layers(measure.network, measure.partitions).watched(target, watch, by)


def _reads_tokens(topology: Topology) -> bool:
    """Whether a network embeds ids, and mixes them by attention."""
    attends = any(layer.kind == "attention" for layer in topology.layers)
    return attends and all(info.kind == "embedding" for info in topology.inputs)


@dataclass(frozen=True)
class Layers:
    """What units of a network are found from, whatever its input.

    Attributes
    ----------
    network : Network
        The network.
    partitions : tuple of Partition
        What a unit is, by ``layer_id``.
    """

    network: Network
    partitions: tuple[Partition, ...]

    @property
    def topology(self) -> Topology:
        """Layers and edge groups of the network."""
        return self.network.layout.topology

    def watched(
        self, target: npt.NDArray[np.bool_], watch: Watch = AUTOMATIC, by: By = "unit"
    ) -> tuple[WatchedLayer, ...]:
        """Find all units that may be nodes; see :func:`watched_layers`.

        ``target`` is a mask of the output's neurons that walks begin at.
        """
        topology, output = self.topology, self.topology.output
        sets: dict[int, npt.NDArray[np.bool_]] = {}
        for layer_id, mask in self._asked(watch):
            if layer_id in sets and (sets[layer_id] & mask).any():
                raise EventError(
                    f"watched sets of one layer must be disjoint: those of "
                    f"{topology.layers[layer_id].name} share "
                    f"{int((sets[layer_id] & mask).sum())} neurons"
                )
            sets[layer_id] = sets[layer_id] | mask if layer_id in sets else mask
        copied = copies(self.network.program, self.network.layout)
        below = copied.get(output.layer_id)
        if below in sets:  # the target is that neuron of the other layer
            sets[below] &= ~target.reshape(sets[below].shape)
        chosen = [
            i
            for i, mask in sorted(sets.items(), reverse=True)
            if i != output.layer_id and mask.any() and copied.get(i) not in sets
        ]
        parts = self._partitions(by, chosen)
        first = _divided(output.layer_id, target, partition(output, "neuron"))
        return (first, *(_divided(i, sets[i], parts[i]) for i in chosen))

    def _asked(self, watch: Watch) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        """Layers and masks of what is asked for."""
        topology = self.topology
        asked = listed(watch)
        names = [part for part in asked if isinstance(part, str)]
        ids = automatic(topology) if names == [AUTOMATIC] else matching(topology, names)
        whole = [(i, np.ones(topology.layers[i].shape, bool)) for i in ids]
        for part in asked:
            if isinstance(part, NeuronSet):
                info = topology.layer(part.layer)
                mask = part.mask(info.shape, self.partitions[info.layer_id])
                whole.append((info.layer_id, mask))
        return whole

    def _partitions(self, by: By, layers: Sequence[int]) -> dict[int, Partition]:
        """Units of the layers that are watched."""
        infos = [self.topology.layers[i] for i in layers]
        if not isinstance(by, Mapping):
            return {info.layer_id: self._units(info, by) for info in infos}
        named = {self.topology.layer(name).layer_id: choice for name, choice in by.items()}
        if unknown := named.keys() - set(layers):
            name = self.topology.layers[min(unknown)].name
            raise InputError(f"by names the layer {name}, which is not watched")
        return {i.layer_id: self._units(i, named.get(i.layer_id, "unit")) for i in infos}

    def _units(self, info: LayerInfo, by: Resolution) -> Partition:
        if isinstance(by, str) and by == "unit":
            return self.partitions[info.layer_id]
        if isinstance(by, str) and by == POSITION:
            return partition(info, "token" if info.kind in ("attention", "embedding") else "neuron")
        if isinstance(by, str) and by == "layer":
            return Partition("layer", np.broadcast_to(np.zeros((), np.int32), info.shape), 1)
        return partition(info, by)


def _divided(layer_id: int, mask: npt.NDArray[np.bool_], part: Partition) -> WatchedLayer:
    units, place = np.unique(part.labels[mask], return_inverse=True)
    labels = np.full(mask.shape, -1, np.int32)
    labels[mask] = place.ravel()
    groups = NeuronGroups(layer_id, labels, len(units))
    return WatchedLayer(groups, units.astype(np.int32), part.resolution)


def node_sizes(measure: Algebra, watched: Sequence[WatchedLayer]) -> list[npt.NDArray[np.float64]]:
    """Give the |R| of every node, layer by layer."""
    sizes = []
    for layer in watched:
        relevance = measure._relevance(measure.topology.layers[layer.layer_id])[None].double()
        sizes.append(np.abs(layer.groups.sums(relevance)[0].cpu().numpy()))
    return sizes


def chosen_nodes(
    layers: Sequence[LayerInfo],
    watched: Sequence[WatchedLayer],
    sizes: Sequence[npt.NDArray[np.float64]],
    nodes: Budget,
) -> tuple[WatchedLayer, ...]:
    """Choose nodes by the sizes of all units.

    Parameters
    ----------
    layers : sequence of LayerInfo
        Of the network.
    watched : sequence of WatchedLayer
        All that may be nodes, without the target's.
    sizes : sequence of ndarray, (nodes,)
        |R| of the units of each.
    nodes : int, mapping of layer name to int, or None
        How many, shared out over the layers so that each keeps the same share of its sum of |R|;
        how many of each layer; or all.

    Notes
    -----
    A unit is chosen before another if the stronger units of its layer hold a smaller share of the
    layer's sum; of equals, that of the higher layer, then that of the smaller number.
    """
    if nodes is None or not watched:
        return tuple(watched)
    numbers = numbers_of_nodes(layers, watched, nodes)
    before, owners, units = [], [], []
    for i, size in enumerate(sizes):
        order = np.argsort(-size, kind="stable")
        order = order[size[order] > 0]
        share = np.cumsum(size[order])
        share = np.append(0.0, share[:-1])[: len(order)] / (share[-1] if len(order) else 1)
        # A layer may have millions of units, of which no more than all nodes are looked at.
        most = numbers[i] if numbers is not None else nodes
        before.append(share[:most].copy())
        units.append(order[:most].copy())
        owners.append(np.full(len(units[-1]), i))
    if numbers is not None:
        ranks = np.arange(sum(map(len, units)))
    else:
        assert isinstance(nodes, int | np.integer)
        ranks = np.lexsort([np.concatenate(owners), np.concatenate(before)])[:nodes]
    masks = [np.zeros(layer.groups.count, bool) for layer in watched]
    all_owners, all_units = np.concatenate(owners), np.concatenate(units)
    for rank in ranks.tolist():
        masks[all_owners[rank]][all_units[rank]] = True
    return tuple(layer.only(mask) for layer, mask in zip(watched, masks, strict=True) if mask.any())


def shares_held(
    candidates: Sequence[WatchedLayer],
    sizes: Sequence[npt.NDArray[np.float64]],
    watched: Sequence[WatchedLayer],
) -> list[float]:
    """Share of the sum of |R| over all units of a layer that the chosen ones hold."""
    whole = {layer.layer_id: (layer, size) for layer, size in zip(candidates, sizes, strict=True)}
    shares = []
    for layer in watched:
        every, size = whole[layer.layer_id]
        total = float(size.sum())
        held = float(size[np.isin(every.units, layer.units)].sum())
        shares.append(min(1.0, held / total) if total else 1.0)
    return shares


def numbers_of_nodes(
    layers: Sequence[LayerInfo], watched: Sequence[WatchedLayer], nodes: Budget
) -> list[int] | None:
    """Return how many nodes of every layer are asked for; None where one number is for all.

    Raises
    ------
    InputError
        If these are no numbers of nodes of the watched layers.
    """
    if nodes is None:
        return None
    counts = list(nodes.values()) if isinstance(nodes, Mapping) else [nodes]
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"nodes takes numbers of at least 1, or None for all; found {count!r}")
    if not isinstance(nodes, Mapping):
        if nodes < len(watched):
            raise InputError(
                f"nodes={nodes} is less than one of each of the {len(watched)} watched layers: "
                "take more, or name fewer layers in watch"
            )
        return None
    names = [layers[layer.layer_id].name for layer in watched]
    if sorted(nodes) != sorted(names):
        raise InputError(
            f"nodes must name every watched layer once: {', '.join(names)}; found "
            f"{', '.join(map(str, nodes))}"
        )
    return [nodes[name] for name in names]
