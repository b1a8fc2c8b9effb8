"""Bounded tables: the strongest edges of each pair, equal shares, true thresholds, exact totals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.events.conjunctions import Literal
from nrm_graph.tables import bounded, builder, dense_edges
from nrm_graph.tables.bounded import Budget, Kept
from nrm_graph.tables.edge_block import Block
from nrm_graph.tables.edge_matrix import Matrix
from nrm_graph.tables.plan import plan


def conv_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    ).eval()


def table(values, dst_layer=2):
    """Pair of layers ``(dst_layer, 1)`` with a table of these values."""
    relevance = torch.tensor(values)
    rows, columns = (np.arange(n, dtype=np.int32) for n in relevance.shape)
    return Matrix(dst_layer, 1, rows, columns, relevance)


def chosen_by_hand(pieces, units, rows):
    """Rows by pair, as the definition has them: sorted lists, the share found by trying all."""
    strengths = {}
    for piece in pieces:
        values = np.sort(np.abs(piece.relevance.numpy().ravel().astype(np.float64)))[::-1]
        strengths[piece.dst_layer] = values[values > 0]
    free, whole = rows // 2, {}
    for pair in sorted(strengths, key=lambda p: (len(strengths[p]), p)):
        count = len(strengths[pair])
        if count <= 2 * units and count <= free:
            whole[pair] = count
            free -= count
    others = {pair: v for pair, v in strengths.items() if pair not in whole and len(v)}
    free = max(0, rows - sum(whole.values()) - len(others))
    if sum(map(len, others.values())) <= free:
        return whole | {pair: len(v) for pair, v in others.items()}
    before = {p: (np.cumsum(v) - v) / v.sum() for p, v in others.items()}
    shares = np.sort(np.concatenate(list(before.values())))
    return whole | {p: int((b < shares[free]).sum()) for p, b in before.items()}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    rows=st.integers(2, 300),
    spread=st.floats(0.1, 4),
    guess=st.none() | st.floats(0.01, 1),
)
@settings(max_examples=80, deadline=None)
def test_the_strongest_of_each_pair_at_one_share(sizes, seed, rows, spread, guess):
    generator = np.random.default_rng(seed)
    rows = max(rows, 2 * len(sizes))  # as a plan demands
    pieces = [
        table(np.exp(spread * generator.normal(size=size)) * generator.choice([-1, 0, 1], size), k)
        for k, size in enumerate(sizes, 2)
    ]
    kept, share = None, guess
    while not isinstance(kept, Kept):  # whatever the guess, the rows are the same
        budget = Budget(rows, share)
        for piece in pieces:
            budget.add([piece], 3)
        kept = share = budget.keep()
    expected = chosen_by_hand(pieces, 3, rows)
    by_pair = {block.dst_layer: block for block in kept.blocks}
    assert set(by_pair) == {pair for pair, number in expected.items() if number or pair in by_pair}
    assert sum(map(len, kept.blocks)) <= rows
    for piece in pieces:
        values, block = piece.relevance.numpy(), by_pair.get(piece.dst_layer)
        if block is None:
            assert not values.any()
            continue
        units = block.dst >= 0
        assert units.sum() == expected[piece.dst_layer]
        np.testing.assert_array_equal(
            values[block.dst[units], block.src[units]], block.relevance[units]
        )
        out = np.abs(values)
        out[block.dst[units], block.src[units]] = 0
        threshold = kept.thresholds[piece.dst_layer, 1]
        assert out.max() <= threshold
        assert not out.any() or np.abs(block.relevance[units]).min(initial=np.inf) >= out.max()
        assert (~units).sum() == (1 if out.any() else 0)
        size = np.abs(values).sum()
        assert block.relevance.sum() == pytest.approx(values.sum(), abs=1e-12 * size)
        assert 1 - out.sum() / size >= kept.share - 1e-9


def tables_of(m, rows):
    made = plan(m.network, m.partitions, {}, rows)
    (tables,) = builder.sample_tables(m.state, m.start, made)
    return tables


def pairs_of(edges):
    frame = edges.to_pandas()
    return dict(list(frame.groupby(["dst_layer", "src_layer"])))


@pytest.mark.parametrize("resolution", ["channel", "neuron", {"0": "neuron", "2": "channel"}])
@pytest.mark.parametrize("rows", [60, 400])
def test_rows_are_those_of_the_complete_tables(resolution, rows):
    m = ng.measure(conv_net(), torch.randn(3, 8, 8), resolution=resolution, dtype="float64")
    complete, few = pairs_of(m.tables()[1]), tables_of(m, rows)
    assert len(few.edges) <= rows
    shares = {}
    for pair, mine in pairs_of(few.edges).items():
        whole, units = complete[pair], mine[mine.dst_unit >= 0]
        both = units.merge(whole, on=["dst_unit", "src_unit"])
        assert len(both) == len(units)
        np.testing.assert_array_equal(both.relevance_x, both.relevance_y)
        np.testing.assert_allclose(both.conditional_x, both.conditional_y, rtol=1e-12)
        size, held = whole.relevance.abs().sum(), units.relevance.abs().sum()
        assert mine.relevance.sum() == pytest.approx(whole.relevance.sum(), abs=1e-12 * size)
        if len(units) < (whole.relevance != 0).sum():
            shares[pair] = held / size
            least = units.relevance.abs().min()
            assert few.kept.thresholds[pair] == least
            assert (whole.relevance.abs() > least).sum() <= len(units)
    assert min(shares.values(), default=1.0) >= few.kept.share - 1e-9
    # Each pair keeps the same share, but for the edge with which it passes it.
    for pair, share in shares.items():
        mine = pairs_of(few.edges)[pair]
        weakest = mine[mine.dst_unit >= 0].relevance.abs().min()
        assert share <= few.kept.share + weakest / complete[pair].relevance.abs().sum() + 1e-9


def test_totals_of_pseudo_units_stand_in_nodes():
    m = ng.measure(conv_net(), torch.randn(3, 8, 8), resolution="channel", dtype="float64")
    nodes, few = m.tables()[0].to_pandas(), tables_of(m, 60)
    bounded_nodes = few.nodes.to_pandas()
    for unit in (-1, -2):
        expected = nodes[nodes.unit == unit].set_index("layer_id").relevance
        totals = bounded_nodes[bounded_nodes.unit == unit].set_index("layer_id").relevance
        np.testing.assert_allclose(totals, expected, rtol=1e-12)
    assert not ((few.edges["dst_layer"].to_numpy() == few.edges["src_layer"].to_numpy()).any())
    rest = few.edges.to_pandas().query("dst_unit == -3").groupby("dst_layer").relevance.sum()
    lost = bounded_nodes[bounded_nodes.unit == -3].set_index("layer_id").relevance
    np.testing.assert_allclose(lost, rest[rest != 0], atol=1e-14)


def test_large_operations_in_chunks_give_the_same(monkeypatch):
    m = ng.measure(conv_net(), torch.randn(3, 8, 8), resolution="neuron", dtype="float64")
    at_once = tables_of(m, 300)
    monkeypatch.setattr(dense_edges, "CHUNK", 64)
    monkeypatch.setattr(dense_edges, "MAX_TRIPLES", 10)
    in_pieces = tables_of(m, 300)
    keys = ["dst_layer", "dst_unit", "src_layer", "src_unit"]
    assert at_once.edges.select(keys).equals(in_pieces.edges.select(keys))
    np.testing.assert_allclose(at_once.edges["relevance"], in_pieces.edges["relevance"], atol=1e-13)


def test_a_pass_is_done_again_where_its_guess_set_aside_too_little(monkeypatch):
    m = ng.measure(conv_net(), torch.randn(3, 8, 8), resolution="channel", dtype="float64")
    made = plan(m.network, m.partitions, {}, 60)
    (plain,) = builder.sample_tables(m.state, m.start, made)
    passes = []
    keep = bounded.Budget.keep
    monkeypatch.setattr(bounded.Budget, "keep", lambda self: passes.append(1) or keep(self))
    made.cache[builder._SHARE] = 1e-3
    (again,) = builder.sample_tables(m.state, m.start, made)
    assert len(passes) > 1
    assert again.edges.equals(plain.edges)
    assert again.kept.thresholds == plain.kept.thresholds


def test_events_are_bounded_alike():
    m = ng.measure(conv_net(), torch.randn(3, 8, 8), resolution="channel", dtype="float64")
    mask = np.zeros((16, 8, 8), bool)
    mask[3:9] = True
    clause = {2: Literal(passes=True, mask=mask)}
    complete = plan(m.network, m.partitions)
    few = plan(m.network, m.partitions, {}, 80)
    ((_, everything),) = builder.edge_tables(m.state, m.start, complete, clause)
    ((_, some),) = builder.edge_tables(m.state, m.start, few, clause)
    whole = pairs_of(everything)
    for pair, rows in pairs_of(some).items():
        both = rows[rows.dst_unit >= 0].merge(whole[pair], on=["dst_unit", "src_unit"])
        assert len(both) == (rows.dst_unit >= 0).sum()
        np.testing.assert_array_equal(both.relevance_x, both.relevance_y)
        np.testing.assert_allclose(both.conditional_x, both.conditional_y, rtol=1e-12)


def test_chunks_are_merged_in_bounded_memory():
    generator = np.random.default_rng(0)
    values = generator.normal(size=1000)
    blocks = [
        Block(2, 1, np.full(100, k), np.arange(100), values[100 * k : 100 * k + 100])
        for k in range(10)
    ]
    (strongest,) = bounded.strongest_of(iter(blocks), 30)
    assert len(strongest) == 30
    assert strongest.count == 1000
    assert strongest.size == pytest.approx(np.abs(values).sum())
    assert strongest.total == pytest.approx(values.sum())
    expected = np.sort(np.argsort(-np.abs(values))[:30])
    np.testing.assert_array_equal(strongest.dst * 100 + strongest.src, expected)


@pytest.mark.smoke
def test_stores_are_the_same_whatever_the_batch(tmp_path):
    net, rows = conv_net(), [{"input": torch.randn(3, 8, 8), "key": str(i)} for i in range(6)]
    options = {"resolution": "channel", "max_edges": 90, "progress": False}
    first = ng.extract(net, rows, tmp_path / "a.nrm", batch_size=4, **options)
    ng.extract(net, rows[:3], tmp_path / "b.nrm", batch_size=1, **options).close()
    second = ng.extract(net, rows[::-1], tmp_path / "b.nrm", batch_size=2, **options)
    query = "SELECT * FROM {} ORDER BY ALL"
    for name in ("edges", "nodes", "thresholds"):
        mine, other = (db.sql(query.format(name)).to_arrow_table() for db in (first, second))
        ids = [column for column in mine.column_names if mine[column].type != "float"]
        assert mine.select(ids).equals(other.select(ids))
    kept = "SELECT min(kept), max(kept) FROM inputs"
    ((low, high),) = first.sql(kept).fetchall()
    assert 0 < low <= high < 1
    assert first.meta["format_version"] == 2
    assert first.sql("SELECT count(*) FROM edges GROUP BY input_id").fetchall() == [(90,)] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_edges": 0}, "positive number"),
        ({"max_edges": True}, "positive number"),
        ({"max_edges": "some"}, "positive number"),
        ({"max_edges": 90, "top": 3}, "give one of them"),
        ({"max_edges": 90, "coverage": 0.5}, "give one of them"),
        ({"max_edges": 5}, "too few for 4 pairs"),
    ],
)
def test_bounds_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ng.InputError, match=message):
        ng.extract(
            conv_net(), [torch.randn(3, 8, 8)], tmp_path / "s.nrm", resolution="channel", **options
        )


def test_small_networks_are_complete_by_default(tmp_path):
    db = ng.extract(conv_net(), [torch.randn(3, 8, 8)], tmp_path / "s.nrm", progress=False)
    assert db.meta["max_edges"] is None
    assert db.meta["format_version"] == 1
    assert db.sql("SELECT kept FROM inputs").fetchall() == [(1.0,)]
    assert db.sql("SELECT * FROM thresholds").fetchall() == []
