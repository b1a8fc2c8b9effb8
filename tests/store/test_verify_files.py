"""``verify`` names bits, truncations, links, leftovers and shards that are not what they were."""

import shutil

import numpy as np
import pytest
from helpers.damaged import edit_json, kinds, reseal

import nrm_graph as ng
from nrm_graph.store.format.manifest import new_name
from nrm_graph.store.verify import verify


@pytest.fixture
def copy(two_shards, tmp_path):
    return shutil.copytree(two_shards, tmp_path / "copy.nrm")


KINDS = (
    "store.json",
    "program.json",
    "weights.safetensors",
    "units.safetensors",
    "json",
    *(f"{table}.parquet" for table in ("inputs", "nodes", "edges", "tensors")),
)


def test_kinds_of_files(copy):
    assert set(kinds(copy)) == set(KINDS)


def finds_flips(path, kind, positions):
    file = kinds(path)[kind]
    data = file.read_bytes()
    for at, bit in positions(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
        report = verify(path, sample=0)
        assert not report.sound, (kind, at, bit)
        named = [error for error in report.errors if file.name in str(error)]
        assert named, (kind, at, bit, report.errors)
    file.write_bytes(data)
    assert verify(path, sample=0).findings == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found(copy, kind):
    rng = np.random.default_rng(0)
    finds_flips(
        copy, kind, lambda size: [(0, 0), (size - 1, 7), *rng.integers((0, 0), (size, 8), (10, 2))]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found(copy, kind):
    finds_flips(copy, kind, lambda size: [(at, at % 8) for at in range(0, size, size // 250 + 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_found(copy, kind):
    file = kinds(copy)[kind]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ng.StoreError):
        ng.open(copy)
    report = verify(copy)
    assert any(file.name in str(error) for error in report.errors)
    file.unlink()
    if kind == "store.json":
        with pytest.raises(ng.StoreError):
            verify(copy)
    elif kind != "json":  # without its manifest a shard is none
        assert any("found none" in error.problem for error in verify(copy).errors)


def test_swapped_files_of_two_shards_are_found(copy):
    for table in ("inputs", "nodes", "edges", "tensors"):
        one, two = sorted((copy / "shards").glob(f"*.{table}.parquet"))
        data = one.read_bytes(), two.read_bytes()
        one.write_bytes(data[1])
        two.write_bytes(data[0])
        report = verify(copy, sample=0)
        assert {error.file for error in report.errors} >= {one.name, two.name}
        for name in (one, two):
            reseal(name)
        report = verify(copy, sample=0)
        assert {error.file for error in report.errors} == {one.name, two.name}, table
        one.write_bytes(data[0])
        two.write_bytes(data[1])
        for name in (one, two):
            reseal(name)
    assert verify(copy).findings == ()


def test_links_are_refused(copy, tmp_path):
    file = kinds(copy)["edges.parquet"]
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    (error,) = [e for e in verify(copy).errors if "symbolic link" in e.problem]
    assert error.file == file.name
    shutil.move(copy / "shards", tmp_path / "shards")
    (copy / "shards").symlink_to(tmp_path / "shards")
    (error,) = verify(copy).errors
    assert "symbolic link" in error.problem


def duplicate(path, change=lambda raw: None):
    """Copy the first shard under a later name."""
    first = min((path / "shards").glob("*.json"))
    name = new_name(after=max(f.stem for f in (path / "shards").glob("*.json")))
    for file in (path / "shards").glob(f"{first.stem}.*"):
        shutil.copy(file, file.with_name(file.name.replace(first.stem, name)))

    def renamed(raw):
        raw["name"] = name
        for table, info in raw["files"].items():
            info["name"] = f"{name}.{table}.parquet"
        change(raw)

    edit_json(first.with_name(f"{name}.json"), renamed)
    return first.stem, name


def test_a_pair_in_two_manifests_is_reported(copy):
    first, second = duplicate(copy)
    report = verify(copy)
    assert report.sound
    assert len(report.notes) == 2
    for note in report.notes:
        assert note.shard == second
        assert first in note.problem
        assert note.key in ("k0", "k1")


def test_one_key_with_two_contents_is_an_error(copy):
    _, second = duplicate(copy, lambda raw: raw["inputs"][0].update(content="0" * 64))
    (error,) = [e for e in verify(copy, sample=0).errors if "two contents" in e.problem]
    assert (error.shard, error.key) == (second, "k0")


def test_replaced_shards_and_circles(copy):
    first, second = duplicate(copy)
    manifests = {name: copy / "shards" / f"{name}.json" for name in (first, second)}
    edit_json(manifests[second], lambda raw: raw.update(replaces=[first]))
    report = verify(copy)
    assert report.sound
    assert [(n.shard, n.problem) for n in report.notes] == [
        (None, f"the shard {first} was replaced, and may be deleted: a compaction does so, by age")
    ]
    edit_json(manifests[first], lambda raw: raw.update(replaces=[second]))
    assert any("in a circle" in e.problem for e in verify(copy).errors)


def test_leftovers_are_notes(copy):
    shards = copy / "shards"
    (shards / "abc.edges.parquet.tmp").write_bytes(b"x")
    (shards / "abc.edges.parquet").write_bytes(b"x")
    (shards / "notes.txt").write_text("x")
    (copy / "weights.safetensors.0123.tmp").write_text("x")
    report = verify(copy)
    assert report.sound
    assert {note.file: note.problem.split(",")[0] for note in report.notes} == {
        "abc.edges.parquet.tmp": "unfinished",
        "abc.edges.parquet": "no manifest names it",
        "notes.txt": "no part of the store",
        "weights.safetensors.0123.tmp": "unfinished",
    }
    assert all("seconds old" in note.problem for note in report.notes)
    (shards / "odd name!.json").write_text("{}")
    assert [e.file for e in verify(copy).errors] == ["odd name!.json"]


def test_a_shard_of_failures_alone_is_sound(copy):
    from nrm_graph.store.write.writer import Writer

    with Writer(copy) as writer:
        writer.fail("gone.png", "cannot be read")
    assert verify(copy).findings == ()
