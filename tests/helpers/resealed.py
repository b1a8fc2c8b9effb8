"""A store of which something was changed, under checksums that belong to the change."""

import hashlib
import json

import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.network.ir.program import from_json


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


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
