"""Units that are asked for at query time, coarser than those that tables hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.network.units import RESOLUTIONS, automatic, partition

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.network.topology import LayerInfo, Topology
    from nrm_graph.network.unit_names import UnitKind
    from nrm_graph.network.units import Partition, Resolution

    By = str | Mapping[str, Resolution]
    """Units that are asked for: of all layers of a kind, or by layer."""


@dataclass(frozen=True, eq=False)
class GroupedUnits:
    """Units of every layer, some of which are made of several that tables hold.

    Attributes
    ----------
    partitions : tuple of Partition
        By ``layer_id``.
    into : mapping of int to ndarray of int, (units that tables hold,)
        Of the layers where they differ, the unit that each becomes part of.
    names : mapping of str to str
        What the units of these layers are.
    """

    partitions: tuple[Partition, ...]
    into: Mapping[int, npt.NDArray[np.int32]]
    names: Mapping[str, str]

    def sizes(self, layer_id: int) -> npt.NDArray[np.int64]:
        """How many units that tables hold each unit of a layer is made of."""
        units: npt.NDArray[np.int64]
        if layer_id in self.into:
            units = np.bincount(self.into[layer_id], minlength=self.partitions[layer_id].n_units)
        else:
            units = np.ones(self.partitions[layer_id].n_units, np.int64)
        return units


def asked_units(
    topology: Topology, partitions: Sequence[Partition], by: By
) -> tuple[Partition, ...]:
    """Units of every layer, those that are asked for in the place of others.

    Parameters
    ----------
    topology : Topology
        The network.
    partitions : sequence of Partition
        Units of the layers of which nothing is said.
    by : str or mapping of layer name to str or array
        ``channel`` of maps, ``feature`` or ``token`` of sequences, ``head`` of attention, or
        ``neuron`` of all layers, those of other kinds staying as they are; ``auto``, which of
        these is usual of each layer of a large network; or what each layer that is named is
        divided into, as :func:`nrm_graph.network.units.partition` takes it.

    Raises
    ------
    InputError
        If the units are unknown, or no layer has such.
    """
    units = list(partitions)

    def divide(layer: LayerInfo, asked: Resolution) -> None:
        held = units[layer.layer_id]
        if not isinstance(asked, str) or asked != held.resolution:
            units[layer.layer_id] = partition(layer, asked)

    if isinstance(by, Mapping):
        for name, asked in by.items():
            divide(topology.layer(name), asked)
        return tuple(units)
    if isinstance(by, str) and by == "auto":
        for layer, usual in zip(topology.layers, automatic(topology), strict=True):
            divide(layer, usual)
        return tuple(units)
    if not isinstance(by, str) or by not in RESOLUTIONS:
        raise InputError(
            f"by must be one of {', '.join(RESOLUTIONS)}, auto, or a mapping of layer name to one "
            f"of these or an integer array, found {by!r:.100}"
        )
    kind = "feature" if by == "token" else by
    for layer, usual in zip(topology.layers, automatic(topology), strict=True):
        if by == "neuron" or (usual == kind and len(layer.shape) > 1):
            divide(layer, by)
    if by != "neuron" and kind not in automatic(topology):
        raise InputError(
            f"by={by!r}: no layer of the network has such units; expected a mapping of layer name "
            "to units, or one of "
            f"{', '.join(sorted({'neuron', *automatic(topology)}))}"
        )
    return tuple(units)


def kinds_of(partitions: Sequence[Partition], held: Sequence[Partition]) -> tuple[UnitKind, ...]:
    """Kinds of units that are asked for; events know custom ones where they are those held."""
    return tuple(
        replace(part.kind, spelled=part.resolution != "custom" or part is own)
        for part, own in zip(partitions, held, strict=True)
    )


def grouped_units(
    topology: Topology, partitions: Sequence[Partition], by: By | None
) -> GroupedUnits | None:
    """Units that are asked for, where they are not those that tables hold; else None.

    Parameters
    ----------
    topology : Topology
        The network.
    partitions : sequence of Partition
        Units that tables hold.
    by : str or mapping, optional
        As of :func:`asked_units`; None for those that tables hold.

    Raises
    ------
    InputError
        If a unit that tables hold lies in several that are asked for.
    """
    if by is None:
        return None
    asked = list(asked_units(topology, partitions, by))
    into, names = {}, {}
    for layer, held, wanted in zip(topology.layers, partitions, asked.copy(), strict=True):
        if held.resolution == wanted.resolution != "custom":
            continue
        becomes = np.zeros(held.n_units, np.int32)
        becomes[held.labels.ravel()] = wanted.labels.ravel()
        if not np.array_equal(becomes[held.labels], wanted.labels):
            raise InputError(
                f"units of {layer.name} are of the kind {held.resolution!r} in the tables, which "
                f"cannot be summed to {wanted.resolution!r}: a unit lies in several; "
                "db.measure(key) answers for any units, as does a store with another resolution="
            )
        if not np.array_equal(becomes, np.arange(held.n_units)):
            into[layer.layer_id], names[layer.name] = becomes, wanted.resolution
        else:
            asked[layer.layer_id] = replace(wanted, names=held.names, outputs=held.outputs)
    return GroupedUnits(tuple(asked), into, names) if into else None
