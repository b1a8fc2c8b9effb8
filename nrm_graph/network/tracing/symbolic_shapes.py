"""Shapes of values while a graph is converted, for any size of the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import TraceError
from nrm_graph.network.ir.batch_axis import BatchAxis
from nrm_graph.network.ir.interpreter import resolve
from nrm_graph.network.ir.operations import SUPPORTED, function, overload
from nrm_graph.network.ir.program import Batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from nrm_graph.network.ir.program import Node

SIZES = (2, 3)
"""Batch sizes for which a value is evaluated whose shape holds the batch."""


def affine(value: int | torch.SymInt) -> int | Batch:
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


def size_for(value: int | torch.SymInt, n: int) -> int:
    """Give a size for a batch of n."""
    size = affine(value)
    return size.scale * n + size.offset if isinstance(size, Batch) else size


def place(shape: Sequence[int | Batch]) -> tuple[tuple[int, ...], BatchAxis] | None:
    """Shape of a sample and the batch axis, samples first; None if there is no single axis."""
    axes = [(d, size) for d, size in enumerate(shape) if isinstance(size, Batch)]
    if len(axes) != 1 or axes[0][1].offset or axes[0][1].scale < 1:
        return None
    ((axis, size),) = axes
    batch = BatchAxis(axis, 1, size.scale)
    native = tuple(s.scale if isinstance(s, Batch) else s for s in shape)
    return batch.shape(native), batch


@dataclass
class Sizes:
    """Shapes of the values of a graph.

    Attributes
    ----------
    exported : dict of str to torch.fx.Node
        Values that the exporter knows, by our names.
    computed : dict of str to tuple
        Others, run without data for the batches in ``SIZES``.
    """

    exported: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def of(self, node: Node, weights: Mapping[str, Tensor]) -> tuple[int | Batch, ...]:
        """Native shape of a node's value; of the parts of a split, that of the first."""
        if node.name not in self.exported:
            self.computed[node.name] = tuple(self._run(node, weights, n) for n in SIZES)
        return self.shape(node.name)

    def shape(self, name: str) -> tuple[int | Batch, ...]:
        """Native shape of a value that is known."""
        if name in self.exported:
            meta = first_part(self.exported[name].meta["val"])
            return tuple(affine(d) for d in meta.shape)
        first, second = (first_part(value).shape for value in self.computed[name])
        if len(first) != len(second):
            raise RuntimeError(f"the number of axes of {name} depends on the batch")
        return tuple(
            a if a == b else Batch(b - a, a - (b - a) * SIZES[0])
            for a, b in zip(first, second, strict=True)
        )

    def dtype(self, name: str) -> torch.dtype:
        """Type of a value that is known."""
        known = name in self.exported
        value = self.exported[name].meta["val"] if known else self.computed[name][0]
        dtype: torch.dtype = first_part(value).dtype
        return dtype

    def _run(self, node: Node, weights: Mapping[str, Tensor], n: int) -> Any:
        values = {name: self._empty(name, n) for name in node.references()}
        used = {w: _shaped(weights[w].shape, weights[w].dtype) for w in node.weight_names()}
        args = resolve(node.args, values, used, n)
        kwargs = {k: resolve(v, values, used, n) for k, v in node.kwargs}
        op = node.op.replace("raw.", "aten.")
        call = function(op) if op in SUPPORTED else overload(op)
        return call(*args, **kwargs)

    def _empty(self, name: str, n: int) -> Any:
        if name in self.computed:
            return self.computed[name][SIZES.index(n)]

        def empty(meta: Any) -> Any:
            if isinstance(meta, list | tuple):
                return [empty(part) for part in meta]
            return _shaped([size_for(d, n) for d in meta.shape], meta.dtype)

        return empty(self.exported[name].meta["val"])


def first_part(value: Any) -> Any:
    """Return a value, or of one in parts the first."""
    return value[0] if isinstance(value, list | tuple) else value


def _shaped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Tensor without data; floats in one type, as a pass is computed in one."""
    kind = torch.float32 if dtype.is_floating_point else dtype
    return torch.empty(shape, dtype=kind, device="meta")
