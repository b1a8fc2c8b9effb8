"""Make tests/store/data/format2.nrm, a small bounded store that every later release must read.

Run once, when the format was final: ``python tests/helpers/make_format2.py``.  What is committed
stays as it is; a new format gets a file of its own.
"""

import sys
from pathlib import Path

import torch

import nrm_graph as ng

PATH = Path(__file__).parents[1] / "store" / "data" / "format2.nrm"
EVENT = ng.Layer("0")[:9]


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 3),
    )


def images(first, last):
    """Seeded inputs, of which each pair of layers has more edges than a store keeps."""
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    return [{"input": x[i], "key": f"{i}.png", "label": "ab"[i % 2]} for i in range(first, last)]


def make(path):
    """Two inputs with at most 60 edges each, and a condition."""
    options = {"composite": "epsilon", "max_edges": 60, "progress": False}
    with ng.extract(network(), images(0, 2), path, **options) as db:
        db.materialize(EVENT, name="b", progress=False)


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} is there: it is never made again")
    make(PATH)
