"""Small networks that keep their batch in unusual places, route constants in, or cut values up."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation import prepared_network
from nrm_graph.rules import Epsilon, Norm, composites


class Windows(nn.Module):
    """A convolution's map cut into windows as Swin does: ``(n * 4, 4, C)``, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.inner = nn.Linear(3, 4)
        self.norm = nn.Linear(4, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        x = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(x, (1, 1), (1, 2))
        y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(n * (h // 2) * (w // 2), 4, c)
        y = self.norm(F.relu(self.inner(y)))
        y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (-1, -1), (1, 2))
        return self.head(x.permute(0, 3, 1, 2).mean((2, 3)))


class SequenceFirst(nn.Module):
    """``(tokens, n, features)`` as MultiheadAttention has it, and ``(tokens * n, features)``."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.up = nn.Linear(4, 5)
        self.down = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):  # (n, 3, 4)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1).transpose(0, 1)
        y = F.relu(self.up(x))
        tokens, n, _ = y.shape
        y = self.down(y.reshape(tokens * n, 5)).view(tokens, n, 4)
        x = x + y
        return self.head(x.mean(0))


class Frames(nn.Module):
    """Frames of a video, convolved and pooled one by one: ``(n * frames, C, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.head = nn.Linear(2 * 2 * 4, 3)

    def forward(self, x):  # (n, 2, 1, 4, 4)
        n, frames = x.shape[:2]
        y = F.relu(self.bn(self.conv(x.flatten(0, 1))))
        y = F.avg_pool2d(F.max_pool2d(y, 2, 1), 1)
        return self.head(y.view(n, frames, 2, 2, 2).permute(0, 2, 1, 3, 4).flatten(1))


class FramesInFront(nn.Module):
    """As Frames, but the frames run slowest: ``(frames * n, ...)``, and heads inside as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(2 * 2 * 4, 3)

    def forward(self, x):  # (n, 2, 1, 3, 3)
        n = x.shape[0]
        y = F.relu(self.conv(x.transpose(0, 1).reshape(2 * n, 1, 3, 3)))  # frames slowest
        y = y.view(2, n, 2, 4).reshape(2 * n * 2, 4)  # frames, batch, channels on one axis
        y = F.relu(self.mix(y)).view(2, n, 8).transpose(0, 1)
        return self.head(y.flatten(1))


class BatchInside(nn.Module):
    """The batch on the last axis of a sum, of a scale and of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.randn(4, 1))
        self.head = nn.Linear(3, 3)

    def forward(self, x):  # (n, 4)
        y = F.relu(self.a(x)).t()
        y = (y + x.t() + self.shift) * self.shift
        return self.head(y[1:].t())


class Padded(nn.Module):
    """Constants padded in, overlapping max-pools, and a pool that may choose the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2)
        self.head = nn.Linear(18, 3)

    def forward(self, x):
        x = F.max_pool2d(F.pad(F.relu(self.conv1(x)), (1, 0, 1, 1), value=0.6), 2, 1)
        y = F.max_pool2d(self.conv2(x), 2, 1)
        return self.head(torch.cat([x[:, :, :3, :3].flatten(1), y.flatten(1)], 1)[:, 4:22])


class Token(nn.Module):
    """A class token that sums, a dense layer and a slice read; the answer is the token's."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.up, self.mix = nn.Linear(3, 4), nn.Linear(4, 4)
        self.down, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):  # (n, 3, 3)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y = F.relu(self.up(x)).transpose(1, 2)
        x = x + self.down(F.relu(self.mix(y)).transpose(1, 2))
        return self.head(x[:, 0])


class Splits(nn.Module):
    """Chunks, one of them read twice and one not at all, joined in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 9), nn.Linear(3, 3), nn.Linear(5, 4)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        one, two, _ = self.a(x).relu().chunk(3, 1)
        y = two + self.b(one)
        left, right = torch.split(torch.cat([y, x], 1), [2, 5], 1)
        return self.head(torch.cat([self.c(right).relu(), one, left, y[:, 1:2]], 1))


UNUSUAL = {
    "windows": (Windows, (2, 4, 4)),
    "sequence_first": (SequenceFirst, (3, 4)),
    "frames": (Frames, (2, 1, 4, 4)),
    "frames_in_front": (FramesInFront, (2, 1, 3, 3)),
    "batch_inside": (BatchInside, (4,)),
}

ROUTED = {"padded": (Padded, (1, 5, 5)), "token": (Token, (3, 3)), "splits": (Splits, (4,))}
"""Constants that are routed in, and values in parts; the batch in front."""


def unusual(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A seeded float64 network and a batch of three inputs."""
    made, shape = (UNUSUAL | ROUTED)[name]
    torch.manual_seed(3)
    net = made().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net, torch.randn(3, *shape, dtype=torch.float64)


TINY = 1e-13
EXACT = composites.composite(
    "exact",
    {
        "convolution": Epsilon(TINY),
        "dense": Epsilon(TINY),
        "batch_norm": Epsilon(TINY),
        "sum": Norm(TINY),
        "average": Norm(TINY),
    },
)


@functools.cache
def traced(name: str):
    """The network, its inputs and its program: what is slow, and the same for all rules."""
    net, x = unusual(name)
    return net, x, trace(net, x[:1])


@functools.cache
def network(name: str, rules: str = "exact"):
    """The network, its inputs, and the network with rules that relevance is propagated in."""
    net, x, program = traced(name)
    composite = EXACT if rules == "exact" else composites.get(rules)
    return net, x, prepared_network.network(program, composite, torch.float64)
