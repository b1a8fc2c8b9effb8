"""Strongest walks and unit paths against all walks, enumerated, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.brute import Walks
from reference.brute_networks import CASES, build, measure, random_event, sampled, walks

import nrm_graph as ng
from nrm_graph.measures.paths import max_plus, sliced_convolution
from nrm_graph.measures.paths.bounds import mass
from nrm_graph.measures.paths.unit_paths import strongest_paths
from nrm_graph.measures.paths.walks import strongest_walks
from nrm_graph.network.maps.convolution import Convolution

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

PATHS = [pair for pair in CASES if pair[1] in ("epsilon", "epsilon_gamma")]
# Half of them: one composite each.
UNITS = [pair for i, pair in enumerate(PATHS) if i >= 18 or i % 4 in (0, 3)]


@pytest.fixture(params=sampled(PATHS))
def case(request):
    name, composite = request.param
    return walks(name, composite), measure(name, composite)


def named(w: Walks, number: int) -> tuple[tuple[str, int], ...]:
    """Layers and units of an enumerated walk."""
    units = [(name, int(w.at[name][number])) for name in reversed(w.layers)]
    units = [(name, unit) for name, unit in units if unit >= 0]
    end = int(w.end_unit[number])
    return (*units, *([(str(w.end_layer[number]), end)] if end < 0 else []))


def same_walks(found, w: Walks, value: np.ndarray, on: np.ndarray, k: int, sign: str) -> None:
    """Compare the walks found with the best of those in ``on``."""
    expected = []
    for s in {"both": (1, -1), "positive": (1,), "negative": (-1,)}[sign]:
        mine = np.flatnonzero(on & (s * value > 0))
        expected.append(mine[np.argsort(-s * value[mine], kind="stable")])
    top = [best[:k] for best in expected]
    chosen = np.concatenate(top).astype(int)
    assert len(found) == len(chosen)
    np.testing.assert_allclose([p.relevance for p in found], value[chosen], rtol=1e-9)
    rest = [abs(value[best[k]]) for best in expected if len(best) > k]
    assert found.bound == pytest.approx(max(rest, default=0.0), rel=1e-9)
    assert found.certified
    by_name = {named(w, int(n)): value[n] for n in np.flatnonzero(on)}
    assert len({path.units for path in found}) == len(found)
    for path in found:  # ties may come in any order, but every walk is what it says
        assert by_name[path.units] == pytest.approx(path.relevance, rel=1e-9)


def to_input(w: Walks) -> np.ndarray:
    return w.end_unit >= 0


ONE_SIGN = [pytest.param(sign, marks=pytest.mark.slow) for sign in ("positive", "negative")]


@pytest.mark.parametrize("sign", ["both", *ONE_SIGN])
@pytest.mark.parametrize("end", ["input", "any"])
def test_strongest_walks(case, sign, end):
    w, m = case
    on = to_input(w) if end == "input" else np.ones(len(w), bool)
    for k in (1, 50):
        same_walks(strongest_walks(m, k, sign, end), w, w.value, on, k, sign)


def test_strongest_walks_are_all_walks_where_there_are_fewer(case):
    w, m = case
    same_walks(strongest_walks(m, 10**6, end="any"), w, w.value, w.value != 0, 10**6, "both")


@pytest.mark.parametrize("end", ["input", "any"])
def test_strongest_walks_given_an_event(case, end):
    w, m = case
    rng = np.random.default_rng(12)
    tried = 0
    for _ in range(5):
        event, on = random_event(rng, w, 2)
        if not on.any() or abs(w.total(on)) < 1e-2 * np.abs(w.value[on]).sum():
            continue
        tried += 1
        given = m.given(event)
        value = w.value / w.total(on)
        among = on & to_input(w) if end == "input" else on
        same_walks(strongest_walks(given, 20, end=end), w, value, among, 20, "both")
    assert tried


@pytest.mark.parametrize("name", ["mlp", "residual", "twice", "pooled", "inception"])
def test_strongest_walks_of_a_contrast(name):
    net, x = build(name)
    m = ng.measure(
        net, x[None], target={0: 1.0, 1: -1.0}, composite="epsilon", dtype="float64",
        scale="logit",
    )  # fmt: skip
    logits = net(x[None])[0].detach()
    parts = [Walks(net, x, t, "epsilon") for t in (0, 1)]
    w = parts[0]
    w.value = np.concatenate(
        [parts[0].value * float(logits[0]), -parts[1].value * float(logits[1])]
    )
    for attribute in ("at", "after"):
        both = [getattr(part, attribute) for part in parts]
        setattr(w, attribute, {key: np.concatenate([b[key] for b in both]) for key in both[0]})
    w.end_layer, w.end_unit = (
        np.concatenate([getattr(part, a) for part in parts]) for a in ("end_layer", "end_unit")
    )
    same_walks(strongest_walks(m, 50, end="any"), w, w.value, w.value != 0, 50, "both")


def plain_max_product(w: Walks) -> float:
    """The best walk to an input if only the largest product of every neuron is carried up."""
    best = {"x": np.ones(int(np.prod(w.shapes["x"])))}
    for layer in w.layers[1:]:
        parts = [(q * best[src]).max(1) for src, q in w.steps[layer].q.items()]
        best[layer] = np.max(parts, axis=0)
    return float(best[w.layers[-1]][w.target])


@pytest.mark.slow
def test_plain_max_product_is_a_trap():
    """A product of two negative steps may be the best, which a largest product alone misses."""
    wrong = []
    for name, composite in PATHS:
        w = walks(name, composite)
        (best,) = strongest_walks(measure(name, composite), 1, "positive")
        assert best.relevance == pytest.approx(w.value[to_input(w)].max(), rel=1e-9)
        wrong.append(plain_max_product(w) < 0.9 * best.relevance)
    assert any(wrong)


@pytest.mark.slow
def test_deep_networks_neither_under_nor_overflow():
    """57 layers of q = 1e6 + 1 or -1e6 above 340 of q = 0.1: products of 1e342 and of 1e-340."""
    layers = []
    for depth in range(340):
        layer = torch.nn.Linear(1 if depth == 0 else 10, 10, bias=False)
        layer.weight.data.fill_(1.0 if depth == 0 else 0.1)
        layers.append(layer)
    for depth in range(58):
        layer = torch.nn.Linear(10 if depth == 0 else 2, 2, bias=False)
        layer.weight.data[:] = 0.1
        if depth:
            layer.weight.data[:] = torch.tensor([1e6 + 1, -1e6])
        layers.append(layer)
    net = torch.nn.Sequential(*layers).double()
    m = ng.measure(
        net,
        torch.ones(1, 1, dtype=torch.float64),
        target=0,
        composite=ng.composites.epsilon(epsilon=1e-30),
    )
    found = strongest_walks(m, 3, "positive")
    for walk in found:
        assert len(walk.units) == 399
        assert walk.relevance == pytest.approx(100 * (1 + 1e-6) ** 57)


def test_walks_are_asked_for_in_words():
    m = measure("mlp", "epsilon")
    with pytest.raises(ng.InputError, match="beam goes with paths of units"):
        m.paths(3, beam=10)
    for wrong in (0, -1, True, 2.5, "3"):
        with pytest.raises(ng.InputError, match="from 1 to"):
            strongest_walks(m, wrong)
    with pytest.raises(ng.InputError, match="'both', 'positive' or 'negative'"):
        strongest_walks(m, 1, "up")
    with pytest.raises(ng.InputError, match="'input' or 'any'"):
        strongest_walks(m, 1, end="bias")
    with pytest.raises(ng.InputError, match="more than limit=10"):
        strongest_walks(measure("residual", "epsilon"), 1, limit=10)


def test_paths_are_a_list_a_text_and_a_table():
    m = measure("mlp", "epsilon")
    found = strongest_walks(m, 3, end="any")
    assert len(found) == len(list(found)) == 6
    assert found[0].relevance > found[1].relevance > 0 > found[-1].relevance
    assert "certified" in repr(found)
    assert "fc3[1] >" in repr(found[0])
    table = found.to_arrow()
    assert table.column_names == ["path", "relevance", "step", "layer", "unit"]
    assert len(table) == sum(len(path.units) for path in found)
    assert table["relevance"][0].as_py() == found[0].relevance


# Paths of units


def enumerated(w: Walks, layers, labels, value, on) -> dict[tuple[int, ...], float]:
    """R(u1 & ... & um) of all paths of units that a walk takes."""
    through = on & np.all([w.visits(name) for name in layers], axis=0)
    units = np.stack([labels[name].ravel()[w.at[name][through]] for name in layers], 1)
    keys, place = np.unique(units, axis=0, return_inverse=True)
    sums = np.bincount(place.ravel(), value[through], len(keys))
    return {tuple(key): total for key, total in zip(keys.tolist(), sums.tolist(), strict=True)}


def partitions(w: Walks, rng: np.random.Generator, how: str) -> dict[str, np.ndarray]:
    labels = {}
    for name in w.layers:
        shape, size = w.shapes[name], int(np.prod(w.shapes[name]))
        if how == "neuron":
            own = np.arange(size)
        elif how == "channel":
            own = np.repeat(np.arange(shape[0]), size // shape[0])
        else:
            own = np.unique(rng.integers(0, 3, size), return_inverse=True)[1]
        labels[name] = own.reshape(shape)
    return labels


def check_units(found, w: Walks, expected: dict[tuple[int, ...], float], k: int, scale: float):
    """Every relevance is exact, and bound and mass hold for all that is not listed."""
    listed = {tuple(unit for _, unit in path.units): path.relevance for path in found}
    assert len(listed) == len(found) <= k
    close = 1e-10 * scale
    for units, relevance in listed.items():
        assert relevance == pytest.approx(expected.get(units, 0.0), abs=close)
    missed = np.array([abs(r) for units, r in expected.items() if units not in listed])
    largest, total = missed.max(initial=0.0), missed.sum()
    assert found.bound >= largest - close, f"bound {found.bound} below {largest}"
    assert found.mass >= total - close, f"mass {found.mass} below {total}"
    if found.certified:
        top = np.sort(np.abs(list(expected.values())))[::-1][:k]
        values = np.abs([path.relevance for path in found])
        np.testing.assert_allclose(values, top[: len(values)], rtol=0, atol=close)
        np.testing.assert_allclose(top[len(values) :], 0, rtol=0, atol=close)


def some_layers(w: Walks, rng: np.random.Generator) -> list[str]:
    for _ in range(100):
        size = int(rng.integers(1, len(w.layers) + 1))
        names = [w.layers[i] for i in np.sort(rng.choice(len(w.layers), size, replace=False))[::-1]]
        if np.all([w.visits(name) for name in names], axis=0).any():
            return names
    raise AssertionError


@pytest.mark.parametrize("how", ["neuron", "channel", "random"])
@pytest.mark.parametrize("case", sampled(UNITS), indirect=True)
def test_unit_paths(case, how):
    w, m = case
    rng = np.random.default_rng(13)
    for _ in range(2):
        layers, labels = some_layers(w, rng), partitions(w, rng, how)
        expected = enumerated(w, layers, labels, w.value, np.ones(len(w), bool))
        wide = strongest_paths(m, 10, rng.permutation(layers).tolist(), beam=10**6, by=labels)
        check_units(wide, w, expected, 10, w.variation())
        assert wide.certified
        assert wide.layers == tuple(layers)
        rest = sorted(map(abs, expected.values()))[::-1]
        assert wide.bound == pytest.approx(max(rest[10:], default=0.0), abs=1e-10 * w.variation())
        for beam in (1, 3, 10):
            narrow = strongest_paths(m, 5, layers, beam=beam, by=labels)
            check_units(narrow, w, expected, 5, w.variation())


@pytest.mark.parametrize("case", sampled(UNITS), indirect=True)
def test_unit_paths_given_an_event(case):
    w, m = case
    rng = np.random.default_rng(14)
    for _ in range(10):
        event, on = random_event(rng, w, 2)
        if not on.any() or abs(w.total(on)) < 1e-2 * np.abs(w.value[on]).sum():
            continue
        given, layers, labels = m.given(event), some_layers(w, rng), partitions(w, rng, "random")
        value = w.value / w.total(on)
        scale = w.variation() / abs(w.total(on))
        expected = enumerated(w, layers, labels, value, on)
        wide = strongest_paths(given, 10, layers, beam=10**6, by=labels)
        check_units(wide, w, expected, 10, scale)
        assert wide.certified
        check_units(strongest_paths(given, 5, layers, beam=2, by=labels), w, expected, 5, scale)


@pytest.mark.parametrize("case", sampled(UNITS), indirect=True)
def test_unit_paths_of_all_cuts_by_default(case):
    w, m = case
    to_inputs = to_input(w)
    layers = [name for name in reversed(w.layers) if w.visits(name)[to_inputs].all()]
    found = strongest_paths(m, 5, beam=10**6)
    assert found.layers == tuple(layers)
    labels = partitions(w, np.random.default_rng(0), "neuron")
    check_units(found, w, enumerated(w, layers, labels, w.value, w.value != 0), 5, w.variation())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(UNITS), st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_unit_paths_of_any_layers_partitions_and_beams(pair, seed, k, beam):
    w, m = walks(*pair), measure(*pair)
    rng = np.random.default_rng(seed)
    layers = some_layers(w, rng)
    labels = partitions(w, rng, str(rng.choice(["neuron", "channel", "random"])))
    expected = enumerated(w, layers, labels, w.value, np.ones(len(w), bool))
    check_units(strongest_paths(m, k, layers, beam, labels), w, expected, k, w.variation())


@pytest.mark.parametrize("name", ["mlp", "residual", "branches", "same", "pooled", "resnet"])
def test_mass_is_the_sum_of_absolute_walks(name):
    """Where no step has two products; overlapping pools may read one neuron twice."""
    w, m = walks(name, "epsilon"), measure(name, "epsilon")
    top = len(w.layers) - 1
    ones = torch.ones(1, *w.shapes["x"], dtype=torch.float64)
    found = mass(m.state, {}, ones, 0, top)[0].ravel()[w.target]
    total = np.abs(w.value[to_input(w)]).sum()
    if name in ("pooled", "resnet"):
        assert total * (1 - 1e-10) <= float(found) < 1.1 * total
    else:
        assert float(found) == pytest.approx(total, rel=1e-10)


@pytest.mark.smoke
@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_single_channels_of_a_convolution(kernel, padding, dilation, stride):
    generator = torch.Generator().manual_seed(0)
    kind = Convolution(stride, padding, dilation, False, (0, 0), 1, ())
    x = torch.randn(1, 4, 9, 8, generator=generator, dtype=torch.float64)
    w = torch.randn(5, 4, *kernel, generator=generator, dtype=torch.float64)
    assert sliced_convolution.sliceable(kind)
    channels = torch.tensor([2, 0, 0])
    one = torch.zeros(3, *x.shape[1:], dtype=torch.float64)
    one[range(3), channels] = x[0, channels]
    whole = kind.apply(one, w)
    found = sliced_convolution.apply(kind, x[0, channels, None], w, channels)
    torch.testing.assert_close(found.reshape(whole.shape), whole)
    if sliced_convolution.sliceable(kind, down=True):
        s = torch.zeros_like(whole)
        s[range(3), channels] = whole[range(3), channels]
        down = sliced_convolution.transpose(
            kind, sliced_convolution.one(s, channels), w, channels, x
        )
        torch.testing.assert_close(down, kind.transpose(s, w, one))
    assert sliced_convolution.sliceable(kind, down=True) == (stride == (1, 1))


def test_unit_paths_are_asked_for_in_words():
    m = measure("mlp", "epsilon")
    for wrong in (0, True, 1.5):
        with pytest.raises(ng.InputError, match="k must be a whole number"):
            strongest_paths(m, wrong)
        with pytest.raises(ng.InputError, match="beam must be a whole number"):
            strongest_paths(m, 1, beam=wrong)
    with pytest.raises(ng.InputError, match="named twice"):
        strongest_paths(m, 1, ["fc1", "fc1"])
    with pytest.raises(ng.InputError, match="a list of layer names"):
        strongest_paths(m, 1, "fc1")
    with pytest.raises(ng.EventError, match="no layer 'fc7'"):
        strongest_paths(m, 1, ["fc7"])


@pytest.mark.smoke
def test_the_beam_makes_the_answer_certain():
    """A beam of 1 keeps too little to know; a wide one finds the same or better, and knows it."""
    m = measure("inception", "epsilon")
    narrow, wide = (strongest_paths(m, 3, beam=beam) for beam in (1, 1000))
    assert not narrow.certified
    assert wide.certified
    assert "not certified" in repr(narrow)
    assert abs(wide[2].relevance) >= abs(narrow[2].relevance)
    assert narrow.bound > wide.bound


def test_paths_of_named_layers_are_asked_of_a_measure():
    """``m.paths(layers=...)`` chooses its beam by itself, like the function it calls."""
    m = measure("inception", "epsilon")
    names = [m.topology.output.name, m.topology.inputs[0].name]
    found, expected = m.paths(3, names), strongest_paths(m, 3, names)
    assert found == expected
    assert m.paths(3, names, beam=7, progress=True) == strongest_paths(m, 3, names, beam=7)


def test_unit_paths_are_no_products_of_grouped_edges():
    """R(a & b & c) of channels is not R(a, b) R(b, c) / R(b): paths give the first."""
    m = measure("pooled", "epsilon")
    labels = partitions(walks("pooled", "epsilon"), np.random.default_rng(0), "channel")
    found = strongest_paths(m, 4, ["conv2", "conv1", "x"], by=labels)
    sets = {name: [ng.Layer(name)[u] for u in range(2)] for name in ("conv2", "conv1")}
    for path in found:
        (_, a), (_, b), _ = path.units
        event = sets["conv2"][a] & sets["conv1"][b] & ng.Layer("x")[...]
        assert path.relevance == pytest.approx(m(event), rel=1e-9)


@pytest.mark.smoke
def test_batches_of_any_size_find_the_same():
    m = measure("pooled", "epsilon")
    small = replace(m, memory=1)
    labels = partitions(walks("pooled", "epsilon"), np.random.default_rng(1), "channel")
    for beam in (2, 100):
        one, many = (strongest_paths(each, 4, None, beam, labels) for each in (small, m))
        assert one.paths == many.paths
        assert one.bound == pytest.approx(many.bound, rel=1e-12)
        assert one.mass == pytest.approx(many.mass, rel=1e-12)


def test_most_edges_need_not_be_listed():
    """Convolutions and dense layers go through as a whole; overlapping pools, sums do not."""
    taken = {
        (name, composite, m.topology.layers[i].name)
        for name, composite in PATHS
        for m in [measure(name, composite)]
        for i in range(len(m.topology.layers))
        if max_plus.applies(m.state, i)
    }
    assert ("mlp", "epsilon", "fc2") in taken
    assert ("resnet", "epsilon_gamma", "conv2") in taken
    assert ("resnet", "epsilon_gamma", "add") not in taken
    assert ("pooled", "epsilon", "conv2") not in taken
    assert ("inception", "epsilon_gamma", "conv1") not in taken
