"""Texts of an input's positions: stored lists of text, graphs, pictures; units in words."""

import functools
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import tiny_stores
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.network.topology import LayerInfo
from nrm_graph.network.tracing.trace import trace
from nrm_graph.network.unit_names import UnitKind, token_axis, unit_name
from nrm_graph.plots import plot_flow, plot_subgraph
from nrm_graph.plots.token_strip import drawable, lines
from nrm_graph.store.format.files import seal

pytestmark = pytest.mark.usefixtures("remembered_traces")

TOKENS = ["the", "cat", "$x_$ \\frac", "日本\x1b[31m\n"]


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.relu(self.up(x)).mean(1))


def network():
    torch.manual_seed(0)
    return Sequence().eval()


@functools.cache
def program():
    return trace(network(), X)


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
OPTIONS = {"target": 1, "composite": "epsilon"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "s.nrm"
    rows = [
        {"input": X, "key": "a", "tokens": TOKENS},
        {"input": 2 * X, "key": "b", "tokens": tuple("wxyz")},
        {"input": 3 * X, "key": "c"},
    ]
    ng.extract(network(), rows, path, progress=False, resolution={"up": "token"}, **OPTIONS)
    return path


def test_a_store_keeps_tokens(store, capsys):
    with ng.open(store) as db:
        found = db.sql("SELECT tokens FROM inputs ORDER BY key")
        assert [str(t) for t in found.types] == ["VARCHAR[]"]
        assert [t for (t,) in found.fetchall()] == [TOKENS, list("wxyz"), None]
        counts = db.sql("SELECT key, len(tokens), tokens[2] FROM inputs ORDER BY key").fetchall()
        assert counts[:2] == [("a", 4, "cat"), ("b", 4, "x")]
        assert db.measure("a").tokens == tuple(TOKENS)
        assert db.measure("a").given(ng.Layer("up")[0]).tokens == tuple(TOKENS)
        assert db.measure("c").tokens is None
        assert db.verify().sound
    assert main.main(["paths", str(store), "--input", "b", "--layers", "up,x", "--k", "2"]) == 0
    assert "token 2 'y' > neuron 2, 0 'y'" in capsys.readouterr().out
    assert main.main(["sql", str(store), "SELECT tokens FROM inputs", "--format", "csv"]) == 0
    assert main.main(["info", str(store)]) == 0


def test_graphs_know_tokens():
    m = ng.measure(program(), X, tokens=TOKENS, resolution={"up": "token"}, **OPTIONS)
    graph = m.subgraph(top=1000)
    for (layer, unit), data in graph.nodes(data=True):
        if unit < 0:
            assert data["name"] in ("bias", "stabilizer")
        elif layer in ("x", "up"):
            assert data["token"] == TOKENS[unit // 3 if layer == "x" else unit]
        else:
            assert "token" not in data
    assert graph.nodes["up", 1]["name"] == "token 1 'cat'"
    assert graph.nodes["x", 4]["name"] == "neuron 1, 1 'cat'"
    for ax in (m.heatmap(), m.heatmap(layer="up"), plot_subgraph(graph), plot_flow(m)):
        ax.figure.canvas.draw()  # no missing glyph, no mathematics of strangers
        texts = [t.get_text() for t in ax.texts]
        assert any("cat" in text for text in texts)
        assert not any("\n" in t or "\x1b" in t for t in texts if "frac" in t or "[31m" in t)
    pixels = m.heatmap(channel_sum=False)
    assert len(pixels.images) == 1


def test_strips_are_coloured_by_the_sum_over_features():
    m = ng.measure(program(), X, tokens=TOKENS, dtype="float64", **OPTIONS)
    from nrm_graph.plots import SIGNED

    values = m.marginal("x", by="neuron").sum(1)
    ax = m.heatmap()
    bound = np.abs(values).max()
    for patch, value in zip(ax.patches, values, strict=True):
        np.testing.assert_allclose(patch.get_facecolor(), SIGNED(0.5 + 0.5 * value / bound))
    assert ax.get_title() == "relevance of x, target 1"
    assert any("absorbed by bias" in t.get_text() for t in ax.texts)


def test_texts_of_strangers_can_be_drawn():
    assert drawable("a b\n") == "a\N{OPEN BOX}b\N{OPEN BOX}"
    assert drawable("日") == "\N{WHITE SQUARE}"
    assert len(drawable("x" * 1000)) == 40
    rows = lines(["word"] * 30, 200.0)
    assert [i for row in rows for i in row] == list(range(30))
    assert len(rows) > 4
    assert lines(["x" * 1000], 10.0) == [[0]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("text", "a list of text"),
        ([1, 2, 3, 4], "a list of text"),
        (["a"] * 7, "names 7 positions, but no layer has as many"),
    ],
)
def test_tokens_that_do_not_fit(tmp_path, tokens, message):
    with pytest.raises(ng.InputError, match=message):
        ng.measure(program(), X, tokens=tokens, **OPTIONS)
    if isinstance(tokens, list):
        rows = [{"input": X, "tokens": tokens}]
        with pytest.raises(ng.InputError, match=message):
            ng.extract(network(), rows, tmp_path / "s.nrm", progress=False, **OPTIONS)


@pytest.mark.parametrize(
    ("layer", "count", "axis"),
    [
        (LayerInfo(0, "x", "input", (5,), 0), 5, 0),
        (LayerInfo(1, "a", "dense", (5,), 1), 5, None),
        (LayerInfo(1, "a", "embedding", (5, 8), 1), 5, 0),
        (LayerInfo(1, "a", "dense", (8, 5), 1), 5, None),
        (LayerInfo(1, "a", "convolution", (8, 5), 1), 5, 1),
        (LayerInfo(1, "a", "convolution", (5, 8), 1), 5, None),
        (LayerInfo(1, "a", "softmax", (5, 5, 5), 1), 5, 1),  # of heads that read for them
        (LayerInfo(1, "a", "attention", (5, 4, 8), 1), 5, None),
        (LayerInfo(1, "a", "dense", (2, 5, 8), 1), 5, None),
    ],
)
def test_where_tokens_lie(layer, count, axis):
    assert token_axis(layer, count) == axis


def test_units_in_words():
    heads = LayerInfo(1, "a", "softmax", (2, 5, 5), 1)
    assert unit_name(heads, UnitKind("head"), 1) == "head 1"
    assert unit_name(heads, UnitKind("neuron"), 32) == "neuron 1, 1, 2"
    assert unit_name(heads, UnitKind("channel"), 1) == "channel 1"
    assert unit_name(heads, UnitKind("token"), 7) == "head 1, token 2"
    assert unit_name(heads, UnitKind("token"), 7, list("abcde")) == "head 1, token 2 'c'"
    assert unit_name(heads, UnitKind("neuron"), 32, list("abcde")) == "neuron 1, 1, 2 'b'"
    assert unit_name(heads, UnitKind("custom"), 3) == "unit 3"
    assert unit_name(heads, UnitKind("head"), -4) == "remainder"
    vector = LayerInfo(1, "a", "dense", (5,), 1)
    assert unit_name(vector, UnitKind("token"), 0) == "unit 0"
    assert unit_name(vector, UnitKind("neuron"), 4, ["a"] * 5) == "neuron 4"
    rows = LayerInfo(1, "a", "convolution", (8, 5), 1)
    assert unit_name(rows, UnitKind("feature"), 4, list("abcde")) == "feature 4 'e'"
    assert unit_name(rows, UnitKind("channel"), 4, list("abcde")) == "channel 4"


# Lists of text as metadata


def test_types_of_lists_are_fixed_at_first_sight(tmp_path):
    path = tiny_stores.make(tmp_path / "s.nrm")
    records = [
        tiny_stores.record(0, metadata={"words": ["a", "b"], "n": 1}),
        tiny_stores.record(1, metadata={"words": np.array(["c"]), "n": 2}),
        tiny_stores.record(2, metadata={"words": [], "n": 3}),
        tiny_stores.record(3, metadata={"words": None}),
    ]
    tiny_stores.write(path, records)
    for wrong in ({"words": "text"}, {"words": 1}, {"n": ["a"]}):
        with pytest.raises(ng.InputError, match=r"is of type .* in this store"):
            tiny_stores.write(path, [tiny_stores.record(4, metadata=wrong)])
    with ng.open(path) as db:
        rows = db.sql("SELECT words FROM inputs ORDER BY key").fetchall()
        assert rows == [(["a", "b"],), (["c"],), ([],), (None,)]
        assert db.sql("SELECT unnest(words) FROM inputs").to_arrow_table().num_rows == 3


def test_shards_that_disagree_are_read_as_text(tmp_path):
    path = tiny_stores.make(tmp_path / "s.nrm")
    first, second = (tiny_stores.Writer(path) for _ in range(2))
    with first, second:
        first.add(tiny_stores.record(0, metadata={"words": ["a", "b"]}))
        second.add(tiny_stores.record(1, metadata={"words": "c"}))
    with ng.open(path) as db:
        rows = db.sql("SELECT words FROM inputs ORDER BY key").fetchall()
        assert rows == [("[a, b]",), ("c",)]


@pytest.mark.parametrize(
    "value",
    [[1], ["a", None], ["a", ["b"]], [["a"]], np.array([1]), {"a": 1}, ["\ud800"], [b"a"]],
    ids=["int", "none", "ragged", "nested", "array", "mapping", "unicode", "bytes"],
)
def test_lists_of_something_else_are_refused(tmp_path, value):
    path = tiny_stores.make(tmp_path / "s.nrm")
    with pytest.raises(ng.InputError, match="'words'"):
        tiny_stores.write(path, [tiny_stores.record(0, metadata={"words": value})])


def _with_tokens(store, tmp_path, column):
    import shutil

    path = tmp_path / "lies.nrm"
    shutil.copytree(store, path)
    (file,) = (path / "shards").glob("*.inputs.parquet")
    table = pq.read_table(file)
    table = table.set_column(table.column_names.index("tokens"), "tokens", column)
    pq.write_table(table, file)
    (manifest,) = (path / "shards").glob("*.json")
    raw = json.loads(manifest.read_text())
    data = file.read_bytes()
    raw["files"]["inputs"] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    raw["seal"] = seal({k: v for k, v in raw.items() if k != "seal"})
    manifest.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a", None], ["b"], ["c"]]),
        pa.array([[1], [2], [3]]),
        pa.array(["a", "b", "c"]),
        pa.array([[["a"]], [["a"]], [["a"]]]),
    ],
    ids=["null", "numbers", "text", "nested"],
)
def test_lying_tokens_are_refused(store, tmp_path, column):
    with ng.open(_with_tokens(store, tmp_path, column)) as db:
        for ask in (db.measure, db.subgraph):
            with pytest.raises(ng.StoreError, match="are no texts"):
                ask("a")
        assert not db.verify(sample=0).sound


def test_tokens_of_another_length_are_not_shown(store, tmp_path):
    path = _with_tokens(store, tmp_path, pa.array([["a"], ["b"] * 99, []]))
    with ng.open(path) as db:
        for key in "abc":
            m = db.measure(key)
            assert all("token" not in data for _, data in m.subgraph().nodes(data=True))
            assert len(m.heatmap().images) == 1


@pytest.mark.parametrize("kind", ["list", "strings[]", 3, None, ["strings"]])
def test_unknown_types_of_metadata_are_refused(store, tmp_path, kind):
    import shutil

    path = tmp_path / "lies.nrm"
    shutil.copytree(store, path)
    (manifest,) = (path / "shards").glob("*.json")
    raw = json.loads(manifest.read_text())
    raw["metadata"]["tokens"] = kind
    manifest.write_text(json.dumps(raw))
    with pytest.raises(ng.StoreError, match=r"metadata\.tokens"):
        ng.open(path)
