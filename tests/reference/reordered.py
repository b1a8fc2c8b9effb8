"""Networks whose relevance cancels, and a float64 reference with channels in another order.

A network with its hidden channels permuted is the same function, but sums everything in another
order: what its float64 answers differ by is float64's rounding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.events.conjunctions import expand
from nrm_graph.measures import rounding_errors
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.output_weights import initial_relevance
from nrm_graph.propagation.state import State

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.measures.measure import Measure


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Residual(nn.Module):
    """17 convolutions in residual blocks, without a pool."""

    def __init__(self, width=12, blocks=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Pooled(nn.Module):
    """Overlapping pools over saturated regions, where many maxima tie."""

    def __init__(self, width=12):
        super().__init__()
        sizes = [3, width, width, width, width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for conv in self.convs:
            x = nn.functional.max_pool2d(torch.relu(conv(x)), 3, 2, 1)
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A measure in float32, its reference, and the order of the reference's channels by layer."""

    measure: Measure
    truth: Measure
    orders: dict[str, npt.NDArray[np.int64]]


def case(name: str, size: int = 24, blocks: int = 8) -> Case:
    torch.manual_seed(0)
    net = (Residual(blocks=blocks) if name == "residual" else Pooled()).eval().requires_grad_(False)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    x = x.clamp(-0.5, 0.5) if name == "pooled" else x
    m = ng.measure(net, x, target=3, composite="epsilon")
    other, orders = reordered(net, 2)
    return Case(m, _reference(m, other, orders, x), orders)


def reordered(net, seed):
    """Permute the hidden channels of a network; the order of every layer's."""
    other, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    orders = {}

    def order(size):
        return torch.randperm(size, generator=generator)

    def turn(path, out, read):
        module = other.get_submodule(path)
        if out is not None:
            module.weight.copy_(module.weight[out])
            module.bias.copy_(module.bias[out])
            orders[path] = out.numpy()
        if read is not None:
            module.weight.copy_(module.weight[:, read])

    if isinstance(net, Residual):
        before = order(net.stem.out_channels)
        turn("stem", before, None)
        for i in range(len(net.blocks)):
            inner = order(net.stem.out_channels)
            turn(f"blocks.{i}.one", inner, before)
            turn(f"blocks.{i}.two", before, inner)
            orders[f"blocks.{i}"] = before.numpy()
    else:
        before = None
        for i, conv in enumerate(net.convs):
            own = order(conv.out_channels)
            turn(f"convs.{i}", own, before)
            before = own
    turn("head", None, before)
    return other, orders


def _reference(m, other, orders, x) -> Measure:
    """Measure of the reordered network in float64, with the decisions of ``m``."""
    own = ng.measure(other, x, target=m.target, composite="epsilon", dtype="float64")
    net = own.network
    by_value = {net.values[layer.layer_id]: orders.get(layer.name) for layer in own.topology.layers}

    def turned(name, tensor):
        """Channels of a value in the order of the layer that it is of."""
        while name not in by_value:
            name = net.reads(name)[0]
        return tensor if by_value[name] is None else tensor[:, by_value[name]]

    values = {name: turned(name, value).double() for name, value in m.state.values.items()}
    winners = {name: turned(name, index) for name, index in m.state.winners.items()}
    decided = State(net, values, m.state.positive, winners)
    inputs = {name: values[name] for name, _ in net.program.inputs}
    state = forward(net, inputs, decided)
    return replace(own, state=state, start=initial_relevance(state, own.weights), _cache={})


def cancelling(values, amplification, rng):
    """Mask of random neurons whose sum of |R| is about so many times their sum."""
    flat = values.ravel()
    alive = np.flatnonzero(flat)
    chosen = rng.choice(alive, min(len(alive) // 2, int(rng.integers(20, 400))), replace=False)
    mask = np.zeros(flat.size, bool)
    mask[chosen] = True
    rest = rng.permutation(np.setdiff1d(alive, chosen))[:4000]
    for _ in range(60):
        total, size = flat[mask].sum(), np.abs(flat[mask]).sum()
        if abs(total) <= 1.5 * size / amplification or not len(rest):
            break
        best = int(np.argmin(np.abs(total + flat[rest] - np.sign(total) * size / amplification)))
        mask[rest[best]] = True
        rest = np.delete(rest, best)
    return mask.reshape(values.shape)


@dataclass
class Tally:
    """What so many random conditionals showed.

    ``ratios`` are stated errors over the larger of the true error and 1e-6 of the value;
    ``too_small`` counts stated errors below the true one, ``law`` how often
    R(A & B) = R(A given B) R(B) is off by more than is stated; of ``sound`` sets, whose float32
    error is below 1 %, ``answered`` were; ``rough`` is the relative error of float32 alone.
    """

    amplifications: list[float]
    ratios: list[float]
    rough: list[float]
    too_small: int = 0
    law: int = 0
    sound: int = 0
    answered: int = 0


def tally(found: Case, sets: int, seed: int = 0) -> Tally:
    m, truth, orders = found.measure, found.truth, found.orders
    rng, result = np.random.default_rng(seed), Tally([], [], [])
    layers = sorted(orders, key=lambda path: m.topology.layer(path).layer_id)
    relevance = {
        path: m._precisions.double.relevance(m.topology.layer(path).layer_id)[0].numpy()
        for path in layers
    }
    for _ in range(sets):
        a, b = (layers[i] for i in rng.choice(len(layers), 2, replace=False))
        events, references, sums = [], [], []
        for path, most in ((a, 2.0), (b, 10 ** rng.uniform(0, 6))):
            mask = cancelling(relevance[path], most, rng)
            events.append(ng.Layer(path)[mask])
            references.append(ng.Layer(path)[mask[orders[path]]])
        event, given = events
        for asked in (event & given, given):
            terms = expand(asked, m.topology, m.partitions)
            sums.append(rounding_errors.evaluate(m._precisions, terms))
        joint, condition = sums
        lost = sum(s.difference / max(abs(s.value), 1e-300) for s in sums)
        result.rough.append(lost)
        result.sound += lost < 0.01
        right = truth(references[0] & references[1]) / truth(references[1])
        try:
            value = m(event, given=given)
        except ng.UndefinedConditional:
            continue
        result.answered += lost < 0.01
        error = abs(float(value) - right)
        result.too_small += error > value.error
        apart = abs(m(event & given) - float(value) * condition.value)
        result.law += apart > joint.error + value.error * abs(condition.value)
        if right or error:  # sets that no walk passes both have exactly 0
            result.ratios.append(value.error / max(error, 1e-6 * abs(right)))
        result.amplifications.append(value.amplification)
    return result
