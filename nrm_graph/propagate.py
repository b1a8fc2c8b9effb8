"""The relevance pass, for a batch of inputs.

Once the activations are fixed, relevance is linear: the pass walks the program in reverse and
each operation maps the relevance of its output to that of its inputs and pseudo-neurons.  A
conjunction (:mod:`nrm_graph.clauses`) is evaluated on the way: *pass A* multiplies by A's mask
and drops every other walk that is pending, because in reverse execution order no pending walk
can still reach A; *avoid A* multiplies by the complement and drops nothing.  The value of the
conjunction is all that is left at the end, in inputs and pseudo-neurons alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.execution import resolve
from nrm_graph.operations import MAX_POOL, SAME, function
from nrm_graph.states import State, flow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from nrm_graph.clauses import Clause
    from nrm_graph.program import Node

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
        s = share.weigh(relevance)
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
        stand_in = (state.values | leaves, state.network.program.weights)
        args = resolve(node.args, *stand_in, n)
        kwargs = {key: resolve(value, *stand_in, n) for key, value in node.kwargs}
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
