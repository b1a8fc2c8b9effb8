"""What is suggested in place of a key that a store does not hold."""

from __future__ import annotations

import time

import pytest
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph.store.format.nearest_keys import nearest_keys

NUMBERS = [str(n) for n in range(318)]
PADDED = [f"{n:05d}" for n in range(0, 3000, 10)]
FILES = [f"{folder}/img_{n}.png" for folder in ("cat", "dog") for n in range(0, 40, 2)]
WORDS = ["bag", "boot", "sandal", "sneaker", "shirt", "dress"]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("key", "keys", "expected"),
    [
        ("0001", NUMBERS, ["1"]),
        ("  12 ", NUMBERS, ["12"]),
        ("999", NUMBERS, ["317", "316", "315"]),
        ("00121", PADDED, ["00120", "00130", "00110"]),
        ("120", PADDED, ["00120"]),
        ("-1", NUMBERS, []),
        ("1.5", NUMBERS, []),
        ("7", WORDS, []),
        ("cat/img_7.png", FILES, ["cat/img_6.png", "cat/img_8.png", "cat/img_4.png"]),
        ("CAT/IMG_6.PNG", FILES, ["cat/img_6.png"]),
        ("cat/img_006.png", FILES, ["cat/img_6.png"]),
        ("/data/photos/img_6.png", FILES, ["cat/img_6.png", "dog/img_6.png"]),
        ("img_6", FILES, ["cat/img_6.png", "dog/img_6.png"]),
        ("cat/img_6.png.jpg", FILES, ["cat/img_6.png"]),
        ("sandle", WORDS, ["sandal"]),
        ("Bag", WORDS, ["bag"]),
        ("xyz", WORDS, []),
        ("", WORDS, []),
        ("cat", [], []),
        ("img_6\udcff", ["img_6"], ["img_6"]),
        ("9" * 5000, ["1"], []),
    ],
)
def test_suggestions(key, keys, expected):
    assert nearest_keys(key, keys) == expected
    assert nearest_keys(key, set(keys)) == expected  # whatever their order


def test_messages(tmp_path):
    path = write(make(tmp_path / "s.nrm"), [record(n, key=f"{n:04d}") for n in (0, 2, 3, 40)])
    with ng.open(path) as db:
        for key, message in (
            ("0001", r"there is no input '0001' in .*: did you mean 0000, 0002, 0003\?$"),
            ("2", r"did you mean 0002\?$"),
            ("zebra", r"it holds 4 keys, such as 0000$"),
        ):
            with pytest.raises(ng.InputError, match=message):
                db.measure(key)


def test_many_keys_are_compared_in_time():
    keys = [f"{n:x}-{n}" for n in range(200_000)]
    start = time.process_time()
    assert len(nearest_keys("zebra", keys)) <= 3
    assert time.process_time() - start < 10
