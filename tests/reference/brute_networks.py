"""Networks whose walks are enumerated, and random events on them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import nrm_graph as ng
from reference.brute import COMPOSITES, Net, Node, Walks

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    "tokens": (  # a class token with a position, and what layers make of it alone
        (2, 3),
        [
            Node("x", "input"),
            Node("token", "constant", (), {"shape": (1, 3)}),
            Node("cat", "concat", ("token", "x")),
            Node("position", "constant", (), {"shape": (3, 3)}),
            Node("add", "add", ("cat", "position")),
            Node("fc1", "dense", ("add",), {"out": 3}),
            Node("relu1", "relu", ("fc1",)),
            Node("fc2", "dense", ("relu1",), {"out": 3, "cut": True}),
            Node("add_1", "add", ("add", "fc2")),
            Node("flat", "flatten", ("add_1",)),
            Node("fc3", "dense", ("flat",), {"out": 3}),
        ],
    ),
    "channels": (  # a channel that is constant through a convolution and both pools
        (1, 4, 4),
        [
            Node("x", "input"),
            Node("mask", "constant", (), {"shape": (1, 4, 4)}),
            Node("cat", "concat", ("x", "mask")),
            Node("conv1", "conv2d", ("cat",), {"out": 2, "kernel": 2, "groups": 2}),
            Node("relu1", "relu", ("conv1",)),
            Node("pool", "maxpool", ("relu1",), {"kernel_size": 2, "stride": 1}),
            Node("avg", "avgpool", ("relu1",), {"kernel_size": 2, "stride": 1}),
            Node("cat_1", "concat", ("pool", "avg")),
            Node("conv2", "conv2d", ("cat_1",), {"out": 2, "kernel": 1}),
            Node("relu2", "relu", ("conv2",)),
            Node("flat", "flatten", ("relu2",)),
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


ROUTED = ("tokens", "channels")
CASES = [(name, c) for name in NETS if name not in ROUTED for c in ("epsilon", "epsilon_gamma")]
CASES += [("pooled", "epsilon_plus"), ("resnet", "epsilon_plus"), ("inception", "epsilon_plus")]
# Seeds whose random network has at least five layers and a hundred walks.
CASES += [(f"vector{i}", "epsilon") for i in (6, 17, 27, 29, 35, 39, 44)]
CASES += [(f"image{i}", "epsilon") for i in (13, 20, 32, 39)]
CASES += [(f"image{i}", "epsilon_gamma") for i in (7, 29, 42, 55)]

# Biases left out: every rule where constants are routed in; elsewhere biases alone are.
READINGS = [(name, c, "ignored") for name in ROUTED for c in COMPOSITES]
READINGS += [(*case, "ignored") for case in CASES]
READINGS += [(name, c, "absorbed") for name in ROUTED for c in ("epsilon_gamma", "wsquare")]
QUICK = (("tokens", "epsilon", "ignored"),)


def sampled(cases: Sequence[tuple[str, ...]] = CASES) -> list[object]:
    """Cases as parameters: all but three random networks are slow, as is most without biases."""
    first = (*NETS, "vector6", "image13", "image7")
    return [
        pytest.param(
            case,
            marks=[]
            if case in QUICK or (len(case) == 2 and case[0] in first)
            else [pytest.mark.slow],
            id="-".join(case),
        )
        for case in cases
    ]


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
def walks(name: str, composite: str, bias: str = "absorbed") -> Walks:
    net, x = build(name)
    return Walks(net, x, 1, composite, bias=bias)


@functools.cache
def program(name: str):
    """Trace a network: what is slow, and the same for every composite."""
    net, x = build(name)
    return ng.trace(net, x[None])


@functools.cache
def measure(name: str, composite: str, bias: str = "absorbed"):
    _, x = build(name)
    if composite == "wsquare":
        kinds = dict.fromkeys(("convolution", "dense"), ng.rules.WSquare())
        rules = ng.composites.composite("wsquare", kinds, bias=bias)
    else:
        rules = ng.composites.get(composite, bias)
    return ng.measure(
        program(name), x[None], target=1, composite=rules, dtype="float64", resolution="neuron"
    )


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


def reached(w: Walks, layer: str) -> np.ndarray:
    """Neurons that a walk of non-zero weight passes through."""
    size = int(np.prod(w.shapes[layer]))
    alive = w.value != 0
    return np.array(
        [(w.passes(layer, np.eye(size, dtype=bool)[j]) & alive).any() for j in range(size)]
    )
