"""The view of a unit: its numbers are those of the tables and of exact measures."""

import contextlib
import io
import re
import urllib.request

import numpy as np
import pytest
import torch
from helpers import small_convolution
from helpers.explored import kinds, links, of_class, problems, texts, walk
from PIL import Image
from torch import nn

import nrm_graph as ng
from nrm_graph.events.parser import parse
from nrm_graph.explorer import unit, unit_numbers
from nrm_graph.explorer.address import Address, from_query
from nrm_graph.explorer.answers import Answers
from nrm_graph.explorer.page import Page
from nrm_graph.explorer.parts import number
from nrm_graph.explorer.pictures import ENLARGED, framed_pngs
from nrm_graph.plots.common import SIGNED

KEYS = ["a", "b", "<b>c</b>", "d", "e", "f"]
ANSWERS = Answers()  # of all tests, which ask again and again of the same
WORDS = ["the", "cat", "<i>", "sat"]


def page(*stores, **values):
    return Page(Address(view="unit", **values), stores, ANSWERS)


def stored(folder, name, **options):
    images = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    rows = [
        {"input": x, "key": key, "label": [None, "x", "<y>"][i % 3]}
        for i, (x, key) in enumerate(zip(images, KEYS, strict=True))
    ]
    options = {"target": [0, 1], "composite": "epsilon", "progress": False} | options
    return ng.extract(small_convolution.program(), rows, folder / f"{name}.nrm", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("units")


@pytest.fixture(scope="module")
def channels(folder):
    db = stored(folder, "channels", resolution={"0": "channel", "3": "channel"})
    ng.name_units(db, "3", {1: "<script>eyes"})
    with ng.open(db.path) as named:
        yield named


@pytest.fixture(scope="module")
def neurons(folder):
    with stored(folder, "neurons") as db:
        yield db


@pytest.fixture(scope="module")
def bounded(folder):
    with stored(folder, "bounded", max_edges=60) as db:
        yield db


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.up, self.head = nn.Embedding(9, 3), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, ids):
        return self.head(torch.relu(self.up(self.words(ids))).mean(1))


@pytest.fixture(scope="module")
def words(folder):
    torch.manual_seed(0)
    rows = [
        {"input": torch.tensor([[0, 1, 2, i]]), "key": str(i), "tokens": WORDS} for i in range(3)
    ]
    options = {"resolution": {"up": "feature"}, "progress": False, "composite": "epsilon"}
    with ng.extract(Words().eval(), rows, folder / "words.nrm", **options) as db:
        yield db


def section(tree, name):
    (found,) = of_class(tree, name)
    return found


def cells(tree):
    """Texts of the rows of the tables of a part, with the address that the first cell leads to."""
    rows = []
    for row in [c for c in walk(tree) if type(c).__name__ == "Tr"][0:]:
        cells = [c for c in row.children if type(c).__name__ == "Td"]
        if cells:
            rows.append((next(iter(links(cells[0]).values()), None), [texts(c) for c in cells]))
    return rows


def values(db, event):
    """R of an event for every input, by the tables of the store."""
    part = db.partitions[db.topology.layer(event.layer).layer_id]
    info = db.topology.layer(event.layer)
    units = np.unique(part.labels[event.mask(info.shape, part)])
    nodes = db.sql(f"SELECT * FROM nodes WHERE layer_id = {info.layer_id}").df()
    sums = nodes[nodes.unit.isin(units)].groupby("input_id").relevance.sum()
    table = db.inputs.df().set_index("input_id")
    table["v"] = sums.reindex(table.index).fillna(0.0).astype(float)
    return table


@pytest.mark.parametrize("store", ["channels", "neurons"])
def test_relevance_by_label(store, request):
    db = request.getfixturevalue(store)
    table = values(db, parse("3[1]"))
    (everything, *rows) = cells(section(unit.render(page(db, unit="3[1]")), "labels"))
    assert everything[1][2:5] == [
        number(table.v.mean()),
        number(table.v.sem()),
        str(len(table)),
    ]
    by_label = table.groupby("label", dropna=False).v
    expected = {
        "no label" if not isinstance(label, str) else label: [
            number(v.mean()),
            number(v.sem()),
            str(len(v)),
            str((v != 0).sum()),
        ]
        for label, v in by_label
    }
    assert {text[0]: text[2:] for _, text in rows} == expected
    means = [float(text[2]) for _, text in rows]
    assert means == sorted(means, reverse=True)
    assert {a.label for a, _ in rows if a is not None} == {"x", "<y>"}
    only = cells(section(unit.render(page(db, unit="3[1]", where="label = 'x'")), "labels"))
    assert [text[4] for _, text in only] == ["4", "4"]


def mean_edges(db, event, side):
    """Mean edges of a set with the units of other layers, channels of maps, by brute force."""
    by = {"0": "channel", "3": "channel", "x": "channel", "input": "channel"}
    names = {layer.name for layer in db.topology.layers}
    sums = {}
    for identity in db._snapshot.entries:
        m = db.measure(identity, dtype="float64")
        grouped = m.with_units({name: kind for name, kind in by.items() if name in names})
        for group in db.topology.groups:
            upper, lower = (db.topology.layers[i] for i in (group.dst, group.src))
            if event.layer == (upper if side == "below" else lower).name:
                for row in grouped.edges(upper.name, lower.name).to_pylist():
                    ends = (row["dst_unit"], lower.layer_id, row["src_unit"])
                    if side == "above":
                        ends = (row["src_unit"], upper.layer_id, row["dst_unit"])
                    if ends[0] == 1:
                        sums.setdefault(ends[1:], []).append(row["relevance"])
    return {name: sum(rows) / len(db) for name, rows in sums.items()}


@pytest.mark.parametrize("store", ["channels", "neurons"])
@pytest.mark.parametrize("side", ["above", "below"])
def test_mean_neighbours(store, side, request):
    db = request.getfixturevalue(store)
    event = parse("3[1]")
    whole = unit_numbers.StoredUnit(
        event,
        db.topology.layer("3"),
        np.unique(db.partitions[2].labels[event.mask((4, 2, 2), db.partitions[2])]),
    )
    near = unit_numbers.stored_neighbours(db, whole, "", side)
    assert not near.pruned
    expected = mean_edges(db, event, side)
    rows = {(row.layer_id, row.unit): row.relevance for row in near.rows if row.unit >= 0}
    assert len(rows) == len(expected) >= 2
    for name, mean in rows.items():
        assert mean == pytest.approx(expected[name], rel=1e-4, abs=1e-7)
    sizes = [abs(row.relevance) for row in near.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert any(row.unit < 0 for row in near.rows) == (side == "below")  # the bias of 3
    tree = section(unit.render(page(db, unit="3[1]")), "neighbours")
    shown = cells(tree)
    mine = [text for a, text in shown if (a is None or a.unit[0] == "0") == (side == "below")]
    assert [text[2] for text in mine] == [number(row.relevance) for row in near.rows]
    assert "holds every edge" in texts(tree)
    assert ("summed to what they are part of" in texts(tree)) == (store == "neurons")


def test_standard_errors_are_of_the_inputs(channels):
    whole = unit_numbers.StoredUnit(parse("3[1]"), channels.topology.layer("3"), np.array([1]))
    near = unit_numbers.stored_neighbours(channels, whole, "target = 0", "above")
    edges = channels.sql(
        "SELECT e.* FROM edges e JOIN inputs USING (input_id) WHERE target = 0 AND src_layer = 2 "
        "AND src_unit = 1"
    ).df()
    for row in near.rows:
        sums = edges[edges.dst_unit == row.unit].groupby("input_id").relevance.sum()
        sums = np.concatenate([sums, np.zeros(6 - len(sums))])
        assert row.relevance == pytest.approx(sums.mean(), rel=1e-5, abs=1e-9)
        assert row.stderr == pytest.approx(sums.std(ddof=1) / np.sqrt(6), rel=1e-4, abs=1e-9)
        assert row.present <= 6


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("expression", ["3[1]", "3[2, 1, 0]"])
def test_bounded_means_lie_within_what_is_said(bounded, neurons, expression, side):
    event = parse(expression)
    part = neurons.partitions[2]
    whole = unit_numbers.StoredUnit(
        event, neurons.topology.layer("3"), np.unique(part.labels[event.mask((4, 2, 2), part)])
    )
    near = unit_numbers.stored_neighbours(bounded, whole, "", side)
    assert near.pruned
    assert all(row.stderr is None for row in near.rows)
    single = len(whole.units) == 1
    assert all((row.lacking is not None) == single for row in near.rows)
    exact = unit_numbers.stored_neighbours(neurons, whole, "", side)
    true = {(row.layer_id, row.unit): row.relevance for row in exact.rows}
    off = [
        (abs(row.relevance - true[row.layer_id, row.unit]), row.lacking)
        for row in near.rows
        if row.unit >= 0 and (row.layer_id, row.unit) in true
    ]
    if single:
        assert max(distance for distance, _ in off) > 1e-4 or side == "above"  # some is left out
        assert all(distance <= bound + 1e-7 for distance, bound in off)
    said = texts(section(unit.render(page(bounded, unit=expression)), "neighbours"))
    assert "leaves edges out" in said
    assert "may be off by" in said
    assert "standard error" not in said


@pytest.mark.parametrize("expression", ["3[1]", "3[1, 0, 1]", "3[..., 1]"])
def test_exact_neighbours_of_the_chosen_input(channels, expression):
    event = parse(expression)
    tree = unit.render(page(channels, unit=expression, input="b", target="1"))
    part = section(tree, "of-input")
    m = channels.measure("b", target=1)
    assert f"target 1: R(unit) = {float(m(event)):.6g}" in texts(part)
    rows = cells(part)
    for side, layer in (("above", "6"), ("below", "0")):
        near = unit_numbers.exact_neighbours(channels, m, event, side)
        pair = ("6", "3") if side == "above" else ("3", "0")
        chosen = {"src" if side == "above" else "dst": event}
        edges = m.edges(*pair, by="neuron", **chosen).to_pylist()
        other = "dst_unit" if side == "above" else "src_unit"
        labels = near.partitions[channels.topology.layer(layer).layer_id].labels.ravel()
        sums = np.zeros(labels.max() + 1)
        for row in edges:
            if row[other] >= 0:
                sums[labels[row[other]]] += row["relevance"]
        joined = [row for row in near.rows if row.unit >= 0]
        assert [row.relevance for row in joined] == pytest.approx(
            [sums[row.unit] for row in joined], rel=1e-9
        )
        assert abs(sums).max() == pytest.approx(abs(joined[0].relevance))
        mine = [
            text for a, text in rows if (a is not None and a.unit[0] == "6") == (side == "above")
        ]
        assert [text[2] for text in mine] == [number(row.relevance) for row in near.rows]
    if expression != "3[1]":  # parts of stored channels
        assert "divides channel" in texts(of_class(tree, "problem"))
        assert not of_class(tree, "labels")


def test_direct_edges_add_up(channels):
    m = channels.measure("a", target=0, dtype="float64")
    event = parse("3[1]")
    for side in ("above", "below"):  # with what its bias and its stabilizer take up
        near = unit_numbers.exact_neighbours(channels, m, event, side)
        assert sum(row.relevance for row in near.rows) == pytest.approx(float(m(event)), abs=1e-9)
    assert any(row.unit < 0 for row in near.rows)
    assert unit_numbers.exact_neighbours(channels, m, parse("6[0]"), "above").rows == ()
    for layer in channels.topology.inputs:
        assert (
            unit_numbers.exact_neighbours(channels, m, parse(f"{layer.name}[0]"), "below").rows
            == ()
        )


def test_reference_inputs(channels):
    for ranked in ("relevance", "activation"):
        tree = unit.render(page(channels, unit="3[1]", ranked=ranked, event="0[1]"))
        part = section(tree, "references")
        found = channels.references(parse("3[1]"), k=8, by=ranked)
        rows = found.table.to_pylist()
        cards = of_class(part, "card")
        assert len(cards) == len(rows) == 6
        for card, row in zip(cards, rows, strict=True):
            address = from_query(of_class(card, "look")[0].href)
            assert (address.view, address.input, address.event) == ("flow", row["key"], "3[1]")
            assert address.target == str(row["target"])  # of two
            assert f"R {row['relevance']:.4g}, activation {row['activation']:.4g}" in texts(card)
        pictures = of_class(part, "reference")
        sizes = {Image.open(_png(p.src)).size for p in pictures}
        assert sizes == {(ENLARGED, ENLARGED)}
        assert len(pictures) == 12 - sum(heat is None for heat in found.heatmaps)
    assert "<b>c</b>" in texts(part)


def _png(source):
    return io.BytesIO(urllib.request.urlopen(source).read())  # a data URI


def test_frames_stand_around_their_box():
    image = np.zeros((4, 8))
    image[0, 0] = 1
    box = {"top": 1, "left": 2, "bottom": 3, "right": 6}
    left, right = framed_pngs(image, np.eye(4, 8), box)
    pixels = np.asarray(Image.open(io.BytesIO(left)).convert("RGB")).astype(int)
    assert pixels.shape == (ENLARGED // 2, ENLARGED, 3)
    scale = ENLARGED // 8
    dark = np.argwhere((pixels == 0x11).all(2))
    assert dark.min(0).tolist() == [1 * scale, 2 * scale]
    assert dark.max(0).tolist() == [3 * scale - 1, 6 * scale - 1]
    shown = np.asarray(Image.open(io.BytesIO(right)).convert("RGB")).astype(int)
    assert shown[2, 2, 0] > shown[2, 2, 2] + 100  # vermillion
    assert framed_pngs(image, None, None)[1] is None


def test_words_are_coloured_by_what_the_unit_takes_of_them(words):
    event = parse("up[..., 2]")
    tree = section(unit.render(page(words, unit="up[..., 2]")), "references")
    assert "Frame" not in texts(tree)
    cards = of_class(tree, "card")
    assert len(cards) == 3
    sums_of = {}
    for key in words.keys:
        with contextlib.suppress(ng.UndefinedConditional):
            given = words.measure(key).given(event)
            sums_of[key] = given.marginal("words", by="neuron").sum(1)
    assert sums_of
    for card in cards:
        key = from_query(of_class(card, "look")[0].href).input
        tokens = of_class(card, "token")
        assert [texts(t) for t in tokens] == WORDS
        if key not in sums_of:
            assert "below rounding" in texts(card)
            continue
        sums = sums_of[key]
        for token, value in zip(tokens, sums, strict=True):
            shade = SIGNED(0.5 + 0.5 * float(value) / np.abs(sums).max(), bytes=True)
            assert token.style["backgroundColor"] == "#{:02x}{:02x}{:02x}".format(*shade[:3])
            assert f"R = {value:.4g}"[:7] in token.title


def test_its_name_and_where_it_lies(channels, neurons):
    tree = unit.render(page(channels, unit="3[1]", event="0[0]", where="target = 0"))
    heading = section(tree, "unit-heading")
    said = texts(heading)
    assert said.startswith("<script>eyes 3[1]")
    assert "convolution of shape (4, 2, 2); 4 of its 16 neurons; in the store channel 1" in said
    there = links(heading)
    assert there["3"].unit == "3"
    assert there["choose an input to condition on it"].view == "gallery"
    assert (there["its circuit"].view, there["its circuit"].event) == ("circuit", "3[1]")
    chosen = links(
        section(unit.render(page(channels, unit="3[1]", input="a", target="0")), "unit-heading")
    )
    flow = chosen["condition the flow on it"]
    assert (flow.view, flow.input, flow.target, flow.event) == ("flow", "a", "0", "3[1]")
    said = texts(section(unit.render(page(neurons, unit="3[1]")), "unit-heading"))
    assert "in the store 4 units of kind neuron" in said
    above = cells(section(unit.render(page(channels, unit="6[0]")), "neighbours"))
    named = {text[0]: a for a, text in above}
    assert named["<script>eyes (3[1])"].unit == "3[1]"
    assert not kinds(tree) & {"Markdown", "Iframe", "Script"}


def test_layers_and_their_strongest_units(channels, neurons):
    rows = cells(section(unit.render(page(channels)), "layers"))
    names = [layer.name for layer in reversed(channels.topology.layers)]
    assert [a.unit for a, _ in rows] == names
    assert [text[3] for _, text in rows][-3:-1] == ["channel", "channel"]
    for db in (channels, neurons):
        tree = section(unit.render(page(db, unit="3", where="target = 1")), "strongest")
        rows = cells(tree)
        expected = []
        for i in range(4):
            table = values(db, parse(f"3[{i}]"))
            v = table[table.target == 1].v
            expected.append((f"3[{i}]", v.mean(), v.abs().mean(), (v != 0).sum()))
        expected = sorted((row for row in expected if row[2]), key=lambda row: -row[2])
        assert [a.unit for a, _ in rows] == [row[0] for row in expected]
        for (_, text), (_, mean, size, present) in zip(rows, expected, strict=True):
            assert float(text[2]) == pytest.approx(mean, rel=1e-3)
            assert float(text[3]) == pytest.approx(size, rel=1e-3)
            assert text[4] == str(present)
        assert ("3[0, 0, 0]" in texts(tree)) == (db is neurons)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nowhere[3]", "there is no layer 'nowhere'"),
        ("3[", "expected|cannot"),
        ("3[1] & 0[1]", "expected one unit"),
        ("3[99]", "."),
        ("<script>", "."),
        ("3[1] -> 0[1]", "expected one unit"),
        ("3[2:2]", "holds no neuron"),
    ],
)
def test_what_is_no_unit_is_a_sentence(channels, expression, message):
    tree = unit.render(page(channels, unit=expression))
    assert re.search(message, *problems(tree))
    assert of_class(tree, "controls")  # to mend it


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"input": "nobody"}, ["of-input"]),
        ({"input": "a"}, ["of-input"]),  # of two targets
        ({"input": "a", "target": "cat"}, ["of-input"]),
        ({"where": "nonsense = 1"}, ["references", "labels", "neighbours"]),
        ({"where": "1) OR (1"}, ["references", "labels", "neighbours"]),
    ],
)
def test_a_part_that_fails_leaves_the_others(channels, values, parts):
    tree = unit.render(page(channels, unit="3[1]", **values))
    for name in {"references", "labels", "neighbours", *parts}:
        part = section(tree, name)
        assert bool(of_class(part, "problem")) == (name in parts), name


def test_nothing_matches(channels):
    tree = unit.render(page(channels, unit="3[1]", where="false"))
    assert "No input matches" in texts(section(tree, "labels"))
    assert "No input matches" in texts(section(tree, "neighbours"))


def test_without_tensors(folder):
    with stored(folder, "omitted", tensors="omit", resolution={"3": "channel"}) as db:
        tree = unit.render(page(db, unit="3[1]", input="a", target="0"))
        part = section(tree, "references")
        assert "No pictures: " in texts(part)
        assert len(of_class(part, "card")) == 6
        assert "tensors" in texts(of_class(section(tree, "of-input"), "problem"))


def test_two_stores(channels, words):
    tree = unit.render(page(channels, words, unit="up[..., 1]", store=1))
    assert "feature 1" in texts(section(tree, "unit-heading"))
    assert all(a.store == 1 for a in links(tree).values())
    assert "no layer 'up'" in problems(unit.render(page(channels, words, unit="up[..., 1]")))[0]
