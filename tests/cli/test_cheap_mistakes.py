"""What is wrong whatever the network is, is found before one is loaded or traced."""

from __future__ import annotations

import os
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import main, models
from nrm_graph.extraction import extract
from nrm_graph.store.format.files import local_path

pytestmark = pytest.mark.usefixtures("remembered_traces")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RAW = os.fsdecode(b"no\xff")  # a name that is no UTF-8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    np.save(folder / "in.npy", np.random.default_rng(0).random((2, 4), np.float32))
    (folder / "text.txt").write_text("a\nb\n")
    (folder / "void.txt").touch()
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "x").touch()
    return folder


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    made = types.ModuleType("nrm_mistakes")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    made.net = lambda: net  # type: ignore[attr-defined]
    made.leaves = lambda: sys.exit(0)  # type: ignore[attr-defined]
    made.nothing = lambda: ()  # type: ignore[attr-defined]
    made.named = lambda: (net, 5)  # type: ignore[attr-defined]
    sys.modules[made.__name__] = made
    yield f"{made.__name__}:net"
    del sys.modules[made.__name__]


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def said(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str) -> None:
    assert main.main(argv) == code
    printed = capsys.readouterr()
    assert not printed.out
    if code != 2:
        assert printed.err.count("\n") == 1
    assert message in printed.err


OPTIONS = [
    (["--store", ""], 6, "the path of the store is empty"),
    (["--store", "text.txt"], 3, "text.txt is a file: expected a store or a new name"),
    (["--store", "text.txt/new"], 3, "text.txt is a file"),
    (["--store", "other"], 6, "exists and is no store (it holds x)"),
    (["--store", RAW], 6, r"the path 'no\udcff' of the store is no UTF-8"),
    (["--store", "x" * 300], 6, "File name too long"),
    (["--store", "~nobody_is_called_so/s"], 6, "there can be no store at"),
    (["--store", "a\0b"], 6, "there can be no store at"),
    (["--composite", "epsilom"], 4, "unknown composite 'epsilom'"),
    (["--device", "nonsense"], 3, "the device 'nonsense' cannot be used"),
    (["--resolution", "pixel"], 3, "unknown resolution 'pixel': expected one of neuron"),
    (["--resolution", "0=pixel"], 3, "unknown resolution 'pixel' for layer 0"),
    (["--resolution", "0=neuron, 0=feature"], 2, "a layer is named twice"),
    (["--coverage", "nan"], 3, "coverage must be above 0"),
    (["--top", "9" * 30], 3, "top must be at most"),
    (["--mantissa-bits", "23"], 3, "from 1 to 22"),
    (["--classes", "nothing"], 3, "cannot read the classes in 'nothing': No such file"),
    (["--classes", ""], 3, "cannot read the classes in ''"),
    (["--classes", "void.txt"], 3, "is empty: expected a name a line"),
    (["--classes", RAW], 3, r"cannot read the classes in 'no\udcff'"),
    (["--workers", "2"], 3, "--workers 2 goes with --engine ray"),
]


@pytest.mark.parametrize(("more", "code", "message"), OPTIONS)
def test_before_a_model_is_loaded(inside, model, capsys, monkeypatch, more, code, message):
    def never(spec: str) -> Any:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(models, "load_model", never)
    before = sorted(inside.iterdir())
    store = [] if "--store" in more else ["--store", "new.nrm"]
    said(capsys, ["extract", model, "in.npy", *store, *more], code, message)
    assert sorted(inside.iterdir()) == before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("", "INPUTS is empty"),
        ("nothing", "there is no file or folder 'nothing'"),
        (RAW, r"there is no file or folder 'no\udcff'"),
        ("text.txt", "cannot read inputs from text.txt"),
        ("empty", "holds no images"),
        ("/dev/null", "no plain file"),
    ],
)
def test_inputs_before_a_model_is_loaded(inside, model, capsys, monkeypatch, inputs, message):
    monkeypatch.setattr(models, "load_model", lambda spec: pytest.fail("it was loaded"))
    said(capsys, ["extract", model, inputs, "--store", "new.nrm"], 3, message)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "cannot tell what model"),
        ("m:", "cannot tell what model"),
        ("nothing.pt2", "there is no file 'nothing.pt2'"),
        ("empty.pt2", "is a folder"),
        (f"{RAW}.pt2", r"there is no file 'no\udcff.pt2'"),
        ("torchvision:resnet18@nothing.pt", "there is no file 'nothing.pt'"),
        ("torchvision:resnet18@empty", "empty is a folder: expected a file"),
        ("torchvision:resnet18@random:-1", "from 0 to 2**63 - 1, found '-1'"),
        ("torchvision:resnet18@random:" + "9" * 5000, "from 0 to 2**63 - 1"),
    ],
)
def test_what_model_names_is_looked_for_first(inside, spec, message, capsys):
    (inside / "empty.pt2").mkdir(exist_ok=True)
    with pytest.raises(ng.InputError) as error:
        models.check_model(spec)
    assert message in str(error.value)


def test_models_that_leave_or_give_something_else(inside, model, capsys):
    for name, message in (
        ("leaves", "SystemExit: 0"),
        ("nothing", "found nothing"),
        ("named", "found Sequential, int"),
    ):
        spec = model.replace("net", name)
        said(capsys, ["extract", spec, "in.npy", "--store", "new.nrm"], 3, message)
    (inside / "junk.pt2").write_bytes(b"junk")  # torch would log a traceback of its own
    said(capsys, ["extract", "junk.pt2", "in.npy", "--store", "new.nrm"], 3, "cannot load junk.pt2")
    (inside / "junk.pt").write_bytes(b"junk" * 9)
    argv = ["extract", "torchvision:resnet18@junk.pt", "in.npy", "--store", "new.nrm"]
    said(capsys, argv, 3, "it is damaged, or of another kind")


# The library


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"composite": "epsilom"}, ng.CompositeError, "unknown composite"),
        ({"composite": 3}, ng.CompositeError, "unknown composite"),
        ({"weights": "linked"}, ng.InputError, "weights must be 'copy' or 'named'"),
        ({"resolution": "pixel"}, ng.InputError, "unknown resolution 'pixel'"),
        ({"resolution": {"0": "pixel"}}, ng.InputError, "'pixel' for layer 0"),
        ({"resolution": 3}, ng.InputError, "resolution must be one of"),
        ({"coverage": float("nan")}, ng.InputError, "coverage"),
        ({"top": 1 << 70}, ng.InputError, "top must be at most"),
        ({"device": "nonsense"}, ng.InputError, "nonsense"),
        ({"path": ""}, ng.StoreError, "is empty"),
        ({"path": 3}, ng.StoreError, "found 3"),
        ({"path": "other"}, ng.StoreError, "is no store"),
        ({"path": "text.txt"}, ng.InputError, "is a file"),
        ({"path": RAW.encode("utf-8", "surrogateescape")}, ng.StoreError, "no UTF-8"),
        ({"preprocessing": RAW}, ng.InputError, "text in UTF-8"),
        ({"classes": "abc"}, ng.InputError, "a list of names"),
        ({"classes": [1, 2]}, ng.InputError, "a list of names"),
        ({"target": "nothing"}, ng.InputError, "target must be"),
        ({"batch_size": 0}, ng.InputError, "batch_size"),
        ({"tensors": "some"}, ng.InputError, "tensors must be"),
    ],
)
def test_extract_looks_before_it_traces(inside, model, monkeypatch, options, kind, message):
    monkeypatch.setattr(extract, "program_of", lambda *_: pytest.fail("it was traced"))
    monkeypatch.setattr(extract, "items", lambda *_: pytest.fail("inputs were read"))
    arguments = {"path": "new.nrm", "progress": False} | options
    with pytest.raises(kind, match=message):
        ng.extract(nn.Linear(4, 2), [torch.ones(4)], **arguments)
    assert not (inside / "new.nrm").exists()


def test_a_layer_is_named_once(inside, capsys):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ng.InputError, match="names the layer 0 twice, as '0' and as '1'"):
        ng.measure(net, torch.ones(1, 4), resolution={"0": "neuron", "1": "feature"})
    with pytest.raises(ng.EventError, match="no layer 'zz': the network has input, 0, 2"):
        ng.measure(net, torch.ones(1, 4), resolution={"zz": "neuron"})


def test_paths_of_stores(tmp_path, monkeypatch):
    assert local_path(bytes(tmp_path / "s")) == tmp_path / "s"
    for path in ("", b"", 3, None, RAW, "a\0b", "x" * 300, "~nobody_is_called_so/s"):
        with pytest.raises(ng.StoreError) as error:
            ng.open(path)
        assert "\n" not in str(error.value)
    (tmp_path / RAW).mkdir()
    monkeypatch.chdir(tmp_path / RAW)
    with pytest.raises(ng.StoreError, match="no UTF-8"):
        ng.open("s.nrm")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ng.StoreError, match=r"there can be no store at 's\.nrm'"):
        ng.open("s.nrm")


# Output


@pytest.fixture(scope="module")
def store(place: Path, model: str) -> str:
    argv = ["extract", model, str(place / "in.npy"), "--store", str(place / "s.nrm"), "--quiet"]
    assert main.main(argv) == 0
    return str(place / "s.nrm")


COMMANDS = {
    "info": ["info", "{}"],
    "sql": ["sql", "{}", "SELECT 1 AS a"],
    "relevance": ["relevance", "{}", "--input", "in-00000", "0[1]"],
    "paths": ["paths", "{}", "--input", "in-00000"],
    "contrast": ["contrast", "{}", "key = 'in-00000'", "key = 'in-00001'", "--mixed-targets"],
    "verify": ["verify", "{}", "--sample", "0"],
}
OUTPUTS = [
    ("t.foo", "cannot write a table to 't.foo': expected a name that ends in .csv, .json, .parq"),
    ("t", "expected a name that ends in .csv, .json, .parquet, .txt, or --format"),
    (".csv", "expected a name that ends in"),
    ("", "cannot write a table to ''"),
    ("empty", "expected a name that ends in"),
    ("none/t.csv", "there is no folder none"),
    ("text.txt/t.csv", "there is no folder text.txt"),
    ("x" * 300 + ".csv", "File name too long"),
    ("a\0.csv", "embedded null"),  # byte; Python 3.14: character in path
]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("output", "message"), OUTPUTS)
def test_output_is_looked_at_before_the_store(inside, capsys, name, output, message):
    argv = [part.format("no-such-store") for part in COMMANDS[name]]
    said(capsys, [*argv, "--output", output], 3, message)


@pytest.mark.parametrize("name", COMMANDS)
def test_output_in_the_format_that_is_named(inside, store, capsys, name):
    argv = [part.format(store) for part in COMMANDS[name]]
    for file, more, begins in (
        ("t.CSV", [], b'"'),
        (f"{RAW}.json", [], b"["),
        ("t.foo", ["--format", "json"], b"["),
        ("t", ["--format", "csv"], b'"'),
        ("t.parquet", [], b"PAR1"),
        ("t.txt", [], COLUMN[name]),
    ):
        assert main.main([*argv, "--output", file, *more]) == 0
        assert (inside / file).read_bytes().startswith(begins)
    assert "Traceback" not in capsys.readouterr().err


COLUMN = {
    "info": b"layer_id ",
    "sql": b"a\n-",
    "relevance": b"input ",
    "paths": b"rank ",
    "contrast": b"src ",
    "verify": b"severity ",
}


def test_other_files_are_looked_at_first(inside, capsys):
    ask = ["relevance", "no-such-store", "--input", "k", "0[1]", "--save-event"]
    for file, message in (
        ("", "it is a folder"),
        ("none/e.json", "no folder"),
        ("empty", "folder"),
    ):
        said(capsys, [*ask, file], 3, message)
    said(capsys, ["demo", "--store", "text.txt", "--picture", "p.png"], 3, "text.txt is a file")
    said(capsys, ["demo", "--store", "", "--picture", "p.png"], 6, "is empty")
    said(capsys, ["demo", "--store", "d", "--picture", ""], 3, "cannot write a graph to ''")


def test_what_a_format_cannot_hold(inside, store, capsys):
    for query, form, message in (
        ("SELECT INTERVAL 1 DAY AS a", "csv", "CAST them to VARCHAR in the query"),
        ("SELECT INTERVAL 1 DAY AS a", "parquet", "CAST them to VARCHAR in the query"),
        ("SELECT DATE '99999-01-01' AS a", "table", "CAST them to VARCHAR in the query"),
        ("SELECT 1 AS a, 2 AS a", "json", "two are named 'a'"),
    ):
        said(capsys, ["sql", store, query, "--format", form], 3, message)
        said(capsys, ["sql", store, query, "--format", form, "--output", "held"], 3, message)
        assert not (inside / "held").exists()


def test_targets_in_words(inside, store, capsys):
    ask = ["relevance", store, "--input", "in-00000", "0[1]", "--target"]
    said(capsys, [*ask, "0=1,0=2"], 3, "'0=1,0=2' names the output 0 twice")
    said(capsys, [*ask, "9" * 5000], 3, "99...': expected a number")
    said(capsys, ["sql", store, "SELECT " + "1+" * 5000 + "1"], 7, "nested too deeply")
