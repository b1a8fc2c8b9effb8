"""What a conversion has made so far: the nodes of a program, and what is known of their values.

An operation is kept as it is (:meth:`Converter.keep`), is another value (:meth:`Converter.alias`),
or is written in others (:meth:`Converter.add`), which rewrites do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import TraceError
from nrm_graph.network.ir.batch_axis import PLAIN
from nrm_graph.network.ir.operations import CARRYING, ENDS, PASSIVE, ROUTE, SAME
from nrm_graph.network.ir.program import Batch, Node, Ref, Weight, flattened, passivity
from nrm_graph.network.tracing.constant_folding import Constants
from nrm_graph.network.tracing.operation_names import spelled
from nrm_graph.network.tracing.step import Refused, Step
from nrm_graph.network.tracing.symbolic_shapes import Sizes, affine, place

if TYPE_CHECKING:
    from nrm_graph.network.tracing.module_calls import ModuleCalls

# Constants that are the same for all samples are not broadcast by these.
_WHOLE = (ROUTE - {"aten.masked_fill.Scalar"}) | {
    "aten.gather.default",
    "aten.slice_scatter.default",
    "aten.select_scatter.default",
    "aten.copy.default",
}

_PLACE = {"dtype", "layout", "device", "pin_memory", "memory_format"}


_JOINING = ("aten.cat.default", "aten.stack.default", "aten.pad.default")
"""Selections that may add other numbers."""


@dataclass
class Converter:
    """Collects the nodes of a program.

    Attributes
    ----------
    calls : ModuleCalls
        Where in the network the nodes come from.
    nodes : list of Node
        Converted so far.
    constants : Constants
        Values that no input reaches.
    passive, still : set of str
        Values that carry no relevance, see :func:`nrm_graph.network.ir.program.passive`.
    mixes : set of str
        Values that are softmax weights.
    masks : dict of str to bool
        Passive values that hide what they are added to, and whether they are 0 elsewhere.
    renamed : dict of str to str
        Our names of the exporter's values, where they are others.
    sizes : Sizes
        Shapes of all values.
    """

    calls: ModuleCalls
    nodes: list[Node] = field(default_factory=list)
    constants: Constants = field(default_factory=Constants)
    passive: set[str] = field(default_factory=set)
    still: set[str] = field(default_factory=set)
    mixes: set[str] = field(default_factory=set)
    masks: dict[str, bool] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    _ones: dict[str, Weight] = field(default_factory=dict)

    def step(self, fx: torch.fx.Node) -> Step:
        """Return an operation of the exported graph, its arguments converted."""
        op = spelled(fx)
        copied = op in _WHOLE
        args = tuple(self.argument(a, copied) for a in fx.args)
        kwargs = {k: self.argument(v, copied) for k, v in fx.kwargs.items() if k not in _PLACE}
        leaves = flattened((args, tuple(kwargs.values())))
        refs = [leaf.name for leaf in leaves if isinstance(leaf, Ref)]
        moving = [name for name in refs if name not in self.passive | self.still]
        return Step(fx, op, args, kwargs, moving, *self.calls.where(fx))

    def argument(self, value: object, copied: bool = True) -> Any:
        """Argument of a node; ``copied``: a constant is repeated for every sample."""
        if isinstance(value, torch.fx.Node):
            if value.name in self.constants.values:
                return self.constants.weight(value.name)
            if value.name in self.constants.spread:
                return self._copied(value) if copied else self.constants.weight(value.name)
            if value.name in self.constants.grown and value.name not in self.sizes.exported:
                self.keep(self.step(value))
            meta = value.meta.get("val")
            if isinstance(meta, int | torch.SymInt):
                return affine(meta)
            return Ref(self.renamed.get(value.name, value.name))
        if isinstance(value, list | tuple):
            return tuple(self.argument(item, copied) for item in value)
        if isinstance(value, torch.SymInt):
            return affine(value)
        if isinstance(value, torch.memory_format | torch.layout | torch.device | torch.dtype):
            return None
        if isinstance(value, float):
            return self.constants.number(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TraceError(f"an argument of type {type(value).__name__} cannot be stored: {value!r}")

    def _copied(self, fx: torch.fx.Node) -> Ref:
        """Constant with a batch axis, as a node."""
        if fx.name not in self.sizes.exported:
            _, axis = self.constants.spread[fx.name]
            one = self.constants.tensor(fx.name)
            sizes = tuple(Batch(1, 0) if d == axis else s for d, s in enumerate(one.shape))
            module, call = self.calls.where(fx)
            step = Step(fx, "", (), {}, [], module, call)
            self.add(step, "aten.expand.default", self.constants.weight(fx.name), sizes)
        return Ref(fx.name)

    def keep(self, step: Step) -> None:
        """Add an operation that is known as it is.

        Raises
        ------
        Refused
            If it is not known, or reads what it must not.
        """
        op = step.op
        if not step.moving:
            if op not in PASSIVE | ROUTE | SAME:
                raise Refused(
                    f"{op} of integers (they carry no relevance: embed them, or give numbers)"
                )
        elif op not in CARRYING:
            raise Refused(op)
        elif op in SAME and len(step.moving) != 1:
            raise Refused(f"{op} of two values that both depend on the input")
        elif op == "aten.instance_norm.default" and not step.args[5]:
            raise Refused(f"{op} with running statistics")
        self.add(step, op, *step.args, **step.kwargs)

    def add(self, step: Step, op: str, *args: Any, at: str = "", **kwargs: Any) -> Ref:
        """Add a node, the last of a step; or one on the way, with a suffix ``at``.

        Raises
        ------
        Refused
            If its value has no batch axis of its own.
        """
        name = f"{step.fx.name}.{at}" if at else step.fx.name
        options = tuple(sorted((k, v) for k, v in kwargs.items() if v is not None))
        node = Node(name, op, args, options, step.module, step.call, (), PLAIN)
        if not at:
            self.sizes.exported[name] = step.fx
        read = list(node.references())
        sort = None if op in ENDS else passivity(op, read, self.passive, self.still)
        try:
            placed = place(self.sizes.of(node, self.constants.used))
        except RuntimeError:
            placed = None
        if placed is None:
            raise Refused(f"{step.op} (a value without a batch axis of its own)")
        # Parts of a split have their shapes, not their list.
        parts = not at and isinstance(step.fx.meta["val"], list | tuple)
        shape, batch = ((), placed[1]) if parts else placed
        if sort is not None:
            (self.passive if sort else self.still).add(name)
        if op in ROUTE and any(n in self.masks for n in read):  # a mask that is moved is one still
            self.masks[name] = op not in _JOINING and all(self.masks.get(n) for n in read)
        moving = [n for n in read if n not in self.passive | self.still]
        if op == "aten.softmax.int" or (
            (op in SAME or op in ROUTE) and len(moving) == 1 and moving[0] in self.mixes
        ):
            self.mixes.add(name)
        self.nodes.append(replace(node, shape=shape, batch=batch))
        return Ref(name)

    def alias(self, step: Step, value: Ref | Weight) -> None:
        """Let a step's value be another.

        Raises
        ------
        Refused
            If that one is no value of a node.
        """
        if not isinstance(value, Ref):
            raise Refused(f"{step.op} of a constant")
        self.renamed[step.fx.name] = value.name

    def nothing(self, value: object) -> bool:
        """Whether an argument is a constant that is 0 as such."""
        return isinstance(value, Weight) and value.name in self.constants.zeros

    def constant(self, step: Step, suffix: str, value: torch.Tensor) -> Weight:
        """Add a constant that a step needs, called after its module."""
        return self.constants.added(f"{step.module or step.fx.name}.{suffix}", value)

    def one(self, dtype: torch.dtype) -> Weight:
        """Return a number of the type that the network computes with, or a whole one."""
        name = "one" if dtype.is_floating_point else "whole"
        if name not in self._ones:
            kind = dtype if name == "one" else torch.int64
            self._ones[name] = self.constants.added(name, torch.ones((), dtype=kind))
        return self._ones[name]

    def dtype(self, value: Ref | Weight) -> torch.dtype:
        """Type of a value."""
        if isinstance(value, Weight):
            return self.constants.used[value.name].dtype
        return self.sizes.dtype(value.name)

    def shape_of(self, step: Step) -> tuple[int | Batch, ...]:
        """Native shape of a step's result."""
        return tuple(affine(d) for d in step.fx.meta["val"].shape)

    def shape(self, name: str) -> tuple[int | Batch, ...]:
        """Native shape of a value; of the parts of a split, that of the first."""
        return self.sizes.shape(name)
