"""``scaled_dot_product_attention`` in torch's own five steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.program import Batch, Ref, Weight
from nrm_graph.network.tracing.constant_folding import LOWEST
from nrm_graph.network.tracing.masks import add_mask, as_number, carries, fill, invert, tensor
from nrm_graph.network.tracing.step import Refused

if TYPE_CHECKING:
    from nrm_graph.network.tracing.converter import Converter
    from nrm_graph.network.tracing.step import Step

ATTENTION = "aten.scaled_dot_product_attention.default"

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


def attention(c: Converter, step: Step) -> None:
    """``softmax(q k^T scale + mask) v``: transposed key, product, mask, weights, mix."""
    given = dict(zip(_NAMES, step.args, strict=False)) | step.kwargs
    query, key, value = (given[name] for name in _NAMES[:3])
    for one in (query, key, value):
        if not carries(c, one) and not isinstance(one, Weight):
            raise Refused(f"{step.op} of integers")
    sizes = [_shape(c, one) for one in (query, key, value)]
    if any(isinstance(size, Batch) for shape in sizes for size in shape[-2:]):
        raise Refused(f"{step.op} over the batch")
    if given.get("enable_gqa"):
        key, value = (
            _grouped(c, step, one, sizes[0][-3], at)
            for one, at in ((key, "keys"), (value, "values"))
        )
    if isinstance(key, Weight):
        turned: Any = c.constants.added(f"{step.module}.key", tensor(c, key).transpose(-2, -1))
    else:
        turned = c.add(step, "aten.transpose.int", key, -2, -1, at="key")
    both = carries(c, query) and carries(c, key)
    op = "nrm.product" if both else "aten.matmul.default"
    scores = c.add(step, op, query, turned, at="product")
    scale = given.get("scale")
    width, rows, columns = sizes[0][-1], sizes[0][-2], sizes[1][-2]
    assert isinstance(width, int)
    scale = 1 / math.sqrt(width) if scale is None else scale
    scores = c.add(step, "aten.mul.Tensor", scores, float(scale), at="scaled")
    mask, shown = given.get("attn_mask"), None
    if given.get("is_causal"):
        assert isinstance(rows, int)
        assert isinstance(columns, int)
        found = torch.ones(rows, columns, dtype=torch.bool).tril()
        mask = c.constants.added(f"{step.module or step.fx.name}.causal", found)
    if mask is not None and carries(c, mask):
        raise Refused(f"{step.op} with a mask that depends on the input other than by integers")
    if mask is not None and _boolean(c, mask):
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


def _shape(c: Converter, value: Any) -> tuple[int | Batch, ...]:
    return tuple(tensor(c, value).shape) if isinstance(value, Weight) else c.shape(value.name)


def _boolean(c: Converter, mask: Ref | Weight) -> bool:
    return c.dtype(mask) == torch.bool


def _grouped(c: Converter, step: Step, value: Any, heads: Any, at: str) -> Any:
    """Repeat every head of keys or values for the queries that share it."""
    shape = _shape(c, value)
    own = shape[-3]
    if not isinstance(heads, int) or not isinstance(own, int) or len(shape) != 4 or heads % own:
        raise Refused(f"{step.op} with heads that cannot be grouped")
    if heads == own:
        return value
    if isinstance(value, Weight):
        found = tensor(c, value).repeat_interleave(heads // own, -3)
        return c.constants.added(f"{step.module}.{at}", found)
    value = c.add(step, "aten.unsqueeze.default", value, 2, at=f"{at}.alone")
    times = (1, 1, heads // own, 1, 1)
    value = c.add(step, "aten.repeat.default", value, times, at=f"{at}.repeated")
    return c.add(step, "aten.flatten.using_ints", value, 1, 2, at=at)
