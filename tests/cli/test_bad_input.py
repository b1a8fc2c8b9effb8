"""What users get wrong: one clear line, the documented exit code, and a store left as it was.

Each mistake is classes_and_store in the library and on the command line, where both can make it.
"""

import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.class_images import (
    CLASSES,
    MODELS,
    MODULE,
    Net,
    extract,
    picture,
    said,
    transformer,
    truncated,
    unchanged,
)
from PIL import Image
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import inputs as sources
from nrm_graph.cli import main
from nrm_graph.events import parser

pytestmark = pytest.mark.usefixtures("class_models", "remembered_traces")


@pytest.fixture(scope="module")
def measure(classes_and_store):
    with ng.open(classes_and_store / "s.nrm") as db:
        return db.measure("cat/a.png")


def enormous(path):
    """Write a PNG whose header speaks of 10^10 pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b""))


def corrupt(path):
    picture(9, (64, 64)).save(path)
    data = bytearray(path.read_bytes())
    data[60:2000] = bytes(1940)
    path.write_bytes(data)


IMAGES = {
    "missing": (lambda p: p.symlink_to("nothing"), "No such file"),
    "loop": (lambda p: p.symlink_to(p.name), "symbolic link"),
    "empty": (lambda p: p.touch(), "the file is empty"),
    "text": (lambda p: p.write_text("no image"), "damaged, or no image"),
    "truncated": (truncated, "truncated"),
    "corrupt": (corrupt, "cannot read the image"),
    "enormous": (enormous, "10000000000 pixels"),
    "32 bits": (
        lambda p: Image.fromarray(np.ones((8, 8), np.int32)).save(p, format="TIFF"),
        "32 bits",
    ),
    "grey": (lambda p: picture(mode="L").save(p), "has shape (1, 8, 8), expected (3, 8, 8)"),
    "large": (lambda p: picture(size=(9, 8)).save(p), "has shape (3, 9, 8), expected (3, 8, 8)"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(place, capsys, name):
    make, message = IMAGES[name]
    bad = place / "photos" / "cat" / "b.png"
    make(bad)
    unchanged(place, capsys, extract(place), 3, message)
    with pytest.raises(ng.InputError) as caught:
        ng.extract(
            Net(),
            sources.load_inputs(place / "photos"),
            place / "s.nrm",
            classes=CLASSES,
            preprocessing=sources.PIXELS,
            progress=False,
        )
    assert message in str(caught.value)
    if name in ("empty", "truncated"):  # alone, as the first input
        said(capsys, ["extract", f"{MODULE}:net", bad, "--store", place / "new.nrm"], 3, "")
    assert not (place / "new.nrm").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none(place, capsys, value):
    rows = np.random.default_rng(0).random((3, 3, 8, 8))
    rows[1, 2, 3, 4] = value
    np.save(place / "a.npy", rows)
    argv = extract(place, "--preprocessing", sources.PIXELS, inputs="a.npy")
    unchanged(place, capsys, argv, 3, "'a-00001' holds NaN or infinity")
    with pytest.raises(ng.InputError, match="NaN or infinity"):
        ng.measure(Net(), torch.from_numpy(rows[1]).float())


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 8, 7), (2, 5)])
def test_arrays_of_another_shape(place, capsys, shape):
    np.save(place / "a.npy", np.ones(shape, np.float32))
    unchanged(
        place, capsys, extract(place, "--preprocessing", sources.PIXELS, inputs="a.npy"), 3, "shape"
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [("nothing", "no file or folder"), ("s.nrm/store.json", "expected a folder of images")],
)
def test_inputs_that_are_none(place, capsys, inputs, message):
    unchanged(place, capsys, extract(place, inputs=inputs), 3, message)
    with pytest.raises(ng.InputError, match=message):
        sources.load_inputs(place / inputs)


def test_no_inputs(place, capsys):
    (place / "empty").mkdir()
    unchanged(place, capsys, extract(place, inputs="empty"), 3, "no images")
    with pytest.raises(ng.InputError, match="no inputs"):
        ng.extract(Net(), [], place / "new.nrm", progress=False)
    assert not (place / "new.nrm").exists()


# --- networks, composites, targets ------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [("nan", "parameter conv.weight of Net holds NaN"), ("inf", "parameter head.bias of Net")],
)
def test_weights_that_are_no_numbers(place, capsys, model, message):
    unchanged(place, capsys, extract(place, model=model), 4, message)
    with pytest.raises(ng.TraceError, match=message):
        ng.measure(MODELS[model](), torch.rand(3, 8, 8))


def test_statistics_that_are_no_numbers_but_masks_may_be_infinite():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[1].running_var[2] = torch.inf
    with pytest.raises(ng.TraceError, match=r"buffer 1\.running_var"):
        ng.trace(net, torch.ones(3))
    net[1].running_var[2] = 1
    net.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
    ng.trace(net, torch.ones(3))


@pytest.mark.parametrize(
    ("more", "model", "code", "message"),
    [
        (["--composite", "gamma_epsilon"], "net", 4, "unknown composite 'gamma_epsilon'"),
        (["--composite", ""], "net", 4, "unknown composite ''"),
        (["--target", "3"], "net", 3, "target 3 is out of range: the network has 3 outputs"),
        (["--target", "predicted,-1"], "net", 3, "target -1 is out of range"),
        (["--target", "9" * 40], "net", 3, "out of range"),
        (["--resolution", "pixel"], "net", 3, "unknown resolution 'pixel'"),
        (["--resolution", "nothing=channel"], "net", 5, "there is no layer 'nothing'"),
        (["--device", "nonsense"], "net", 3, "the device 'nonsense' cannot be used"),
        (["--device", "meta"], "net", 3, "holds no data"),
        (["--coverage", "1.5"], "net", 3, "coverage must be above 0 and at most 1"),
        (["--coverage", "nan"], "net", 3, "coverage must be"),
        (["--mantissa-bits", "99"], "net", 3, "mantissa_bits"),
        (["--classes", "nothing.txt"], "net", 3, "cannot read the classes"),
    ],
)
def test_options(place, capsys, more, model, code, message):
    argv = extract(place, *more, model=model)
    if model == "net" and "--device" not in more:
        unchanged(place, capsys, argv, code, message)
    argv[4] = place / "new.nrm"
    said(capsys, argv, code, message)
    assert not (place / "new.nrm").exists()


def test_labels_without_a_class(place, capsys):
    argv = extract(place, "--target", "label", model="unnamed")
    argv[4] = place / "new.nrm"
    said(capsys, argv, 3, "the label 'cat' of input 'cat/a.png' is not a class name")
    assert not (place / "new.nrm").exists()
    (place / "names.txt").write_text("dog\n\ncat \ncow\n")
    named = [*argv, "--classes", place / "names.txt"]
    assert main.main([str(a) for a in named]) == 0
    with ng.open(place / "new.nrm") as db:
        found = dict(db.sql("SELECT label, target FROM inputs").fetchall())
    assert found == {"dog": 0, "cat": 1, "cow": 2}


def test_options_in_the_library(tmp_path):
    rows = [{"input": torch.rand(3, 8, 8), "key": "k", "label": "cat"}]
    for options, kind in (
        ({"composite": "nothing"}, ng.CompositeError),
        ({"target": 3}, ng.InputError),
        ({"target": "label"}, ng.InputError),
        ({"device": "nonsense"}, ng.InputError),
        ({"resolution": {"nothing": "channel"}}, ng.EventError),
    ):
        with pytest.raises(kind):
            ng.extract(Net(), rows, tmp_path / "s.nrm", progress=False, **options)
        assert not (tmp_path / "s.nrm").exists()


def test_a_composite_that_does_not_fit(place, capsys):
    message = "composite epsilon_gamma does not fit the network"
    argv = ["extract", f"{MODULE}:vit", place / "photos", "--store", place / "new.nrm", "--quiet"]
    said(capsys, [*argv, "--composite", "epsilon_gamma"], 4, message)
    assert not (place / "new.nrm").exists()
    unchanged(place, capsys, extract(place, model="vit"), 6, "another program")
    with pytest.raises(ng.CompositeError, match=message):
        ng.measure(transformer(), torch.rand(3, 8, 8))


# --- expressions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing[1]", "there is no layer 'nothing'"),
        ("conv[4]", "conv"),
        ("conv[-5]", "conv"),
        ("conv[99999999999999999999]", ""),
        ("conv[1, 2, 3, 4]", "conv"),
        ("conv.units([144])", "conv"),
        ("", "expected"),
        ("conv[1", "expected"),
        ("conv[1]]", ""),
        ("conv[1] & ", "expected"),
        ("__import__('os').system('touch executed')", ""),
        ("conv[__import__('os').getpid()]", ""),
        ("conv[(lambda: 1)()]", ""),
        ("conv[1:2:0]", ""),
        ("conv[0x1]", ""),
        ("conv[1e3]", ""),
        ("conv[\uff11]", ""),  # a full-width digit
        ("conv[\u0661]", ""),  # an Arabic digit
        ("c\u043env[1]", "there is no layer"),  # a Cyrillic o
        ("conv\u202e[1]", ""),  # right-to-left override
        ("conv\x00[1]", ""),
        ("conv\udcff[1]", ""),
        ("'conv\n\x1b[31m'[1]", "there is no layer"),
        ("(" * 5000 + "conv[1]" + ")" * 5000, ""),
        ("~" * 20_000 + "conv[1]", "at most 10000 characters"),
        ("conv[" + "[" * 3000 + "1" + "]" * 3000 + "]", ""),
        ("conv[1] & " * 20_000 + "conv[1]", "at most 10000 characters"),
        (" | ".join(f"conv[{i % 4}]" for i in range(900)), "more than 100 sets"),
    ],
)
def test_expressions(place, measure, tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    ask = ["relevance", place / "s.nrm", "--input", "cat/a.png"]
    unchanged(place, capsys, [*ask, text], 5, message)
    if text.startswith("conv"):
        unchanged(place, capsys, [*ask, "conv[1]", "--given", text], 5, message)
    with pytest.raises(ng.EventError):
        measure(parser.parse(text))
    assert not (tmp_path / "executed").exists()


def test_a_condition_below_rounding(place, capsys):
    ask = ["relevance", place / "s.nrm", "--input", "cat/a.png", "conv[1]"]
    unchanged(place, capsys, [*ask, "--given", "x[0, 0:0]"], 5, "below rounding")
    with pytest.raises(ng.UndefinedConditional), ng.open(place / "s.nrm") as db:
        db.measure("cat/a.png")(ng.Layer("conv")[1], given=ng.Layer("x")[0, 0:0])
