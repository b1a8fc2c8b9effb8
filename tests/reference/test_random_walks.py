"""Random networks, inputs, composites and events: a measure is the sum over its walks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nrm_graph as ng
from reference.brute import BIAS, STABILIZER
from reference.random_walks import KINDS, Case, cases, close, events, quietly

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def check_event(data, case: Case) -> None:
    w, m, scale = case
    event, on = data.draw(events(w))
    close(m(event), w.total(on), scale)
    close(m(event) + m(~event), 1.0, scale)


def check_algebra(data, case: Case) -> None:
    w, m, scale = case
    (A, on_a), (B, on_b) = data.draw(events(w, 2)), data.draw(events(w, 2))
    joint = m(A & B)
    close(m(A | B) + joint, m(A) + m(B), scale)
    close(m(A - B) + joint, m(A), scale)
    close(m(B & A), joint, scale)
    close(m(~(A | B)), m(~A & ~B), scale)
    whole = w.total(on_b)
    try:
        quotient = m(A, given=B)
    except ng.UndefinedConditional:
        # A vanishing condition: small beside its walks.
        assert abs(whole) <= 1e-12 * scale * max(1, np.abs(w.value).sum())
    else:
        close(quotient * m(B), w.total(on_a & on_b), scale)


def check_tables(data, case: Case) -> None:
    w, m, scale = case
    report = {row["layer"]: row for row in m.report().to_pylist()}
    assert list(report) == w.layers[::-1]
    for layer in w.layers:
        expected = w.marginal(layer)
        close(m.marginal(layer, by="neuron").ravel(), expected, scale)
        close(report[layer]["sum"], expected.sum(), scale)
        close(report[layer]["total_variation"], np.abs(expected).sum(), scale)
        close(report[layer]["bias"], w.total(w.ends(layer, BIAS)), scale)
        close(report[layer]["stabilizer"], w.total(w.ends(layer, STABILIZER)), scale)
        assert report[layer]["pruned"] == report[layer]["remainder"] == 0
        cut = m.cut(layer)
        close(cut.total, 1.0, scale)
        close(cut.relevance, expected.sum(), scale)
    _, rows = m.tables()
    table = {name: rows[name].to_numpy() for name in rows.column_names[:5]}
    for info in m.topology.layers:
        relevance = m.marginal(info.name, by="neuron").ravel()
        out = table["dst_layer"] == info.layer_id
        below = np.bincount(table["dst_unit"][out], table["relevance"][out], info.n_neurons)
        if info.kind != "input":  # what leaves a neuron, pseudo-edges included
            close(below, relevance, scale)
        into = (table["src_layer"] == info.layer_id) & (table["src_unit"] >= 0)
        above = np.bincount(table["src_unit"][into], table["relevance"][into], info.n_neurons)
        if info != m.topology.output:
            close(above, relevance, scale)


CHECKS = {"event": (check_event, 35), "algebra": (check_algebra, 25), "tables": (check_tables, 20)}


@pytest.mark.parametrize("name", CHECKS)
def test_random(name):
    check, examples = CHECKS[name]

    @quietly(examples)
    @given(st.data())
    def run(data):
        check(data, data.draw(cases()))

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_random_at_length(name):
    check, _ = CHECKS[name]
    more = [*KINDS, *(("vector", s) for s in range(12)), *(("image", s) for s in range(12))]

    @quietly(400)
    @given(st.data())
    def run(data):
        check(data, data.draw(cases(tuple(more))))

    run()
