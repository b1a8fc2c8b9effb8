"""Flows of measures: units by area, links by joint relevance, what is absorbed and skipped."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers.drawn import boxes_apart, circles
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import EventError, InputError
from nrm_graph.plots import NEGATIVE, POSITIVE, plot_flow


def joint(m: Any, a: str, b: str) -> np.ndarray:
    """Exact joint relevance of all units of two layers, by one event each."""
    count = [m.partitions[m.topology.layer(name).layer_id].n_units for name in (a, b)]
    units = [ng.Layer(name).units for name in (a, b)]
    pairs = itertools.product(range(count[0]), range(count[1]))
    return np.reshape(m.many([units[0]([i]) & units[1]([j]) for i, j in pairs]), count)


def test_flow_draws_the_strongest_units_by_area(conv):
    ax = plot_flow(conv, top=2, edges={})
    names = [layer.name for layer in conv.topology.layers]
    assert [t.get_text().split("\n")[0] for t in ax.get_xticklabels()] == names
    units = circles(ax, "unit")
    column, ratio = 0, []
    for column, name in enumerate(names):
        values = conv.marginal(name)
        strongest = values[np.argsort(-np.abs(values))[:2]]
        strongest = strongest[strongest != 0]
        found = [c for c in units if c[0] == column]
        assert len(found) == len(strongest)
        for (_, _, size, shade), value in zip(found, strongest, strict=True):
            assert shade == (NEGATIVE if value < 0 else POSITIVE).lower()
            if size > 3.0:  # the smallest are drawn larger
                ratio.append(size / abs(value))
    assert len(ratio) > 4
    np.testing.assert_allclose(ratio, ratio[0])


def test_columns_of_a_flow_add_up(conv):
    ax = plot_flow(conv, top=2, edges={})
    texts = {}
    for text in ax.texts:
        x, y = text.xy
        texts[x, y] = text.get_text()
    for x, label in enumerate(ax.get_xticklabels()):
        column = [t for (a, y), t in texts.items() if a == x and y > 0]
        shares = [float(t.split(": ")[1].removesuffix(" %").replace(",", "")) for t in column]
        total = float(label.get_text().split("\n")[1].removesuffix(" %").replace(",", ""))
        assert sum(shares) == pytest.approx(total, abs=0.5 * (len(shares) + 1))
    report = {row["layer"]: row for row in conv.report().to_pylist()}
    for x, layer in enumerate(conv.topology.layers[1:], start=1):
        lost = report[layer.name]["bias"] + report[layer.name]["stabilizer"]
        shown = float(texts[x, 0.0].removeprefix("absorbed: ").removesuffix(" %"))
        assert shown == pytest.approx(100 * lost, abs=0.5)
    assert (0, 0.0) not in texts  # an input absorbs nothing
    assert len(circles(ax, "absorbed")) == 3


def test_skipped_layers_absorb_in_the_column_above(conv):
    ax = plot_flow(conv, layers=["5", "input"], edges={})
    absorbed = 1.0 - conv.marginal("input").sum()
    (text,) = [t.get_text() for t in ax.texts if t.get_text().startswith("absorbed")]
    assert float(text.split(": ")[1].removesuffix(" %")) == pytest.approx(100 * absorbed, abs=0.5)


def test_links_are_joint_relevance(dense):
    names = [layer.name for layer in dense.topology.layers]
    pairs = list(itertools.pairwise(names))
    values = {pair: joint(dense, *pair) for pair in pairs}
    for edges in (values, {(b, a): v.T for (a, b), v in values.items()}):
        (links,) = [c for c in plot_flow(dense, edges=edges).collections if c.get_label() != "unit"
                    and hasattr(c, "get_segments")]  # fmt: skip
        strongest = max((v for v in values.values()), key=lambda v: np.abs(v).max())
        widest = int(np.argmax(links.get_linewidths()))
        sign = strongest.flat[np.argmax(np.abs(strongest))]
        expected = to_rgba(NEGATIVE if sign < 0 else POSITIVE)[:3]
        np.testing.assert_allclose(links.get_colors()[widest][:3], expected)
        drawn = sum(int((np.abs(v) >= 0.01 * np.abs(v).max()).sum()) for v in values.values())
        assert len(links.get_segments()) == drawn
    # A link runs between the circles of its units.
    ax = plot_flow(dense, edges={pairs[-1]: values[pairs[-1]]}, top=1)
    (links,) = [c for c in ax.collections if hasattr(c, "get_segments")]
    (line,) = links.get_segments()
    ends = {c[:2] for c in circles(ax, "unit") if c[0] >= 2}
    assert {tuple(line[0]), tuple(line[-1])} == ends


def test_links_are_asked_of_the_measure_by_default(dense, residual):
    for m in (dense, residual, residual.given(ng.Layer("first")[1] | ng.Layer("second")[:, 2:])):
        pairs = list(itertools.pairwise(layer.name for layer in m.topology.layers))
        found = plot_flow(m, top=3)
        given = plot_flow(m, top=3, edges={pair: joint(m, *pair) for pair in pairs})
        assert len(found.collections) == len(given.collections)
        for one, other in zip(found.collections, given.collections, strict=True):
            np.testing.assert_allclose(one.get_linewidths(), other.get_linewidths())
            np.testing.assert_allclose(one.get_edgecolors(), other.get_edgecolors(), atol=1e-9)
    silent = ng.measure(nn.Sequential(nn.Linear(3, 2)), torch.zeros(3), target=0)
    assert not [c for c in plot_flow(silent).collections if hasattr(c, "get_segments")]


def test_flow_shows_maps_and_rings_the_condition(conv):
    maps = {("0", u): conv.marginal("0", by="neuron")[u] for u in range(3)}
    maps["input", 1] = conv.marginal("input", by="neuron")[1]
    m = conv.given(ng.Layer("0")[1] & ng.Layer("2")[:, 2:])
    ax = plot_flow(m, edges={}, top=3, images=maps)
    # Of layer 0 the condition leaves one unit: images of units that are not drawn are left out.
    assert len(ax.child_axes) == 2
    for frame in ax.child_axes:
        (shown,) = frame.images
        low, high = shown.get_clim()
        assert low == -high
        assert shown.get_array().shape in ((4, 4), (6, 6))
    black = [c for c in ax.collections if c.get_label() == "unit"
             and to_hex(c.get_edgecolors()[0]) == "#000000"]  # fmt: skip
    in_second = len([u for u in circles(ax, "unit") if u[0] == 2])
    assert len(black) == 1 + in_second
    assert "given 0[1]" in ax.get_title()
    assert f"rounding amplified {m.amplification:.3g} times" in ax.get_xlabel()


def test_fine_maps_are_shown_as_sums_over_blocks(conv):
    fine = np.random.default_rng(0).normal(size=(130, 70))
    ax = plot_flow(conv, edges={}, images={("5", 1): fine})
    (frame,) = ax.child_axes
    shown = frame.images[0].get_array()
    assert shown.shape == (44, 24)
    np.testing.assert_allclose(shown.sum(), fine.sum())
    np.testing.assert_allclose(shown[2, 5], fine[6:9, 15:18].sum())


def test_texts_of_a_flow_do_not_overlap(dense, conv, residual):
    for m in (dense, conv, residual, conv.given(ng.Layer("0")[1] & ng.Layer("2")[:, 2:])):
        for axes in (None, Figure(figsize=(7, 5), layout="constrained").add_subplot()):
            ax = plot_flow(m, axes, edges={})
            assert boxes_apart(ax, [*ax.texts, *ax.get_xticklabels(), ax.title, ax.xaxis.label])


def test_flow_of_a_residual_network_and_chosen_units(residual):
    names = [layer.name for layer in residual.topology.layers]
    units = {"first": [3, 0], "second": []}
    ax = plot_flow(residual, edges={}, units=units)
    x = names.index("first")
    texts = {t.get_text().split(":")[0] for t in ax.texts if t.xy[0] == x and t.xy[1] > 0}
    others = np.count_nonzero(residual.marginal("first")[1:3])
    assert texts == {"3", "0", f"{others} other{'s' if others > 1 else ''}"}
    assert not [c for c in circles(ax, "unit") if c[0] == names.index("second")]
    others = np.count_nonzero(residual.marginal("second"))
    assert f"{others} others" in {t.get_text().split(":")[0] for t in ax.texts}


def test_neurons_are_named_by_their_place(residual):
    torch.manual_seed(2)
    program = residual.network.program
    m = ng.measure(program, torch.rand(2, 6, 5), target=0, resolution="neuron")
    ax = plot_flow(m, edges={}, layers=["first", "head"], top=1)
    place = np.unravel_index(np.abs(m.marginal("first")).argmax(), (4, 6, 5))
    assert f"[{','.join(map(str, place))}]" in {t.get_text().split(":")[0] for t in ax.texts}


def test_flow_refuses(conv):
    right = np.zeros((3, 4))
    for call, message in (
        (lambda: plot_flow(conv, layers=[], edges={}), "layers is empty"),
        (lambda: plot_flow(conv, layers="input", edges={}), "list of names"),
        (lambda: plot_flow(conv, layers=["0", "0"], edges={}), "twice"),
        (lambda: plot_flow(conv, top=0, edges={}), "at least 1"),
        (lambda: plot_flow(conv, top=True, edges={}), "at least 1"),
        (lambda: plot_flow(conv, units={"0": [9]}, edges={}), "units 0 to 2, found 9"),
        (lambda: plot_flow(conv, units={"0": [1]}, layers=["2"], edges={}), "not among"),
        (lambda: plot_flow(conv, units={"0": 3}, edges={}), "must be a list"),
        (lambda: plot_flow(conv, units=[1], edges={}), "a mapping of layer"),
        (lambda: plot_flow(conv, edges=3), "a mapping of pairs"),
        (lambda: plot_flow(conv, edges={("0", "2"): right[:2]}), r"3 and 4; found \(2, 4\)"),
        (lambda: plot_flow(conv, edges={("0", "5"): right}), "not neighbouring columns"),
        (lambda: plot_flow(conv, edges={"0": right}), "pairs of layers"),
        (lambda: plot_flow(conv, edges={}, images={("0", 1): right[0]}), r"\(H, W\)"),
        (lambda: plot_flow(conv, edges={}, images={"0": right}), "as keys"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(EventError, match="no layer"):
        plot_flow(conv, layers=["nowhere"], edges={})
