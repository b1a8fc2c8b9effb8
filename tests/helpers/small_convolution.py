"""A small convolutional network, one input, and two sets of its neurons."""

from __future__ import annotations

import functools

import torch
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

L = ng.Layer
A, B = L("0")[0], L("3")[1]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@functools.cache
def program():
    return ng.trace(network(), image())


def image() -> torch.Tensor:
    return torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
