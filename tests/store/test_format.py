"""The written format: what a reader accepts and refuses, and what a writer makes of records."""

import contextlib
import json
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_stores import (
    LAYERS,
    all_rows,
    checksums,
    make,
    record,
    settings_of,
    tables,
    write,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.store.format import files, manifest, metadata, settings
from nrm_graph.store.format.schema import EDGES, NODES, TENSORS, content_hash, input_id
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)  # test_store_commit.py is about that


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "s.nrm")


def manifest_of(path):
    return next((path / "shards").glob("*.json"))


GONE = object()


def edit(file, **changes):
    """Change fields of a JSON file: a__0__b is data["a"][0]["b"]; GONE removes one."""
    data = json.loads(file.read_text())
    for name, value in changes.items():
        at = data
        *way, last = [int(step) if step.isdigit() else step for step in name.split("__")]
        for step in way:
            at = at[step]
        if value is GONE:
            del at[last]
        else:
            at[last] = value
    file.write_text(json.dumps(data))


# --- settings ---------------------------------------------------------------------------------


def test_settings_round_trip(path):
    found = settings.read_settings(path)
    assert {name: found[name] for name in settings_of()} == settings_of()
    assert set(found["files"]) == {"program.json", "weights.safetensors"}
    assert ng.open(path).meta == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format version 2; this release reads version 1"),
        ({"format_version": True}, "has format version True"),
        ({"format_version": GONE}, "has format version None"),
        ({"program_hash": "../x"}, "expected program_hash"),
        ({"composite": []}, "expected composite"),
        ({"coverage": "1"}, "expected coverage"),
        ({"coverage": True}, "expected coverage"),
        ({"coverage": 0}, "expected coverage"),
        ({"top": -1}, "expected top"),
        ({"mantissa_bits": 99}, "expected mantissa_bits"),
        ({"preprocessing": {}}, "expected preprocessing"),
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
        ({"layers__1__resolution": "pixel"}, r"expected layers\[1\]"),
        ({"layers__1__resolution": ["neuron"]}, r"expected layers\[1\]"),
        ({"layers__1__n_units": 1 << 40}, r"expected layers\[1\]"),
        ({"layers__1__n_units": 5}, r"expected layers\[1\]"),
        ({"layers__1__depth": -1}, r"expected layers\[1\]"),
        ({"layers__1__aliases": [1]}, r"expected layers\[1\]"),
        ({"groups": [[0, 1, 3]]}, "expected a group"),
        ({"groups": [[9, 1, 3]]}, "expected a group"),
        ({"groups": [[1, 0]]}, "expected a group"),
        ({"groups": 5}, "expected groups"),
        ({"files": []}, "expected files"),
        ({"files__../../etc/passwd": {}}, "expected files"),
        ({"files__program.json": GONE}, "expected files"),
        ({"files__program.json__size": -1}, r"expected files\.program\.json"),
        ({"files__program.json__size": 7}, "to hold 7 bytes, found 2"),
        ({"files__program.json__sha256": 5}, r"expected files\.program\.json"),
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
        ({"classes": [1, 2]}, "expected classes to be null or a list of names"),
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


# --- manifests --------------------------------------------------------------------------------


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
        ({"format_version": 7}, "format version 7; this release reads 1"),
        ({"name": "other"}, "expected name"),
        ({"files__edges__name": "../../../etc/passwd"}, r"files\.edges\.name"),
        ({"files__edges__name": "/etc/passwd"}, r"files\.edges\.name"),
        ({"files__edges": GONE}, "expected files to be the tables"),
        ({"files__more": {}}, "expected files to be the tables"),
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
        ({"metadata": {"x": 1}}, r"metadata\.x"),
        ({"inputs": {}}, "expected inputs to be a list"),
        ({"inputs__0": 5}, "expected an input"),
        ({"inputs__0__key": 5}, "expected key"),
        ({"inputs__0__key": "\ud800"}, "expected key"),
        ({"inputs__0__key": "other"}, "expected input_id of 'other'"),
        ({"inputs__0__target": 1 << 40}, "expected target"),
        ({"inputs__0__target": "0"}, "expected target"),
        ({"inputs__0__content": "0"}, "expected content"),
        ({"inputs__0__input_id": 5}, "expected input_id"),
        ({"inputs__0__nodes": [0]}, "expected nodes of"),
        ({"inputs__0__edges": [-1, 5]}, "expected edges of"),
        ({"replaces": "x"}, "expected replaces"),
        ({"replaces": ["../x"]}, "expected replaces"),
        ({"replaces": [5]}, "expected replaces"),
        ({"failures": [5]}, "expected a failure"),
        ({"failures": [{"key": "a", "error": 5}]}, "expected a failure"),
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
@profile(max_examples=300, deadline=None)
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


# --- damage -----------------------------------------------------------------------------------


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("table", ["nodes", "edges", "tensors"])
def test_every_flipped_bit_of_a_page_is_found(path, table):
    write(path, [record(0)])
    snapshot = Snapshot(path)
    (identity,) = snapshot.entries
    file = next((path / "shards").glob(f"*.{table}.parquet"))
    kept = file.read_bytes()
    meta = pq.read_metadata(file).row_group(0)
    starts = [meta.column(i).data_page_offset for i in range(meta.num_columns)]
    ends = [s + meta.column(i).total_compressed_size for i, s in enumerate(starts)]

    def read():
        return (
            snapshot.tensors(identity)[""] if table == "tensors" else snapshot.rows(identity, table)
        )

    read()
    for end in ends:
        flip(file, end - 1)
        with pytest.raises(ng.StoreError):
            read()
        file.write_bytes(kept)


def test_row_groups_that_are_not_the_inputs_own_are_found(path):
    write(path, [record(0), record(1)])
    file = manifest_of(path)
    edit(file, inputs__0__edges=[1, 1])
    with pytest.raises(ng.StoreError, match="rows of another input"):
        Snapshot(path).rows(input_id("input0", 0), "edges")
    edit(file, inputs__0__edges=[1, 9])
    with pytest.raises(ng.StoreError, match="2 row groups, its manifest speaks of 10"):
        Snapshot(path).rows(input_id("input0", 0), "edges")


def test_another_tensor_under_the_right_checksums_is_found(path):
    write(path, [record(0)])
    file = next((path / "shards").glob("*.tensors.parquet"))
    (row,) = pq.read_table(file).to_pylist()
    snapshot = Snapshot(path)
    for change, message in (
        ({"data": bytes(12)[:-1] + b"\1"}, "not the one that was explained"),
        ({"data": b"123"}, "not of the size"),
        ({"dtype": "object"}, "unknown type"),
        ({"dtype": "<f4"}, "unknown type"),
        ({"shape": [-3]}, "unknown type or shape"),
        ({"shape": [1 << 40, 1 << 40]}, "not of the size"),
    ):
        pq.write_table(pa.Table.from_pylist([row | change], TENSORS), file)
        with pytest.raises(ng.StoreError, match=message):
            snapshot.tensors(input_id("input0", 0))[""]


# --- records ----------------------------------------------------------------------------------


def replaced(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    at = table.column_names.index(column)
    return table.set_column(at, table.schema.field(column), pa.array(values, table[column].type))


NODE_TABLE, EDGE_TABLE = tables()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("table", "column", "layer"),
    [
        ("nodes", "relevance", 1),
        ("nodes", "activation", 1),
        ("edges", "relevance", 1),
        ("edges", "conditional", 1),
    ],
)
def test_what_is_not_finite_is_refused_with_input_and_layer(path, table, column, layer, bad):
    whole = {"nodes": NODE_TABLE, "edges": EDGE_TABLE}[table]
    with Writer(path) as writer:
        with pytest.raises(
            ng.InputError, match=f"'input0': {column} of its {table}.*layer {layer}"
        ):
            writer.add(record(0, **{table: replaced(whole, column, 3, bad)}))
        assert writer.add(record(0))  # the writer goes on
    assert len(ng.open(path)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit": float("nan")}, "its logit is nan"),
        ({"logit": 1e39}, "its logit is 1e\\+39"),
        ({"metadata": {"score": float("inf")}}, "'input0': the metadata 'score' is inf"),
        ({"metadata": {"score": np.float32("nan")}}, "'score' is nan"),
        ({"metadata": {"when": object()}}, "'when' is a object"),
        ({"metadata": {"many": [1]}}, "'many' is a list"),
        ({"metadata": {"big": 1 << 63}}, "at most 64 bits"),
        ({"metadata": {"text": "\ud800"}}, "valid Unicode"),
        ({"metadata": {"Input_ID": 1}}, "reserved, letter case ignored"),
        ({"metadata": {"logit": 1}}, "reserved"),
        ({"metadata": {"": 1}}, "cannot be used"),
        ({"metadata": {"a\nb": 1}}, "printable"),
        ({"metadata": {"a" * 201: 1}}, "1 to 200 characters"),
        ({"metadata": {5: 1}}, "must be text"),
        ({"metadata": {"a": 1, "A": 2}}, "differ in letter case"),
        ({"metadata": {f"f{i}": i for i in range(1001)}}, "at most 1000 metadata fields"),
        ({"key": ""}, "expected a key"),
        ({"key": "\ud800"}, "expected a key"),
        ({"key": "k" * 5000}, "expected a key"),
        ({"target": 1 << 31}, "expected target"),
        ({"target": True}, "expected target"),
        ({"predicted": 1.0}, "expected predicted"),
        ({"label": 5}, "expected a label"),
        ({"content": "abc"}, "expected content"),
        ({"tensor": np.array(["a"])}, "cannot be stored"),
        ({"nodes": NODE_TABLE.drop_columns(["unit"])}, "lack the columns unit"),
        ({"nodes": replaced(NODE_TABLE, "relevance", 0, None)}, "its nodes .*null"),
        (
            {"edges": EDGE_TABLE.set_column(3, "src_unit", pa.array([1 << 40] * 5))},
            "do not fit the store's types",
        ),
        (
            {"nodes": NODE_TABLE.set_column(2, "relevance", pa.array([1e300] * 5))},
            "relevance of its nodes is inf",
        ),
    ],
)
def test_records_that_cannot_be_stored_are_refused(path, changes, message):
    with Writer(path) as writer, pytest.raises(ng.InputError, match=message):
        writer.add(record(0, **changes))
    assert not list((path / "shards").iterdir())


def test_rows_are_sorted_and_duplicates_refused(path):
    shuffled = EDGE_TABLE.take(pa.array([3, 0, 4, 1, 2]))
    write(path, [record(0, edges=shuffled, nodes=NODE_TABLE.take(pa.array([4, 3, 2, 1, 0])))])
    snapshot = Snapshot(path)
    (identity,) = snapshot.entries
    assert (
        snapshot.rows(identity, "edges")
        .drop_columns("input_id")
        .equals(EDGE_TABLE.cast(EDGES.remove(0)))
    )
    assert (
        snapshot.rows(identity, "nodes")
        .drop_columns("input_id")
        .equals(NODE_TABLE.cast(NODES.remove(0)))
    )
    twice = pa.concat_tables([EDGE_TABLE, EDGE_TABLE.slice(2, 1)])
    with pytest.raises(ng.InputError, match=r"'input1': its edges hold .*'src_unit': 2} twice"):
        write(path, [record(1, edges=twice)])
    assert len(ng.open(path)) == 1
    assert not list((path / "shards").glob("*.tmp"))


def test_large_inputs_take_several_row_groups(path, monkeypatch):
    monkeypatch.setattr("nrm_graph.store.write.shard.ROWS_PER_GROUP", 100)
    big = [record(i, edges=tables(i, 250 + i)[1]) for i in range(3)]
    write(path, big)
    snapshot = Snapshot(path)
    assert [e.edges for e in snapshot.entries.values()] == [(0, 3), (3, 3), (6, 3)]
    for item in big:
        rows = snapshot.rows(input_id(item.key, 0), "edges")
        assert rows.drop_columns("input_id").equals(item.edges.cast(EDGES.remove(0)))
    with ng.open(path) as db:
        for item in big:
            found = db.sql("SELECT count(*) FROM edges", inputs=[item.key]).fetchall()
            assert found == [(len(item.edges),)]


def test_inputs_without_rows(path):
    write(path, [record(0, edges=EDGE_TABLE.slice(0, 0)), record(1, nodes=NODE_TABLE.slice(0, 0))])
    snapshot = Snapshot(path)
    assert len(snapshot.rows(input_id("input0", 0), "edges")) == 0
    assert len(snapshot.rows(input_id("input1", 0), "nodes")) == 0
    assert len(snapshot.rows(input_id("input1", 0), "edges")) == 5


def test_tensors_may_be_left_out(path):
    write(path, [record(0, tensor=False), record(1)])
    snapshot = Snapshot(path)
    with pytest.raises(ng.InputError, match=r"no tensor of 'input0'.*input="):
        snapshot.tensors(input_id("input0", 0))[""]
    assert snapshot.tensors(input_id("input1", 0))[""].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", "uint64", "bool", ">f4"])
def test_tensors_of_all_types_come_back(path, kind):
    x = np.arange(6).reshape(2, 3).astype(kind).T
    write(path, [record(0, tensor=x, content=content_hash(x))])
    found = Snapshot(path).tensors(input_id("input0", 0))[""]
    assert found.dtype == np.dtype(kind).newbyteorder("=")
    np.testing.assert_array_equal(found, x)


def test_metadata_types_are_fixed_at_first_sight(path):
    write(path, [record(0, metadata={"n": 1, "s": "a", "b": True, "f": 0.5, "later": None})])
    with Writer(path) as writer:
        for number, wrong in enumerate(({"n": "x"}, {"s": 1}, {"b": 1}, {"n": True}, {"f": "x"})):
            with pytest.raises(ng.InputError, match=r"is of type .* in this store, found"):
                writer.add(record(number + 1, metadata=wrong))
        with pytest.raises(ng.InputError, match="'n' and 'N' differ in letter case"):
            writer.add(record(1, metadata={"N": 1}))
        with pytest.raises(ng.InputError, match="cannot hold"):
            writer.add(record(1, metadata={"f": (1 << 53) + 1}))
        writer.add(record(1, metadata={"f": 3, "later": "now"}))  # an int fits a float field
        writer.add(record(2, metadata={"n": 2.5}))  # int widens to float
        with pytest.raises(ng.InputError, match="'later' is of type string"):
            writer.add(record(3, metadata={"later": 1}))
    with ng.open(path) as db:
        rows = db.sql("SELECT n, f, later FROM inputs ORDER BY key")
        assert [str(t) for t in rows.types] == ["DOUBLE", "DOUBLE", "VARCHAR"]
        assert rows.fetchall() == [(1.0, 0.5, None), (None, 3.0, "now"), (2.5, None, None)]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
NAMES = st.text(min_size=1, max_size=10).filter(lambda name: metadata.name_problem(name) is None)


@given(
    fields=st.dictionaries(NAMES, VALUES, max_size=6),
    key=st.text(min_size=1, max_size=20),
    target=st.integers(-(1 << 31), (1 << 31) - 1),
    label=st.none() | st.text(max_size=5),
    logit=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
@profile(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_record_comes_back(tmp_path_factory, fields, key, target, label, logit):
    folded = {name.casefold() for name in fields}
    path = make(tmp_path_factory.mktemp("p") / "s.nrm")
    item = record(0, target, metadata=fields, key=key, label=label, logit=logit)
    if len(folded) < len(fields):
        with pytest.raises(ng.InputError, match="letter case"):
            write(path, [item])
        return
    write(path, [item])
    with ng.open(path) as db:
        found = db.sql("SELECT * FROM inputs").to_arrow_table().to_pylist()
        assert found == [
            {
                "input_id": input_id(key, target),
                "key": key,
                "label": label,
                "target": target,
                "predicted": target,
                "logit": logit,
                "item": None,
                "weights": None,
                "flags": None,
                **fields,
            }
        ]
        snapshot = Snapshot(path)
        assert snapshot.facts(input_id(key, target)) == {
            name: value for name, value in found[0].items() if value is not None or name == "label"
        }
        assert snapshot.tensors(input_id(key, target))[""].tolist() == [0, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 3), VALUES), max_size=12))
@profile(max_examples=200, deadline=None)
def test_a_field_has_one_type_whatever_comes(rows):
    fields = metadata.Fields()
    accepted = []
    for name, value in rows:
        try:
            accepted.append(fields.accept({f"f{name}": value}))
        except ng.InputError:
            continue
    types, columns = metadata.columns(accepted)
    assert types == fields.types
    for name, array in columns.items():
        assert str(array.type) == str(metadata.ARROW_TYPES[types[name]])
        values = [row.get(name) for row in accepted]
        if types[name] == "float":  # integers from before the first float were widened
            values = [None if v is None else float(v) for v in values]
        assert array.to_pylist() == values


def test_failures(path):
    with Writer(path) as writer:
        writer.fail("a", "too large")
        writer.fail("b", "first")
        writer.fail("b", "second \ud800")
        writer.fail("c", "x" * 5000)
        writer.add(record(0, key="c"))
    assert json.loads(manifest_of(path).read_text())["failures"][0] == {
        "key": "a",
        "error": "too large",
    }
    with ng.open(path) as db:
        assert db.sql("SELECT * FROM failures ORDER BY key").fetchall() == [
            ("a", "too large"),
            ("b", "second \\ud800"),
        ]
    with Writer(path) as writer:
        writer.fail("d", "a shard of failures alone")
        with pytest.raises(ng.InputError, match="expected a key"):
            writer.fail("", "x")
    with Writer(path) as writer:
        writer.add(record(1, key="a"))
        writer.flush()
        writer.fail("c", "another target failed later")
    with ng.open(path) as db:
        assert [key for key, _ in all_rows(db)["failures"]] == ["b", "c", "d"]
        assert len(db) == 2


def test_opening_is_quick(tmp_path):
    """Nothing in opening grows worse than the number of inputs."""
    path = make(tmp_path / "s.nrm")
    write(path, [record(i, tensor=False) for i in range(300)], shard_inputs=10)
    began = time.perf_counter()
    db = ng.open(path)
    assert len(db) == 300
    assert time.perf_counter() - began < 5
