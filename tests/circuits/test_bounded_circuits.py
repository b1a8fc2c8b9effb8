"""Circuits of stores that bound their edges, against complete stores of the same inputs."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import nrm_graph as ng
from nrm_graph.circuits.engines import EDGE
from nrm_graph.errors import InputError
from nrm_graph.store import stored_edges

# Two float32 passes over one input, in other batches, and what their sums differ by.
CLOSE = {"rtol": 1e-4, "atol": 2e-6}


@functools.cache
def network(seed=0):
    """Without biases: bounded stores have no edges to pseudo-units, complete ones do."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(32, 4, bias=False),
    ).eval()
    return ng.trace(net, torch.zeros(1, 2, 6, 6))


def inputs(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(number, 2, 6, 6, generator=generator)
    return [
        {"input": x + (i % 2) * torch.linspace(-1, 1, 6), "key": f"k{i:02}", "label": "ab"[i % 2]}
        for i, x in enumerate(noise)
    ]


def pair_of_stores(folder, rows, limit, seed=0, **options):
    """Complete, and bounded, of the same inputs."""
    options = {"resolution": "channel", "target": 1, "progress": False, **options}
    net = network(seed)
    complete = ng.extract(net, rows, folder / "all.nrm", max_edges="all", **options)
    return complete, ng.extract(net, rows, folder / "few.nrm", max_edges=limit, **options)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    complete, few = pair_of_stores(tmp_path_factory.mktemp("stores"), inputs(20), 40)
    event = ng.Layer("0")[[0, 1, 2, 5]] & ng.Layer("2")[1:7]
    for db in (complete, few):
        db.materialize(event, name="b", progress=False)
        # A difference: no single conjunction.
        db.materialize(ng.Layer("2")[:3] | ng.Layer("0")[1], name="c", progress=False)
    with complete, few:
        yield complete, few


def units_of(graph):
    """Edges of a complete circuit that a bounded store may have too."""
    return {(src, dst) for src, dst in graph.edges if src[1] >= 0}


def check_intervals(complete, few, top=100_000, **options):
    """Compare a bounded circuit with the complete one; how many edges had an interval."""
    whole = complete.circuit(top=100_000, connected=False, **options)
    some = few.circuit(top=top, connected=False, **options)
    number = 0
    for edge in some.edges:
        data, true = some.edges[edge], whole.edges.get(edge, {"relevance": 0.0})
        assert ("missing" in data) == ("low" in data) == ("high" in data)
        if "missing" not in data:
            for name in data.keys() - {"top_share"}:
                np.testing.assert_allclose(data[name], true[name], **CLOSE)
            continue
        number += 1
        assert 1 <= data["missing"] < len(some.graph["keys"])
        assert not data.keys() & {"std", "stderr", "agreement", "inputs", "top_share"}
        rounding = 1e-6 + 1e-4 * abs(true["relevance"])
        assert data["low"] - rounding <= true["relevance"] <= data["high"] + rounding
        assert data["low"] <= data["relevance"] <= data["high"]
    assert "rivals" not in whole.graph
    return number, whole, some


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["unit", "logit"])
@pytest.mark.parametrize("condition", [{}, {"given": "b"}, {"given": "c", "per_input": True}])
def test_true_means_lie_in_the_intervals(stores, weight, condition):
    number, _, some = check_intervals(*stores, weight=weight, where="label = 'a'", **condition)
    assert number > 10
    assert any("not stored of every input" in note for note in some.graph["flags"])


@given(
    seed=st.integers(0, 3),
    limit=st.integers(12, 150),
    number=st.integers(1, 6),
    weight=st.sampled_from(["unit", "logit"]),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_true_means_lie_in_the_intervals_of_any_limit(
    tmp_path_factory, seed, limit, number, weight
):
    folder = tmp_path_factory.mktemp("any")
    complete, few = pair_of_stores(folder, inputs(number, seed), limit, seed)
    with complete, few:
        check_intervals(complete, few, weight=weight)


def strongest(graph, top):
    """The strongest edges of a complete circuit between units."""
    ordered = sorted(units_of(graph), key=lambda e: -abs(graph.edges[e]["relevance"]))
    return set(ordered[:top])


@pytest.mark.parametrize("top", [5, 20, 60, 500])
def test_edges_that_may_belong_are_counted(stores, top):
    _, whole, some = check_intervals(*stores, top=top)
    lacking = strongest(whole, top) - set(some.edges)
    assert len(lacking) <= some.graph["rivals"]
    exact = stores[1].circuit(top=top, exact=True, connected=False)
    assert len(lacking) <= exact.graph["rivals"] <= some.graph["rivals"]
    said = [note for note in some.graph["flags"] if "other edges may be among" in note]
    assert bool(said) == bool(some.graph["rivals"])


@pytest.mark.parametrize("layers", [None, ["0", "2"]])
def test_rivals_are_of_the_chosen_layers(stores, layers):
    complete, few = stores
    whole = complete.circuit(top=100_000, layers=layers)
    some = few.circuit(top=100_000, layers=layers, connected=False)
    # All that is stored is shown: what may belong besides has no row in any input.
    assert len(units_of(whole) - set(some.edges)) <= some.graph["rivals"]
    assert some.graph["rivals"] <= 6 * 8 + (0 if layers else 2 * 6 + 8 + 8)


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["unit", "logit"])
@pytest.mark.parametrize(
    "condition", [{}, {"given": "b"}, {"given": "b", "per_input": True}, {"given": "c"}]
)
def test_exact_circuits_are_those_of_the_complete_store(stores, weight, condition):
    complete, few = stores
    options = {"weight": weight, "where": "label = 'a'", **condition}
    whole = complete.circuit(top=100_000, **options)
    plain = few.circuit(top=50, **options)
    exact = few.circuit(top=50, exact=True, **options)
    assert set(exact.edges) == set(plain.edges)
    assert any("missing" in data for *_, data in plain.edges(data=True))
    for edge in exact.edges:
        data, true = exact.edges[edge], whole.edges[edge]
        assert not data.keys() & {"missing", "low", "high"}
        assert data.keys() - {"top_share"} == true.keys() - {"top_share"}
        for name in data.keys() - {"top_share"}:
            np.testing.assert_allclose(data[name], true[name], err_msg=name, **CLOSE)
    assert exact.graph["exact"] is True
    for name in ("inputs", "absorbed", "pruned", "share"):
        assert exact.graph[name] == pytest.approx(plain.graph[name], rel=1e-12)


def test_shares_of_own_strongest_stand_where_they_are_certain(stores):
    complete, few = stores
    for top in (4, 12, 40):
        whole = complete.circuit(top=top)
        for graph in (few.circuit(top=top), few.circuit(top=top, exact=True)):
            shared = 0
            for src, dst, share in graph.edges(data="top_share"):
                if share is not None and whole.has_edge(src, dst):
                    assert share == whole.edges[src, dst]["top_share"]
                    shared += 1
            assert shared or top > 4


def by_edge(table, column):
    return {tuple(r[c] for c in EDGE): r[column] for r in table.to_pylist()}


@pytest.mark.parametrize("weight", ["logit", "unit"])
def test_exact_contrasts_leave_nothing_out(stores, weight):
    complete, few = stores
    groups = ("label = 'a'", "label = 'b'")
    plain = few.contrast(*groups, edges=60, weight=weight, draws=200)
    exact = few.contrast(*groups, edges=60, weight=weight, draws=200, exact=True)
    whole = complete.contrast(*groups, edges=10_000, weight=weight, draws=200)
    assert plain.unknown > 0
    assert any("exact=True computes them" in note for note in plain.notes)
    assert exact.unknown == 0
    assert not any("left out" in note for note in exact.notes)
    assert len(exact.table) == 60 > len(plain.table)
    for column in ("mean_a", "mean_b", "difference", "stderr"):
        true, mine = by_edge(whole.table, column), by_edge(exact.table, column)
        for edge, value in mine.items():
            np.testing.assert_allclose(value, true[edge], err_msg=column, rtol=1e-3, atol=2e-6)
    # What is chosen does not depend on which labels the keys bear.
    others = few.contrast("key < 'k06'", "key >= 'k06'", edges=60, weight=weight, exact=True)
    assert set(by_edge(others.table, "dst")) == set(by_edge(exact.table, "dst"))


def test_exact_stability_is_of_computed_edges(stores):
    complete, few = stores
    options = {"top": 15, "splits": 20, "draws": 50}
    plain, exact = few.stability(**options), few.stability(exact=True, **options)
    whole = complete.stability(**options)
    assert plain.unknown > 0
    assert exact.unknown == 0
    true, mine = by_edge(whole.edges, "mean"), by_edge(exact.edges, "mean")
    assert set(true) == set(mine)
    for column in ("mean", "low", "high", "frequency"):
        true, mine = by_edge(whole.edges, column), by_edge(exact.edges, column)
        for edge, value in mine.items():
            np.testing.assert_allclose(value, true[edge], err_msg=column, **CLOSE)
    assert exact.jaccard == pytest.approx(whole.jaccard)


def test_exact_stability_is_certified_where_thresholds_prove_it(stores, tmp_path):
    _, few = stores
    assert not few.stability(top=60, splits=5, draws=5, exact=True).certified
    rows = inputs(6, 3)
    # Nearly all edges are stored: what is absent is far below the strongest.
    complete, many = pair_of_stores(tmp_path, rows, 150)
    with complete, many:
        assert many.meta["max_edges"] == 150
        stable = many.stability(top=3, splits=5, draws=20, exact=True)
        assert stable.certified
        whole = complete.stability(top=3, splits=5, draws=20)
        assert stable.splits["jaccard"].to_pylist() == whole.splits["jaccard"].to_pylist()


def test_exact_clusters_leave_nothing_out(stores):
    complete, few = stores
    plain, exact = few.clusters(k=2, edges=60), few.clusters(k=2, edges=60, exact=True)
    assert plain.unknown > 0
    assert exact.unknown == 0
    whole = complete.circuit(top=100_000)
    flows = exact.edges.to_pandas()
    sizes = {row["cluster"]: row["size"] for row in exact.clusters.to_pylist()}
    flows["part"] = flows["mean"] * flows["cluster"].map(sizes) / sum(sizes.values())
    assert len(flows) == 120
    means = flows.groupby(["dst", "dst_unit", "src", "src_unit"]).part.sum()
    for (d, du, s, su), mean in means.items():
        true = whole.edges[(s, su), (d, du)]["relevance"]
        np.testing.assert_allclose(mean, true, **CLOSE)


def test_what_was_computed_is_not_computed_again(stores, monkeypatch):
    _, few = stores
    few._exact.clear()
    monkeypatch.setattr(stored_edges, "BATCH_NUMBERS", 1)
    forward, asked = stored_edges.forward, []

    def ended(net, xs):
        if len(asked) == 7:
            raise KeyboardInterrupt
        asked.append(len(xs[0]))
        return forward(net, xs)

    monkeypatch.setattr(stored_edges, "forward", ended)
    with pytest.raises(KeyboardInterrupt):
        few.circuit(top=30, exact=True)
    monkeypatch.setattr(stored_edges, "forward", lambda *a: asked.append(1) or forward(*a))
    again = few.circuit(top=30, exact=True)
    assert len(asked) == 20  # every input once
    few.circuit(top=30, exact=True)
    assert len(asked) == 20
    few.refresh()
    fresh = few.circuit(top=30, exact=True)
    assert len(asked) == 40
    for edge in again.edges:
        assert again.edges[edge] == fresh.edges[edge]


def test_what_is_remembered_is_bounded(stores, monkeypatch):
    _, few = stores
    few._exact.clear()
    monkeypatch.setattr(stored_edges, "REMEMBERED", 20 * 30)
    for top in (10, 20, 30):
        few.circuit(top=top, exact=True)
    sizes = [sum(map(len, rows.values())) for rows in few._exact.values()]
    assert sizes == [20 * 20, 20 * 30] or sum(sizes[:-1]) <= 20 * 30


def test_a_store_without_tensors_cannot_be_exact(tmp_path):
    with ng.extract(
        network(), inputs(3), tmp_path / "s.nrm", max_edges=60, resolution="channel",
        target=1, tensors="omit", progress=False,
    ) as db:  # fmt: skip
        assert db.circuit(top=5, connected=False).number_of_edges() == 5
        with pytest.raises(InputError, match="leave exact=True out"):
            db.circuit(top=60, exact=True)


def test_complete_stores_and_those_of_a_coverage(tmp_path):
    net, rows = network(), inputs(4)
    options = {"resolution": "channel", "target": 1, "progress": False}
    complete = ng.extract(net, rows, tmp_path / "all.nrm", max_edges="all", **options)
    pruned = ng.extract(net, rows, tmp_path / "part.nrm", coverage=0.7, **options)
    with complete, pruned:
        whole = complete.circuit(top=100_000)
        same = complete.circuit(top=100_000, exact=True)
        for edge in whole.edges:
            assert whole.edges[edge] == pytest.approx(same.edges[edge], rel=1e-12)
        plain = pruned.circuit(top=80)
        assert any("missing" in d for *_, d in plain.edges(data=True))
        assert not any("low" in d for *_, d in plain.edges(data=True))
        assert "rivals" not in plain.graph
        assert not any("stored" in note for note in plain.graph["flags"])
        exact = pruned.circuit(top=80, exact=True)
        for edge in exact.edges:
            for name in exact.edges[edge].keys() - {"top_share"}:
                true = whole.edges[edge][name]
                np.testing.assert_allclose(exact.edges[edge][name], true, **CLOSE)


def test_targets_and_weights_of_outputs(tmp_path):
    rows = inputs(5)
    options = {"resolution": "channel", "target": [{0: 1.0, 2: -0.5}, 3], "progress": False}
    net = network()
    complete = ng.extract(net, rows, tmp_path / "all.nrm", max_edges="all", **options)
    few = ng.extract(net, rows, tmp_path / "few.nrm", max_edges=60, **options)
    with complete, few:
        whole = complete.circuit(top=100_000, mixed_targets=True)
        exact = few.circuit(top=60, mixed_targets=True, exact=True)
        assert exact.graph["inputs"] == 10
        for edge in exact.edges:
            true = whole.edges[edge]["relevance"]
            np.testing.assert_allclose(exact.edges[edge]["relevance"], true, **CLOSE)


def test_joint_relevances_of_undefined_inputs_are_bounded_too(tmp_path):
    # Two units of one activation and opposite weights: R(both) vanishes, its edges do not.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].weight[1] = net[0].weight[0].flip(0)
        net[2].weight[1, :2] = torch.tensor([1.0, -1.0])
    half = torch.rand(4, 10)
    alike = torch.cat([half, half.flip(1)], dim=1)
    rows = [{"input": x, "key": f"k{i}"} for i, x in enumerate([*alike, *torch.rand(4, 20)])]
    options = {"target": 1, "composite": "epsilon", "progress": False}
    complete = ng.extract(net, rows, tmp_path / "all.nrm", max_edges="all", **options)
    few = ng.extract(net, rows, tmp_path / "few.nrm", max_edges=14, **options)
    with complete, few:
        for db in (complete, few):
            db.materialize(ng.Layer("0")[:2], name="b", progress=False)
        number, whole, _ = check_intervals(complete, few, given="b")
        assert number > 5
        assert whole.graph["undefined"] == 4
        exact = few.circuit(top=20, given="b", exact=True)
        for edge in exact.edges:
            true = whole.edges[edge]["relevance"]
            np.testing.assert_allclose(exact.edges[edge]["relevance"], true, rtol=1e-3, atol=1e-5)
