"""Relevance by autolrp, where its rules are other than the package's with those of the package.

It shares sums, gated products and biases by magnitude, ``|a| / (|a| + |b|)``, and passes relevance
through the centring of a LayerNorm as it is.  Here sums and biases share by value, gated products
half and half, and a LayerNorm is linear with its standard deviation held constant.  What finds
these places in the graph of autograd, and all else, is autolrp's own.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor, nn


def signed(a, b, relevance, eps, *_, attribute="both"):
    """Shares of a sum by value."""
    if attribute != "both":
        return (relevance, None) if attribute == "lhs" else (None, relevance)
    z = a + b
    z = torch.where(z >= 0, z + eps, z - eps)
    return a / z * relevance, b / z * relevance


def centred(
    x, y, relevance, eps, *, normalized_shape, weight=None, bias=None, mean=None, rstd=None, **_
):
    """A LayerNorm's shares, ``std`` being constant."""
    slope = rstd * (1 if weight is None else weight)
    s = relevance / ((x - mean) * slope + (0 if bias is None else bias)) * slope
    return x * (s - s.mean(-1, keepdim=True))


def halved(a, b, relevance, eps, *_, attribute="both"):
    """Half of a gated product to each factor; where one is a constant, all to the other."""
    if attribute != "both":
        return (relevance, None) if attribute == "lhs" else (None, relevance)
    return relevance / 2, relevance / 2


def open_gates(a, b, relevance, eps, *_, attribute="both"):
    """All of a gated product to its signal; transformers multiplies the gate from the left."""
    if attribute != "both":
        return (relevance, None) if attribute == "lhs" else (None, relevance)
    return None, relevance


BY_VALUE = {"AddBackward": signed, "NativeLayerNormBackward": centred}
"""Rules that replace those of every preset."""


def _without_bias(relevance: Tensor, z: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """What is left of relevance after a bias took its share by value."""
    return relevance if bias is None else relevance * z / (z + bias)


def _to(x: Tensor, *args, **kwargs) -> Tensor:
    """Numbers of double precision stay so, also where transformers has single precision."""
    if x.dtype == torch.float64 and args[:1] == (torch.float32,):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.to(x, *args, **kwargs).as_subclass(type(x))


def relevance(net: nn.Module, x: Tensor, target: int, rules: dict) -> dict[str, Tensor]:
    """Relevance of ``x``, under ``"x"``, and of what every module gives, for a unit seed."""
    import autolrp
    from autolrp.backward import install
    from autolrp.forward import intercept

    for parameter in net.parameters():
        parameter.requires_grad_(True)
    kept: dict[str, Tensor] = {}

    def keep(path):
        def hook(module, _, output):
            if isinstance(output, autolrp.LRPTensor) and output.requires_grad:
                output.register_hook(lambda grad: kept.__setitem__(path, grad.detach()))

        return hook

    wrapped = autolrp.tensor(x.clone())
    config = autolrp.LRPConfig(rule={**autolrp.BASE, **rules}, eps=1e-14)
    hooks = [m.register_forward_hook(keep(path)) for path, m in net.named_modules() if path]
    try:
        with (
            mock.patch.object(install, "apply_bias_split", _without_bias),
            mock.patch.dict(intercept.REWRITES, {"to": _to}),
        ):
            net(wrapped)[0, target].lrp(config=config)
    finally:
        for hook in hooks:
            hook.remove()
    kept["x"] = wrapped.relevance.detach()
    return {path: value.as_subclass(Tensor) for path, value in kept.items()}
