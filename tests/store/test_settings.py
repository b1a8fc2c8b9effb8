"""The settings of a store: what a reader accepts, what a writer refuses to change."""

import pickle
import threading

import numpy as np
import pytest
from helpers.tiny_stores import (
    GONE,
    LAYERS,
    checksums,
    edit,
    make,
    settings_of,
)

import nrm_graph as ng
from nrm_graph.store.format import files, settings
from nrm_graph.store.format.schema import content_hash

pytestmark = pytest.mark.smoke


def test_settings_round_trip(path):
    found = settings.read_settings(path)
    assert {name: found[name] for name in settings_of()} == settings_of()
    assert set(found["files"]) == {"program.json", "weights.safetensors"}
    assert ng.open(path).meta == found


NAMED = {"name": "w", "dtype": "F32", "shape": [3], "sha256": "0" * 64}
INPUT = {"name": "x", "shape": [3], "dtype": "float"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "has format version 3; this release reads version 1 and 2"),
        ({"format_version": 2}, "expected format_version to be 1, without a number as max_edges"),
        ({"format_version": True}, "has format version True"),
        ({"format_version": 1.0}, "has format version 1.0"),
        ({"format_version": GONE}, "has format version None"),
        ({"program_hash": "../x"}, "expected program_hash"),
        ({"composite": []}, "expected composite"),
        ({"coverage": "1"}, "expected coverage"),
        ({"coverage": True}, "expected coverage"),
        ({"coverage": 0}, "expected coverage to be a number > 0"),
        ({"coverage": 10**400}, "expected coverage to be a number"),
        ({"coverage": "\ud800"}, "to be valid Unicode"),
        ({"coverage": GONE}, "expected coverage to be there"),
        ({"top": -1}, "expected top"),
        ({"top": 1.0}, "expected top to be null or an integer, found 1.0"),
        ({"top": 1 << 70}, "expected top"),
        ({"mantissa_bits": 99}, "expected mantissa_bits"),
        ({"preprocessing": {}}, "expected preprocessing"),
        ({"preprocessing": "\ud800"}, "expected preprocessing to be text of valid Unicode"),
        ({"classes": [1]}, "expected classes"),
        ({"classes": "cat"}, "expected classes"),
        ({"versions": GONE}, "expected versions"),
        ({"layers": []}, "expected layers"),
        ({"layers": {}}, "expected layers"),
        ({"layers__1": "x"}, r"expected layers\[1\]"),
        ({"layers__1__layer_id": 0}, r"expected layers\[1\]"),
        ({"layers__1__layer_id": True}, r"expected layers\[1\]"),
        ({"layers__1__name": "x"}, "unique"),
        ({"layers__1__name": "\ud800"}, r"expected layers\[1\]"),
        ({"layers__1__kind": 3}, r"expected layers\[1\]"),
        ({"layers__1__shape": [-1]}, r"expected layers\[1\]"),
        ({"layers__1__shape": "3"}, r"expected layers\[1\]"),
        ({"layers__1__resolution": "pixel"}, r"layers\[1\]\.resolution to be one of neuron, "),
        ({"layers__1__resolution": ["neuron"]}, r"expected layers\[1\]"),
        ({"layers__1__n_units": 1 << 40}, r"expected layers\[1\]"),
        ({"layers__1__n_units": 5}, r"expected layers\[1\]"),
        ({"layers__1__depth": -1}, r"expected layers\[1\]"),
        ({"layers__1__aliases": [1]}, r"expected layers\[1\]"),
        ({"groups": [[0, 1, 3]]}, r"expected groups\[0\] to be \[dst, src, dense edges\]"),
        ({"groups": [[9, 1, 3]]}, r"expected groups\[0\] to be \[dst, src, dense edges\]"),
        ({"groups": [[1, 0]]}, r"expected groups\[0\] to be a list of length 3, found \[1, 0\]"),
        ({"groups": 5}, "expected groups"),
        (
            {"named": {"w": NAMED}},
            "expected format_version to be 2, with .* named weights, found 1",
        ),
        ({"format_version": 2, "named": []}, "expected named to be an object"),
        ({"format_version": 2, "named": {"w": NAMED | {"path": "/etc"}}}, r"path to be absent"),
        ({"format_version": 2, "named": {"w": NAMED | {"dtype": "BF16"}}}, r"dtype to be one of"),
        ({"format_version": 2, "named": {"w": NAMED | {"shape": [-1]}}}, r"shape\[0\]"),
        ({"format_version": 2, "named": {"w": NAMED | {"sha256": "a"}}}, r"sha256 to be 64"),
        ({"inputs": None}, "expected inputs to be a list"),
        ({"inputs": []}, "expected inputs"),
        ({"inputs": [INPUT, INPUT]}, "the names of inputs to be unique"),
        ({"inputs": [INPUT | {"more": 1}]}, r"expected inputs\[0\]\.more to be absent"),
        ({"inputs": [INPUT | {"dtype": "str"}]}, "dtype to be one of float, int64, bool"),
        ({"inputs": [INPUT | {"name": ""}]}, r"expected inputs\[0\]\.name"),
        ({"outputs": [{"name": "y", "shape": [3]}]}, "the 2 neurons of the last layer"),
        ({"outputs": [{"name": "y"}]}, r"expected outputs\[0\]\.shape to be there"),
        ({"files": []}, "expected files"),
        ({"files__../../etc/passwd": {}}, "expected files"),
        ({"files__program.json": GONE}, "expected files"),
        ({"files__program.json__size": -1}, r"expected files\.program\.json"),
        ({"files__program.json__size": 7}, "to hold 7 bytes, found 2"),
        ({"files__program.json__sha256": 5}, r"expected files\.program\.json"),
        ({"files__program.json__sha256": "A" * 64}, r"\.sha256 to be 64 hexadecimal digits"),
    ],
)
def test_hostile_settings_are_refused(path, changes, message):
    edit(path / "store.json", **changes)
    with pytest.raises(ng.StoreError, match=message):
        ng.open(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format_version": NaN}',
        b'{"format_version": 1e999}',
        b'{"format_version": -Infinity}',
        b'{"format_version": ' + b"1" * 5000 + b"}",
        b'{"a":' * 50_000,
        b'{"a": "\x01"}',
        b"\xef\xbb\xbf{}",
        pickle.dumps({"format_version": 1}),
    ],
)
def test_settings_that_are_no_object_are_refused(path, data):
    (path / "store.json").write_bytes(data)
    with pytest.raises(ng.StoreError):
        ng.open(path)


def test_sizes_are_capped(path, monkeypatch):
    monkeypatch.setattr(settings, "MAX_SETTINGS_BYTES", 100)
    with pytest.raises(ng.StoreError, match=r"store\.json to hold at most 100 bytes"):
        ng.open(path)


@pytest.mark.parametrize("name", ["store.json", "program.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["link", "folder", "gone"])
def test_files_that_are_no_plain_files_are_refused(path, tmp_path, name, kind):
    kept = tmp_path / "kept"
    (path / name).rename(kept)
    if kind == "link":
        (path / name).symlink_to(kept)
    elif kind == "folder":
        (path / name).mkdir()
    with pytest.raises(ng.StoreError, match=r"symbolic link|special file|found none|not a store"):
        ng.open(path)


@pytest.mark.parametrize("start", [(1 << 62), (1 << 20), 10**9])
def test_safetensors_headers_of_insane_size_are_refused(path, start):
    file = path / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(start.to_bytes(8, "little") + data[8:])
    with pytest.raises(ng.StoreError, match="no safetensors file"):
        settings.checked_tensor_file(file)
    file.write_bytes(b"1234")
    with pytest.raises(ng.StoreError, match="no safetensors file"):
        settings.checked_tensor_file(file)


def custom(labels):
    layers = [dict(row) for row in LAYERS]
    layers[1] |= {"resolution": "custom", "n_units": 2, "units": content_hash(labels)}
    return {"layers": layers, "units": {"0": labels}}


def test_custom_units(tmp_path):
    labels = np.array([0, 1, 1, 0], np.int32)
    path = make(tmp_path / "s.nrm", **custom(labels))
    np.testing.assert_array_equal(ng.open(path).units()["0"], labels)
    make(path, **custom(labels))
    with pytest.raises(ng.StoreError, match="another partition of layer 0"):
        make(path, **custom(labels[::-1].copy() * 0 + [1, 1, 0, 0]))
    file = path / "units.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:8] + b"x" * (len(data) - 8))
    with pytest.raises(ng.StoreError, match="cannot be read"):
        ng.open(path).units()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"program_hash": "0" * 64}, 'another program: it has "[0-9a-f]+", asked for is "0+'),
        ({"composite": {"name": "gamma"}}, 'composite: it has {"name": "epsilon"}.*"gamma"'),
        ({"coverage": 0.9}, r"coverage: it has 1\.0, asked for is 0\.9"),
        ({"top": 3}, "top: it has null, asked for is 3"),
        ({"mantissa_bits": 10}, "mantissa_bits: it has null, asked for is 10"),
        ({"classes": ["cat", "cow"]}, r'classes: it has \["cat", "dog"\].*"cow"'),
        ({"preprocessing": "resize 224"}, 'preprocessing: it has null, asked for is "resize 224"'),
        ({"layers": LAYERS[:2]}, "another layers"),
        (
            {"layers": [*LAYERS[:2], {**LAYERS[2], "resolution": "channel"}]},
            "resolution of layer 1",
        ),
        ({"layers": [*LAYERS[:2], {**LAYERS[2], "shape": [3]}]}, "shape of layer 1"),
        ({"groups": [[1, 0, 12]]}, "another groups"),
    ],
)
def test_other_settings_are_refused_with_both_values(path, changes, message):
    before = checksums(path)
    make(path)
    with pytest.raises(ng.StoreError, match=message):
        make(path, **changes)
    assert checksums(path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [1, 2]}, r"expected classes\[0\] to be text, found 1"),
        ({"coverage": 2.0}, "expected coverage"),
        ({"preprocessing": "\ud800"}, "expected preprocessing"),
        ({"composite": {"low": float("inf")}}, "JSON compliant"),
        ({"composite": {"low": object()}}, "not JSON serializable"),
    ],
)
def test_settings_that_could_not_be_read_are_never_written(tmp_path, changes, message):
    with pytest.raises(ng.InputError, match=f"these settings cannot be stored: .*{message}"):
        make(tmp_path / "s.nrm", **changes)
    assert not (tmp_path / "s.nrm").exists()


def test_long_differences_are_cut_around_the_difference(path):
    names = [f"class {i}" for i in range(1000)]
    with pytest.raises(ng.StoreError, match="another classes") as caught:
        settings.check_same(settings_of(classes=names), settings_of(classes=[*names[:-1], "new"]))
    assert "new" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_program_files_are_never_overwritten(tmp_path):
    path = tmp_path / "s.nrm"
    make(path, program="{}")
    (path / "store.json").unlink()  # cut off just before the end
    before = checksums(path)
    with pytest.raises(ng.StoreError, match="another program or partition"):
        make(path, program='{"other": 1}')
    assert checksums(path) == before
    make(path, program="{}")  # the same extraction goes on
    ng.open(path)


def test_a_folder_with_other_things_is_no_place_for_a_store(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ng.StoreError, match=r"it holds thesis\.tex"):
        make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_makers_at_once(tmp_path):
    path = tmp_path / "s.nrm"
    barrier = threading.Barrier(8)
    errors = []

    def run(number):
        barrier.wait()
        try:
            make(path, program="{}" if number % 2 else '{"other": 1}')
        except ng.StoreError as error:
            errors.append((number, str(error)))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One program won; the four who brought it all succeeded, and the store is whole.
    assert len({number % 2 for number, _ in errors}) <= 1
    found = settings.read_settings(path)
    assert found["files"]["program.json"]["sha256"] == files.sha256_of(path / "program.json")
    assert not list(path.glob("*.tmp"))


def test_urls_are_refused():
    with pytest.raises(ng.StoreError, match="URL"):
        ng.open("s3://bucket/store.nrm")
