"""Steps of walks that satisfy a conjunction, and the best completion from every neuron.

Kernels are signed, so the best completion has a sign: the largest positive product and the most
negative one are carried up together, because a negative step turns one into the other.  Products
are kept as logarithms, so that deep networks neither under- nor overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.measures.kernel_edges import neuron_blocks, offsets, only_awake
from nrm_graph.measures.paths import max_plus
from nrm_graph.progress import Progress
from nrm_graph.propagation.kernels import kernel_of
from nrm_graph.propagation.relevance_pass import lowest_pass

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.propagation.state import State

    Floats = npt.NDArray[np.float64]

POSITIVE, NEGATIVE = 0, 1


@dataclass(frozen=True, eq=False)
class Steps:
    """What walks that satisfy a conjunction may do.

    Attributes
    ----------
    state : State
        Activations of one input.
    clause : Clause
        The conjunction.
    ends : bool
        Whether walks may end in pseudo-neurons.
    """

    state: State
    clause: Clause
    ends: bool

    @property
    def layers(self) -> int:
        """Number of layers of the network."""
        return len(self.state.network.values)

    def size(self, layer_id: int) -> int:
        """Count the neurons of a layer."""
        return self.state.network.layout.topology.layers[layer_id].n_neurons

    def is_input(self, layer_id: int) -> bool:
        """Whether walks end at a layer."""
        return self.state.network.values[layer_id] not in self.state.network.layout.weighings

    def allowed(self, layer_id: int) -> npt.NDArray[np.bool_]:
        """Neurons that walks may visit, flat."""
        literal = self.clause.get(layer_id)
        if literal is None:
            return np.ones(self.size(layer_id), bool)
        return np.asarray(literal.allowed, bool).ravel()

    def possible(self, layer_id: int) -> npt.NDArray[np.bool_]:
        """Neurons that walks of some relevance may visit."""
        name = self.state.network.values[layer_id]
        return only_awake(self.state, name, self.allowed(layer_id))

    def edges(
        self, layer_id: int, chosen: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[int, Any, Any, Floats]]:
        """Yield source layer, upper ends (ascending), lower ends and q of steps from neurons."""
        if not chosen.any():
            return
        for block in neuron_blocks(self.state, layer_id, chosen):
            between = range(block.src_layer + 1, layer_id)
            # A step must not go past a set that the walk has to pass through.
            if any(self.clause[i].passes for i in between if i in self.clause):
                continue
            yield block.src_layer, block.dst, block.src, np.asarray(block.q, np.float64)

    def pseudo(self, layer_id: int) -> list[tuple[int, Floats]]:
        """Units of pseudo-neurons and what they absorb of every neuron, flat."""
        state, last = self.state, lowest_pass(self.clause)
        if not self.ends or self.is_input(layer_id) or (last >= 0 and layer_id > last):
            return []
        name = state.network.values[layer_id]
        like = state.values[name]
        return [
            (unit, state.samples(name, share.expand_as(like)).cpu().double().numpy().ravel())
            for unit, share in kernel_of(state, name).absorbed()
        ]


def parts(q: Floats) -> tuple[Floats, npt.NDArray[np.int8]]:
    """Return log2 |q|, and 1 where q is negative."""
    with np.errstate(divide="ignore"):
        return np.log2(np.abs(q)), (q < 0).astype(np.int8)


def sweep(steps: Steps, limit: float, progress: bool = True) -> list[Floats]:
    """Best completion of every neuron: log2 of the largest product of each sign, ``(2, n)``.

    ``-inf`` where no completion has the sign.

    Raises
    ------
    InputError
        If more than ``limit`` edges would have to be listed one by one.
    """
    layers = range(steps.layers)
    topology = steps.state.network.layout.topology
    edges = [sum(g.dense_edges for g in topology.groups if g.dst == i) for i in layers]
    whole = [max_plus.applies(steps.state, i) for i in layers]
    listed = sum(n for n, together in zip(edges, whole, strict=True) if not together)
    if listed > limit:
        raise InputError(
            f"the network has {listed:,} neuron-level edges that must be listed, more than "
            f"limit={limit:,}: ask for paths of units of some layers, or raise the limit"
        )
    first = offsets(steps.state.network)
    best = np.full((2, int(first[-1])), -np.inf)
    by_layer = [best[:, first[i] : first[i + 1]] for i in layers]
    with Progress("walks", sum(edges), "edges", progress) as meter:
        for i in layers:
            possible = steps.possible(i)
            if steps.is_input(i):
                by_layer[i][POSITIVE] = 0.0
            elif whole[i]:
                barrier = max((b for b, v in steps.clause.items() if v.passes and b < i), default=0)
                by_layer[i][:] = max_plus.best(steps.state, i, best, int(first[barrier]))
            else:
                _by_edges(steps, i, possible, by_layer)
            for _, share in steps.pseudo(i):
                size, negative = parts(share)
                for sign in (POSITIVE, NEGATIVE):
                    candidate = np.where(negative == sign, size, -np.inf)
                    np.maximum(by_layer[i][sign], candidate, out=by_layer[i][sign])
            by_layer[i][:, ~possible] = -np.inf
            meter.advance(edges[i])
    return by_layer


def _by_edges(
    steps: Steps, layer_id: int, possible: npt.NDArray[np.bool_], by_layer: list[Floats]
) -> None:
    """Best completions over the edges of a layer, in chunks."""
    best = by_layer[layer_id]
    for source, dst, src, q in steps.edges(layer_id, possible):
        if not len(q):
            continue
        size, negative = parts(q)
        first = np.flatnonzero(np.concatenate([[True], dst[1:] != dst[:-1]]))
        heads = dst[first]
        for sign in (POSITIVE, NEGATIVE):
            ahead = size + by_layer[source][negative ^ sign, src]
            best[sign, heads] = np.maximum(best[sign, heads], np.maximum.reduceat(ahead, first))
