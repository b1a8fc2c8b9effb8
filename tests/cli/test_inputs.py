"""INPUTS: folders of images, images and arrays."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from nrm_graph.cli import inputs
from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.smoke


def test_folder_of_images(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.png", "cat/deep/c.jpg", "top.png", ".hidden/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = list(inputs.load_inputs(tmp_path))
    assert [(item["key"], item.get("label")) for item in found] == [
        ("cat/a.png", "cat"),
        ("cat/deep/c.jpg", "cat"),
        ("dog/b.png", "dog"),
        ("top.png", None),
    ]
    assert found[0]["input"].shape == (3, 4, 5)
    assert found[0]["input"][0].eq(1).all()
    (one,) = inputs.load_inputs(tmp_path / "top.png", lambda image: torch.ones(image.size))
    assert one["key"] == "top.png"
    assert one["input"].shape == (5, 4)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 4, 5), np.uint8, (1, 4, 5)),
        ((2, 4, 5, 3), np.uint8, (3, 4, 5)),
        ((2, 3, 4, 5), np.uint8, (3, 4, 5)),
        ((2, 1, 4, 5), np.uint8, (1, 4, 5)),
        ((2, 7), np.float32, (7,)),
        ((2, 3, 4, 5), np.float64, (3, 4, 5)),
    ],
)
def test_arrays(tmp_path: Path, shape: tuple[int, ...], dtype: Any, expected: Any) -> None:
    values = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", inputs=values, labels=np.array(["cat", "dog"]))
    for name, labels in (("a.npy", [None, None]), ("a.npz", ["cat", "dog"])):
        items = list(inputs.load_inputs(tmp_path / name))
        assert [item["key"] for item in items] == ["a-00000", "a-00001"]
        assert [item.get("label") for item in items] == labels
        assert tuple(items[1]["input"].shape) == expected
        scale = 255 if dtype == np.uint8 else 1
        total = float(items[1]["input"].double().sum()) * scale
        assert total == pytest.approx(float(values[1].astype(float).sum()), rel=1e-5)


def _write(path: Path, make: Callable[[Path], Any]) -> Path:
    make(path)
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none", lambda p: None, "no file or folder"),
        ("empty", lambda p: p.mkdir(), "no images"),
        ("a.txt", lambda p: p.write_text(""), "expected a folder"),
        ("a.png", lambda p: p.write_bytes(b"\x89PNG"), "cannot read the image"),
        ("a.npy", lambda p: p.write_bytes(b"x"), "cannot read the array"),
        ("b.npy", lambda p: np.save(p, np.array([{}, {}])), "cannot read the array"),
        ("c.npy", lambda p: np.save(p, np.zeros((2, 3), complex)), "expected floats"),
        ("d.npy", lambda p: np.save(p, np.zeros((0, 3))), "at least one input"),
        ("e.npy", lambda p: np.save(p, np.zeros(3)), "first axis"),
        ("f.npy", lambda p: np.save(p, np.zeros((2, 5, 6, 4), np.uint8)), "one or three"),
        ("a.npz", lambda p: p.write_bytes(b"PK"), "cannot read the array"),
        ("b.npz", lambda p: np.savez(p, labels=np.zeros(2)), "named images or inputs"),
        (
            "c.npz",
            lambda p: np.savez(p, inputs=np.zeros((2, 3)), labels=np.zeros(3, int)),
            "do not match",
        ),
    ],
)
def test_input_errors(tmp_path: Path, name: str, make: Callable[[Path], Any], message: str) -> None:
    path = _write(tmp_path / name, make)
    with pytest.raises(InputError, match=message) as info:
        list(inputs.load_inputs(path))
    assert "\n" not in str(info.value)
    with pytest.raises(InputError, match="address"):
        inputs.load_inputs("https://example.org/cat.png")


# What folders of real photographs hold


def lonely(path: Path, preprocessing: Any = None) -> torch.Tensor:
    (item,) = inputs.load_inputs(path, preprocessing)
    value = item["input"]
    assert isinstance(value, torch.Tensor)
    return value


def rgb(image: Image.Image) -> torch.Tensor:
    """Give the pixels of an image as a preprocessing."""
    assert image.mode == "RGB"
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_data_set_is_lazy_and_known_by_its_keys(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"damaged")
    found = inputs.load_inputs(tmp_path)
    assert (len(found), found.keys) == (2, ["a.png", "b.png"])
    with pytest.raises(InputError, match=r"a\.png"):
        found[0]
    assert found[1]["key"] == found[-1]["key"] == "b.png"
    with pytest.raises(IndexError):
        found[2]
    (tmp_path / "b.png").unlink()  # after it was listed
    with pytest.raises(InputError, match="No such file"):
        found[1]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 255, [1.0]),
        ("L", 51, [0.2]),
        ("LA", (51, 0), [0.2]),
        ("RGBA", (51, 102, 255, 0), [0.2, 0.4, 1.0]),  # transparency is dropped
        ("P", 7, None),
        ("CMYK", (0, 0, 0, 255), [0.0, 0.0, 0.0]),
        ("YCbCr", (255, 128, 128), [1.0, 1.0, 1.0]),
        ("LAB", (255, 128, 128), None),
        ("I;16", 257 * 51, [0.2]),
    ],
)
def test_modes_of_images(tmp_path: Path, mode: str, colour: Any, expected: Any) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), colour, np.uint16))
    else:
        image = Image.new(mode, (5, 4), colour)
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.tif")
    image.save(path)
    value = lonely(path)
    assert value.shape == (1 if mode in ("1", "L", "LA", "I;16") else 3, 4, 5)
    if expected is not None:
        torch.testing.assert_close(
            value[:, 0, 0], torch.tensor(expected, dtype=torch.float32), atol=0.005, rtol=0
        )
    assert lonely(path, rgb).shape == (3, 4, 5)


def test_sixteen_bits_are_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
        grey = lonely(tmp_path / f"a.{suffix}")[0]
        torch.testing.assert_close(
            grey, torch.arange(256.0).reshape(16, 16) / 255, atol=1e-6, rtol=0
        )


def test_palettes_animations_and_single_pixels(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (5, 4), c) for c in ("red", "blue"))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue], duration=10)
    assert lonely(tmp_path / "a.gif")[:, 0, 0].tolist() == [1, 0, 0]
    transparent = red.quantize(4)
    transparent.save(tmp_path / "p.png", transparency=bytes([0, 1, 2, 3]))
    assert lonely(tmp_path / "p.png")[:, 0, 0].tolist() == [1, 0, 0]
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.bmp")
    assert lonely(tmp_path / "one.bmp").shape == (3, 1, 1)


def test_orientation_is_left_alone_as_torchvision_leaves_it(tmp_path: Path) -> None:
    image = Image.new("RGB", (5, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert lonely(tmp_path / "a.jpg").shape == (3, 4, 5)


def test_odd_folders(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("x.png/a.png", "y.png/deep/a.png", ".hidden.png", "é 漢/ü.PNG", "a/.b/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(root / name, format="PNG")
    bytes_name = os.fsencode(root) + b"/bad\xff.png"
    with open(bytes_name, "wb") as file:  # noqa: PTH123
        Image.new("RGB", (5, 4)).save(file, format="PNG")
    (root / "up").symlink_to(root)  # endless
    (root / "loop.png").symlink_to("loop.png")
    (root / "linked").symlink_to(root / "x.png")
    os.mkfifo(root / "pipe.png")
    found = inputs.load_inputs(root)
    assert found.keys == [
        "bad\\xff.png",
        "linked/a.png",
        "loop.png",
        "x.png/a.png",
        "y.png/deep/a.png",
        "é 漢/ü.PNG",
    ]
    failed = []
    for i, key in enumerate(found.keys):
        try:
            item = found[i]
        except InputError:
            failed.append(key)
        else:
            folders = key.split("/")[:-1]
            assert item.get("label") == (folders[0] if folders else None)
    assert failed == ["loop.png"]
    with pytest.raises(InputError, match="no plain file"):
        inputs.load_inputs(root / "pipe.png")
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(InputError, match="no file or folder"):
            inputs.load_inputs(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(InputError, match="Permission denied"):
        inputs.load_inputs(tmp_path)


def test_a_preprocessing_in_words(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    np.save(tmp_path / "f.npy", np.ones((2, 3), np.float32))

    def said(preprocessing: Any, name: str = "a.png") -> str:
        return inputs.load_inputs(tmp_path / name, preprocessing).preprocessing

    assert said(None) == inputs.load_inputs(tmp_path).preprocessing == "pixels / 255"
    assert said(None, "f.npy") == "floats as they stand in the file"
    assert said(rgb) == f"{__name__}.rgb"
    assert said(v2.Compose([v2.Resize(3), rgb])).startswith("Compose( Resize(size=[3]")
    assert " at 0x" not in said(v2.Compose([rgb]))
    assert said(object()) == "<object object>"

    def fails(image: Any) -> Any:
        raise ZeroDivisionError("no pixels")

    with pytest.raises(InputError, match=r"preprocessing of .* failed: ZeroDivisionError"):
        lonely(tmp_path / "a.png", fails)
    with pytest.raises(InputError, match="expected a tensor"):
        lonely(tmp_path / "a.png", lambda image: 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_are_read_row_by_row(tmp_path: Path, save: Any) -> None:
    values = np.random.default_rng(0).random((4, 3, 5)).astype(np.float32)
    save(tmp_path / "a.npz", inputs=values, labels=np.arange(4))
    found = inputs.load_inputs(tmp_path / "a.npz")
    for i in (0, 3, 1, 1, 2):
        np.testing.assert_array_equal(found[i]["input"], values[i])
        assert found[i]["label"] == i
    save(tmp_path / "b.npz", inputs=np.asfortranarray(values))
    with pytest.raises(InputError, match="Fortran"):
        inputs.load_inputs(tmp_path / "b.npz")
    save(tmp_path / "c.npz", inputs=np.array([[{}]]))
    with pytest.raises(InputError, match="Python objects"):
        inputs.load_inputs(tmp_path / "c.npz")
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[200:240] = bytes(40)
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(InputError, match="cannot read the array"):
        list(inputs.load_inputs(tmp_path / "a.npz"))


def lying(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + bytes(100)


@pytest.mark.parametrize("shape", [(10**6, 10**6), (10**12, 1), (2, 10**12), (-1, 5), (100, 5)])
def test_arrays_that_lie_about_their_size(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.npy").write_bytes(lying(shape))
    for name in ("inputs", "labels"):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inputs.npy", lying((5, 5)))
            archive.writestr("labels.npy" if name == "labels" else "images.npy", lying(shape))
    for name in ("a.npy", "inputs.npz", "labels.npz"):
        with pytest.raises(InputError, match=r"cannot read the array|bytes"):
            list(inputs.load_inputs(tmp_path / name))


def test_memory_does_not_grow_with_an_archive(tmp_path: Path) -> None:
    rows = np.zeros((64, 1, 256, 1024), np.float32)  # 1 MiB each
    np.savez_compressed(tmp_path / "a.npz", inputs=rows)
    np.save(tmp_path / "a.npy", rows)
    del rows
    for name in ("a.npz", "a.npy"):
        tracemalloc.start()
        try:
            for item in inputs.load_inputs(tmp_path / name):
                assert item["input"].shape == (1, 256, 1024)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20
