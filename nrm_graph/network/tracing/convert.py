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
from nrm_graph.network.ir.held_weights import HALF
from nrm_graph.network.ir.operations import CARRYING, PASSIVE, SUPPORTED
from nrm_graph.network.ir.program import Node, Program, Ref
from nrm_graph.network.tracing.changed_state import refuse_changed_state
from nrm_graph.network.tracing.converter import Converter
from nrm_graph.network.tracing.operation_names import spelled
from nrm_graph.network.tracing.step import Refused, Step
from nrm_graph.network.tracing.symbolic_shapes import place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.export import ExportedProgram

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

_VALUES = (Tensor, list, tuple)


@dataclass
class Conversion:
    """An exported graph on its way to a program, from the first node to the last.

    Attributes
    ----------
    exported : torch.export.ExportedProgram
        Of a module that calls the network as a child.
    input_names : sequence of str
        Names of the network's arguments.
    rewrites : mapping of str to callable
        For operations that need more than their name: called with the converter and the step.
    converter : Converter
        Collects the nodes.
    inputs : list of pair
        Names and shapes of the network's inputs.
    integers : list of str
        Those of whole numbers.
    refused : set of str
        The exporter's names of what cannot be converted, and of all that reads it.
    output : str
        Value that the network returns.
    """

    exported: ExportedProgram
    input_names: Sequence[str]
    rewrites: Mapping[str, Callable[[Converter, Step], None]]
    converter: Converter
    inputs: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    integers: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    output: str = ""

    def program(self) -> Program:
        """Convert the whole graph; operations called ``raw`` are still among it."""
        c = self.converter
        values = (node.meta.get("val") for node in self.exported.graph.nodes)
        types = {value.dtype for value in values if isinstance(value, Tensor)}
        c.constants.half = types.intersection(HALF)
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
            tuple(c.nodes),
            self.output,
            c.constants.used,
            integers=tuple(self.integers),
        )

    @property
    def half(self) -> bool:
        """Whether the network computes in half precision somewhere."""
        return bool(self.converter.constants.half)

    @cached_property
    def _stored(self) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
        """Tensors by their names; names of parameters and buffers, and of tensors of the code."""
        signature = self.exported.graph_signature
        return (
            {**self.exported.constants, **self.exported.state_dict},
            {**signature.inputs_to_parameters, **signature.inputs_to_buffers},
            signature.inputs_to_lifted_tensor_constants,
        )

    def _placeholder(self, fx: torch.fx.Node) -> None:
        c = self.converter
        stored, owned, lifted = self._stored
        if fx.name in owned:
            name = owned[fx.name]
            c.constants.stored(fx.name, stored[name].detach(), c.calls.path(name))
        elif fx.name in lifted:
            name = lifted[fx.name]
            module = c.calls.path(name).rpartition(".")[0]
            c.constants.stored(fx.name, stored[name].detach(), None, module)
        else:
            k = len(self.inputs)
            name = self.input_names[k] if k < len(self.input_names) else fx.name
            c.renamed[fx.name] = name
            meta = fx.meta["val"]
            self.inputs.append((name, tuple(meta.shape[1:])))
            c.sizes.exported[name] = fx
            if not meta.is_floating_point():
                self.integers.append(name)
                c.passive.add(name)
            if meta.dtype == torch.bool:  # a program's integers are 64 bits wide
                c.add(Step(fx, "", (), {}, [], "", ""), "aten.ne.Scalar", Ref(name), 0, at="true")
                c.renamed[fx.name] = f"{fx.name}.true"

    def _output(self, fx: Any) -> None:
        """Take the output of the network; beside it stand inputs and buffers that it changes."""
        c = self.converter
        specs = self.exported.graph_signature.output_specs
        pairs = zip(specs, fx.args[0], strict=True)
        (result,) = (read for spec, read in pairs if spec.kind.name == "USER_OUTPUT")
        refuse_changed_state(self.exported, result, c.calls)
        self.output = c.renamed.get(result.name, result.name)
        if result.name in c.constants.origins:
            raise TraceError("the network's output does not depend on its input")

    def _operation(self, fx: torch.fx.Node) -> None:
        c = self.converter
        op = spelled(fx)
        module, _ = c.calls.where(fx)
        sources = [n for n in fx.all_input_nodes if isinstance(n.meta.get("val"), _VALUES)]
        random = torch.Tag.nondeterministic_seeded in getattr(fx.target, "tags", ()) and (
            op not in SUPPORTED and op not in self.rewrites
        )
        known = c.constants.origins
        if op == "aten.type_as.default":  # of the second nothing but its type is read
            sources = sources[:1]
        if (
            not random
            and (op in _SHAPE_ONLY or all(n.name in known for n in sources))
            and c.constants.fold(fx, module)
        ):
            return
        if any(n.name in self.refused for n in fx.all_input_nodes):
            self.refused.add(fx.name)
        try:
            if random:
                raise Refused(f"{op} (random numbers)")
            step = c.step(fx)
            self.rewrites.get(op, Converter.keep)(c, step)
        except Refused as refused:
            self._refuse(fx, str(refused))

    def _refuse(self, fx: torch.fx.Node, why: str) -> None:
        """Stand in for what cannot be converted, so that the rest is looked at as well."""
        c = self.converter
        read = [n.name for n in fx.all_input_nodes if n.name not in c.constants.origins]
        refs = tuple(Ref(c.renamed.get(name, name)) for name in read)
        module, call = c.calls.where(fx)
        c.sizes.exported[fx.name] = fx
        op, value = spelled(fx), fx.meta.get("val")
        numbers = getattr(value, "dtype", torch.int64).is_floating_point
        # Behind another it may be refused for what that one gives.
        known = op in CARRYING or op in self.rewrites or (op in PASSIVE and not numbers)
        stage = "behind" if known and not self.refused.isdisjoint(read) else "refused"
        self.refused.add(fx.name)
        placed = None
        if isinstance(value, Tensor):
            with suppress(TraceError):
                placed = place(c.sizes.shape(fx.name))
        shape, batch = placed or ((), PLAIN)
        if refs and not numbers and all(ref.name in c.passive for ref in refs):
            c.passive.add(fx.name)
        c.nodes.append(Node(fx.name, f"{stage}.{why}", refs, (), module, call, shape, batch))
