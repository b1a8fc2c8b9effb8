"""Stores that name their weights: exact answers with a file of them, everything else without."""

import copy
import json
import pickle
import shutil

import pytest
import safetensors.torch
import torch
from helpers import small
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.errors import WeightsNeeded
from nrm_graph.store.format import schema

ROWS = [{"input": x, "key": f"k{i}", "label": "b"} for i, x in enumerate(torch.randn(3, 3, 6, 6))]
A = ng.Layer("0")[1]


class Net(nn.Module):
    """A layer whose batch norm is folded into it, one that stands alone, a tied one, a constant."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.hidden.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        x = self.again(self.hidden(x).relu()).relu()
        return self.head(x) + torch.tensor([0.5, -0.25])


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = Net()
    made.norm.running_mean.uniform_(-1, 1)
    made.norm.running_var.uniform_(0.5, 2)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    """Two stores of one network, and the file of its weights."""
    folder = tmp_path_factory.mktemp("named")
    for weights in ("copy", "named"):
        ng.extract(net, ROWS, folder / f"{weights}.nrm", weights=weights, progress=False)
    safetensors.torch.save_model(net, folder / "net.safetensors")  # ties are saved once
    return folder


def exact(db):
    return db.measure("k1").marginal("conv").tolist()


@pytest.mark.smoke
def test_exact_answers_are_those_of_a_store_that_holds_its_weights(folder):
    whole = ng.open(folder / "copy.nrm")
    assert whole.meta["format_version"] == schema.FORMAT_VERSION
    with ng.open(folder / "named.nrm", weights=folder / "net.safetensors") as db:
        assert db.meta["format_version"] == schema.EXTENDED_VERSION
        assert exact(db) == exact(whole)
        assert db.program.hash() == whole.program.hash()
        assert db.verify().sound
        assert pickle.loads(pickle.dumps(db)).program.hash() == whole.program.hash()
    size = [(folder / f"{w}.nrm" / "weights.safetensors").stat().st_size for w in ("copy", "named")]
    assert size[1] < size[0]


def test_only_tensors_of_the_model_are_named(folder, net):
    """What was folded and constants are held; no path is in the store."""
    text = (folder / "named.nrm" / "store.json").read_text()
    named = json.loads(text)["named"]
    assert {row["name"] for row in named.values()} <= set(net.state_dict())
    assert {"hidden.bias", "again.weight", "again.bias", "head.weight"} <= set(named)
    held = safetensors.torch.load_file(folder / "named.nrm" / "weights.safetensors")
    assert not set(held) & set(named)
    assert set(held) | set(named) == set(ng.open(folder / "copy.nrm").program.weights)
    assert any("conv" in name for name in held)
    assert str(folder) not in text
    assert all(set(row) == {"name", "dtype", "shape", "sha256"} for row in named.values())


def test_without_the_file_everything_but_exact_answers_works(folder, capsys):
    with ng.open(folder / "named.nrm") as db, ng.open(folder / "copy.nrm") as whole:
        query = "SELECT * FROM edges ORDER BY ALL"
        assert db.sql(query).fetchall() == whole.sql(query).fetchall()
        assert len(db.circuit(top=5).edges) == 5
        message = r"names \d tensors of its network without .*weights=FILE.*--weights FILE"
        for ask in (lambda: db.measure("k1"), lambda: db.program, lambda: copy.copy(db).program):
            with pytest.raises(WeightsNeeded, match=message):
                ask()
        with pytest.raises(ng.InputError, match=message):
            db.materialize(ng.Layer("conv")[0], name="c", progress=False)
        assert not (db.path / "conditions").exists()
        report = db.verify()
        assert report.sound
        assert "store names its weights" in str(report.findings[0])
    argv = ["relevance", str(folder / "named.nrm"), "conv[1]", "--input", "k1"]
    assert main.main(argv) == 3
    assert "--weights FILE" in capsys.readouterr().err
    assert main.main(["info", argv[1]]) == 0
    assert "tensors are named, not held" in capsys.readouterr().out
    assert main.main([*argv, "--weights", str(folder / "net.safetensors")]) == 0
    argv = ["verify", str(folder / "named.nrm"), "--weights", str(folder / "net.safetensors")]
    assert main.main(argv) == 0


def test_tensors_are_known_by_their_content(folder, net, tmp_path):
    """Under other names, in several files, beside others, or as the model itself."""
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    renamed = {f"x{i}": tensor for i, tensor in enumerate(state.values())}
    halves = [dict(list(renamed.items())[i::2]) for i in (0, 1)]
    for i, half in enumerate(halves):
        safetensors.torch.save_file(half, tmp_path / f"{i}.safetensors")
    expected = exact(ng.open(folder / "copy.nrm"))
    for weights in (
        [tmp_path / "0.safetensors", str(tmp_path / "1.safetensors")],
        net.state_dict(),
        {"more": torch.zeros(3), "no tensor": 3, **state},
    ):
        assert exact(ng.open(folder / "named.nrm", weights=weights)) == expected


def test_a_model_that_is_trained_on_changes_nothing(net, tmp_path):
    """Tensors are copied when they are first needed, and compared."""
    mine = copy.deepcopy(net)
    first = ng.extract(mine, ROWS[:2], tmp_path / "s.nrm", weights="named", progress=False)
    second = ng.open(first.path, weights=mine.state_dict())
    before = exact(first)
    mine.head.weight += 1
    assert exact(first) == before
    first._network = first._program = None
    for db in (first, second):
        with pytest.raises(ng.InputError, match=r"tensor 'head.weight' .*pass the weights that"):
            db.measure("k1")
    with pytest.raises(WeightsNeeded):
        pickle.loads(pickle.dumps(second)).measure("k1")


def test_a_store_goes_on_as_it_names(folder, net, tmp_path):
    path = shutil.copytree(folder / "named.nrm", tmp_path / "s.nrm")
    row = {"input": ROWS[0]["input"] + 1, "key": "new"}
    with ng.open(path, weights=net.state_dict()) as opened:
        db = ng.extract(opened.program, [row], path, progress=False)
    assert "named" in db.meta
    assert db.measure("new").target is not None  # the program of the call is at hand
    with pytest.raises(ng.StoreError, match='weights: it has "named", asked for is "copy"'):
        ng.extract(db.program, [row], path, weights="copy", progress=False)
    for choice, program, message in (
        ("named", db.program, "give the model itself"),
        ("linked", db.program, "weights must be 'copy' or 'named'"),
    ):
        with pytest.raises(ng.InputError, match=message):
            ng.extract(program, [row], tmp_path / "new.nrm", weights=choice, progress=False)
    assert not (tmp_path / "new.nrm").exists()
    with pytest.raises(ng.InputError, match="holds the weights of its network itself"):
        ng.open(folder / "copy.nrm", weights=folder / "net.safetensors")


def test_half_precision_is_named_as_it_is_widened(tmp_path):
    mine = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    x = small.X[:2].bfloat16()
    db = ng.extract(mine, x.float(), tmp_path / "s.nrm", weights="named", progress=False)
    assert len(db.meta["named"]) == 4
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(mine.state_dict(), file)
    for weights in (file, mine.state_dict()):
        again = ng.open(db.path, weights=weights)
        assert again.program.hash() == db.meta["program_hash"]


def other(net, path):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["head.weight"][0, 0] += 1
    safetensors.torch.save_file(state, path)


def turned(net, path):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["head.weight"] = state["head.weight"].T.contiguous()
    safetensors.torch.save_file(state, path)


def missing(net, path):
    state = {n: t.clone() for n, t in net.state_dict().items() if n != "head.weight"}
    safetensors.torch.save_file(state, path)


def truncated(net, path):
    safetensors.torch.save_model(net, path)
    path.write_bytes(path.read_bytes()[:-8])


def header(size):
    def write(net, path):
        path.write_bytes(size.to_bytes(8, "little") + b'{"a":' + bytes(100))

    return write


def overlapping(net, path):
    text = b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,9999999999]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))


def link(net, path):
    safetensors.torch.save_model(net, path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def pickled(net, path):
    torch.save(net.state_dict(), path)


HOSTILE = {
    "other": (
        other,
        r"the tensor 'head.weight' .* was F32 \(2, 4\) with .*holds F32 \(2, 4\) with",
    ),
    "turned": (turned, r"the tensor 'head.weight' .*holds F32 \(4, 2\) under this name"),
    "missing": (missing, "the tensor 'head.weight' .*no tensor of this name was given"),
    "truncated": (truncated, "cannot be read"),
    "huge header": (header(1 << 60), "is no safetensors file: expected a header"),
    "header beyond the file": (header(1 << 20), "is no safetensors file"),
    "header that is none": (header(50), "cannot be read"),
    "offsets beyond the file": (overlapping, "cannot be read"),
    "link": (link, "is a symbolic link: give the file itself"),
    "pickle": (pickled, "is no safetensors file"),
    "folder": (lambda net, path: path.mkdir(), "is no plain file"),
    "nothing": (lambda net, path: None, "there is no file of weights"),
    "empty": (lambda net, path: path.write_bytes(b""), "is no safetensors file"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_files_that_are_not_the_weights_are_refused(what, folder, net, tmp_path):
    make, message = HOSTILE[what]
    make(net, tmp_path / "w.safetensors")
    with pytest.raises(ng.InputError, match=message):
        ng.open(folder / "named.nrm", weights=tmp_path / "w.safetensors").measure("k1")


def test_what_is_no_file_is_refused(folder):
    for weights in ("a\0b", "~nobody_is_called_so/w", "", "x" * 300):
        with pytest.raises(ng.InputError, match=r"no file of weights|is no plain file"):
            ng.open(folder / "named.nrm", weights=weights)
    for weights in (3, [3], [None]):
        with pytest.raises(ng.InputError, match="weights must be a file"):
            ng.open(folder / "named.nrm", weights=weights)


def test_a_store_that_names_what_it_was_not_made_with_is_refused(folder, net, tmp_path):
    """Whoever changes what is named is caught by the hash of the program."""
    path = shutil.copytree(folder / "named.nrm", tmp_path / "s.nrm")
    settings = json.loads((path / "store.json").read_text())
    rows = settings["named"]
    rows["hidden.bias"], rows["again.bias"] = rows["again.bias"], rows["hidden.bias"]
    (path / "store.json").write_text(json.dumps(settings))
    with pytest.raises(ng.StoreError, match="not the one it was made with"):
        ng.open(path, weights=net.state_dict()).measure("k1")
    del rows["head.weight"]
    (path / "store.json").write_text(json.dumps(settings))
    with pytest.raises(ng.StoreError, match=r"lacks the tensor 'head\.weight'"):
        ng.open(path, weights=net.state_dict()).measure("k1")
