"""The allow-list: which ATen operations a program may hold, and what each one is.

``weigh``   the operation weighs its inputs; its output is a layer and needs a rule
``route``   one 0/1 selection per output; relevance goes back to what was selected
``same``    elementwise; relevance goes back unchanged (activations, scaling by a constant)

Names beginning with ``nrm.`` are ours: what ATen calls ``mul`` is an activation's scale with a
constant, and a ``nrm.gate`` with two values that both depend on the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGH = {
    "aten.conv1d.default": "convolution",
    "aten.conv2d.default": "convolution",
    "aten.conv3d.default": "convolution",
    "aten.conv1d.padding": "convolution",
    "aten.conv2d.padding": "convolution",
    "aten.conv3d.padding": "convolution",
    "aten.conv_transpose1d.default": "convolution",
    "aten.conv_transpose2d.input": "convolution",
    "aten.conv_transpose3d.input": "convolution",
    "aten.linear.default": "dense",
    "aten.matmul.default": "dense",
    "aten.mm.default": "dense",
    "aten.addmm.default": "dense",
    "aten.add.Tensor": "sum",
    "aten.sub.Tensor": "sum",
    "aten.batch_norm.default": "batch_norm",
    "aten.avg_pool1d.default": "average",
    "aten.avg_pool2d.default": "average",
    "aten.avg_pool3d.default": "average",
    "aten.adaptive_avg_pool1d.default": "average",
    "aten.adaptive_avg_pool2d.default": "average",
    "aten.adaptive_avg_pool3d.default": "average",
    "aten.mean.dim": "average",
    "aten.sum.dim_IntList": "sum",
    "aten.layer_norm.default": "layer_norm",
    "aten.group_norm.default": "group_norm",
    "aten.instance_norm.default": "instance_norm",
    "aten.rms_norm.default": "rms_norm",
    "aten.softmax.int": "softmax",
    "aten.upsample_linear1d.vec": "interpolation",
    "aten.upsample_bilinear2d.vec": "interpolation",
    "aten.upsample_trilinear3d.vec": "interpolation",
    "aten.upsample_bicubic2d.vec": "interpolation",
    "nrm.product": "product",
    "nrm.attention": "attention",
    "nrm.gate": "gate",
    "nrm.multiply": "multiplication",
}
"""Operation to the kind of layer it makes."""

MAX_POOL = {
    "aten.max_pool1d.default": 1,
    "aten.max_pool2d.default": 2,
    "aten.max_pool3d.default": 3,
    "aten.adaptive_max_pool1d.default": 1,
    "aten.adaptive_max_pool2d.default": 2,
    "aten.adaptive_max_pool3d.default": 3,
}
"""Operation to its number of spatial axes."""

ROUTE = frozenset(
    f"aten.{name}"
    for name in [
        "view.default",
        "reshape.default",
        "_unsafe_view.default",
        "flatten.using_ints",
        "permute.default",
        "transpose.int",
        "t.default",
        "unsqueeze.default",
        "squeeze.dim",
        "squeeze.dims",
        "squeeze.default",
        "select.int",
        "slice.Tensor",
        "cat.default",
        "stack.default",
        "pad.default",
        "constant_pad_nd.default",
        "expand.default",
        "clone.default",
        "alias.default",
        "contiguous.default",
        "split.Tensor",
        "split_with_sizes.default",
        "chunk.default",
        "unbind.int",
        "roll.default",
        "flip.default",
        "pixel_shuffle.default",
        "channel_shuffle.default",
        "unflatten.int",
        "masked_fill.Scalar",
        "upsample_nearest1d.vec",
        "upsample_nearest2d.vec",
        "upsample_nearest3d.vec",
        "getitem",
    ]
)

NON_NEGATIVE = frozenset(
    f"aten.{name}.default" for name in ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")
)

ZERO_AT_ZERO = NON_NEGATIVE - {
    "aten.sigmoid.default",
    "aten.hardsigmoid.default",
    "aten.softplus.default",
}

SAME = NON_NEGATIVE | frozenset(
    f"aten.{name}"
    for name in [
        "gelu.default",
        "elu.default",
        "leaky_relu.default",
        "silu.default",
        "hardtanh.default",
        "hardswish.default",
        "tanh.default",
        "mish.default",
        "dropout.default",
        "mul.Tensor",
        "mul.Scalar",
        "div.Tensor",
        "div.Scalar",
        "neg.default",
        "celu.default",
        "selu.default",
        "log_sigmoid.default",
        "threshold.default",
        "prelu.default",
    ]
)

SUPPORTED = frozenset(WEIGH) | frozenset(MAX_POOL) | ROUTE | SAME


_OWN: dict[str, Callable[..., Any]] = {
    "aten.getitem": lambda value, index: value[index],
    "aten.batch_norm.default": lambda x, scale, shift: _batch_norm(x, scale, shift),
    "nrm.product": torch.matmul,
    "nrm.attention": torch.matmul,
    "nrm.gate": torch.mul,
    "nrm.multiply": torch.mul,
}


def function(op: str) -> Callable[..., Any]:
    """Return the function of an allowed operation."""
    if op not in SUPPORTED:
        raise KeyError(op)
    if op in _OWN:
        return _OWN[op]
    if op in ("aten.view.default", "aten._unsafe_view.default"):
        op = "aten.reshape.default"  # values need not be contiguous: channels_last
    _, name, overload = op.split(".")
    return getattr(getattr(torch.ops.aten, name), overload)  # type: ignore[no-any-return]


def _batch_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    return x * scale.view(shape) + shift.view(shape)
