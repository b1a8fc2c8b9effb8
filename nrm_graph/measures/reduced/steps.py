"""Direct steps between watched neurons, and where walks end that visit no other.

Of a walk only its visits to the watched neurons are noted.  The *direct step* A -> B of two nodes
(groups of watched neurons) is the event "the walk visits A, then B, and no watched neuron in
between", over whatever unwatched layers, skips and branches lie there.  Every walk that visits A
either steps to one next node or ends below A without another visit, so that

    steps into A = R(A) = steps out of A + ends below A

(a walk that arrives at a watched neuron of an input ends in the node itself, of which the second
equation says nothing), and the steps and ends of the target's neurons sum to 1.  Between single
neurons it is the watched (censored) chain of a signed measure: stochastic complementation (Meyer,
SIAM Review 31, 1989) of the kernel of arXiv:2606.00557.

Steps of a node are one pass down from it, in which walks end where they arrive at a watched
neuron; or one pass up to it, in which what is to come vanishes there.  Ends by kind are one pass
up for all nodes.  The three numbers of the law come from passes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.events.conjunctions import Literal
from nrm_graph.measures.event_passes import per_pass
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.network.topology import END_UNITS
from nrm_graph.progress import uncounted
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.relevance_pass import relevance_pass
from nrm_graph.propagation.state import repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.measures.event_passes import Terms
    from nrm_graph.measures.joint import NeuronGroups
    from nrm_graph.propagation.state import State

    Floats = npt.NDArray[np.float64]

COPIES = 4
"""Passes that go together on a CPU: more of them gain nothing there."""


@dataclass(frozen=True, eq=False)
class Steps:
    """What walks do at the nodes of watched layers, from the output to the input.

    Attributes
    ----------
    relevance : tuple of ndarray, (nodes,)
        R of every layer's nodes.
    steps : dict of (int, int) to ndarray, (nodes above, nodes below)
        R of the direct steps from one watched layer to another, by their places in the sequence.
        Layers between which there are none are not there.
    ends : tuple of ndarray, (nodes, len(END_UNITS))
        R of the walks that end below every node without another visit, by pseudo-unit.
    conditional, ended : as steps and ends
        Of nodes that are single neurons the share of its walks that do so, which is there where R
        vanishes, too; NaN of other nodes, and of events that are no single conjunction.
    """

    relevance: tuple[Floats, ...]
    steps: dict[tuple[int, int], Floats]
    ends: tuple[Floats, ...]
    conditional: dict[tuple[int, int], Floats]
    ended: tuple[Floats, ...]


def passes(state: State, watched: Sequence[NeuronGroups]) -> tuple[bool, int]:
    """Whether steps are followed downwards, which is chosen by cost; and how many passes that is.

    The cost of a pass is about that of the products of a neuron and a weight between its ends.
    """
    groups = state.network.layout.topology.groups
    ids = [group.layer_id for group in watched]

    def cost(lower: int, upper: int) -> int:
        return sum(group.dense_edges for group in groups if lower < group.dst <= upper)

    down = sum(group.count * cost(ids[-1], group.layer_id) for group in watched[:-1])
    up = sum(group.count * cost(group.layer_id, ids[0]) for group in watched[1:])
    chosen = watched[:-1] if down <= up else watched[1:]
    return down <= up, sum(group.count for group in chosen)


@exact
def direct_steps(
    state: State,
    start: Tensor,
    terms: Terms,
    watched: Sequence[NeuronGroups],
    memory: int,
    advance: Callable[[int], object] = uncounted,
    downwards: bool | None = None,
) -> Steps:
    """Compute the direct steps between the nodes of watched layers under an event.

    Parameters
    ----------
    state : State
        Activations of one input.
    start : Tensor, (1, outputs)
        Initial relevance.
    terms : sequence of (float, Clause)
        The event's conjunctions and their coefficients.
    watched : sequence of NeuronGroups
        Nodes of each watched layer, from the output, whose nodes hold every neuron that the initial
        relevance is not 0 of, to the input; no layer twice.
    memory : int
        Bytes that a batch of passes may hold.
    advance : callable
        Told how many passes are done, batch by batch.
    downwards : bool, optional
        Whether a pass is one down from a node, or up to one; by default as :func:`passes` chooses.
    """
    if downwards is None:
        downwards, _ = passes(state, watched)
    single = len(terms) == 1
    total: Steps | None = None
    for coefficient, clause in terms:
        chain = _chain(state, start, clause, watched, memory, advance)
        part = chain.summed(coefficient, downwards, single)
        total = part if total is None else _added(total, part)
    assert total is not None
    return total


def _added(one: Steps, other: Steps) -> Steps:
    """Sum what two conjunctions say; shares of a neuron's walks have no sum."""
    steps = dict(one.steps)
    for pair, relevance in other.steps.items():
        steps[pair] = steps[pair] + relevance if pair in steps else relevance
    return Steps(
        tuple(a + b for a, b in zip(one.relevance, other.relevance, strict=True)),
        steps,
        tuple(a + b for a, b in zip(one.ends, other.ends, strict=True)),
        {pair: np.full_like(values, np.nan) for pair, values in steps.items()},
        one.ended,
    )


@dataclass(frozen=True, eq=False)
class _Chain:
    """The nodes of watched layers under one conjunction.

    Attributes
    ----------
    state, clause, watched, memory, advance
        See :func:`direct_steps`.
    masks : list of Tensor of bool, the layer's shape
        Watched neurons.
    ahead : list of Tensor, (1, *shape), or float
        What is still to come from there under those of the layer and below.
    seeds : list of Tensor, (1, *shape)
        What walks begin with at a node: 1 at one that is a single neuron, so that its shares are
        there where its relevance vanishes; else what arrives.
    factors : list of ndarray, (nodes,)
        What makes relevance of what such walks carry: that of a single neuron, else 1.
    """

    state: State
    clause: Clause
    watched: Sequence[NeuronGroups]
    memory: int
    advance: Callable[[int], object]
    masks: list[Tensor]
    ahead: list[Tensor | float]
    seeds: list[Tensor]
    factors: list[Floats]
    copies: dict[int, State] = field(default_factory=dict)

    def summed(self, coefficient: float, downwards: bool, single: bool) -> Steps:
        """All that walks do at the nodes, of one conjunction with its coefficient."""
        reached = [self._by_node(i, self._ahead(i))[:, 0] for i in range(len(self.watched))]
        ended = self._ends()
        if downwards:
            steps = self._steps_down()
        else:
            up = range(1, len(self.watched))
            steps = {pair: raw for j in up for pair, raw in self._steps_to(j).items()}
        factors = [coefficient * factor for factor in self.factors]
        whole = [np.full(len(r), np.nan) for r in reached]
        if single:
            alone = [group.sizes() == 1 for group in self.watched]
            whole = [np.where(one, r, np.nan) for one, r in zip(alone, reached, strict=True)]
        with np.errstate(divide="ignore", invalid="ignore"):
            conditional = {pair: raw / whole[pair[0]][:, None] for pair, raw in steps.items()}
            shares = [raw / r[:, None] for raw, r in zip(ended, whole, strict=True)]
        return Steps(
            tuple(r * f for r, f in zip(reached, factors, strict=True)),
            {pair: raw * factors[pair[0]][:, None] for pair, raw in steps.items()},
            tuple(raw * f[:, None] for raw, f in zip(ended, factors, strict=True)),
            {pair: np.where(np.isfinite(q), q, np.nan) for pair, q in conditional.items()},
            tuple(np.where(np.isfinite(q), q, np.nan) for q in shares),
        )

    def _ahead(self, i: int) -> Tensor:
        ahead = self.ahead[i]
        return torch.full_like(self.seeds[i], ahead) if isinstance(ahead, float) else ahead

    def _by_node(self, i: int, onward: Tensor) -> Floats:
        """Sum what the walks of every node carry on, ``(nodes, N)``, of ``(N, *shape)``."""
        return self.watched[i].sums(onward * self.seeds[i]).cpu().double().numpy().T

    def _ends(self) -> list[Floats]:
        """Find what ends below every node without another visit, ``(nodes, kinds)``."""
        place = {group.layer_id: i for i, group in enumerate(self.watched)}
        inputs = {layer.layer_id for layer in self.state.network.layout.topology.inputs}
        ended = [np.zeros((group.count, len(END_UNITS))) for group in self.watched]
        for column, kind in enumerate(END_UNITS):

            def stop(layer_id: int, onward: Tensor, column: int = column) -> Tensor | None:
                i = place.get(layer_id)
                if i is None:
                    return None
                if layer_id not in inputs:
                    ended[i][:, column] = self._by_node(i, onward)[:, 0]
                return self.masks[i]

            reach(self.state, self.clause, only_last=True, ends=[kind], stop=stop)
        return ended

    def _size(self, lowest: int, highest: int) -> int:
        """How many nodes go through one pass, between two layers."""
        size = per_pass(self.state, self.memory, lowest, highest, kept=False)
        return min(size, COPIES) if self.seeds[0].device.type == "cpu" else size

    def _copied(self, n: int) -> State:
        if n not in self.copies:
            self.copies[n] = repeated(self.state, n)
        return self.copies[n]

    def _steps_down(self) -> dict[tuple[int, int], Floats]:
        """Follow walks from the nodes of every layer but the lowest, by passes down from them.

        Nodes of neighbouring layers go together, so that few passes read a layer's weights; but
        what a clause says of a layer is not the same for those above it and below.
        """
        steps: dict[tuple[int, int], Floats] = {}
        nodes = [(i, k) for i, upper in enumerate(self.watched[:-1]) for k in range(upper.count)]
        lowest = self.watched[-1].layer_id
        while nodes:
            size = self._size(lowest, self.watched[nodes[0][0]].layer_id)
            together = [node for node in nodes[:size] if not self.clause or node[0] == nodes[0][0]]
            nodes = nodes[len(together) :]
            for pair, rows, carried in self._carried_down(_parts(together)):
                shape = tuple(self.watched[i].count for i in pair)
                steps.setdefault(pair, np.zeros(shape))[rows.start : rows.stop] = carried
            self.advance(len(together))
        return steps

    def _carried_down(
        self, parts: Sequence[tuple[int, range, range]]
    ) -> list[tuple[tuple[int, int], range, Floats]]:
        """Find what walks carry to each layer below from some nodes, which are a pass's samples.

        ``parts`` are the layers that they are of, from the output, the nodes and the samples.
        """
        top, n = parts[0][0], parts[-1][2].stop
        place = {group.layer_id: j for j, group in enumerate(self.watched) if j > top}
        starts: dict[int, Tensor] = {}
        for i, nodes, samples in parts:
            start = self.seeds[i].new_zeros(n, *self.seeds[i].shape[1:])
            masks = self.watched[i].masks(nodes, self.seeds[i])
            start[samples.start : samples.stop] = self.seeds[i] * masks
            starts[self.watched[i].layer_id] = start
        blocks: list[tuple[tuple[int, int], range, Floats]] = []

        def stop(layer_id: int, arrived: Tensor) -> bool | Tensor:
            j = place.get(layer_id)
            if j is None:
                return False
            above = [part for part in parts if part[0] < j]
            number = above[-1][2].stop  # of the samples; those of the layer begin there
            carried = self.watched[j].sums(arrived[:number] * self.ahead[j]).cpu().double().numpy()
            for i, nodes, samples in above:
                if carried[samples.start : samples.stop].any():
                    blocks.append(((i, j), nodes, carried[samples.start : samples.stop]))
            came = torch.arange(n, device=arrived.device) < number
            return self.masks[j] & came.reshape(-1, *[1] * self.masks[j].ndim)

        at = self.watched[top].layer_id
        relevance_pass(
            self._copied(n),
            starts.pop(at),
            {k: literal for k, literal in self.clause.items() if k < at},
            at=at,
            joins=starts,
            until=frozenset(place),
            stop=stop,
        )
        return blocks

    def _steps_to(self, j: int) -> dict[tuple[int, int], Floats]:
        """Follow walks to every node of a layer, by a pass up to it."""
        steps: dict[tuple[int, int], Floats] = {}
        lower = self.watched[j]
        highest = self.watched[0].layer_id
        upper = {group.layer_id: i for i, group in enumerate(self.watched) if i < j}
        above = {k: literal for k, literal in self.clause.items() if k > lower.layer_id}
        size = self._size(lower.layer_id, highest)
        for first in range(0, lower.count, size):
            batch = range(first, min(first + size, lower.count))

            def stop(layer_id: int, onward: Tensor, batch: range = batch) -> Tensor | None:
                i = upper.get(layer_id)
                if i is None:
                    return None
                block = steps.setdefault((i, j), np.zeros((self.watched[i].count, lower.count)))
                block[:, batch.start : batch.stop] = self._by_node(i, onward)
                return self.masks[i]

            arrivals = self._ahead(j) * lower.masks(batch, self.seeds[j])
            clause = above | {lower.layer_id: Literal(True, arrivals)}
            reach(self._copied(len(batch)), clause, until=highest, only_last=True, stop=stop)
            self.advance(len(batch))
        return steps


def _parts(nodes: Sequence[tuple[int, int]]) -> list[tuple[int, range, range]]:
    """Layers of nodes that follow each other, which nodes of each, and their places."""
    parts = []
    for i in dict.fromkeys(layer for layer, _ in nodes):
        places = [place for place, (layer, _) in enumerate(nodes) if layer == i]
        first, last = places[0], places[-1]
        parts.append((i, range(nodes[first][1], nodes[last][1] + 1), range(first, last + 1)))
    return parts


def _chain(
    state: State,
    start: Tensor,
    clause: Clause,
    watched: Sequence[NeuronGroups],
    memory: int,
    advance: Callable[[int], object],
) -> _Chain:
    """Find what arrives at every watched layer, and what is still to come from there."""
    place = {group.layer_id: i for i, group in enumerate(watched)}
    shapes = [state.network.layout.topology.layers[i].shape for i in place]
    arriving = [start.new_zeros(1, *shape) for shape in shapes]
    ahead: list[Tensor | float] = [1.0] * len(watched)
    below = reach(state, clause)

    def visit(layer_id: int, relevance: Tensor) -> None:
        if layer_id in place:
            arriving[place[layer_id]] = relevance

    relevance_pass(state, start, clause, until=frozenset(place), visit=visit)
    if clause:
        ones = [torch.ones_like(relevance) for relevance in arriving]
        ahead = [below.times(state, k, one) for k, one in zip(place, ones, strict=True)]
    masks, seeds, factors = [], [], []
    for group, relevance in zip(watched, arriving, strict=True):
        labels = torch.from_numpy(group.labels).to(relevance.device)
        alone = torch.from_numpy(np.append(group.sizes() == 1, False)).to(relevance.device)
        masks.append(labels >= 0)
        seeds.append(torch.where(alone[labels], 1.0, relevance))
        sums = group.sums(relevance)[0].cpu().double().numpy()
        factors.append(np.where(group.sizes() == 1, sums, 1.0))
    return _Chain(state, clause, watched, memory, advance, masks, ahead, seeds, factors)
