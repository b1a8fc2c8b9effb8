"""What notebooks show of every object that a call returns, and its data frame."""

from __future__ import annotations

import base64
import dataclasses
import io
import sys
from collections import OrderedDict
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

import nrm_graph as ng
from nrm_graph.store.verify.report import Finding
from nrm_graph.tables.html_tables import COLUMNS, MAX_TEXT, ROWS, Description, HtmlTable, table_of

pytestmark = pytest.mark.usefixtures("remembered_traces")

HOSTILE = '<script>alert("1")</script>\'&lt;\ud800$\\href{javascript:alert(1)}{x}$'
LAYER = "<b>&lt;</b>"
TAGS = {"div", "b", "i", "table", "thead", "tbody", "tr", "th", "td"}


class Page(HTMLParser):
    """Text of a page, which must be balanced and of plain tags alone."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.rows = [], [], [[]]
        self.feed(html)
        self.close()
        assert self.open == []
        html.encode()

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            names, (source, text, _) = zip(*attrs, strict=True)
            assert names == ("src", "alt", "style")
            kind, data = source.split(",")
            assert kind == "data:image/png;base64"
            self.rows[-1].append((text, Image.open(io.BytesIO(base64.b64decode(data)))))
            return
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"class", "style"}
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)

    def handle_comment(self, data):
        raise AssertionError(data)


def shown(value):
    """Text as a page has it: a lone surrogate cannot be part of one."""
    return value.encode("utf-8", "backslashreplace").decode()


@pytest.mark.smoke
def test_a_table_is_cut_and_says_so():
    long = pa.table({f"c{i}": [i] * (ROWS + 5) for i in range(COLUMNS + 2)})
    table = table_of(long)
    page = Page(table.html())
    assert page.rows[1] == [f"c{i}" for i in range(COLUMNS)]
    assert len(page.rows) == 2 + ROWS
    assert f"the first {ROWS} of {ROWS + 5} rows, 5 left out; 2 columns left out" in page.text
    assert "more are left out" in Page(table_of(long, total=None).html()).text[-1]
    assert "left out" not in table_of(long.slice(0, ROWS), ["c1", "missing"]).html()
    assert Page(table_of(long.slice(0, 0)).html()).rows[1:] == [page.rows[1]]


def test_whatever_a_cell_holds_is_text():
    values = (HOSTILE, None, 0.1234567, float("nan"), True, {"top": 1}, ["a", "<b>"], b"<b>", 7)
    table = HtmlTable(("<i>", *"abcdefgh"), (values,), 1, caption=HOSTILE)
    html = Description(HOSTILE, (HOSTILE,), ("left out",), (HOSTILE,)).html(table)
    page = Page(html)
    assert page.rows[1][0] == "<i>"
    assert page.rows[2] == [
        *(shown(HOSTILE), "0.12346", "nan", "True", "top 1", "a, <b>", "b'<b>'", "7")
    ]
    assert page.text.count(shown(HOSTILE)) == 5
    assert "left out" not in html
    # Notebooks typeset $...$ but in parts of these classes.
    assert html.startswith('<div class="nrm-graph tex2jax_ignore mathjax_ignore"')
    long = HtmlTable(("a",), (("x" * 10_000,),), 1).html()
    assert len(long) < 2 * MAX_TEXT
    assert "(10,000 characters)" in long


def test_numbers_stand_right_and_text_left():
    html = HtmlTable(("a", "b"), (("x", 1.0), ("y", None)), 2).html()
    assert '<td style="text-align:left">x</td><td style="text-align:right">1</td>' in html


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """A store whose keys, labels, fields and layers are hostile."""
    torch.manual_seed(1)
    parts = [
        (LAYER, nn.Conv2d(1, 3, 3, padding=1)),
        ("relu", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(27, 4)),
    ]
    label = HOSTILE.replace("\ud800", "")
    rows = [
        {"input": image, "key": f"{label}{n}", "label": (label, "dog")[n % 2], "<b>": n}
        for n, image in enumerate(torch.rand(8, 1, 6, 6))
    ]
    path = tmp_path_factory.mktemp("hostile") / "<i>s<i>.nrm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        with ng.extract(
            nn.Sequential(OrderedDict(parts)).eval(), rows, path, target=1, progress=False
        ) as opened:
            opened.materialize(ng.Layer(LAYER)[2], name="given", progress=False)
            yield opened


ASK = {
    "database": lambda db, m: db,
    "inputs": lambda db, m: db.inputs,
    "layers": lambda db, m: db.layers,
    "relation": lambda db, m: db.sql("SELECT *, [1, 2] AS many FROM flows"),
    "measure": lambda db, m: m,
    "conditioned": lambda db, m: m.given(ng.Layer(LAYER)[2]),
    "cut": lambda db, m: m.cut(LAYER),
    "matrix": lambda db, m: m.joint("head", LAYER, by=("unit", "neuron")),
    "walks": lambda db, m: m.paths(3),
    "paths": lambda db, m: m.paths(3, by="unit"),
    "reduced": lambda db, m: m.reduced(nodes=6),
    "references": lambda db, m: db.references(ng.Layer(LAYER)[2], k=2),
    "concepts": lambda db, m: db.concepts(None, LAYER, 2, examples=2),
    "concept": lambda db, m: db.concepts(None, LAYER, 1, examples=2)[0],
    "mean matrix": lambda db, m: db.joint("head", LAYER, by=("unit", "channel")),
    "ablated": lambda db, m: ng.evaluate.ablate(db, ng.Layer(LAYER)[2], progress=False),
    "split": lambda db, m: ng.evaluate.split(db),
    "contrast": lambda db, m: db.contrast("label = 'dog'", "label <> 'dog'", draws=50),
    "stability": lambda db, m: db.stability(splits=3, draws=20),
    "clusters": lambda db, m: db.clusters(k=2),
    "verification": lambda db, m: db.verify(sample=0),
}


@pytest.fixture(scope="module")
def answers(db):
    m = db.measure(db.keys[0])
    return {name: ask(db, m) for name, ask in ASK.items()}


@pytest.mark.parametrize("name", ASK)
def test_every_answer_is_shown(db, answers, name):
    answer = answers[name]
    page = Page(answer._repr_html_())
    text = " ".join(page.text)
    assert len(page.rows) > 1 or name == "verification"
    if name in ("database", "inputs", "references", "clusters", "relation", "ablated", "split"):
        assert HOSTILE[:20] in text
    if name in ("database", "layers", "measure", "cut", "matrix", "walks", "contrast", "stability"):
        assert LAYER in text
    if name in ("concepts", "concept", "mean matrix", "ablated"):
        assert LAYER in text
    if name not in ("inputs", "layers", "relation", "walks", "paths", "cut", "verification"):
        assert f"<{page.text[0]}" in repr(answer)  # the same title


@pytest.mark.parametrize(
    "name",
    [n for n in ASK if n not in ("database", "measure", "conditioned", "cut", "verification")],
)
def test_tables_are_data_frames(answers, name):
    answer = answers[name]
    frame = answer.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    if name == "mean matrix":
        np.testing.assert_array_equal(frame["mean"].to_numpy(), answer.values)
        np.testing.assert_array_equal(frame["stderr"].to_numpy(), answer.stderr)
        assert (frame.index.name, frame.columns.names) == ("head", [None, LAYER])
    elif name == "matrix":
        np.testing.assert_array_equal(frame.to_numpy(), answer.values)
        assert (frame.index.name, frame.columns.name) == ("head", LAYER)
    elif isinstance(answer, ng.circuits.Contrast):
        pd.testing.assert_frame_equal(frame, answer.table.to_pandas())
    elif name in ("inputs", "layers", "relation"):
        rows = answer.to_arrow_table()
        assert (len(frame), list(frame)) == (len(rows), rows.column_names)
    else:
        assert frame.equals(answer.to_arrow().to_pandas())
        assert len(frame)


def test_references_show_their_heat_maps(db, answers):
    for name in ("references", "concept"):
        answer = answers[name]
        found = getattr(answer, "references", answer)
        cells = [row[-1] for row in Page(answer._repr_html_()).rows[2:]]
        for (text, picture), heat in zip(cells, found.heatmaps, strict=True):
            assert (text, picture.size) == ("heat map", heat.shape[::-1])
            pixels, at = (
                np.asarray(picture.convert("RGB")).astype(int),
                np.unravel_index(heat.argmax(), heat.shape),
            )
            assert (pixels[at][0] > pixels[at][2]) == (heat[at] > 0)  # vermillion, or blue
    shown = db.references(ng.Layer(LAYER)[2], k=2, share=None)
    assert "<img" not in shown._repr_html_()
    many = dataclasses.replace(
        answers["references"],
        table=pa.concat_tables([found.table] * 9),
        heatmaps=(None, *found.heatmaps * 8, found.heatmaps[0]),
    )
    html = many._repr_html_()
    assert html.count("<img") == 11
    assert len(Page(html).rows) == 2 + 18


def test_a_split_counts_its_keys(answers):
    rows = Page(answers["split"]._repr_html_()).rows[2:]
    assert sorted(row[1:] for row in rows) == [["3", "1"], ["3", "1"]]


def test_steps_of_a_reduced_graph_name_their_layers(answers):
    reduced = answers["reduced"]
    frame = reduced.to_pandas()
    assert len(frame) == len(reduced.edges) + len(reduced.ends)
    names = [layer.name for layer in reduced.topology.layers]
    assert frame["dst"].tolist() == [names[i] for i in frame["dst_layer"]]
    assert frame["src"].tolist() == [names[i] for i in frame["src_layer"]]


def test_without_pandas_it_says_what_to_install(answers, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in ("matrix", "walks", "contrast", "reduced", "inputs"):
        with pytest.raises(ng.InputError, match="pip install pandas"):
            answers[name].to_pandas()


def test_a_database_is_shown_by_label_and_layer(db):
    page = Page(db._repr_html_())
    assert page.text[0] == f"nrm_graph store {db.path}: 8 inputs"
    assert ["conditions", "given"] in page.rows
    assert [HOSTILE.replace("\ud800", ""), "4", "4"] in page.rows
    assert ["dog", "4", "4"] in page.rows
    (row,) = (row for row in page.rows if len(row) > 2 and row[1] == LAYER)
    assert row[2:] == ["convolution", "3, 6, 6", "neuron", "108"]


def test_a_database_whose_files_are_gone_is_shown(db, monkeypatch):
    def gone(*args, **kwargs):
        raise ng.QueryError("the file x is no longer there")

    monkeypatch.setattr(type(db), "sql", gone)
    page = Page(db._repr_html_())
    assert ["labels", "the file x is no longer there"] in page.rows
    assert any(LAYER in row for row in page.rows)


def test_a_measure_says_what_it_is(answers):
    m, given = answers["measure"], answers["conditioned"]
    rows = {row[0]: row[1:] for row in reversed(Page(m._repr_html_()).rows) if row}
    assert rows["target"] == ["1"]
    assert rows["logit"] == [f"{m.logit:.5g}"]
    assert rows["input"] == ["input (1, 6, 6)"]
    assert rows["meaning"] == [m.meaning]
    assert "given" not in rows
    assert rows["head"][:2] == ["dense", "1"]
    page = Page(given._repr_html_())
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows["R(given)"] == [f"{given.condition_relevance:.5g}"]
    for flag in (*m.flags, *given.flags):
        assert ["flag", str(flag)] in [*Page(m._repr_html_()).rows, *page.rows]


def test_findings_are_shown(answers):
    report = answers["verification"]
    finding = Finding("error", HOSTILE, key="<b>")
    found = dataclasses.replace(report, findings=(finding,))
    page = Page(found._repr_html_())
    assert page.rows[1:] == [["severity", "problem", "key"], ["error", shown(HOSTILE), "<b>"]]
    assert "DAMAGED" in page.text[0]


def test_a_long_relation_is_not_counted(db, monkeypatch):
    monkeypatch.setattr("nrm_graph.store.read.relation.COUNTED", 30)
    few, many = db.sql("FROM range(25)"), db.sql("FROM range(31)")
    assert "the first 20 of 25 rows, 5 left out" in few._repr_html_()
    assert "the first 20 rows, more are left out" in many._repr_html_()
