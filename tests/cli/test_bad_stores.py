"""Stores, keys, metadata and disks that refuse: one line, the exit code, the store as it was."""

import errno
import shutil
import subprocess

import pytest
import torch
from helpers.class_images import SAME, Net, extract, picture, rows, said, truncated, unchanged
from helpers.tiny_stores import checksums

import nrm_graph as ng
from nrm_graph.cli import inputs as sources
from nrm_graph.cli import main

pytestmark = pytest.mark.usefixtures("class_models", "remembered_traces")


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
