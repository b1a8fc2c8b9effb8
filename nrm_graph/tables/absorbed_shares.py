"""What the pseudo-neurons of a layer absorb, by its units: the edges that end in the layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from nrm_graph.network.maps.linear import Moving
from nrm_graph.network.topology import BIAS, REMAINDER, STABILIZER
from nrm_graph.propagation.tensor_sums import total
from nrm_graph.tables.edge_block import Block, merged
from nrm_graph.tables.unit_sums import unit_axis, unit_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.propagation.state import State
    from nrm_graph.rules.base import Kernel
    from nrm_graph.tables.dense_edges import Ends
    from nrm_graph.tables.plan import Plan


class Absorbed(NamedTuple):
    """What one pseudo-neuron takes from the units of a layer, ``(N, n_units)``.

    Attributes
    ----------
    unit : int
        Of the pseudo-neuron.
    relevance : Tensor
        What it takes.
    q : Tensor or None
        Its share of every unit's relevance, where units are single neurons.
    """

    unit: int
    relevance: Tensor
    q: Tensor | None


class AbsorbedArrays(NamedTuple):
    """The same on the host."""

    unit: int
    relevance: npt.NDArray[np.floating]
    q: npt.NDArray[np.floating] | None


def absorbed_shares(
    plan: Plan,
    state: State,
    name: str,
    relevance: Tensor,
    kernel: Kernel,
    weighed: Sequence[Tensor],
) -> list[Absorbed]:
    """Sum what a layer's pseudo-neurons absorb by its units.

    Parameters
    ----------
    name : str
        Value of the layer in the program.
    relevance : Tensor
        Of the layer, native.
    kernel : Kernel
        Of the layer.
    weighed : sequence of Tensor
        ``s`` of every share of the kernel.
    """
    layer_id, see = plan.network.layout.layer_of[name], state.samples
    single = plan.partitions[layer_id].single
    absorbed: list[Absorbed] = []
    sums = [unit_sums(plan, layer_id, see(name, s)) for s in weighed]
    whole = dict(kernel.absorbed()) if single else {}
    rest = ((STABILIZER, kernel.unplaced), (BIAS, kernel.held), (REMAINDER, kernel.remainder))
    for unit, extra in rest:
        parts: list[Tensor] = []
        q = None
        for share, s, unit_totals in zip(kernel.shares, weighed, sums, strict=True):
            if unit == BIAS and share.bias is not None:
                parts.append(_bias(plan, state, name, s, unit_totals, share.bias))
            elif unit == STABILIZER and share.eps and share.sign:
                # s is R scale / d, and d has this sign wherever R is: R scale / |d| is s.
                parts.append(unit_totals * (share.sign * share.eps))
            elif unit == STABILIZER and share.eps:
                # R scale / |d| is s with the sign of R, and that of the scale.
                size = share.eps * math.copysign(1.0, share.scale)
                lost = torch.copysign(s, relevance)
                parts.append(unit_sums(plan, layer_id, see(name, lost)) * size)
        if extra is not None:
            parts.append(unit_sums(plan, layer_id, see(name, relevance * extra)))
        if not parts:
            continue
        if single:
            q = unit_sums(plan, layer_id, see(name, whole[unit].expand_as(relevance)))
        absorbed.append(Absorbed(unit, total(parts), q))
    return absorbed


def _bias(plan: Plan, state: State, name: str, s: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """Sum ``s * bias`` by unit, from the sums of s where a unit has one bias."""
    layer_id = plan.network.layout.layer_of[name]
    axis, layout = unit_axis(plan, layer_id), plan.network.layout
    constant = not isinstance(layout.weighings[name].bias, Moving)
    if axis is not None and constant and layout.batches[name].plain:
        shape = (1,) * (s.ndim - bias.ndim) + tuple(bias.shape)
        if all(n == 1 for d, n in enumerate(shape) if d != axis):
            return sums * bias.flatten()
    return unit_sums(plan, layer_id, state.samples(name, s * bias))


def to_host(absorbed: Sequence[Absorbed]) -> list[AbsorbedArrays]:
    """Bring what was absorbed to the host."""
    return [
        AbsorbedArrays(unit, taken.cpu().numpy(), None if q is None else q.cpu().numpy())
        for unit, taken, q in absorbed
    ]


def absorbed_block(ends: Ends, absorbed: Sequence[AbsorbedArrays], b: int) -> Block:
    """Edges of one sample between the units of a layer and its pseudo-neurons."""
    layer_id = ends.dst_layer
    units = np.arange(ends.plan.partitions[layer_id].n_units)
    blocks = [
        Block(
            layer_id,
            layer_id,
            units,
            np.full_like(units, unit),
            taken[b],
            None if q is None else q[b],
        )
        for unit, taken, q in absorbed
    ]
    return ends.finish(merged(blocks))
