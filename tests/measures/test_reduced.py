"""Reduced graphs against enumerated walks: steps, ends by kind, both laws, products, in float64."""

from __future__ import annotations

import tracemalloc
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from reference.brute_networks import (
    close,
    conditions,
    measure,
    random_mask,
    sampled,
    walks,
)
from reference.test_brute_attention import both

import nrm_graph as ng
from nrm_graph.measures.joint import NeuronGroups
from nrm_graph.measures.reduced import steps
from nrm_graph.measures.reduced.nodes import WatchedLayer, chosen_nodes, watched_layers
from nrm_graph.measures.reduced.steps import direct_steps
from nrm_graph.measures.reduced.unit_maps import unit_maps
from nrm_graph.propagation.relevance_pass import relevance_pass

if TYPE_CHECKING:
    from reference.brute import Walks

    from nrm_graph.measures.reduced.reduced import Reduced

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(params=sampled())
def case(request):
    name, composite = request.param
    return walks(name, composite), measure(name, composite)


@dataclass(frozen=True)
class Nodes:
    """Nodes drawn at random: what is asked for, and the node of every watched neuron."""

    watch: list[ng.NeuronSet]
    by: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def drawn(w: Walks, rng: np.random.Generator, single: bool = False) -> Nodes:
    inner = [name for name in w.layers if name != w.layers[-1]]
    names = [name for name in inner if rng.random() < 0.6] or inner[:1]
    nodes = Nodes([], {}, {})
    for name in names:
        shape = w.shapes[name]
        size = int(np.prod(shape))
        part = np.arange(size) if single else rng.integers(0, rng.choice([1, 2, 50]), size)
        part = np.unique(part, return_inverse=True)[1].reshape(shape)
        mask = random_mask(rng, shape) if rng.random() < 0.5 else np.ones(shape, bool)
        if mask.any():
            nodes.watch.append(ng.Layer(name)[mask])
            nodes.by[name], nodes.labels[name] = part, np.where(mask, part, -1)
    if not nodes.watch:
        return drawn(w, rng, single)
    output = np.full(int(np.prod(w.shapes[w.layers[-1]])), -1)
    output[w.target] = w.target
    nodes.labels[w.layers[-1]] = output
    return nodes


def visits(w: Walks, nodes: Nodes) -> tuple[list[str], np.ndarray]:
    """Watched layers from the output, and the node that every walk visits there, or -1."""
    names = [name for name in reversed(w.layers) if name in nodes.labels]
    rows = []
    for name in names:
        flat = nodes.labels[name].reshape(-1)
        rows.append(np.where(w.at[name] >= 0, flat[w.at[name].astype(int)], -1))
    return names, np.array(rows)


class Sums(NamedTuple):
    """R of nodes, of steps and of ends, by (layer, unit) and the pseudo-unit of an end."""

    nodes: dict[Any, float]
    steps: dict[Any, float]
    ends: dict[Any, float]


def expected(w: Walks, nodes: Nodes, event: np.ndarray | None = None) -> Sums:
    """Sums over walks, of those of the event."""
    value = w.value if event is None else np.where(event, w.value, 0.0)
    names, at = visits(w, nodes)
    sums = Sums(*(defaultdict(float) for _ in range(3)))
    last_layer, last_unit = np.full(len(value), -1), np.full(len(value), -1)
    for i, name in enumerate(names):
        here = at[i] >= 0
        for unit in np.unique(at[i][here]):
            arriving = here & (at[i] == unit)
            sums.nodes[name, unit] = value[arriving].sum()
            before = np.unique(np.stack([last_layer[arriving], last_unit[arriving]]), axis=1).T
            for j, above in before.tolist():
                if j >= 0:
                    step = arriving & (last_layer == j) & (last_unit == above)
                    sums.steps[(names[j], above), (name, unit)] = value[step].sum()
        last_layer[here], last_unit[here] = i, at[i][here]
    number = getattr(w, "number", {name: name for name in w.layers})
    for i, name in enumerate(names):
        for unit in np.unique(last_unit[last_layer == i]):
            ending = (last_layer == i) & (last_unit == unit)
            within = (w.end_layer == number[name]) & (w.end_unit >= 0)  # an input's neuron itself
            for kind in (-1, -2, -4, -5):
                to = w.end_unit == kind if kind > -5 else (w.end_unit >= 0) & ~within
                sums.ends[(name, unit), kind] = value[ending & to].sum()
    return sums


def found(m: ng.Measure, r: Reduced) -> Sums:
    names = [layer.name for layer in m.topology.layers]
    columns = ("dst_layer", "dst_unit", "src_layer", "src_unit", "relevance")
    edges = [[row[c] for c in columns] for row in r.edges.to_pylist()]
    ends = [[row[c] for c in columns] for row in r.ends.to_pylist()]
    return Sums(
        {(names[n["layer_id"]], n["unit"]): n["relevance"] for n in r.nodes.to_pylist()},
        {((names[i], a), (names[j], b)): value for i, a, j, b, value in edges},
        {((names[i], a), kind): value for i, a, _, kind, value in ends},
    )


def same(one: Sums, other: Sums, scale: float) -> None:
    for mine, yours in zip(one, other, strict=True):
        keys = sorted(mine.keys() | yours.keys(), key=str)
        close([mine.get(k, 0.0) for k in keys], [yours.get(k, 0.0) for k in keys], scale)


def lawful(r: Reduced, scale: float) -> None:
    rows = r.report().to_pylist()
    worst = [row[law] for row in rows for law in ("into", "out_of") if row[law] is not None]
    assert max(worst) < 1e-10 * max(1.0, scale)
    ends = [rows[0][kind] for kind in ("bias", "stabilizer", "remainder", "input")]
    close(rows[0]["steps_out"] + sum(ends), 1.0, scale)


def test_steps_and_ends_are_sums_over_walks(case):
    w, m = case
    rng = np.random.default_rng(len(w))
    for _ in range(3):
        nodes = drawn(w, rng)
        r = m.reduced(nodes.watch, nodes.by, nodes=None)
        same(found(m, r), expected(w, nodes), w.variation())
        lawful(r, w.variation())


def test_under_events(case):
    w, m = case
    rng = np.random.default_rng(len(w) + 1)
    for event, inside in conditions(w, rng, 4):
        whole, nodes = w.total(inside), drawn(w, rng)
        r = m.given(event).reduced(nodes.watch, nodes.by, nodes=None)
        sums = [{k: v / whole for k, v in part.items()} for part in expected(w, nodes, inside)]
        size = max(w.variation(), np.abs(w.value[inside]).sum()) / abs(whole)
        same(found(m, r), Sums(*sums), size)
        lawful(r, size)


def test_both_directions(case):
    w, m = case
    nodes = drawn(w, np.random.default_rng(2))
    groups = [layer.groups for layer in watched_layers(m, nodes.watch, nodes.by)]
    down, up = (
        direct_steps(m.state, m.start, m.terms, groups, m.memory, downwards=way)
        for way in (True, False)
    )
    assert down.steps.keys() >= up.steps.keys() or up.steps.keys() >= down.steps.keys()
    for pair in down.steps.keys() | up.steps.keys():
        for one, other in ((down.steps, up.steps), (down.conditional, up.conditional)):
            mine, yours = (np.nan_to_num(part.get(pair, 0.0)) for part in (one, other))
            close(mine - yours, 0 * (mine - yours), w.variation())


def test_nodes_of_neighbouring_layers_share_a_pass(case, monkeypatch):
    """Numbers do not depend on which nodes go together, and few passes read a layer's weights."""
    w, m = case
    nodes = drawn(w, np.random.default_rng(2))
    groups = [layer.groups for layer in watched_layers(m, nodes.watch, nodes.by)]
    count = sum(group.count for group in groups[:-1])
    passes = []

    def counted(*args, **options):
        passes.append(options.get("at"))
        return relevance_pass(*args, **options)

    monkeypatch.setattr(steps, "relevance_pass", counted)
    alone: Any = None
    for together in (1, 3, 1000):
        monkeypatch.setattr(steps, "COPIES", together)
        passes.clear()
        down = direct_steps(m.state, m.start, m.terms, groups, m.memory, downwards=True)
        assert len(passes) == 1 + -(-count // together)  # the first one is the measure's own
        alone = down if alone is None else alone
        assert down.steps.keys() == alone.steps.keys()
        for pair, relevance in down.steps.items():
            close(relevance - alone.steps[pair], 0 * relevance, w.variation())


def test_products_of_single_neurons_are_paths(case):
    w, m = case
    nodes = drawn(w, np.random.default_rng(3), single=True)
    r = m.reduced(nodes.watch, nodes.by, nodes=None)
    names, at = visits(w, nodes)
    sequences = defaultdict(float)
    for column, value in zip(at.T.tolist(), w.value, strict=True):
        sequences[tuple((n, u) for n, u in zip(names, column, strict=True) if u >= 0)] += value
    paths = r.paths(10_000_000)
    assert len({path.units for path in paths}) == len(paths)
    given = {path.units: path.relevance for path in paths}
    keys = sorted(sequences.keys() | given.keys())
    close([given.get(k, 0) for k in keys], [sequences.get(k, 0) for k in keys], w.variation())
    few = r.paths(3)
    sizes = sorted((abs(value) for value in given.values()), reverse=True)
    np.testing.assert_allclose([abs(path.relevance) for path in few], sizes[:3], rtol=1e-9)
    assert few.certified
    if len(sizes) > 3:
        np.testing.assert_allclose([few.bound, few.mass], [sizes[3], sum(sizes[3:])], rtol=1e-6)


@pytest.mark.parametrize(("name", "cp"), [("gated", False), ("block", False), ("block", True)])
def test_attention_and_gates(name, cp):
    w, m = both(name, cp)
    rng = np.random.default_rng(4)
    for _ in range(3):
        nodes = drawn(w, rng)
        r = m.reduced(nodes.watch, nodes.by, nodes=None)
        same(found(m, r), expected(w, nodes), w.variation())
    for event, inside in conditions(w, rng, 2):
        whole, nodes = w.total(inside), drawn(w, rng)
        r = m.given(event).reduced(nodes.watch, nodes.by, nodes=None)
        sums = [{k: v / whole for k, v in part.items()} for part in expected(w, nodes, inside)]
        same(found(m, r), Sums(*sums), np.abs(w.value[inside]).sum() / abs(whole))


def test_the_watched_chain_of_a_dense_kernel(case):
    """Single neurons: Q_WW + Q_WU (1 - Q_UU)^-1 Q_UW, and the same of what is absorbed."""
    w, m = case
    nodes = drawn(w, np.random.default_rng(5), single=True)
    r = m.reduced(nodes.watch, nodes.by, nodes=None)
    first = dict(
        zip(w.layers, np.cumsum([0, *(np.prod(w.shapes[n]) for n in w.layers)]), strict=False)
    )
    size = int(sum(np.prod(w.shapes[name]) for name in w.layers))
    q, bias = np.zeros((size, size)), np.zeros(size)
    for name, step in w.steps.items():
        rows = slice(first[name], first[name] + len(step.bias))
        bias[rows] = step.bias
        for src, block in step.q.items():
            q[rows, first[src] : first[src] + block.shape[1]] += block
    watched = np.zeros(size, bool)
    for name, labels in nodes.labels.items():
        watched[first[name] + np.flatnonzero(labels.ravel() >= 0)] = True
    free = ~watched
    onward = np.linalg.inv(np.eye(free.sum()) - q[np.ix_(free, free)])
    chain = np.zeros((size, size))
    chain[np.ix_(watched, watched)] = (
        q[np.ix_(watched, watched)] + q[np.ix_(watched, free)] @ onward @ q[np.ix_(free, watched)]
    )
    ended = bias[watched] + q[np.ix_(watched, free)] @ onward @ bias[free]
    place = {number: i for i, number in enumerate(np.flatnonzero(watched).tolist())}
    start = [int(first[layer.name]) for layer in m.topology.layers]
    scale = max(1.0, np.abs(chain).max())
    seen = np.zeros_like(chain)
    for row in r.edges.to_pylist():
        at = start[row["dst_layer"]] + row["dst_unit"], start[row["src_layer"]] + row["src_unit"]
        seen[at] = row["conditional"]
    awake = r.nodes.filter(pc.not_equal(r.nodes["relevance"], 0.0))
    for row in awake.to_pylist():  # rules give no kernel where no walk ever arrives
        at = start[row["layer_id"]] + row["unit"]
        close(seen[at], chain[at], scale)
        mine = [
            e["conditional"]
            for e in r.ends.to_pylist()
            if start[e["dst_layer"]] + e["dst_unit"] == at and e["src_unit"] == -1
        ]
        close(sum(mine), ended[place[at]] if row["layer_id"] else 0.0, scale)


def test_maps_of_units_are_joint_with_pixels():
    m = measure("inception", "epsilon_gamma")
    layer = next(info.name for info in m.topology.layers if info.kind == "convolution")
    r = m.reduced(layer, "channel", nodes=None)
    nodes = [(layer, unit) for unit in r.watched[1].units.tolist()]
    maps = unit_maps(m, r.watched, [*nodes, ("elsewhere", 0)])
    assert list(maps) == nodes
    joint = m.joint(layer, "x", by=("channel", "neuron"))
    channels, height, width = m.topology.layers[0].shape
    expected = joint.values.reshape(-1, channels, height, width).sum(1)
    close([maps[node] for node in nodes], expected, walks("inception", "epsilon_gamma").variation())


def test_maps_need_a_picture():
    m = measure("mlp", "epsilon")
    with pytest.raises(ng.InputError, match=r"input of shape \(C, H, W\)"):
        unit_maps(m, m.reduced().watched, [])


WRONG = {
    "overlapping sets": (lambda m: m.reduced([ng.Layer("0")[0], ng.Layer("0")[:2]]), "disjoint"),
    "an unknown layer": (lambda m: m.reduced("1?"), "no layer"),
    "nothing": (lambda m: m.reduced([]), "watch takes"),
    "no name": (lambda m: m.reduced([3]), "watch takes"),
    "a number": (lambda m: m.reduced(3), "watch takes"),
    "no nodes": (lambda m: m.reduced("0", nodes=0), "at least 1"),
    "fewer than layers": (lambda m: m.reduced(["0", "2"], nodes=1), "less than one"),
    "numbers of others": (lambda m: m.reduced("0", nodes={"2": 1}), "every watched layer"),
    "units of others": (lambda m: m.reduced("0", {"2": "layer"}), "not watched"),
    "paths of groups": (lambda m: m.reduced(["0", "2"], "layer").paths(), "multiplies"),
    "no paths": (lambda m: m.reduced("0").paths(0), "number of paths"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_watched(name):
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    )
    call, message = WRONG[name]
    with pytest.raises((ng.InputError, ng.EventError), match=message):
        call(ng.measure(net, torch.ones(1, 3)))


def test_nodes_are_shared_out_by_the_share_that_layers_keep():
    torch.manual_seed(0)
    sizes = (3, 40, 7, 2)
    net = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in pairwise(sizes)))
    m = ng.measure(net, torch.rand(1, 3), dtype="float64")
    for number in (2, 5, 11, 30, 47):
        r = m.reduced(["0", "1"], nodes=number)
        assert len(r.nodes) == number + 1
        weakest = []
        for layer, share in zip(r.watched[1:], r.carried[1:], strict=True):
            relevance = np.abs(m.marginal(str(layer.layer_id - 1)))
            assert share == pytest.approx(relevance[layer.units].sum() / relevance.sum())
            strongest = np.sort(relevance)[::-1][: len(layer.units)]
            np.testing.assert_allclose(np.sort(relevance[layer.units])[::-1], strongest)
            weakest.append(share - strongest[-1] / relevance.sum())
        # One more unit of either layer would take it past the share of the other.
        assert max(weakest) <= min(r.carried[1:])
    every = m.reduced(["0", "1"], nodes=None)
    assert len(every.nodes) == 48
    assert every.carried == (1.0, 1.0, 1.0)
    assert len(m.reduced(["0", "1"], nodes={"0": 3, "1": 2}).nodes) == 6


def test_choosing_nodes_holds_little_beside_the_sizes_of_units():
    """MLPs by position have millions of units, of which few are nodes."""
    units, layers = 50_000, 8
    rng = np.random.default_rng(0)
    labels = np.arange(units)
    watched = [
        WatchedLayer(NeuronGroups(i, labels, units), labels.astype(np.int32), "neuron")
        for i in range(layers)
    ]
    sizes = [rng.random(units) for _ in watched]
    tracemalloc.start()
    chosen = chosen_nodes((), watched, sizes, 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(layer.groups.count for layer in chosen) == 20
    for layer in chosen:
        strongest = np.argsort(-sizes[layer.layer_id])[: layer.groups.count]
        assert sorted(layer.units) == sorted(strongest)
    kept = sum(layer.groups.labels.nbytes for layer in chosen)
    assert peak < kept + 10 * sizes[0].nbytes  # work on one layer at a time


def test_a_network_without_hidden_layers_has_its_target_alone():
    m = ng.measure(torch.nn.Linear(3, 2), torch.rand(1, 3), target=1, dtype="float64")
    r = m.reduced()
    assert (len(r.nodes), len(r.edges)) == (1, 0)
    assert r.ends["relevance"].to_numpy().sum() == pytest.approx(1.0)
    assert [path.units for path in r.paths()] == [((m.topology.output.name, 1),)]
    assert r.graph(5).number_of_nodes() >= 2
    with pytest.raises(ng.EventError, match="watch takes"):
        m.reduced([])


def test_a_view_of_a_layer_is_one_node_with_it():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Unflatten(1, (2, 2)))
    m = ng.measure(net, torch.rand(1, 3), target=1, dtype="float64")
    assert m.topology.output.name == "output"
    r = m.reduced("*", nodes=None)
    names = [m.topology.layers[layer.layer_id].name for layer in r.watched]
    assert names == ["output", "0", "input"]
    assert r.watched[1].units.tolist() == [0, 2, 3]  # neuron 1 is the target
    into = r.edges.filter(pc.equal(r.edges["src_layer"], 0))["relevance"].to_numpy().sum()
    ends = r.ends["relevance"].to_numpy().sum()
    assert into + ends == pytest.approx(1.0)
