"""What networks do along an axis, in operations that have a kind: put, sum, pick, choose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.network.ir.operations import MAX_POOL
from nrm_graph.network.ir.program import Batch, Ref, Weight
from nrm_graph.network.tracing.masks import as_number, carries, fill, tensor
from nrm_graph.network.tracing.step import Refused
from nrm_graph.network.tracing.symbolic_shapes import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nrm_graph.network.tracing.converter import Converter
    from nrm_graph.network.tracing.step import Step

_Size = int | Batch


def _length(step: Step, shape: tuple[_Size, ...], dim: int) -> int:
    """Size of an axis that is not the batch's."""
    size = shape[dim]
    if not isinstance(size, int):
        raise Refused(f"{step.op} over the batch")
    return size


# --- values put into others


def _slice_scatter(c: Converter, step: Step) -> None:
    value, part, *rest = step.args
    given: list[Any] = [*rest, *[0, None, None, 1][len(rest) :]]
    dim, start, end, stride = given
    shape = c.shape_of(step)
    dim %= len(shape)
    whole = start in (None, 0) and (end is None or end == 2**63 - 1 or end == shape[dim])
    if whole and stride == 1:
        if not isinstance(part, Ref):
            raise Refused(f"{step.op} of a constant in the place of all")
        c.alias(step, part)
        return
    size = _length(step, shape, dim)
    start, end, _ = slice(start, end).indices(size)
    if stride != 1:
        raise Refused(f"{step.op} with steps")
    _put(c, step, value, part, dim, start, end)


def _select_scatter(c: Converter, step: Step) -> None:
    value, part, dim, index = step.args
    shape = c.shape_of(step)
    dim %= len(shape)
    size = _length(step, shape, dim)
    if not isinstance(part, Ref):
        raise Refused(f"{step.op} of a constant without a batch axis")
    part = c.add(step, "aten.unsqueeze.default", part, dim, at="put")
    _put(c, step, value, part, dim, index % size, index % size + 1)


def _put(c: Converter, step: Step, value: Any, part: Any, dim: int, start: int, end: int) -> None:
    """Join what is before, the part, and what is after."""
    if not isinstance(value, Ref):
        raise Refused(f"{step.op} into a constant without a batch axis")
    pieces = []
    if start > 0:
        pieces.append(c.add(step, "aten.slice.Tensor", value, dim, 0, start, at="before"))
    pieces.append(part)
    if end < _length(step, c.shape_of(step), dim):
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
    rank, stem = len(c.shape(value.name)), step.module or step.fx.name
    _length(step, c.shape(value.name), dim)
    if rank > 2 and dim == rank - 2:
        left = c.constants.added(f"{stem}.matrix", matrix)
        return c.add(step, "aten.matmul.default", left, value, at=at)
    right = c.constants.added(f"{stem}.matrix", matrix.T.contiguous())
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
    size = _length(step, c.shape_of(step), dim)
    _along(c, step, value, dim, torch.ones(size, size, dtype=step.dtype).tril(), "")


def _index_add(c: Converter, step: Step) -> None:
    """Sum rows into those that an index names: messages along the edges of a fixed graph."""
    value, dim, index, source = step.args[:4]
    if not isinstance(index, Weight) or not carries(c, source):
        raise Refused(f"{step.op} with an index that is not constant, or of a constant")
    _scatter(c, step, value, dim, tensor(c, index), source)


def _scatter_add(c: Converter, step: Step) -> None:
    value, dim, index, source = step.args[:4]
    found = tensor(c, index) if isinstance(index, Weight) else None
    if found is None or not carries(c, source):
        raise Refused(f"{step.op} with an index that is not constant, or of a constant")
    lines = found.movedim(dim, 0).flatten(1)
    if not bool((lines == lines[:, :1]).all()):
        raise Refused(f"{step.op} with an index that changes along other axes")
    _scatter(c, step, value, dim, lines[:, 0], source)


def _scatter(
    c: Converter, step: Step, value: Any, dim: int, index: torch.Tensor, source: Ref
) -> None:
    dim %= len(c.shape_of(step))
    size = _length(step, c.shape_of(step), dim)
    matrix = torch.zeros(size, len(index), dtype=step.dtype)
    matrix[index, torch.arange(len(index))] = float(step.kwargs.get("alpha", 1))
    nothing = isinstance(value, Weight) and value.name in c.nothing
    summed = _along(c, step, source, dim, matrix, "" if nothing else "scattered")
    if not nothing:
        c.add(step, "aten.add.Tensor", summed, value)


# --- one of many


def _best(c: Converter, step: Step) -> None:
    """Take the largest along axes: a max-pool of one window."""
    value, dims, *rest = (*step.args, (), False)[: max(2, len(step.args))]
    keep = bool(rest[0]) if rest else False
    if not step.moving:
        c.keep(step)
        return
    shape = c.shape(value.name)
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    chosen = sorted(d % len(shape) for d in dims) or list(range(1, len(shape)))
    count = math.prod(_length(step, shape, d) for d in chosen)
    others = [d for d in range(len(shape)) if d not in chosen]
    if not isinstance(shape[0], Batch) or shape[0].offset:
        raise Refused(f"{step.op} of a value that does not keep its batch in front")
    if [*others, *chosen] != list(range(len(shape))):
        value = c.add(step, "aten.permute.default", value, (*others, *chosen), at="turned")
    flat = (shape[0], math.prod(_length(step, shape, d) for d in others[1:]), count)
    value = c.add(step, "aten.reshape.default", value, flat, at="flat")
    value = c.add(step, "aten.max_pool1d.default", value, (count,), at="best")
    final = tuple(1 if d in chosen else s for d, s in enumerate(shape) if keep or d not in chosen)
    step.fx.meta["val"] = _first(step.fx.meta["val"])
    c.add(step, "aten.reshape.default", value, final)


def _pool(c: Converter, step: Step) -> None:
    """Keep an adaptive max-pool; the places of its maxima are its own affair."""
    step.fx.meta["val"] = _first(step.fx.meta["val"])
    c.keep(step)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value


def _item(c: Converter, step: Step) -> None:
    """Read a part; the first of what a maximum returns is all of it."""
    source = step.fx.args[0]
    if str(source.target) == "aten.max.dim" or "adaptive_max_pool" in str(source.target):
        if step.args[1] != 0:
            raise Refused(f"{source.target}, for the place of the maximum")
        c.alias(step, step.args[0])
        return
    c.keep(step)


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
        size = _length(step, shape, 1)
        if len(c.shape(which.name)) != 1 or not isinstance(shape[0], Batch):
            raise Refused(f"{step.op} with indices that are not constant integers")
        column = c.add(step, "aten.unsqueeze.default", which, 1, at="column")
        # Negative indices count from the end.
        column = c.add(step, "aten.remainder.Scalar", column, size, at="place")
        places = c.constants.added(f"{step.module or step.fx.name}.places", torch.arange(size))
        mask = c.add(step, "aten.eq.Tensor", column, places, at="mask")
        kept: Any = as_number(c, step, mask, "kept")
        for i in range(len(shape) - 2):
            kept = c.add(step, "aten.unsqueeze.default", kept, -1, at=f"kept.{i}")
        value = c.add(step, "aten.mul.Tensor", value, kept, at="picked")
        c.add(step, "aten.sum.dim_IntList", value, (1,), False)

    return rewrite


def _gather(c: Converter, step: Step) -> None:
    """Pick one entry along an axis per sample, where integers say which."""
    value, dim, which = step.args[:3]
    if not step.moving:
        c.keep(step)
        return
    shape, rank = c.shape(value.name), len(c.shape_of(step))
    dim %= rank
    fits = isinstance(which, Ref) and which.name in c.passive and carries(c, value)
    wanted = tuple(1 if d == dim else size for d, size in enumerate(shape))
    if not fits or c.shape(which.name) != wanted:
        raise Refused(f"{step.op} of other than one entry that integers name")
    places = torch.arange(_length(step, shape, dim)).reshape([-1] + [1] * (rank - 1 - dim))
    numbers = c.constants.added(f"{step.module or step.fx.name}.places", places)
    mask = c.add(step, "aten.eq.Tensor", which, numbers, at="mask")
    value = c.add(step, "aten.mul.Tensor", value, as_number(c, step, mask, "kept"), at="picked")
    c.add(step, "aten.sum.dim_IntList", value, (dim,), True)


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


def _triangle(c: Converter, step: Step) -> None:
    """Clear one side of a diagonal."""
    if not step.moving:
        c.keep(step)
        return
    value, *rest = step.args
    shape = c.shape_of(step)
    sizes = [_length(step, shape, d) for d in (-2, -1)]
    side = torch.tril if "tril" in step.op else torch.triu
    hidden = ~side(torch.ones(sizes, dtype=torch.bool), *rest)
    fill(c, step, value, c.constants.added(f"{step.module or step.fx.name}.hidden", hidden), 0.0)


def _samples(c: Converter, fx: Any) -> bool:
    """Whether a value counts the samples, 0 to n - 1."""
    grown = c.constants.grown.get(getattr(fx, "name", ""))
    return grown is not None and all(
        torch.equal(value, torch.arange(n)) for value, n in zip(grown, SIZES, strict=True)
    )


def axes(rewrites: dict[str, Callable[[Converter, Step], None]]) -> dict[str, Any]:
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
        "aten.index_add.default": _index_add,
        "aten.scatter_add.default": _scatter_add,
        "aten.amax.default": _best,
        "aten.max.dim": _best,
        **{op: _pool for op in MAX_POOL if "adaptive" in op},
        "aten.getitem": _item,
        "aten.index.Tensor": _index(rewrites["aten.index.Tensor"]),
    }
