"""Laws of conditioned measures on random networks, inputs and events, walks as the reference."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from reference.brute import BIAS, STABILIZER, Walks
from reference.random_walks import (
    KINDS,
    Case,
    cases,
    close,
    events,
    masks,
    network,
    quietly,
    sets,
)

import nrm_graph as ng
from nrm_graph.measures.results import Conditional
from nrm_graph.network import units

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

SMALL = 1e-5
"""Conditions that cancel further say little: their tolerance is not much below their answers."""


def condition(data, case: Case, drawn=None):
    """An event, its walks, the measure conditioned on it, and the size of what rounding is of."""
    w, m, scale = case
    event, on = data.draw(events(w, 3) if drawn is None else drawn)
    value = w.total(on)
    try:
        c = m.given(event)
    except ng.UndefinedConditional:
        assert abs(value) <= 1e-12 * scale * max(1, np.abs(w.value).sum())
        reject()
    close(c.condition_relevance, value, scale)
    assume(abs(value) > SMALL * scale)
    return event, on, c, scale / abs(value)


@st.composite
def conjunctions(draw, w: Walks):
    """Sets to pass through and sets to avoid, of any layers, one layer twice at times."""
    event, on = draw(sets(w))
    for _ in range(draw(st.integers(0, 3))):
        other, on_other = draw(sets(w))
        if draw(st.booleans()):
            other, on_other = ~other, ~on_other
        event, on = event & other, on & on_other
    return event, on


def check_totals(data, case: Case) -> None:
    """R(everything | B) is 1 through every cut, and what is absorbed is part of it."""
    w, *_ = case
    _, on, c, scale = condition(data, case)
    r = w.total(on)
    report = {row["layer"]: row for row in c.report().to_pylist()}
    for layer in w.layers:
        cut = c.cut(layer)
        expected = w.marginal(layer, on) / r
        close(cut.total, 1.0, scale)
        close(cut.relevance, expected.sum(), scale)
        close(report[layer]["sum"], expected.sum(), scale)
        close(report[layer]["total_variation"], np.abs(expected).sum(), scale)
        close(c.marginal(layer, by="neuron").ravel(), expected, scale)
        close(report[layer]["bias"], w.total(w.ends(layer, BIAS) & on) / r, scale)
        close(report[layer]["stabilizer"], w.total(w.ends(layer, STABILIZER) & on) / r, scale)
    close(c.absorbed, w.total((w.end_unit < 0) & on) / r, scale)
    # No sum exceeds the sum of its absolute terms, but for the rounding of both.
    assert c.amplification >= 1 - 1e-9


def check_algebra(data, case: Case) -> None:
    w, m, _ = case
    given_, on, c, scale = condition(data, case)
    (A, on_a), (D, on_d) = data.draw(events(w, 2)), data.draw(events(w, 2))
    r = w.total(on)
    a, d, both = c(A), c(D), c(A & D)
    assert isinstance(a, Conditional)
    close(a, w.total(on_a & on) / r, scale)
    close(both, w.total(on_a & on_d & on) / r, scale)
    close(c(A | D) + both, a + d, scale)
    close(c(A - D) + both, a, scale)
    close(a + c(~A), 1.0, scale)
    close(c(D & A), both, scale)
    close(c(given_), 1.0, scale)
    close(c(~given_), 0.0, scale)
    close(m(A, given=given_), a, scale)
    close(c.many([A, D, A & D, A, ~A]), [a, d, both, a, 1 - a], scale)
    close(c.interaction(A, D), both - a * d, scale * max(1.0, abs(a), abs(d)))


def check_chain(data, case: Case) -> None:
    """Conditioning in any order, and R(A & B) = R(A given B) R(B)."""
    w, m, whole = case
    A, on_a, first, scale_a = condition(data, case)
    B, on_b, second, scale_b = condition(data, case)
    on = on_a & on_b
    r = w.total(on)
    assume(abs(r) > SMALL * whole)
    scale = whole / abs(r)
    close(first(B) * first.condition_relevance, r, whole)
    close(second(A) * second.condition_relevance, r, whole)
    close(first(B) * m(A), second(A) * m(B), whole * max(1.0, scale_a, scale_b))
    ways = [first.given(B), second.given(A), m.given(A & B), m.given(B & A)]
    D, on_d = data.draw(events(w, 2))
    for found in ways:
        close(found.condition_relevance, r, whole)
        close(found(D), w.total(on_d & on) / r, scale)
        for layer in w.layers:
            close(found.marginal(layer, by="neuron").ravel(), w.marginal(layer, on) / r, scale)


def check_tables(data, case: Case) -> None:
    """Edges sum to nodes on both sides, pseudo-edges among them; nodes are the marginals."""
    _, _, c, scale = condition(data, case)
    nodes, rows = c.tables()
    edge = {name: rows[name].to_numpy() for name in rows.column_names[:5]}
    node = {name: nodes[name].to_numpy() for name in nodes.column_names[:3]}
    report = {row["layer"]: row for row in c.report().to_pylist()}
    for info in c.topology.layers:
        relevance = c.marginal(info.name, by="neuron").ravel()
        own = node["layer_id"] == info.layer_id
        real = own & (node["unit"] >= 0)
        found = np.bincount(node["unit"][real], node["relevance"][real], info.n_neurons)
        close(found, relevance, scale)
        for unit, kind in ((BIAS, "bias"), (STABILIZER, "stabilizer")):
            held = node["relevance"][own & (node["unit"] == unit)].sum()
            close(held, report[info.name][kind], scale)
        out = edge["dst_layer"] == info.layer_id
        if info.kind != "input":
            leaves = np.bincount(edge["dst_unit"][out], edge["relevance"][out], info.n_neurons)
            close(leaves, relevance, scale)
        into = (edge["src_layer"] == info.layer_id) & (edge["src_unit"] >= 0)
        if info != c.topology.output:
            arrives = np.bincount(edge["src_unit"][into], edge["relevance"][into], info.n_neurons)
            close(arrives, relevance, scale)


def check_products(data, case: Case) -> None:
    """R(top) times the product of ``conditional`` along a walk is R(walk | condition)."""
    w, *_ = case
    _, on, c, scale = condition(data, case, conjunctions(w))
    _, rows = c.tables()
    names = {info.layer_id: info.name for info in c.topology.layers}
    q = {
        (names[a], j, names[b], i): value
        for a, j, b, i, _, value in zip(
            *(rows[k].to_pylist() for k in rows.column_names), strict=True
        )
    }
    top = w.layers[-1]
    product = np.full(len(w), c.marginal(top, by="neuron").ravel()[w.target])
    known = np.ones(len(w), bool)
    for layer in w.layers[:0:-1]:
        for number in np.flatnonzero(w.visits(layer)):
            j, below = int(w.at[layer][number]), str(w.after[layer][number])
            if below:
                key = (layer, j, below, int(w.at[below][number]))
            else:
                key = (layer, j, layer, int(w.end_unit[number]))
            value = q.get(key, 0.0)  # a step that no walk of the condition takes
            if value is None:  # nothing goes on from j
                known[number] = False
                value = 0.0
            product[number] *= value
    expected = np.where(on, w.value, 0.0) / w.total(on)
    # Quotients h(i) / h(j) telescope; where some h nearly cancel, so do not their roundings.
    close(product[known], expected[known], 1e3 * scale)
    close(expected[~known], 0.0, scale)


def check_joint(data, case: Case) -> None:
    """Tables by passes down and by passes up are the walks'; their sums are marginals."""
    w, *_ = case
    _, on, c, scale = condition(data, case)
    high = data.draw(st.integers(1, len(w.layers) - 1))
    a, b = w.layers[high], w.layers[data.draw(st.integers(0, high - 1))]
    r = w.total(on)
    expected = w.joint(a, b, on) / r
    close(c.joint(a, b).values, expected, scale)
    close(c.joint(b, a).values, expected.T, scale)
    one = replace(c, memory=1)  # a pass for each unit
    close(one.joint(a, b).values, expected, scale)
    down = [one.joint(ng.Layer(a).units([i]), b).values[0] for i in range(len(expected))]
    close(down, expected, scale)
    # One row at most goes down: with two rows and one column, the passes go up.
    flat = np.arange(expected.shape[0]).reshape(w.shapes[a])
    up = [c.joint(a, ng.Layer(b).units([i])).values[:, 0] for i in range(expected.shape[1])]
    close(np.stack(up, 1), expected, scale)
    groups = c.joint(a, b, by=((flat % 2) if flat.size > 1 else flat, "neuron"))
    close(groups.values[0], expected[::2].sum(0), scale)
    # Sums are those of the walks that pass the other layer as well.
    passed = c.given(ng.Layer(b)[...]) if abs(c(ng.Layer(b)[...])) > SMALL else None
    if passed is not None:
        share = passed.condition_relevance / c.condition_relevance
        other = passed.marginal(a, by="neuron").ravel() * share
        close(expected.sum(1), other, scale * max(1.0, abs(share)))
    if not (on & w.visits(b) & ~w.visits(a)).any():
        close(expected.sum(0), c.marginal(b, by="neuron").ravel(), scale)
    if not (on & w.visits(a) & ~w.visits(b)).any():
        close(expected.sum(1), c.marginal(a, by="neuron").ravel(), scale)


def check_units(data, case: Case) -> None:
    """The strongest units, unions of sets, and regions of a joint table."""
    w, *_ = case
    _, on, c, scale = condition(data, case)
    layer = data.draw(st.sampled_from(w.layers))
    values = c.marginal(layer, by="neuron").ravel()
    k = data.draw(st.integers(1, len(values)))
    best = c.strongest(layer, k)
    close(c(best), np.sort(values)[::-1][:k].sum(), scale)
    four = [data.draw(sets(w)) for _ in range(4)]
    union, on_union = four[0]
    for event, on_event in four[1:]:
        union, on_union = union | event, on_union | on_event
    close(c(union), w.total(on_union & on) / w.total(on), scale)
    parts, signs = [], []
    for chosen in range(1, 16):
        chain = [event for i, (event, _) in enumerate(four) if chosen >> i & 1]
        parts.append(functools.reduce(lambda x, y: x & y, chain))
        signs.append(1 if len(chain) % 2 else -1)
    close(c(union), np.dot(signs, c.many(parts)), 16 * scale)
    other = data.draw(st.sampled_from(w.layers))
    mine, theirs = masks(data.draw, w, layer), masks(data.draw, w, other)
    found = c.joint(ng.Layer(layer)[mine], ng.Layer(other)[theirs])
    rows, columns = np.flatnonzero(mine), np.flatnonzero(theirs)
    np.testing.assert_array_equal(found.rows.units, rows)
    np.testing.assert_array_equal(found.columns.units, columns)
    table = w.joint(layer, other, on) if layer != other else np.diag(w.marginal(layer, on))
    close(found.values, table[np.ix_(rows, columns)] / w.total(on), scale)


def check_groups(data, case: Case) -> None:
    """Tables of groups of neurons, whatever the groups, are sums of the neurons' tables."""
    _, m, _ = case
    event, _, c, scale = condition(data, case)
    labels = {}
    for info in m.topology.layers:
        count = data.draw(st.integers(1, info.n_neurons))
        order = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(info.n_neurons)
        labels[info.name] = (order % count).reshape(info.shape)
    partitions = units.resolve(m.topology, labels)
    state = replace(m.state, means={})  # mean activations are by unit
    g = replace(m, state=state, partitions=partitions, _cache={}).given(event)
    flat = [part.labels.ravel() for part in partitions]
    expected: dict[tuple[int, ...], float] = {}
    for a, j, b, i, r, _ in zip(
        *(column.to_pylist() for column in c.tables()[1].columns), strict=True
    ):
        key = (a, int(flat[a][j]), b, int(flat[b][i]) if i >= 0 else i)
        expected[key] = expected.get(key, 0.0) + r
    found = {}
    for a, j, b, i, r, q in zip(
        *(column.to_pylist() for column in g.tables()[1].columns), strict=True
    ):
        assert (a, j, b, i) not in found
        found[a, j, b, i] = r
        alone = partitions[a].single and (i < 0 or partitions[b].single)
        assert alone or q is None
    for key in expected | found:
        close(found.get(key, 0.0), expected.get(key, 0.0), scale)
    for info, part, own in zip(m.topology.layers, partitions, flat, strict=True):
        values = c.marginal(info.name, by="neuron").ravel()
        sums = np.bincount(own, values, part.n_units)
        close(g.marginal(info.name), sums, scale)
        close(g.cut(info.name).total, 1.0, scale)
    a, b = (m.topology.layers[data.draw(st.integers(0, len(flat) - 1))] for _ in range(2))
    table = np.zeros([partitions[info.layer_id].n_units for info in (a, b)])
    whole = c.joint(a.name, b.name).values
    np.add.at(table, (flat[a.layer_id][:, None], flat[b.layer_id][None, :]), whole)
    close(g.joint(a.name, b.name).values, table, scale)


@functools.lru_cache(maxsize=64)
def single(program_key, target: int, composite: str, values: bytes, shape) -> ng.Measure:
    x = torch.from_numpy(np.frombuffer(values, np.float64).reshape(shape).copy())
    return ng.measure(
        network(*program_key)[1],
        x,
        target=target,
        composite=composite,
        dtype="float32",
        resolution="neuron",
    )


def check_single_precision(data, case: None) -> None:
    """The same laws in float32, to some units of rounding of all that is summed."""
    kind, seed = data.draw(st.sampled_from(KINDS))
    net, _ = network(kind, seed)
    x = torch.randn(
        (1, *net.shape),
        generator=torch.Generator().manual_seed(data.draw(st.integers(0, 3))),
        dtype=torch.float64,
    )
    composite = data.draw(st.sampled_from(["epsilon", "epsilon_gamma", "epsilon_plus"]))
    target = data.draw(st.integers(0, 1))
    m = single((kind, seed), target, composite, x.numpy().tobytes(), (1, *net.shape))
    try:
        w = Walks(net, x, target, composite, 40_000)
    except OverflowError:
        reject()
    event, on = data.draw(events(w, 3))
    r = w.total(on)
    # Every entry of the kernel has a relative rounding of its column's sum of |q|, and every walk
    # multiplies at most as many entries as there are layers.
    columns = max(
        (sum(np.abs(q).sum(1) for q in s.q.values()) + np.abs(s.bias) + np.abs(s.stabilizer)).max()
        for s in w.steps.values()
    )
    error = 8 * len(w.layers) * 2.0**-23 * columns * np.abs(w.value).sum()
    assume(error < 0.01 * abs(r))
    c = m.given(event)
    scale = error / abs(r)

    def near(found, expected, scale=scale):
        np.testing.assert_allclose(found, expected, rtol=0, atol=scale * max(1.0, 1 / abs(r)))

    near(c.condition_relevance, r)
    A, on_a = data.draw(events(w, 2))
    near(c(A), w.total(on & on_a) / r)
    near(c(A) + c(~A), 1.0)
    for layer in w.layers:
        near(c.cut(layer).total, 1.0)
        found = c.marginal(layer, by="neuron")
        assert found.dtype == np.float32
        near(found.ravel(), w.marginal(layer, on) / r)
    a, b = w.layers[-1], w.layers[0]
    near(c.joint(a, b).values, w.joint(a, b, on) / r)


CHECKS = {
    "totals": (check_totals, 6),
    "algebra": (check_algebra, 6),
    "chain": (check_chain, 6),
    "tables": (check_tables, 7),
    "products": (check_products, 7),
    "joint": (check_joint, 7),
    "units": (check_units, 7),
    "groups": (check_groups, 7),
    "single_precision": (check_single_precision, 7),
}


def run_check(name: str, examples: int, kinds) -> None:
    check, _ = CHECKS[name]

    @quietly(examples)
    @given(st.data())
    def run(data):
        check(data, None if name == "single_precision" else data.draw(cases(kinds)))

    run()


@pytest.mark.parametrize("name", CHECKS)
def test_random(name):
    run_check(name, CHECKS[name][1], tuple(KINDS))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_random_at_length(name):
    more = (*KINDS, *(("vector", s) for s in range(12)), *(("image", s) for s in range(12)))
    run_check(name, 80, more)
