"""Manifests: what a reader accepts and refuses, and which files count."""

import contextlib
import json
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.tiny_stores import (
    GONE,
    edit,
    make,
    manifest_of,
    record,
    write,
)
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.store.format import files, manifest, settings
from nrm_graph.store.read.snapshot import Snapshot

pytestmark = pytest.mark.smoke


def test_manifest_round_trip(path):
    write(path, [record(0, metadata={"a": 1, "b": None})])
    file = manifest_of(path)
    found = manifest.read_manifest(path / "shards", file.stem)
    assert manifest.decode(file.stem, manifest.encode(found)) == found
    assert found.metadata == {"a": "int", "b": "null"}
    for info in found.files.values():
        assert files.sha256_of(path / "shards" / info.name) == info.sha256
        assert pq.read_metadata(path / "shards" / info.name).num_rows == info.rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 7}, "format version 7; this release reads version 1 and 2"),
        ({"name": "other"}, "expected name"),
        ({"files__edges__name": "../../../etc/passwd"}, r"files\.edges\.name"),
        ({"files__edges__name": "/etc/passwd"}, r"files\.edges\.name"),
        ({"files__edges": GONE}, "expected files to be the tables"),
        ({"files__more": {}}, r"expected files\.more to be absent"),
        ({"files": {}}, "expected files to be the tables"),
        ({"files": 3}, "expected files"),
        ({"files__edges__size": 3}, "to hold 3 bytes"),
        ({"files__edges__size": 3.0}, "expected files.edges.size"),
        ({"files__edges__rows": -1}, r"files\.edges\.rows"),
        ({"files__edges__sha256": "z"}, r"files\.edges\.sha256"),
        ({"metadata": {"x": "date"}}, r"metadata\.x"),
        ({"metadata": {"KEY": "int"}}, "names of columns"),
        ({"metadata": {"": "int"}}, "names of columns"),
        ({"metadata": {"a": "int", "A": "int"}}, "names of columns"),
        ({"metadata": {"x": 1}}, r"metadata\.x to be text, found 1"),
        ({"inputs": {}}, "expected inputs to be a list"),
        ({"inputs__0": 5}, r"expected inputs\[0\] to be an object, found 5"),
        ({"inputs__0__key": 5}, r"expected inputs\[0\]\.key to be text, found 5"),
        ({"inputs__0__key": "\ud800"}, r"expected inputs\[0\]\.key to be text of valid Unicode"),
        ({"inputs__0__key": "other"}, "expected input_id of 'other'"),
        ({"inputs__0__target": 1 << 40}, r"expected inputs\[0\]\.target"),
        ({"inputs__0__target": "0"}, r"expected inputs\[0\]\.target"),
        ({"inputs__0__target": True}, r"expected inputs\[0\]\.target"),
        ({"inputs__0__target": None}, r"expected inputs\[0\]\.target"),
        ({"inputs__0__weights": '{"0":1.0}'}, r"inputs\[0\]\.weights to be null in version 1"),
        ({"inputs__0__target": "\ud800"}, "to be valid Unicode"),
        ({"inputs__0__item": -1}, r"expected inputs\[0\]\.item"),
        ({"inputs__0__flags": ["A"]}, r"expected inputs\[0\]\.flags\[0\]"),
        ({"inputs__0__flags": ["a"] * 101}, r"expected inputs\[0\]\.flags"),
        ({"inputs__0__content": "0"}, r"expected inputs\[0\]\.content to be 64 hexadecimal"),
        ({"inputs__0__input_id": 5}, "expected input_id"),
        ({"inputs__0__input_id": 1 << 70}, r"expected inputs\[0\]\.input_id"),
        ({"inputs__0__nodes": [0]}, r"expected inputs\[0\]\.nodes to be a list of length 2"),
        ({"inputs__0__edges": [-1, 5]}, r"expected inputs\[0\]\.edges\[0\]"),
        ({"replaces": "x"}, "expected replaces"),
        ({"replaces": ["../x"]}, "expected replaces"),
        ({"replaces": [5]}, "expected replaces"),
        ({"failures": [5]}, r"expected failures\[0\] to be an object"),
        ({"failures": [{"key": "a", "error": 5}]}, r"expected failures\[0\]\.error to be text"),
        ({"failures": "x"}, "expected failures"),
    ],
)
def test_hostile_manifests_are_refused(path, changes, message):
    write(path, [record(0)])
    edit(manifest_of(path), **changes)
    with pytest.raises(ng.StoreError, match=message):
        ng.open(path)


def test_manifests_that_hold_a_pair_twice_or_themselves_are_refused(path):
    write(path, [record(0)])
    file = manifest_of(path)
    data = json.loads(file.read_text())
    edit(file, inputs=data["inputs"] * 2)
    with pytest.raises(ng.StoreError, match="unique pairs"):
        ng.open(path)
    edit(file, inputs=data["inputs"], replaces=[file.stem])
    with pytest.raises(ng.StoreError, match="names of other shards"):
        ng.open(path)


def test_of_a_field_that_stands_twice_the_last_one_counts(path):
    """For values and seal alike: all read the same text."""
    write(path, [record(0)])
    file = manifest_of(path)
    text = file.read_text()
    file.write_text('{"name": 5, ' + text[1:])
    assert len(ng.open(path)) == 1
    file.write_text(text[:-1] + ', "name": 5}')
    with pytest.raises(ng.StoreError, match="expected name to be text, found 5"):
        ng.open(path)


def test_a_manifest_without_failures_is_read(path):
    write(path, [record(0)])
    edit(manifest_of(path), failures=GONE)
    assert len(ng.open(path)) == 1


@pytest.mark.parametrize("name", ["a b.json", "..json", ".json", "ü.json"])
def test_manifests_of_odd_names_are_refused(path, name):
    (path / "shards" / name).write_text("{}")
    with pytest.raises(ng.StoreError, match="names of manifests to be plain"):
        ng.open(path)


def test_links_and_large_manifests_are_refused(path, tmp_path, monkeypatch):
    write(path, [record(0)])
    file = manifest_of(path)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(ng.StoreError, match="at most 10 bytes"):
        ng.open(path)
    monkeypatch.undo()
    data = file.with_name(f"{file.stem}.edges.parquet")
    data.rename(tmp_path / "kept")
    data.symlink_to(tmp_path / "kept")
    with pytest.raises(ng.StoreError, match="symbolic link"):
        ng.open(path)
    (path / "shards").rename(tmp_path / "shards")
    (path / "shards").symlink_to(tmp_path / "shards")
    with pytest.raises(ng.StoreError, match="symbolic link"):
        ng.open(path)


def test_replaced_shards_are_ignored_and_circles_refused(path):
    write(path, [record(0)])
    write(path, [record(1)])
    first, second = sorted((path / "shards").glob("*.json"))
    edit(second, replaces=[first.stem])
    assert list(Snapshot(path).by_key) == ["input1"]
    with ng.open(path) as db:
        assert db.sql("SELECT key FROM inputs").fetchall() == [("input1",)]
        assert db.sql("SELECT count(*) FROM edges").fetchall() == [(5,)]
    edit(first, replaces=[second.stem])
    with pytest.raises(ng.StoreError, match="circle"):
        ng.open(path)


def test_files_without_a_manifest_are_no_part_of_the_store(path):
    write(path, [record(0)])
    shards = path / "shards"
    (shards / "0000-left.edges.parquet").write_bytes(b"half")
    (shards / "0000-left.json.tmp").write_bytes(b"{")
    (shards / "weights.pkl").write_bytes(pickle.dumps(print))
    assert len(ng.open(path)) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def changed(data, choose):
    """Replace, remove or add one value somewhere inside a JSON value."""
    data = json.loads(json.dumps(data))
    at = data
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = choose(st.sampled_from([*keys, "new"] if isinstance(at, dict) else keys))
        value = at.get(key) if isinstance(at, dict) else at[key]
        if isinstance(value, dict | list) and value and choose(st.booleans()):
            at = value
            continue
        if isinstance(at, dict) and key in at and choose(st.booleans()):
            del at[key]
        else:
            at[key] = choose(JSON)
        return data


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    path = make(tmp_path_factory.mktemp("json") / "s.nrm")
    write(path, [record(0, metadata={"n": 1}), record(1)])
    file = manifest_of(path)
    return file.stem, json.loads(file.read_text()), json.loads((path / "store.json").read_text())


@given(choices=st.data())
@profile(max_examples=150, deadline=None)
def test_whatever_is_changed_is_read_or_refused(examples, choices):
    """A changed manifest or store.json is a StoreError, or valid: never another exception."""
    name, listed, described = examples
    data = json.dumps(changed(listed, choices.draw)).encode()
    try:
        found = manifest.decode(name, data)
    except ng.StoreError:
        pass
    else:
        assert manifest.decode(name, manifest.encode(found)) == found
    data = json.dumps(changed(described, choices.draw)).encode()
    with contextlib.suppress(ng.StoreError):
        settings._decode(Path("s.nrm"), data)
