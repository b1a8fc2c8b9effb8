"""INPUTS: folders of images, images and arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from nrm_graph import sources
from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_folder_of_images(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.png", "cat/deep/c.jpg", "top.png", ".hidden/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = list(sources.load_inputs(tmp_path))
    assert [(item["key"], item.get("label")) for item in found] == [
        ("cat/a.png", "cat"),
        ("cat/deep/c.jpg", "cat"),
        ("dog/b.png", "dog"),
        ("top.png", None),
    ]
    assert found[0]["input"].shape == (3, 4, 5)
    assert found[0]["input"][0].eq(1).all()
    (one,) = sources.load_inputs(tmp_path / "top.png", lambda image: torch.ones(image.size))
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
        items = list(sources.load_inputs(tmp_path / name))
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
        ("c.npy", lambda p: np.save(p, np.zeros((2, 3), int)), "expected floats"),
        ("d.npy", lambda p: np.save(p, np.zeros((0, 3))), "at least one input"),
        ("e.npy", lambda p: np.save(p, np.zeros(3)), "first axis"),
        ("f.npy", lambda p: np.save(p, np.zeros((2, 5, 6, 4), np.uint8)), "one or three"),
        ("a.npz", lambda p: p.write_bytes(b"PK"), "cannot read the array"),
        ("b.npz", lambda p: np.savez(p, data=np.zeros((2, 3))), "named images or inputs"),
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
        list(sources.load_inputs(path))
    assert "\n" not in str(info.value)
    with pytest.raises(InputError, match="address"):
        sources.load_inputs("https://example.org/cat.png")
