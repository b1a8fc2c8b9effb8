"""Pictures of measures: what is drawn, at what size, in which colour, and what is said."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import EventError, InputError
from nrm_graph.plots import NEGATIVE, POSITIVE, plot_flow, plot_heatmap, plot_report
from nrm_graph.propagation.flags import sentences


class Residual(nn.Module):
    """Two convolutions, a skip connection round the second, averages and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 6 * 5, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        return self.head(x.flatten(1))


CHANNELS = {"x": "channel", "first": "channel", "second": "channel", "add": "channel"}


@pytest.fixture(scope="module")
def conv() -> Any:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    how = {"input": "channel", "0": "channel", "2": "channel"}
    return ng.measure(net, torch.rand(2, 6, 6), target=1, resolution=how, dtype="float64")


@pytest.fixture(scope="module")
def residual() -> Any:
    torch.manual_seed(2)
    x = torch.rand(2, 6, 5)
    return ng.measure(Residual(), x, target=0, resolution=CHANNELS, dtype="float64")


@pytest.fixture(scope="module")
def dense() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return ng.measure(net, torch.randn(5), target=1, dtype="float64")


def joint(m: Any, a: str, b: str) -> np.ndarray:
    """Exact joint relevance of all units of two layers, by one event each."""
    count = [m.partitions[m.topology.layer(name).layer_id].n_units for name in (a, b)]
    units = [ng.Layer(name).units for name in (a, b)]
    return np.array(
        [[m(units[0]([i]) & units[1]([j])) for j in range(count[1])] for i in range(count[0])]
    )


def circles(ax: Any, kind: str) -> list[tuple[float, float, float, str]]:
    """Marks of a kind: x, y, size and colour."""
    return [
        (*np.asarray(c.get_offsets())[0], float(c.get_sizes()[0]), to_hex(c.get_facecolor()[0]))
        for c in ax.collections
        if c.get_label() == kind
    ]


def boxes_apart(ax: Any, texts: list[Any]) -> bool:
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


# Heat maps


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
        (lambda: plot_heatmap(conv, image=np.zeros((3, 6, 6))), "channels last"),
        (lambda: plot_heatmap(conv, image=np.zeros(6)), r"\(H, W\) or \(H, W, 3\)"),
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


# Flows


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
    m = ng.measure(Residual(), torch.rand(2, 6, 5), target=0, resolution="neuron")
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


# Reports


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


@pytest.mark.parametrize("count", [1, 5, 60, 200])
def test_reports_of_any_length_are_legible(count, conv):
    (row, *_) = conv.report().to_pylist()
    rows = [
        row | {"layer": f"layer{i}", "bias": 0.5 / count, "kind": "dense"} for i in range(count)
    ]
    ax = plot_report(conv.report().from_pylist([*rows, row | {"layer": "x", "kind": "input"}]))
    if count <= 60:
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


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_can_be_written(conv, tmp_path, suffix):
    for i, ax in enumerate((plot_heatmap(conv), plot_flow(conv, edges={}), plot_report(conv))):
        path = tmp_path / f"{i}.{suffix}"
        ax.figure.savefig(path)
        assert path.stat().st_size > 1000
