"""Sums over units, of relevance and activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.network.text_positions import TEXT_INPUTS, position_axes
from nrm_graph.tables.plan import along, column_units

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.propagation.state import State
    from nrm_graph.tables.edge_block import Values
    from nrm_graph.tables.plan import ColumnUnits, Plan


_TURNS = ("aten.transpose.int", "aten.permute.default")
_SPLITS = ("aten.view.default", "aten.reshape.default", "aten.unflatten.int")


def unit_axis(plan: Plan, layer_id: int) -> int | None:
    """Axis of ``(N, *shape)`` along which the units of a layer lie in order, whole; or None."""
    key = ("unit axis", layer_id)
    if key not in plan.cache:
        part = plan.partitions[layer_id]
        found = None
        for axis, size in enumerate(part.labels.shape):
            if size == part.n_units and found is None:
                units = along(part.labels, axis)
                if units is not None and np.array_equal(units, np.arange(size)):
                    found = axis + 1
        plan.cache[key] = found
    axis_of_units: int | None = plan.cache[key]
    return axis_of_units


def unit_sums(plan: Plan, layer_id: int, values: Tensor) -> Tensor:
    """Sum a layer's values ``(N, *shape)`` by unit: ``(N, n_units)``."""
    axis = unit_axis(plan, layer_id)
    if axis is not None:
        rest = [d for d in range(1, values.ndim) if d != axis]
        return values.sum(rest) if rest else values
    key = ("neurons", layer_id)
    if key not in plan.cache:
        plan.cache[key] = column_units(plan.partitions[layer_id].labels.ravel())
    neurons: ColumnUnits = plan.cache[key]
    return neurons.sum(values.reshape(len(values), -1))


def mean_activations(plan: Plan, state: State, name: str) -> Values:
    """Mean activation of every unit of a layer, ``(N, n_units)``; the same for every target.

    Of a text the positions of its own count, not those of the padding behind it.

    ``name`` is that of the layer's value in the program.
    """
    means = state.means.get(name)
    if means is None:
        layer_id = plan.network.layout.layer_of[name]
        values = activations(state, name)
        own = own_positions(state, name, values)
        if own is None:
            means = unit_sums(plan, layer_id, values).cpu().numpy() / _sizes(plan, layer_id)
        else:
            sums, sizes = (
                unit_sums(plan, layer_id, part).cpu().numpy()
                for part in (values.masked_fill(~own, 0), own.to(values.dtype))
            )
            means = sums / np.maximum(sizes, 1)
        state.means[name] = means
    return means


def own_positions(state: State, name: str, values: Tensor) -> Tensor | None:
    """Return which neurons of a layer are of a text's own positions; None where all may be."""
    program = state.network.program
    if tuple(name for name, _ in program.inputs) != TEXT_INPUTS:
        return None
    mask = state.values[TEXT_INPUTS[1]] != 0
    axes = position_axes(values.shape[1:], mask.shape[-1], _heads_first(state, name))
    if mask.ndim != 2 or not axes or bool(mask.all()):
        return None
    own = torch.ones_like(values, dtype=torch.bool)
    for axis in axes:
        shape = [1] * values.ndim
        shape[0], shape[axis + 1] = mask.shape
        own &= mask.reshape(shape)
    return own


def _heads_first(state: State, name: str) -> bool:
    """Whether a layer of heads has them in front: they were turned there, or never taken apart."""
    net = state.network
    while name in net.position:
        node = net.order[net.position[name]][1]
        read = [] if node is None else list(node.references())
        if node is None or not read or node.op in _TURNS:
            return True
        if node.op in _SPLITS:
            return False
        name = read[0]
    return True


def activations(state: State, name: str) -> Tensor:
    """Activations of a layer's neurons, ``(N, *shape)``: after what only the layer feeds."""
    layout = state.network.layout
    after = layout.activation[name]
    after = after if after in state.values else name
    value = state.samples(after, state.values[after])
    if tuple(value.shape[1:]) != layout.topology.layers[layout.layer_of[name]].shape:
        value = state.samples(name, state.values[name])
    return value


def _sizes(plan: Plan, layer_id: int) -> npt.NDArray[np.int64]:
    """Count the neurons of every unit, once."""
    key = ("sizes", layer_id)
    if key not in plan.cache:
        part = plan.partitions[layer_id]
        plan.cache[key] = np.bincount(part.labels.ravel(), minlength=part.n_units)
    sizes: npt.NDArray[np.int64] = plan.cache[key]
    return sizes
