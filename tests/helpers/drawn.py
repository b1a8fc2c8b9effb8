"""A network to draw, and what a picture holds: its circles, and whether its texts are apart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_hex
from torch import nn


class Residual(nn.Module):
    """Two convolutions, a skip connection round the second, averages and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 6 * 5, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        return self.head(x.flatten(1))


CHANNELS = {"x": "channel", "first": "channel", "second": "channel", "add": "channel"}


def circles(ax: Any, kind: str) -> list[tuple[float, float, float, str]]:
    """Marks of a kind: x, y, size and colour."""
    return [
        (*np.asarray(c.get_offsets())[0], float(c.get_sizes()[0]), to_hex(c.get_facecolor()[0]))
        for c in ax.collections
        if c.get_label() == kind
    ]


def boxes_apart(ax: Any, texts: list[Any]) -> bool:
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
