"""Heat maps of measures: what is drawn, in which colour, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import EventError, InputError
from nrm_graph.plots import NEGATIVE, POSITIVE, plot_heatmap
from nrm_graph.propagation.flags import sentences


def test_heatmap_sums_channels_and_is_centred_at_zero(conv):
    ax = plot_heatmap(conv)
    (shown,) = ax.images
    expected = conv.marginal("input", by="neuron").sum(0)
    np.testing.assert_array_equal(shown.get_array(), expected)
    low, high = shown.get_clim()
    assert low == -high == -np.abs(expected).max()
    assert ax.get_title() == "relevance of input, target 1"
    bar = ax.figure.axes[1]
    assert bar.get_ylim() == pytest.approx((-high, high))
    assert bar.get_ylabel().startswith("relevance")


def test_heatmap_says_what_is_absorbed(conv, residual):
    absorbed = 1.0 - conv.marginal("input").sum()
    text = plot_heatmap(conv).get_xlabel().replace("\n", " ")
    value, rest = text.split(" %", 1)
    assert float(value) == pytest.approx(100 * absorbed, abs=0.5)
    said = " of it is absorbed by bias and stabilizer, and has no place in the picture. "
    assert rest.startswith(said)
    assert rest == said + sentences(conv.meaning, conv.flags)
    text = plot_heatmap(conv, layer="0").get_xlabel().replace("\n", " ")
    assert "absorbed in layers above," in text
    text = plot_heatmap(residual, layer="second").get_xlabel().replace("\n", " ")
    assert "or goes around this one" in text
    assert float(text.split(" %")[0]) == pytest.approx(
        100 * (1 - residual.marginal("second").sum()), abs=0.5
    )


def test_heatmap_of_a_conditioned_measure(conv):
    A = ng.Layer("2")[1] & ng.Layer("0")[2]
    m = conv.given(A)
    ax = plot_heatmap(m)
    assert ax.get_title().replace("\n", " ") == "relevance of input, target 1, given 2[1] & 0[2]"
    note = ax.get_xlabel().replace("\n", " ")
    assert f"rounding amplified {m.amplification:.3g} times" in note
    expected = [[conv(A & ng.Layer("input")[:, r, c]) for c in range(6)] for r in range(6)]
    np.testing.assert_allclose(
        ax.images[0].get_array(), np.array(expected) / conv(A), rtol=1e-9, atol=1e-12
    )
    absorbed = 1.0 - ax.images[0].get_array().sum()
    assert float(note.split(" %")[0].replace(",", "")) == pytest.approx(100 * absorbed, abs=0.5)
    long = conv.given(ng.Layer("0").units([0, 1, 2] * 90))
    assert len(plot_heatmap(long).get_title()) < 250


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 3), (12, 12, 3), (6, 6, 1)])
def test_heatmap_over_an_image(conv, shape):
    image = np.random.default_rng(0).random(shape)
    ax = plot_heatmap(conv, image=image)
    below, above = ax.images
    assert below.get_array().shape == shape[:2]
    assert below.get_extent() == above.get_extent()
    colours = above.cmap([0.0, 0.5, 1.0])
    assert [to_hex(c) for c in colours[[0, 2]]] == [NEGATIVE.lower(), POSITIVE.lower()]
    assert colours[1][3] < 0.05  # zero shows the image


def test_heatmap_of_channels_side_by_side(conv):
    values = conv.marginal("0", by="neuron")
    ax = plot_heatmap(conv, layer="0", channel_sum=False)
    assert len(ax.images) == len(values)
    for shown, channel in zip(ax.images, values, strict=True):
        np.testing.assert_array_equal(shown.get_array(), channel)
        assert shown.get_clim() == (-np.abs(values).max(), np.abs(values).max())
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    assert len(plot_heatmap(conv, layer="0", channel_sum=False, image=np.eye(4)).images) == 6


def test_heatmap_of_vectors_is_bars(dense):
    ax = plot_heatmap(dense)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, dense.marginal("input"))
    for bar in ax.patches:
        assert (
            to_hex(bar.get_facecolor()) == (NEGATIVE if bar.get_height() < 0 else POSITIVE).lower()
        )
    low, high = ax.get_ylim()
    assert low == -high
    long = ng.measure(nn.Linear(200, 2), torch.randn(200), target=0)
    ax = plot_heatmap(long)
    values = long.marginal(long.topology.inputs[0].name)
    lines = sum(len(c.get_segments()) for c in ax.collections)
    assert lines == np.count_nonzero(values)


@pytest.mark.parametrize(
    ("shape", "drawn"), [((3, 4), (3, 4)), ((1, 6), None), ((2, 1, 5), None), ((1, 3, 4), (3, 4))]
)
def test_heatmap_of_other_shapes(shape, drawn):
    torch.manual_seed(0)
    size = int(np.prod(shape))
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 2))
    m = ng.measure(net, torch.rand(1, *shape), target=0)
    ax = plot_heatmap(m)
    if drawn is None:
        assert not ax.images
        assert len(ax.patches) == max(shape)
        values = m.marginal("input", by="neuron")
        expected = values.sum(0) if len(shape) == 3 else values
        np.testing.assert_allclose([b.get_height() for b in ax.patches], expected.ravel())
    else:
        assert ax.images[0].get_array().shape == drawn


def test_heatmap_reads_channels_last_where_units_are_features():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 20, 2))
    m = ng.measure(net, torch.rand(1, 4, 5, 3), target=0, resolution={"0": "feature"})
    ax = plot_heatmap(m, layer="0")
    np.testing.assert_array_equal(
        ax.images[0].get_array(), m.marginal("0", by="neuron").astype(float).sum(-1)
    )


def test_scale_of_large_maps_leaves_out_the_strongest_few():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(50 * 50, 2))
    x = torch.rand(1, 1, 50, 50)
    x[0, 0, 3, 4] = 1e3
    m = ng.measure(net, x, target=0)
    ax = plot_heatmap(m)
    values = np.abs(m.marginal("input", by="neuron"))
    limit = ax.images[0].get_clim()[1]
    assert limit < values.max() / 10
    assert (values > limit).sum() <= 3
    ax = plot_heatmap(m, limit=2.0, colorbar=False)
    assert ax.images[0].get_clim() == (-2.0, 2.0)
    assert len(ax.figure.axes) == 1


def test_heatmap_refuses(conv, dense):
    for call, message in (
        (lambda: plot_heatmap(dense, image=np.eye(4)), "needs a layer of maps"),
        (lambda: plot_heatmap(conv, image=np.zeros((5, 6, 6))), "image must have the shape"),
        (lambda: plot_heatmap(conv, image=np.zeros(6)), r"\(H, W, 3\) or \(3, H, W\)"),
        (lambda: plot_heatmap(conv, image=np.full((6, 6), np.nan)), "finite"),
        (lambda: plot_heatmap(conv, image="cat.png"), "must be an array"),
        (lambda: plot_heatmap(conv, limit=-1.0), "positive number"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(EventError, match="no layer"):
        plot_heatmap(conv, layer="nowhere")
    video = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4 * 4, 2))
    m = ng.measure(video, torch.rand(1, 2, 3, 4, 4), target=0)
    with pytest.raises(InputError, match=r"\(2, 3, 4, 4\): expected a vector"):
        plot_heatmap(m)


def test_heatmap_of_nothing():
    net = nn.Linear(3, 2)
    m = ng.measure(net, torch.zeros(3), target=0)
    assert not m.marginal(m.topology.inputs[0].name).any()
    ax = plot_heatmap(m)
    assert ax.get_ylim() == pytest.approx((-1.05, 1.05))
    assert ax.get_xlabel().replace("\n", " ").startswith("100 % of it is absorbed")


def test_channels_first_are_taken_as_they_are(conv):
    image = np.random.default_rng(0).random((3, 6, 6))
    first, last = (plot_heatmap(conv, image=x) for x in (image, np.moveaxis(image, 0, 2)))
    np.testing.assert_array_equal(first.images[0].get_array(), last.images[0].get_array())
