"""Budgets follow a circuit, orders spend them, and curves are summed up as NumPy does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrm_graph.errors import InputError
from nrm_graph.evaluate import Curves
from nrm_graph.evaluate.budgets import budgets, edges_to_ablate, shuffled, units_to_ablate
from nrm_graph.evaluate.scores import _alternatives
from nrm_graph.network.targets import Outputs

pytestmark = pytest.mark.smoke


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(2, 7))
def test_budgets_follow_the_circuit(layers, steps):
    sequence = [(layer,) for layer in layers]
    fractions = np.linspace(0, 1, steps)
    found = budgets(sequence, fractions)
    for step, fraction in enumerate(fractions):
        taken = sequence[: int(np.floor(fraction * len(sequence) + 0.5))]
        for key, counts in found.counts.items():
            assert counts[step] == taken.count(key)
    assert found.total[-1] == len(sequence)


@given(st.integers(0, 5), st.integers(0, 5))
def test_random_orders_spend_the_same_in_every_layer(seed, draw):
    everything = {(1,): np.arange(9)[:, None], (2,): np.arange(4)[:, None]}
    spent = budgets([(1,), (2,), (1,), (1,)])
    order = shuffled(everything, seed, draw)
    for step in range(len(spent.fractions)):
        cut = units_to_ablate(spent.first(order, step), everything, False)
        assert {key: len(cut[key[0]]) for key in everything} == {
            key: spent.counts[key][step] for key in everything
        }
        kept = units_to_ablate(spent.first(order, step), everything, True)
        for (layer,), units in everything.items():
            assert kept[layer] | cut[layer] == set(units[:, 0].tolist())
            assert not kept[layer] & cut[layer]


def test_edges_that_are_not_kept():
    chosen = {(1, 0): np.array([[0, 2], [0, 3], [1, 2]])}
    assert edges_to_ablate(chosen, [4, 3], False) == {
        (1, 0): {0: frozenset({2, 3}), 1: frozenset({2})}
    }
    assert edges_to_ablate(chosen, [4, 3], True) == {
        (1, 0): {0: frozenset({0, 1}), 1: frozenset({0, 1, 3}), 2: frozenset(range(4))}
    }


def made(values, unablated=None, keys=None, mode="remove", fractions=None, counts=None):
    _, steps, inputs = next(iter(values.values())).shape[:3]
    return Curves(
        by="units",
        mode=mode,
        baseline="zero",
        target=0,
        where=None,
        keys=tuple(f"k{i}" for i in range(inputs)) if keys is None else keys,
        trained=5,
        fractions=np.linspace(0, 1, steps) if fractions is None else np.array(fractions),
        counts={"a": np.arange(steps)} if counts is None else counts,
        available={"a": 10},
        unablated=np.ones((inputs, 3)) if unablated is None else unablated,
        values=values,
        seed=0,
    )


def test_means_shares_and_areas():
    rng = np.random.default_rng(0)
    values = {"circuit": rng.normal(2, 1, (1, 4, 6, 3)), "random": rng.normal(3, 1, (9, 4, 6, 3))}
    whole = rng.uniform(3, 4, (6, 3))
    found = made(values, whole, fractions=(0.0, 0.1, 0.5, 1.0))
    np.testing.assert_allclose(
        found.mean("random", "margin"), values["random"][..., 2].mean((0, 2))
    )
    share = found.mean("circuit", "logit", normalized=True)
    np.testing.assert_allclose(share, values["circuit"][0, ..., 0].mean(1) / whole[:, 0].mean())
    rows = {(r["method"], r["score"]): r for r in found.areas().to_pylist()}
    own = values["circuit"][0, ..., 1].mean(1)
    area = 0.1 * (own[0] + own[1]) / 2 + 0.4 * (own[1] + own[2]) / 2 + 0.5 * (own[2] + own[3]) / 2
    assert rows["circuit", "probability"]["area"] == pytest.approx(area)
    assert rows["circuit", "probability"]["difference"] is None
    row = rows["random", "probability"]
    assert row["difference"] == pytest.approx(row["area"] - area)
    each = np.trapezoid(values["random"][..., 1].mean(2), found.fractions, axis=1)
    assert row["p"] == pytest.approx((1 + (each <= area).sum()) / 10)
    table = found.table().to_pylist()
    assert len(table) == 2 * 3 * 4
    assert table[0]["mean"] == pytest.approx(values["circuit"][0, 0, :, 0].mean())
    assert all(r["low"] <= r["mean"] <= r["high"] for r in table)
    assert "area of the logit: circuit" in repr(found)


def test_intervals_are_those_of_a_bootstrap_over_keys():
    rng = np.random.default_rng(1)
    values = {"circuit": rng.normal(0, 1, (1, 2, 400, 3))}
    found = made(values)
    low, high = found.interval("circuit")[0]
    column = values["circuit"][0, 0, :, 0]
    error = column.std(ddof=1) / 20
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert low < column.mean() < high
    # The same values in ten keys of forty inputs each: wider, if keys differ.
    shifted = values["circuit"] + np.repeat(rng.normal(0, 1, 10), 40)[None, None, :, None]
    keys = tuple(f"k{i // 40}" for i in range(400))
    wide = made({"circuit": shifted}, keys=keys).interval("circuit")[0]
    narrow = made({"circuit": shifted}).interval("circuit")[0]
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_intervals_of_random_orders_hold_the_draws():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 0.01, (1, 2, 30, 3))
    values = {"circuit": base, "random": base + rng.normal(0, 1, (25, 1, 1, 1))}
    found = made(values)
    own, random = (np.diff(found.interval(m)[0]) for m in ("circuit", "random"))
    assert own < 0.02
    assert random == pytest.approx(2 * 1.96 / 5, rel=0.35)


def test_shares_of_what_is_not_above_zero_are_null():
    rng = np.random.default_rng(3)
    whole = np.stack([np.full(5, 2.0), np.full(5, np.nan), rng.normal(0, 1, 5)], 1)
    values = np.ones((1, 3, 5, 3))
    values[..., 1] = np.nan
    found = made({"circuit": values, "random": values.repeat(4, 0)}, whole)
    rows = {(r["method"], r["score"]): r for r in found.areas().to_pylist()}
    assert rows["circuit", "logit"]["share"] == 0.5
    assert rows["circuit", "margin"]["share"] is None
    assert rows["circuit", "margin"]["area"] == 1.0
    assert rows["random", "probability"]["area"] is None
    assert rows["random", "probability"]["p"] is None
    assert rows["random", "logit"]["p"] == 1.0


def test_curves_refuse_what_they_have_not():
    found = made({"circuit": np.ones((1, 2, 3, 3))})
    for call, message in (
        (lambda: found.mean("magic"), "no curve of 'magic': expected one of circuit"),
        (lambda: found.mean("circuit", "loss"), "no score 'loss'"),
        (lambda: found.interval("circuit", level=2), "level must be between 0 and 1"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_target_competes_along_the_last_axis():
    outputs = Outputs((("logits", (4, 10)), ("value", ())))
    assert _alternatives(outputs, 23) == (20, 30)
    assert _alternatives(outputs, 40) == (40, 41)
    assert _alternatives(Outputs((("", (3,)),)), 1) == (0, 3)
