"""See :mod:`nrm_graph.network.tracing.convert`: what is written in many ways, brought into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nrm_graph.network.ir.program import Batch, Ref, Weight
from nrm_graph.network.tracing.masks import (
    MASKS,
    add_mask,
    carries,
    hides,
    number_of,
    tensor,
    where_moving,
)
from nrm_graph.network.tracing.step import Refused, Step
from nrm_graph.network.tracing.symbolic_shapes import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nrm_graph.network.tracing.converter import Converter

_ADD, _SUB, _MUL = "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"


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
    empty = other == 0 if isinstance(other, int | float) else c.nothing(other)
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


def _product(c: Converter, step: Step) -> None:
    a, b = step.args
    if not step.moving:
        c.add(step, _MUL, a, b)
        hides(c, step, a, b)
    elif len(step.moving) == 2:
        c.add(step, "nrm.multiply", a, b)
    else:
        value, other = (a, b) if carries(c, a) else (b, a)
        if c.nothing(other) and Batch(1, 0) in c.shape_of(step):
            c.constants.cleared(step.fx.name, c.shape_of(step), step.dtype)
        else:
            c.add(step, _MUL, value, other)


def _quotient(c: Converter, step: Step) -> None:
    a, b, *_ = step.args
    if step.kwargs.get("rounding_mode") is not None:
        raise Refused(f"{step.op} with rounding")
    c.add(step, "raw.div.Tensor" if carries(c, b) else "aten.div.Tensor", a, b)


def _extreme(c: Converter, step: Step) -> None:
    """Bound a value by a number, or take the larger or smaller of two passive ones."""
    a, b = step.args
    number = number_of(c, b if carries(c, a) else a)
    if not step.moving:
        c.keep(step)
        hides(c, step, a, b)
    elif number is None or c.shape(step.moving[0]) != c.shape_of(step):
        raise Refused(f"{step.op} of two values")
    else:
        side = "min" if step.op == "aten.maximum.default" else "max"
        c.add(step, f"aten.clamp_{side}.default", Ref(step.moving[0]), number)


def _clamp(c: Converter, step: Step) -> None:
    """Clamp between numbers, which may be constants."""
    value, *bounds = (*step.args, step.kwargs.get("min"), step.kwargs.get("max"))[:3]
    numbers = [number_of(c, bound) for bound in bounds]
    if any(n is None and bound is not None for n, bound in zip(numbers, bounds, strict=True)):
        raise Refused(f"{step.op} between values")
    c.add(step, "aten.clamp.default", value, *numbers)


def _infinite(c: Converter, step: Step) -> None:
    """No value is infinite that leads to an output that is a number; half precision asks."""
    if not step.moving or Batch(1, 0) not in c.shape_of(step):
        raise Refused(step.op)
    c.constants.cleared(step.fx.name, c.shape_of(step), step.dtype)


@where_moving
def _raw(c: Converter, step: Step) -> None:
    """Put off what may be a step of an activation."""
    if step.op == "aten.square.default":
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


def _matrix(c: Converter, value: Ref | Weight) -> Ref | Weight:
    """One matrix for all samples, of a constant that was copied for each."""
    if not isinstance(value, Weight):
        return value
    copies = tensor(c, value)
    if copies.ndim < 3 or any(d != 1 for d in copies.shape[:-2]):
        return value
    return c.constants.added(
        value.name.removeprefix("constant."), copies.reshape(copies.shape[-2:])
    )


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
    if carries(c, value):
        if not step.dtype.is_floating_point:
            raise Refused(f"{step.op} to integers, which relevance cannot pass")
        c.alias(step, value)
    elif step.dtype == torch.bool and before != torch.bool:
        c.add(step, "aten.ne.Scalar", value, 0)
    elif before == torch.bool and not step.dtype.is_floating_point and step.dtype != torch.bool:
        c.add(step, _MUL, value, 1)
    elif before.is_floating_point != step.dtype.is_floating_point:
        c.add(step, "aten.type_as.default", value, c.one(step.dtype))
    else:
        c.alias(step, value)


def _cat(c: Converter, step: Step) -> None:
    parts, *rest = step.args
    filled = tuple(p for p in parts if isinstance(p, Ref) or tensor(c, p).numel())
    if len(filled) == 1 and isinstance(filled[0], Ref):
        c.alias(step, filled[0])
    else:
        c.add(step, step.op, filled, *rest)


def _index(c: Converter, step: Step) -> None:
    per_axis = step.args[1] if step.op == "aten.index.Tensor" else step.args[2:]
    constant = all(
        isinstance(index, Weight)
        and not tensor(c, index).dtype.is_floating_point
        and tensor(c, index).dtype != torch.bool
        for index in per_axis
        if index is not None
    )
    if step.moving and not constant:
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
    "aten.maximum.default": _extreme,
    "aten.minimum.default": _extreme,
    "aten.clamp.Tensor": _clamp,
    "aten.isinf.default": _infinite,
    "aten.isnan.default": _infinite,
    **MASKS,
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
