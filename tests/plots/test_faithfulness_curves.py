"""Pictures of faithfulness curves draw their numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nrm_graph.errors import InputError
from nrm_graph.evaluate import Curves
from nrm_graph.plots import POSITIVE, plot_faithfulness

pytestmark = pytest.mark.smoke


def curves(mode="remove", by="units", **changes):
    rng = np.random.default_rng(0)
    values = {
        "circuit": rng.normal(1, 0.3, (1, 5, 7, 3)),
        "random": rng.normal(1.5, 0.3, (6, 5, 7, 3)),
        "activation": rng.normal(1.2, 0.3, (1, 5, 7, 3)),
        "gradient_x_activation": rng.normal(1.1, 0.3, (1, 5, 7, 3)),
    }
    options = {
        "by": by,
        "mode": mode,
        "baseline": "zero",
        "target": 3,
        "where": None,
        "keys": tuple("abcdefg"),
        "trained": 12,
        "fractions": np.linspace(0, 1, 5),
        "counts": {"conv": np.array([0, 3, 5, 8, 1200])},
        "available": {"conv": 3000},
        "unablated": rng.normal(2, 0.1, (7, 3)),
        "values": values,
        "seed": 0,
    }
    return Curves(**(options | changes))


@pytest.mark.parametrize("score", ["logit", "probability", "margin"])
def test_lines_bands_and_areas(score):
    found = curves()
    ax = plot_faithfulness(found, score=score)
    lines = {line.get_label().split(" (")[0]: line for line in ax.lines[:4]}
    for method in found.methods:
        line = lines[method.replace("gradient_x_activation", "gradient x activation")]
        np.testing.assert_allclose(line.get_ydata(), found.mean(method, score, normalized=True))
        np.testing.assert_allclose(line.get_xdata(), found.fractions)
        band = ax.collections[found.methods.index(method)].get_paths()[0].vertices[:, 1]
        ends = found.interval(method, score, normalized=True)
        assert band.min() == pytest.approx(ends.min())
        assert band.max() == pytest.approx(ends.max())
    assert to_hex(lines["circuit"].get_color()) == POSITIVE.lower()
    areas = {r["method"]: r["share"] for r in found.areas().to_pylist() if r["score"] == score}
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[1] == f"random ({areas['random']:.2f})"
    assert "of the whole network's" in ax.get_ylabel()
    assert "target 3: 7 held-out inputs, circuit of 12" in ax.get_title().replace("\n", " ")


def test_raw_scores_where_a_share_makes_no_sense():
    found = curves(unablated=np.full((7, 3), -1.0), target=None, baseline="mean")
    ax = plot_faithfulness(found)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), found.mean("circuit"))
    assert ax.get_ylabel() == "logit of the target"
    assert "mixed targets" in ax.get_title()
    assert ax.get_title().endswith("mean")


@pytest.mark.parametrize(
    ("mode", "by", "text"),
    [
        ("remove", "units", "1,200 units ablated; rivals: as many in every layer"),
        ("keep", "edges", "1,200 edges kept, all others ablated; rivals: as many in every pair"),
    ],
)
def test_it_says_what_was_done(mode, by, text, tmp_path):
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ax = plot_faithfulness(curves(mode, by), left)
    assert ax is left
    plot_faithfulness(curves(mode, by), right)
    assert text in ax.get_xlabel().replace("\n", " ")
    figure.savefig(tmp_path / "two.png")
    boxes = [a.xaxis.label.get_window_extent() for a in (left, right)]
    assert not boxes[0].overlaps(boxes[1])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_what_cannot_be_drawn():
    values = {"circuit": np.full((1, 2, 3, 3), np.nan)}
    found = curves(
        values=values,
        fractions=np.array([0.0, 1.0]),
        counts={"conv": np.array([0, 1])},
        keys=("a", "b", "c"),
        unablated=np.ones((3, 3)),
    )
    with pytest.raises(InputError, match="the margin is undefined"):
        plot_faithfulness(found, score="margin")
    with pytest.raises(InputError, match="no score 'loss'"):
        plot_faithfulness(found, score="loss")
