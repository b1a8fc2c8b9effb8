"""Reduced tables on record: what was asked for, and the nodes that hold for every input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from msgspec import Meta, Struct, to_builtins

from nrm_graph.network.unit_names import watched_kind
from nrm_graph.network.units import whole_units
from nrm_graph.store.format.json_file import Sha256, Text
from nrm_graph.store.format.recorded_nodes import (
    FileRecord,
    LayerNodes,
    LayerRecord,
    check_file,
    read_nodes,
    write_nodes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.unit_names import UnitKind
    from nrm_graph.network.units import Partition

VERSION = 2
"""Of ``condition.json`` of reduced tables, which a reader of version 1 alone has no form for."""

WATCHED = pa.schema(
    [
        ("layer_id", pa.int16()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("resolution", pa.string()),
        ("nodes", pa.int32()),
        ("share", pa.float64()),
    ]
)
"""The table ``<name>_layers``."""

Names = Annotated[list[Any], Meta(min_length=1)]


class Asked(Struct, frozen=True, forbid_unknown_fields=True):
    """What nodes were asked for: names or neuron sets, units, and their number."""

    watch: Names
    by: Text | dict[str, Text]
    nodes: int | dict[str, int] | None


class StoredReduced(Struct, forbid_unknown_fields=True):
    """Content of ``condition.json`` of reduced tables; see :mod:`nrm_graph.store`."""

    format_version: int
    name: str
    event: Any
    where: Text | None
    program_hash: Sha256
    store: Sha256
    asked: Asked
    layers: Annotated[list[LayerRecord], Meta(min_length=1, max_length=1 << 15)]
    file: FileRecord
    seal: str


@dataclass(frozen=True, eq=False)
class RecordedNodes:
    """Nodes of the reduced tables of one name.

    Attributes
    ----------
    folder : Path
        The condition's folder.
    layers : tuple of LayerRecord
        Watched layers, from the output to the input.
    file : FileRecord
        Their labels.
    infos : tuple of LayerInfo
        Layers of the network.
    """

    folder: Path
    layers: tuple[LayerRecord, ...]
    file: FileRecord
    infos: tuple[LayerInfo, ...]

    @property
    def count(self) -> int:
        """Number of nodes."""
        return sum(layer.nodes for layer in self.layers)

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the watched layers, from the output to the input."""
        return tuple(layer.layer_id for layer in self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the watched layers, from the output to the input."""
        return tuple(self.infos[i].name for i in self.ids)

    @cached_property
    def labels(self) -> tuple[LayerNodes, ...]:
        """Node of every neuron of the watched layers.

        Raises
        ------
        StoreError
            If the file is damaged.
        """
        return read_nodes(self.folder, self.layers, self.file, self.infos)

    def kinds(self, usual: Sequence[Partition]) -> tuple[UnitKind, ...]:
        """Return what the units of every layer are: of watched layers, those of the nodes."""
        kinds = [part.kind for part in usual]
        for layer in self.labels:
            i = layer.info.layer_id
            spelled = whole_units(layer.info, layer.resolution, layer.labels, usual[i])
            kinds[i] = watched_kind(kinds[i], layer.resolution, spelled)
        return tuple(kinds)

    def table(self) -> pa.Table:
        """Return the table ``<name>_layers``."""
        rows = []
        for layer in sorted(self.layers, key=lambda layer: layer.layer_id):
            info = self.infos[layer.layer_id]
            own = {"name": info.name, "kind": info.kind, "shape": list(info.shape)}
            rows.append(to_builtins(layer) | own)
        return pa.Table.from_pylist(rows, WATCHED)


@dataclass(frozen=True)
class Proposal:
    """What reduced tables are asked for, and how to choose nodes where none are on record.

    Attributes
    ----------
    asked : mapping
        As :class:`Asked`.
    choose : callable
        Returns nodes of the watched layers, from the output to the input.
    """

    asked: Mapping[str, Any]
    choose: Callable[[], Sequence[LayerNodes]]

    def content(self, folder: Path) -> dict[str, Any]:
        """Choose nodes and write their labels; what ``condition.json`` says of them.

        Raises
        ------
        OSError
            If the disk fails.
        """
        layers = self.choose()
        file = write_nodes(folder, layers)
        records = [to_builtins(layer.record) for layer in layers]
        return {"layers": records, "file": to_builtins(file)}


def recorded(folder: Path, stored: StoredReduced, infos: Sequence[LayerInfo]) -> RecordedNodes:
    """Nodes of a condition, whose file is there.

    Raises
    ------
    StoreError
        If it is not, or is of another size.
    """
    check_file(folder, stored.file)
    return RecordedNodes(folder, tuple(stored.layers), stored.file, tuple(infos))
