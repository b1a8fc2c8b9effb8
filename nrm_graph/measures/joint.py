"""Joint relevance of the units of two layers, neighbours or not: exact, from the cheaper side.

    J(a, b) = sum over n in a of R(n) h_b(n)

where R(n) is the relevance of what arrives at n and h_b(n) that of the continuations from n
through b (:mod:`nrm_graph.propagation.adjoint_pass`).  From above, each unit a of the upper layer
is one pass down to the lower one; from below, each unit b of the lower layer is one adjoint pass
up.  What a conjunction says of layers above is carried by R, of those between by the pass, of those
below by what the lower layer still has to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.events.conjunctions import Literal
from nrm_graph.measures.event_passes import arrived, per_pass
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.relevance_pass import relevance_pass
from nrm_graph.propagation.state import repeated

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.measures.event_passes import Terms
    from nrm_graph.propagation.state import State


@dataclass(frozen=True, eq=False)
class NeuronGroups:
    """NeuronGroups of neurons of one layer.

    Attributes
    ----------
    layer_id : int
        The layer.
    labels : ndarray of int64, the layer's shape
        Group of every neuron, 0 to count - 1; -1 where it is in none.
    count : int
        Number of groups.
    """

    layer_id: int
    labels: npt.NDArray[np.int64]
    count: int

    def masks(self, first: int, last: int, like: Tensor) -> Tensor:
        """Masks of groups first to last - 1, ``(last - first, *shape)``, in the dtype of like."""
        labels = torch.from_numpy(self.labels).to(like.device)
        numbers = torch.arange(first, last, device=like.device)
        inside = labels == numbers.reshape(-1, *[1] * labels.ndim)
        return inside.to(like.dtype)

    def sums(self, values: Tensor) -> Tensor:
        """Sum ``(K, *shape)`` by group: ``(K, count)``."""
        flat = values.reshape(len(values), -1)
        place = torch.from_numpy(self.labels.ravel()).to(values.device)
        place = torch.where(place < 0, self.count, place)
        totals = values.new_zeros(len(values), self.count + 1).index_add_(1, place, flat)
        return totals[:, : self.count]


@exact
def joint(
    state: State,
    start: Tensor,
    terms: Terms,
    upper: NeuronGroups,
    lower: NeuronGroups,
    memory: int,
    known: Callable[[int], Tensor] | None = None,
) -> npt.NDArray[np.float64]:
    """Joint relevance of two groups of neurons each, under an event.

    Parameters
    ----------
    state : State
        Activations of one input.
    start : Tensor, (1, outputs)
        Initial relevance.
    terms : sequence of (float, Clause)
        The event's conjunctions and their coefficients.
    upper, lower : NeuronGroups
        Of the layer nearer the output and of the other; they may be of one layer.
    memory : int
        Bytes that a batch of passes may hold.
    known : callable, optional
        See :func:`nrm_graph.measures.event_passes.arrived`.

    Returns
    -------
    ndarray of float64, (upper.count, lower.count)
    """
    matrix = np.zeros((upper.count, lower.count))
    for coefficient, clause in terms:
        above = arrived(state, start, clause, upper.layer_id, known)
        below = {i: literal for i, literal in clause.items() if i <= lower.layer_id}
        ahead = _ahead(state, below, lower.layer_id)
        between = {i: v for i, v in clause.items() if lower.layer_id < i < upper.layer_id}
        if upper.layer_id == lower.layer_id:
            part = _same(above * ahead, upper, lower)
        elif upper.count <= lower.count:
            part = _from_above(state, above, between, ahead, upper, lower, memory)
        else:
            part = _from_below(state, above, between, ahead, upper, lower, memory)
        matrix += coefficient * part
    return matrix


def _ahead(state: State, clause: Clause, layer_id: int) -> Tensor:
    """Return h of a layer, ``(1, *shape)``, of a conjunction about it and those below."""
    name = state.network.values[layer_id]
    ones = torch.ones_like(state.samples(name, state.values[name]))
    return reach(state, clause, until=layer_id).times(state, layer_id, ones)


def _same(relevance: Tensor, upper: NeuronGroups, lower: NeuronGroups) -> npt.NDArray[np.float64]:
    values = relevance[0].double().cpu().numpy().ravel()
    rows, columns = upper.labels.ravel(), lower.labels.ravel()
    both = (rows >= 0) & (columns >= 0)
    place = rows[both] * lower.count + columns[both]
    size = upper.count * lower.count
    sums = np.bincount(place, values[both], size).astype(np.float64)
    return sums.reshape(upper.count, lower.count)


def _batches(
    state: State, count: int, upper: NeuronGroups, lower: NeuronGroups, memory: int
) -> list[range]:
    """Which groups go through one pass."""
    size = per_pass(state, memory, lower.layer_id, upper.layer_id)
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def _from_above(
    state: State,
    above: Tensor,
    between: Clause,
    ahead: Tensor,
    upper: NeuronGroups,
    lower: NeuronGroups,
    memory: int,
) -> npt.NDArray[np.float64]:
    matrix = np.zeros((upper.count, lower.count))
    for batch in _batches(state, upper.count, upper, lower, memory):
        start = above * upper.masks(batch.start, batch.stop, above)

        def visit(i: int, r: Tensor, batch: range = batch) -> None:
            if i == lower.layer_id:
                sums = lower.sums(r * ahead)
                matrix[batch.start : batch.stop] = sums.double().cpu().numpy()

        copies = repeated(state, len(batch))
        relevance_pass(copies, start, between, at=upper.layer_id, until=lower.layer_id, visit=visit)
    return matrix


def _from_below(
    state: State,
    above: Tensor,
    between: Clause,
    ahead: Tensor,
    upper: NeuronGroups,
    lower: NeuronGroups,
    memory: int,
) -> npt.NDArray[np.float64]:
    matrix = np.zeros((upper.count, lower.count))
    for batch in _batches(state, lower.count, upper, lower, memory):
        seeds = ahead * lower.masks(batch.start, batch.stop, ahead)
        # A set with weights: what its neurons still have to come.
        clause = between | {lower.layer_id: Literal(True, seeds)}
        copies = repeated(state, len(batch))
        onward = reach(copies, clause, until=upper.layer_id)
        sums = upper.sums(
            onward.times(copies, upper.layer_id, above.expand(len(batch), *above.shape[1:]))
        )
        matrix[:, batch.start : batch.stop] = sums.double().cpu().numpy().T
    return matrix
