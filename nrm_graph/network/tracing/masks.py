"""Masks of constants and of integers: what they hide is filled, what they shift is added.

A mask of minus infinity, or of the lowest number of a type, hides what it is added to; it becomes
a ``masked_fill``, through which hidden scores get no relevance.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nrm_graph.network.ir.held_weights import LOWEST
from nrm_graph.network.ir.program import Ref, Weight
from nrm_graph.network.tracing.step import Refused, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from nrm_graph.network.tracing.converter import Converter

_ADD, _MUL = "aten.add.Tensor", "aten.mul.Tensor"


def carries(c: Converter, value: object) -> bool:
    """Whether an argument is a value that carries relevance."""
    return isinstance(value, Ref) and value.name not in c.passive | c.still


def where_moving(
    rewrite: Callable[[Converter, Step], None],
) -> Callable[[Converter, Step], None]:
    """Decorate a rewrite of what carries relevance: without that, an operation is kept as it is."""

    def either(c: Converter, step: Step) -> None:
        if step.moving:
            rewrite(c, step)
        else:
            c.keep(step)

    return either


def tensor(c: Converter, value: Weight) -> torch.Tensor:
    """Value of a constant."""
    return c.constants.used[value.name]


def number_of(c: Converter, value: object) -> float | None:
    """Value of a number or of a constant that is one."""
    if isinstance(value, Weight):
        constant = tensor(c, value)
        return float(constant) if constant.numel() == 1 else None
    return value if isinstance(value, int | float) else None


def hides(c: Converter, step: Step, *values: object) -> None:
    """Note that a passive value is an additive mask, if one of its alternatives is lowest.

    What else it may be counts too: a mask of zeros otherwise leaves nothing to add.
    """
    lowest, zeros = False, True
    for value in values:
        if isinstance(value, Ref) and value.name in c.masks:
            lowest, zeros = True, zeros and c.masks[value.name]
            continue
        number = number_of(c, value)
        if number is not None and step.dtype.is_floating_point and number <= LOWEST:
            lowest = True
        elif number != 0 and not (isinstance(value, Weight) and not bool(tensor(c, value).any())):
            zeros = False
    if lowest:
        c.masks[step.fx.name] = zeros


def invert(c: Converter, step: Step, mask: Ref | Weight, at: str) -> Ref | Weight:
    """Negate a mask."""
    if isinstance(mask, Weight):
        return c.constant(step, at, ~tensor(c, mask).bool())
    return c.add(step, "aten.bitwise_not.default", mask, at=at)


def as_number(c: Converter, step: Step, mask: Ref | Weight, at: str) -> Ref | Weight:
    """Return 1 where a mask holds, else 0, in the type that the network computes with."""
    if isinstance(mask, Weight):
        return c.constant(step, at, tensor(c, mask).to(step.dtype))
    return c.add(step, "aten.type_as.default", mask, c.one(step.dtype), at=at)


def fill(
    c: Converter, step: Step, value: Ref, hidden: Ref | Weight, number: float, at: str = ""
) -> Ref:
    """Fill a value with a number where a mask holds."""
    shape = c.shape(value.name) if at else c.shape_of(step)
    if c.shape(value.name) != shape:
        value = c.add(step, "aten.expand.default", value, shape, at="expanded")
    low = number <= LOWEST
    number = LOWEST if low and math.isfinite(number) else float(number)
    if isinstance(hidden, Weight) or low:
        return c.add(step, "aten.masked_fill.Scalar", value, hidden, number, at=at)
    shown = as_number(c, step, invert(c, step, hidden, "shown"), "kept")
    if number == 0:
        return c.add(step, _MUL, value, shown, at=at)
    value = c.add(step, _MUL, value, shown, at="masked")
    filled = as_number(c, step, hidden, "filled")
    return c.add(step, _ADD, value, c.add(step, _MUL, filled, number, at="filling"), at=at)


def add_mask(c: Converter, step: Step, value: Ref, mask: Ref | Weight, at: str = "") -> Ref:
    """Add a mask: what it hides is filled, what else it holds is added.

    ``at`` names the result, if it is not the step's own.
    """
    if isinstance(mask, Weight):
        shift = tensor(c, mask)
        low = shift <= LOWEST
        if not bool(low.any()):
            return c.add(step, _ADD, value, mask, at=at)
        number = -math.inf if bool(shift[low].isinf().all()) else LOWEST
        hidden = c.constant(step, "hidden", low)
        rest = shift.masked_fill(low, 0.0)
        if bool(rest.any()):
            value = c.add(step, _ADD, value, c.constant(step, "shift", rest), at="shifted")
        return fill(c, step, value, hidden, number, at)
    if mask.name not in c.masks:
        return c.add(step, _ADD, value, mask, at=at)
    low_ref = c.add(step, "aten.le.Scalar", mask, LOWEST, at=f"{at}.hidden" if at else "hidden")
    if not c.masks[mask.name]:
        rest_ref = c.add(step, "aten.masked_fill.Scalar", mask, low_ref, 0.0, at="rest")
        value = c.add(step, _ADD, value, rest_ref, at="shifted")
    return fill(c, step, value, low_ref, LOWEST, at)


def _masked_fill(c: Converter, step: Step) -> None:
    value, mask, filling = step.args
    number = number_of(c, filling)
    if number is None or carries(c, mask):
        raise Refused(f"{step.op} with a mask that is not constant")
    if not step.moving:
        c.add(step, "aten.masked_fill.Scalar", value, mask, number)
        hides(c, step, value, number)
    else:
        fill(c, step, value, mask, number)


def _where(c: Converter, step: Step) -> None:
    """Where a mask of constants or integers holds, one value, else the other."""
    mask, a, b = step.args
    if carries(c, mask):
        raise Refused(f"{step.op} with a condition that depends on the input")
    if not step.moving:
        c.keep(step)
        hides(c, step, a, b)
        return
    if carries(c, a) and carries(c, b):
        first = as_number(c, step, mask, "kept")
        second = as_number(c, step, invert(c, step, mask, "hidden"), "filled")
        left = c.add(step, _MUL, a, first, at="left")
        c.add(step, _ADD, left, c.add(step, _MUL, b, second, at="right"))
        return
    value, other = (a, b) if carries(c, a) else (b, a)
    hidden = invert(c, step, mask, "hidden") if value is a else mask
    number = number_of(c, other)
    if number is not None:
        fill(c, step, value, hidden, number)
        return
    value = fill(c, step, value, hidden, 0.0, at="masked")
    filled = as_number(c, step, hidden, "filling")
    if isinstance(filled, Weight) and isinstance(other, Weight):
        rest: Ref | Weight = c.constant(step, "shift", tensor(c, other) * tensor(c, filled))
    else:
        rest = c.add(step, _MUL, other, filled, at="shift")
    c.add(step, _ADD, value, rest)


MASKS: dict[str, Callable[[Converter, Step], None]] = {
    "aten.where.self": _where,
    "aten.where.Scalar": _where,
    "aten.where.ScalarOther": _where,
    "aten.where.ScalarSelf": _where,
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.masked_fill.Tensor": _masked_fill,
}
