"""Networks of several inputs: measures, extraction, what a store keeps, what it refuses."""

import functools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import tiny_stores
from torch import nn

import nrm_graph as ng
from nrm_graph.extraction import batches
from nrm_graph.extraction.samples import items
from nrm_graph.network.ir import input_spec
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation import prepared_network
from nrm_graph.propagation.forward import forward
from nrm_graph.rules.composites import get
from nrm_graph.store.format import settings
from nrm_graph.store.format.schema import content_hash, content_of
from nrm_graph.store.read.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("remembered_traces")


class Two(nn.Module):
    """Two branches of different shapes that are added."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, left, right):
        return self.head(torch.relu(self.a(left)) + torch.relu(self.b(right)))


def network():
    torch.manual_seed(0)
    return Two().eval()


@functools.cache
def program():
    return trace(network(), pair())


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, generator=generator), torch.randn(2, generator=generator)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "s.nrm"
    rows = [{"input": pair(i), "key": f"k{i}", "n": i} for i in range(3)]
    rows[1]["input"] = dict(zip(("right", "left"), pair(1)[::-1], strict=True))
    ng.extract(network(), rows, path, target=1, composite="epsilon", progress=False)
    return path


@pytest.mark.smoke
def test_every_cut_sums_to_one():
    m = ng.measure(program(), pair(), target=1, composite="epsilon", dtype="float64")
    assert [layer.name for layer in m.topology.inputs] == ["left", "right"]
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-12)
    assert set(m.cut("left").bypass) == {"right"}
    event = ng.Layer("left")[1]
    assert m(event) + m(~event) == pytest.approx(1, abs=1e-12)
    assert m(ng.Layer("left")[:] & ng.Layer("right")[:]) == 0


def test_inputs_by_order_and_by_name_are_the_same():
    left, right = pair()
    found = [
        ng.measure(network(), x, target=1, composite="epsilon").marginal("right")
        for x in (
            (left, right),
            [left[None], right[None]],
            {"right": right, "left": left},
        )
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    again = ng.measure(
        program(), {"right": right[None], "left": left}, target=1, composite="epsilon"
    )
    np.testing.assert_allclose(again.marginal("right"), found[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((torch.zeros(3),), "does not accept"),
        ({"left": torch.zeros(3), "rihgt": torch.zeros(2)}, r"left, rihgt.*left, right"),
        ((torch.zeros(3), [1.0, 2.0]), "tuple or mapping of tensors.*found list"),
        ((torch.zeros(3), torch.full((2,), torch.nan)), "right holds NaN"),
        ({}, "names the inputs none"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, message):
    with pytest.raises(ng.InputError, match=message):
        ng.measure(network(), x, target=1, composite="epsilon")


def test_a_program_says_which_inputs_it_takes():
    for x, message in (
        (torch.zeros(3), "1 tensor, expected 2: the network takes left, right"),
        ({"left": torch.zeros(3)}, "names the inputs left, expected left, right"),
        ((torch.zeros(3), torch.zeros(4)), r"input right of shape \(2,\), found \(4,\)"),
        ((torch.zeros(5, 3), torch.zeros(2)), "a batch of 5"),
    ):
        with pytest.raises(ng.InputError, match=message):
            ng.measure(program(), x, target=1)
    net = prepared_network.network(program(), get("epsilon"))
    with pytest.raises(ng.InputError, match="as many samples in every input"):
        forward(net, (torch.zeros(2, 3), torch.zeros(1, 2)))


@pytest.mark.smoke
def test_a_store_gives_all_inputs_back(store):
    with ng.open(store) as db:
        assert [row["name"] for row in db.meta["inputs"]] == ["left", "right"]
        for i in range(3):
            m = db.measure(f"k{i}")
            direct = ng.measure(program(), pair(i), target=1, composite="epsilon")
            np.testing.assert_allclose(m.marginal("left"), direct.marginal("left"), atol=1e-6)
            sums = db.sql(
                "SELECT sum(relevance) FROM nodes JOIN layers USING (layer_id) "
                f"WHERE input_id = {db._matching(f'k{i}')[0]} AND (kind = 'input' OR unit < 0)"
            ).fetchall()
            assert sums[0][0] == pytest.approx(1, abs=1e-5)
            given = db.measure(f"k{i}", input=pair(i))
            np.testing.assert_array_equal(given.marginal("left"), m.marginal("left"))
        with pytest.raises(ng.InputError, match="is not the one that was explained as 'k0'"):
            db.measure("k0", input=pair(1))
        with pytest.raises(ng.InputError, match="input holds 1 tensor, expected 2"):
            db.measure("k0", input=pair()[0])
        report = db.verify(sample=3)
        assert report.sound, report.findings
        assert not report.notes
        m = db.measure("k0")
        assert m.heatmap().get_title() == "relevance of left, target 1"
        assert "of the whole is in other inputs" in m.heatmap(layer="right").get_xlabel()


def test_without_tensors_the_inputs_must_be_given(tmp_path):
    rows = [{"input": pair(), "key": "k"}]
    path = tmp_path / "s.nrm"
    options = {"target": 1, "composite": "epsilon", "tensors": "omit", "progress": False}
    with ng.extract(network(), rows, path, **options) as db:
        with pytest.raises(ng.InputError, match="no tensor"):
            db.measure("k")
        assert db.measure("k", input=[x.double() for x in pair()]).target == 1
        assert db.verify().sound


def test_the_same_inputs_are_not_computed_twice(store, monkeypatch):
    monkeypatch.setattr(batches, "forward", None)
    rows = [{"input": pair(i), "key": f"k{i}"} for i in range(3)]
    with ng.extract(network(), rows, store, target=1, composite="epsilon", progress=False) as db:
        assert len(db) == 3
    rows[0]["input"] = (pair(0)[0], pair(1)[1])
    with pytest.raises(ng.StoreError, match="another content"):
        ng.extract(network(), rows, store, target=1, composite="epsilon", progress=False)


def test_a_data_loader_collates_several_inputs(tmp_path):
    rows = [{"input": pair(i), "key": f"k{i}"} for i in range(3)]
    loader = torch.utils.data.DataLoader(rows, batch_size=3)
    found = [item for _, item in items(loader)]
    assert [item["key"] for item in found] == ["k0", "k1", "k2"]
    for i, item in enumerate(found):
        for got, expected in zip(item["input"], pair(i), strict=True):
            torch.testing.assert_close(got, expected)
    named = [{"input": dict(zip("ab", pair(i), strict=True)), "tokens": ["x", "y"]} for i in (0, 1)]
    found = [i for _, i in items(torch.utils.data.DataLoader(named, batch_size=2))]
    torch.testing.assert_close(found[1]["input"]["b"], pair(1)[1])
    assert found[0]["tokens"] == ["x", "y"]
    for size in (2, 3):  # as many as there are inputs, or more
        labelled = [(pair(i), i) for i in range(size)]
        found = [i for _, i in items(torch.utils.data.DataLoader(labelled, batch_size=size))]
        assert [int(item["label"]) for item in found] == list(range(size))
        torch.testing.assert_close(found[1]["input"][1], pair(1)[1])
    pairs = [(torch.zeros(3), 5), (torch.ones(3), 6)]  # a collate function of one's own
    own = torch.utils.data.DataLoader(
        pairs, batch_size=2, collate_fn=lambda b: list(zip(*b, strict=True))
    )
    assert [item["label"] for _, item in items(own)] == [5, 6]


def test_wrong_shapes_of_one_of_several_inputs_name_it(tmp_path):
    rows = [{"input": pair(0), "key": "a"}, {"input": (torch.zeros(3), torch.zeros(5)), "key": "b"}]
    with pytest.raises(ng.InputError, match=r"'right' of input 'b' has shape \(5,\), expected"):
        ng.extract(network(), rows, tmp_path / "s.nrm", composite="epsilon", progress=False)


def test_contents_of_one_tensor_are_those_of_before():
    x = np.arange(3, dtype=np.float32)
    assert content_of({"x": x}) == content_hash(x)
    both = {content_of({"a": x, "b": x}), content_of({"b": x, "a": x}), content_of({"a": x})}
    assert len(both) == 3


# Stores that lie


def _tensors(store):
    (path,) = (store / "shards").glob("*.tensors.parquet")
    return path


def _changed(store, tmp_path, change):
    """A copy whose tensors were changed, under the right sizes and checksums."""
    import hashlib
    import shutil

    from nrm_graph.store.format.files import seal

    path = tmp_path / "lies.nrm"
    shutil.copytree(store, path)
    file = _tensors(path)
    rows = pq.read_table(file).to_pylist()
    table = change(rows)
    pq.write_table(table, file)
    (manifest,) = (path / "shards").glob("*.json")
    raw = json.loads(manifest.read_text())
    data = file.read_bytes()
    raw["files"]["tensors"] |= {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "rows": table.num_rows,
    }
    raw["seal"] = seal({k: v for k, v in raw.items() if k != "seal"})
    manifest.write_text(json.dumps(raw))
    return path


def _table(rows, schema=None):
    import pyarrow as pa

    from nrm_graph.store.format.schema import NAMED_TENSORS

    return pa.Table.from_pylist(rows, schema or NAMED_TENSORS)


def _renamed(rows):
    rows[0]["name"] = "lef"
    return _table(rows)


def _swapped(rows):
    rows[0], rows[1] = rows[1], rows[0]
    return _table(rows)


def _unnamed(rows):
    import pyarrow as pa

    from nrm_graph.store.format.schema import TENSORS

    return pa.Table.from_pylist([{n: r[n] for n in TENSORS.names} for r in rows], TENSORS)


def _integers(rows):
    x = np.zeros(3, np.int64)
    rows[0] |= {"dtype": "int64", "data": x.tobytes(), "content": content_hash(x)}
    return _table(rows)


def _reshaped(rows):
    rows[0]["shape"] = [1 << 40]
    return _table(rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: _table(rows[1:]),
        lambda rows: _table([rows[0], *rows]),
        _renamed,
        _swapped,
        _unnamed,
        _integers,
        _reshaped,
        lambda rows: _table(rows * 400),
    ],
    ids=["missing", "twice", "name", "order", "no_names", "integers", "shape", "many"],
)
def test_lying_tensors_are_refused(store, tmp_path, change):
    path = _changed(store, tmp_path, change)
    with ng.open(path) as db:
        with pytest.raises(ng.StoreError):
            db.measure("k0")
        assert not db.verify(sample=1).sound


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        {},
        [{"name": "x", "shape": [3]}],
        [{"name": "x", "shape": [3], "dtype": "object"}],
        [{"name": "", "shape": [3], "dtype": "float"}],
        [{"name": "x", "shape": [-3], "dtype": "float"}],
        [{"name": "x", "shape": "3", "dtype": "float"}],
        [{"name": "x", "shape": [3], "dtype": ["float"]}],
        [{"name": "x", "shape": [3], "dtype": "float"}] * 2,
        [{"name": f"x{i}", "shape": [], "dtype": "float"} for i in range(1001)],
    ],
)
def test_malformed_lists_of_inputs_are_refused(tmp_path, inputs):
    with pytest.raises(ng.InputError, match="inputs"):
        tiny_stores.make(tmp_path / "s.nrm", inputs=inputs)


def test_a_list_of_inputs_that_the_program_has_not(store, tmp_path):
    import shutil

    from nrm_graph.store.format.files import seal

    path = tmp_path / "lies.nrm"
    shutil.copytree(store, path)
    raw = json.loads((path / "store.json").read_text())
    raw["inputs"][1]["name"] = "wrong"
    raw["seal"] = seal({k: v for k, v in raw.items() if k != "seal"})
    (path / "store.json").write_text(json.dumps(raw))
    x = dict(zip(("left", "wrong"), pair(), strict=True))
    with ng.open(path) as db:
        with pytest.raises(ng.StoreError):
            db.measure("k0")
        with pytest.raises(ng.NrmError):
            db.measure("k0", input=x)


def test_stores_of_one_input_say_nothing_of_inputs(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with ng.extract(net, [torch.ones(3)], tmp_path / "s.nrm", progress=False) as db:
        assert "inputs" not in db.meta
        assert settings.inputs_of(db.meta) == [{"name": "input", "shape": [3], "dtype": "float"}]
        assert pq.read_schema(_tensors(tmp_path / "s.nrm")).names == [
            "key",
            "content",
            "dtype",
            "shape",
            "data",
        ]
        assert list(Snapshot(tmp_path / "s.nrm").tensors(next(iter(db._snapshot.entries)))) == [""]


# Whole numbers


def test_whole_numbers_keep_their_type():
    spec = input_spec.InputSpec(("ids", "x"), ((3,), (2,)), ("int64", "float"))
    ids, x = spec.samples(
        (torch.tensor([1, 2, 3], dtype=torch.int32), torch.ones(2)), torch.float64
    )
    assert (ids.dtype, x.dtype) == (torch.int64, torch.float64)
    assert spec.samples((ids, torch.tensor([1, 2])), torch.float32)[1].dtype == torch.float32
    with pytest.raises(ng.InputError, match=r"'ids' takes whole numbers.*found torch.float32"):
        spec.samples((torch.ones(3), torch.ones(2)), torch.float32)
    masks = input_spec.InputSpec(("mask",), ((3,),), ("bool",))
    assert masks.samples(torch.tensor([0, 1, 1]), torch.float32)[0].dtype == torch.bool
    with pytest.raises(ng.InputError, match="0 and 1"):
        masks.samples(torch.tensor([0, 1, 2]), torch.float32)
    assert not spec.plain
    assert not masks.plain


def test_a_network_says_by_itself_what_it_takes():
    ids, pixels, x = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.uint8), torch.ones(2)
    kinds = [[t.dtype for t in found] for found in input_spec.candidates((ids,), torch.empty(0))]
    assert kinds == [[torch.float32], [torch.int64]]
    kinds = [[t.dtype for t in f] for f in input_spec.candidates((ids, pixels, x), torch.empty(0))]
    assert kinds[0] == [torch.int64, torch.float32, torch.float32]
    assert kinds[1] == [torch.float32] * 3
    assert len(list(input_spec.candidates((x, x), torch.empty(0)))) == 1
