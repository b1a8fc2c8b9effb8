"""The forward run and the relevance pass, for a batch of inputs.

Once the activations are fixed, relevance is linear: the pass walks the program in reverse and
each operation maps the relevance of its output to that of its inputs and pseudo-neurons.  A
conjunction (:mod:`nrm_graph.clauses`) is evaluated on the way: *pass A* multiplies by A's mask
and drops every other walk that is pending, because in reverse execution order no pending walk
can still reach A; *avoid A* multiplies by the complement and drops nothing.  The value of the
conjunction is all that is left at the end, in inputs and pseudo-neurons alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph import rules, signs
from nrm_graph.errors import InputError
from nrm_graph.execution import resolve
from nrm_graph.layers import Layout, layout
from nrm_graph.operations import MAX_POOL, SAME, function
from nrm_graph.program import Node, Program, Ref, Weight
from nrm_graph.rules import Signs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from nrm_graph.clauses import Clause
    from nrm_graph.composites import Composite
    from nrm_graph.linear import Weighing
    from nrm_graph.rules import Flow, Group, Rule

_SAME_ORDER = {
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.clone.default",
    "aten.alias.default",
    "aten.contiguous.default",
}


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
    """

    program: Program
    layout: Layout
    composite: Composite
    rules: tuple[Rule | None, ...]
    silent: frozenset[str]
    groups: dict[tuple[str, Signs], tuple[Group, ...]] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def non_negative(self) -> tuple[frozenset[str], frozenset[str]]:
        """Values that are never negative: for any inputs, and for inputs that are not."""
        return signs.non_negative(self.program, False), signs.non_negative(self.program, True)


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
    return Network(program, found, composite, rules_, signs.silent(program, found, known))


@dataclass
class State:
    """Activations of one batch and what the pass derives from them.

    Attributes
    ----------
    values : dict of str to Tensor
        Native value of every node: the batch where the network has it.
    winners : dict of str to Tensor
        Flat spatial index of every max-pool's selection (torch's first in scan order).
    constant : dict of str to Tensor
        Where a value is a constant that was routed in (padding, class tokens).
    flows : dict of str to Flow
        Kernels, filled at the first pass.
    positive : bool
        Whether no input of the batch is negative.
    means : dict of str to ndarray
        Mean activations by unit, filled when tables are made.
    """

    network: Network
    values: dict[str, Any]
    positive: bool = False
    winners: dict[str, Tensor] = field(default_factory=dict)
    constant: dict[str, Tensor] = field(default_factory=dict)
    flows: dict[str, Flow] = field(default_factory=dict)
    means: dict[str, Any] = field(default_factory=dict)

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


@torch.no_grad()
def forward(net: Network, x: Tensor) -> State:
    """Run the network on a batch and keep what the rules read.

    Parameters
    ----------
    net : Network
        The network.
    x : Tensor, (N, ...)
        Inputs, in the network's dtype and on its device.

    Raises
    ------
    InputError
        If the shape does not fit, or a value is NaN or infinite.
    """
    (name, shape), *others = net.program.inputs
    if others:
        names = ", ".join([name, *(other for other, _ in others)])
        raise InputError(
            f"the network has {1 + len(others)} inputs ({names}), expected 1: relevance of "
            "several inputs is not available; wrap the network in a module that takes one tensor "
            "and cuts it up"
        )
    if tuple(x.shape[1:]) != shape:
        raise InputError(f"expected an input of shape {shape}, found {tuple(x.shape[1:])}")
    if not torch.isfinite(x).all():
        raise InputError("the input holds NaN or infinity")
    state = State(net, {name: x}, bool((x >= 0).all()))
    n = x.shape[0]
    for node in net.program.nodes:
        args = _resolve(node.args, state, n)
        kwargs = {key: _resolve(value, state, n) for key, value in node.kwargs}
        if node.op in MAX_POOL:
            value, state.winners[node.name] = max_pool(node.op, args)
        else:
            value = function(node.op)(*args, **kwargs)
        state.values[node.name] = value
        _track_constants(node, state, args, kwargs, n)
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


def _track_constants(
    node: Node, state: State, args: list[Any], kwargs: dict[str, Any], n: int
) -> None:
    """Follow where routed-in constants end up; almost no network has any."""
    if node.name in state.network.layout.weighings:
        return
    marks, value = state.constant, state.values[node.name]
    references = list(node.references())
    if not references:  # made from parameters alone, with a batch axis
        marks[node.name] = torch.ones_like(value, dtype=torch.bool)
        return
    pads = node.op in ("aten.pad.default", "aten.constant_pad_nd.default")
    pads = pads and (len(args) < 3 or args[2] == "constant" or not isinstance(args[2], str))
    joins = node.op in ("aten.cat.default", "aten.stack.default") and any(
        isinstance(a, Weight) for a in node.args[0]
    )
    fills = node.op == "aten.masked_fill.Scalar"
    if not pads and not joins and not fills and not any(r in marks for r in references):
        return

    def mark(arg: Any) -> Any:
        if isinstance(arg, Ref):
            found = marks.get(arg.name)
            operand = state.values[arg.name]
            return operand.new_zeros(operand.shape) if found is None else found.to(operand.dtype)
        if isinstance(arg, Weight):
            return torch.ones_like(state.network.program.weights[arg.name])
        if isinstance(arg, tuple):
            return [mark(a) for a in arg]
        return _resolve(arg, state, n)

    if node.op in SAME:
        marks[node.name] = marks[references[0]].expand(value.shape)
    elif node.op in MAX_POOL:
        spatial = MAX_POOL[node.op]
        flat = marks[references[0]].flatten(-spatial)
        index = state.winners[node.name].flatten(-spatial)
        marks[node.name] = flat.gather(-1, index).reshape(value.shape)
    elif fills:
        marks[node.name] = function(node.op)(mark(node.args[0]), args[1], 1.0).bool()
    elif pads:
        marks[node.name] = torch.nn.functional.pad(mark(node.args[0]), args[1], value=1.0).bool()
    else:
        routed = function(node.op)(*[mark(a) for a in node.args], **kwargs)
        marks[node.name] = routed.bool()


def flow(state: State, name: str) -> Flow:
    """Kernel of a weighing operation, computed once per state."""
    found = state.flows.get(name)
    if found is None:
        net = state.network
        op, rule = net.layout.weighings[name], net.rules[net.layout.layer_of[name]]
        assert rule is not None
        known = net.non_negative[state.positive]
        at = Signs(tuple(operand in known for operand in op.operands), name in net.silent)
        z = state.values[name]
        with torch.no_grad():
            if (name, at) not in net.groups:
                net.groups[name, at] = rule.groups(op.resolved(z), at)
            xs = [state.values[operand] for operand in op.operands]
            groups = net.groups[name, at]
            found = rules.flow(groups, op, xs, z, rule.unplaced(z, at))
            found = found._replace(held=_held(state, op, found))
        state.flows[name] = found
    return found


def _held(state: State, op: Weighing, found: Flow) -> Tensor | None:
    """Share that a rule gives to routed-in constants: constants hold it, so it is bias."""
    held: Tensor | None = None
    for share in found.shares:
        for term in share.terms:
            marked = state.constant.get(op.operands[term.operand])
            if marked is not None:
                part = op.maps[term.operand].apply(term.x * marked, term.weight) * share.factor
                held = part if held is None else held + part
    return held


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


@dataclass
class Outcome:
    """Value of a conjunction per sample, ``(N,)``, and the size of what was summed.

    ``magnitude`` bounds what rounding is relative to: the largest sum of |R| that any literal
    of the conjunction selected from.
    """

    value: Tensor
    magnitude: Tensor


def relevance_pass(
    state: State,
    start: Tensor,
    clause: Clause | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
    absorb: Callable[[int, str, Tensor], None] | None = None,
    stop: Callable[[int, Tensor], bool] | None = None,
    weigh: Callable[[str, Tensor], Iterable[tuple[str, Tensor]]] | None = None,
) -> Outcome:
    """Send relevance from the output to the inputs.

    Parameters
    ----------
    state : State
        Activations of a batch of N.
    start : Tensor, (N, outputs)
        Relevance of the network's output.
    clause : Clause, optional
        The conjunction that walks must satisfy.
    visit : callable, optional
        Called with layer id and relevance ``(N, *shape)`` of every layer reached, masked.
    absorb : callable, optional
        Called with layer id, ``bias`` or ``stabilizer``, and what each neuron lost to it.
    stop : callable, optional
        Called like ``visit``; where it answers True, the walks end there (and still count).
    weigh : callable, optional
        Takes the place of the step through a weighing operation: given its name and relevance
        (laid out as the network does, see :mod:`nrm_graph.batching`),
        it yields operands and their relevance.  Absorbed shares are left to it, and are no
        part of the outcome.
    """
    net, clause = state.network, clause or {}
    n = start.shape[0]
    out = net.program.output
    top = "output" if "output" in net.layout.weighings else out
    batches = net.layout.batches
    shape = net.layout.topology.output.shape
    pending: dict[str, Any] = {top: batches[out].native(start.reshape(n, *shape))}
    ended = start.new_zeros(n)
    magnitude = start.abs().sum(1)
    first, last = True, min(clause, default=-1)

    def add(name: str, relevance: Tensor) -> None:
        pending[name] = pending[name] + relevance if name in pending else relevance

    order = [node.name for node in net.program.nodes]
    if top == "output":
        order.append("output")
    nodes = {node.name: node for node in net.program.nodes}
    for name in [*(i for i, _ in net.program.inputs), *order][::-1]:
        relevance = pending.pop(name, None)
        layer_id = net.layout.layer_of.get(name)
        literal = clause.get(layer_id) if layer_id is not None else None
        if literal is not None:
            if relevance is None:
                relevance = torch.zeros_like(state.values[name])
            relevance = batches[name].samples(relevance)
            mask = torch.from_numpy(literal.mask).to(relevance.device)
            chosen = relevance * mask
            size = _total(chosen.abs())
            magnitude = size if first and literal.passes else torch.maximum(magnitude, size)
            first = first and not literal.passes
            if literal.passes and layer_id == last and not (visit or absorb or stop or weigh):
                # All that remains is summed here: below, rounding is not the event's own.
                return Outcome(_total(chosen), magnitude)
            if literal.passes:
                pending.clear()
                ended = torch.zeros_like(ended)
                relevance = chosen
            else:
                relevance = relevance * ~mask
            relevance = batches[name].native(relevance)
        if relevance is None:
            continue
        if layer_id is not None:
            own = batches[name].samples(relevance)
            if visit is not None:
                visit(layer_id, own)
            if stop is not None and stop(layer_id, own):
                ended = ended + _total(own)
                continue
            if name not in net.layout.weighings:  # an input: walks end here
                ended = ended + _total(own)
                continue
            if weigh is not None:
                shares = weigh(name, relevance)
            else:
                shares, lost = _weigh(state, name, relevance)
                for kind, native in lost:
                    part = batches[name].samples(native)
                    ended = ended + _total(part)
                    if absorb is not None:
                        absorb(layer_id, kind, part)
            for operand, share in shares:
                add(operand, share)
        else:
            _route(nodes[name], relevance, state, pending, add, n)
    return Outcome(ended, magnitude)


def _total(relevance: Tensor) -> Tensor:
    """Sum per sample."""
    return relevance.reshape(relevance.shape[0], -1).sum(1)


def _weigh(
    state: State, name: str, relevance: Tensor
) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """Shares of the operands, and what bias and stabilizer absorb at every neuron."""
    kernel, op = flow(state, name), state.network.layout.weighings[name]
    shares = []
    for share in kernel.shares:
        s = relevance * share.factor
        for term in share.terms:
            operand = op.operands[term.operand]
            back = op.maps[term.operand].transpose(s, term.weight, state.values[operand])
            shares.append((operand, term.x * back))
    lost = [("bias", kernel.bias()), ("stabilizer", kernel.stabilizer())]
    return shares, [(kind, relevance * part) for kind, part in lost if part is not None]


def _route(
    node: Node,
    relevance: Any,
    state: State,
    pending: dict[str, Any],
    add: Callable[[str, Tensor], None],
    n: int,
) -> None:
    references = list(dict.fromkeys(node.references()))
    if not references:  # a constant: counted as bias of the layer that read it
        return
    source = state.values[references[0]]
    if node.op == "aten.getitem":
        parts = pending.setdefault(references[0], [None] * len(source))
        index = node.args[1]
        parts[index] = relevance if parts[index] is None else parts[index] + relevance
    elif node.op in SAME:
        add(references[0], relevance.sum_to_size(source.shape))
    elif node.op in _SAME_ORDER:
        add(references[0], relevance.reshape(source.shape))
    elif node.op in MAX_POOL:
        spatial = MAX_POOL[node.op]
        flat = torch.zeros_like(source).flatten(-spatial)
        # Accumulated: overlapping windows may share a winner.
        flat = flat.scatter_add(
            -1, state.winners[node.name].flatten(-spatial), relevance.flatten(-spatial)
        )
        add(references[0], flat.reshape(source.shape))
    else:
        for name, share in zip(
            references, _transpose(node, relevance, state, references, n), strict=True
        ):
            add(name, share)


def _transpose(
    node: Node, relevance: Any, state: State, references: list[str], n: int
) -> tuple[Tensor, ...]:
    """Transpose of a selection: the gradient of a linear map, for any value of its operand."""
    with torch.enable_grad():
        leaves = {r: state.values[r].detach().requires_grad_(True) for r in references}
        stand_in = State(state.network, state.values | leaves)
        args = _resolve(node.args, stand_in, n)
        kwargs = {key: _resolve(value, stand_in, n) for key, value in node.kwargs}
        result = function(node.op)(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            outputs, weights = [result], [relevance]
        else:
            pairs = [(o, r) for o, r in zip(result, relevance, strict=True) if r is not None]
            outputs, weights = [o for o, _ in pairs], [r for _, r in pairs]
        return torch.autograd.grad(
            outputs,
            list(leaves.values()),
            weights,
            create_graph=any(w.requires_grad for w in weights),
        )
