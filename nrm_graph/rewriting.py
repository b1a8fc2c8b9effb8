"""What networks write in many ways, brought into one; see :mod:`nrm_graph.conversion`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.constants import LOWEST
from nrm_graph.conversion import Converter, Refused, Step
from nrm_graph.program import Batch, Ref, Weight
from nrm_graph.sizes import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

_ADD, _SUB, _MUL = "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"


def carries(c: Converter, value: Any) -> bool:
    """Whether an argument is a value that carries relevance."""
    return isinstance(value, Ref) and value.name not in c.passive | c.still


def tensor(c: Converter, value: Weight) -> torch.Tensor:
    """Value of a constant."""
    return c.constants.used[value.name]


def _number(c: Converter, value: Any) -> float | None:
    """Value of a number or of a constant that is one."""
    if isinstance(value, Weight):
        found = tensor(c, value)
        return float(found) if found.numel() == 1 else None
    return value if isinstance(value, int | float) else None


def _low(value: float, dtype: torch.dtype) -> bool:
    return value <= max(torch.finfo(dtype).min, LOWEST)


# --- masks


def hides(c: Converter, step: Step, *values: Any) -> None:
    """Note that a passive value is an additive mask, if one of its alternatives is lowest.

    What else it may be counts too: a mask of zeros otherwise leaves nothing to add.
    """
    found, zeros = False, True
    for value in values:
        if isinstance(value, Ref) and value.name in c.masks:
            found, zeros = True, zeros and c.masks[value.name]
            continue
        number = _number(c, value)
        if number is not None and step.dtype.is_floating_point and _low(number, step.dtype):
            found = True
        elif number != 0 and not (isinstance(value, Weight) and not bool(tensor(c, value).any())):
            zeros = False
    if found:
        c.masks[step.fx.name] = zeros


def invert(c: Converter, step: Step, mask: Ref | Weight, at: str) -> Ref | Weight:
    """Negate a mask."""
    if isinstance(mask, Weight):
        return c.constants.added(f"{step.module or step.fx.name}.{at}", ~tensor(c, mask).bool())
    return c.add(step, "aten.bitwise_not.default", mask, at=at)


def as_number(c: Converter, step: Step, mask: Ref | Weight, at: str) -> Ref | Weight:
    """Return 1 where a mask holds, else 0, in the type that the network computes with."""
    if isinstance(mask, Weight):
        found = tensor(c, mask).to(step.dtype)
        return c.constants.added(f"{step.module or step.fx.name}.{at}", found)
    return c.add(step, "aten.type_as.default", mask, c.real(step.dtype), at=at)


def fill(
    c: Converter, step: Step, value: Ref, hidden: Ref | Weight, number: float, at: str = ""
) -> Ref:
    """Fill a value with a number where a mask holds."""
    shape = c.shape(value.name) if at else c.shape_of(step)
    if c.shape(value.name) != shape:
        value = c.add(step, "aten.expand.default", value, shape, at="expanded")
    low = _low(number, step.dtype)
    number = LOWEST if low and math.isfinite(number) else float(number)
    if isinstance(hidden, Weight) or low:
        return c.add(step, "aten.masked_fill.Scalar", value, hidden, number, at=at)
    kept = as_number(c, step, invert(c, step, hidden, "shown"), "kept")
    if number == 0:
        return c.add(step, _MUL, value, kept, at=at)
    value = c.add(step, _MUL, value, kept, at="masked")
    filled = as_number(c, step, hidden, "filled")
    return c.add(step, _ADD, value, c.add(step, _MUL, filled, number, at="filling"), at=at)


def add_mask(c: Converter, step: Step, value: Ref, mask: Ref | Weight, at: str = "") -> Ref:
    """Add a mask: what it hides is filled, what else it holds is added.

    ``at`` names the result, if it is not the step's own.
    """
    inner = f"{at}.hidden" if at else "hidden"
    if isinstance(mask, Weight):
        found = tensor(c, mask)
        low = found <= max(torch.finfo(found.dtype).min, LOWEST)
        if not bool(low.any()):
            return c.add(step, _ADD, value, mask, at=at)
        number = -math.inf if bool(found[low].isinf().all()) else LOWEST
        stem = step.module or step.fx.name
        hidden = c.constants.added(f"{stem}.hidden", low)
        rest = found.masked_fill(low, 0.0)
        if not bool(rest.any()):
            return fill(c, step, value, hidden, number, at)
        value = c.add(step, _ADD, value, c.constants.added(f"{stem}.shift", rest), at="shifted")
        return fill(c, step, value, hidden, number, at)
    if mask.name not in c.masks:
        return c.add(step, _ADD, value, mask, at=at)
    low_ref = c.add(step, "aten.le.Scalar", mask, LOWEST, at=inner)
    if not c.masks[mask.name]:
        rest_ref = c.add(step, "aten.masked_fill.Scalar", mask, low_ref, 0.0, at="rest")
        value = c.add(step, _ADD, value, rest_ref, at="shifted")
    return fill(c, step, value, low_ref, LOWEST, at)


def _masked_fill(c: Converter, step: Step) -> None:
    value, mask, number = step.args
    number = _number(c, number)
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
        kept = as_number(c, step, mask, "kept")
        other = as_number(c, step, invert(c, step, mask, "hidden"), "filled")
        left, right = c.add(step, _MUL, a, kept, at="left"), c.add(step, _MUL, b, other, at="right")
        c.add(step, _ADD, left, right)
        return
    value, other = (a, b) if carries(c, a) else (b, a)
    hidden = invert(c, step, mask, "hidden") if value is a else mask
    number = _number(c, other)
    if number is not None:
        fill(c, step, value, hidden, number)
        return
    value = fill(c, step, value, hidden, 0.0, at="masked")
    filled = as_number(c, step, hidden, "filling")
    if isinstance(filled, Weight) and isinstance(other, Weight):
        stem = step.module or step.fx.name
        rest: Any = c.constants.added(f"{stem}.shift", tensor(c, other) * tensor(c, filled))
    else:
        rest = c.add(step, _MUL, other, filled, at="shift")
    c.add(step, _ADD, value, rest)


# --- arithmetic


def _sum(c: Converter, step: Step) -> None:
    a, b, *rest = step.args
    op, alpha = step.op, rest[0] if rest else step.kwargs.get("alpha", 1)
    if op.startswith("aten.rsub"):
        op, a, b = _SUB, b, a
    options = {} if alpha == 1 else {"alpha": alpha}
    if not step.moving:
        c.add(step, op, a, b, **options)
        hides(c, step, a, b)
        return
    if carries(c, a) and carries(c, b):
        c.add(step, op, a, b, **options)
        return
    first = carries(c, a)
    value, other = (a, b) if first else (b, a)
    passes = first or op == _ADD
    empty = other == 0 if isinstance(other, int | float) else _nothing(c, other)
    if passes and (first or not options) and empty and c.shape(value.name) == c.shape_of(step):
        c.alias(step, value)
    elif op == _ADD and not options and isinstance(other, Ref | Weight):
        add_mask(c, step, value, other)
    elif isinstance(other, Ref) and not first:
        # A passive value stands second, as a bias that depends on the input.
        turned = c.add(step, _MUL, value, -alpha if op == _SUB else alpha, at="turned")
        c.add(step, _ADD, turned, other)
    else:
        c.add(step, op, a, b, **options)


def _nothing(c: Converter, value: Any) -> bool:
    return (
        isinstance(value, Weight) and value.name in c.nothing and not bool(tensor(c, value).any())
    )


def _product(c: Converter, step: Step) -> None:
    a, b = step.args
    if not step.moving:
        c.add(step, _MUL, a, b)
        hides(c, step, a, b)
    elif len(step.moving) == 2:
        c.add(step, "nrm.multiply", a, b)
    else:
        value, other = (a, b) if carries(c, a) else (b, a)
        if _nothing(c, other) and Batch(1, 0) in c.shape_of(step):
            c.constants.cleared(step.fx.name, c.shape_of(step), step.dtype)
        else:
            c.add(step, _MUL, value, other)


def _quotient(c: Converter, step: Step) -> None:
    a, b, *_ = step.args
    if step.kwargs.get("rounding_mode") is not None:
        raise Refused(f"{step.op} with rounding")
    if carries(c, b):
        c.add(step, "raw.div.Tensor", a, b)
    else:
        c.add(step, "aten.div.Tensor", a, b)


def _raw(c: Converter, step: Step) -> None:
    """Put off what may be a step of an activation."""
    if not step.moving:
        c.keep(step)
    elif step.op == "aten.square.default":
        c.add(step, "raw.pow.Tensor_Scalar", step.args[0], 2)
    else:
        c.add(step, step.op.replace("aten.", "raw."), *step.args, **step.kwargs)


def _matmul(c: Converter, step: Step) -> None:
    if len(step.moving) == 2:
        a, b = step.args
        c.add(step, "nrm.attention" if a.name in c.mixes else "nrm.product", a, b)
    elif any(isinstance(a, Ref) and not carries(c, a) for a in step.args):
        _copies(c, step)
    else:
        c.add(step, "aten.matmul.default", *(_matrix(c, a) for a in step.args))


def _matrix(c: Converter, value: Any) -> Any:
    """One matrix for all samples, of a constant that was copied for each."""
    if not isinstance(value, Weight):
        return value
    found = tensor(c, value)
    if found.ndim < 3 or any(d != 1 for d in found.shape[:-2]):
        return value
    stem = value.name.removeprefix("constant.")
    return c.constants.added(stem, found.reshape(found.shape[-2:]))


def _copies(c: Converter, step: Step) -> None:
    """Multiply by matrices that are the same for all samples, ``(n * heads, rows, columns)``.

    They become ``(heads, rows, columns)``, beside the other factor with the batch on its own.
    """
    at = next(i for i, a in enumerate(step.args) if not carries(c, a))
    copied, other = step.args[at], step.args[1 - at]
    grown = c.constants.grown.get(step.fx.args[at].name)
    size, shape = c.shape(copied.name)[0], c.shape(other.name)
    if grown is None or not isinstance(size, Batch) or size.offset or shape[0] != size:
        raise Refused(f"{step.op} with a matrix of integers")
    one = grown[0][: size.scale]
    if any(not torch.equal(v, one.repeat(n, 1, 1)) for v, n in zip(grown, SIZES, strict=True)):
        raise Refused(f"{step.op} with matrices that depend on the batch")
    matrices = c.constants.added(step.module or step.fx.name, one)
    alone = (Batch(1, 0), size.scale, *shape[1:])
    value = c.add(step, "aten.reshape.default", other, alone, at="alone")
    pair = (matrices, value) if at == 0 else (value, matrices)
    value = c.add(step, "aten.matmul.default", *pair, at="product")
    c.add(step, "aten.reshape.default", value, c.shape_of(step))


def _addmm(c: Converter, step: Step) -> None:
    bias, a, b = step.args
    if len(step.moving) == 1 and not carries(c, bias):
        c.keep(step)
        return
    if step.kwargs:
        raise Refused(f"{step.op} of values that depend on the input, with factors")
    op = "nrm.product" if carries(c, a) and carries(c, b) else "aten.matmul.default"
    mixed = c.add(step, op, a, b, at="product")
    c.add(step, _ADD, mixed, bias)


# --- values moved and counted


def _cast(c: Converter, step: Step) -> None:
    (value, *_), before = step.args, step.fx.args[0].meta["val"].dtype
    if step.moving:
        if not step.dtype.is_floating_point:
            raise Refused(f"{step.op} to integers, which relevance cannot pass")
        c.alias(step, value)
    elif step.dtype == torch.bool and before != torch.bool:
        c.add(step, "aten.ne.Scalar", value, 0)
    elif step.dtype.is_floating_point and not before.is_floating_point:
        c.add(step, "aten.type_as.default", value, c.real(step.dtype))
    elif before == torch.bool and step.dtype != torch.bool:
        c.add(step, _MUL, value, 1)
    elif before.is_floating_point and not step.dtype.is_floating_point:
        raise Refused(f"{step.op} of numbers to integers")
    else:
        c.alias(step, value)


def _cat(c: Converter, step: Step) -> None:
    parts, *rest = step.args
    kept = tuple(p for p in parts if isinstance(p, Ref) or tensor(c, p).numel())
    if len(kept) == 1 and isinstance(kept[0], Ref):
        c.alias(step, kept[0])
    else:
        c.add(step, step.op, kept, *rest)


def _index(c: Converter, step: Step) -> None:
    _, *rest = step.args
    indices = [
        i for i in (rest[0] if step.op == "aten.index.Tensor" else rest[1:]) if i is not None
    ]
    constant = all(
        isinstance(i, Weight) and not tensor(c, i).dtype.is_floating_point for i in indices
    )
    if step.moving and (not constant or any(tensor(c, i).dtype == torch.bool for i in indices)):
        raise Refused(f"{step.op} with indices that are not constant integers")
    c.add(step, step.op, *step.args)


def _embedding(c: Converter, step: Step) -> None:
    table, ids = step.args[:2]
    if not isinstance(table, Weight) or not isinstance(ids, Ref) or carries(c, ids):
        raise Refused(f"{step.op} whose table is not constant")
    c.add(step, step.op, table, ids)


def _first(count: int) -> Callable[[Converter, Step], None]:
    """Keep the first arguments alone: what follows is a type."""

    def rewrite(c: Converter, step: Step) -> None:
        step.args, step.kwargs = step.args[:count], {}
        c.keep(step)

    return rewrite


def _pad(c: Converter, step: Step) -> None:
    if step.args[1:] and not any(step.args[1]):
        c.add(step, "aten.alias.default", step.args[0])
    else:
        c.keep(step)


_STEPS = (
    "pow.Tensor_Scalar",
    "square.default",
    "exp.default",
    "expm1.default",
    "log.default",
    "log1p.default",
    "sqrt.default",
    "rsqrt.default",
    "reciprocal.default",
    "erf.default",
    "atan.default",
    "abs.default",
    "linalg_vector_norm.default",
    "var.dim",
    "var.correction",
)

REWRITES: dict[str, Callable[[Converter, Step], None]] = {
    _ADD: _sum,
    _SUB: _sum,
    "aten.rsub.Scalar": _sum,
    "aten.rsub.Tensor": _sum,
    _MUL: _product,
    "aten.div.Tensor": _quotient,
    "aten.div.Tensor_mode": _quotient,
    "aten.matmul.default": _matmul,
    "aten.addmm.default": _addmm,
    "aten.where.self": _where,
    "aten.where.Scalar": _where,
    "aten.where.ScalarOther": _where,
    "aten.where.ScalarSelf": _where,
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.masked_fill.Tensor": _masked_fill,
    "aten._to_copy.default": _cast,
    "aten.type_as.default": _cast,
    "aten.cat.default": _cat,
    "aten.index.Tensor": _index,
    "aten.index_select.default": _index,
    "aten.embedding.default": _embedding,
    "aten.softmax.int": _first(2),
    "aten.sum.dim_IntList": _first(3),
    "aten.mean.dim": _first(3),
    "aten.pad.default": _pad,
    **{f"aten.{name}": _raw for name in _STEPS},
}
