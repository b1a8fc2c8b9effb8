"""Stores without a network: settings and records of a few rows, made by hand."""

import hashlib
import json

import numpy as np
import pyarrow as pa

from nrm_graph.store.format import settings
from nrm_graph.store.format.schema import Record, content_hash
from nrm_graph.store.write.writer import Writer

LAYERS = [
    {
        "layer_id": i,
        "name": name,
        "kind": kind,
        "shape": [n],
        "resolution": "neuron",
        "n_units": n,
        "depth": i,
        "aliases": [],
    }
    for i, (name, kind, n) in enumerate([("x", "input", 3), ("0", "dense", 4), ("1", "dense", 2)])
]


def settings_of(**changes):
    return {
        "program_hash": hashlib.sha256(b"program").hexdigest(),
        "composite": {"name": "epsilon"},
        "layers": [dict(row) for row in LAYERS],
        "groups": [[1, 0, 12], [2, 1, 8]],
        "coverage": 1.0,
        "top": None,
        "mantissa_bits": None,
        "classes": ["cat", "dog"],
        "preprocessing": None,
        "versions": {"nrm-graph": "test"},
        **changes,
    }


def make(path, program="{}", units=None, **changes):
    settings.create(
        path, settings_of(**changes), program, {"w": np.ones(3, np.float32)}, units or {}
    )
    return path


def tables(seed=0, edges=5):
    rng = np.random.default_rng(seed)
    nodes = pa.table(
        {
            "layer_id": pa.array([0, 0, 1, 1, 2], pa.int16()),
            "unit": pa.array([0, 2, -1, 3, 1], pa.int32()),
            "relevance": pa.array(rng.normal(size=5).astype(np.float32)),
            "activation": pa.array([0.5, 1.0, None, 2.0, 3.0], pa.float32()),
        }
    )
    units = np.arange(edges)
    steps = pa.table(
        {
            "dst_layer": pa.array(np.full(edges, 1), pa.int16()),
            "dst_unit": pa.array(units // 3, pa.int32()),
            "src_layer": pa.array(np.zeros(edges), pa.int16()),
            "src_unit": pa.array(units % 3, pa.int32()),
            "relevance": pa.array(rng.normal(size=edges).astype(np.float32)),
            "conditional": pa.array(rng.normal(size=edges).astype(np.float32)),
        }
    )
    return nodes, steps


def record(number=0, target=0, tensor=True, metadata=None, key=None, **changes):
    x = np.full(3, number, np.float32)
    nodes, edges = tables(100 * number + abs(target))
    values = {
        "key": f"input{number}" if key is None else key,
        "target": target,
        "label": "cat",
        "predicted": target,
        "logit": 1.5 + number,
        "metadata": {} if metadata is None else metadata,
        "content": content_hash(x),
        "tensor": {True: x, False: None}[tensor] if isinstance(tensor, bool) else tensor,
        "nodes": nodes,
        "edges": edges,
    }
    return Record(**{**values, **changes})


def write(path, records, **options):
    with Writer(path, **options) as writer:
        for item in records:
            writer.add(item)
    return path


def checksums(path):
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(path.rglob("*"))
        if f.is_file()
    }


def all_rows(db):
    """Every row of a store's tables, in order."""
    return {
        table: db.sql(f"SELECT * FROM {table} ORDER BY ALL").fetchall()
        for table in ("inputs", "nodes", "edges", "failures")
    }


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
