"""Stores to verify, and ways to damage them that leave checksums valid."""

import functools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.network.tracing import trace_as_given
from nrm_graph.network.tracing.trace import trace
from nrm_graph.store.format.files import seal, sha256_of
from nrm_graph.store.format.schema import ORDER, parquet_options


class Branches(nn.Module):
    """A residual sum, a concatenation and a pool."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.side = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(7 * 9, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = torch.relu(self.second(x)) + x
        z = torch.cat([y, torch.relu(self.side(x))], 1)
        return self.head(torch.max_pool2d(z, 2).flatten(1))


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def branches():
    torch.manual_seed(0)
    return Branches().eval()


def images(count, shape=(2, 6, 6)):
    torch.manual_seed(1)
    return [{"input": torch.randn(shape), "key": f"k{i}", "score": 0.5} for i in range(count)]


OPTIONS = {"progress": False, "composite": "epsilon"}


@functools.cache
def program():
    """The branches, traced: it takes longer than all the rest of an extraction."""
    return trace(branches(), images(1)[0]["input"])


def build(path, net=None, count=4, shape=(2, 6, 6), **options):
    """Extract the branches, or another network."""
    with pytest.MonkeyPatch.context() as patch:
        if net is None:
            patch.setattr(trace_as_given, "trace", lambda *_: program())
        rows = images(count, shape)
        ng.extract(net or branches(), rows, path, **{**OPTIONS, **options}).close()
    return path


def kinds(path):
    """One file of every kind."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            kind = file.name.split(".", 1)[1] if file.parent.name == "shards" else file.name
            found.setdefault(kind, file)
    return found


def edit_json(file, change):
    """Change a JSON file and seal it again."""
    raw = json.loads(file.read_text())
    raw.pop("seal", None)
    change(raw)
    file.write_text(json.dumps(raw | {"seal": seal(raw)}))


def reseal(file, rows=None, groups=None):
    """Write size, checksum and counts of a data file into its manifest."""
    name, table, _ = file.name.split(".")

    def change(raw):
        info = raw["files"][table]
        info |= {"size": file.stat().st_size, "sha256": sha256_of(file)}
        if rows is not None:
            info["rows"] = rows
        for entry, group in zip(raw["inputs"], groups or (), strict=False):
            entry[table] = group

    edit_json(file.with_name(f"{name}.json"), change)


def rewrite(path, table, change, sealed=True):
    """Change the rows of the first input of a table, and everything that speaks of them."""
    file = kinds(path)[f"{table}.parquet"]
    with pq.ParquetFile(file) as opened:
        parts = [opened.read_row_group(i) for i in range(opened.num_row_groups)]
        schema = opened.schema_arrow
    first = {name: parts[0][name].to_pylist() for name in parts[0].column_names}
    parts[0] = pa.table(change(first) or first, schema=schema)
    with pq.ParquetWriter(file, schema, **parquet_options(table)) as writer:
        for part in parts:
            writer.write_table(part)
    if sealed:
        groups = [[i, 1] for i in range(len(parts))] if table in ORDER else None
        reseal(file, sum(map(len, parts)), groups)
    return file


def set_value(column, row, value):
    def change(rows):
        rows[column][row] = value(rows[column][row]) if callable(value) else value

    return change


def strongest(rows):
    return int(np.argmax(np.abs(rows["relevance"])))


def scaled(rows):
    rows["relevance"][strongest(rows)] *= 1.001
