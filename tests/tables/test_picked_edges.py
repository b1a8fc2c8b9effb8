"""Chosen edges out of one pass are those of the complete tables, whatever the method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.events.conjunctions import Literal
from nrm_graph.propagation.forward import forward
from nrm_graph.tables import builder, dense_edges
from nrm_graph.tables.picked_edges import picked_edges
from nrm_graph.tables.picks import picks
from nrm_graph.tables.plan import plan

COLUMNS = ("dst_layer", "dst_unit", "src_layer", "src_unit")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.mixed = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.nn.functional.max_pool2d(x + torch.relu(self.inner(x)), 2)
        x = x.flatten(2).transpose(1, 2)
        x = x + self.mixed(self.norm(x)) * x
        return self.head(x.mean(1))


def whole(m, resolution_plan, clause=None):
    """Every edge of a complete table that is none of a pseudo-unit."""
    ((_, edges),) = builder.edge_tables(m.state, m.start, resolution_plan, clause)
    rows = edges.to_pandas()
    return rows[(rows.src_unit >= 0) & (rows.dst_unit >= 0)]


def of(rows):
    return picks(*(rows[name].to_numpy().astype(np.int64) for name in COLUMNS))


@pytest.mark.parametrize("resolution", ["channel", "neuron", "token", {"stem": "neuron"}])
def test_chosen_edges_are_those_of_complete_tables(resolution):
    m = ng.measure(Residual(), torch.randn(3, 6, 6), resolution=resolution, dtype="float64")
    units = plan(m.network, m.partitions)
    rows = whole(m, units)
    chosen = rows.sample(frac=0.3, random_state=0)  # in any order
    chosen = type(chosen)(dict(chosen)).iloc[[0, *range(len(chosen))]]  # one of them twice
    (values,) = picked_edges(m.state, m.start, replace(units, picks=of(chosen)))
    np.testing.assert_allclose(values, chosen.relevance, rtol=1e-9, atol=1e-14)


def test_what_is_no_edge_is_zero():
    m = ng.measure(Residual(), torch.randn(3, 6, 6), resolution="neuron", dtype="float64")
    units = plan(m.network, m.partitions)
    rows = whole(m, units)
    (pair,) = rows[["dst_layer", "src_layer"]].drop_duplicates().to_numpy()[-1:]
    there = set(rows[list(COLUMNS)].itertuples(index=False, name=None))
    top, low = (m.topology.layers[i].n_neurons for i in pair)
    every = [(pair[0], d, pair[1], s) for d in range(top) for s in range(low)]
    absent = [edge for edge in every if edge not in there]
    asked = [*absent[:5], *[edge for edge in every if edge in there][:5]]
    columns = np.array(asked, np.int64).T
    (values,) = picked_edges(m.state, m.start, replace(units, picks=picks(*columns)))
    assert [bool(v) for v in values] == [False] * len(absent[:5]) + [True] * 5


@pytest.mark.parametrize("passes", [True, False])
def test_chosen_edges_under_a_conjunction(passes):
    m = ng.measure(Residual(), torch.randn(3, 6, 6), resolution="channel", dtype="float64")
    units = plan(m.network, m.partitions)
    layer = m.topology.layer("inner")
    mask = np.zeros(layer.shape, bool)
    mask[2:4] = True
    clause = {layer.layer_id: Literal(passes, mask)}
    rows = whole(m, units, clause)
    (values,) = picked_edges(m.state, m.start, replace(units, picks=of(rows)), clause)
    np.testing.assert_allclose(values, rows.relevance, rtol=1e-9, atol=1e-14)


def test_large_operations_are_read_in_chunks(monkeypatch):
    m = ng.measure(Residual(), torch.randn(3, 6, 6), resolution="neuron", dtype="float64")
    units = plan(m.network, m.partitions)
    rows = whole(m, units).sample(frac=0.2, random_state=1)
    rows = rows[rows.dst_layer.isin([m.topology.layer(k).layer_id for k in ("stem", "inner")])]
    monkeypatch.setattr(dense_edges, "CHUNK", 64)
    fresh = plan(m.network, m.partitions)
    (values,) = picked_edges(m.state, m.start, replace(fresh, picks=of(rows)))
    np.testing.assert_allclose(values, rows.relevance, rtol=1e-9, atol=1e-14)


def test_tables_of_other_layers_are_not_made(monkeypatch):
    m = ng.measure(Residual(), torch.randn(3, 6, 6), resolution="channel", dtype="float64")
    units = plan(m.network, m.partitions)
    rows = whole(m, units)
    inner = rows[rows.dst_layer == m.topology.layer("inner").layer_id]
    made = []
    rows_of = builder.Tables._rows
    monkeypatch.setattr(
        builder.Tables,
        "_rows",
        lambda self, sample, operand, *rest: (
            made.append(operand.layer_id) or rows_of(self, sample, operand, *rest)
        ),
    )
    (values,) = picked_edges(m.state, m.start, replace(units, picks=of(inner)))
    np.testing.assert_allclose(values, inner.relevance, rtol=1e-9)
    assert set(made) == {m.topology.layer("inner").layer_id}


def test_every_sample_of_a_batch_has_its_own():
    m = ng.measure(Residual(), torch.randn(3, 6, 6), target=1, resolution="channel")
    units = plan(m.network, m.partitions)
    rows = whole(m, units)
    state = forward(m.network, torch.randn(3, 3, 6, 6))
    start = m.start.expand(3, -1)
    values = picked_edges(state, start, replace(units, picks=of(rows)))
    for mine, (_, edges) in zip(values, builder.edge_tables(state, start, units), strict=True):
        both = rows.assign(mine=mine).merge(edges.to_pandas(), how="left", on=list(COLUMNS))
        assert both.relevance_y.notna().sum() > 100
        # What several operands give is summed in float64 here, in float32 there.
        np.testing.assert_allclose(both.mine, both.relevance_y.fillna(0), rtol=1e-5, atol=1e-7)
