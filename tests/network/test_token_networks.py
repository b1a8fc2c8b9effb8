"""Networks of token ids, masks and several outputs: measures, stores, the command line."""

import functools
import json
import math
import sys
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import inputs, main
from nrm_graph.events import parser
from nrm_graph.network.tracing.trace import trace


class Model(nn.Module):
    """One attention layer over token ids; a mask may hide some."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 4), nn.Embedding(6, 4)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 7, bias=False)

    def forward(self, ids, mask=None):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 2
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -math.inf)
        return self.head(self.norm(x + torch.softmax(scores, -1) @ self.v(x)))


class Pair(nn.Module):
    """Two tensors: logits by position, and scores."""

    def __init__(self):
        super().__init__()
        self.up, self.logits, self.scores = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 3)

    def forward(self, x):
        y = torch.relu(self.up(x))
        return {"logits": self.logits(y), "scores": self.scores(y.mean(1))}


def network(kind=Model):
    torch.manual_seed(0)
    return kind().eval()


@functools.cache
def program(output=None):
    """Traced networks: of ids and mask, of one or both outputs."""
    if output is None:
        return trace(network(), (IDS, MASK))
    x = torch.zeros(4, 3)
    return trace(network(Pair), x, list(output) if isinstance(output, tuple) else output)


IDS, MASK = torch.tensor([1, 5, 3, 10]), torch.tensor([1, 1, 0, 1])
WORDS = ["the", "cat", "[PAD]", "sat"]
OPTIONS = {"composite": "attn_lrp"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "s.nrm"
    rows = [
        {"input": (IDS, MASK), "key": "a", "tokens": WORDS},
        {"input": {"mask": MASK.flip(0), "ids": IDS.flip(0).int()}, "key": "b"},
    ]
    target = [(-1, "predicted"), (0, 3)]
    ng.extract(network(), rows, path, target=target, progress=False, **OPTIONS)
    return path


def test_measures_of_token_ids():
    m = ng.measure(network(), IDS, target=(-1, 4), tokens=WORDS, dtype="float64", **OPTIONS)
    assert [layer.kind for layer in m.topology.inputs] == ["embedding"]
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-9)
    names = {row["constant"] for row in m.constants().to_pylist()}
    assert {"wpe.weight", "v.bias"} <= names
    assert [t.get_text() for t in m.heatmap().texts[:8:2]] == WORDS
    masked = ng.measure(program(), {"ids": IDS[None], "mask": MASK[None]}, target=4, **OPTIONS)
    assert masked.network.program.integers == ("ids", "mask")
    hidden = masked.given(ng.Layer("attention")[:])
    np.testing.assert_allclose(hidden.marginal("v", by="token")[2], 0, atol=1e-6)


def test_types_of_token_ids():
    for ids in (IDS, IDS.int(), IDS.to(torch.uint8), IDS[None]):
        m = ng.measure(program(), (ids, MASK), target=4, dtype="float64", **OPTIONS)
        assert m.state.values["ids"].dtype == torch.int64
        assert m.start.dtype == torch.float64
    assert ng.measure(program(), (IDS, MASK), target=4, **OPTIONS).start.dtype == torch.float32
    with pytest.raises(ng.InputError, match=r"'ids' takes whole numbers.*found torch\.float32"):
        ng.measure(program(), (IDS.float(), MASK), target=4, **OPTIONS)
    with pytest.raises(ng.InputError, match="Long, Int"):
        ng.measure(network(), IDS.float(), target=4, **OPTIONS)
    for wrong in (torch.tensor([0, 1, 2, 11]), torch.tensor([0, 1, 2, -1])):
        with pytest.raises(ng.InputError, match="expected ids from 0 to 10"):
            ng.measure(program(), (wrong, MASK), target=4, **OPTIONS)


def test_a_store_of_token_ids(store):
    with ng.open(store) as db:
        assert db.meta["inputs"] == [
            {"name": "ids", "shape": [4], "dtype": "int64"},
            {"name": "mask", "shape": [4], "dtype": "int64"},
        ]
        (file,) = (store / "shards").glob("*.tensors.parquet")
        rows = pq.read_table(file).to_pylist()
        assert [(r["key"], r["name"], r["dtype"]) for r in rows] == [
            (key, name, "int64") for key in "ab" for name in ("ids", "mask")
        ]
        report = db.verify(sample=4)
        assert report.sound, report.findings
        m = db.measure("a", target=(0, 3))
        assert m.tokens == tuple(WORDS)
        same = db.measure("a", target=(0, 3), input={"ids": IDS, "mask": MASK})
        np.testing.assert_array_equal(m.marginal("wte"), same.marginal("wte"))
        direct = ng.measure(program(), (IDS, MASK), target=(0, 3), **OPTIONS)
        np.testing.assert_allclose(m.marginal("wte"), direct.marginal("wte"), atol=1e-5)
        with pytest.raises(ng.InputError, match="takes whole numbers"):
            db.measure("a", target=(0, 3), input=(IDS.float(), MASK))
        with pytest.raises(ng.InputError, match="is not the one that was explained"):
            db.measure("a", target=(0, 3), input=(MASK, MASK))
        db.materialize(ng.Layer("v")[0], name="v0", progress=False)


def test_ids_of_strangers_that_the_embedding_has_not(store, tmp_path):
    import hashlib
    import shutil

    import pyarrow as pa

    from nrm_graph.store.format.files import seal
    from nrm_graph.store.format.schema import NAMED_TENSORS, content_hash, content_of, input_id

    path = tmp_path / "lies.nrm"
    shutil.copytree(store, path)
    (file,) = (path / "shards").glob("*.tensors.parquet")
    rows = pq.read_table(file).to_pylist()
    ids = np.array([0, 1, 2, 1 << 40])
    rows[0] |= {"data": ids.tobytes(), "content": content_hash(ids)}
    pq.write_table(pa.Table.from_pylist(rows, NAMED_TENSORS), file)
    (manifest,) = (path / "shards").glob("*.json")
    raw = json.loads(manifest.read_text())
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    raw["files"]["tensors"] |= {"size": len(data), "sha256": digest}
    for entry in raw["inputs"]:
        if entry["key"] == "a":
            entry["content"] = content_of({"ids": ids, "mask": MASK.numpy()})
    raw["seal"] = seal({k: v for k, v in raw.items() if k != "seal"})
    manifest.write_text(json.dumps(raw))
    with ng.open(path) as db:
        assert input_id("a", 3) in db._snapshot.entries
        with pytest.raises(ng.StoreError, match="a token id is 1099511627776"):
            db.measure("a", target=(0, 3))
        assert not db.verify(sample=4).sound


# Several outputs


@pytest.mark.slow
def test_outputs_by_name(tmp_path):
    net, x = network(Pair), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ng.InputError, match="returns 2 tensors"):
        ng.measure(net, x, target=0, composite="epsilon")
    m = ng.measure(program("logits"), x, target=(-1, 1), composite="epsilon")
    assert (m.target, m.target_text()) == (7, "target (3, 1)")
    assert ng.measure(program("scores"), x, target=1).target_text() == "target 1"
    both = ["scores", "logits"]
    m = ng.measure(net, x, target=("logits", -1, 1), output=both, composite="epsilon")
    assert (m.target, m.target_text()) == (10, "target logits (3, 1)")
    assert m.logit == pytest.approx(net(x[None])["logits"][0, 3, 1].item(), rel=1e-5)
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ng.InputError, match="expected one of these names"):
        ng.measure(program(tuple(both)), x, target=(0, 1))
    with pytest.raises(ng.InputError, match="leave output= out"):
        ng.measure(program("scores"), x, target=0, output="scores")
    rows, targets = [{"input": x, "key": "a"}], [("scores", "predicted"), ("logits", 0, 1)]
    path = tmp_path / "s.nrm"
    with ng.extract(net, rows, path, target=targets, output=both, progress=False) as db:
        assert db.meta["outputs"] == [
            {"name": "scores", "shape": [3]},
            {"name": "logits", "shape": [4, 2]},
        ]
        assert db.measure("a", target=("logits", 0, 1)).target == 4
        assert db.verify().sound
        with pytest.raises(ng.InputError, match=r"has the targets scores \d, logits \(0, 1\)"):
            db.measure("a")
    with pytest.raises(ng.StoreError, match="another program"):
        ng.extract(net, rows, path, target=0, output="scores", progress=False)
    raw = json.loads((path / "store.json").read_text())
    raw["outputs"].reverse()
    raw.pop("seal")
    (path / "store.json").write_text(json.dumps(raw))
    with ng.open(path) as db, pytest.raises(ng.StoreError, match=r"outputs that .* lists"):
        db.measure("a", target=("logits", 0, 1))


# The command line


@pytest.fixture
def models(monkeypatch):
    module = types.ModuleType("token_models")
    module.ids, module.pair = network, lambda: network(Pair)
    monkeypatch.setitem(sys.modules, "token_models", module)


def test_arrays_by_name_feed_several_inputs(tmp_path, models, capsys):
    np.savez(
        tmp_path / "a.npz",
        ids=np.stack([IDS, IDS.flip(0)]).astype(np.int32),
        mask=np.ones((2, 4), np.int64),
        tokens=np.array([WORDS, WORDS[::-1]]),
        labels=np.array([3, 4]),
    )
    path = str(tmp_path / "s.nrm")
    argv = ["extract", "token_models:ids", str(tmp_path / "a.npz"), "--store", path, "--quiet"]
    assert main.main([*argv, "--composite", "attn_lrp", "--target", "-1:label,-1:predicted"]) == 0
    with ng.open(path) as db:
        assert db.meta["preprocessing"] == "floats as they stand in the file"
        assert len(db) in (3, 4)
        assert db.measure("a-00001", target=(-1, 4)).tokens == tuple(WORDS[::-1])
    ask = ["--input", "a-00000", "--target", "-1:3"]
    assert main.main(["relevance", path, "wte[0]", *ask]) == 0
    assert "(3, 3)" in capsys.readouterr().out
    np.savez(tmp_path / "b.npz", ids=np.ones((2, 4), int), other=np.ones((2, 4), int))
    assert main.main([*argv[:2], str(tmp_path / "b.npz"), *argv[3:4], path + "b"]) == 3
    assert "names the inputs ids, other, expected names of" in capsys.readouterr().err


def test_whole_numbers_feed_token_networks(tmp_path, models, capsys):
    np.save(tmp_path / "a.npy", np.stack([IDS, IDS.flip(0)]).astype(np.uint16))
    path = str(tmp_path / "s.nrm")
    argv = ["extract", "token_models:ids", str(tmp_path / "a.npy"), "--store", path, "--quiet"]
    assert main.main([*argv, "--composite", "attn_lrp", "--target=-1:2"]) == 0
    with ng.open(path) as db:
        assert db.meta["inputs"] == [{"name": "ids", "shape": [4], "dtype": "int64"}]
        assert db.measure("a-00000").target == 23
        assert db.verify().sound


@pytest.mark.slow
def test_outputs_on_the_command_line(tmp_path, models, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2, 4, 3)))
    argv = ["extract", "token_models:pair", str(tmp_path / "x.npy"), "--quiet", "--store"]
    assert main.main([*argv, str(tmp_path / "s.nrm")]) == 3
    assert "returns 2 tensors" in capsys.readouterr().err
    one = [*argv, str(tmp_path / "s.nrm"), "--output", "logits", "--target", "-1:1"]
    assert main.main(one) == 0
    both = [*argv, str(tmp_path / "b.nrm"), "--output", "scores,logits"]
    assert main.main([*both, "--target", "logits:-1:1,scores:2"]) == 0
    with ng.open(tmp_path / "b.nrm") as db:
        assert {t for (t,) in db.sql("SELECT target FROM inputs").fetchall()} == {2, 10}
    ask = ["relevance", str(tmp_path / "b.nrm"), "x[0]", "--input", "x-00001", "--target"]
    capsys.readouterr()
    assert main.main([*ask, "logits:3:1"]) == 0
    assert "logits (3, 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.ones((2, 4), int), "mask": np.ones((3, 4), int)}, "has 3 rows, another"),
        ({"ids": np.ones((2, 4), "M8[s]")}, "'ids' of .* holds datetime64"),
        ({"ids": np.int64(3)}, "first axis"),
        ({"ids": np.zeros((0, 4))}, "first axis"),
        ({"ids": np.ones((2, 4), int), "tokens": np.ones((2, 4))}, "tokens of type float64"),
        ({"ids": np.ones((2, 4), int), "tokens": np.array(["a", "b"])}, r"shape \(2,\)"),
        ({"ids": np.ones((2, 4), int), "tokens": np.array([["a"]])}, r"shape \(1, 1\)"),
        ({"ids": np.ones((2, 4), int), "labels": np.ones(3)}, "labels that do not match"),
        ({f"a{i}": np.ones(1) for i in range(101)}, "named like forward's arguments"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ng.InputError, match=message):
        inputs.load_inputs(tmp_path / "a.npz")


def test_numbers_beyond_64_bits_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 2), (1 << 64) - 1, np.uint64))
    with pytest.raises(ng.InputError, match="63 bits"):
        inputs.load_inputs(tmp_path / "a.npy")[0]


def test_what_a_network_takes_and_returns_is_shown(store, capsys):
    assert main.main(["info", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "ids (int64, 4), mask (int64, 4)" in shown
    assert "outputs (4x7)" in shown


def test_paths_of_tokens_and_heads(store, capsys):
    ask = ["paths", str(store), "--input", "a", "--target", "0:3", "--layers", "v,wte", "--k", "3"]
    assert main.main([*ask, "--by", "token", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    with ng.open(store) as db:
        m = db.measure("a", target=(0, 3))
        for row in rows:
            upper, lower = (parser.parse(text) for text in row["path"].split(" > "))
            assert m(upper & lower) == pytest.approx(row["relevance"], rel=1e-3)
            assert row["names"][1] == f"token {row['units'][1]} {WORDS[row['units'][1]]!r}"
    assert main.main([*ask, "--by", "head"]) == 0
