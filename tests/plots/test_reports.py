"""Pictures of reports: masses, absorption, scales; and what every picture takes and leaves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from helpers.drawn import boxes_apart
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import InputError
from nrm_graph.plots import NEGATIVE, POSITIVE, plot_flow, plot_heatmap, plot_report


def test_report_shows_masses_and_what_is_absorbed(conv):
    ax = plot_report(conv)
    rows = conv.report().to_pylist()
    bars = {c.get_label(): c.patches for c in ax.containers}
    for i, row in enumerate(rows):
        net, variation = row["sum"], row["total_variation"]
        assert bars["positive"][i].get_width() == pytest.approx((variation + net) / 2)
        assert bars["negative"][i].get_width() == pytest.approx(-(variation - net) / 2)
        assert bars["absorbed by bias"][i].get_width() == pytest.approx(max(0.0, row["bias"]))
    assert to_hex(bars["positive"][0].get_facecolor()) == POSITIVE.lower()
    assert to_hex(bars["negative"][0].get_facecolor()) == NEGATIVE.lower()
    assert [label.get_text() for label in ax.get_yticklabels()] == [row["layer"] for row in rows]
    # The network is a chain: the line of what is left follows the sums.
    (line,) = [line for line in ax.lines if len(line.get_xdata()) > 2]
    np.testing.assert_allclose(line.get_xdata()[::2], [row["sum"] for row in rows])


def test_report_of_a_conditioned_measure(residual):
    A = ng.Layer("second")[2]
    m = residual.given(A)
    ax = plot_report(m)
    assert "given second[2]" in ax.get_title()
    bars = {c.get_label(): c.patches for c in ax.containers}
    names = [label.get_text() for label in ax.get_yticklabels()]
    for name in ("second", "first"):
        i = names.index(name)
        total = bars["positive"][i].get_width() + bars["negative"][i].get_width()
        assert total == pytest.approx(residual(A & ng.Layer(name)[:]) / residual(A))


def test_report_of_a_table_and_of_a_frame(residual):
    table = residual.report()
    titles = [plot_report(source).get_title() for source in (residual, table, table.to_pandas())]
    assert titles == ["relevance by layer, target 0", "", ""]


def test_report_far_beyond_the_whole_is_logarithmic(conv):
    rows = conv.report().to_pylist()
    assert plot_report(conv).get_xscale() == "linear"
    rows[1]["total_variation"] = 1e5
    ax = plot_report(conv.report().from_pylist(rows))
    assert ax.get_xscale() == "symlog"
    assert "linear from -1 to 1, logarithmic beyond" in ax.get_xlabel().replace("\n", " ")
    low, high = ax.get_xlim()
    assert low < -4e4
    assert high > 5e4
    assert len(ax.get_xticks()) < 16


@pytest.mark.parametrize("count", [1, 5, 60, pytest.param(200, marks=pytest.mark.slow)])
def test_reports_of_any_length_are_legible(count, conv):
    (row, *_) = conv.report().to_pylist()
    rows = [
        row | {"layer": f"layer{i}", "bias": 0.5 / count, "kind": "dense"} for i in range(count)
    ]
    ax = plot_report(conv.report().from_pylist([*rows, row | {"layer": "x", "kind": "input"}]))
    assert ax.get_yticklabels()[0].get_fontsize() > 5
    assert boxes_apart(ax, ax.get_yticklabels())
    assert boxes_apart(ax, ax.texts)


def test_report_on_the_scale_of_the_logit():
    torch.manual_seed(0)
    m = ng.measure(nn.Linear(3, 2), torch.ones(3), target=0, scale="logit")
    ax = plot_report(m)
    assert f"({m.logit:.4g} in all)" in ax.get_xlabel()
    assert "100 %" in {text.get_text() for text in ax.texts}


def test_report_refuses(conv):
    with pytest.raises(InputError, match="expected a measure or the table"):
        plot_report(3)
    with pytest.raises(InputError, match="no rows"):
        plot_report(conv.report().slice(0, 0))
    with pytest.raises(InputError, match="no column sum"):
        plot_report(conv.report().drop_columns(["sum"]))


# All


def test_given_axes_are_used_and_pyplot_left_alone(conv, tmp_path):
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    assert plot_heatmap(conv, left) is left
    assert plot_flow(conv, middle, edges={}) is middle
    assert plot_report(conv, right) is right
    figure.savefig(tmp_path / "three.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(
    "suffix", ["svg", *(pytest.param(s, marks=pytest.mark.slow) for s in ("png", "pdf"))]
)
def test_pictures_can_be_written(conv, tmp_path, suffix):
    for i, ax in enumerate((plot_heatmap(conv), plot_flow(conv, edges={}), plot_report(conv))):
        path = tmp_path / f"{i}.{suffix}"
        ax.figure.savefig(path)
        assert path.stat().st_size > 1000
