"""Bounded stores of a small network with a skip connection.

Run as ``python -m helpers.bounded STORE PROGRAM``: two processes extract one half of the inputs
each into one store, at the same time.
"""

from __future__ import annotations

import functools
import os
import sys

import torch
from torch import nn

import nrm_graph as ng

COUNT, MOST = 8, 300


class Skip(nn.Module):
    """Two convolutions, the second of which may be bypassed, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(3)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(self.pool((x + self.second(x)).relu()).flatten(1))


@functools.cache
def program(kind: str = "float64"):
    """The traced network; in float64 rounding changes no edge for another."""
    torch.manual_seed(0)
    dtype = getattr(torch, kind)
    return ng.trace(Skip().to(dtype).eval(), torch.zeros(1, 2, 6, 6, dtype=dtype))


class Images:
    """Seeded images, the last of which may signal its own process."""

    def __init__(self, places=range(COUNT), sent=None):
        images = torch.randn(COUNT, 2, 6, 6, generator=torch.Generator().manual_seed(1))
        self.rows = [{"input": images[i].double(), "key": f"k{i}"} for i in places]
        self.sent = sent

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        if self.sent is not None and place == len(self) - 1:
            os.kill(os.getpid(), self.sent)
        return self.rows[place]


def extract(path, data=None, net=None, **options):
    """Extract images with at most so many edges each."""
    options = {"max_edges": MOST, "target": 1, "progress": False, **options}
    return ng.extract(net or program(), Images() if data is None else data, path, **options)


def main():
    """Fork where imports are done, so that two processes cost one start."""
    import nrm_graph.extraction.extract  # noqa: F401

    torch.set_num_threads(1)
    path, file = sys.argv[1:]
    net = ng.load_program(file)
    starts, start = os.pipe()
    children = []
    for half in (range(0, COUNT, 2), range(1, COUNT, 2)):
        child = os.fork()
        if not child:
            os.close(start)
            os.read(starts, 1)  # until both are there
            extract(path, Images(half), net, batch_size=1 + half.start)
            os._exit(0)
        children.append(child)
    os.close(start)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children))


if __name__ == "__main__":
    main()
