"""Stores from strangers: sizes and checksums all agree, and the content is meant to do harm.

Malformed settings and manifests are the subjects of test_settings.py and test_manifests.py, SQL of
test_sql_guard.py, programs of test_hostile_programs.py.  Here tensors, composite and layers lie.
"""

import json
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from helpers.resealed import edited, refused, seal

import nrm_graph as ng
from nrm_graph.cli import main

pytestmark = pytest.mark.smoke


@pytest.fixture
def path(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "s.nrm")


def test_the_honest_store_is_read(path):
    edited(path, lambda graph: None)
    with ng.open(path) as db:
        m, a = db.measure("k"), ng.Layer("1")[0]
        assert m(a) + m(~a) == pytest.approx(1, abs=1e-5)


# --- tensors ----------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def header(described, data=b""):
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + data


LYING = {
    "pickle": pickle.dumps(Bomb()),
    "pickle behind a header": struct.pack("<Q", 2) + b"{}" + pickle.dumps(Bomb()),
    "oversized header": struct.pack("<Q", 1 << 60) + b"{}",
    "header of the whole file": struct.pack("<Q", 92) + b"{" * 92,
    "offsets beyond the file": header(
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, b"1234"
    ),
    "shape against offsets": header(
        {"w": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}}, b"1234"
    ),
    "overflowing shape": header(
        {"w": {"dtype": "F32", "shape": [1 << 32, 1 << 32, 4], "data_offsets": [0, 0]}}
    ),
    "negative offsets": header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "unknown type": header({"w": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "deep header": struct.pack("<Q", 60_000) + b"[" * 60_000,
    "nothing": header({}),
    "empty": b"",
}


@pytest.mark.parametrize("name", LYING)
def test_tensor_files_that_lie(path, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    seal(path, weights=LYING[name])
    refused(path, r"weights\.safetensors|program of|cannot be read|no safetensors", capsys)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {**w, "1.weight": w["1.weight"] * np.float32("nan")}, "'1.weight'.*NaN"),
        (lambda w: {**w, "1.weight": w["1.weight"][:, :, :2]}, "node"),
        (lambda w: {**w, "1.weight": np.zeros((0, 1, 3, 3), np.float32)}, "node"),
        (lambda w: {**w, "1.weight": w["1.weight"].astype(np.int64)}, "program"),
        (lambda w: {**w, "1.weight": w["1.weight"].astype(np.uint8)}, "type torch.uint8"),
        (lambda w: {**w, "5.weight": w["5.weight"].T.copy()}, "node"),
        (lambda w: {"5.weight": w["5.weight"]}, "lacks the tensor"),
    ],
)
def test_tensors_that_do_not_fit(path, capsys, change, message):
    found = safetensors.numpy.load_file(path / "weights.safetensors")
    seal(path, weights=safetensors.numpy.save(change(found)))
    refused(path, message, capsys)


def parts(**changes):
    meta = {"name": "epsilon", "first": [], "layers": []}
    rule = {"rule": "Epsilon", "epsilon": 1e-6, "zero_params": None}
    return meta | {"kinds": [["convolution", rule], ["dense", rule]]} | changes


def ruled(**changes):
    return parts(kinds=[[kind, changes] for kind in ("convolution", "dense")])


@pytest.mark.parametrize(
    ("composite", "message"),
    [
        (ruled(rule="Explode"), "unknown rule 'Explode'"),
        (ruled(rule="__class__"), "unknown rule"),
        (ruled(rule=["Epsilon"]), "composite cannot be read"),
        (ruled(), "unknown rule None"),
        (ruled(rule="Epsilon", epsilon="1"), "epsilon cannot be '1'"),
        (ruled(rule="Epsilon", epsilon=True), "epsilon cannot be True"),
        (ruled(rule="Epsilon", epsilon=10**400), "epsilon cannot be 1000"),
        (ruled(rule="Epsilon", epsilon=[1]), "epsilon cannot be"),
        (ruled(rule="Epsilon", zero_params=5), "zero_params cannot be 5"),
        (ruled(rule="Epsilon", stuff=1), "unexpected keyword argument 'stuff'"),
        (parts(kinds=[]), "no rule for"),
        (parts(kinds={"convolution": 1}), "composite cannot be read"),
        (parts(kinds=[["dense", "Epsilon"]]), "composite cannot be read"),
        (parts(first=None), "composite cannot be read"),
        ({}, "composite cannot be read"),
        ({"name": "epsilon"}, "composite cannot be read"),
    ],
)
def test_composites_that_do_not_fit(path, capsys, composite, message):
    seal(path, composite=composite)
    refused(path, message, capsys)
    assert main.main(["info", str(path)]) == 0  # SQL and info do not need it


def relayered(**changes):
    def change(meta):
        meta["layers"][1].update(changes)

    return change


@pytest.mark.parametrize(
    "change",
    [
        relayered(name="other"),
        relayered(kind="dense"),
        relayered(shape=[2, 8], n_units=16),
        relayered(aliases=["5"]),
        relayered(depth=7),
        lambda meta: meta["layers"].pop(),
        lambda meta: meta["groups"].append([2, 0, 5]),
        lambda meta: meta["groups"].clear(),
    ],
)
def test_layers_that_are_not_the_programs(path, capsys, change):
    meta = json.loads((path / "store.json").read_text())
    change(meta)
    if len(meta["layers"]) == 2:
        meta["groups"] = meta["groups"][:1]
    seal(path, layers=meta["layers"], groups=meta["groups"])
    refused(path, "layers that .* lists", capsys)


def manifest(path):
    (file,) = (path / "shards").glob("*.json")
    return file, json.loads(file.read_text())


@pytest.mark.parametrize("name", ["../s.edges.parquet", "/etc/passwd", "..", "a/b.edges.parquet"])
def test_manifests_that_point_elsewhere(path, capsys, name):
    file, data = manifest(path)
    data["files"]["edges"]["name"] = name
    file.write_text(json.dumps(data))
    refused(path, "manifest", capsys)


def test_links_in_the_place_of_files(path, tmp_path, capsys):
    _, data = manifest(path)
    name = data["files"]["tensors"]["name"]
    (path / "shards" / name).rename(tmp_path / "elsewhere")
    (path / "shards" / name).symlink_to(tmp_path / "elsewhere")
    refused(path, "symbolic link", capsys)


def test_a_target_that_the_network_does_not_have(path, capsys):
    from nrm_graph.store.format.schema import input_id

    file, data = manifest(path)
    data["inputs"][0]["target"] = 70
    data["inputs"][0]["input_id"] = input_id("k", 70)
    file.write_text(json.dumps(data))
    refused(path, "target 70 is out of range|damaged|holds 0 rows", capsys)
