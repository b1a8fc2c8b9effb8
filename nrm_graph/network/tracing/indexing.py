"""What networks do along an axis, in operations that have a kind: put, sum, pick, choose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.operations import MAX_POOL
from nrm_graph.network.ir.program import Batch, Ref, Weight
from nrm_graph.network.tracing.masks import as_number, carries, fill, tensor, where_moving
from nrm_graph.network.tracing.step import Refused
from nrm_graph.network.tracing.symbolic_shapes import SIZES, first_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from nrm_graph.network.tracing.converter import Converter
    from nrm_graph.network.tracing.step import Step

# --- values put into others


def _slice_scatter(c: Converter, step: Step) -> None:
    arguments: list[Any] = [*step.args, *[0, None, None, 1][len(step.args) - 2 :]]
    value, part, dim, start, end, stride = arguments
    shape = c.shape_of(step)
    dim %= len(shape)
    whole = start in (None, 0) and (end is None or end == 2**63 - 1 or end == shape[dim])
    if whole and stride == 1:
        if not isinstance(part, Ref):
            raise Refused(f"{step.op} of a constant in the place of all")
        c.alias(step, part)
        return
    size = step.length(shape, dim)
    start, end, _ = slice(start, end).indices(size)
    if stride != 1:
        raise Refused(f"{step.op} with steps")
    _put(c, step, value, part, dim, start, end)


def _select_scatter(c: Converter, step: Step) -> None:
    value, part, dim, index = step.args
    shape = c.shape_of(step)
    dim %= len(shape)
    size = step.length(shape, dim)
    if not isinstance(part, Ref):
        raise Refused(f"{step.op} of a constant without a batch axis")
    part = c.add(step, "aten.unsqueeze.default", part, dim, at="put")
    _put(c, step, value, part, dim, index % size, index % size + 1)


def _put(
    c: Converter, step: Step, value: object, part: Ref | Weight, dim: int, start: int, end: int
) -> None:
    """Join what is before, the part, and what is after."""
    if not isinstance(value, Ref):
        raise Refused(f"{step.op} into a constant without a batch axis")
    pieces: list[Ref | Weight] = [part]
    if start > 0:
        pieces = [c.add(step, "aten.slice.Tensor", value, dim, 0, start, at="before"), part]
    if end < step.length(c.shape_of(step), dim):
        pieces.append(c.add(step, "aten.slice.Tensor", value, dim, end, at="after"))
    c.add(step, "aten.cat.default", tuple(pieces), dim)


def _copy(c: Converter, step: Step) -> None:
    value = step.args[1]
    if not isinstance(value, Ref):
        raise Refused(f"{step.op} of a constant without a batch axis")
    if c.shape(value.name) == c.shape_of(step):
        c.alias(step, value)
    else:
        c.add(step, "aten.expand.default", value, c.shape_of(step))


# --- sums along an axis


def _along(c: Converter, step: Step, value: Ref, dim: int, matrix: torch.Tensor, at: str) -> Ref:
    """Multiply the vectors along an axis by a constant matrix, outputs first."""
    rank = len(c.shape(value.name))
    step.length(c.shape(value.name), dim)
    if rank > 2 and dim == rank - 2:
        return c.add(step, "aten.matmul.default", c.constant(step, "matrix", matrix), value, at=at)
    right = c.constant(step, "matrix", matrix.T.contiguous())
    if dim == rank - 1:
        return c.add(step, "aten.matmul.default", value, right, at=at)
    value = c.add(step, "aten.transpose.int", value, dim, -1, at="turned")
    value = c.add(step, "aten.matmul.default", value, right, at="summed")
    return c.add(step, "aten.transpose.int", value, dim, -1, at=at)


def _cumsum(c: Converter, step: Step) -> None:
    if not step.moving:
        c.add(step, step.op, *step.args[:2])
        return
    value, dim = step.args[0], step.args[1] % len(c.shape_of(step))
    size = step.length(c.shape_of(step), dim)
    _along(c, step, value, dim, torch.ones(size, size, dtype=step.dtype).tril(), "")


def _scatter(c: Converter, step: Step) -> None:
    """Sum rows into those that an index names: messages along the edges of a fixed graph."""
    value, dim, index, source = step.args[:4]
    if not isinstance(index, Weight) or not carries(c, source):
        raise Refused(f"{step.op} with an index that is not constant, or of a constant")
    rows = tensor(c, index)
    if step.op == "aten.scatter_add.default":
        lines = rows.movedim(dim, 0).flatten(1)
        rows = lines[:, 0]
        if not bool((lines == lines[:, :1]).all()):
            raise Refused(f"{step.op} with an index that changes along other axes")
    dim %= len(c.shape_of(step))
    matrix = torch.zeros(step.length(c.shape_of(step), dim), len(rows), dtype=step.dtype)
    matrix[rows, torch.arange(len(rows))] = float(step.kwargs.get("alpha", 1))
    at = "" if c.nothing(value) else "scattered"
    summed = _along(c, step, source, dim, matrix, at)
    if at:
        c.add(step, "aten.add.Tensor", summed, value)


# --- one of many


@where_moving
def _best(c: Converter, step: Step) -> None:
    """Take the largest along axes: a max-pool of one window."""
    arguments: list[Any] = [*step.args, *[(), False][len(step.args) - 1 :]]
    value, dims, keep = arguments
    shape = c.shape(value.name)
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    chosen = sorted(d % len(shape) for d in dims) or list(range(1, len(shape)))
    count = math.prod(step.length(shape, d) for d in chosen)
    others = [d for d in range(len(shape)) if d not in chosen]
    if not isinstance(shape[0], Batch) or shape[0].offset:
        raise Refused(f"{step.op} of a value that does not keep its batch in front")
    if [*others, *chosen] != list(range(len(shape))):
        value = c.add(step, "aten.permute.default", value, (*others, *chosen), at="turned")
    flat = (shape[0], math.prod(step.length(shape, d) for d in others[1:]), count)
    value = c.add(step, "aten.reshape.default", value, flat, at="flat")
    value = c.add(step, "aten.max_pool1d.default", value, (count,), at="best")
    final = tuple(1 if d in chosen else s for d, s in enumerate(shape) if keep or d not in chosen)
    step.fx.meta["val"] = first_part(step.fx.meta["val"])
    c.add(step, "aten.reshape.default", value, final)


def _pool(c: Converter, step: Step) -> None:
    """Keep an adaptive max-pool; the places of its maxima are its own affair."""
    step.fx.meta["val"] = first_part(step.fx.meta["val"])
    c.keep(step)


def _item(c: Converter, step: Step) -> None:
    """Read a part; the first of what a maximum returns is all of it."""
    source = str(step.fx.args[0].target)
    if source != "aten.max.dim" and "adaptive_max_pool" not in source:
        c.keep(step)
    elif step.args[1] != 0:
        raise Refused(f"{source}, for the place of the maximum")
    else:
        c.alias(step, step.args[0])


def _index(fallback: Callable[[Converter, Step], None]) -> Callable[[Converter, Step], None]:
    """Pick one row per sample, where integers say which; else as ``fallback``."""

    def rewrite(c: Converter, step: Step) -> None:
        value, indices = step.args
        samples = _samples(c, step.fx.args[1][0]) if len(indices) == 2 else False
        which = indices[1] if samples else None
        if not (
            step.moving and carries(c, value) and isinstance(which, Ref) and which.name in c.passive
        ):
            fallback(c, step)
            return
        shape = c.shape(value.name)
        size = step.length(shape, 1)
        if len(c.shape(which.name)) != 1 or not isinstance(shape[0], Batch):
            raise Refused(f"{step.op} with indices that are not constant integers")
        column = c.add(step, "aten.unsqueeze.default", which, 1, at="column")
        # Negative indices count from the end.
        column = c.add(step, "aten.remainder.Scalar", column, size, at="place")
        _pick(c, step, value, 1, column, torch.arange(size), keep=False)

    return rewrite


def _pick(
    c: Converter, step: Step, value: Ref, dim: int, which: Ref, places: torch.Tensor, keep: bool
) -> None:
    """Sum along an axis what stands where the places are those that integers name."""
    numbers = c.constant(step, "places", places)
    mask = c.add(step, "aten.eq.Tensor", which, numbers, at="mask")
    chosen = as_number(c, step, mask, "kept")
    for i in range(len(c.shape(value.name)) - len(c.shape(which.name))):
        chosen = c.add(step, "aten.unsqueeze.default", chosen, -1, at=f"kept.{i}")
    value = c.add(step, "aten.mul.Tensor", value, chosen, at="picked")
    c.add(step, "aten.sum.dim_IntList", value, (dim,), keep)


@where_moving
def _gather(c: Converter, step: Step) -> None:
    """Pick one entry along an axis per sample, where integers say which."""
    value, dim, which = step.args[:3]
    shape, rank = c.shape(value.name), len(c.shape_of(step))
    dim %= rank
    fits = isinstance(which, Ref) and which.name in c.passive and carries(c, value)
    wanted = tuple(1 if d == dim else size for d, size in enumerate(shape))
    if not fits or c.shape(which.name) != wanted:
        raise Refused(f"{step.op} of other than one entry that integers name")
    places = torch.arange(step.length(shape, dim)).reshape([-1] + [1] * (rank - 1 - dim))
    _pick(c, step, value, dim, which, places, keep=True)


def _squeeze(c: Converter, step: Step) -> None:
    """Leave out axes of size 1, but never that of the batch, which may be 1 as well."""
    value, *rest = step.args
    if not isinstance(value, Ref):
        c.keep(step)
        return
    shape = c.shape(value.name)
    dims = range(len(shape)) if not rest else rest[0] if isinstance(rest[0], tuple) else rest[:1]
    left_out = tuple(d for d in sorted(d % len(shape) for d in dims) if shape[d] == 1)
    if not left_out:
        c.alias(step, value)
    elif rest and all(isinstance(shape[d], int) for d in dims):
        c.keep(step)
    else:
        c.add(step, "aten.squeeze.dims", value, left_out)


@where_moving
def _triangle(c: Converter, step: Step) -> None:
    """Clear one side of a diagonal."""
    value, *rest = step.args
    shape = c.shape_of(step)
    sizes = [step.length(shape, d) for d in (-2, -1)]
    side = torch.tril if "tril" in step.op else torch.triu
    hidden = ~side(torch.ones(sizes, dtype=torch.bool), *rest)
    fill(c, step, value, c.constant(step, "hidden", hidden), 0.0)


def _samples(c: Converter, fx: object) -> bool:
    """Whether a value counts the samples, 0 to n - 1."""
    grown = c.constants.grown.get(getattr(fx, "name", ""))
    return grown is not None and all(
        torch.equal(value, torch.arange(n)) for value, n in zip(grown, SIZES, strict=True)
    )


def axes(
    rewrites: dict[str, Callable[[Converter, Step], None]],
) -> dict[str, Callable[[Converter, Step], None]]:
    """Return rewrites and those of this module."""
    return rewrites | {
        "aten.slice_scatter.default": _slice_scatter,
        "aten.select_scatter.default": _select_scatter,
        "aten.copy.default": _copy,
        "aten.cumsum.default": _cumsum,
        "aten.gather.default": _gather,
        **{f"aten.squeeze.{overload}": _squeeze for overload in ("default", "dim", "dims")},
        "aten.tril.default": _triangle,
        "aten.triu.default": _triangle,
        "aten.index_add.default": _scatter,
        "aten.scatter_add.default": _scatter,
        "aten.amax.default": _best,
        "aten.max.dim": _best,
        **{op: _pool for op in MAX_POOL if "adaptive" in op},
        "aten.getitem": _item,
        "aten.index.Tensor": _index(rewrites["aten.index.Tensor"]),
    }
