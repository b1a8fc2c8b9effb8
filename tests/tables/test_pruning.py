"""Pruned tables: the smallest set that covers, and totals that do not change."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nrm_graph as ng
from nrm_graph.tables import dense_edges
from nrm_graph.tables.builder import edge_tables
from nrm_graph.tables.edge_block import Block
from nrm_graph.tables.plan import plan
from nrm_graph.tables.pruning import Limit, limits, prune, select

PRUNED = -3


def random_block(values: list[float], width: int) -> Block:
    relevance = np.array(values)
    dst, src = np.divmod(np.arange(len(values)), width)
    keep = relevance != 0
    return Block(2, 1, dst[keep], src[keep], relevance[keep])


def dense(block: Block, shape: tuple[int, int]) -> np.ndarray:
    """Return a table with the pruned row and column last."""
    table = np.zeros((shape[0] + 1, shape[1] + 1))
    rows = np.where(block.dst < 0, shape[0], block.dst)
    cols = np.where(block.src < 0, shape[1], block.src)
    np.add.at(table, (rows, cols), block.relevance)
    return table


numbers = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-6 else v)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(
    st.lists(numbers, min_size=12, max_size=60),
    st.floats(0.05, 1.0),
    st.none() | st.integers(1, 20),
    st.integers(1, 5),
)
def test_smallest_covering_set_and_exact_totals(values, coverage, top, pieces):
    width = 6
    whole = random_block(values, width)
    shape = (len(values) // width + 1, width)
    cuts = np.array_split(np.arange(len(whole)), pieces)
    chunks = [whole.where(np.isin(np.arange(len(whole)), cut)) for cut in cuts]
    (found,) = select(lambda: iter(chunks), {(2, 1): Limit(coverage, top)})
    kept = (found.dst >= 0) & (found.src >= 0)
    sizes = np.sort(np.abs(whole.relevance))[::-1]
    goal = coverage * sizes.sum() * (1 - 1e-12)
    needed = int(np.searchsorted(np.cumsum(sizes), goal)) + 1 if len(sizes) else 0
    needed = min(needed, len(sizes) if top is None else top)
    assert kept.sum() == needed
    np.testing.assert_allclose(
        np.sort(np.abs(found.relevance[kept]))[::-1], sizes[:needed], rtol=1e-15
    )
    before, after = dense(whole, shape), dense(found, shape)
    scale = 1e-13 * max(np.abs(whole.relevance).sum(), 1e-300)
    np.testing.assert_allclose(after[:-1].sum(1), before[:-1].sum(1), atol=scale)
    np.testing.assert_allclose(after[:, :-1].sum(0), before[:, :-1].sum(0), atol=scale)
    assert after.sum() == pytest.approx(before.sum(), abs=scale)
    order = np.lexsort((found.src, found.dst))
    assert np.array_equal(order, np.arange(len(found)))


@pytest.mark.smoke
def test_a_limit_that_leaves_room_keeps_everything():
    whole = random_block([1.0, -2.0, 3.0, 1e-30, 0.5, 4.0], 3)
    assert len(prune(whole, Limit(1.0, 6))) == len(whole) == 6
    assert len(prune(whole, Limit(1.0, 100))) == 6


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1)
        self.b = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).flatten(1))


@functools.cache
def small():
    """An input, and the network traced."""
    torch.manual_seed(1)
    x = torch.randn(2, 7, 7, dtype=torch.float64)
    return x, ng.trace(Small().double(), x)


# Channels 0 and 2 of the layer b, and 1 and 3, are one unit.
PAIRS = np.tile(np.arange(4).reshape(4, 1, 1) % 2, (1, 3, 3))


@pytest.mark.parametrize(
    "resolution", ["neuron", {"a": "neuron", "b": "channel"}, {"a": "neuron", "b": PAIRS}]
)
@pytest.mark.parametrize("limit", [Limit(0.7), Limit(1.0, 7), Limit(0.9, 40)])
def test_large_operations_in_chunks_give_the_same(limit, resolution, monkeypatch):
    """Neuron resolution in bounded memory: pieces of a convolution, pruned as one."""
    x, program = small()
    m = ng.measure(program, x, target=1, resolution=resolution)
    groups = limits(m.topology, limit)

    def table():
        ((nodes, edges),) = edge_tables(m.state, m.start, plan(m.network, m.partitions, groups))
        return nodes, edges

    at_once, complete = table(), m.tables()[1].to_pandas()
    monkeypatch.setattr(dense_edges, "CHUNK", 64)
    if isinstance(resolution, str) or resolution["b"] is not PAIRS:  # those are not cut up
        monkeypatch.setattr(dense_edges, "MAX_TRIPLES", 10)
    in_pieces = table()
    for whole, pieces in zip(at_once, in_pieces, strict=True):
        assert whole.drop_columns(["relevance"]).equals(pieces.drop_columns(["relevance"]))
        np.testing.assert_allclose(whole["relevance"], pieces["relevance"], atol=1e-13)
    pruned = at_once[1].to_pandas()
    for key, rows in complete[complete.src_unit >= 0].groupby(["dst_layer", "src_layer"]):
        mine = pruned[(pruned.dst_layer == key[0]) & (pruned.src_layer == key[1])]
        assert (mine.relevance.sum()) == pytest.approx(rows.relevance.sum(), abs=1e-12)
        for side in ("dst_unit", "src_unit"):
            expected = rows.groupby(side).relevance.sum()
            found = mine[mine[side] >= 0].groupby(side).relevance.sum()
            difference = expected.subtract(found, fill_value=0.0).abs().max()
            assert difference < 1e-12
        assert mine[mine.src_unit == PRUNED].conditional.isna().all()


def test_too_large_without_a_limit_is_refused(monkeypatch):
    monkeypatch.setattr(dense_edges, "MAX_TRIPLES", 10)
    m = ng.measure(Small(), torch.randn(2, 7, 7), resolution="neuron")
    with pytest.raises(ng.InputError, match="keep the strongest edges"):
        m.tables()


@pytest.mark.smoke
def test_a_store_says_which_groups_are_pruned(tmp_path):
    net, rows = Small().eval(), [torch.randn(2, 7, 7), torch.randn(2, 7, 7)]
    db = ng.extract(net, rows, tmp_path / "s.nrm", coverage=0.99, progress=False)
    pruned = {(dst, src) for dst, src, coverage, top in db.meta["pruned"] if coverage == 0.99}
    assert pruned
    found = db.sql("SELECT DISTINCT dst_layer, src_layer FROM edges WHERE src_unit = -3").fetchall()
    assert set(found) == pruned
    assert db.verify().sound
