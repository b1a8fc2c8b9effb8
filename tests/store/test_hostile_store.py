"""Stores from strangers: sizes and checksums all agree, and the content is meant to do harm.

Malformed settings and manifests are the subject of test_store_format.py, SQL of
test_store_sql.py.  Here the program, its tensors, the composite and the layers lie.
"""

import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.network.ir import validation
from nrm_graph.network.ir.program import from_json
from nrm_graph.store import stored_measure


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "s.nrm"
    rows = [{"input": torch.linspace(0, 1, 16).reshape(1, 4, 4), "key": "k"}]
    with ng.extract(network(), rows, path, target=1, progress=False):
        return path


@pytest.fixture
def path(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "s.nrm")


def seal(path, program=None, weights=None, **settings):
    """Write files of a store, with the sizes, checksums and program hash that belong to them."""
    meta = json.loads((path / "store.json").read_text())
    for name, data in (("program.json", program), ("weights.safetensors", weights)):
        if data is not None:
            (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        found = (path / name).read_bytes()
        meta["files"][name] = {"size": len(found), "sha256": hashlib.sha256(found).hexdigest()}
    try:
        tensors = safetensors.torch.load_file(path / "weights.safetensors")
        meta["program_hash"] = from_json((path / "program.json").read_text(), tensors).hash()
    except Exception:  # of no use for what cannot be read
        pass
    (path / "store.json").write_text(json.dumps(meta | settings))


def edited(path, change):
    graph = json.loads((path / "program.json").read_text())
    found = change(graph)
    seal(path, json.dumps(graph if found is None else found))


def refused(path, message, capsys):
    """Opening or an exact query must end in one line, in the library and the command line."""
    with pytest.raises(ng.StoreError, match=message) as caught, ng.open(path) as db:
        db.measure("k")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert main.main(["relevance", str(path), "--input", "k", "1[0]"]) == 6
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("nrm-graph: ")
    return str(caught.value)


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


# --- programs ---------------------------------------------------------------------------------


def node(graph, op):
    return next(n for n in graph["nodes"] if op in n["op"])


def put(of, /, **changes):
    def change(graph):
        node(graph, of).update(changes)

    return change


def argument(op, at, value):
    def change(graph):
        args = node(graph, op)["args"]
        args.extend([0] * (at + 1 - len(args)))
        args[at] = value

    return change


def inserted(**fields):
    """A further node behind the padding."""

    def change(graph):
        first = {"ref": graph["nodes"][0]["name"]}
        base = {
            "kwargs": {},
            "module": "",
            "call": "",
            "args": [{"ref": first}],
            "shape": [1, 6, 6],
        }
        graph["nodes"].insert(1, base | {"name": "extra", "args": [first]} | fields)
        graph["nodes"][2]["args"][0] = {"ref": "extra"}

    return change


def twice(graph):
    graph["nodes"].append(dict(graph["nodes"][-1]))


def turned(graph):
    graph["nodes"].reverse()


def itself(graph):
    graph["nodes"][0]["args"][0] = {"ref": graph["nodes"][0]["name"]}


REF = {"ref": "input"}
PROGRAMS = {
    "foreign operation": (put("relu", op="aten.from_file.default"), "not allowed"),
    "python": (put("relu", op="builtins.eval"), "not allowed"),
    "dotted": (put("relu", op="aten.relu.default.__globals__"), "not allowed"),
    "no name of ATen": (put("relu", op="aten.softsign.default"), "not allowed"),
    "file argument": (inserted(op="aten.relu.default", args=["/etc/passwd"]), "node extra"),
    "view of 10^12": (argument("reshape", 1, [10**6, 10**6]), "node"),
    "expand to 10^12": (
        inserted(op="aten.expand.default", args=[REF, [10**6, 10**6, 4, 4]]),
        "node extra.*(numbers|cannot be executed)",
    ),
    "reshape to 10^12": (
        inserted(op="aten.reshape.default", args=[REF, [10**6, 10**6]]),
        "node extra",
    ),
    "pad by 10^9": (argument("pad", 1, [10**9, 10**9, 0, 0]), "node .*numbers"),
    "pad by 10^18": (argument("pad", 1, [10**18, 1, 0, 0]), "argument is 10{18}"),
    "pad by -100": (argument("pad", 1, [-100, -100, 0, 0]), "node"),
    "pad by 10^40": (argument("pad", 1, [10**40, 1, 0, 0]), "argument is"),
    "pad by text": (argument("pad", 1, "all"), "node"),
    "upsampling by 10^6": (
        inserted(op="aten.upsample_nearest2d.vec", args=[REF, None, [1e6, 1e6]]),
        "node extra.*numbers",
    ),
    "negative stride": (argument("conv2d", 3, [-1, -1]), "node conv2d"),
    "no stride": (argument("conv2d", 3, [0, 0]), "node conv2d"),
    "no groups": (argument("conv2d", 6, 0), "node conv2d"),
    "dilation of 10^9": (argument("conv2d", 5, [10**9, 10**9]), "node conv2d"),
    "window of 0": (argument("max_pool2d", 1, [0, 0]), "node max_pool2d"),
    "window of -1": (argument("max_pool2d", 1, [-1, -1]), "node max_pool2d"),
    "step of 0": (argument("max_pool2d", 2, [0, 0]), "node max_pool2d"),
    "wrong axis": (inserted(op="aten.transpose.int", args=[REF, 1, 99]), "node extra"),
    "10^9 parts": (
        inserted(op="aten.split.Tensor", args=[REF, 0, 3]),
        "node extra",
    ),
    "list as tensor": (inserted(op="aten.relu.default", args=[[REF, REF]]), "node extra"),
    "parts as tensor": (inserted(op="aten.unbind.int", args=[REF, 0]), "node"),
    "too few arguments": (put("linear", args=[]), "node linear"),
    "unknown keyword": (put("relu", kwargs={"out": 1}), "node relu"),
    "shape of one, axis of another": (put("relu", shape=[10**9]), "not the one"),
    "no shape": (put("relu", shape=[]), "not the one"),
    "negative shape": (put("relu", shape=[-2, 4, 4]), "not the one"),
    "batch axis 7": (put("relu", batch=[7, 1, 1]), "program"),
    "batch of no samples": (put("relu", batch=[0, 0, 0]), "program"),
    "two batch axes": (put("relu", batch=[1, 1, 2]), "program"),
    "unknown batch": (put("relu", batch=[0, 1, 1, 1]), "program"),
    "repeated node": (twice, "damaged"),
    "wrong order": (turned, "damaged"),
    "reads itself": (itself, "damaged"),
    "output that is none": (lambda g: g.update(output="nothing"), "output nothing"),
    "huge input": (lambda g: g.update(inputs=[["input", [1 << 20, 1 << 20]]]), "numbers"),
    "negative input": (lambda g: g.update(inputs=[["input", [1, -4, 4]]]), "has the shape"),
    "no input": (lambda g: g.update(inputs=[]), "damaged"),
    "other input": (lambda g: g.update(inputs=[["input", [1, 40, 40]]]), "node|layers"),
    "no nodes": (lambda g: g.update(nodes=[]), "output"),
    "nodes as text": (lambda g: g.update(nodes="abc"), "not a program"),
    "unknown reference": (inserted(op="aten.relu.default", args=[{"ref": "x" * 50}]), "reads"),
    "unknown argument": (inserted(op="aten.relu.default", args=[{"code": 1}]), "unknown arg"),
    "two in one": (inserted(args=[{"ref": "a", "weight": "b"}], op="aten.relu.default"), "program"),
    "a list": (lambda g: [g], "not a program"),
    "nothing": (lambda g: {}, "not a program"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_do_harm(path, capsys, name):
    change, message = PROGRAMS[name]
    edited(path, change)
    refused(path, message, capsys)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff", b"null", b"[" * 1_000_000, b'{"nodes": ' + b'{"a":' * 50_000, b"NaN"],
    ids=["empty", "bytes", "null", "deep", "deep objects", "NaN"],
)
def test_programs_that_are_none(path, capsys, text):
    seal(path, text)
    refused(path, r"program", capsys)


def test_deep_arguments(path, capsys):
    text = (path / "program.json").read_text()
    deep = text.replace('"args": [', '"args": [' + "[" * 400 + "]" * 400 + ",", 1)
    assert deep != text or '"args":[' in text
    seal(path, deep.replace('"args":[', '"args":[' + "[" * 400 + "]" * 400 + ",", 1))
    refused(path, "program", capsys)


def test_a_million_nodes(path, capsys, monkeypatch):
    monkeypatch.setattr(validation, "MAX_NODES", 1000)

    def many(graph):
        last = graph["nodes"][-1]
        shape, name = last["shape"], last["name"]
        for i in range(1000):
            graph["nodes"].append(
                {"name": f"n{i}", "op": "aten.relu.default", "args": [{"ref": name}],
                 "kwargs": {}, "module": "", "call": "", "shape": shape}
            )  # fmt: skip
            name = f"n{i}"
        graph["output"] = name

    edited(path, many)
    refused(path, "expected at most 1,000", capsys)


def test_many_large_values_are_refused_together(path, capsys, monkeypatch):
    monkeypatch.setattr(validation, "MAX_TOTAL", 50)
    refused(path, "needs more than 50 numbers", capsys)


def test_what_the_meta_device_lets_pass_is_named_too(path, capsys, monkeypatch):
    monkeypatch.setattr(stored_measure, "vet", lambda program: None)
    found = safetensors.numpy.load_file(path / "weights.safetensors")
    found["1.weight"] = found["1.weight"].astype(np.int64)
    seal(path, weights=safetensors.numpy.save(found))
    refused(path, r"cannot be executed.*at the node conv2d", capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_absurd_programs_take_no_memory(path):
    """In a process that may have 3 GiB more, each of the absurd ones is refused."""
    absurd = [n for n in PROGRAMS if "10^" in n] + ["huge input"]
    honest = (path / "program.json").read_text()
    copies = []
    for i, name in enumerate(absurd):
        seal(path, honest)
        copies.append(str(shutil.copytree(path, path.with_name(f"c{i}"))))
        edited(path.with_name(f"c{i}"), PROGRAMS[name][0])
    code = (
        "import resource, sys, nrm_graph as ng, torch, nrm_graph.store.stored_measure\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 30),) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    try: ng.open(path).measure('k')\n"
        "    except ng.StoreError: pass\n"
        "    else: sys.exit(path)\n"
        "(peak,) = [l for l in open('/proc/self/status') if l.startswith('VmHWM')]\n"
        "print(peak.split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *copies], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout) * 1024
    assert peak < 1 << 30


# --- composites, layers, inputs ---------------------------------------------------------------


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
