"""Measures of three small networks to draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.drawn import CHANNELS, Residual
from torch import nn

import nrm_graph as ng


@pytest.fixture(scope="session")
def conv() -> Any:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    how = {"input": "channel", "0": "channel", "2": "channel"}
    return ng.measure(net, torch.rand(2, 6, 6), target=1, resolution=how, dtype="float64")


@pytest.fixture(scope="session")
def residual() -> Any:
    torch.manual_seed(2)
    x = torch.rand(2, 6, 5)
    return ng.measure(Residual(), x, target=0, resolution=CHANNELS, dtype="float64")


@pytest.fixture(scope="session")
def dense() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return ng.measure(net, torch.randn(5), target=1, dtype="float64")
