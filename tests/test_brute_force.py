"""Every answer of a measure against the sum over enumerated walks, in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from brute import BIAS, STABILIZER, Net, Node, Walks

import nrm_graph as ng

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

TOLERANCE = 1e-10

NETS = {
    "mlp": (
        (3,),
        [
            Node("x", "input"),
            Node("fc1", "dense", ("x",), {"out": 5}),
            Node("relu1", "relu", ("fc1",)),
            Node("fc2", "dense", ("relu1",), {"out": 4}),
            Node("relu2", "relu", ("fc2",), {"functional": True}),
            Node("fc3", "dense", ("relu2",), {"out": 3}),
        ],
    ),
    "residual": (
        (4,),
        [
            Node("x", "input"),
            Node("fc1", "dense", ("x",), {"out": 4}),
            Node("relu1", "relu", ("fc1",)),
            Node("fc2", "dense", ("relu1",), {"out": 4}),
            Node("add", "add", ("fc2", "relu1")),
            Node("relu2", "relu", ("add",)),
            Node("fc3", "dense", ("relu2",), {"out": 4}),
            Node("add_1", "add", ("fc3", "x")),
            Node("out", "dense", ("add_1",), {"out": 3}),
        ],
    ),
    "twice": (  # one layer is read twice by a sum, and once more by a concatenation
        (3,),
        [
            Node("x", "input"),
            Node("fc1", "dense", ("x",), {"out": 3}),
            Node("relu1", "relu", ("fc1",)),
            Node("add", "add", ("relu1", "fc1")),
            Node("cat", "concat", ("add", "relu1", "fc1")),
            Node("fc2", "dense", ("cat",), {"out": 3, "bias": False}),
        ],
    ),
    "branches": (
        (3,),
        [
            Node("x", "input"),
            Node("left", "dense", ("x",), {"out": 4}),
            Node("lr", "relu", ("left",)),
            Node("right", "dense", ("x",), {"out": 3}),
            Node("deep", "dense", ("right",), {"out": 3}),
            Node("rr", "relu", ("deep",)),
            Node("cat", "concat", ("lr", "rr", "x")),
            Node("fc", "dense", ("cat",), {"out": 4}),
            Node("fr", "relu", ("fc",)),
            Node("out", "dense", ("fr",), {"out": 3}),
        ],
    ),
    "pooled": (
        (1, 5, 5),
        [
            Node("x", "input"),
            Node("conv1", "conv2d", ("x",), {"out": 2, "kernel": 2}),
            Node("relu1", "relu", ("conv1",)),
            Node("pool", "maxpool", ("relu1",), {"kernel_size": 2, "stride": 1}),
            Node("conv2", "conv2d", ("pool",), {"out": 2, "kernel": 2}),
            Node("pool2", "maxpool", ("conv2",), {"kernel_size": 2, "stride": 1, "padding": 1}),
            Node("flat", "flatten", ("pool2",)),
            Node("fc", "dense", ("flat",), {"out": 3}),
        ],
    ),
    "resnet": (
        (1, 3, 3),
        [
            Node("x", "input"),
            Node("conv1", "conv2d", ("x",), {"out": 2, "padding": 1}),
            Node("relu1", "relu", ("conv1",)),
            Node("conv2", "conv2d", ("relu1",), {"out": 2, "padding": 1}),
            Node("add", "add", ("relu1", "conv2")),
            Node("relu2", "relu", ("add",)),
            Node("conv3", "conv2d", ("relu1",), {"out": 2, "kernel": 1}),
            Node("add_1", "add", ("relu2", "conv3")),
            Node("pool", "maxpool", ("add_1",), {"kernel_size": 2, "stride": 1}),
            Node("flat", "flatten", ("pool",), {"functional": True}),
            Node("fc", "dense", ("flat",), {"out": 3}),
        ],
    ),
    "same": (
        (1, 3, 3),
        [
            Node("x", "input"),
            Node("conv1", "conv2d", ("x",), {"out": 2, "kernel": 2, "padding": "same"}),
            Node("relu1", "relu", ("conv1",)),
            Node("conv2", "conv2d", ("relu1",), {"out": 2, "padding": "same"}),
            Node("add", "add", ("relu1", "conv2")),
            Node("flat", "flatten", ("add",)),
            Node("fc", "dense", ("flat",), {"out": 2}),
        ],
    ),
    "inception": (
        (2, 3, 3),
        [
            Node("x", "input"),
            Node("conv1", "conv2d", ("x",), {"out": 2, "kernel": 2, "groups": 2}),
            Node("relu1", "relu", ("conv1",)),
            Node("avg", "avgpool", ("x",), {"kernel_size": 2, "stride": 1}),
            Node("pool", "maxpool", ("x",), {"kernel_size": 2, "stride": 1}),
            Node("cat", "concat", ("relu1", "avg", "pool")),
            Node("conv2", "conv2d", ("cat",), {"out": 3, "kernel": 1}),
            Node("relu2", "relu", ("conv2",)),
            Node("avg2", "avgpool", ("relu2",), {"kernel_size": 2, "stride": 1, "padding": 1}),
            Node("flat", "flatten", ("avg2",)),
            Node("fc", "dense", ("flat",), {"out": 2}),
        ],
    ),
    "batchnorm": (
        (1, 4, 4),
        [
            Node("x", "input"),
            Node("conv1", "conv_bn", ("x",), {"out": 2, "kernel": 2, "bias": False}),
            Node("relu1", "relu", ("conv1",)),
            Node("conv2", "conv_bn", ("relu1",), {"out": 2, "padding": 1}),
            Node("add", "add", ("conv2", "relu1")),
            Node("relu2", "relu", ("add",)),
            Node("pool", "avgpool", ("relu2",), {"kernel_size": 3}),
            Node("flat", "flatten", ("pool",)),
            Node("fc", "dense", ("flat",), {"out": 2}),
        ],
    ),
}


def random_vector_net(seed: int) -> tuple[tuple[int, ...], list[Node]]:
    """Dense layers, sums, concatenations and relus in random order and wiring."""
    rng = np.random.default_rng(seed)
    nodes, width = [Node("x", "input")], {"x": 3}
    sums = layers = 0
    while len(nodes) < 10 and layers < 6:
        names = list(width)
        recent = names[-3:]
        op = str(rng.choice(["dense", "relu", "add", "concat"], p=[0.35, 0.25, 0.25, 0.15]))
        a = str(rng.choice(recent))
        name = f"n{len(nodes)}"
        if op == "dense":
            width[name] = int(rng.integers(2, 4))
            bias = bool(rng.random() < 0.8)
            nodes.append(Node(name, "dense", (a,), {"out": width[name], "bias": bias}))
            layers += 1
        elif op == "relu":
            nodes.append(Node(name, "relu", (a,), {"functional": bool(rng.random() < 0.5)}))
            width[name] = width[a]
        else:
            same = [n for n in names if n != a and (op == "concat" or width[n] == width[a])]
            if not same:
                continue
            b = str(rng.choice(same))
            if op == "add":
                name, sums = f"add_{sums}" if sums else "add", sums + 1
                layers += 1
            elif width[a] + width[b] > 7:
                continue
            nodes.append(Node(name, op, (a, b)))
            width[name] = width[a] + (width[b] if op == "concat" else 0)
    last = list(width)[-1]
    return (3,), _used([*nodes, Node("out", "dense", (last,), {"out": 3})])


def random_image_net(seed: int) -> tuple[tuple[int, ...], list[Node]]:
    """Convolutions, pools, sums and concatenations of 3x3 to 2x2 maps."""
    rng = np.random.default_rng(1000 + seed)
    nodes, shape = [Node("x", "input")], {"x": (1, 3, 3)}
    sums = layers = 0
    while len(nodes) < 9 and layers < 4:
        names = list(shape)
        a = str(rng.choice(names[-3:]))
        c, side, _ = shape[a]
        op = str(rng.choice(["conv2d", "relu", "maxpool", "avgpool", "add", "concat"]))
        name = f"n{len(nodes)}"
        if op == "conv2d":
            out, kernel = int(rng.integers(1, 3)), int(rng.integers(1, 3))
            same = kernel == 2 and rng.random() < 0.5
            if side - (kernel - 1) < 2 and not same:
                continue
            params = {"out": out, "kernel": 3 if same else kernel, "padding": int(same)}
            nodes.append(Node(name, op, (a,), params))
            after = side if same else side - (kernel - 1)
            shape[name] = (out, after, after)
            layers += 1
        elif op == "relu":
            nodes.append(Node(name, op, (a,)))
            shape[name] = shape[a]
        elif op in ("maxpool", "avgpool"):
            if side < 3:
                continue
            nodes.append(Node(name, op, (a,), {"kernel_size": 2, "stride": 1}))
            shape[name] = (c, side - 1, side - 1)
            layers += op == "avgpool"
        else:
            match = [n for n in names if n != a and shape[n][1] == side]
            match = [n for n in match if op == "concat" or shape[n] == shape[a]]
            if not match:
                continue
            b = str(rng.choice(match))
            if op == "concat" and c + shape[b][0] > 3:
                continue
            if op == "add":
                name, sums = f"add_{sums}" if sums else "add", sums + 1
                layers += 1
            nodes.append(Node(name, op, (a, b)))
            shape[name] = (c + (shape[b][0] if op == "concat" else 0), side, side)
    last = list(shape)[-1]
    nodes += [Node("flat", "flatten", (last,)), Node("out", "dense", ("flat",), {"out": 2})]
    return (1, 3, 3), _used(nodes)


def _used(nodes: list[Node]) -> list[Node]:
    """Leave out what the output does not read, and number the sums again."""
    needed = {nodes[-1].name}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.args)
    needed.add("x")
    kept = [node for node in nodes if node.name in needed]
    sums = [node.name for node in kept if node.op == "add"]
    rename = {old: f"add_{i}" if i else "add" for i, old in enumerate(sums)}
    return [
        Node(rename.get(n.name, n.name), n.op, tuple(rename.get(a, a) for a in n.args), n.params)
        for n in kept
    ]


CASES = [(name, c) for name in NETS for c in ("epsilon", "epsilon_gamma")]
CASES += [("pooled", "epsilon_plus"), ("resnet", "epsilon_plus"), ("inception", "epsilon_plus")]
# Seeds whose random network has at least five layers and a hundred walks.
CASES += [(f"vector{i}", "epsilon") for i in (6, 17, 27, 29, 35, 39, 44)]
CASES += [(f"image{i}", "epsilon") for i in (13, 20, 32, 39)]
CASES += [(f"image{i}", "epsilon_gamma") for i in (7, 29, 42, 55)]


def _marks(case: tuple[str, str]) -> list[pytest.MarkDecorator]:
    """Of the random networks, all but three are slow: together they take long."""
    first = (*NETS, "vector6", "image13", "image7")
    return [] if case[0] in first else [pytest.mark.slow]


@functools.cache
def build(name: str) -> tuple[Net, torch.Tensor]:
    if name.startswith("vector"):
        seed = int(name.removeprefix("vector"))
        shape, nodes = random_vector_net(seed)
    elif name.startswith("image"):
        seed = int(name.removeprefix("image"))
        shape, nodes = random_image_net(seed)
    else:
        seed = 7
        shape, nodes = NETS[name]
    net = Net(nodes, shape, seed)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return net, x


@functools.cache
def walks(name: str, composite: str) -> Walks:
    net, x = build(name)
    return Walks(net, x, 1, composite)


@functools.cache
def measure(name: str, composite: str):
    net, x = build(name)
    return ng.measure(
        net, x[None], target=1, composite=composite, dtype="float64", resolution="neuron"
    )


later = pytest.mark.skipif(
    not hasattr(ng.Measure, "given"), reason="conditioned measures and joint matrices come later"
)


@pytest.fixture(params=[pytest.param(c, marks=_marks(c), id="-".join(c)) for c in CASES])
def case(request):
    name, composite = request.param
    return walks(name, composite), measure(name, composite)


def close(found, expected, scale: float) -> None:
    np.testing.assert_allclose(
        np.asarray(found, np.float64).reshape(np.shape(expected)),
        expected,
        rtol=0,
        atol=TOLERANCE * max(1.0, scale),
    )


def random_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.random(shape) < rng.choice([0.3, 0.6])


def links(w: Walks) -> list[tuple[str, str]]:
    return [(dst, src) for dst, step in w.steps.items() for src in step.q]


def random_set(rng: np.random.Generator, w: Walks, layer: str | None = None):
    layer = layer or str(rng.choice(w.layers))
    mask = random_mask(rng, w.shapes[layer])
    return ng.Layer(layer)[mask], w.passes(layer, mask)


def random_event(rng: np.random.Generator, w: Walks, depth: int = 3):
    """An event and the same as a boolean array over the walks."""
    if depth == 0 or rng.random() < 0.2:
        kind = rng.random()
        if kind < 0.15:
            dst, src = links(w)[rng.integers(len(links(w)))]
            d, s = (random_mask(rng, w.shapes[name]) for name in (dst, src))
            return ng.Edge(ng.Layer(dst)[d], ng.Layer(src)[s]), w.edge(dst, d, src, s)
        if kind < 0.25:
            chosen = rng.choice(w.layers, size=2, replace=False)
            sets = {str(name): random_mask(rng, w.shapes[str(name)]) for name in chosen}
            inside = np.ones(len(w), bool)
            for name, mask in sets.items():
                inside &= w.passes(name, mask) | ~w.visits(name)
            return ng.stay(sets), inside
        return random_set(rng, w)
    left, on_left = random_event(rng, w, depth - 1)
    if rng.random() < 0.2:
        return ~left, ~on_left
    right, on_right = random_event(rng, w, depth - 1)
    operator = rng.choice(["&", "|", "-"])
    if operator == "&":
        return left & right, on_left & on_right
    if operator == "|":
        return left | right, on_left | on_right
    return left - right, on_left & ~on_right


# The reference itself


@pytest.mark.parametrize(("name", "composite"), CASES)
def test_walks_sum_to_one_and_marginals_are_chained_kernels(name, composite):
    w = walks(name, composite)
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


@later
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


def conditions(w: Walks, rng: np.random.Generator, n: int = 6):
    """Events whose relevance is not small against the walks that they hold."""
    found = []
    for _ in range(20 * n):
        event, on = random_event(rng, w, int(rng.integers(0, 3)))
        if on.any() and abs(w.total(on)) > 1e-2 * np.abs(w.value[on]).sum():
            found.append((event, on))
        if len(found) == n:
            break
    assert found
    return found


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


@later
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


@later
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


@later
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


def reached(w: Walks, layer: str) -> np.ndarray:
    """Neurons that a walk of non-zero weight passes through."""
    size = int(np.prod(w.shapes[layer]))
    alive = w.value != 0
    return np.array(
        [(w.passes(layer, np.eye(size, dtype=bool)[j]) & alive).any() for j in range(size)]
    )


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


def test_parallel_branches_have_joint_relevance_zero():
    m = measure("branches", "epsilon")
    left, right, deep = (ng.Layer(name)[...] for name in ("left", "right", "deep"))
    assert m(left & right) == 0
    assert m(left & deep) == 0
    assert m(left & ng.Layer("x")[...] & deep) == 0
    assert m(right & deep) != 0
    assert m(ng.Edge(deep, left)) == 0


def test_an_edge_beside_a_skip_is_not_the_joint():
    w, m = walks("residual", "epsilon"), measure("residual", "epsilon")
    dst, src = ng.Layer("add")[...], ng.Layer("fc1")[...]
    joint = w.visits("add") & w.visits("fc1")
    direct = joint & (w.after["add"] == "fc1")
    assert abs(w.total(joint) - w.total(direct)) > 1e-3
    close(m(dst & src), w.total(joint), w.variation())
    close(m(ng.Edge(dst, src)), w.total(direct), w.variation())
