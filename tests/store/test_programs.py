"""Programs in place of models: traced once, saved, read without trust, and those of stores."""

import json
import shutil

import pytest
import safetensors.numpy
import torch
from helpers import small
from torch import nn

import nrm_graph as ng
from nrm_graph.extraction.extract import extract
from nrm_graph.network.tracing import trace_as_given

ROWS = [{"input": x, "key": f"k{i}"} for i, x in enumerate(small.X)]
OPTIONS = {"composite": "epsilon", "progress": False}


@pytest.fixture
def untraced(monkeypatch):
    """Nothing is traced."""
    monkeypatch.setattr(trace_as_given, "trace", None)


def stored(db):
    return db.sql("SELECT * FROM edges ORDER BY ALL").fetchall()


@pytest.mark.smoke
def test_a_program_stands_for_its_model(tmp_path, untraced):
    """The same store, and the same measure, as of the model itself."""
    program = small.program()
    by_model = small.extract(tmp_path / "model.nrm", ROWS[:3])
    by_program = ng.extract(program, ROWS[:3], tmp_path / "program.nrm", **OPTIONS)
    assert stored(by_program) == stored(by_model)
    assert by_program.meta["program_hash"] == by_model.meta["program_hash"]
    A = ng.Layer("0")[:3]
    for x in (small.X[0], small.X[:1]):
        m = ng.measure(program, x, composite="epsilon")
        assert m(A) == by_model.measure("k0")(A)


def test_a_program_is_given_an_input_of_its_own(tmp_path, untraced):
    program = small.program()
    with pytest.raises(ng.InputError, match=r"shape \(7,\), expected \(8,\)"):
        ng.extract(program, torch.ones(2, 7), tmp_path / "s.nrm", **OPTIONS)
    with pytest.raises(ng.InputError, match=r"names the inputs y, expected input"):
        ng.extract(program, [{"input": {"y": small.X[0]}}], tmp_path / "s.nrm", **OPTIONS)
    for call in (
        lambda: ng.extract(program, ROWS, tmp_path / "s.nrm", output=0, **OPTIONS),
        lambda: ng.measure(program, small.X[0], output=0),
    ):
        with pytest.raises(ng.InputError, match="leave output= out"):
            call()
    assert not (tmp_path / "s.nrm").exists()


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids, mask):
        return self.head((self.table(ids) * mask[..., None]).sum(1))


def test_masks_and_ids_of_a_program_are_known_by_the_input(tmp_path):
    """As with the model: the inputs' types stand in the store, and 0 and 1 are a mask later."""
    torch.manual_seed(0)
    ids, mask = torch.tensor([[1, 5, 2], [3, 3, 8]]), torch.tensor([[1, 1, 0], [1, 0, 1]]).bool()
    rows = [
        {"input": (i, m), "key": f"k{n}"} for n, (i, m) in enumerate(zip(ids, mask, strict=True))
    ]
    program = ng.trace(Masked(), (ids[:1], mask[:1]))
    db = ng.extract(program, rows[:1], tmp_path / "s.nrm", composite="attn_lrp", progress=False)
    assert [row["dtype"] for row in db.meta["inputs"]] == ["int64", "bool"]
    later = [{"input": (ids[1], mask[1].long()), "key": "k1"}]
    db = ng.extract(db.program, later, db.path, progress=False)
    m, A = ng.measure(program, rows[1]["input"], composite="attn_lrp"), ng.Layer("table")[0]
    assert float(m(A)) == float(db.measure("k1")(A))


def test_a_store_goes_on_with_its_own_program(tmp_path, untraced):
    db = small.extract(tmp_path / "s.nrm", ROWS[:2])
    assert db.program is db.program
    assert db.program.hash() == small.program().hash()
    more = ng.extract(db.program, ROWS[2:4], db.path, progress=False)
    whole = small.extract(tmp_path / "whole.nrm", ROWS[:4])
    assert stored(more) == stored(whole)
    assert len(db) == 2
    copy = shutil.copytree(db.path, tmp_path / "copy.nrm")
    with ng.open(copy) as opened:
        weights = copy / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with pytest.raises(ng.StoreError, match="not the one it was made with"):
            opened.program  # noqa: B018 - it is read when it is asked for


@pytest.mark.smoke
def test_a_saved_program_is_the_one_that_was_saved(tmp_path, untraced):
    program = small.program()
    ng.save_program(program, tmp_path / "p")
    ng.save_program(program, tmp_path / "p")  # the same once more is no harm
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == [
        "program.json",
        "weights.safetensors",
    ]
    again = ng.load_program(str(tmp_path / "p"))
    assert again.hash() == program.hash()
    assert again.to_json() == program.to_json()
    m, n = (ng.measure(p, small.X[0], composite="epsilon") for p in (program, again))
    assert (m.marginal("0") == n.marginal("0")).all()


def test_what_is_saved_is_not_overwritten(tmp_path):
    ng.save_program(small.program(), tmp_path / "p")
    other = ng.trace(nn.Linear(8, 2), small.X[:1])
    with pytest.raises(ng.StoreError, match="of another program: choose a new folder"):
        ng.save_program(other, tmp_path / "p")
    assert ng.load_program(tmp_path / "p").hash() == small.program().hash()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ng.StoreError, match="cannot save a program at"):
        ng.save_program(other, tmp_path / "file")
    with pytest.raises(ng.InputError, match=r"expected a program of ng\.trace"):
        ng.save_program(small.NET, tmp_path / "q")


def edited(path, change):
    graph = json.loads((path / "program.json").read_text())
    change(graph)
    (path / "program.json").write_text(json.dumps(graph))


def reweighted(path, change):
    tensors = safetensors.numpy.load_file(path / "weights.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, path / "weights.safetensors")


def evil(path):
    """Without the hash, as who wrote it may have."""
    edited(path, lambda graph: graph["nodes"][0].update(op="builtins.eval"))
    reweighted(path, lambda tensors: None)


def shortened(path):
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def huge(path):
    file = path / "weights.safetensors"
    file.write_bytes((1 << 60).to_bytes(8, "little") + file.read_bytes()[8:])


def linked(path):
    file = path / "weights.safetensors"
    file.rename(path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")


def flipped(path):
    file = path / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


HOSTILE = {
    "operation": (evil, "operations that are not allowed: builtins.eval"),
    "argument": (
        lambda path: edited(path, lambda g: g["nodes"][1]["args"].append(3)),
        "not the one that was saved",
    ),
    "no program": (lambda path: (path / "program.json").write_text("[]"), "not a program"),
    "no text": (lambda path: (path / "program.json").write_bytes(b"\xff"), "cannot be read"),
    "weight": (
        lambda path: reweighted(path, lambda t: t.pop("2.weight")),
        "lacks the tensor '2.weight'",
    ),
    "shape": (
        lambda path: reweighted(path, lambda t: t.update({"2.weight": t["0.weight"]})),
        "cannot be executed",
    ),
    "truncated": (shortened, "cannot be read"),
    "header": (huge, "is no safetensors file"),
    "link": (linked, "symbolic link"),
    "bit": (flipped, "not the one that was saved"),
    "nothing": (lambda path: (path / "program.json").unlink(), "there is no program at"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_stranger_s_program_is_refused(what, tmp_path):
    path = tmp_path / "p"
    ng.save_program(small.program(), path)
    change, message = HOSTILE[what]
    change(path)
    with pytest.raises(ng.StoreError, match=message):
        ng.load_program(path)


def test_of_a_store_the_program_is_asked_for(tmp_path):
    db = small.extract(tmp_path / "s.nrm", ROWS[:1])
    with pytest.raises(ng.StoreError, match=r"is a store: ng.open\(path\).program"):
        ng.load_program(db.path)


def test_help_says_what_none_is():
    assert "as the store was made, else ``epsilon_gamma``" in extract.__doc__
