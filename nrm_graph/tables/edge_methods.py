"""How the edges of an operation are computed, which the units of both sides tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from nrm_graph.network.maps.average_pooling import Window
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.network.maps.linear import Dense, Jacobian, Left, Right, Scale, Spread
from nrm_graph.tables.plan import along

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.maps.linear import Map, Weighing
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.tables.unit_labels import Labels

PROBES = 64
"""Units of a side that are tried one by one rather than listing edges."""

SET_ENTRIES = 1 << 26
"""Sums over units and sets that fit in memory."""


@dataclass(frozen=True, eq=False)
class Method:
    """How the edges of an operand are computed, without listing those of single neurons.

    Attributes
    ----------
    name : str
        ``channels``: weight gradient of a convolution; ``vector``: outer product; ``features``:
        matrix product over tokens; ``up``, ``down``, ``sets`` and ``probe``: see
        :mod:`nrm_graph.tables.aggregated_edges`.
    dst, src : ndarray of int
        Units of both sides as that method takes them.
    fine : bool
        Whether edges between single neurons are among them, whose q is wanted (``up`` alone).
    """

    name: Literal["channels", "vector", "features", "up", "down", "sets", "probe"]
    dst: Labels
    src: Labels
    fine: bool = False


def edge_method(
    op: Weighing, k: int, network: Network, name: str, dst: Labels, src: Labels, fine: bool
) -> Method | None:
    """Choose how the edges of operand k are computed; None where neurons must be told apart.

    Parameters
    ----------
    dst, src : ndarray of int
        Units of the layer, and global units of the operand's elements, in their shapes.
    fine : bool
        Whether edges between single neurons are among them, whose q is wanted.
    """
    kind, batches = op.maps[k], network.layout.batches
    above, below = batches[name], batches[op.operands[k]]
    plain = above.plain and below.plain
    pair: tuple[Labels | None, Labels | None]
    if isinstance(kind, Convolution) and plain:
        pair = along(dst, 0), along(src, 0)
        if pair[0] is not None and pair[1] is not None:
            return Method("channels", pair[0], pair[1])
    elif isinstance(kind, Dense) and dst.ndim == 1 and plain:
        return Method("vector", dst, src)
    elif isinstance(kind, Dense) and above == below and above.axis < dst.ndim:
        pair = along(dst, -1), along(src, -1)
        alone = dst.size == dst.shape[-1] and src.size == src.shape[-1]
        if pair[0] is not None and pair[1] is not None and not alone:
            return Method("features", pair[0], pair[1])
    if fine and not isinstance(kind, Scale | Window):
        return None
    return _gathered(op, k, network, name, dst, src, fine)


def _gathered(
    op: Weighing, k: int, network: Network, name: str, dst: Labels, src: Labels, fine: bool
) -> Method | None:
    kind, operand, batches = op.maps[k], op.operands[k], network.layout.batches

    def native(value: str, labels: Labels) -> Labels:
        # NumPy gives a layer without axes an axis.
        whole = np.ascontiguousarray(labels).reshape(labels.shape)
        return batches[value].native(torch.from_numpy(whole)[None]).numpy()

    def shaped(value: str, labels: Labels) -> Labels:
        return batches[value].samples(torch.from_numpy(labels)).numpy()[0]  # type: ignore[no-any-return]

    upper, lower = native(name, dst), native(operand, src)
    units, sources = len(np.unique(dst)), len(np.unique(src))
    if isinstance(kind, Spread):
        sets = math.prod(lower.shape) ** 2 // kind.dense_edges(lower.shape, lower.shape, ())
        if (units + sources) * sets <= SET_ENTRIES:
            return Method("sets", upper.ravel(), lower.ravel())
        return None
    weight = _connections(op, k, upper.shape, lower.shape)
    linked = _Whole(upper.shape[-1]) if isinstance(kind, Dense) else kind
    readers = inherited(linked, weight, upper.shape, lower.shape, upper, upwards=True)
    if readers is not None:
        return Method("up", shaped(operand, readers), src, fine)
    if fine:
        return None
    read = inherited(linked, weight, upper.shape, lower.shape, lower, upwards=False)
    if read is not None:
        return Method("down", dst, shaped(name, read))
    cost = min(units, sources) * (dst.size + src.size)
    if min(units, sources) <= PROBES and cost < op.dense_edges(k, upper.shape, lower.shape):
        return Method("probe", upper.ravel(), lower.ravel())
    return None


@dataclass(frozen=True)
class _Whole:
    """Connections of a dense layer: all, which takes no matrix of ones to say.

    Attributes
    ----------
    outputs : int
        Of every row.
    """

    outputs: int

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """Sum of what each output reads."""
        return x.sum(-1, keepdim=True).expand(*x.shape[:-1], self.outputs)

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Sum of what reads each operand."""
        return s.sum(-1, keepdim=True).expand(x.shape)


def _connections(op: Weighing, k: int, z: tuple[int, ...], x: tuple[int, ...]) -> Tensor:
    """Return a weight of operand k that is 1 at every connection."""
    kind, weight = op.maps[k], op.weights[k]
    if isinstance(kind, Dense):  # told by its shape alone
        return torch.ones((), dtype=torch.float64)
    if isinstance(weight, torch.Tensor):
        return torch.ones(weight.shape, dtype=torch.float64)
    shape: tuple[int, ...] = ()
    if isinstance(kind, Right):
        shape = (x[-1], z[-1])
    elif isinstance(kind, Left):
        shape = (z[-2], x[-2])
    elif isinstance(kind, Jacobian):
        shape = (math.prod(z), math.prod(x))
    return torch.ones(shape, dtype=torch.float64)


def inherited(
    kind: Map | _Whole,
    weight: Tensor,
    z: tuple[int, ...],
    x: tuple[int, ...],
    labels: Labels,
    upwards: bool,
) -> Labels | None:
    """Labels of one end of an operation's edges, seen from the other end.

    Parameters
    ----------
    kind : Map
        The operation's map, whose connections tell.
    weight : Tensor
        A weight of 1 at every connection, float64.
    z, x : tuple of int
        Native shapes of output and operand.
    labels : ndarray of int
        Native, of the output, or of the operand with ``upwards`` False.
    upwards : bool
        Whether to give each operand neuron the label of its readers, or each output neuron the
        label of what it reads.

    Returns
    -------
    ndarray of int, or None
        -1 where there is no other end; None if some neuron has several labels there.
    """
    shape, size = (z, math.prod(x)) if upwards else (x, math.prod(z))
    if size == 0 or not labels.size:
        return None
    values = torch.from_numpy(np.ascontiguousarray(labels, np.float64).reshape(shape))
    like = torch.empty(x, dtype=torch.float64)

    def across(given: Tensor) -> npt.NDArray[np.int64]:
        if upwards:
            received = kind.transpose(given, weight, like)
        else:
            received = kind.apply(given, weight).expand(z)
        return received.numpy().astype(np.int64)

    count = across(torch.ones_like(values))
    largest = int(labels.max(initial=0)) - int(labels.min(initial=0)) + 1
    # The sums below are exact: integers in float64, their products in int64.
    if largest * largest * int(count.max(initial=0)) >= 1 << 53:
        return None
    if (largest * int(count.max(initial=0))) ** 2 >= 1 << 62:
        return None
    lowest = int(labels.min(initial=0))
    total, squares = across(values - lowest), across((values - lowest).square())
    if not np.array_equal(total * total, squares * count):  # Cauchy and Schwarz: equal labels
        return None
    below = total // np.maximum(count, 1) + lowest
    return np.where(count > 0, below, -1).astype(labels.dtype)
