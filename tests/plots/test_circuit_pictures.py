"""Pictures of circuits and galleries: what they show are the numbers that they were given."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

import nrm_graph as ng
from nrm_graph.circuits.references import BOX, References
from nrm_graph.errors import InputError
from nrm_graph.graphs.formats import write_graph
from nrm_graph.plots import (
    NEGATIVE,
    POSITIVE,
    plot_circuit,
    plot_references,
    plot_subgraph,
)
from nrm_graph.plots.gallery import stretched

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

pytestmark = pytest.mark.smoke


def circuit(**facts: Any) -> nx.DiGraph:
    graph = nx.DiGraph(
        **{
            "share": 0.25, "inputs": 20, "absorbed": 0.125, "pruned": 0.0, "top": 4, "target": 1,
            "where": "label = 'a $b$'", "weight": "unit",
        } | facts
    )  # fmt: skip
    for layer, depth, units in (("x", 0, (0, 1)), ("fc", 1, (-1, 0, 2)), ("out", 2, (1,))):
        for unit in units:
            name = layer if unit >= 0 else f"{layer} bias"
            graph.add_node((layer, unit), layer=name, unit=unit, relevance=0.5, depth=depth)
    one = {"inputs": 10, "agreement": 0.9, "top_share": 0.35}
    graph.add_edge(("x", 0), ("fc", 0), relevance=0.25, stderr=0.05, **one)
    graph.add_edge(("x", 1), ("fc", 2), relevance=-0.125, stderr=0.25, **one)  # doubtful
    graph.add_edge(("fc", -1), ("fc", 2), relevance=0.0625, stderr=0.01, **one)
    graph.add_edge(("fc", 2), ("out", 1), relevance=0.5, missing=3)
    return graph


def texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def whiskers(figure: Figure) -> dict[str, dict[str, tuple[float, float, float, str, str]]]:
    """Mean, both ends, colour and filling of every edge, by pair of layers."""
    found: dict[str, dict[str, tuple[float, float, float, str, str]]] = {}
    for ax in figure.axes[1:]:
        if not ax.get_yticklabels():
            continue
        labels = [label.get_text() for label in ax.get_yticklabels()]
        _, *lines = ax.lines  # the first is at zero
        rows = {}
        for label, (bar, dot) in zip(
            labels, zip(lines[::2], lines[1::2], strict=True), strict=True
        ):
            low, high = (float(v) for v in np.asarray(bar.get_xdata()))
            mean = float(np.asarray(dot.get_xdata())[0])
            rows[label] = (mean, low, high, str(dot.get_color()), str(dot.get_markerfacecolor()))
        low, high = ax.get_xlim()
        assert low == pytest.approx(-high)  # centred at zero
        found[ax.get_title(loc="left")] = rows
    return found


def test_whiskers_are_two_standard_errors() -> None:
    figure = plot_circuit(circuit(), classes=["cat", "dog"])
    found = whiskers(figure)
    assert list(found) == ["fc → out", "x → fc"]  # from the output down; of units alone
    assert found["x → fc"] == {
        "0 → 0": (0.25, pytest.approx(0.15), pytest.approx(0.35), POSITIVE, POSITIVE),
        "1 → 2": (-0.125, pytest.approx(-0.625), pytest.approx(0.375), NEGATIVE, "white"),
    }
    assert found["fc → out"] == {"2 → 1": (0.5, 0.5, 0.5, POSITIVE, POSITIVE)}
    shown = texts(figure)
    assert "Circuit of 20 inputs where label = 'a \\$b\\$', target 'dog'" in shown
    (note,) = (t for t in shown if t.startswith("N = 20"))
    assert "kept share of the sum of |mean|: 25 %; absorbed: 12 %" in note.replace("\n", " ")
    assert "pruned" not in note
    assert shown.count("50 %") == shown.count("90 %") == shown.count("35 %") == 2
    assert "3 unknown" in shown
    assert "in own\ntop 4" in shown
    figure.draw_without_rendering()


def test_whiskers_of_what_inputs_lack_are_bounds() -> None:
    graph = circuit()
    graph.edges[("fc", 2), ("out", 1)].update(low=-0.25, high=1.25)
    figure = plot_circuit(graph)
    found = whiskers(figure)["fc → out"]
    assert found == {"2 → 1": (0.5, -0.25, 1.25, POSITIVE, "white")}  # 0 is between them
    (note,) = (t for t in texts(figure) if t.startswith("N = 20"))
    assert "of edges that some inputs lack, what the mean lies between" in note.replace("\n", " ")
    ax = plot_subgraph(graph)
    bands, lines = (c for c in ax.collections if isinstance(c, LineCollection))
    extra = np.subtract(bands.get_linewidths(), lines.get_linewidths())
    assert extra[-1] == pytest.approx(3.2 * 0.75 / 0.5)
    assert lines.get_linestyles()[-1][1] is not None


def test_the_graph_has_bands_and_dots() -> None:
    ax = plot_subgraph(circuit())
    bands, lines = (c for c in ax.collections if isinstance(c, LineCollection))
    order = [0.0625, -0.125, 0.25, 0.5]  # the strongest on top
    widths = [0.3 + 3.2 * abs(v) / 0.5 for v in order]
    np.testing.assert_allclose(lines.get_linewidths(), widths)
    np.testing.assert_allclose(
        np.subtract(bands.get_linewidths(), widths),
        [3.2 * 2 * error / 0.5 for error in (0.01, 0.25, 0.05, 0.0)],
        atol=1e-12,
    )
    dotted = [style[1] is not None for style in lines.get_linestyles()]
    assert dotted == [False, True, False, False]
    assert "2 standard errors" in ax.get_xlabel()
    plain = circuit()
    for *_, data in plain.edges(data=True):
        data.pop("stderr", None)
    ax = plot_subgraph(plain)
    assert sum(isinstance(c, LineCollection) for c in ax.collections) == 1
    assert "standard" not in ax.get_xlabel()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"target": None}, "of different targets"),
        ({"target": 7}, "target 7"),
        ({"inputs": 1}, "no standard errors"),
        ({"weight": "logit", "absorbed": 3.5}, "absorbed: 3.5; means of R times logit"),
        ({"pruned": 0.02}, "pruned: 0.02"),
        ({"undefined": 3, "given": "fc[1]"}, "undefined: 3 inputs"),
        ({"given": "fc[1]"}, "given fc[1]"),
        ({"title": "mine"}, "mine"),
    ],
)
def test_what_the_picture_states(facts: dict[str, Any], expected: str) -> None:
    shown = texts(plot_circuit(circuit(**facts), classes=["cat", "dog"]))
    assert any(expected in text.replace("\n", " ") for text in shown)


def test_of_many_pairs_the_strongest_are_shown() -> None:
    graph = nx.DiGraph(inputs=2, share=1.0)
    for layer in range(15):
        for unit in range(40):
            graph.add_node(
                (f"l{layer}", unit), layer=f"l{layer}", unit=unit, relevance=0.1, depth=layer
            )
    for below, above in itertools.pairwise(range(15)):
        for unit in range(40):
            value = (below + 1.0) * (unit + 1.0) / 100
            graph.add_edge((f"l{below}", unit), (f"l{above}", unit), relevance=value, stderr=0.1)
    found = whiskers(plot_circuit(graph))
    assert list(found) == [f"l{i} → l{i + 1}" for i in range(13, 3, -1)]
    assert all(list(rows) == ["39 → 39", "38 → 38", "37 → 37"] for rows in found.values())


@pytest.mark.parametrize("facts", [{}, {"title": "a long title of many words " * 6}])
def test_texts_do_not_leave_the_picture_or_overlap(facts: dict[str, Any]) -> None:
    figure = plot_circuit(circuit(**facts))
    figure.canvas.draw()
    frame = figure.bbox
    for ax in figure.axes[1:]:
        boxes = [text.get_window_extent() for text in [*ax.get_yticklabels(), *ax.texts]]
        for shown in boxes:
            assert frame.x0 <= shown.x0
            assert shown.x1 <= frame.x1 + 1
        apart = [b for b, t in zip(boxes, [*ax.get_yticklabels(), *ax.texts], strict=True)
                 if t.get_text()]  # fmt: skip
        assert not any(a.overlaps(b) for a, b in itertools.combinations(apart, 2))


def test_circuits_that_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="no nodes"):
        plot_circuit(nx.DiGraph(inputs=3))
    alone = circuit()
    del alone.graph["inputs"]
    with pytest.raises(InputError, match="of one input: draw it with plot_subgraph"):
        plot_circuit(alone)
    lone = nx.DiGraph(inputs=3, share=1.0)
    lone.add_node(("x", 0), layer="x", unit=0, relevance=0.0, depth=0)
    assert len(plot_circuit(lone).axes) == 1


def test_files_of_circuits_are_pictures_of_circuits(tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        write_graph(circuit(), tmp_path / "c.svg")
    assert "fc → out" in (tmp_path / "c.svg").read_text()
    write_graph(circuit(), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    alone = circuit()
    del alone.graph["inputs"]
    with mpl.rc_context({"svg.fonttype": "none"}):
        write_graph(alone, tmp_path / "s.svg")
    assert "fc → out" not in (tmp_path / "s.svg").read_text()


# Galleries

HEAT = np.array([[0.5, -0.25, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, -2.0]])


def gallery(**options: Any) -> References:
    """Three inputs: with a region, undefined, and no image."""
    table = pa.table(
        {
            "key": ["one", "two\x1b[0m $x$", "three" * 20],
            "label": ["cat", None, "dog"],
            "target": [0, 5, 1],
            "relevance": [0.5, 0.25, -0.125],
            "activation": [1.5, 0.0, 2.0],
            "box": pa.array([{"top": 1, "left": 1, "bottom": 2, "right": 3}, None, None], BOX),
            "held": [0.75, None, None],
            "reason": pa.array([None, "R(B) is below rounding", "no image"], pa.string()),
        }
    )
    colours = np.random.default_rng(0).normal(size=(3, 4, 3))
    images = (colours, np.arange(12.0).reshape(3, 4, 1), None)
    defaults: dict[str, Any] = {"weight": "unit", "where": None, "share": 0.5, "k": 3}
    facts = defaults | options
    return References(
        ng.Layer("conv")[3],
        "relevance",
        facts["weight"],
        facts["where"],
        1234,
        facts["share"],
        table.slice(0, facts["k"]),
        images,
        (HEAT, None, None),
    )


def test_gallery_shows_images_heat_maps_and_frames() -> None:
    figure = plot_references(gallery(where="label = 'cat'"), classes=["cat", "dog"])
    assert len(figure.axes) == 6
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.images[0].get_array(), stretched(gallery().images[0]))
    np.testing.assert_array_equal(right.images[1].get_array(), HEAT)
    assert right.images[1].get_clim() == (-2.0, 2.0)  # centred at zero
    for ax in (left, right):
        (outer, inner) = (p for p in ax.patches if isinstance(p, Rectangle))
        for frame in (outer, inner):
            assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (0.5, 0.5, 2, 1)
    assert not figure.axes[2].patches
    shown = texts(figure)
    assert "1. one\ncat\nR 0.5; activation 1.5" in shown
    (second,) = (t for t in shown if t.startswith("2. "))
    assert "\x1b" not in second
    assert second.endswith("target 5\nR 0.25; activation 0\nR(B) is below rounding")
    (third,) = (t for t in shown if t.startswith("3. "))
    assert max(map(len, third.splitlines())) <= 40
    assert {"undefined", "no image"} <= set(shown)
    (title,) = (t for t in shown if t.startswith("Inputs with"))
    title = title.replace("\n", " ")
    assert "largest relevance R of conv[3], of 1,234 inputs where label = 'cat'" in title
    assert "smallest box that holds 50 % of the positive R(pixel given the unit)" in title
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(a.overlaps(ax.get_window_extent()) for a in boxes for ax in figure.axes)


def test_gallery_of_crops_on_one_scale() -> None:
    figure = plot_references(gallery(k=1, weight="logit"), crop=True, limit=0.5)
    left, right = figure.axes
    assert right.images[1].get_clim() == (-0.5, 0.5)
    for ax in (left, right):  # the box, 2 wide, and a margin of 0.35 of it
        np.testing.assert_allclose(ax.get_xlim(), (1.5 - 1.7, 1.5 + 1.7))
        np.testing.assert_allclose(ax.get_ylim(), (1.0 + 1.7, 1.0 - 1.7))
    assert any("R \N{MULTIPLICATION SIGN} logit 0.5" in text for text in texts(figure))


def test_fine_maps_are_shown_as_sums_over_blocks() -> None:
    heat = np.random.default_rng(0).normal(size=(5, 200))
    found = dataclasses.replace(gallery(k=1), images=(np.zeros((5, 200, 2)),), heatmaps=(heat,))
    _, right = plot_references(found).axes
    shown = right.images[1]
    padded = np.pad(heat, ((0, 3), (0, 0)))
    blocks = padded.reshape(2, 4, 50, 4).sum((1, 3))
    np.testing.assert_allclose(shown.get_array(), blocks)
    assert tuple(shown.get_extent()) == (-0.5, 199.5, 7.5, -0.5)
    assert right.get_ylim() == (4.5, -0.5)
    assert shown.get_clim() == (-np.abs(blocks).max(), np.abs(blocks).max())
    _, right = plot_references(found, crop=True).axes
    np.testing.assert_array_equal(right.images[1].get_array(), heat)
    ends = right.images[1].get_clim()
    np.testing.assert_allclose(ends[1], np.quantile(np.abs(heat), 0.995))


def test_galleries_that_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="no input was found"):
        plot_references(gallery(k=0))
    with pytest.raises(InputError, match="call references with a share"):
        plot_references(gallery(share=None))
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="limit must be a positive number"):
            plot_references(gallery(), limit=limit)
    for columns in (0, True, 1.5):
        with pytest.raises(InputError, match="columns must be at least 1"):
            plot_references(gallery(), columns=columns)  # type: ignore[arg-type]


def test_stored_inputs_become_pictures() -> None:
    values = np.array([[-1.0, 1.0], [0.0, 3.0]])
    np.testing.assert_array_equal(stretched(values), [[0, 0.5], [0.25, 1]])
    np.testing.assert_array_equal(stretched(values[..., None]), stretched(values))
    assert stretched(np.zeros((2, 2, 3))).shape == (2, 2, 3)
    assert stretched(np.stack([values, -values], -1)).shape == (2, 2)
    np.testing.assert_array_equal(stretched(np.zeros((2, 2))), np.full((2, 2), 0.5))
