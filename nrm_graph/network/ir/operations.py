"""The allow-list: which ATen operations a program may hold, and what each one is.

``weigh``   the operation weighs its inputs; its output is a layer and needs a rule
``route``   one 0/1 selection per output; relevance goes back to what was selected
``same``    elementwise; relevance goes back unchanged (activations, scaling by a constant)
``ends``    walks end there: an embedding is the input layer of its token ids

Values that depend on integer inputs alone (masks, positions) carry no relevance: what makes them
is ``PASSIVE`` (see :func:`nrm_graph.network.ir.program.passive`).

Names beginning with ``nrm.`` are ours: what ATen calls ``mul`` is an activation's scale with a
constant, a ``nrm.gate`` where one of two values that depend on the input comes through an
activation and the other does not, and a ``nrm.multiply`` where that cannot be told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import CompositeError, InputError
from nrm_graph.network.ir.elementwise import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable

ENDS = {"aten.embedding.default": "embedding"}
"""Operation to the kind of layer at which walks end."""

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
    "aten.sum.dim_IntList": "sum",
    "aten.batch_norm.default": "batch_norm",
    "aten.avg_pool1d.default": "average",
    "aten.avg_pool2d.default": "average",
    "aten.avg_pool3d.default": "average",
    "aten.adaptive_avg_pool1d.default": "average",
    "aten.adaptive_avg_pool2d.default": "average",
    "aten.adaptive_avg_pool3d.default": "average",
    "aten.mean.dim": "average",
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
        "pixel_unshuffle.default",
        "unfold.default",
        "channel_shuffle.default",
        "unflatten.int",
        "masked_fill.Scalar",
        "upsample_nearest1d.vec",
        "upsample_nearest2d.vec",
        "upsample_nearest3d.vec",
        "repeat.default",
        "index_select.default",
        "index.Tensor",
        "diagonal.default",
        "movedim.int",
        "getitem",
    ]
)

_KINDS = ("Scalar", "Tensor")

NON_NEGATIVE = frozenset(
    f"aten.{name}.default" for name in ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")
)

ZERO_AT_ZERO = NON_NEGATIVE - {
    "aten.sigmoid.default",
    "aten.hardsigmoid.default",
    "aten.softplus.default",
}

SAME = (
    set(NON_NEGATIVE)
    | set(  # noqa: C401
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
            "clamp.default",
            "clamp_min.default",
            "clamp_max.default",
        ]
    )
    | {"nrm.elementwise"}
)

PASSIVE = frozenset(
    f"aten.{name}"
    for name in [
        "arange.default",
        "arange.start",
        "arange.start_step",
        *(f"{name}.{kind}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for kind in _KINDS),
        "bitwise_and.Tensor",
        "bitwise_or.Tensor",
        "bitwise_xor.Tensor",
        "bitwise_not.default",
        "logical_and.default",
        "logical_or.default",
        "logical_xor.default",
        "logical_not.default",
        "add.Tensor",
        "sub.Tensor",
        "mul.Tensor",
        "div.Tensor",
        "floor_divide.default",
        "remainder.Scalar",
        "where.self",
        "where.ScalarOther",
        "where.ScalarSelf",
        "where.Scalar",
        "masked_fill.Scalar",
        "gather.default",
        "cumsum.default",
        "type_as.default",
        "sum.dim_IntList",
        "mean.dim",
        "amax.default",
        "amin.default",
        "any.dim",
        "all.dim",
        "argmax.default",
        "maximum.default",
        "minimum.default",
        "abs.default",
        "cos.default",
        "sin.default",
        "exp.default",
        "log.default",
        "rsqrt.default",
        "reciprocal.default",
        "tril.default",
        "triu.default",
    ]
)
"""What may make a value that carries no relevance, beside selections and elementwise ones."""

CARRYING = set(WEIGH) | set(MAX_POOL) | ROUTE | SAME | set(ENDS)
"""What may make a value that carries relevance."""

SUPPORTED = CARRYING | PASSIVE

REGISTERED: dict[str, str] = {}
"""Operations that users registered, and the kinds of layers they make; also in the sets above."""


def register_operation(op: str, kind: str) -> None:
    """Let networks hold an operation that the package does not know.

    Parameters
    ----------
    op : str
        Its full name, ``namespace.name.overload``: ``aten.logsumexp.default``, or one that
        ``torch.library.custom_op`` made, which may hold a whole module.
    kind : str
        ``activation`` if it works neuron by neuron: relevance goes through unchanged.  Any other
        word is the kind of layer that it makes, for which a composite must name a rule.  Such an
        operation is taken by its first-order expansion at each input,
        ``z = J x + (z - J x)``: the Jacobian J is its weight and the rest its bias, so that every
        rule for linear operations applies.

    Raises
    ------
    CompositeError
        If torch has no such operation, or the package knows it already.

    Examples
    --------
    >>> register_operation("aten.special_bessel_j0.default", "activation")
    >>> register_operation("aten.logcumsumexp.default", "scan")

    Notes
    -----
    A registration belongs to the process: a store whose program names the operation needs it
    again before exact measures are taken.
    """
    try:
        overload(op)
    except (ValueError, AttributeError) as error:
        raise CompositeError(
            f"torch has no operation {op!r}: expected namespace.name.overload, as the message of "
            "a refused network has it"
        ) from error
    if not (isinstance(kind, str) and kind.isidentifier()):
        raise CompositeError(f"kind must be a word such as 'activation', found {kind!r}")
    # What is known of integers alone has no kind yet for values that carry relevance.
    if op in CARRYING and REGISTERED.get(op) != kind:
        raise CompositeError(
            f"{op} is known already, as a {REGISTERED.get(op) or WEIGH.get(op) or 'routing'}: name "
            "a rule for its kind in a composite"
        )
    REGISTERED[op] = kind
    SUPPORTED.add(op)
    CARRYING.add(op)
    if kind == "activation":
        SAME.add(op)
    else:
        WEIGH[op] = kind


_OWN: dict[str, Callable[..., Any]] = {
    "aten.getitem": lambda value, index: value[index],
    "aten.batch_norm.default": lambda x, scale, shift: _batch_norm(x, scale, shift),
    "nrm.product": torch.matmul,
    "nrm.attention": torch.matmul,
    "nrm.gate": torch.mul,
    "nrm.multiply": torch.mul,
    "nrm.elementwise": evaluate,
    # Values alone, not where they are.
    "aten.adaptive_max_pool1d.default": torch.nn.functional.adaptive_max_pool1d,
    "aten.adaptive_max_pool2d.default": torch.nn.functional.adaptive_max_pool2d,
    "aten.adaptive_max_pool3d.default": torch.nn.functional.adaptive_max_pool3d,
    "aten.embedding.default": lambda table, ids: _embedding(table, ids),
}


def overload(op: str) -> Callable[..., Any]:
    """Return torch's operation of a full name.

    Raises
    ------
    ValueError, AttributeError
        If it is no name of three parts, or torch has no such operation.
    """
    namespace, packet, kind = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), kind)  # type: ignore[no-any-return]


def function(op: str) -> Callable[..., Any]:
    """Return the function of an allowed operation."""
    if op not in SUPPORTED:
        raise KeyError(op)
    if op in _OWN:
        return _OWN[op]
    if op in ("aten.view.default", "aten._unsafe_view.default"):
        op = "aten.reshape.default"  # values need not be contiguous: channels_last
    return overload(op)


def _batch_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    return x * scale.view(shape) + shift.view(shape)


def _embedding(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    if ids.dtype == torch.bool:
        raise InputError("token ids are whole numbers, found booleans: pass them as int64")
    if not ids.is_meta and ids.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= table.shape[0]:
            raise InputError(
                f"a token id is {low if low < 0 else high}, but the embedding has "
                f"{table.shape[0]} rows: expected ids from 0 to {table.shape[0] - 1}, as this "
                "network's tokenizer gives them"
            )
    return torch.nn.functional.embedding(ids, table)
