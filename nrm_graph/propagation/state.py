"""A network prepared for relevance passes, and the activations of one batch."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import InputError
from nrm_graph.network.ir.input_spec import fitting
from nrm_graph.network.ir.interpreter import exact, resolve
from nrm_graph.network.ir.operations import MAX_POOL, function
from nrm_graph.network.ir.program import Weight, passive
from nrm_graph.network.layout import Layout, layout
from nrm_graph.network.maps.linear import Moving
from nrm_graph.propagation.routed_constants import track
from nrm_graph.rules import sign_analysis
from nrm_graph.rules.base import Decisions, Flow, Signs, evaluated

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.ir.program import Node, Program
    from nrm_graph.network.maps.linear import Weighing
    from nrm_graph.rules.base import Group, Rule
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
    """

    program: Program
    layout: Layout
    composite: Composite
    rules: tuple[Rule | None, ...]
    silent: frozenset[str] = frozenset()
    groups: dict[tuple[str, Signs], tuple[Group, ...]] = field(default_factory=dict, repr=False)
    others: dict[torch.dtype, Network] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def non_negative(self) -> tuple[frozenset[str], frozenset[str]]:
        """Values that are never negative: for any inputs, and for inputs that are not."""
        return sign_analysis.non_negative(self.program, False), sign_analysis.non_negative(
            self.program, True
        )

    @functools.cached_property
    def passive(self) -> frozenset[str]:
        """Values that carry no relevance, see :func:`nrm_graph.network.ir.program.passive`."""
        return passive(self.program)

    @functools.cached_property
    def unbounded(self) -> frozenset[str]:
        """Values that may hold -inf: masked scores, and what is made of them before a softmax."""
        found: set[str] = set()
        weights = self.program.weights
        infinite = {name for name, w in weights.items() if bool(torch.isinf(w).any())}
        for node in self.program.nodes:
            fills = any(a.name in infinite for a in node.args if isinstance(a, Weight))
            fills = fills or -math.inf in [a for a in node.args if isinstance(a, float)]
            reads = node.op != "aten.softmax.int" and not found.isdisjoint(node.references())
            if fills or reads:
                found.add(node.name)
        return frozenset(found)

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

    def readers(self, layer_id: int) -> frozenset[str]:
        """Values that a layer leads to, its own included."""
        found = {self.values[layer_id]}
        for name, _ in self.order[self.position[self.values[layer_id]] + 1 :]:
            if any(read in found for read in self.reads(name)):
                found.add(name)
        return frozenset(found)

    def in_precision(self, dtype: torch.dtype) -> Network:
        """Return the same network in another precision, made once."""
        if dtype not in self.others:
            place = next(iter(self.program.weights.values()), torch.empty(0)).device
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

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    program = replace(program, weights={k: moved(v) for k, v in program.weights.items()})
    found = layout(program)
    rules_ = composite.assign(found.topology)
    known = {i: rule for i, rule in enumerate(rules_) if rule is not None}
    return Network(program, found, composite, rules_, sign_analysis.silent(program, found, known))


@dataclass
class State:
    """Activations of one batch and what the pass derives from them.

    Attributes
    ----------
    values : dict of str to Tensor
        Native value of every node: the batch where the network has it.
    winners : dict of str to Tensor
        Flat spatial index of every max-pool's selection (torch's first in scan order).
    constant : dict of str to Tensor, or to a list of them for the parts of a split
        Where a value is a constant that was routed in (padding, class tokens): 0 for neurons,
        k for the k-th of ``constants``.
    constants : list of str
        Names of the constants that were routed in.
    flows : dict of str to Flow
        Kernels, filled at the first pass.
    positive : bool
        Whether no input of the batch is negative, whole numbers apart.
    means : dict of str to ndarray
        Mean activations by unit, filled when tables are made.
    single : State or None
        Where this is a batch of copies (see :func:`repeated`), the state of the one sample.
    decided : State or None
        The same batch in another precision, whose decisions are kept: winners of pools, signs that
        rules branch on (see :func:`in_precision`).
    """

    network: Network
    values: dict[str, Any]
    positive: bool = False
    winners: dict[str, Tensor] = field(default_factory=dict)
    constant: dict[str, Any] = field(default_factory=dict)
    constants: list[str] = field(default_factory=list)
    flows: dict[str, Flow] = field(default_factory=dict)
    means: dict[str, Any] = field(default_factory=dict)
    single: State | None = None
    decided: State | None = None

    @property
    def output(self) -> Tensor:
        """Network output, ``(N, outputs)``."""
        name = self.network.program.output
        value = self.samples(name, self.values[name])
        return value.reshape(value.shape[0], -1)

    def samples(self, name: str, native: Tensor) -> Tensor:
        """``(N, *shape)`` of something that is laid out like the value ``name``."""
        return self.network.layout.batches[name].samples(native)


def _resolve(value: Any, state: State, n: int) -> Any:
    return resolve(value, state.values, state.network.program.weights, n)


@exact
def forward(net: Network, x: Inputs, decided: State | None = None) -> State:
    """Run the network on a batch and keep what the rules read.

    Parameters
    ----------
    net : Network
        The network.
    x : Tensor, (N, ...), or a sequence or mapping of them by the names of the inputs
        Inputs, on the network's device; floats in its dtype, whole numbers as int64 or bool.
    decided : State, optional
        Keep the decisions of this one.

    Raises
    ------
    InputError
        If an input is missing, its shape does not fit, or a value is NaN or infinite.
    """
    xs = fitting(net.program, x)
    floats = [t for name, t in xs.items() if name not in net.program.integers]
    positive = bool(floats) and all(bool((t >= 0).all()) for t in floats)
    state = State(net, dict(xs), positive, decided=decided)
    n = next(iter(xs.values())).shape[0]
    for node in net.program.nodes:
        args = _resolve(node.args, state, n)
        kwargs = {key: _resolve(value, state, n) for key, value in node.kwargs}
        try:
            if node.op in MAX_POOL and decided is not None:
                winners = state.winners[node.name] = decided.winners[node.name].to(args[0].device)
                value = _chosen(args[0], winners, MAX_POOL[node.op])
            elif node.op in MAX_POOL:
                value, state.winners[node.name] = max_pool(node.op, args)
            else:
                value = function(node.op)(*args, **kwargs)
        except Exception as error:  # a stored program can hold anything
            error.add_note(f"at the node {node.name} ({node.op})")
            raise
        state.values[node.name] = value
        track(node, state, n)
    if "output" in net.layout.weighings:
        state.values["output"] = state.values[net.program.output]
    if not torch.isfinite(state.output).all():
        raise InputError("the network's output is NaN or infinite for this input")
    return state


def max_pool(op: str, args: list[Any]) -> tuple[Tensor, Tensor]:
    """Pool, and the flat spatial index of what each output selected."""
    kind = "adaptive_max_pool" if "adaptive" in op else "max_pool"
    pool = getattr(torch.nn.functional, f"{kind}{MAX_POOL[op]}d")
    names = ("stride", "padding", "dilation", "ceil_mode")
    options = {k: v for k, v in zip(names, args[2:], strict=False) if v != []}
    return pool(args[0], args[1], return_indices=True, **options)  # type: ignore[no-any-return]


def _chosen(values: Tensor, winners: Tensor, spatial: int) -> Tensor:
    """Return what a pool selects, where that is known."""
    chosen = values.flatten(-spatial).gather(-1, winners.flatten(-spatial))
    return chosen.reshape(winners.shape)


def in_precision(state: State, dtype: torch.dtype) -> State:
    """Run the network on the same batch in another precision, with the same decisions.

    Both states then speak of one measure, which differs by rounding alone.  Where the device has
    no such type (Apple's have no float64) the CPU computes.
    """
    net = state.network.in_precision(dtype)
    place = next(iter(net.program.weights.values()), torch.empty(0)).device
    xs = {
        name: state.values[name].to(place, dtype if value.is_floating_point() else None)
        for name, value in ((name, state.values[name]) for name, _ in state.network.program.inputs)
    }
    return forward(net, xs, state)


def repeated(state: State, n: int) -> State:
    """Return the state of one sample as that of n copies, which share its memory.

    Many events of one input make one batch.  Where a value does not keep its batch in front, the
    copies are real.
    """
    if n == 1:
        return state
    batches = state.network.layout.batches

    def copies(name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [copies(name, part) for part in value]
        return _copies(batches[name], value, n)

    return State(
        state.network,
        {name: copies(name, value) for name, value in state.values.items()},
        state.positive,
        {name: copies(name, value) for name, value in state.winners.items()},
        {name: copies(name, value) for name, value in state.constant.items()},
        single=state,
        decided=None if state.decided is None else repeated(state.decided, n),
    )


def _copies(batch: BatchAxis, native: Tensor, n: int) -> Tensor:
    one = batch.samples(native)
    return batch.native(one.expand(n, *one.shape[1:]))


def _flow_of_copies(state: State, name: str) -> Flow:
    """Kernel of a state of copies; that of one sample, wherever it broadcasts."""
    assert state.single is not None
    found, op = flow(state.single, name), state.network.layout.weighings[name]
    batches = state.network.layout.batches
    if all(batches[value].plain for value in (name, *op.operands)):
        return found
    z = state.single.values[name]
    n = batches[name].samples(state.values[name]).shape[0]

    def above(value: Tensor) -> Tensor:
        return _copies(batches[name], value.expand_as(z), n)

    def moved(weight: Tensor, like: str | None) -> Tensor:
        keeps = like is not None and weight.ndim == state.values[like].ndim
        return _copies(batches[like], weight, n) if keeps and like is not None else weight

    shares = []
    for share in found.shares:
        terms = tuple(
            term._replace(
                x=_copies(batches[op.operands[term.operand]], term.x, n),
                weight=moved(term.weight, op.like(term.operand)),
            )
            for term in share.terms
        )
        bias = share.bias
        if isinstance(op.bias, Moving) and bias is not None:
            bias = moved(bias, op.bias.like)
        shares.append(replace(share, terms=terms, d=above(share.d), bias=bias))
    rest = [None if v is None else above(v) for v in (found.unplaced, found.held, found.remainder)]
    return Flow(tuple(shares), *rest)


def flow(state: State, name: str) -> Flow:
    """Kernel of a weighing operation, computed once per state."""
    found = state.flows.get(name)
    if found is None and state.single is not None:
        found = state.flows[name] = _flow_of_copies(state, name)
    if found is None:
        net = state.network
        op, rule = net.layout.weighings[name], net.rules[net.layout.layer_of[name]]
        assert rule is not None
        known = net.non_negative[state.positive]
        at = Signs(tuple(operand in known for operand in op.operands), name in net.silent)
        z = state.values[name]
        with torch.no_grad():
            xs = [bounded(state, operand) for operand in op.operands]
            whole = resolved(state, name) if op.moving else None
            groups = net.groups.get((name, at))
            if groups is None:
                whole = resolved(state, name) if whole is None else whole
                groups = rule.groups(whole, at)
                if not op.moving:  # weights that depend on the input are made for every batch
                    net.groups[name, at] = groups
            decisions = None
            if state.decided is not None:
                kernel = flow(state.decided, name)
                decided_z = state.decided.values[name].to(z.device)
                denominators = tuple(share.d.to(z.device) for share in kernel.shares)
                decisions = Decisions(decided_z, denominators)
            unplaced = rule.unplaced(z if decisions is None else decisions.z.to(z.dtype), at)
            unplaced = _unplaced(state, name, unplaced)
            found = evaluated(groups, op, xs, z, unplaced, decisions)
            lost = rule.remainder(op if whole is None else whole, xs, z)
            found = found._replace(held=_held(state, op, found), remainder=lost)
        state.flows[name] = found
    return found


def bounded(state: State, name: str) -> Tensor:
    """Value of an operand, 0 where scores are hidden by -inf."""
    value: Tensor = state.values[name]
    return value.masked_fill(value.isinf(), 0.0) if name in state.network.unbounded else value


def resolved(state: State, name: str) -> Weighing:
    """Give an operation's weights their values; a mask that is added hides and holds nothing."""
    found = state.network.layout.weighings[name].resolved(state.values[name], state.values)
    if name not in state.network.unbounded or found.shift is None:
        return found
    return replace(found, bias=found.shift.masked_fill(found.shift.isinf(), 0.0))


def _unplaced(state: State, name: str, unplaced: Tensor | None) -> Tensor | None:
    """Share that a rule cannot place: all of what is -inf, where nothing divides."""
    if name not in state.network.unbounded:
        return unplaced
    z: Tensor = state.values[name]
    hidden = z.isinf().to(z.dtype)
    return hidden if unplaced is None else unplaced.masked_fill(z.isinf(), 1.0)


def _held(state: State, op: Weighing, found: Flow) -> Tensor | None:
    """Share that a rule gives to routed-in constants: constants hold it, so it is bias."""
    held: Tensor | None = None
    for share in found.shares:
        for term in share.terms:
            marked = state.constant.get(op.operands[term.operand])
            if marked is not None:
                part = (
                    op.maps[term.operand].apply(term.x * (marked != 0), term.weight) * share.factor
                )
                held = part if held is None else held + part
    return held


def awake(state: State, name: str) -> Tensor | None:
    """Neurons of a layer that may hold relevance, ``(N, *shape)``; None for all.

    Where a layer is silent no walk reaches what is not positive, and its rule gives no kernel
    there.
    """
    if name not in state.network.silent:
        return None
    decisive = state if state.decided is None else state.decided
    return state.samples(name, decisive.values[name].to(state.values[name].device)) > 0


def seed(state: State, weights: Tensor) -> Tensor:
    """Return the initial relevance ``w y / sum(w y)`` of signed output weights, ``(N, outputs)``.

    For one target this is 1 at the target.

    Raises
    ------
    InputError
        If the weighted sum of outputs is zero: its shares are undefined.
    """
    single = (weights != 0).sum(1, keepdim=True) == 1
    shares = weights * state.output
    total = shares.sum(1, keepdim=True)
    if bool(((total == 0) & ~single).any()):
        raise InputError("the weighted sum of the target outputs is zero: shares are undefined")
    return torch.where(single, (weights != 0).to(shares.dtype), shares / total)
