"""Random networks, inputs and events, each beside the boolean array over its walks."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

import nrm_graph as ng
from reference import brute_networks
from reference.brute import Walks
from reference.brute_networks import NETS

TOLERANCE = 1e-10
LIMIT = 40_000


class Case(NamedTuple):
    walks: Walks
    measure: ng.Measure
    scale: float


def network(kind: str, seed: int):
    """A network and its program: what is slow is tracing, so examples share a few of them."""
    name = kind if kind in NETS else f"{kind}{seed}"
    return brute_networks.build(name)[0], brute_networks.program(name)


@functools.lru_cache(maxsize=64)
def build(kind: str, seed: int, x_seed: int, spread: float, composite: str, target: int, bias: str):
    net, program = network(kind, seed)
    generator = torch.Generator().manual_seed(x_seed)
    x = torch.randn((1, *net.shape), generator=generator, dtype=torch.float64) * spread
    try:
        walks = Walks(net, x, target, composite, LIMIT, bias)
    except OverflowError:
        return None
    rules = ng.composites.get(composite, bias)
    measure = ng.measure(
        program, x, target=target, composite=rules, dtype="float64", resolution="neuron"
    )
    # Rounding is relative to what is summed: the walks, layer by layer.
    return Case(walks, measure, max(1.0, walks.variation()))


KINDS = [*((name, 7) for name in NETS), *(("vector", s) for s in (6, 17, 27, 44))]
KINDS += [("image", s) for s in (13, 29, 42)]


@st.composite
def cases(draw, kinds=tuple(KINDS)):
    kind, seed = draw(st.sampled_from(kinds))
    found = build(
        kind,
        seed,
        draw(st.integers(0, 3)),
        draw(st.sampled_from([0.1, 1.0, 30.0])),
        draw(st.sampled_from(["epsilon", "epsilon_gamma", "epsilon_plus"])),
        draw(st.integers(0, 1)),
        draw(st.sampled_from(["absorbed", "ignored"])),
    )
    assume(found is not None)
    return found


def masks(draw, w: Walks, layer: str) -> np.ndarray:
    bits = draw(st.integers(0, 2 ** int(np.prod(w.shapes[layer])) - 1))
    size = int(np.prod(w.shapes[layer]))
    return np.array([bits >> i & 1 for i in range(size)], bool).reshape(w.shapes[layer])


@st.composite
def sets(draw, w: Walks, layer: str | None = None):
    layer = layer or draw(st.sampled_from(w.layers))
    mask = masks(draw, w, layer)
    return ng.Layer(layer)[mask], w.passes(layer, mask)


@st.composite
def edges(draw, w: Walks):
    """Steps between any two layers, neighbours or not."""
    high = draw(st.integers(1, len(w.layers) - 1))
    dst, src = w.layers[high], w.layers[draw(st.integers(0, high - 1))]
    d, s = masks(draw, w, dst), masks(draw, w, src)
    return ng.Edge(ng.Layer(dst)[d], ng.Layer(src)[s]), w.edge(dst, d, src, s)


@st.composite
def stays(draw, w: Walks):
    names = draw(st.lists(st.sampled_from(w.layers), min_size=1, max_size=3, unique=True))
    inside, chosen = np.ones(len(w), bool), {}
    for name in names:
        chosen[name] = masks(draw, w, name)
        inside &= w.passes(name, chosen[name]) | ~w.visits(name)
    return ng.stay(chosen), inside


def events(w: Walks, leaves: int = 5):
    """An event and the same as a boolean array over the walks."""

    def combine(children):
        pairs = st.tuples(children, children)
        return st.one_of(
            children.map(lambda e: (~e[0], ~e[1])),
            pairs.map(lambda p: (p[0][0] & p[1][0], p[0][1] & p[1][1])),
            pairs.map(lambda p: (p[0][0] | p[1][0], p[0][1] | p[1][1])),
            pairs.map(lambda p: (p[0][0] - p[1][0], p[0][1] & ~p[1][1])),
        )

    return st.recursive(st.one_of(sets(w), sets(w), edges(w), stays(w)), combine, max_leaves=leaves)


def close(found, expected, scale: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def quietly(examples: int) -> settings:
    """So many examples, the same ones at every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=QUIET,
    )
