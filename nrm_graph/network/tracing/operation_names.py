"""One name for each operation, where torch has several."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SAME_AS = {
    "<built-in function getitem>": "aten.getitem",
    "aten.detach.default": "aten.alias.default",
    "aten._native_batch_norm_legit_no_training.default": "aten.batch_norm.default",
    "aten._softmax.default": "aten.softmax.int",
    # Memory formats are not kept, so a view may need a copy.
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
    "aten.unsafe_split.Tensor": "aten.split.Tensor",
    "aten.add.Scalar": "aten.add.Tensor",
    "aten.sub.Scalar": "aten.sub.Tensor",
    "aten.div.Scalar": "aten.div.Tensor",
    "aten.mul.Scalar": "aten.mul.Tensor",
    "aten.__and__.Tensor": "aten.bitwise_and.Tensor",
    "aten.__or__.Tensor": "aten.bitwise_or.Tensor",
    "aten.__xor__.Tensor": "aten.bitwise_xor.Tensor",
    "aten.to.dtype": "aten._to_copy.default",
    "aten.bmm.default": "aten.matmul.default",
    "aten.mm.default": "aten.matmul.default",
    "aten.max.other": "aten.maximum.default",
    "aten.min.other": "aten.minimum.default",
}

_SYNONYMS = {
    "absolute": "abs",
    "arctan": "atan",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "subtract": "sub",
    "true_divide": "div",
}
"""What torch calls twice."""


def spelled(fx: torch.fx.Node) -> str:
    """Name of an operation, the same for all that do the same."""
    name = str(fx.target)
    if name.startswith("aten."):
        _, word, overload = name.split(".")
        name = f"aten.{_SYNONYMS.get(word, word)}.{overload}"
    return _SAME_AS.get(name, name)
