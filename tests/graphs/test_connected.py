"""Connected graphs of layered networks with skips: what holds of each, and slow references."""

import functools
import math
from collections import defaultdict
from fractions import Fraction

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrm_graph.graphs.connected import Ends, connected
from nrm_graph.graphs.largest import largest
from nrm_graph.graphs.stepped_over import stepped_over
from nrm_graph.graphs.subgraph import ENDS, subgraph
from nrm_graph.network.topology import EdgeGroup, LayerInfo, Topology

pytestmark = pytest.mark.smoke


@st.composite
def networks(draw, targets=1):
    """Pairs of layers, and rows (dst layer, dst unit, src layer, src unit, size) between them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    depth = draw(st.integers(2, 6))
    widths = [*rng.integers(1, draw(st.sampled_from([2, 6])) + 1, depth - 1), targets]
    pairs = [(i + 1, i) for i in range(depth - 1)]
    pairs += [(i, j) for i in range(depth) for j in range(i - 1) if rng.random() < 0.3]
    density = draw(st.sampled_from([0.2, 0.6, 1.0]))  # of a store that leaves edges out
    levels = draw(st.sampled_from([2, 1000]))  # few of them: ties
    rows = [
        (d, i, s, j, rng.integers(0, levels + 1) / levels * 10.0 ** -(d % 3))
        for d, s in pairs
        for i in range(widths[d])
        for j in range(widths[s])
        if rng.random() < density
    ]
    if draw(st.booleans()):
        rows += [
            (d, i, d, unit, 3 * rng.random())
            for d in range(1, depth)
            for i in range(widths[d])
            for unit in (-1, -2)
            if rng.random() < 0.4
        ]
        rows += [
            row
            for d, s in pairs
            if rng.random() < 0.3
            for row in ((d, 0, s, -3, 0.5), (d, -3, s, 0, 0.25), (d, -3, s, -3, 0.1))
        ]
    rng.shuffle(rows)
    return pairs, [(*map(int, row[:4]), float(row[4])) for row in rows]


def ends_of(rows):
    columns = np.array(rows, float).reshape(-1, 5).T
    return Ends(*columns[:4].astype(np.int64), columns[4])


def graph_of(rows, places=None):
    graph = nx.DiGraph()
    for place in range(len(rows)) if places is None else places:
        d, i, s, j, size = rows[place]
        if size > 0 and i >= 0:
            graph.add_edge((d, i), (s, j), size=size, place=place)
    return graph


def reachable(graph, roots):
    reached = set(roots)
    for root in roots:
        reached |= nx.descendants(graph, root)
    return reached


def roots_of(graph, depth):
    return [node for node in graph if node[0] == depth and node[1] >= 0]


@settings(deadline=None)
@given(networks(), st.integers(1, 60))
def test_every_node_is_reached_and_leads_on(network, top):
    pairs, rows = network
    whole = graph_of(rows)
    depth = max((node[0] for node in whole), default=0)
    choice = connected(ends_of(rows), pairs, top)
    graph = graph_of(rows, choice.places.tolist())
    assert len(choice.places) == graph.number_of_edges() <= top
    assert reachable(graph, roots_of(graph, depth)) == set(graph)
    ways_on = {node for node in graph if graph.out_degree(node)}
    ends = {node for node in graph if node[0] == 0 or node[1] < 0}
    assert set(graph) - ways_on - ends == choice.cut
    if depth == max(pair[0] for pair in pairs) and len(graph):  # of the target rows are stored
        assert nx.is_weakly_connected(graph)
    sizes = np.array([row[4] for row in rows])
    names = [np.array(column) for column in zip(*(row[:4] for row in rows), strict=True)]
    order = largest(sizes[choice.places], top, [name[choice.places] for name in names])
    np.testing.assert_array_equal(order, np.arange(len(order)))


@settings(deadline=None)
@given(networks(), st.integers(1, 60))
def test_cut_only_where_it_must_be(network, top):
    """Ends are missed only by a budget below one way, or once all that leads to one is there."""
    pairs, rows = network
    whole = graph_of(rows)
    depth = max((node[0] for node in whole), default=0)
    choice = connected(ends_of(rows), pairs, top)
    graph = graph_of(rows, choice.places.tolist())
    good = {node for node in whole if node[0] == 0 or node[1] < 0}
    leading = reachable(whole.reverse(), good)
    if choice.cut & leading:
        assert len(graph) == top + 1  # one way
        assert len(choice.cut) == 1
    if choice.cut - leading:
        reached = reachable(whole, roots_of(whole, depth))
        assert all(graph.has_edge(a, b) for a, b in whole.edges if a in reached and b in leading)


@settings(deadline=None)
@given(networks())
def test_fewer_edges_are_part_of_more_up_to_all_that_are_reached(network):
    pairs, rows = network
    whole = graph_of(rows)
    depth = max((node[0] for node in whole), default=0)
    reached = reachable(whole, roots_of(whole, depth))
    everything = {data["place"] for a, _, data in whole.edges(data=True) if a in reached}
    before: set[int] = set()
    for top in range(1, len(rows) + 2):
        places = set(connected(ends_of(rows), pairs, top).places.tolist())
        assert before <= places
        before = places
    assert before == everything


def slowly(pairs, rows, top):
    """Choose in the plainest way: fractions, and a search for each link."""
    whole = graph_of(rows)
    depth = max((node[0] for node in whole), default=0)
    reached = reachable(whole, roots_of(whole, depth))
    whole = whole.subgraph(reached)
    inputs = {node for node in whole if node[0] == 0 and node[1] >= 0}
    onward = reachable(whole.reverse(), inputs)
    leading = reachable(whole.reverse(), inputs | {node for node in whole if node[1] < 0})

    def strength(edge):
        return -whole.edges[edge]["size"], edge[0], edge[1]

    keys = {}
    for layer in range(1, depth + 1):
        mine = [e for e in whole.edges if e[0][0] == layer and e[1][1] >= 0 and e[1] in leading]
        mine.sort(key=strength)
        total = sum(Fraction(whole.edges[e]["size"]) for e in mine)
        share = Fraction(0)
        for rank, edge in enumerate(mine, 1):
            share += Fraction(whole.edges[edge]["size"]) / total
            keys[edge] = round(float(rank * (share + Fraction(1, 4))), 9)
    inputs_of, readers = defaultdict(float), defaultdict(float)
    for a, b, edge_size in whole.edges(data="size"):
        inputs_of[a] += edge_size
        readers[b] += edge_size

    @functools.cache
    def down(node):
        """Logarithm of the most that goes from a node to the input."""
        ways = [down_over(e) for e in whole.out_edges(node)]
        return 0.0 if node in inputs else max(ways, default=-math.inf)

    def down_over(edge):
        share = whole.edges[edge]["size"] / inputs_of[edge[0]]
        return round(math.log(share) + down(edge[1]), 9)

    @functools.cache
    def up(node):
        """Logarithm of the most that came to a node from the target."""
        ways = [up_over(e) for e in whole.in_edges(node)]
        return max(ways, default=0.0)

    def up_over(edge):
        return round(math.log(whole.edges[edge]["size"] / readers[edge[1]]) + up(edge[0]), 9)

    first = sorted((e for e in keys if e[0][0] == depth), key=strength)[:1]
    absorbing = sorted((e for e in whole.edges if e[1][1] < 0), key=strength)
    dead = sorted((e for e in whole.edges if e[1][1] >= 0 and e not in keys), key=strength)
    chosen: list[tuple] = []
    turns = [(key, 1, *edge) for edge, key in keys.items()]
    places = {turn[2:]: place for place, turn in enumerate(sorted(turns))}
    turns += [(-1, 1, *edge) for edge in first]
    turns += [(1e9 + i, 1, *edge) for i, edge in enumerate([*absorbing, *dead])]
    while turns:
        turn = min(turns)
        turns.remove(turn)
        time, state, *_ = turn
        edge = turn[-2:]
        inside = {node for link in chosen for node in link}
        outside = (edge[0] not in inside) + (edge[1] not in inside)
        if edge in chosen:
            continue
        if 0 < time < 1e9 and state == 1 and outside:  # what waits goes first, as it stood
            turns.append((keys[edge] * 4**outside, 0, places[edge], *edge))
            continue
        bundle, node = [edge], edge[0]
        while node not in inside and whole.in_degree(node):
            bundle.insert(0, min(whole.in_edges(node), key=lambda e: (-up_over(e), *e)))
            node = bundle[0][0]
        node = edge[1]
        while node not in inside:
            units = [e for e in whole.out_edges(node) if e[1][1] >= 0]
            tiers = (
                [e for e in units if e[1] in onward],
                [e for e in whole.out_edges(node) if e[1][1] < 0],
                [e for e in units if e[1] in leading],
            )
            ways = next((tier for tier in tiers if tier), None)
            if ways is None or node in inputs:
                break
            most = down_over if ways is tiers[0] else lambda e: whole.edges[e]["size"]
            bundle.append(min(ways, key=lambda e: (-most(e), *e)))
            node = bundle[-1][1]
        if len(chosen) + len(bundle) > top:
            return chosen or bundle[:top]
        chosen += bundle
    return chosen


@settings(deadline=None)
@given(networks(), st.integers(1, 40))
def test_against_a_plain_search(network, top):
    pairs, rows = network
    graph = graph_of(rows, connected(ends_of(rows), pairs, top).places.tolist())
    assert set(graph.edges) == set(slowly(pairs, rows, top))


@settings(deadline=None)
@given(networks(targets=3), st.integers(1, 60))
def test_several_units_of_the_target_count_as_joined(network, top):
    pairs, rows = network
    depth = max((row[0] for row in rows if row[4] > 0 and row[1] >= 0), default=0)
    graph = graph_of(rows, connected(ends_of(rows), pairs, top).places.tolist())
    for root in roots_of(graph, depth):
        graph.add_edge("target", root)
    assert not len(graph) or nx.is_weakly_connected(graph)


def test_layers_keep_pace():
    """Of twenty neurons one holds nearly all; the hundred below share evenly."""
    pairs = [(2, 1), (1, 0)]
    rows = [(2, 0, 1, j, 1.0 if j == 0 else 1e-3) for j in range(20)]
    rows += [(1, j % 20, 0, j, 1e-2) for j in range(100)]
    for top in (10, 50, 100):
        chosen = [rows[i] for i in connected(ends_of(rows), pairs, top).places]
        upper = sum(row[0] == 2 for row in chosen)
        assert top - 1 <= len(chosen) <= top
        assert len(chosen) - upper >= upper >= top / 5


def test_a_layer_of_which_no_edge_is_stored_is_no_target():
    pairs = [(3, 2), (2, 1), (1, 0)]
    rows = [(3, 0, 2, 0, 1.0), (1, 0, 0, 0, 5.0)]
    choice = connected(ends_of(rows), pairs, 10)
    assert choice.places.tolist() == [0]
    assert choice.cut == {(2, 0)}
    # Where the upper layers are not asked for, it is.
    assert connected(ends_of(rows[1:]), [(1, 0)], 10).places.tolist() == [0]


def test_a_pseudo_unit_is_an_end_where_no_other_way_leads_to_one():
    pairs = [(2, 1), (1, 0)]
    rows = [(2, 0, 2, -1, 9.0), (2, 0, 1, 0, 1.0), (2, 0, 1, 1, 2.0), (1, 1, 1, -1, 2.0)]
    rows += [(1, 0, 0, 0, 0.5), (1, 0, 1, -2, 0.5)]
    choices = [connected(ends_of(rows), pairs, top) for top in range(1, 7)]
    assert [set(choice.places.tolist()) for choice in choices] == [
        {2},
        {2, 3},
        {2, 3},
        {1, 2, 3, 4},
        {0, 1, 2, 3, 4},
        {0, 1, 2, 3, 4, 5},
    ]
    assert choices[0].cut == {(1, 1)}
    assert not any(choice.cut for choice in choices[1:])


def topology_of(pairs, depth):
    layers = (LayerInfo(i, f"l{i}", "dense" if i else "input", (9,), i) for i in range(depth))
    return Topology(tuple(layers), tuple(EdgeGroup(d, s, 1) for d, s in pairs))


@settings(deadline=None)
@given(networks(), st.integers(1, 60))
def test_shares_are_those_of_the_edges(network, top):
    pairs, rows = network
    topology = topology_of(pairs, max(pair[0] for pair in pairs) + 1)
    ends = ends_of(rows)
    edges = pa.table({name: getattr(ends, name) for name in ENDS} | {"relevance": ends.size})
    edges = edges.append_column("conditional", pa.nulls(len(rows), pa.float64()))
    nodes = pa.table(
        {
            "layer_id": [1, 1, 1, 1, 0],
            "unit": [-1, -2, -4, -3, 0],
            "relevance": [0.25, -0.5, 0.125, 7.0, 0.5],
            "activation": pa.nulls(5, pa.float64()),
        }
    )
    both = [subgraph(topology, nodes, edges, top, 2.0, connected=way) for way in (True, False)]
    total = sum(row[4] for row in rows)
    for graph in both:
        kept = sum(data["relevance"] for *_, data in graph.edges(data=True)) / 2
        assert graph.graph["share"] == pytest.approx(kept / total if total else 1.0)
        assert graph.graph["absorbed_in"] == {"l1": -0.25}
    assert both[0].graph["share_strongest"] == pytest.approx(both[1].graph["share"])
    assert both[0].graph["share"] <= both[1].graph["share"] + 1e-12
    assert "share_strongest" not in both[1].graph
    steps = {
        (int(dst[0][1:]), int(src[0][1:])): data.get("steps_over", ())
        for src, dst, data in both[1].edges(data=True)
    }
    layers = nx.DiGraph(pairs)
    for (dst, src), names in steps.items():
        ways = nx.all_simple_paths(layers, dst, src) if dst != src else []
        assert list(names) == sorted(
            {f"l{i}" for way in ways for i in way} - {f"l{dst}", f"l{src}"}
        )


def test_parallel_branches_step_over_nothing():
    """Of two branches none is between the other's ends; a bypass of both steps over both."""
    pairs = [(3, 1), (3, 2), (1, 0), (2, 0), (3, 0)]
    topology = topology_of(pairs, 4)
    assert stepped_over(topology, pairs) == {(3, 0): ("l1", "l2")}
