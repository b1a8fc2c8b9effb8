"""Edges between single neurons, out of the kernel of the operation that joins them.

In chunks whose upper neurons are their own, so that memory does not depend on how many there are.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from nrm_graph.network.ir.held_weights import on_device
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.network.maps.linear import Dense
from nrm_graph.propagation.kernels import awake, kernel_of
from nrm_graph.propagation.routing import carry
from nrm_graph.tables.dense_edges import CHUNK
from nrm_graph.tables.edge_block import Block, merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.maps.linear import Weighing
    from nrm_graph.propagation.adjoint_pass import Reach
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.propagation.state import State

    Places = npt.NDArray[np.int64]
    Values = npt.NDArray[Any]


class Arrival(NamedTuple):
    """What a conjunction says of a layer's walks.

    Attributes
    ----------
    relevance : Tensor, (1, *shape)
        Of what arrives at the layer's neurons, under the literals down to it.
    below : Reach
        Of what is still to come.
    """

    relevance: Tensor
    below: Reach


def offsets(net: Network) -> npt.NDArray[np.int64]:
    """First global neuron of every layer, and the number of all neurons."""
    sizes = [layer.n_neurons for layer in net.layout.topology.layers]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def origins(state: State, value: str) -> npt.NDArray[np.int64]:
    """Global neuron that every element of a value is, native and flat; -1 for constants."""
    net = state.network
    layout, first, native = net.layout, offsets(net), net.program.native_shapes()
    weights = on_device(net.program.weights, "cpu")
    winners = {name: index.cpu() for name, index in state.winners.items()}
    neurons: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name in neurons:
            return neurons[name]
        layer_id = layout.layer_of.get(name)
        if layer_id is not None:
            layer = layout.topology.layers[layer_id]
            numbers = torch.arange(layer.n_neurons, dtype=torch.float64) + float(first[layer_id])
            neurons[name] = layout.batches[name].native(numbers.reshape(1, *layer.shape))
            return neurons[name]
        _, node = net.order[net.position[name]]
        assert node is not None
        if not any(True for _ in node.references()):
            neurons[name] = torch.full(native[name], -1.0, dtype=torch.float64)
        else:
            neurons[name] = carry(node, of, winners, weights, native[name], 1, -1.0)
        return neurons[name]

    # Neurons are counted in float64, for which all selections are defined: exact to 2^53.
    return of(value).numpy().ravel().astype(np.int64)  # type: ignore[no-any-return]


def neuron_blocks(
    state: State,
    layer_id: int,
    chosen: npt.NDArray[np.bool_] | None = None,
    arrivals: Sequence[Arrival] | None = None,
) -> Iterator[Block]:
    """Edges from neurons of a layer to the neurons that it reads.

    Parameters
    ----------
    state : State
        Activations of one input.
    layer_id : int
        The upper layer.
    chosen : ndarray of bool, (n_neurons,), optional
        Its neurons of interest, by flat index; by default all.
    arrivals : sequence of Arrival, optional
        Conjunctions whose relevance is summed.  Without them relevance is q: that of walks which
        begin at each upper neuron.

    Yields
    ------
    Block
        Of one lower layer each; ``dst`` and ``src`` are flat indices, pairs are unique, rows with
        q = 0 are left out.  All edges of an upper neuron to a layer are in one block.  ``q`` is
        that of the kernel, or ``q h(i) / h(j)`` with one arrival (see
        :mod:`nrm_graph.propagation.adjoint_pass`); NaN with several, whose walks are no Markov
        chain.
    """
    net = state.network
    name = net.values[layer_id]
    if name not in net.layout.weighings:
        return
    op, first = net.layout.weighings[name], offsets(net)
    shape = net.layout.topology.layers[layer_id].shape
    # Flat index of a neuron at every native position of the layer.
    flat = net.layout.batches[name].native(torch.arange(math.prod(shape)).reshape(1, *shape))
    place = flat.numpy().ravel()
    if chosen is None and name in net.silent:
        chosen = np.ones(len(place), bool)
    chosen = None if chosen is None else only_awake(state, name, chosen)
    asked = None if chosen is None else chosen[place]
    sources = [origins(state, operand) for operand in op.operands]
    steps = [_Step(state, name, op, k, arrivals) for k in range(len(op.operands))]
    for outputs in _output_ranges(op, steps[0].sizes, asked):
        rows = []
        for step, source in zip(steps, sources, strict=True):
            o, i, relevance, q = step.rows(outputs, asked)
            rows.append((o, source[i], relevance, q))
        o, i, relevance, q = (np.concatenate(column) for column in zip(*rows, strict=True))
        keep = (q != 0) & (i >= 0)
        o, i, relevance, q = place[o[keep]], i[keep], relevance[keep], q[keep]
        layers = np.searchsorted(first, i, side="right") - 1
        for source in np.unique(layers):
            mine = layers == source
            block = Block(
                layer_id, int(source), o[mine], i[mine] - first[source], relevance[mine], q[mine]
            )
            yield _conditional(merged([block]), state, name, arrivals)


def _conditional(
    block: Block, state: State, name: str, arrivals: Sequence[Arrival] | None
) -> Block:
    """Divide q by what is still to come from the upper neuron."""
    if arrivals is None or block.q is None:
        return block
    if len(arrivals) > 1:
        block.q[:] = np.nan
        return block
    h = arrivals[0].below.at(name)
    if not isinstance(h, float):
        there = state.samples(name, h)[0].cpu().numpy().ravel()[block.dst]
        block.q[:] = np.divide(block.q, there, out=np.full_like(block.q, np.nan), where=there != 0)
    return block


class _Step:
    """Edges of one operand of a weighing operation."""

    def __init__(
        self, state: State, name: str, op: Weighing, k: int, arrivals: Sequence[Arrival] | None
    ) -> None:
        kernel, z = kernel_of(state, name), state.values[name]
        self.kind, operand = op.maps[k], op.operands[k]
        x = state.values[operand]
        self.parts = [
            (_flat(term.weight), _flat(term.x.expand_as(x)), _flat(share.factor.expand_as(z)))
            for share in kernel.shares
            for term in share.terms
            if term.operand == k
        ]
        self.kind_of = z.cpu().numpy().dtype
        weights = [t.weight for s in kernel.shares for t in s.terms if t.operand == k]
        self.sizes = tuple(z.shape), tuple(x.shape), tuple(weights[0].shape) if weights else ()
        batch = state.network.layout.batches[name]
        # Relevance at the layer, and what is still to come from the operand.
        self.arrivals: list[tuple[Values, Values | float]] | None = None
        if arrivals is not None:
            self.arrivals = []
            for arrival in arrivals:
                h = arrival.below.below(name, operand)
                h = h if isinstance(h, float) else _flat(h.expand_as(x))
                self.arrivals.append((_flat(batch.native(arrival.relevance)), h))

    def rows(
        self, outputs: _OutputRange, asked: npt.NDArray[np.bool_] | None
    ) -> tuple[Places, Places, Values, Values]:
        """Native positions of both ends, relevance and q; under a conjunction, q times h."""
        if not self.parts:  # an operand that the rule holds constant
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, nothing.astype(self.kind_of), nothing.astype(self.kind_of)
        if outputs is None:
            o, i, e = self.kind.triples(*self.sizes)
        else:
            o, i, e = self.kind.triples(*self.sizes, *outputs)  # type: ignore[call-arg]
        if asked is not None:
            keep = np.flatnonzero(asked[o])
            o, i, e = o[keep], i[keep], e[keep]
        q: Any = 0
        for weight, x, factor in self.parts:
            q = q + weight[e] * x[i] * factor[o]
        if self.arrivals is None:
            return o, i, q, q
        relevance: Any = 0
        onward = q
        for reached, h in self.arrivals:
            onward = q * (h if isinstance(h, float) else h[i])
            relevance = relevance + onward * reached[o]
        # Of several conjunctions q says no more than that there is an edge.
        return o, i, relevance, onward if len(self.arrivals) == 1 else q


_Shape = tuple[int, ...]

_OutputRange = tuple[range, range | None] | None
"""Channels and lines of an operation's output; None for all."""


def _output_ranges(
    op: Weighing, sizes: tuple[_Shape, _Shape, _Shape], asked: npt.NDArray[np.bool_] | None
) -> Iterator[_OutputRange]:
    """Parts of an operation's output, of about CHUNK edges, that hold what is asked for."""
    kind, (z, x, w) = op.maps[0], sizes
    chunks = None
    if isinstance(kind, Convolution | Dense) and len(op.maps) == 1:
        chunks = kind.chunks(z, x, w, CHUNK)
    if chunks is None:
        yield None
        return
    if asked is None:
        yield from chunks
        return
    if isinstance(kind, Dense):
        grid = asked.reshape(-1, z[-1]).T[:, :, None]
    else:
        grid = asked.reshape(z[1], z[2], -1)
    fan = max(1, kind.dense_edges(z, x, w) // max(1, asked.size)) * grid.shape[2]
    spans = []
    for channel in np.flatnonzero(grid.any((1, 2))):
        lines = np.flatnonzero(grid[channel].any(1))
        spans.append((int(channel), int(lines[0]), int(lines[-1]) + 1))
    most = max(1, CHUNK // fan)  # lines at once
    for _, group in itertools.groupby(
        enumerate(spans), lambda item: (item[1][0] - item[0], item[1][1:])
    ):
        alike = [span for _, span in group]  # neighbouring channels, the same lines
        _, low, high = alike[0]
        wide = max(1, most // (high - low))
        for a in range(0, len(alike), wide):
            block = alike[a : a + wide]
            channels = range(block[0][0], block[-1][0] + 1)
            for line in range(low, high, most):
                yield channels, range(line, min(line + most, high))


def only_awake(state: State, name: str, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Of the neurons chosen, those that may hold relevance, flat: silent ones receive none."""
    alive = awake(state, name)
    return chosen if alive is None else chosen & _flat(alive)


def pseudo_block(
    state: State, layer_id: int, chosen: npt.NDArray[np.bool_], arrivals: Sequence[Arrival]
) -> Block:
    """Edges from neurons of a layer to its own pseudo-neurons; see :func:`neuron_blocks`."""
    net = state.network
    name = net.values[layer_id]
    at = np.flatnonzero(only_awake(state, name, chosen))
    blocks = []
    for unit, share in kernel_of(state, name).absorbed() if name in net.layout.weighings else ():
        q = _flat(state.samples(name, share.expand_as(state.values[name])))[at]
        relevance: Any = 0
        for arrival in arrivals:
            if arrival.below.absorbs(layer_id):
                relevance = relevance + q * _flat(arrival.relevance)[at]
        if isinstance(relevance, int):
            continue
        keep = q != 0
        block = Block(
            layer_id, layer_id, at[keep], np.full(int(keep.sum()), unit), relevance[keep], q[keep]
        )
        blocks.append(_conditional(block, state, name, arrivals))
    if not blocks:
        nothing = np.zeros(0, np.int64)
        kind = state.output.cpu().numpy().dtype
        return Block(
            layer_id, layer_id, nothing, nothing, nothing.astype(kind), nothing.astype(kind)
        )
    return merged(blocks)


def _flat(values: Tensor) -> Values:
    return values.cpu().numpy().ravel()
