"""Every answer of a measure against the sum over enumerated walks, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nrm_graph as ng
from reference.brute import BIAS, STABILIZER, Walks, kernels
from reference.brute_networks import (
    CASES,
    NETS,
    QUICK,
    READINGS,
    TOLERANCE,
    build,
    close,
    conditions,
    links,
    measure,
    random_event,
    random_mask,
    random_set,
    reached,
    sampled,
    walks,
)

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(params=sampled([*CASES, *READINGS]))
def case(request):
    return walks(*request.param), measure(*request.param)


# The reference itself


@pytest.mark.smoke
@pytest.mark.parametrize("chosen", [*CASES, *QUICK], ids="-".join)
def test_walks_sum_to_one_and_marginals_are_chained_kernels(chosen):
    w = walks(*chosen)
    scale = np.abs(w.value).sum()
    assert abs(w.total() - 1) < 1e-13 * max(1, scale)
    relevance = {layer: np.zeros(int(np.prod(w.shapes[layer]))) for layer in w.layers}
    relevance[w.layers[-1]][w.target] = 1
    for layer in reversed(w.layers):
        close(w.marginal(layer), relevance[layer], scale)
        if layer in w.steps:
            for src, q in w.steps[layer].q.items():
                relevance[src] += relevance[layer] @ q


def test_the_reference_itself_runs_the_network():
    for name in (*NETS, "vector6", "image7"):
        net, x = build(name)
        layers = [node.name for node in net.nodes]
        assert net(x[None]).shape[1:] == net.shapes[layers[-1]]


@pytest.mark.parametrize("name", ["tokens", "channels", "inception", "twice"])
def test_constant_neurons_are_those_that_no_input_changes(name):
    net, x = build(name)
    values: dict[str, list[np.ndarray]] = {}
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        value = {"x": 3 * torch.randn((1, *x.shape), generator=generator, dtype=torch.float64)}
        for node in net.nodes[1:]:
            with torch.no_grad():
                value[node.name] = net.run(node, [value[a] for a in node.args])
            values.setdefault(node.name, []).append(value[node.name].numpy().ravel())
    steps, any_constant = kernels(net, x, "epsilon", "ignored"), False
    for layer, step in steps.items():
        np.testing.assert_array_equal(step.constant, np.ptp(values[layer], axis=0) == 0)
        any_constant |= step.constant.any()
    assert any_constant == (name in ("tokens", "channels"))


# Single answers


def test_the_sure_event(case):
    w, m = case
    everything = ng.Layer(w.layers[-1])[...]
    close(m(everything), 1.0, w.variation())
    close(m(everything | ~everything), 1.0, w.variation())
    assert m(everything & ~everything) == 0


def test_marginals_of_every_layer(case):
    w, m = case
    for layer in w.layers:
        found = np.asarray(m.marginal(layer, by="neuron"))
        assert found.shape == w.shapes[layer], layer
        close(found.reshape(-1), w.marginal(layer), w.variation())


def test_single_sets_and_complements(case):
    w, m = case
    rng = np.random.default_rng(1)
    for layer in w.layers:
        event, on = random_set(rng, w, layer)
        close(m(event), w.total(on), w.variation())
        close(m(~event), w.total(~on), w.variation())
        inside = ng.Layer(layer)[...] - event
        close(m(inside), w.total(w.visits(layer) & ~on), w.variation())


def test_joints_of_two_layers(case):
    w, m = case
    rng = np.random.default_rng(2)
    for i, a in enumerate(w.layers):
        for b in w.layers[:i]:
            (A, on_a), (B, on_b) = random_set(rng, w, a), random_set(rng, w, b)
            close(m(A & B), w.total(on_a & on_b), w.variation())
            close(m(B & A), w.total(on_a & on_b), w.variation())
            close(m(A | B), w.total(on_a | on_b), w.variation())
            close(m(A - B), w.total(on_a & ~on_b), w.variation())
            close(m(~A & ~B), w.total(~on_a & ~on_b), w.variation())


def test_joint_matrices(case):
    w, m = case
    for i, a in enumerate(w.layers):
        for b in w.layers[:i]:
            close(np.asarray(m.joint(a, b).values), w.joint(a, b), w.variation())


def test_joints_of_three_layers(case):
    w, m = case
    rng = np.random.default_rng(3)
    for _ in range(10):
        names = rng.choice(w.layers, size=min(3, len(w.layers)), replace=False)
        sets = [random_set(rng, w, str(name)) for name in names]
        event, on = sets[0]
        for other, on_other in sets[1:]:
            event, on = event & other, on & on_other
        close(m(event), w.total(on), w.variation())


def test_nested_events(case):
    w, m = case
    rng = np.random.default_rng(4)
    for _ in range(25):
        event, on = random_event(rng, w)
        expected = w.total(on)
        found = m(event)
        assert found == pytest.approx(expected, abs=TOLERANCE * max(1, w.variation())), event


def test_inclusion_and_exclusion(case):
    w, m = case
    rng = np.random.default_rng(5)
    for _ in range(5):
        A, B = random_event(rng, w, 2)[0], random_event(rng, w, 2)[0]
        close(m(A | B) + m(A & B), m(A) + m(B), w.variation())


def test_stay_is_to_avoid_every_complement(case):
    w, m = case
    rng = np.random.default_rng(6)
    for size in (1, 2, len(w.layers)):
        names = [str(n) for n in rng.choice(w.layers, size=min(size, 99), replace=False)]
        masks = {name: rng.random(w.shapes[name]) < 0.7 for name in names}
        inside = np.ones(len(w), bool)
        for name, mask in masks.items():
            inside &= w.passes(name, mask) | ~w.visits(name)
        close(m(ng.stay(masks)), w.total(inside), w.variation())
        sets = {name: ng.Layer(name)[mask] for name, mask in masks.items()}
        close(m(ng.stay(sets)), w.total(inside), w.variation())


def test_edge_events(case):
    w, m = case
    rng = np.random.default_rng(7)
    for dst, src in links(w):
        d, s = random_mask(rng, w.shapes[dst]), random_mask(rng, w.shapes[src])
        edge = ng.Edge(ng.Layer(dst)[d], ng.Layer(src)[s])
        on = w.edge(dst, d, src, s)
        close(m(edge), w.total(on), w.variation())
        close(m(~edge), w.total(~on), w.variation())
        other, on_other = random_set(rng, w)
        close(m(edge & other), w.total(on & on_other), w.variation())


def test_edges_that_do_not_exist_are_zero(case):
    w, m = case
    connected = set(links(w))
    for i, dst in enumerate(w.layers):
        for src in w.layers[:i]:
            if (dst, src) not in connected:
                assert m(ng.Edge(ng.Layer(dst)[...], ng.Layer(src)[...])) == 0


# Conditioning


def test_conditionals(case):
    w, m = case
    rng = np.random.default_rng(8)
    for given, on in conditions(w, rng):
        for _ in range(3):
            event, on_event = random_event(rng, w, 2)
            scale = w.variation() / abs(w.total(on))
            expected = w.total(on_event & on) / w.total(on)
            close(m(event, given=given), expected, scale)


def test_a_condition_with_no_relevance_is_undefined(case):
    w, m = case
    layer = w.layers[0]
    with pytest.raises(ng.UndefinedConditional):
        m(ng.Layer(w.layers[-1])[...], given=ng.Layer(layer)[...] - ng.Layer(layer)[...])


def test_conditioned_marginals_edges_and_ends(case):
    w, m = case
    rng = np.random.default_rng(9)
    for given, on in conditions(w, rng, 4):
        r, conditioned = w.total(on), m.given(given)
        scale = w.variation() / abs(r)
        for layer in w.layers:
            found = np.asarray(conditioned.marginal(layer, by="neuron")).reshape(-1)
            close(found, w.marginal(layer, on) / r, scale)
        for dst, src in links(w):
            close(dense_edges(conditioned, w, dst, src)[0], w.flow(dst, src, on) / r, scale)
        report = ends(conditioned)
        for layer in w.steps:
            for unit in (BIAS, STABILIZER):
                close(report[layer][unit], w.total(w.ends(layer, unit) & on) / r, scale)


def test_given_twice_is_given_both(case):
    w, m = case
    rng = np.random.default_rng(10)
    for first, on_first in conditions(w, rng, 3):
        for second, on_second in conditions(w, rng, 2):
            both = on_first & on_second
            if not abs(w.total(both)) > 1e-2 * np.abs(w.value[both]).sum():
                continue
            event, on = random_set(rng, w)
            expected = w.total(on & both) / w.total(both)
            found = m.given(first).given(second)(event)
            close(found, expected, w.variation() / abs(w.total(both)))


def test_conditioned_joint_matrices(case):
    w, m = case
    rng = np.random.default_rng(11)
    for given, on in conditions(w, rng, 2):
        conditioned = m.given(given)
        pairs = [(a, b) for i, a in enumerate(w.layers) for b in w.layers[:i]]
        for a, b in (pairs[i] for i in rng.choice(len(pairs), size=min(4, len(pairs)))):
            found = np.asarray(conditioned.joint(a, b).values)
            close(found, w.joint(a, b, on) / w.total(on), w.variation() / abs(w.total(on)))


# Tables


def ends(m) -> dict[str, dict[int, float]]:
    """Absorbed relevance of every layer."""
    table = m.report().to_pydict()
    return {
        layer: {BIAS: bias or 0.0, STABILIZER: stabilizer or 0.0}
        for layer, bias, stabilizer in zip(
            table["layer"], table["bias"], table["stabilizer"], strict=True
        )
    }


def dense_edges(m, w: Walks, dst: str, src: str) -> tuple[np.ndarray, np.ndarray]:
    """An edge table as two matrices, relevance and conditional."""
    table = m.edges(dst, src).to_pydict()
    shape = [int(np.prod(w.shapes[name])) for name in (dst, src)]
    relevance, conditional = np.zeros(shape), np.zeros(shape)
    seen = set()
    rows = zip(
        table["dst_unit"], table["src_unit"], table["relevance"], table["conditional"], strict=True
    )
    for j, i, r, q in rows:
        assert i >= 0
        assert (j, i) not in seen
        seen.add((j, i))
        relevance[j, i], conditional[j, i] = r, np.nan if q is None else q
    return relevance, conditional


def test_edge_tables(case):
    w, m = case
    for dst, src in links(w):
        relevance, conditional = dense_edges(m, w, dst, src)
        close(relevance, w.flow(dst, src), w.variation())
        # Rows stay where R(j) cancels to 0, but not where no walk reaches j at all.
        q = w.steps[dst].q[src]
        close(conditional, q * reached(w, dst)[:, None], np.abs(q).max())


def test_pseudo_edges(case):
    w, m = case
    for layer, step in w.steps.items():
        table = m.edges(layer, layer).to_pydict()
        size = int(np.prod(w.shapes[layer]))
        found = {BIAS: np.zeros(size), STABILIZER: np.zeros(size)}
        shares = {BIAS: np.zeros(size), STABILIZER: np.zeros(size)}
        rows = zip(
            table["dst_unit"],
            table["src_unit"],
            table["relevance"],
            table["conditional"],
            strict=True,
        )
        for j, i, r, q in rows:
            found[i][j] += r
            shares[i][j] += q
        at = w.marginal(layer)
        close(found[BIAS], at * step.bias, w.variation())
        close(found[STABILIZER], at * step.stabilizer, w.variation())
        here = reached(w, layer)
        close(shares[BIAS], step.bias * here, np.abs(step.bias).max())
        close(shares[STABILIZER], step.stabilizer * here, np.abs(step.stabilizer).max())


def test_report(case):
    w, m = case
    report = m.report().to_pydict()
    assert set(report["layer"]) == set(w.layers)
    absorbed = ends(m)
    for number, layer in enumerate(report["layer"]):
        relevance = w.marginal(layer)
        close(report["sum"][number], relevance.sum(), w.variation())
        close(report["total_variation"][number], np.abs(relevance).sum(), w.variation())
        for unit in (BIAS, STABILIZER):
            close(absorbed[layer][unit], w.total(w.ends(layer, unit)), w.variation())


def test_every_cut_sums_to_one(case):
    w, m = case
    for layer in w.layers:
        close(m.cut(layer).total, 1.0, w.variation())


# Known answers


@pytest.mark.smoke
def test_parallel_branches_have_joint_relevance_zero():
    m = measure("branches", "epsilon")
    left, right, deep = (ng.Layer(name)[...] for name in ("left", "right", "deep"))
    assert m(left & right) == 0
    assert m(left & deep) == 0
    assert m(left & ng.Layer("x")[...] & deep) == 0
    assert m(right & deep) != 0
    assert m(ng.Edge(deep, left)) == 0


@pytest.mark.smoke
def test_an_edge_beside_a_skip_is_not_the_joint():
    w, m = walks("residual", "epsilon"), measure("residual", "epsilon")
    dst, src = ng.Layer("add")[...], ng.Layer("fc1")[...]
    joint = w.visits("add") & w.visits("fc1")
    direct = joint & (w.after["add"] == "fc1")
    assert abs(w.total(joint) - w.total(direct)) > 1e-3
    close(m(dst & src), w.total(joint), w.variation())
    close(m(ng.Edge(dst, src)), w.total(direct), w.variation())
