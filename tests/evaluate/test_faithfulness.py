"""Faithfulness of circuits: budgets, rivals, held-out inputs and curves against dense ones."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import EventError, InputError, StoreError
from nrm_graph.evaluate import faithfulness, ranking
from nrm_graph.evaluate.held_out import check_outputs, network_for, trained_on
from nrm_graph.store.input_group import InputGroup

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
COUNT = 24


def planted():
    """Twelve hidden units, of which the odd ones lead nowhere."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        net[0].bias.uniform_(0.5, 1.0)  # every unit is awake
        net[2].weight.abs_()
        net[2].weight[:, 1::2] = 0.0
        net[2].weight[0] *= 3
    return net


def images(count, *shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input": torch.randn(*shape, generator=generator, dtype=torch.float64),
            "key": f"k{i:02d}",
            "label": "cat" if i % 4 else "dog",
            "fold": i % 3,
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    net, rows = planted(), images(COUNT, 6)
    path = tmp_path_factory.mktemp("mlp") / "s.nrm"
    with ng.extract(net, rows, path, composite="epsilon", target=[0, 2], progress=False) as db:
        yield net, rows, db


@pytest.fixture(scope="module")
def circuit(mlp):
    return mlp[2].circuit("fold < 2", target=0, top=200)


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 3),
    ).double()  # fmt: skip
    rows = images(12, 1, 8, 8)
    path = tmp_path_factory.mktemp("conv") / "s.nrm"
    with ng.extract(
        net, rows, path, composite="epsilon", target=1, resolution="channel", progress=False
    ) as db:
        yield net, rows, db


def batch(rows, fold):
    return torch.stack([row["input"] for row in rows if fold(row["fold"])])


def dense_scores(logits, target):
    own = logits[:, target]
    others = np.delete(logits, target, 1).max(1)
    probability = torch.softmax(torch.from_numpy(logits), 1).numpy()[:, target]
    return np.stack([own, probability, own - others], 1)


def in_order(db, keys):
    """Places of keys in the order of the curves'."""
    return [int(key[1:]) for key in keys]


@pytest.mark.smoke
def test_curves_of_units_equal_dense_ones(mlp, circuit):
    net, rows, db = mlp
    found = faithfulness(db, circuit, "fold = 2", fractions=FRACTIONS, draws=4, progress=False)
    x = torch.stack([rows[i]["input"] for i in in_order(db, found.keys)])
    train = batch(rows, lambda fold: fold < 2)
    hidden, before = net[:2](x), net[:2](train).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(net[2](before)[:, 0].sum(), before)
    relevance = {u: d["relevance"] for (n, u), d in circuit.nodes(data=True) if n == "0" and u >= 0}
    assert set(relevance) == set(range(0, 12, 2))
    before = before.detach()
    orders = {
        "circuit": sorted(relevance, key=lambda u: -abs(relevance[u])),
        "activation": np.argsort(-before.abs().mean(0).numpy()),
        "gradient_x_activation": np.argsort(-(slope * before).mean(0).abs().numpy()),
    }
    assert found.counts["0"].tolist() == [0, 2, 3, 5, 6]
    for method, order in orders.items():
        for step, count in enumerate(found.counts["0"]):
            values = hidden.detach().clone()
            values[:, np.array(order[:count], int)] = 0.0
            expected = dense_scores(net[2](values).detach().numpy(), 0)
            np.testing.assert_allclose(found.values[method][0, step], expected, atol=1e-9)
    whole = dense_scores(net(x).detach().numpy(), 0)
    np.testing.assert_allclose(found.unablated, whole, atol=1e-9)
    np.testing.assert_allclose(found.mean("circuit", "margin")[0], whole[:, 2].mean())
    assert found.values["random"].shape == (4, 5, len(x), 3)
    # LRP-0 of a last layer is gradient times activation.
    assert orders["circuit"] == list(orders["gradient_x_activation"][:6])


def test_a_planted_circuit_falls_before_random_units(mlp, circuit):
    net, _, db = mlp
    found = faithfulness(db, circuit, "fold = 2", draws=30, progress=False)
    own, random = found.mean("circuit"), found.mean("random")
    assert (own[1:] < random[1:]).all()
    # Without its six units nothing is left but the bias.
    np.testing.assert_allclose(found.values["circuit"][0, -1, :, 0], net[2].bias[0].item())
    areas = {(r["method"], r["score"]): r for r in found.areas().to_pylist()}
    row = areas["random", "logit"]
    assert row["p"] == pytest.approx(1 / 31)
    assert row["difference_low"] > 0
    kept = faithfulness(db, circuit, "fold = 2", mode="keep", draws=30, progress=False)
    # The other units lead nowhere: the circuit alone is the network.
    np.testing.assert_allclose(kept.values["circuit"][0, -1], kept.unablated)
    assert (kept.mean("circuit")[1:] > kept.mean("random")[1:]).all()
    np.testing.assert_allclose(kept.values["circuit"][0, 0, :, 0], net[2].bias[0].item())


def test_the_mean_is_over_the_circuits_inputs_or_a_reference(mlp, circuit):
    net, rows, db = mlp
    options = {"fractions": (0, 1), "rivals": (), "baseline": "mean", "progress": False}
    # An image with several explanations counts once.
    several = "fold = 1 AND (target = 0 OR key < 'k09')"
    for reference, chosen in ((None, lambda f: f < 2), (several, lambda f: f == 1)):
        found = faithfulness(db, circuit, "fold = 2", reference=reference, **options)
        base = net[:2](batch(rows, chosen)).mean(0)
        x = torch.stack([rows[i]["input"] for i in in_order(db, found.keys)])
        values = net[:2](x).detach()
        values[:, ::2] = base[::2]
        expected = dense_scores(net[2](values).detach().numpy(), 0)
        np.testing.assert_allclose(found.values["circuit"][0, 1], expected, atol=1e-9)
    with pytest.raises(InputError, match=r"8 of the 24 inputs .* held out"):
        faithfulness(db, circuit, "fold = 2", reference="target = 2", **options)
    with pytest.raises(InputError, match="pass baseline='mean'"):
        faithfulness(db, circuit, reference="fold = 1")


@pytest.mark.smoke
def test_curves_of_edges_equal_edited_weights(mlp):
    net, rows, db = mlp
    graph = db.circuit("fold < 2", target=0, top=12)
    found = faithfulness(
        db, graph, "fold = 2", by="edges", fractions=(0, 0.5, 1), draws=3, progress=False
    )
    x = torch.stack([rows[i]["input"] for i in in_order(db, found.keys)])
    edges = [
        (abs(d["relevance"]), v, u) for u, v, d in graph.edges(data=True) if u[1] >= 0 and v[1] >= 0
    ]
    edges.sort(reverse=True)
    for step, count in enumerate(found.ablated):
        weights = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
        for _, dst, src in edges[:count]:
            weights[0 if dst[0] == "0" else 1][dst[1], src[1]] = 0.0
        y = torch.relu(nn.functional.linear(x, weights[0], net[0].bias))
        logits = nn.functional.linear(y, weights[1], net[2].bias).detach().numpy()
        np.testing.assert_allclose(
            found.values["circuit"][0, step], dense_scores(logits, 0), atol=1e-9
        )
    assert sum(int(c[-1]) for c in found.counts.values()) == len(edges)
    assert set(found.methods) == {"circuit", "random", "activation", "gradient_x_activation"}


@pytest.mark.parametrize("gradient", [False, True])
def test_contributions_of_edges_equal_dense_ones(conv, mlp, gradient):
    for net, rows, db, at in ((*mlp, (0, 2)), (*conv, (0, 3, 6))):
        graph = db.circuit(
            "fold < 2", target=db._snapshot.entries[min(db._snapshot.entries)].target
        )
        own = trained_on(db, graph)
        network = network_for(db, own, "cpu")
        names = {info.name: info.layer_id for info in db.topology.layers}
        pairs = tuple((g.dst, g.src) for g in db.topology.groups)
        x = torch.stack([rows[int(key[1:])]["input"] for key in own.keys])
        targets = torch.from_numpy(own.targets)
        found = ranking.EdgeScores(network, db.partitions, pairs).scored(
            lambda x=x, targets=targets: [((x[:3],), targets[:3]), ((x[3:],), targets[3:])],
            gradient,
        )
        values, operand = x, x
        for k, module in enumerate(net):
            if k in at:
                operand = values
            values = module(values)
            if k not in at:
                continue
            z = values.detach().requires_grad_(True)
            rest = net[k + 1 :](z)
            slope = torch.ones_like(z)
            if gradient:
                (slope,) = torch.autograd.grad(rest.gather(1, targets[:, None]).sum(), z)
            table = contributions(module, operand, slope)  # (N, dst, src)
            if isinstance(module, nn.Linear) and len(at) == 3:
                table = table.unflatten(2, (3, 4)).sum(3)  # channels
            expected = (table.mean(0).abs() if gradient else table.abs().mean(0)).detach().numpy()
            (pair,) = [p for p in pairs if p[0] == names[str(k)]]
            edges, scores = found[pair]
            dense = np.zeros(expected.shape)
            dense[edges[:, 0], edges[:, 1]] = scores
            np.testing.assert_allclose(dense, expected, atol=1e-10)


def contributions(module, x, slope):
    """What each operand feature or channel adds to each output, times a slope."""
    found = []
    for i in range(x.shape[1]):
        alone = torch.zeros_like(x)
        alone[:, i] = x[:, i]
        added = (module(alone) - module(alone * 0)) * slope
        found.append(added if added.ndim == 2 else added.flatten(2).sum(2))
    return torch.stack(found, 2)


def test_channels_in_store_resolution(conv):
    net, rows, db = conv
    graph = db.circuit("fold < 2", top=30)
    found = faithfulness(db, graph, fractions=(0, 1), draws=2, progress=False)
    x = torch.stack([rows[i]["input"] for i in in_order(db, found.keys)])
    assert sorted(found.keys) == [row["key"] for row in rows if row["fold"] == 2]
    chosen = {name: [u for n, u in graph if n == name and u >= 0] for name in ("0", "3")}
    assert {name: int(count[-1]) for name, count in found.counts.items()} == {
        name: len(units) for name, units in chosen.items()
    }
    y = torch.relu(net[0](x))
    y[:, chosen["0"]] = 0.0
    y = torch.relu(net[3](net[2](y)))
    y[:, chosen["3"]] = 0.0
    expected = dense_scores(net[6](y.flatten(1)).detach().numpy(), 1)
    np.testing.assert_allclose(found.values["circuit"][0, 1], expected, atol=1e-9)


# Inputs


def test_held_out_inputs_are_held_out(mlp, circuit):
    _, _, db = mlp
    found = faithfulness(db, circuit, fractions=(0, 1), rivals=(), progress=False)
    assert not set(found.keys) & set(circuit.graph["keys"])
    assert (len(found.keys), found.trained, found.target) == (8, 16, 0)
    with pytest.raises(InputError, match=r"16 of the 24 inputs of target 0 .* 8 remain"):
        faithfulness(db, circuit, "true")
    with pytest.raises(InputError, match=r"beside the circuit's own 24 keys"):
        faithfulness(db, db.circuit(target=0))
    with pytest.raises(InputError, match="no input is chosen"):
        faithfulness(db, circuit, "fold = 7")


def test_mixed_targets_have_their_own(mlp):
    net, rows, db = mlp
    mixed = db.circuit("fold < 2", mixed_targets=True)
    found = faithfulness(db, mixed, fractions=(0, 1), rivals=(), progress=False)
    assert len(found.keys) == 16
    assert len(set(found.keys)) == 8
    assert found.target is None
    x = torch.stack([rows[i]["input"] for i in in_order(db, found.keys)])
    logits = net(x).detach().numpy()
    both = {(k, float(row[t])) for k, row in zip(found.keys, logits, strict=True) for t in (0, 2)}
    for key, value in zip(found.keys, found.unablated[:, 0], strict=True):
        assert any(k == key and abs(v - value) < 1e-9 for k, v in both)
    # Both targets of a key are one replicate.
    weights, _ = found._weights
    for key in set(found.keys):
        a, b = [i for i, k in enumerate(found.keys) if k == key]
        np.testing.assert_array_equal(weights[:, a], weights[:, b])


def test_the_stored_logit_must_come_out(mlp):
    net = network_for(mlp[2], trained_on(mlp[2], mlp[2].circuit(target=0)), "cpu")
    out = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    for logit, fits in ((2.0 + 1e-4, True), (2.1, False)):
        chosen = InputGroup(None, np.zeros(1, np.int64), ("k",), (None,), np.zeros(1, np.int64),
                       np.array([logit]))  # fmt: skip
        if fits:
            check_outputs(net, chosen, out)
        else:
            with pytest.raises(StoreError, match=r"'k': the stored program gives .* 2, .* 2\.1"):
                check_outputs(net, chosen, out)


def test_edges_to_choose_from_do_not_depend_on_who_else_ranks_them(mlp):
    _, _, db = mlp
    found = db.circuit("fold = 0", target=0, top=3)
    say = [
        faithfulness(
            db, found, "fold = 1", by="edges", rivals=rivals, fractions=(0, 1), progress=False
        ).available
        for rivals in (("gradient_x_activation",), ("activation", "gradient_x_activation"))
    ]
    for pair, count in say[0].items():
        assert count <= say[1][pair]
    assert sum(say[0].values()) > 3


def test_other_circuits_are_refused(mlp, circuit):
    _, _, db = mlp
    with pytest.raises(InputError, match="expected a circuit"):
        faithfulness(db, None)
    plain = db.measure("k00", target=0).subgraph(top=20)
    with pytest.raises(InputError, match=r"graph\['keys'\]"):
        faithfulness(db, plain)
    plain.graph["keys"] = ("k00",)
    found = faithfulness(db, plain, "fold = 1", fractions=(0, 1), rivals=(), progress=False)
    assert found.trained == 2  # the graph names no target: both count
    changed = circuit.copy()
    changed.graph["keys"] = ("nowhere",)
    with pytest.raises(InputError, match="no input 'nowhere'"):
        faithfulness(db, changed)
    for node, error, message in (
        (("0", 12), InputError, "unit 12 of 0, which has 12"),
        (("9", 0), EventError, "no layer '9'"),
    ):
        changed = circuit.copy()
        changed.add_node(node, relevance=1.0)
        with pytest.raises(error, match=message):
            faithfulness(db, changed)
    changed = circuit.copy()
    changed.add_edge(("input", 0), ("2", 0), relevance=1.0)
    with pytest.raises(InputError, match="does not read it directly"):
        faithfulness(db, changed, by="edges")
    empty = nx.DiGraph(keys=("k00",), target=0)
    empty.add_node(("input", 0), relevance=1.0)
    with pytest.raises(InputError, match="no units to ablate but inputs and outputs"):
        faithfulness(db, empty)
    found = faithfulness(db, empty, layers=["input"], fractions=(0, 1), rivals=(), progress=False)
    assert found.counts["input"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "paths"}, "by must be one of units, edges"),
        ({"mode": "drop"}, "mode must be one of remove, keep"),
        ({"baseline": "median"}, "baseline must be one of zero, mean"),
        ({"rivals": ("magic",)}, "rivals must be a list"),
        ({"rivals": "random"}, "rivals must be a list"),
        ({"rivals": None}, "rivals must be a list"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"layers": 5}, "layers must be a list"),
        ({"layers": []}, "layers must be a list"),
        ({"rivals": ("random", "random")}, "each once"),
        ({"draws": 0}, "draws must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"fractions": (0.5, 0.2)}, "rising numbers from 0 to 1"),
        ({"fractions": (0, 2)}, "rising numbers from 0 to 1"),
        ({"fractions": "all"}, "rising numbers from 0 to 1"),
        ({"layers": "0"}, "layers must be a list"),
        ({"device": "tpu"}, "the device 'tpu' cannot be used"),
    ],
)
def test_arguments_are_checked(mlp, circuit, options, message):
    with pytest.raises(InputError, match=message):
        faithfulness(mlp[2], circuit, progress=False, **options)


def test_the_same_seed_gives_the_same_curves(mlp, circuit):
    _, _, db = mlp
    one, two, three = (
        faithfulness(db, circuit, fractions=FRACTIONS, draws=3, seed=seed, progress=False)
        for seed in (1, 1, 2)
    )
    for method in one.methods:
        np.testing.assert_array_equal(one.values[method], two.values[method])
    np.testing.assert_array_equal(one.interval("random"), two.interval("random"))
    assert one.table().equals(two.table())
    assert (one.values["random"] != three.values["random"]).any()
    np.testing.assert_array_equal(one.values["circuit"], three.values["circuit"])
    small = faithfulness(
        db, circuit, fractions=FRACTIONS, draws=3, seed=1, batch_size=3, progress=False
    )
    for method in one.methods:
        np.testing.assert_allclose(small.values[method], one.values[method], atol=1e-12)
