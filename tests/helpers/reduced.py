"""A small network with a skip, a store of it, and reduced tables beside its own."""

from __future__ import annotations

import functools
from unittest import mock

import torch
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

COUNT = 3
TARGETS = [0, 2]
WATCH = ["stem", "block", "x"]
BY = {"stem": "channel", "block": "channel"}
EVENT = ng.Layer("stem")[2]


class Residual(nn.Module):
    """A stem, two convolutions around which a skip leads, and a dense layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.inner = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.block(torch.relu(self.inner(x))))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


class Images:
    """Seeded images, from one on."""

    def __init__(self, count=COUNT, first=0):
        torch.manual_seed(1)
        self.images = torch.randn(first + count, 1, 4, 4)[first:]
        self.first = first

    def __len__(self):
        return len(self.images)

    def __getitem__(self, n):
        return {"input": self.images[n], "key": f"k{n + self.first}", "label": "ab"[n % 2]}


@functools.cache
def program():
    """The traced network, traced once."""
    from nrm_graph.network.tracing.trace import trace

    return trace(Residual(), torch.zeros(1, 4, 4))


def extract(path, data=None, **options):
    """Extract images; units of convolutions are channels."""
    given = {"composite": "epsilon", "target": TARGETS, "resolution": {"stem": "channel"}}
    images = Images() if data is None else data
    with mock.patch("nrm_graph.network.tracing.trace_as_given.trace", return_value=program()):
        return ng.extract(Residual(), images, path, progress=False, **given | options)


def materialize(db, name="steps", event=None, **options):
    """Materialize tables of the strongest nodes."""
    given = {"watch": WATCH, "by": BY, "nodes": 9, "progress": False}
    db.materialize(event, name=name, **given | options)


def reduced_of(db, name, identity):
    """The reduced graph of one input, asked for by the nodes that are on record."""
    condition = db._conditions[name]
    m = db.measure(identity)
    m = m if condition.event is None else m.given(condition.event)
    watch, by = [], {}
    for layer in condition.nodes.labels[1:]:
        mask = torch.from_numpy(layer.labels >= 0).expand(layer.info.shape).numpy()
        watch.append(ng.Layer(layer.info.name)[mask])
        by[layer.info.name] = layer.resolution
    return m.reduced(watch, by, nodes=None)
