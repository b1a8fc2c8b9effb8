"""What users get wrong: one clear line, the documented exit code, and a store left as it was.

Each mistake is made in the library and on the command line, where both can make it.
"""

import errno
import shutil
import struct
import subprocess
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from helpers.tiny_stores import checksums
from PIL import Image
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import inputs as sources
from nrm_graph.cli import main
from nrm_graph.events import parser
from nrm_graph.measures import create

MODULE = "nrm_bad_models"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(144, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def broken(path, value):
    net = Net()
    with torch.no_grad():
        net.get_parameter(path).view(-1)[1] = value
    return net


def transformer():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3)


CLASSES = ("cat", "dog", "cow")
MODELS = {
    "net": lambda: (Net(), None, CLASSES),
    "unnamed": Net,
    "nan": lambda: broken("conv.weight", torch.nan),
    "inf": lambda: broken("head.bias", torch.inf),
    "vit": transformer,
    "other": lambda: (broken("head.bias", 3.0), None, CLASSES),
}


@pytest.fixture(autouse=True, scope="module")
def _trace_once():
    """Remember traces: half a second each, and most mistakes have nothing to do with them."""
    plain, known = create.trace, {}

    def trace(model, example, output=None):
        shape = tuple(example.shape) if isinstance(example, torch.Tensor) else id(example)
        key = (
            type(model),
            *(p.detach().sum().item() for p in model.parameters()),
            (shape, getattr(example, "dtype", None), output),
        )
        if key not in known:  # NaN is never known
            known[key] = plain(model, example, output)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(create, "trace", trace)
        yield


@pytest.fixture(autouse=True, scope="module")
def _models():
    module = types.ModuleType(MODULE)
    for name, make in MODELS.items():
        setattr(module, name, make)
    sys.modules[MODULE] = module
    yield
    del sys.modules[MODULE]


def picture(seed=0, size=(8, 8), mode="RGB"):
    channels = len(mode) if mode != "L" else 1
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
    return Image.fromarray(values[:, :, 0] if mode == "L" else values, mode=None)


@pytest.fixture(scope="module")
def made(tmp_path_factory, _models):
    """Images in folders by label, and their store."""
    folder = tmp_path_factory.mktemp("bad")
    for i, label in enumerate(CLASSES):
        (folder / "photos" / label).mkdir(parents=True)
        picture(i).save(folder / "photos" / label / "a.png")
    argv = ["extract", f"{MODULE}:net", str(folder / "photos"), "--store", str(folder / "s.nrm")]
    assert main.main([*argv, "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def measure(made):
    with ng.open(made / "s.nrm") as db:
        return db.measure("cat/a.png")


@pytest.fixture
def place(made, tmp_path):
    return shutil.copytree(made, tmp_path / "w")


def said(capsys, argv, code, message):
    """Run a command that must fail; its one line."""
    capsys.readouterr()
    assert main.main([str(a) for a in argv]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("nrm-graph: ")
    assert len(lines[0]) < 1200
    assert message in lines[0]
    return lines[0]


def extract(place, *more, model="net", inputs="photos"):
    path = place / inputs if isinstance(inputs, str) else inputs
    return ["extract", f"{MODULE}:{model}", path, "--store", place / "s.nrm", "--quiet", *more]


def unchanged(place, capsys, argv, code, message):
    before = checksums(place / "s.nrm")
    said(capsys, argv, code, message)
    assert checksums(place / "s.nrm") == before


# --- inputs -----------------------------------------------------------------------------------


def enormous(path):
    """Write a PNG whose header speaks of 10^10 pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b""))


def truncated(path):
    picture(9, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-4000])


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
    unchanged(place, capsys, extract(place, model="vit"), 4, message)
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


def test_inputs_that_are_not_there(place, capsys):
    ask = ["relevance", place / "s.nrm", "conv[1]", "--input"]
    unchanged(place, capsys, [*ask, "cat/b.png"], 3, "did you mean cat/a.png")
    unchanged(place, capsys, [*ask, "cat/a.png", "--target", "99"], 3, "has the targets")
    unchanged(place, capsys, [*ask, "\udcff"], 3, "there is no input")


# --- keys and metadata ------------------------------------------------------------------------


def test_one_key_with_other_content(place, capsys):
    picture(77).save(place / "photos" / "cat" / "a.png")
    message = "'cat/a.png' is in the store with another content"
    unchanged(place, capsys, extract(place), 6, message)
    unchanged(place, capsys, extract(place, "--on-error", "skip"), 6, message)


def rows(**metadata):
    torch.manual_seed(3)
    return [{"input": torch.rand(3, 8, 8), "key": "new", **metadata}]


SAME = {"classes": CLASSES, "preprocessing": sources.PIXELS, "progress": False}


@pytest.mark.parametrize("name", ["input_id", "Logit", "target", "predicted", " x", "", "a\nb"])
def test_reserved_metadata(place, name):
    before = checksums(place / "s.nrm")
    with pytest.raises(ng.InputError, match="new"):
        ng.extract(Net(), rows(**{name: 1}), place / "s.nrm", **SAME)
    assert checksums(place / "s.nrm") == before


def test_metadata_that_changes_its_type(place):
    with ng.extract(Net(), rows(age=3), place / "s.nrm", **SAME):
        pass
    before = checksums(place / "s.nrm")
    other = [{**rows()[0], "input": torch.zeros(3, 8, 8), "key": "other", "age": "old"}]
    with pytest.raises(ng.InputError, match=r"'other'.*age"):
        ng.extract(Net(), other, place / "s.nrm", **SAME)
    assert checksums(place / "s.nrm") == before


# --- stores -----------------------------------------------------------------------------------


def version(path):
    file = path / "store.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 7'))


def half(path):
    next((path / "shards").glob("*.edges.parquet")).unlink()


def short(path):
    file = next((path / "shards").glob("*.nodes.parquet"))
    file.write_bytes(file.read_bytes()[:-1])


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


def a_file(path):
    shutil.rmtree(path)
    path.write_text("x")


STORES = {
    "unknown version": (version, "format version 7", 6),
    "without settings": (lambda p: (p / "store.json").unlink(), "not a store", None),
    "half copied": (half, "incomplete", 6),
    "truncated": (short, "truncated", 6),
    "without weights": (lambda p: (p / "weights.safetensors").unlink(), "incomplete", 6),
    "empty folder": (emptied, "not a store", None),
    "a file": (a_file, "no store", 3),
    "nothing": (shutil.rmtree, "no store", None),
}


@pytest.mark.parametrize("name", STORES)
def test_stores(place, capsys, name):
    spoil, message, extracting = STORES[name]
    path = place / "s.nrm"
    spoil(path)
    before = checksums(path)
    for argv in (
        ["info", path],
        ["sql", path, "SELECT 1"],
        ["relevance", path, "--input", "k", "conv[1]"],
        ["subgraph", path, "--input", "k", "--output", place / "g.json"],
    ):
        said(capsys, argv, 6, message)
    with pytest.raises(ng.StoreError, match=message):
        ng.open(path)
    if extracting is not None:
        said(capsys, extract(place), extracting, "")
    assert checksums(path) == before


@pytest.mark.parametrize("path", ["s3://bucket/s.nrm", "https://a.b/s.nrm"])
def test_addresses(place, capsys, path):
    said(capsys, ["info", path], 6, "URL")
    argv = extract(place)
    argv[4] = path
    said(capsys, argv, 6, "URL")


def test_a_store_of_another_program(place, capsys):
    unchanged(place, capsys, extract(place, model="other"), 6, "another program")
    unchanged(place, capsys, extract(place, "--composite", "epsilon"), 6, "another composite")
    unchanged(place, capsys, extract(place, "--top", "3"), 6, ["another coverage", "top"][1])


def test_a_folder_with_other_things(place, capsys):
    argv = extract(place)
    argv[4] = place
    before = checksums(place)
    said(capsys, argv, 6, "is no store")
    assert checksums(place) == before


# --- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("at", ["write.shard.HashingFile", "format.settings.create_once"])
def test_disks_that_refuse(place, capsys, monkeypatch, number, at):
    def refuse(*args, **kwargs):
        raise OSError(number, "The disk refuses")

    monkeypatch.setattr(f"nrm_graph.store.{at}", refuse)
    argv = extract(place)
    if at.startswith("write.shard"):
        picture(50).save(place / "photos" / "cat" / "new.png")
        unchanged(place, capsys, argv, 6, "The disk refuses")
        with pytest.raises(ng.StoreError, match="The disk refuses"):
            ng.extract(Net(), rows(), place / "s.nrm", **SAME)
    else:
        argv[4] = place / "new.nrm"
        said(capsys, argv, 6, "The disk refuses")
        with pytest.raises(ng.StoreError, match="The disk refuses"):
            ng.extract(Net(), rows(), place / "new.nrm", **SAME)


def test_a_full_disk(place, disk, capsys):
    path = disk("size=256k") / "s.nrm"
    shutil.copytree(place / "s.nrm", path)
    for i in range(60):
        picture(100 + i).save(place / "photos" / "cat" / f"n{i}.png")
    argv = extract(place)
    argv[4] = path
    said(capsys, argv, 6, "No space left on device")
    with ng.open(path) as db:  # what was committed is whole
        assert {"cat/a.png", "dog/a.png", "cow/a.png"} <= {
            key for (key,) in db.sql("SELECT key FROM inputs").fetchall()
        }


def test_a_read_only_disk(place, disk, capsys):
    where = disk("size=4m")
    shutil.copytree(place / "s.nrm", where / "s.nrm")
    subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
    picture(50).save(place / "photos" / "cat" / "new.png")
    argv = extract(place)
    argv[4] = where / "s.nrm"
    said(capsys, argv, 6, "Read-only")
    argv[4] = where / "new.nrm"
    said(capsys, argv, 6, "Read-only")
    assert main.main(["info", str(where / "s.nrm")]) == 0
    said(capsys, ["info", where / "s.nrm", "--output", where / "t.csv"], 3, "Read-only")


# --- interruption, and going on ---------------------------------------------------------------


def test_ctrl_c_keeps_what_was_done_and_the_same_command_goes_on(place, capsys, monkeypatch):
    argv = extract(place, "--batch-size", "1")
    argv[4] = place / "new.nrm"
    plain, calls = sources._image, []

    def stop(path, preprocessing):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(path, preprocessing)

    monkeypatch.setattr(sources, "_image", stop)
    said(capsys, argv, 130, "interrupted")
    with ng.open(place / "new.nrm") as db:
        assert len(db) == 2
    assert main.main([str(a) for a in argv]) == 0
    with ng.open(place / "new.nrm") as db:
        assert len(db) == 3


def test_one_bad_image_among_many_is_skipped_recorded_and_taken_back(place, capsys):
    bad = place / "photos" / "cat" / "b.png"
    truncated(bad)
    picture(4).save(place / "photos" / "cat" / "c.png")
    picture(5, mode="L").save(place / "photos" / "dog" / "grey.png")
    argv = [str(a) for a in extract(place, "--on-error", "skip")]
    capsys.readouterr()
    assert main.main(argv) == 0
    assert "4 inputs, 2 failed" in capsys.readouterr().out
    assert main.main(["info", str(place / "s.nrm")]) == 0
    shown = capsys.readouterr().out
    assert "failures" in shown
    assert "failed: cat/b.png: cannot read the image" in shown
    assert "failed: dog/grey.png: input 'dog/grey.png' has shape" in shown
    with ng.open(place / "s.nrm") as db:
        keys = [key for (key,) in db.sql("SELECT key FROM failures ORDER BY key").fetchall()]
    assert keys == ["cat/b.png", "dog/grey.png"]
    picture(6).save(bad)
    assert main.main(argv) == 0
    with ng.open(place / "s.nrm") as db:
        assert db.sql("SELECT key FROM failures").fetchall() == [("dog/grey.png",)]
        assert len(db) == 5


def test_nothing_but_bad_images(place, capsys):
    for file in (place / "photos").rglob("*.png"):
        file.write_bytes(b"x")
    unchanged(place, capsys, extract(place, "--on-error", "skip"), 3, "no input could be read")
