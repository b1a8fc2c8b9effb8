"""Programs from strangers: foreign operations, absurd arguments and sizes, sound checksums."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from helpers.resealed import edited, refused, seal

from nrm_graph.network.ir import validation
from nrm_graph.store import stored_measure


@pytest.fixture
def path(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "s.nrm")


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
    "shape of a half": (put("relu", shape=[2.5, 4, 4]), r"shape\[0\] to be an integer, found 2"),
    "infinite shape": (put("relu", shape=[1e999, 4]), r"shape\[0\] to be an integer, found inf"),
    "infinite batch": (put("relu", batch=[1e999, 1, 1]), r"axis to be an integer, found inf"),
    "infinite input": (lambda g: g.update(inputs=[["input", [1e999]]]), "to be an integer"),
    "module that is none": (put("relu", module=3), r"nodes\[\d\]\.module to be text, found 3"),
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
