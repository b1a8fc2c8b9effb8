"""Small networks of attention, norms, gates, interpolation and sums, twice.

Every network is run by the package, and layer by layer in NumPy with the kernels of
``dense_attention``, which come from the formulas alone: each class has a ``reference``.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import nrm_graph as ng
from reference.dense_attention import Reference, constant, join

TARGET = 1


def heads(x, count: int):
    """``(tokens, count * d)`` to ``(count, tokens, d)``, of an array."""
    return x.reshape(x.shape[0], count, -1).transpose(1, 0, 2)


class Attention(nn.Module):
    """Queries, keys and values from one sequence; fewer heads of keys than of queries."""

    def __init__(self, *, how="plain", count=2, groups=2, d=3, tokens=3, size=2, bias=True):
        super().__init__()
        self.how, self.count, self.groups = how, count, groups
        self.q = nn.Linear(d, count * size, bias=bias)
        self.k = nn.Linear(d, groups * size, bias=bias)
        self.v = nn.Linear(d, groups * size, bias=bias)
        self.o = nn.Linear(count * size, d, bias=bias)
        self.head = nn.Linear(d, 3)
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("shift", torch.randn(tokens, tokens, generator=generator))
        self.register_buffer("hidden", torch.ones(tokens, tokens, dtype=torch.bool).triu(1))

    def split(self, x, count):
        return x.unflatten(-1, (count, -1)).transpose(1, 2)

    def forward(self, x):
        q = self.split(self.q(x), self.count)
        k, v = (self.split(f(x), self.groups) for f in (self.k, self.v))
        if self.how == "gqa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        elif self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=~self.hidden, scale=0.7)
        elif self.how == "fused_bias":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.shift)
        else:
            repeat = self.count // self.groups
            if self.how == "interleaved":
                k, v = (t.repeat_interleave(repeat, 1) for t in (k, v))
            elif repeat > 1:
                k, v = (t[:, :, None].expand(-1, -1, repeat, -1, -1).flatten(1, 2) for t in (k, v))
            if self.how == "scaled_queries":
                s = (q * 0.3) @ k.transpose(-2, -1)
            else:
                s = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            if self.how == "masked":
                s = s.masked_fill(self.hidden, -torch.inf)
            elif self.how == "lowest":
                s = s.masked_fill(self.hidden, torch.finfo(s.dtype).min)
            elif self.how == "bias":
                s = s + self.shift
            y = s.softmax(-1) @ v
        return self.head(self.o(y.transpose(1, 2).flatten(2)).mean(1))

    def reference(self, ref: Reference, x):
        q, k, v = (ref.module(n, "dense", x, getattr(self, n)) for n in "qkv")
        q = q.to(lambda a: heads(a, self.count))
        repeat = self.count // self.groups
        k, v = (o.to(lambda a: heads(a, self.groups).repeat(repeat, 0)) for o in (k, v))
        if self.how == "scaled_queries":
            q = q.map(lambda t: t * 0.3)
        s = ref.matmul("product", "product", q, k.to(lambda a: a.transpose(0, 2, 1)))
        if self.how != "scaled_queries":
            scale = 0.7 if self.how == "fused" else 1 / math.sqrt(q.shape[-1])
            s = s.map(lambda t: t * scale)
        if self.how in ("masked", "lowest", "fused", "gqa"):
            s = s.fill(self.hidden.numpy(), -np.inf)
        elif self.how in ("bias", "fused_bias"):
            shift = np.broadcast_to(self.shift.double().numpy(), s.shape)
            s = ref.add("add", s, constant(shift))
        a = ref.softmax("attention_weights", s)
        y = ref.matmul("attention", "attention", a, v)
        y = y.to(lambda t: t.transpose(1, 0, 2).reshape(t.shape[1], -1))
        y = ref.module("o", "dense", y, self.o)
        y = ref.affine("average", "average", y, lambda t: t.mean(1))
        return ref.module("head", "dense", y, self.head)


class Weights(nn.Module):
    """Softmax over another axis and of the input itself; a product of a value with itself."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis, self.head = axis, nn.Linear(4, 3)

    def forward(self, x):  # (n, 2, 4)
        a = x.softmax(self.axis)
        return self.head((a @ (x.transpose(1, 2) @ x)).sum(1))

    def reference(self, ref, x):
        a = ref.softmax("attention_weights", x, self.axis - 1 if self.axis > 0 else self.axis)
        y = ref.matmul("product", "product", x.to(np.transpose), x)
        y = ref.matmul("attention", "attention", a, y)
        y = ref.affine("sum", "sum", y, lambda t: t.sum(1))
        return ref.module("head", "dense", y, self.head)


class Norm(nn.Module):
    """A norm under a dense head, behind an activation."""

    def __init__(self, make, shape, affine: bool) -> None:
        super().__init__()
        self.norm = make(affine)
        self.head = nn.Linear(math.prod(shape), 3)

    def forward(self, x):
        return self.head(F.silu(self.norm(F.gelu(x))).flatten(1))

    def reference(self, ref, x):
        n, x = self.norm, x.map(F.gelu)
        gamma = np.ones(()) if n.weight is None else n.weight.detach().numpy()
        bias = getattr(n, "bias", None)
        beta = np.zeros(()) if bias is None else bias.detach().numpy()
        if isinstance(n, nn.RMSNorm):
            y = ref.rms_norm("norm", x, gamma, n.eps)
        else:
            kind = {nn.LayerNorm: "layer_norm", nn.GroupNorm: "group_norm"}.get(
                type(n), "instance_norm"
            )
            if kind == "layer_norm":
                lead = x.shape[: len(x.shape) - len(n.normalized_shape)]
                groups = np.arange(math.prod(lead)).reshape(lead + (1,) * len(n.normalized_shape))
            else:
                channels = x.shape[0]
                per = channels // getattr(n, "num_groups", channels)
                tail = (channels,) + (1,) * (len(x.shape) - 1)
                groups = (np.arange(channels) // per).reshape(tail)
                gamma, beta = (p.reshape(tail) if p.ndim else p for p in (gamma, beta))
            y = ref.layer_norm("norm", kind, x, groups, gamma, beta, n.eps)
        y = y.map(F.silu).to(np.ravel)
        return ref.module("head", "dense", y, self.head)


class Excite(nn.Module):
    """Squeeze and excitation: ``(C, 1, 1) * (C, H, W)``, the gate on either side."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.conv, self.down, self.up = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = F.relu(self.conv(x))
        g = torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))
        y = g * x if self.first else x * g
        return self.head(y.mean((2, 3)))

    def reference(self, ref, x):
        x = ref.module("conv", "convolution", x, self.conv).map(torch.relu)
        y = ref.affine("average", "average", x, lambda t: t.mean((2, 3), keepdim=True))
        y = ref.module("down", "convolution", y, self.down).map(F.silu)
        g = ref.module("up", "convolution", y, self.up).map(torch.sigmoid)
        y = ref.multiply("gate", "gate", x, g, held=ref.cp)
        y = ref.affine("average_1", "average", y, lambda t: t.mean((2, 3)))
        return ref.module("head", "dense", y, self.head)


class Gated(nn.Module):
    """SwiGLU, a product of two values that are no gate of one another, and a square of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 1)
        self.down, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = self.down(F.silu(self.a(x)) * self.b(x))
        z = y * self.c(x)
        return self.head(z * z)

    def reference(self, ref, x):
        a = ref.module("a", "dense", x, self.a).map(F.silu)
        b = ref.module("b", "dense", x, self.b)
        y = ref.multiply("gate", "gate", b, a, held=ref.cp)
        y = ref.module("down", "dense", y, self.down)
        c = ref.module("c", "dense", x, self.c)
        z = ref.multiply("multiplication", "multiplication", y, c)
        z = z.map(torch.square)  # all from one neuron: an activation
        return ref.module("head", "dense", z, self.head)


class Resize(nn.Module):
    def __init__(self, mode, size, corners, shape) -> None:
        super().__init__()
        self.options = {"mode": mode, "size": size, "align_corners": corners}
        conv = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
        self.conv = conv(shape[0], 2, 1)
        self.head = nn.Linear(2 * math.prod(size), 2)

    def resize(self, x):
        return F.interpolate(x, **self.options)

    def forward(self, x):
        return self.head(self.resize(self.conv(x)).flatten(1))

    def reference(self, ref, x):
        y = ref.module("conv", "convolution", x, self.conv)
        y = ref.affine("interpolation", "interpolation", y, self.resize)
        return ref.module("head", "dense", y.to(np.ravel), self.head)


class Mixed(nn.Module):
    """A constant matrix on the left, a sum over axes, a concatenated token, a residual sum."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.mix = nn.Parameter(torch.randn(3, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 2))
        self.inner, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)

    def forward(self, x):  # (n, 3, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y = self.mix @ x
        y = self.inner(y) + x[:, 1:]
        y = y * y.sum((1, 2), keepdim=True) if self.keep else y
        return self.head(y.sum(1))

    def reference(self, ref, x):
        x = join([constant(self.token.detach().numpy()[0]), x], 0)
        y = ref.affine("dense", "dense", x, lambda t: self.mix @ t)
        y = ref.module("inner", "dense", y, self.inner)
        y = ref.add("add", y, x.to(lambda a: a[1:]))
        if self.keep:
            s = ref.affine("sum", "sum", y, lambda t: t.sum((1, 2), keepdim=True))
            y = ref.multiply("multiplication", "multiplication", y, s)
        y = ref.affine("sum_1" if self.keep else "sum", "sum", y, lambda t: t.sum(1))
        return ref.module("head", "dense", y, self.head)


class ClassToken(nn.Module):
    """A class token with positions, a norm, a dense layer of it alone, attention, a gate of it."""

    def __init__(self, rms: bool = False) -> None:
        super().__init__()
        self.token, self.place = (nn.Parameter(torch.randn(1, n, 3)) for n in (1, 3))
        self.norm = nn.RMSNorm(3, eps=0.1) if rms else nn.LayerNorm(3)
        self.q, self.k, self.v, self.o = (nn.Linear(3, 3) for _ in range(4))
        self.gate, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        y = self.norm(x)
        s = self.q(y) @ self.k(y).transpose(1, 2)
        x = x + self.o(s.softmax(-1) @ self.v(y)) * torch.sigmoid(self.gate(y))
        return self.head(x[:, 0])

    def reference(self, ref, x):
        token, place = (p.detach().numpy()[0] for p in (self.token, self.place))
        x = ref.add("add", join([constant(token), x], 0), constant(place))
        if isinstance(self.norm, nn.RMSNorm):
            y = ref.rms_norm("norm", x, self.norm.weight.detach().numpy(), self.norm.eps)
        else:
            gamma, beta = (p.detach().numpy() for p in (self.norm.weight, self.norm.bias))
            rows = np.arange(3)[:, None]
            y = ref.layer_norm("norm", "layer_norm", x, rows, gamma, beta, self.norm.eps)
        q, k = (ref.module(n, "dense", y, getattr(self, n)) for n in "qk")
        s = ref.matmul("product", "product", q, k.to(np.transpose))
        s, v = ref.softmax("attention_weights", s), ref.module("v", "dense", y, self.v)
        o = ref.module("o", "dense", ref.matmul("attention", "attention", s, v), self.o)
        g = ref.module("gate", "dense", y, self.gate).map(torch.sigmoid)
        x = ref.add("add_1", x, ref.multiply("gated", "gate", o, g, held=ref.cp))
        return ref.module("head", "dense", x.to(lambda a: a[0]), self.head)


class Joined(nn.Module):
    """A constant feature in an RMSNorm, whose spread reads it with the others."""

    def __init__(self) -> None:
        super().__init__()
        self.fill, self.norm = nn.Parameter(torch.randn(1, 2, 1)), nn.RMSNorm(4, eps=0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([x, self.fill.expand(x.shape[0], -1, -1)], 2)
        return self.head(self.norm(x).flatten(1))

    def reference(self, ref, x):
        x = join([x, constant(self.fill.detach().numpy()[0])], 1)
        y = ref.rms_norm("norm", x, self.norm.weight.detach().numpy(), self.norm.eps)
        return ref.module("head", "dense", y.to(np.ravel), self.head)


NORMS = {
    "layer": (lambda a: nn.LayerNorm(4, elementwise_affine=a), (3, 4)),
    "layer_of_two": (lambda a: nn.LayerNorm(2, elementwise_affine=a), (2, 2)),
    "layer_no_bias": (lambda a: nn.LayerNorm(4, elementwise_affine=a, bias=False), (2, 4)),
    "layer_axes": (lambda a: nn.LayerNorm((2, 3), elementwise_affine=a), (2, 2, 3)),
    "layer_eps": (lambda a: nn.LayerNorm(3, elementwise_affine=a, eps=0.3), (3,)),
    "group": (lambda a: nn.GroupNorm(2, 4, affine=a), (4, 2, 2)),
    "group_flat": (lambda a: nn.GroupNorm(2, 6, affine=a), (6,)),
    "group_one": (lambda a: nn.GroupNorm(1, 3, affine=a), (3, 3)),
    "instance": (lambda a: nn.InstanceNorm2d(2, affine=a), (2, 2, 3)),
    "instance1d": (lambda a: nn.InstanceNorm1d(3, affine=a), (3, 4)),
    "rms": (lambda a: nn.RMSNorm(4, elementwise_affine=a, eps=0.1), (2, 4)),
}

CASES = {
    "plain": (lambda: Attention(), (3, 3)),
    "no_bias": (lambda: Attention(bias=False), (3, 3)),
    "grouped": (lambda: Attention(count=4, groups=2, size=1), (3, 3)),
    "interleaved": (lambda: Attention(how="interleaved", count=4, size=1), (3, 3)),
    "one_key_head": (lambda: Attention(count=2, groups=1), (3, 3)),
    "gqa": (lambda: Attention(how="gqa", count=4, groups=2, size=1), (3, 3)),
    "fused": (lambda: Attention(how="fused"), (3, 3)),
    "fused_bias": (lambda: Attention(how="fused_bias"), (3, 3)),
    "scaled_queries": (lambda: Attention(how="scaled_queries"), (3, 3)),
    "masked": (lambda: Attention(how="masked"), (3, 3)),
    "lowest": (lambda: Attention(how="lowest"), (3, 3)),
    "bias": (lambda: Attention(how="bias"), (3, 3)),
    "weights": (lambda: Weights(-1), (2, 4)),
    "weights_axis": (lambda: Weights(1), (2, 4)),
    "excite": (lambda: Excite(False), (2, 3, 3)),
    "excite_gate_first": (lambda: Excite(True), (2, 3, 3)),
    "gated": (Gated, (3,)),
    "class_token": (lambda: ClassToken(), (2, 3)),
    "class_token_rms": (lambda: ClassToken(rms=True), (2, 3)),
    "joined": (Joined, (2, 3)),
    "mixed": (lambda: Mixed(False), (3, 2)),
    "mixed_sums": (lambda: Mixed(True), (3, 2)),
}
CASES |= {
    f"{name}_norm{'' if affine else '_plain'}": (
        functools.partial(Norm, make, shape, affine),
        shape,
    )
    for name, (make, shape) in NORMS.items()
    for affine in (True, False)
}
CASES |= {
    f"{mode}_{corners}_{'x'.join(map(str, size))}": (
        functools.partial(Resize, mode, size, corners, shape),
        shape,
    )
    for mode, shape, sizes in (
        ("linear", (2, 3), [(5,), (2,)]),
        ("bilinear", (2, 3, 2), [(5, 4), (2, 3)]),
        ("trilinear", (1, 2, 2, 3), [(3, 4, 2)]),
        ("bicubic", (1, 4, 3), [(6, 5), (3, 2)]),
    )
    for size in sizes
    for corners in (False, True)
}
# Of relatives, one runs every time.


def draw(name: str):
    make, shape = CASES[name]
    torch.manual_seed(len(name))
    net = make().double().eval()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in net.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn)
    return net, torch.randn((1, *shape), generator=generator, dtype=torch.float64)


@functools.cache
def traced(name: str):
    net, x = draw(name)
    return net, x, ng.trace(net, x[0])  # (1, 3, 4) might be one input without batch axis


@functools.cache
def both(name: str, epsilon: float, cp: bool, bias: str = "absorbed"):
    net, x, program = traced(name)
    ref = Reference(epsilon=epsilon, cp=cp, bias=bias)
    with torch.no_grad():
        out = net.reference(ref, ref.input("x", x[0].numpy()))
        np.testing.assert_allclose(out.value.ravel(), net(x)[0].numpy(), rtol=0, atol=1e-11)
    make = ng.composites.cp_lrp if cp else ng.composites.attn_lrp
    m = ng.measure(
        program,
        x,
        target=TARGET,
        composite=make(epsilon=epsilon, bias=bias),
        dtype="float64",
        resolution="neuron",
    )
    return ref, m
