"""``scaled_dot_product_attention`` in torch's own five steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from nrm_graph.network.ir.held_weights import LOWEST
from nrm_graph.network.ir.program import Ref, Weight
from nrm_graph.network.tracing.masks import add_mask, as_number, carries, fill, invert, tensor
from nrm_graph.network.tracing.step import Refused

if TYPE_CHECKING:
    from nrm_graph.network.ir.program import Batch
    from nrm_graph.network.tracing.converter import Converter
    from nrm_graph.network.tracing.step import Step

ATTENTION = "aten.scaled_dot_product_attention.default"

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


def attention(c: Converter, step: Step) -> None:
    """``softmax(q k^T scale + mask) v``: transposed key, product, mask, weights, mix."""
    arguments = dict(zip(_NAMES, step.args, strict=False)) | step.kwargs
    query, key, value = (arguments[name] for name in _NAMES[:3])
    for operand in (query, key, value):
        if not carries(c, operand) and not isinstance(operand, Weight):
            raise Refused(f"{step.op} of integers")
    shapes = [_shape(c, operand) for operand in (query, key, value)]
    (rows, width), (columns, _), _ = ([step.length(s, d) for d in (-2, -1)] for s in shapes)
    if arguments.get("enable_gqa"):
        key, value = (
            _grouped(c, step, operand, shapes[0][-3], at)
            for operand, at in ((key, "keys"), (value, "values"))
        )
    if isinstance(key, Weight):
        turned: Ref | Weight = c.constants.added(
            f"{step.module}.key", tensor(c, key).transpose(-2, -1)
        )
    else:
        turned = c.add(step, "aten.transpose.int", key, -2, -1, at="key")
    op = "nrm.product" if carries(c, query) and carries(c, key) else "aten.matmul.default"
    scores = c.add(step, op, query, turned, at="product")
    scale = arguments.get("scale")
    scale = 1 / math.sqrt(width) if scale is None else float(scale)
    scores = c.add(step, "aten.mul.Tensor", scores, scale, at="scaled")
    mask, shown = arguments.get("attn_mask"), None
    if arguments.get("is_causal"):
        mask = c.constant(step, "causal", torch.ones(rows, columns, dtype=torch.bool).tril())
    if mask is not None and carries(c, mask):
        raise Refused(f"{step.op} with a mask that depends on the input other than by integers")
    if mask is not None and c.dtype(mask) == torch.bool:
        hidden = invert(c, step, mask, "hidden")
        if isinstance(mask, Ref) or not bool(tensor(c, mask).any(-1).all()):
            shown = mask
        number = -math.inf if shown is None else LOWEST
        scores = fill(c, step, scores, hidden, number, at="masked")
    elif mask is not None:
        scores = add_mask(c, step, scores, mask, at="masked")
    weights = c.add(step, "aten.softmax.int", scores, -1, at="weights")
    if shown is not None:
        # A row that is hidden as a whole mixes nothing.
        seen = as_number(c, step, shown, "shown")
        weights = c.add(step, "aten.mul.Tensor", weights, seen, at="seen")
    c.add(step, "nrm.attention" if carries(c, value) else "aten.matmul.default", weights, value)


def _shape(c: Converter, value: Ref | Weight) -> tuple[int | Batch, ...]:
    return tuple(tensor(c, value).shape) if isinstance(value, Weight) else c.shape(value.name)


def _grouped(
    c: Converter, step: Step, value: Ref | Weight, heads: int | Batch, at: str
) -> Ref | Weight:
    """Repeat every head of keys or values for the queries that share it."""
    shape = _shape(c, value)
    groups = shape[-3]
    if not (isinstance(heads, int) and isinstance(groups, int)) or (
        len(shape) != 4 or heads % groups
    ):
        raise Refused(f"{step.op} with heads that cannot be grouped")
    times = heads // groups
    if times == 1:
        return value
    if isinstance(value, Weight):
        return c.constants.added(
            f"{step.module}.{at}", tensor(c, value).repeat_interleave(times, -3)
        )
    value = c.add(step, "aten.unsqueeze.default", value, 2, at=f"{at}.alone")
    value = c.add(step, "aten.repeat.default", value, (1, 1, times, 1, 1), at=f"{at}.repeated")
    return c.add(step, "aten.flatten.using_ints", value, 1, 2, at=at)
