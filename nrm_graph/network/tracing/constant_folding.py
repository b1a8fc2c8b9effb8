"""What no input value reaches, evaluated once: constants, and their readable names."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrm_graph.network.ir.held_weights import HALF, LOWEST, holdable, wide
from nrm_graph.network.ir.program import Batch, Weight
from nrm_graph.network.tracing.symbolic_shapes import SIZES, affine, size_for

if TYPE_CHECKING:
    from collections.abc import Sequence

_CASTS = ("aten._to_copy.default", "aten.to.dtype", "aten.type_as.default")


@dataclass
class Constants:
    """Values of an exported graph that no input reaches, by the exporter's name.

    Attributes
    ----------
    values : dict of str to Tensor, or to a list of them
        Those whose shape does not depend on the batch.
    grown : dict of str to pair
        Those whose shape does, for the sizes in ``SIZES``.
    spread : dict of str to (Tensor, axis)
        Of ``grown``, those that are the same for all samples: the value for one.
    origins : dict of str to frozenset of str
        Parameters and buffers of numbers that a value derives from.
    modules : dict of str to str
        Module that made a value.
    names : dict of str to str
        Names in the program, given at first use.
    used : dict of str to Tensor
        The program's tensors.
    zeros : set of str
        Those that are 0 all over, and not because a parameter happens to be.
    half : set of dtype
        Types of half precision in which the network computes.
    """

    values: dict[str, Any] = field(default_factory=dict)
    grown: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    spread: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    used: dict[str, Tensor] = field(default_factory=dict)
    zeros: set[str] = field(default_factory=set)
    half: set[torch.dtype] = field(default_factory=set)
    _count: Counter[str] = field(default_factory=Counter)

    def stored(self, name: str, value: Tensor, path: str | None, module: str = "") -> None:
        """Add a parameter or buffer, or (without a path) a tensor of the code."""
        self.values[name] = holdable(value)
        self.modules[name] = module
        # Integers say which entries of a table are meant: the table is what is named.
        named = path is not None and value.is_floating_point()
        self.origins[name] = frozenset([path]) if named and path else frozenset()
        if path is not None:
            self.names[name] = path

    def tensor(self, name: str) -> Tensor:
        """Value of a constant, of one sample if it is the same for all."""
        return wide(self._held(name))

    def _held(self, name: str) -> Tensor:
        value: Tensor = self.spread[name][0] if name in self.spread else self.values[name]
        return value

    def weight(self, name: str) -> Weight:
        """Constant as an argument of a node."""
        if name not in self.names:
            origins = self.origins.get(name, frozenset())
            module = self.modules.get(name, "")
            stem = next(iter(origins)) if len(origins) == 1 else module or name
            self.names[name] = self._free(f"constant.{stem}")
        public = self.names[name]
        if public not in self.used:
            self.used[public] = holdable(self._held(name))
        if not self.origins.get(name) and not bool(self.used[public].any()):
            self.zeros.add(public)
        return Weight(public)

    def added(self, stem: str, value: Tensor) -> Weight:
        """Add a constant that a conversion makes."""
        name = self._free(f"constant.{stem}")
        self.used[name] = wide(value)
        return Weight(name)

    def _free(self, stem: str) -> str:
        number = self._count[stem]
        self._count[stem] += 1
        return f"{stem}@{number}" if number else stem

    def cleared(self, name: str, shape: Sequence[int | Batch], dtype: torch.dtype) -> None:
        """Add a value that is 0 for every sample."""
        axis = next(d for d, size in enumerate(shape) if isinstance(size, Batch))
        one = torch.zeros([s if isinstance(s, int) else 1 for s in shape], dtype=dtype)
        self.grown[name] = tuple(one.repeat_interleave(n, axis) for n in SIZES)
        self.spread[name] = one, axis
        self.origins[name] = frozenset()

    def fold(self, fx: torch.fx.Node, module: str) -> bool:
        """Evaluate a node that no input reaches; False if that cannot be.

        Parameters
        ----------
        fx : torch.fx.Node
            The node; what it reads beside constants gives it a shape alone.
        module : str
            The module that made it.
        """
        meta: Any = fx.meta.get("val")
        parts = meta if isinstance(meta, list | tuple) else [meta]
        if not all(isinstance(p, Tensor) for p in parts):
            return False
        static = all(isinstance(affine(d), int) for p in parts for d in p.shape)
        try:
            values = [self._evaluated(fx, n) for n in (SIZES[:1] if static else SIZES)]
        except _UnknownError:
            return False
        origins = (self.origins.get(source.name, ()) for source in fx.all_input_nodes)
        self.origins[fx.name] = frozenset[str]().union(*origins)
        self.modules[fx.name] = module
        if static:
            self.values[fx.name] = values[0]
            self._cast(fx)
            return True
        self.grown[fx.name] = tuple(values)
        if isinstance(meta, Tensor):
            self._spread(fx, [affine(d) for d in meta.shape])
        return True

    def number(self, value: float) -> float:
        """Bring a number to those of float32; the lowest of half precision is its lowest."""
        if not math.isfinite(value):
            return value
        if value in {torch.finfo(dtype).min for dtype in self.half}:
            return LOWEST
        return min(max(value, LOWEST), -LOWEST)  # a float64 mask is one in float32 too

    def _cast(self, fx: torch.fx.Node) -> None:
        """Let a constant that is cast to half precision, or from it, be the same one."""
        if str(fx.target) in _CASTS:
            source = fx.all_input_nodes[0].name
            before, after = self.values[source], self.values[fx.name]
            kind = torch.float32 if before.dtype in HALF else before.dtype
            if kind == after.dtype and before.is_floating_point():
                self._alias(fx, source)

    def _alias(self, fx: torch.fx.Node, source: str) -> None:
        self.weight(source)
        self.names[fx.name] = self.names[source]

    def _spread(self, fx: torch.fx.Node, shape: list[int | Batch]) -> None:
        axes = [d for d, size in enumerate(shape) if isinstance(size, Batch)]
        if len(axes) != 1 or shape[axes[0]] != Batch(1, 0):
            return
        values = self.grown[fx.name]
        one = values[0].narrow(axes[0], 0, 1)
        if all(torch.equal(v, one.expand_as(v)) for v in values):
            self.spread[fx.name] = one.clone(), axes[0]
            source = fx.all_input_nodes[0].name if fx.all_input_nodes else ""
            copied = self.values.get(source)
            if (
                isinstance(copied, Tensor)
                and copied.shape == one.shape
                and torch.equal(wide(copied), one)
            ):
                # Copied for every sample: still the parameter itself.
                self._alias(fx, source)

    def _evaluated(self, fx: Any, n: int) -> Any:
        def value(arg: Any) -> Any:
            if not isinstance(arg, torch.fx.Node):
                return literal(arg)
            if arg.name in self.values:
                return _wide(self.values[arg.name])
            if arg.name in self.grown:
                return self.grown[arg.name][SIZES.index(n)]
            meta = arg.meta.get("val")
            if isinstance(meta, Tensor):
                shape = [size_for(d, n) for d in meta.shape]
                return torch.empty(shape, dtype=literal(meta.dtype))
            if isinstance(meta, int | torch.SymInt):
                return size_for(meta, n)
            raise _UnknownError

        def literal(arg: Any) -> Any:
            if isinstance(arg, torch.dtype):
                return torch.float32 if arg in HALF else arg
            if isinstance(arg, torch.SymInt):
                return size_for(arg, n)
            return self.number(arg) if isinstance(arg, float) and self.half else arg

        args, kwargs = torch.fx.node.map_aggregate((fx.args, fx.kwargs), value)
        with torch.no_grad():
            return fx.target(*args, **kwargs)


class _UnknownError(Exception):
    """A value is not known when the graph is converted."""


def _wide(value: Any) -> Any:
    """Return what an operation reads: a tensor, or the parts of a split."""
    return wide(value) if isinstance(value, Tensor) else value
