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
from nrm_graph.progress import uncounted
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.relevance_pass import relevance_pass
from nrm_graph.propagation.state import repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.measures.event_passes import Terms
    from nrm_graph.propagation.state import State


@dataclass(frozen=True, eq=False)
class NeuronGroups:
    """Groups of neurons of one layer.

    Attributes
    ----------
    layer_id : int
        The layer.
    labels : ndarray of int32 or int64, the layer's shape
        Group of every neuron, 0 to count - 1; -1 where it is in none.
    count : int
        Number of groups.
    """

    layer_id: int
    labels: npt.NDArray[np.int32] | npt.NDArray[np.int64]
    count: int

    def masks(self, groups: range, like: Tensor) -> Tensor:
        """Masks of some groups, ``(len(groups), *shape)``, in the dtype of like."""
        labels = torch.from_numpy(self.labels).to(like.device)
        numbers = torch.arange(groups.start, groups.stop, device=like.device)
        inside = labels == numbers.reshape(-1, *[1] * labels.ndim)
        return inside.to(like.dtype)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Neurons of every group, ``(count,)``."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.count)

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
    advance: Callable[[int], object] = uncounted,
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
    advance : callable
        Told how many passes are done, batch by batch.

    Returns
    -------
    ndarray of float64, (upper.count, lower.count)
    """
    matrix = np.zeros((upper.count, lower.count))
    for coefficient, clause in terms:
        below = {i: literal for i, literal in clause.items() if i <= lower.layer_id}
        sides = _Sides(
            state,
            upper,
            lower,
            arrived(state, start, clause, upper.layer_id, known),
            {i: v for i, v in clause.items() if lower.layer_id < i < upper.layer_id},
            _ahead(state, below, lower.layer_id),
            memory,
            advance,
        )
        matrix += coefficient * sides.matrix()
    return matrix


def _ahead(state: State, clause: Clause, layer_id: int) -> Tensor:
    """Return h of a layer, ``(1, *shape)``, of a conjunction about it and those below."""
    name = state.network.values[layer_id]
    ones = torch.ones_like(state.samples(name, state.values[name]))
    return reach(state, clause, until=layer_id).times(state, layer_id, ones)


@dataclass(frozen=True, eq=False)
class _Sides:
    """Two groups of neurons each, and what one conjunction says of walks through both.

    Attributes
    ----------
    state : State
        Activations of one input.
    upper, lower : NeuronGroups
        The groups.
    above : Tensor, (1, *shape)
        Relevance of what arrives at the upper layer.
    between : Clause
        What walks must satisfy between the layers.
    ahead : Tensor, (1, *shape)
        What the lower layer still has to come.
    memory : int
        Bytes that a batch of passes may hold.
    advance : callable
        Told how many passes are done.
    """

    state: State
    upper: NeuronGroups
    lower: NeuronGroups
    above: Tensor
    between: Clause
    ahead: Tensor
    memory: int
    advance: Callable[[int], object]

    def matrix(self) -> npt.NDArray[np.float64]:
        """Joint relevance ``(upper.count, lower.count)``, from the side with fewer groups."""
        if self.upper.layer_id == self.lower.layer_id:
            return self._within_layer()
        return self._from_above() if self.upper.count < self.lower.count else self._from_below()

    def _within_layer(self) -> npt.NDArray[np.float64]:
        values = (self.above * self.ahead)[0].cpu().double().numpy().ravel()
        rows, columns = self.upper.labels.ravel(), self.lower.labels.ravel()
        both = (rows >= 0) & (columns >= 0)
        place = rows[both] * self.lower.count + columns[both]
        size = self.upper.count * self.lower.count
        sums = np.bincount(place, values[both], size).astype(np.float64)
        return sums.reshape(self.upper.count, self.lower.count)

    def _batches(self, count: int, kept: bool) -> Iterator[tuple[range, State]]:
        """Yield which groups go through one pass, and the state of as many copies."""
        ends = self.lower.layer_id, self.upper.layer_id
        size = per_pass(self.state, self.memory, *ends, kept)
        for first in range(0, count, size):
            batch = range(first, min(first + size, count))
            yield batch, repeated(self.state, len(batch))
            self.advance(len(batch))

    def _from_above(self) -> npt.NDArray[np.float64]:
        at, until = self.upper.layer_id, self.lower.layer_id
        matrix = np.zeros((self.upper.count, self.lower.count))
        for batch, copies in self._batches(self.upper.count, kept=True):

            def visit(i: int, r: Tensor, batch: range = batch) -> None:
                if i == until:
                    sums = self.lower.sums(r * self.ahead)
                    matrix[batch.start : batch.stop] = sums.cpu().double().numpy()

            start = self.above * self.upper.masks(batch, self.above)
            relevance_pass(copies, start, self.between, at=at, until=until, visit=visit)
        return matrix

    def _from_below(self) -> npt.NDArray[np.float64]:
        at = self.upper.layer_id
        matrix = np.zeros((self.upper.count, self.lower.count))
        for batch, copies in self._batches(self.lower.count, kept=False):
            seeds = self.ahead * self.lower.masks(batch, self.ahead)
            # A set with weights: what its neurons still have to come.
            clause = self.between | {self.lower.layer_id: Literal(True, seeds)}
            above = self.above.expand(len(batch), *self.above.shape[1:])
            onward = reach(copies, clause, until=at, only_last=True).times(copies, at, above)
            matrix[:, batch.start : batch.stop] = self.upper.sums(onward).cpu().double().numpy().T
        return matrix
