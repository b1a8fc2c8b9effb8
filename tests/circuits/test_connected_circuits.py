"""Connected circuits: the choice among a group's means, and statistics of what is chosen."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.graphs.connected import Ends, connected
from nrm_graph.network.topology import ENDS as INPUTS

pytestmark = pytest.mark.usefixtures("remembered_traces")

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Skipping(nn.Module):
    """A residual block between two dense layers."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h + torch.relu(self.inner(h)))


def data(n=12):
    torch.manual_seed(1)
    return [{"key": f"k{i}", "input": torch.randn(5), "label": "ab"[i % 2]} for i in range(n)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("connected")
    torch.manual_seed(0)
    net = Skipping().eval()
    with (
        ng.extract(net, data(), folder / "all.nrm", target=1, progress=False) as whole,
        ng.extract(net, data(), folder / "few.nrm", target=1, max_edges=40, progress=False) as few,
    ):
        for db in (whole, few):
            db.materialize(ng.Layer("first")[:3], name="b", progress=False)
        yield whole, few


def table_of(db, graph):
    ids = {layer.name: layer.layer_id for layer in db.topology.layers}
    rows = [
        (ids[dst[0]], dst[1], ids[src[0]], src[1], abs(value))
        for src, dst, value in graph.edges(data="relevance")
    ]
    return [tuple(row[:4]) for row in rows], Ends(
        *np.array([row[:4] for row in rows]).T, np.array([row[4] for row in rows])
    )


OPTIONS = [
    {},
    {"where": "label = 'a'", "weight": "logit"},
    {"given": "b"},
    {"given": "b", "per_input": True},
    {"layers": ["first", "add", "inner"]},
]


def add_name(db):
    return next(layer.name for layer in db.topology.layers if layer.kind == "sum")


def options_of(db, options):
    if "layers" not in options:
        return options
    return options | {"layers": ["first", add_name(db), "inner"]}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("top", [2, 25])
@pytest.mark.parametrize("is_bounded", [False, True])
def test_the_choice_is_among_the_means_of_all_edges(stores, options, top, is_bounded):
    db = stores[is_bounded]
    options = options_of(db, options)
    every = db.circuit(top=100_000, connected=False, **options)
    graph = db.circuit(top=top, **options)
    names, ends = table_of(db, every)
    listed = options.get("layers")
    pairs = [
        (group.dst, group.src)
        for group in db.topology.groups
        if listed is None
        or {db.topology.layers[i].name for i in (group.dst, group.src)} <= set(listed)
    ]
    choice = connected(ends, pairs, top)
    assert {names[place] for place in choice.places} == set(table_of(db, graph)[0])
    layers = [layer.name for layer in db.topology.layers]
    cut = {node for node, is_cut in graph.nodes(data="cut") if is_cut}
    assert cut == {(layers[layer], unit) for layer, unit in choice.cut}
    for edge in graph.edges:
        mine, other = graph.edges[edge], every.edges[edge]
        assert mine.keys() - {"top_share"} == other.keys() - {"top_share"}
        for name in mine.keys() - {"top_share", "steps_over"}:
            np.testing.assert_allclose(mine[name], other[name], err_msg=name, **CLOSE)
    for node, facts in graph.nodes(data=True):
        for name in ("relevance", "std", "inputs", "agreement", "activation"):
            assert facts.get(name) == pytest.approx(every.nodes[node].get(name)), name
    total = ends.size.sum()
    assert graph.graph["share"] == pytest.approx(ends.size[choice.places].sum() / total)
    strongest = np.sort(ends.size)[::-1][:top].sum() / total
    assert graph.graph["share_strongest"] == pytest.approx(strongest)
    assert graph.graph["connected"] is True
    assert "rivals" not in graph.graph
    assert sum(graph.graph["absorbed_in"].values()) == pytest.approx(graph.graph["absorbed"])


def test_own_strongest_edges_are_those_of_the_whole_input(stores):
    db, top = stores[0], 9
    rows = db.sql("SELECT * FROM edges").to_arrow_table().to_pylist()
    graph = db.circuit(top=top)
    layers = [layer.name for layer in db.topology.layers]
    shares = dict.fromkeys(graph.edges, 0.0)
    for identity in {row["input_id"] for row in rows}:
        mine = sorted(
            (row for row in rows if row["input_id"] == identity),
            key=lambda row: -abs(row["relevance"]),
        )
        for row in mine[:top]:
            edge = tuple((layers[row[f"{e}_layer"]], row[f"{e}_unit"]) for e in ("src", "dst"))
            if edge in shares:
                shares[edge] += 1 / len(graph.graph["keys"])
    for edge, share in shares.items():
        assert graph.edges[edge]["top_share"] == pytest.approx(share)


@pytest.mark.parametrize("top", [6, 30])
def test_edges_chosen_by_stored_rows_are_computed(stores, top):
    whole, few = stores
    plain, exact = few.circuit(top=top), few.circuit(top=top, exact=True)
    every = whole.circuit(top=100_000, connected=False)
    assert set(plain.edges) == set(exact.edges)
    for edge in exact.edges:
        for name in ("relevance", "std", "agreement", "inputs"):
            assert exact.edges[edge][name] == pytest.approx(every.edges[edge][name], rel=1e-4)
    assert [n for n, is_cut in exact.nodes(data="cut") if is_cut] == [
        n for n, is_cut in plain.nodes(data="cut") if is_cut
    ]
    for graph in (plain, exact):
        assert any("others may belong in their place" in note for note in graph.graph["flags"])
    assert not any("may belong" in note for note in whole.circuit(top=top).graph["flags"])


def test_one_component_with_skips_marked(stores):
    db = stores[0]
    added = add_name(db)
    for graph in (db.circuit(top=20), db.subgraph("k3", top=20), db.measure("k3").subgraph(20)):
        assert nx.is_weakly_connected(graph)
        ends = {node for node in graph if not graph.in_degree(node)}
        inputs = {layer.name for layer in db.topology.layers if layer.kind in INPUTS}
        assert {layer for layer, _ in ends} == inputs
        for (src, _), (dst, _), steps in graph.edges(data="steps_over"):
            assert steps == (("inner",) if (src, dst) == ("first", added) else None)
        assert any(steps for *_, steps in graph.edges(data="steps_over"))


def test_a_stored_subgraph_is_that_of_the_program(stores):
    db = stores[0]
    for top in (3, 20, 500):
        for way in (True, False):
            stored = db.subgraph("k1", top=top, connected=way)
            computed = db.measure("k1").subgraph(top, connected=way)
            assert set(stored.edges) == set(computed.edges)
            for name in ("share", "share_strongest"):
                assert stored.graph.get(name) == pytest.approx(computed.graph.get(name))
            assert stored.graph["absorbed_in"] == pytest.approx(computed.graph["absorbed_in"])


def test_what_is_pruned_is_an_end(tmp_path):
    """Nothing leads on from a pseudo-unit; a unit of which all was pruned ends at one."""
    torch.manual_seed(0)
    net = Skipping().eval()
    with ng.extract(
        net, data(), tmp_path / "s", target=1, top=2, coverage=1.0, progress=False
    ) as db:
        for top in (5, 10_000):
            graph = db.subgraph("k0", top=top)
            assert nx.is_weakly_connected(graph)
            assert all(unit >= 0 for (_, unit) in (dst for _, dst in graph.edges))
            assert not any(is_cut for _, is_cut in graph.nodes(data="cut"))
        pruned = {node for node in graph if node[1] == -3}
        assert pruned
        every = db.subgraph("k0", top=10_000, connected=False)
        assert any(dst[1] == -3 for _, dst in every.edges)
        assert every.graph["share"] > graph.graph["share"] > 0.25


def test_statistics_of_layers_without_ways_between_keep_all_units(tmp_path):
    """A layer that reads each neuron alone: edges between it and the next are no islands lost."""
    net = nn.Sequential(nn.Conv1d(4, 4, 1, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    torch.manual_seed(0)
    items = [{"key": str(i), "input": torch.rand(4, 2)} for i in range(3)]
    with ng.extract(net.eval(), items, tmp_path / "s", target=0, progress=False) as db:
        graph = db.circuit(layers=["input", "0"], top=100)
        every = db.circuit(layers=["input", "0"], top=100, connected=False)
        assert set(graph.edges) == set(every.edges)
        units = graph.subgraph([node for node in graph if node[1] >= 0])
        assert nx.number_weakly_connected_components(units) > 1
