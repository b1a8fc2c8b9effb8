"""Nodes of reduced tables: the node of every neuron of a watched layer, in a safetensors file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import safetensors.numpy
from msgspec import Meta, Struct

from nrm_graph.errors import StoreError
from nrm_graph.network.units import RESOLUTIONS, compact, partition
from nrm_graph.store.format.files import create_once, file_size, sha256_of
from nrm_graph.store.format.json_file import Count, Sha256
from nrm_graph.store.format.settings import Int15, checked_tensor_file, described_file
from nrm_graph.store.format.tensor_file import tensor_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.store.format.json_file import JsonFile

HEADER_BYTES = 4096
"""What the header of such a file may hold beside 200 bytes for each layer."""

Kind = Annotated[str, Meta(pattern=rf"^({'|'.join((*RESOLUTIONS, 'layer', 'custom'))})\Z")]


class LayerRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``condition.json`` says of a watched layer.

    Attributes
    ----------
    layer_id : int
        The layer.
    resolution : str
        What its units are: a resolution, ``layer`` (all of it is one) or ``custom``.
    nodes : int
        How many units are nodes.
    share : float
        Share of the sum of |R| over all units, in the mean over inputs, that they held when they
        were chosen.
    """

    layer_id: Int15
    resolution: Kind
    nodes: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    share: Annotated[float, Meta(ge=0, le=1)]


class FileRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and SHA-256 of the file of labels."""

    size: Count
    sha256: Sha256

    @property
    def name(self) -> str:
        """Name of the file: what another process proposed never stands in its place."""
        return f"nodes-{self.sha256[:16]}.safetensors"


@dataclass(frozen=True, eq=False)
class LayerNodes:
    """Nodes of a watched layer.

    Attributes
    ----------
    info : LayerInfo
        The layer.
    resolution : str
        What units are.
    share : float
        See :class:`LayerRecord`.
    labels : ndarray of int32
        Unit of every neuron, -1 of those that are not watched; of length 1 along axes on which
        labels repeat.
    """

    info: LayerInfo
    resolution: str
    share: float
    labels: npt.NDArray[np.int32]

    @cached_property
    def units(self) -> npt.NDArray[np.int32]:
        """Units that are nodes, in order."""
        units: npt.NDArray[np.int32] = np.unique(self.labels[self.labels >= 0])
        return units

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Neurons of every node, in the order of units."""
        _, counts = np.unique(self.labels[self.labels >= 0], return_counts=True)
        repeated = math.prod(self.info.shape) // max(self.labels.size, 1)
        sizes: npt.NDArray[np.int64] = counts * repeated
        return sizes

    @property
    def record(self) -> LayerRecord:
        """What ``condition.json`` says of it."""
        return LayerRecord(self.info.layer_id, self.resolution, len(self.units), self.share)


def without_repetition(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return labels with a length of 1 along every axis on which they repeat.

    >>> without_repetition(np.array([[3, 3], [-1, -1]])).tolist()
    [[3], [-1]]
    """
    for axis in range(labels.ndim):
        first = labels.take(range(min(1, labels.shape[axis])), axis)
        if first.size and (labels == first).all():
            labels = first
    return labels


def write_nodes(folder: Path, layers: Sequence[LayerNodes]) -> FileRecord:
    """Write the labels of watched layers to a condition's folder.

    Raises
    ------
    OSError
        If the disk fails.
    """
    parts = tensor_file({str(layer.info.layer_id): layer.labels for layer in layers})
    described = described_file(parts)
    record = FileRecord(int(str(described["size"])), str(described["sha256"]))
    path = folder / record.name
    if not create_once(path, *parts):
        path.touch()  # of a condition that was dropped: young again, so that no one deletes it
    return record


def check_records(
    json: JsonFile, layers: Sequence[LayerRecord], file: FileRecord, infos: Sequence[LayerInfo]
) -> None:
    """Refuse watched layers that a network has not, and files larger than their labels can be.

    Raises
    ------
    StoreError
        Naming the place.
    """
    ids = [layer.layer_id for layer in layers]
    descending = all(a > b for a, b in pairwise(ids))
    expected = f"of layers from the output, {len(infos) - 1}, downwards"
    json.expect(ids[:1] == [len(infos) - 1] and descending, "layers", expected, ids)
    for place, layer in enumerate(layers):
        neurons = infos[layer.layer_id].n_neurons
        json.expect(
            layer.nodes <= neurons, f"layers[{place}].nodes", f"at most {neurons}", layer.nodes
        )
    most = HEADER_BYTES + sum(200 + 4 * infos[i].n_neurons for i in ids)
    json.expect(file.size <= most, "file.size", f"at most {most}", file.size)


def check_file(folder: Path, file: FileRecord) -> None:
    """Refuse a file of labels that is missing, or of another size.

    Raises
    ------
    StoreError
        If it is.
    """
    size = file_size(folder / file.name)
    if size != file.size:
        raise StoreError(
            f"expected {folder / file.name} to hold {file.size} bytes, found {size}; the file was "
            "truncated or changed: copy the store again"
        )


def read_nodes(
    folder: Path, layers: Sequence[LayerRecord], file: FileRecord, infos: Sequence[LayerInfo]
) -> tuple[LayerNodes, ...]:
    """Read the labels of watched layers; nothing in the file is trusted.

    Raises
    ------
    StoreError
        If it is not the one on record, or its labels are no nodes of these layers.
    """
    path = folder / file.name
    check_file(folder, file)
    try:
        if sha256_of(path) != file.sha256:
            raise StoreError(f"{path} is not the file on record: it was changed; copy it again")
        tensors = safetensors.numpy.load_file(checked_tensor_file(path))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}; copy it again") from error
    expected = [str(layer.layer_id) for layer in layers]
    if sorted(tensors) != sorted(expected):
        raise StoreError(
            f"{path} holds the layers {sorted(tensors)[:10]}, expected {expected[:10]}; do not "
            "trust it"
        )
    chosen = []
    for layer in layers:
        info, labels = infos[layer.layer_id], tensors[str(layer.layer_id)]
        problem = _problem(labels, layer, info)
        if problem:
            raise StoreError(f"{path}: the nodes of {info.name} {problem}; do not trust it")
        chosen.append(LayerNodes(info, layer.resolution, layer.share, labels))
    return tuple(chosen)


def _problem(labels: npt.NDArray[Any], layer: LayerRecord, info: LayerInfo) -> str | None:
    """Say why labels are none of a layer, or None if they are."""
    shape = info.shape
    fits = len(labels.shape) == len(shape) and all(
        n in (1, m) for n, m in zip(labels.shape, shape, strict=True)
    )
    if labels.dtype != np.int32 or not fits or not labels.size:
        return (
            f"are {labels.dtype} of shape {labels.shape}, expected int32 of shape {shape}, or of "
            "length 1 along axes on which they repeat"
        )
    if labels.min() < -1 or labels.max() >= info.n_neurons:
        return f"are labels from {labels.min()} to {labels.max()}, expected units or -1"
    watched = labels >= 0
    if len(np.unique(labels[watched])) != layer.nodes:
        return f"are {len(np.unique(labels[watched]))}, expected {layer.nodes}"
    if layer.resolution in RESOLUTIONS:
        units = compact(partition(info, layer.resolution).labels)
        if ((labels != units) & watched).any():
            return f"hold neurons of other units than a {layer.resolution} does"
    elif layer.resolution == "layer" and labels.any(where=watched):
        return "hold another unit than the whole layer, 0"
    return None
