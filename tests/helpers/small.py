"""One small network, traced once, to extract the data of many tests with."""

import functools

import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.network.tracing import given_program
from nrm_graph.network.tracing.trace import trace

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval().requires_grad_(False)
X = torch.randn(12, 8)


def extract(path, inputs, **options):
    """Extract with the network; it is traced at the first call alone."""
    plain = given_program.traced

    def traced(model, names, xs, output):
        if xs[0].shape != (8,):
            return plain(model, names, xs, output)
        return program(), (xs[0][None],)

    given_program.traced = traced
    try:
        return ng.extract(
            NET, inputs, path, **{"composite": "epsilon", "progress": False, **options}
        )
    finally:
        given_program.traced = plain


@functools.cache
def program():
    """Trace the network."""
    return trace(NET, X[:1])


def rows(db, columns="item, label", order="item"):
    """Rows of ``inputs``."""
    return db.sql(f"SELECT {columns} FROM inputs ORDER BY {order}").fetchall()


def values(db):
    """Number of the row of X that each input is, by item."""
    found = {}
    for identity, entry in db._snapshot.entries.items():
        x = torch.from_numpy(db._snapshot.tensors(identity)[""].copy())
        found[entry.item] = int((x == X).all(1).nonzero()[0])
    return dict(sorted(found.items()))
