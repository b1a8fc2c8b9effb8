"""Make tests/store/data/format1.nrm, a small store that every later release must read.

Run once, when the format was final: ``python tests/helpers/make_format1.py``.  What is committed
stays as it is; a new format gets a file of its own.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import nrm_graph as ng
from nrm_graph.store.write.writer import Writer

PATH = Path(__file__).parents[1] / "store" / "data" / "format1.nrm"


def make(path):
    """Two shards, a custom partition, metadata whose type widens, and a failure."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    rows = [
        {"input": torch.tensor([1.0, 0.5, 2.0]), "key": "a.png", "label": "cat", "score": 1},
        {"input": torch.tensor([0.25, 2.0, 0.5]), "key": "b.png", "label": "dog", "score": 0.5},
    ]
    for row in rows:
        ng.extract(
            net,
            [row],
            path,
            composite="epsilon",
            target=[0, 1],
            resolution={"0": np.array([0, 1, 1, 2])},
            classes=["cat", "dog"],
            preprocessing="none",
            progress=False,
        )
    with Writer(path) as writer:
        writer.fail("c.png", "cannot be read")


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} is there: it is never made again")
    make(PATH)
