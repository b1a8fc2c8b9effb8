"""AttnLRP, CP-LRP and RelP as gradient times input; the package is not used here.

With vanishing stabilisers AttnLRP is the gradient of a network whose backward pass is another:
norms hold their standard deviation constant, an activation f(x) is x times a constant, both
operands of a product that depend on the input get half of their gradient (so that Q and K have a
quarter and V a half of theirs), and softmax keeps its own gradient.  CP-LRP holds attention weights
and gates constant, RelP (``halves``) attention weights alone.  :class:`Backward` puts this in place
of torch's functions while a network runs; relevance is then output times gradient, at every module.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ACTIVATIONS = (
    {F.gelu, F.silu, F.relu, F.hardswish, F.hardsigmoid, F.relu6, F.hardtanh, F.elu, F.mish}
    | {torch.tanh, torch.sigmoid, torch.relu, Tensor.tanh, Tensor.sigmoid, Tensor.relu, F.sigmoid}
    | {F.tanh, F.leaky_relu, F.softplus}
)
PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
MULTIPLICATIONS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
QUOTIENTS = {torch.div, Tensor.div, Tensor.__truediv__}
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}


def moving(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def part(x: Tensor, share: float) -> Tensor:
    """The same value with ``share`` of its gradient."""
    return x * share + x.detach() * (1 - share) if moving(x) and share != 1 else x


def line(x: Tensor, y: Tensor) -> Tensor:
    """``y`` as x times a constant; where x is 0 both are, or relevance has no place."""
    safe = torch.where(x == 0, 1.0, x.detach())
    return x * torch.where(x == 0, 0.0, y.detach() / safe) + torch.where(x == 0, y.detach(), 0.0)


class Backward(TorchFunctionMode):
    """``inside`` are the modules that are running; then what they compute themselves is kept."""

    def __init__(
        self,
        net: nn.Module,
        kept: dict[str, Tensor],
        cp: bool = False,
        halves: bool = False,
        inside: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.cp, self.halves, self.kept, self.inside = cp, halves or not cp, kept, inside
        self.counts: Counter[str] = Counter()
        self.owners = {id(p): _owner(name) for name, p in net.named_parameters()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if not any(moving(a) for a in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        found = self.answer(func, args, kwargs)
        if func in SUMS and all(isinstance(a, Tensor) for a in args):
            self.keep("add", found)
        if func in MULTIPLICATIONS and all(moving(a) for a in args):
            self.keep("gate", found)
        return found

    def keep(self, kind: str, value: Tensor) -> None:
        """Keep what a module computes without a module of its own, by the package's names."""
        if self.inside and moving(value):
            value.retain_grad()
            path = f"{self.inside[-1]}.{kind}"
            before = self.counts[path]
            self.kept[f"{path}_{before}" if before else path] = value
            self.counts[path] += 1

    def answer(self, func, args, kwargs):
        if func in ACTIVATIONS:
            kwargs.pop("inplace", None)
            found = line(args[0], func(args[0].detach(), *args[1:], **kwargs))
            found.is_gate = True
            return found
        if func is F.linear:
            return self.linear(*args, **kwargs)
        if func is F.layer_norm:
            return self.norm(*args, **kwargs)
        if func is F.group_norm:
            return self.grouped(*args, **kwargs)
        if func is F.instance_norm:
            assert kwargs["use_input_stats"]
            kept = {k: kwargs[k] for k in ("weight", "bias", "eps")}
            return self.grouped(args[0], args[0].shape[1], **kept)
        if func is F.rms_norm:
            return self.norm(*args, **kwargs, centre=False)
        if func in (torch.rsqrt, Tensor.rsqrt):
            return func(*args).detach()  # an RMSNorm that is written out
        if func is Tensor.float or (func is Tensor.to and args[1:] == (torch.float32,)):
            return args[0]  # the package computes in one precision, but for the model's constants
        if func in (F.softmax, torch.softmax, Tensor.softmax):
            kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "_stacklevel")}
            found = torch.softmax(args[0], *args[1:2], **kwargs)
            return found.detach() if self.cp else found
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self.heads(*args, **kwargs)
        if func is torch.einsum and all(moving(a) for a in args[1:]):
            return torch.einsum(args[0], *(part(a, 1 / len(args[1:])) for a in args[1:]))
        if func is F.glu:
            a, b = args[0].chunk(2, *args[1:2], **kwargs)
            with self:
                return a * torch.sigmoid(b)
        if func is F.normalize:
            return args[0] * (func(*args, **kwargs) / args[0]).detach()
        if func in PRODUCTS and all(moving(a) for a in args):
            return torch.matmul(*(part(a, 0.5) for a in args))
        if func in MULTIPLICATIONS and all(moving(a) for a in args):
            if self.halves:
                return torch.mul(*(part(a, 0.5) for a in args))
            held = [a.detach() if hasattr(a, "is_gate") else a for a in args]
            assert sum(moving(a) for a in held) == 1
            return torch.mul(*held)
        if func in QUOTIENTS:
            assert not moving(args[1])
        return func(*args, **kwargs)

    @staticmethod
    def norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, centre=True):
        axes = tuple(range(-len(normalized_shape), 0))
        y = x - x.mean(axes, keepdim=True) if centre else x
        y = y / (y.detach().pow(2).mean(axes, keepdim=True) + (eps or 0)).sqrt()
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def grouped(self, x, groups, weight=None, bias=None, eps=1e-5):
        y = self.norm(x.unflatten(1, (groups, -1)).flatten(2), (x[0].numel() // groups,), eps=eps)
        y, tail = y.reshape(x.shape), (-1,) + (1,) * (x.ndim - 2)
        y = y if weight is None else y * weight.reshape(tail)
        return y if bias is None else y + bias.reshape(tail)

    def attend(
        self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):
        assert not dropout_p
        if enable_gqa:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        s = part(q, 0.5) @ part(k, 0.5).transpose(-2, -1) * scale
        self.keep("product", s)
        if is_causal:
            attn_mask = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            s = s.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            s = s + attn_mask
        a = s.softmax(-1)
        self.keep("attention_weights", a)
        y = a.detach() @ v if self.cp else part(a, 0.5) @ part(v, 0.5)
        self.keep("attention", y)
        return y

    def heads(self, query, key, value, embed, count, weight, bias, *rest, **options):
        """Self-attention of ``nn.MultiheadAttention``: ``(tokens, n, features)``."""
        assert query is key is value
        out_weight, out_bias = rest[4:6]
        tokens, n, _ = query.shape
        q, k, v = (
            t.reshape(tokens, n * count, -1).transpose(0, 1)
            for t in self.linear(query, weight, bias).chunk(3, -1)
        )
        y = self.attend(q, k, v).transpose(0, 1).reshape(tokens, n, embed)
        return self.linear(y, out_weight, out_bias), None

    def linear(self, x, weight, bias=None):
        """A dense layer, also where no module is called, as in ``nn.MultiheadAttention``."""
        found = F.linear(x, weight, bias)
        if id(weight) in self.owners:
            found.retain_grad()
            self.kept.setdefault(self.owners[id(weight)], found)
        return found


def _owner(name: str) -> str:
    """Module of a parameter; ``in_proj_weight`` counts as ``in_proj.weight``."""
    return name.removesuffix("_weight").removesuffix(".weight")


class Unrolled(nn.Module):
    """An LSTM or GRU of one direction written out in steps, from zeros, batch in front."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        for weights in self.rnn.all_weights:
            w_x, w_h, b_x, b_h = weights
            reads, outs = F.linear(x, w_x, b_x), []
            h = c = torch.zeros(len(x), w_h.shape[1], dtype=x.dtype)
            for t in range(x.shape[1]):
                h, c = self.step(reads[:, t], F.linear(h, w_h, b_h), h, c)
                outs.append(h)
            x = torch.stack(outs, 1)
        return x, h

    def step(self, read, kept, h, c):
        if isinstance(self.rnn, nn.LSTM):
            i, f, g, o = (read + kept).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c
        (r, z, n), (kept_r, kept_z, kept_n) = read.chunk(3, -1), kept.chunk(3, -1)
        n = torch.tanh(n + torch.sigmoid(r + kept_r) * kept_n)
        # As torch decomposes it: z h + (1 - z) n.
        return (h - n) * torch.sigmoid(z + kept_z) + n, c


def whole_activations(net: nn.Module) -> None:
    """Modules that write an activation out in steps get it as one."""
    for module in net.modules():
        if type(module).__name__ in ("NewGELUActivation", "QuickGELUActivation"):
            steps = module.forward

            def forward(x, steps=steps):
                with torch._C.DisableTorchFunction():
                    return line(x, steps(x.detach()))

            module.forward = forward


def relevance(
    net, inputs, target: int, leaves, cp: bool = False, halves: bool = False, within: bool = False
) -> dict[str, Tensor]:
    """Relevance at the output of every module, for a unit seed.

    ``leaves`` are modules whose output is where walks end (embeddings), or none: then the inputs
    are.  ``within``: also at the sums, gated products and steps of attention that a module
    computes itself, by the names that the package has for them.
    """
    net = copy.deepcopy(net)  # it stays as it is for others
    whole_activations(net)
    kept: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    inside: list[str] = []

    def enter(path):
        return lambda module, _: inside.append(path)

    def keep(path):
        def hook(module, _, output):
            inside.pop()
            if path in leaves:
                output = output.detach().requires_grad_(True)
            if not moving(output) or type(module).__name__ == "LayerNorm2d":
                return output  # LayerNorm2d turns what it gives: its layer has other axes
            output.retain_grad()
            calls[path] += 1
            kept[path if calls[path] == 1 else f"{path}@{calls[path] - 1}"] = output
            copied = output.clone()  # which may be added to in place
            vars(copied).update(vars(output))
            return copied

        return hook

    for parameter in net.parameters():
        parameter.requires_grad_(False)
    modules = [(path, module) for path, module in net.named_modules() if path]
    hooks = [m.register_forward_pre_hook(enter(path)) for path, m in modules]
    hooks += [m.register_forward_hook(keep(path)) for path, m in modules]
    if not leaves:
        inputs = [x.clone().requires_grad_(True) for x in inputs]
        kept["x"] = inputs[0]
    try:
        with Backward(net, kept, cp, halves, inside if within else None):
            y = net(*inputs)[0, target]
    finally:
        for hook in hooks:
            hook.remove()
    y.backward()
    return {
        path: (value * value.grad / y).detach()
        for path, value in kept.items()
        if value.grad is not None
    }
