"""Shapes of values while a graph is converted, for any size of the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import TraceError
from nrm_graph.network.ir.batch_axis import BatchAxis
from nrm_graph.network.ir.interpreter import resolve
from nrm_graph.network.ir.operations import SUPPORTED, function
from nrm_graph.network.ir.program import Batch
from nrm_graph.network.tracing.batch_norm import weight_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from nrm_graph.network.ir.program import Node

SIZES = (2, 3)
"""Batch sizes for which a value is evaluated whose shape holds the batch."""


def affine(value: Any) -> int | Batch:
    """Turn a symbolic integer into ``scale * n + offset``."""
    if isinstance(value, int):
        return value
    expression = value.node.expr
    symbols = expression.free_symbols
    if not symbols:
        return int(expression)
    if len(symbols) > 1:
        raise TraceError(f"a size depends on several free sizes: {expression}")
    (symbol,) = symbols
    at = [int(expression.subs(symbol, n)) for n in (2, 3, 5)]
    scale = at[1] - at[0]
    if at[2] - at[1] != 2 * scale:
        raise TraceError(f"a size grows as {expression} with the batch: expected linear growth")
    return Batch(scale, at[0] - 2 * scale)


def place(shape: Sequence[int | Batch]) -> tuple[tuple[int, ...], BatchAxis] | None:
    """Shape of a sample and the batch axis, samples first; None if there is no single axis."""
    found = [d for d, size in enumerate(shape) if isinstance(size, Batch)]
    if len(found) != 1:
        return None
    size = shape[found[0]]
    assert isinstance(size, Batch)
    if size.offset or size.scale < 1:
        return None
    batch = BatchAxis(found[0], 1, size.scale)
    native = tuple(s.scale if isinstance(s, Batch) else s for s in shape)
    return batch.shape(native), batch


@dataclass
class Sizes:
    """Shapes of the values of a graph.

    Attributes
    ----------
    exported : dict of str to torch.fx.Node
        Values that the exporter knows, by our names.
    made : dict of str to tuple
        Others, run without data for the batches in ``SIZES``.
    """

    exported: dict[str, Any] = field(default_factory=dict)
    made: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def of(self, node: Node, weights: Mapping[str, Tensor]) -> tuple[int | Batch, ...]:
        """Native shape of a node's value; of the parts of a split, that of the first."""
        if node.name not in self.exported:
            self.made[node.name] = tuple(self._run(node, weights, n) for n in SIZES)
        return self.shape(node.name)

    def shape(self, name: str) -> tuple[int | Batch, ...]:
        """Native shape of a value that is known."""
        if name in self.exported:
            meta = _one(self.exported[name].meta["val"])
            return tuple(affine(d) for d in meta.shape)
        first, second = (_one(value).shape for value in self.made[name])
        if len(first) != len(second):
            raise RuntimeError(f"the number of axes of {name} depends on the batch")
        return tuple(
            a if a == b else Batch(b - a, a - (b - a) * SIZES[0])
            for a, b in zip(first, second, strict=True)
        )

    def dtype(self, name: str) -> torch.dtype:
        """Type of a value that is known."""
        known = name in self.exported
        value = self.exported[name].meta["val"] if known else self.made[name][0]
        found: torch.dtype = _one(value).dtype
        return found

    def _run(self, node: Node, weights: Mapping[str, Tensor], n: int) -> Any:
        values = {name: self._empty(name, n) for name in node.references()}
        names = weight_names((node.args, node.kwargs))
        used = {name: _shaped(weights[name].shape, weights[name].dtype) for name in names}
        args = resolve(node.args, values, used, n)
        kwargs = {k: resolve(v, values, used, n) for k, v in node.kwargs}
        op = node.op.replace("raw.", "aten.")
        if op in SUPPORTED:
            return function(op)(*args, **kwargs)
        _, name, overload = op.split(".")
        return getattr(getattr(torch.ops.aten, name), overload)(*args, **kwargs)

    def _empty(self, name: str, n: int) -> Any:
        if name in self.made:
            return self.made[name][SIZES.index(n)]

        def empty(meta: Any) -> Any:
            if isinstance(meta, list | tuple):
                return [empty(part) for part in meta]
            sizes = [affine(d) for d in meta.shape]
            shape = [s if isinstance(s, int) else s.scale * n + s.offset for s in sizes]
            return _shaped(shape, meta.dtype)

        return empty(self.exported[name].meta["val"])


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value


def _shaped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Tensor without data; floats in one type, as a pass is computed in one."""
    kind = torch.float32 if dtype.is_floating_point else dtype
    return torch.empty(shape, dtype=kind, device="meta")
