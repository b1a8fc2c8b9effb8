"""From an exported graph to the nodes of a program.

What no input value reaches is evaluated and becomes a constant
(:mod:`nrm_graph.network.tracing.constant_folding`); what is written in many ways is brought into
one (:mod:`nrm_graph.network.tracing.decompositions`); attention is taken apart into its product,
softmax and mix, so that each is a layer (:mod:`nrm_graph.network.tracing.attention`).

An operation that may be part of an activation written out in steps is called ``raw.<name>``
until :mod:`nrm_graph.network.tracing.fusion` has found all of it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrm_graph.errors import TraceError
from nrm_graph.network.ir.batch_axis import PLAIN
from nrm_graph.network.ir.operations import CARRYING, ENDS, PASSIVE, ROUTE, SAME, SUPPORTED
from nrm_graph.network.ir.program import Batch, Node, Program, Ref, Weight, passivity
from nrm_graph.network.tracing.constant_folding import HALF, Constants
from nrm_graph.network.tracing.operation_names import spelled
from nrm_graph.network.tracing.symbolic_shapes import Sizes, affine, place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_SHAPE_ONLY = {
    "aten.new_zeros.default",
    "aten.new_ones.default",
    "aten.new_full.default",
    "aten.zeros_like.default",
    "aten.ones_like.default",
    "aten.full_like.default",
    "aten.fill.Tensor",
    "aten.fill.Scalar",
}

# Constants that are the same for all samples are not broadcast by these.
_WHOLE = (ROUTE - {"aten.masked_fill.Scalar"}) | {
    "aten.gather.default",
    "aten.slice_scatter.default",
    "aten.select_scatter.default",
    "aten.copy.default",
}

_VALUES = (Tensor, list, tuple)

_PLACE = {"dtype", "layout", "device", "pin_memory", "memory_format"}


_JOINING = ("aten.cat.default", "aten.stack.default", "aten.pad.default")
"""Selections that may add other numbers."""


class Refused(Exception):
    """An operation cannot be converted: its name and why."""


@dataclass
class Step:
    """One operation of the exported graph, being converted.

    Attributes
    ----------
    fx : torch.fx.Node
        As exported.
    op : str
        Its name.
    args, kwargs
        As :class:`~nrm_graph.network.ir.program.Node` has them.
    moving : list of str
        Values among the arguments that carry relevance, with repetition.
    """

    fx: Any
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moving: list[str]
    module: str
    call: str

    @property
    def dtype(self) -> torch.dtype:
        """Type of the result."""
        found: torch.dtype = self.fx.meta["val"].dtype
        return found


@dataclass
class Converter:
    """Collects the nodes of a program from an exported graph.

    Attributes
    ----------
    exported : torch.export.ExportedProgram
        Of a module that calls the network as its child ``prefix``.
    input_names : sequence of str
        Names of the network's arguments.
    rewrites : mapping of str to callable
        For operations that need more than their name: called with the converter and the step.
    nodes : list of Node
        Converted so far.
    passive, still : set of str
        Values that carry no relevance, see :func:`nrm_graph.network.ir.program.passive`.
    mixes : set of str
        Values that are softmax weights.
    sizes : Sizes
        Shapes of all values.
    masks : dict of str to bool
        Passive values that hide what they are added to, and whether they are 0 elsewhere.
    """

    exported: Any
    input_names: Sequence[str]
    prefix: str
    rewrites: Mapping[str, Callable[[Converter, Step], None]]
    nodes: list[Node] = field(default_factory=list)
    constants: Constants = field(default_factory=Constants)
    inputs: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    integers: list[str] = field(default_factory=list)
    passive: set[str] = field(default_factory=set)
    still: set[str] = field(default_factory=set)
    mixes: set[str] = field(default_factory=set)
    masks: dict[str, bool] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # exporter's names, and of all that reads them
    renamed: dict[str, str] = field(default_factory=dict)  # exporter's name -> ours
    output: str = ""
    _ones: dict[str, Weight] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    _calls: dict[str, list[str]] = field(default_factory=dict)  # module path -> calls in order

    def program(self) -> Program:
        """Convert the whole graph; operations called ``raw`` are still among it."""
        values = (node.meta.get("val") for node in self.exported.graph.nodes)
        types = {value.dtype for value in values if isinstance(value, Tensor)}
        self.constants.half = types.intersection(HALF)
        taken = set(self.input_names)
        for fx in self.exported.graph.nodes:
            if fx.name in taken:  # names of inputs are the network's own
                fx.name = f"{fx.name}_"
            if fx.op == "placeholder":
                self._placeholder(fx)
            elif fx.op == "output":
                self._output(fx)
            elif fx.users and not isinstance(fx.meta.get("val"), int | torch.SymInt):
                self._operation(fx)
        return Program(
            tuple(self.inputs),
            tuple(self.nodes),
            self.output,
            self.constants.used,
            integers=tuple(self.integers),
        )

    def path(self, name: str) -> str:
        """Path inside the network of what the exporter saw inside the module around it."""
        return name.removeprefix(self.prefix).removeprefix(".")

    @property
    def half(self) -> bool:
        """Whether the network computes in half precision somewhere."""
        return bool(self.constants.half)

    @cached_property
    def _stored(self) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
        """Tensors by their names; names of parameters and buffers, and of tensors of the code."""
        signature = self.exported.graph_signature
        return (
            {**self.exported.constants, **self.exported.state_dict},
            {**signature.inputs_to_parameters, **signature.inputs_to_buffers},
            signature.inputs_to_lifted_tensor_constants,
        )

    def _placeholder(self, fx: Any) -> None:
        stored, owned, lifted = self._stored
        if fx.name in owned:
            name = owned[fx.name]
            self.constants.stored(fx.name, stored[name].detach(), self.path(name))
        elif fx.name in lifted:
            name = lifted[fx.name]
            module = self.path(name).rpartition(".")[0]
            self.constants.stored(fx.name, stored[name].detach(), None, module)
        else:
            k = len(self.inputs)
            name = self.input_names[k] if k < len(self.input_names) else fx.name
            self.renamed[fx.name] = name
            meta = fx.meta["val"]
            self.inputs.append((name, tuple(meta.shape[1:])))
            self.sizes.exported[name] = fx
            if not meta.is_floating_point():
                self.integers.append(name)
                self.passive.add(name)
            if meta.dtype == torch.bool:  # a program's integers are 64 bits wide
                self.add(
                    Step(fx, "", (), {}, [], "", ""), "aten.ne.Scalar", Ref(name), 0, at="true"
                )
                self.renamed[fx.name] = f"{fx.name}.true"

    def _output(self, fx: Any) -> None:
        """Take the output of the network; beside it stand inputs and buffers that it changes."""
        specs = self.exported.graph_signature.output_specs
        pairs = zip(specs, fx.args[0], strict=True)
        (result,) = (read for spec, read in pairs if spec.kind.name == "USER_OUTPUT")
        self._refuse_state(result)
        self.output = self.renamed.get(result.name, result.name)
        if result.name in self.constants.origins:
            raise TraceError("the network's output does not depend on its input")

    def _refuse_state(self, result: Any) -> None:
        """Refuse an output that depends on a tensor of the network that forward changes."""
        signature = self.exported.graph_signature
        changed = {**signature.buffers_to_mutate, **signature.parameters_to_mutate}.values()
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        reached, ahead = {result}, [result]
        while ahead:
            for read in ahead.pop().all_input_nodes:
                if read not in reached:
                    reached.add(read)
                    ahead.append(read)
        read = sorted({named[r.target] for r in reached if r.target in named})
        for name in read:
            if name in changed:
                module, _, own = self.path(name).rpartition(".")
                raise TraceError(
                    f"forward changes the tensor {own!r} of {module or 'the network itself'} and "
                    "its output depends on it, so that every call is another network: explain it "
                    "with that tensor held fixed"
                )

    def argument(self, value: Any, copied: bool = True) -> Any:
        """Argument of a node; ``copied``: a constant is repeated for every sample."""
        if isinstance(value, torch.fx.Node):
            if value.name in self.constants.values:
                return self.constants.weight(value.name)
            if value.name in self.constants.spread:
                return self._copied(value) if copied else self.constants.weight(value.name)
            if value.name in self.constants.grown and value.name not in self.sizes.exported:
                self.keep(self._step(value))
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

    def _copied(self, fx: Any) -> Ref:
        """Constant with a batch axis, as a node."""
        if fx.name not in self.sizes.exported:
            _, axis = self.constants.spread[fx.name]
            one = self.constants.tensor(fx.name)
            sizes = tuple(Batch(1, 0) if d == axis else s for d, s in enumerate(one.shape))
            module, call = self.where(fx)
            step = Step(fx, "", (), {}, [], module, call)
            self.add(step, "aten.expand.default", self.constants.weight(fx.name), sizes)
        return Ref(fx.name)

    def where(self, fx: Any) -> tuple[str, str]:
        """Return the module path and the call of a node; calls are numbered as they come."""
        stack = (fx.meta.get("nn_module_stack") or {}).items()
        levels, raw, path = [], "", ""
        for key, (full, _) in stack:
            if not full.startswith(self.prefix):
                continue  # the module around the network
            path = self.path(full)
            raw = f"{raw}/{key}"
            calls = self._calls.setdefault(path, [])
            if raw not in calls:
                calls.append(raw)
            number = calls.index(raw)
            levels.append(f"{path}@{number}" if number else path)
        return path, "/".join(levels[1:])

    def _operation(self, fx: Any) -> None:
        op = spelled(fx)
        module, _ = self.where(fx)
        sources = [n for n in fx.all_input_nodes if isinstance(n.meta.get("val"), _VALUES)]
        random = torch.Tag.nondeterministic_seeded in getattr(fx.target, "tags", ()) and (
            op not in SUPPORTED and op not in self.rewrites
        )
        known = self.constants.origins
        if op == "aten.type_as.default":  # of the second nothing but its type is read
            sources = sources[:1]
        if (
            not random
            and (op in _SHAPE_ONLY or all(n.name in known for n in sources))
            and self.constants.fold(fx, module)
        ):
            return
        if any(n.name in self.refused for n in fx.all_input_nodes):
            self.refused.add(fx.name)
        try:
            if random:
                raise Refused(f"{op} (random numbers)")
            step = self._step(fx)
            self.rewrites.get(op, Converter.keep)(self, step)
        except Refused as refused:
            self._refuse(fx, str(refused))

    def _refuse(self, fx: Any, why: str) -> None:
        """Stand in for what cannot be converted, so that the rest is looked at as well."""
        read = [n.name for n in fx.all_input_nodes if n.name not in self.constants.origins]
        refs = tuple(Ref(self.renamed.get(name, name)) for name in read)
        module, call = self.where(fx)
        self.sizes.exported[fx.name] = fx
        op, found = spelled(fx), fx.meta.get("val")
        numbers = getattr(found, "dtype", torch.int64).is_floating_point
        # Behind another it may be refused for what that one gives.
        known = op in CARRYING or op in self.rewrites or (op in PASSIVE and not numbers)
        stage = "behind" if known and not self.refused.isdisjoint(read) else "refused"
        self.refused.add(fx.name)
        placed = None
        if isinstance(found, Tensor):
            with suppress(TraceError):
                placed = place(self.sizes.shape(fx.name))
        shape, batch = placed or ((), PLAIN)
        if refs and not numbers and all(ref.name in self.passive for ref in refs):
            self.passive.add(fx.name)
        self.nodes.append(Node(fx.name, f"{stage}.{why}", refs, (), module, call, shape, batch))

    def _step(self, fx: Any) -> Step:
        op = spelled(fx)
        copied = op in _WHOLE
        args = tuple(self.argument(a, copied) for a in fx.args)
        kwargs = {k: self.argument(v, copied) for k, v in fx.kwargs.items() if k not in _PLACE}
        refs = [r.name for r in _refs((args, tuple(kwargs.values())))]
        moving = [name for name in refs if name not in self.passive | self.still]
        return Step(fx, op, args, kwargs, moving, *self.where(fx))

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
        kept = tuple(sorted((k, v) for k, v in kwargs.items() if v is not None))
        node = Node(name, op, args, kept, step.module, step.call, (), PLAIN)
        if not at:
            self.sizes.exported[name] = step.fx
        sort = None if op in ENDS else passivity(op, node.references(), self.passive, self.still)
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
        read = list(node.references())
        if op in ROUTE and any(n in self.masks for n in read):  # a mask that is moved is one still
            self.masks[name] = op not in _JOINING and all(self.masks.get(n) for n in read)
        moving = [n for n in node.references() if n not in self.passive | self.still]
        if op == "aten.softmax.int" or (
            (op in SAME or op in ROUTE) and len(moving) == 1 and moving[0] in self.mixes
        ):
            self.mixes.add(name)
        self.nodes.append(Node(name, op, args, kept, step.module, step.call, shape, batch))
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

    @property
    def nothing(self) -> set[str]:
        """Constants that are 0 as such, by their names in the program."""
        return self.constants.zeros

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


def _refs(value: Any) -> list[Ref]:
    """Values read in nested arguments, with repetition."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, tuple):
        return [ref for item in value for ref in _refs(item)]
    return []
