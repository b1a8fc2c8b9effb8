"""Conditioned measures and joint matrices of a real VGG16 against zennit-crp.

Its row for a condition is the *unnormalised joint* R(n & A & B); ``exclude_parallel`` is "the
walk passes through".  Both sides are float32 in one memory layout, so that max-pools select
alike.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from helpers.real_vgg16 import photographs, vgg16

import nrm_graph as ng

pytest.importorskip(
    "crp", reason="zennit-crp pins an older zennit: pip install --no-deps zennit-crp==0.6.0"
)
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from zennit.composites import EpsilonGammaBox, EpsilonPlus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the oracles: hooks and deprecations
]

COMPOSITES = ("epsilon_gamma_box", "epsilon_plus")

TOLERANCE = 1e-5
"""Of a table's largest entry: sums of some 10^5 float32 terms on both sides, 80 eps."""

UPPER, MIDDLE, LOWER = "28", "21", "10"  # conv5_3, conv4_3, conv3_1

ROWS = 4
"""Conditions on each layer: zennit-crp takes seconds for one."""


@functools.cache
def network():
    net, x = vgg16(), photographs()["cat"][None]
    return net, x, ng.trace(net, x)


@functools.cache
def measure(composite: str) -> ng.Measure:
    _, x, program = network()
    return ng.measure(program, x, composite=composite, resolution="auto")


def crp(composite: str, conditions: list[dict[str, Any]], record: list[str], regions=False):
    """Joint relevance by condition: of the recorded layers, and of the input summed over colours.

    One input at a time: a batch of copies is convolved otherwise, and max-pools would flip.
    """
    net, x, _ = network()
    rules = {
        "epsilon_gamma_box": lambda: EpsilonGammaBox(
            low=torch.zeros_like(x), high=torch.ones_like(x)
        ),
        "epsilon_plus": EpsilonPlus,
    }[composite]
    attribution = CondAttribution(net)
    mask = ChannelConcept.mask_rf if regions else ChannelConcept.mask
    layers: dict[str, list[np.ndarray]] = {name: [] for name in record}
    heatmaps = []
    for condition in conditions:
        found = attribution(
            x.clone().requires_grad_(True),
            [{"y": [measure(composite).target], **condition}],
            rules(),
            record_layer=record,
            mask_map=mask,
            init_rel=1,
        )
        for name in record:
            layers[name].append(found.relevances[name][0].double().numpy())
        heatmaps.append(found.heatmap[0].double().numpy())
    return {name: np.stack(rows) for name, rows in layers.items()}, np.stack(heatmaps)


def strongest(composite: str, layer: str, k: int) -> list[int]:
    """Channels of largest |R|."""
    size = np.abs(measure(composite).marginal(layer))
    return np.sort(np.argsort(-size, kind="stable")[:k]).tolist()


@functools.cache
def by_upper(composite: str):
    chosen = strongest(composite, UPPER, ROWS)
    return chosen, *crp(composite, [{UPPER: [k]} for k in chosen], [MIDDLE, LOWER])


@functools.cache
def by_middle(composite: str):
    chosen = strongest(composite, MIDDLE, ROWS)
    return chosen, *crp(composite, [{MIDDLE: [k]} for k in chosen], [LOWER])


def close(found, expected, tolerance: float = TOLERANCE) -> None:
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * scale)


def channels(values: np.ndarray) -> np.ndarray:
    return values.sum((-2, -1))


@pytest.fixture(params=COMPOSITES)
def composite(request):
    return request.param


@pytest.mark.parametrize("side", ["above", "below"])
def test_joint_tables(composite, side):
    """Rows of the upper layer by passes down; columns of the lower one by passes up."""
    m = measure(composite)
    tables = [
        (UPPER, MIDDLE, by_upper(composite)[0], channels(by_upper(composite)[1][MIDDLE])),
        (MIDDLE, LOWER, by_middle(composite)[0], channels(by_middle(composite)[1][LOWER])),
        (UPPER, LOWER, by_upper(composite)[0], channels(by_upper(composite)[1][LOWER])),
    ]
    for upper, lower, rows, expected in tables:
        if side == "above":
            close(m.joint(ng.Layer(upper).units(rows), lower), expected)
            continue
        columns = np.sort(np.argsort(-np.abs(expected).sum(0))[:12])
        found = m.joint(ng.Layer(lower).units(columns.tolist()), upper)
        assert found.rows.layer == lower
        assert found.columns.layer == upper
        assert found.rows.units.tolist() == columns.tolist()
        close(found.values.T[rows], expected[:, columns])


def test_the_whole_table_has_the_marginals_that_zennit_crp_has(composite):
    """Every walk that reaches conv4_3 came through conv5_3: columns sum to the marginal."""
    m = measure(composite)
    upper, table, _ = by_upper(composite)
    middle = strongest(composite, MIDDLE, 12)
    down = m.joint(ng.Layer(UPPER).units(range(64)), MIDDLE).values
    up = m.joint(UPPER, ng.Layer(MIDDLE).units(middle)).values
    # Two float32 ways to one number.
    close(down[:, middle], up[:64])
    close(up.sum(0), m.marginal(MIDDLE)[middle])
    close(up[upper], channels(table[MIDDLE])[:, middle])


@pytest.mark.parametrize("composite", COMPOSITES[:1])
def test_a_joint_of_three_layers(composite):
    m = measure(composite)
    upper, middle = by_upper(composite)[0][:2], by_middle(composite)[0][:2]
    pairs = [(k, j) for k in upper for j in middle]
    tables, heat = crp(composite, [{UPPER: [k], MIDDLE: [j]} for k, j in pairs], [LOWER])
    expected = channels(tables[LOWER])
    # Relative to the largest entry of all: what the rest of its table is summed beside.
    scale = np.abs(expected).max()

    def near(found, row, kept=slice(None)):
        np.testing.assert_allclose(found, expected[row][kept], rtol=0, atol=TOLERANCE * scale)

    for row, (k, j) in enumerate(pairs):
        both = ng.Layer(UPPER)[k] & ng.Layer(MIDDLE)[j]
        c = m.given(both)
        near(c.marginal(LOWER) * c.condition_relevance, row)
        picture = c.marginal("input", by="neuron").sum(0) * c.condition_relevance
        close(picture, heat[row])
        few = np.argsort(-np.abs(expected[row]))[:4]
        near(m.many([both & ng.Layer(LOWER)[int(i)] for i in few]), row, few)
    # The same from measures conditioned above and below one of the layers asked for.
    for k in upper:
        c = m.given(ng.Layer(UPPER)[k])
        table = c.joint(ng.Layer(MIDDLE).units(middle), LOWER).values * c.condition_relevance
        for j, found in zip(middle, table, strict=True):
            near(found, pairs.index((k, j)))
    for j in middle:
        c = m.given(ng.Layer(MIDDLE)[j])
        table = c.joint(LOWER, ng.Layer(UPPER).units(upper)).values * c.condition_relevance
        for k, found in zip(upper, table.T, strict=True):
            near(found, pairs.index((k, j)))


@pytest.mark.parametrize("composite", COMPOSITES[:1])
def test_heat_maps_of_units(composite):
    m = measure(composite)
    for chosen, heat, layer in (
        (by_upper(composite)[0], by_upper(composite)[2], UPPER),
        (by_middle(composite)[0], by_middle(composite)[2], MIDDLE),
    ):
        scale = np.abs(heat).max()
        for k, expected in list(zip(chosen, heat, strict=True))[:4]:
            c = m.given(ng.Layer(layer)[k])
            found = c.marginal("input", by="neuron").sum(0) * c.condition_relevance
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("composite", COMPOSITES[:1])
def test_regions_of_channels(composite):
    """Arbitrary neurons on both layers, through ``mask_rf``."""
    m = measure(composite)
    rng = np.random.default_rng(0)
    upper, middle = by_upper(composite)[0], by_middle(composite)[0]
    masks = {}
    for layer, chosen, share in ((UPPER, upper[:-1], 0.5), (MIDDLE, middle, 0.5)):
        masks[layer] = np.zeros(m.topology.layer(layer).shape, bool)
        for k in chosen:
            masks[layer][k] = rng.random(masks[layer].shape[1:]) < share
    masks[UPPER][upper[-1], 4:9, :] = True
    A, B = ng.Layer(UPPER)[masks[UPPER]], ng.Layer(MIDDLE)[masks[MIDDLE]]
    positions = {
        layer: {int(k): np.flatnonzero(mask[k]).tolist() for k in np.flatnonzero(mask.any((1, 2)))}
        for layer, mask in masks.items()
    }
    one, heat = crp(composite, [{UPPER: positions[UPPER]}], [MIDDLE, LOWER], regions=True)
    both, _ = crp(composite, [positions], [LOWER], regions=True)
    c = m.given(A)
    close(c.marginal(MIDDLE, by="neuron") * c.condition_relevance, one[MIDDLE][0])
    close(c.marginal("input", by="neuron").sum(0) * c.condition_relevance, heat[0])
    table = m.joint(A, MIDDLE)
    assert table.rows.units.tolist() == sorted(positions[UPPER])
    close(table.values.sum(0), channels(one[MIDDLE][0]))
    close(m.joint(A, LOWER).values.sum(0), channels(one[LOWER][0]))
    where = masks[MIDDLE]
    inside = np.where(where, one[MIDDLE][0], 0.0)
    kept = np.flatnonzero(where.any((1, 2)))
    found = m.joint(A, B)
    assert found.columns.units.tolist() == kept.tolist()
    close(found.values.sum(0), channels(inside)[kept])
    total = inside.sum()
    # Of a sum, relative to what is summed.
    assert abs(m(A & B) - total) <= TOLERANCE * np.abs(inside).sum()
    c = m.given(A & B)
    close(c.marginal(LOWER) * c.condition_relevance, channels(both[LOWER][0]))
    close(c.marginal(LOWER, by="neuron") * c.condition_relevance, both[LOWER][0])
