"""A program with its layers, and the rules that a composite gives them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from nrm_graph.network.ir.finite import finite
from nrm_graph.network.ir.held_weights import held, read_as
from nrm_graph.network.ir.program import Weight, passive
from nrm_graph.network.layout import Layout, layout
from nrm_graph.rules import sign_analysis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nrm_graph.network.ir.program import Node, Program
    from nrm_graph.rules.base import Group, Rule, Signs
    from nrm_graph.rules.composites import Composite


@dataclass(frozen=True)
class Network:
    """A program with its layers and the rules that a composite gives them.

    Attributes
    ----------
    rules : tuple of Rule or None
        By layer id; None for inputs.
    silent : frozenset of str
        Layers that receive no relevance where they are not positive.
    groups : dict
        Groups of every layer's rule, made at first use (see :mod:`nrm_graph.rules`).
    others : dict of dtype to Network
        The same network in other precisions, made when asked for.
    connected : set of str
        Layers every neuron of which is known to read something.
    """

    program: Program
    layout: Layout
    composite: Composite
    rules: tuple[Rule | None, ...]
    silent: frozenset[str] = frozenset()
    groups: dict[tuple[str, Signs], tuple[Group, ...]] = field(default_factory=dict, repr=False)
    others: dict[torch.dtype, Network] = field(default_factory=dict, repr=False)
    connected: set[str] = field(default_factory=set, repr=False)

    @functools.cached_property
    def non_negative(self) -> tuple[frozenset[str], frozenset[str]]:
        """Values that are never negative: for any inputs, and for inputs that are not."""
        return sign_analysis.non_negative(self.program, False), sign_analysis.non_negative(
            self.program, True
        )

    @functools.cached_property
    def narrow(self) -> bool:
        """Whether weights are held in half precision."""
        return any(op.narrow for op in self.layout.weighings.values())

    @functools.cached_property
    def passive(self) -> frozenset[str]:
        """Values that carry no relevance, see :func:`nrm_graph.network.ir.program.passive`."""
        return passive(self.program)

    @functools.cached_property
    def unbounded(self) -> frozenset[str]:
        """Values that may hold -inf: masked scores, and what is made of them before a softmax."""
        names: set[str] = set()
        weights = held(self.program.weights)
        infinite = {n for n, w in weights.items() if not finite(w) and bool(torch.isinf(w).any())}
        for node in self.program.nodes:
            fills = any(a.name in infinite for a in node.args if isinstance(a, Weight))
            fills = fills or -math.inf in [a for a in node.args if isinstance(a, float)]
            reads = node.op != "aten.softmax.int" and not names.isdisjoint(node.references())
            if fills or reads:
                names.add(node.name)
        return frozenset(names)

    @functools.cached_property
    def order(self) -> tuple[tuple[str, Node | None], ...]:
        """Values in execution order and the nodes that make them; None for inputs and output."""
        inputs = [(name, None) for name, _ in self.program.inputs]
        nodes = [(node.name, node) for node in self.program.nodes]
        final = [("output", None)] if "output" in self.layout.weighings else []
        return (*inputs, *nodes, *final)

    @functools.cached_property
    def position(self) -> dict[str, int]:
        """Place of every value in the order of execution."""
        return {name: i for i, (name, _) in enumerate(self.order)}

    @functools.cached_property
    def values(self) -> tuple[str, ...]:
        """Value of every layer, by ``layer_id``."""
        return tuple(self.layout.layer_of)

    def reads(self, name: str) -> tuple[str, ...]:
        """Values that a value is made from."""
        if name in self.layout.weighings:
            return self.layout.weighings[name].operands
        _, node = self.order[self.position[name]]
        return () if node is None else tuple(node.references())

    def readers(self, layers: Iterable[int]) -> frozenset[str]:
        """Values that layers lead to, their own included."""
        names = {self.values[layer_id] for layer_id in layers}
        for name, _ in self.order[min(map(self.position.__getitem__, names)) + 1 :]:
            if any(read in names for read in self.reads(name)):
                names.add(name)
        return frozenset(names)

    def in_precision(self, dtype: torch.dtype) -> Network:
        """Return the same network in another precision, made once."""
        if dtype not in self.others:
            place = next(iter(held(self.program.weights).values()), torch.empty(0)).device
            if place.type == "mps" and dtype == torch.float64:
                place = torch.device("cpu")
            self.others[dtype] = network(self.program, self.composite, dtype, place)
        return self.others[dtype]


def network(
    program: Program,
    composite: Composite,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Network:
    """Prepare a program for relevance passes on a device, in a dtype."""
    program = replace(program, weights=read_as(program.weights, dtype, device))
    layers = layout(program)
    rules = composite.assign(layers.topology)
    known = {i: rule for i, rule in enumerate(rules) if rule is not None}
    return Network(program, layers, composite, rules, sign_analysis.silent(program, layers, known))
