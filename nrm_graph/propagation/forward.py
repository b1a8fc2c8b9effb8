"""The network's own run on a batch: its activations, winners of pools and routed-in constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import InputError
from nrm_graph.network.ir.held_weights import held
from nrm_graph.network.ir.input_spec import fitting
from nrm_graph.network.ir.interpreter import evaluated, exact, resolve
from nrm_graph.network.ir.operations import MAX_POOL
from nrm_graph.propagation.constant_neurons import mark
from nrm_graph.propagation.routed_constants import track
from nrm_graph.propagation.state import State
from nrm_graph.propagation.tensor_sums import total

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.ir.program import Node
    from nrm_graph.propagation.prepared_network import Network


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
        state.values[node.name] = _evaluated(node, state, n)
        track(node, state, n)
        if net.composite.bias == "ignored":
            mark(node, state)
    if "output" in net.layout.weighings:
        state.values["output"] = state.values[net.program.output]
    if not torch.isfinite(state.output).all():
        raise InputError("the network's output is NaN or infinite for this input")
    return state


def _evaluated(node: Node, state: State, n: int) -> Any:
    """Value of a node; what a pool selects is noted in the state."""
    decided, weights = state.decided, state.network.program.weights
    try:
        if node.op in MAX_POOL:
            args = resolve(node.args, state.values, weights, n)
            if decided is None:
                value, state.winners[node.name] = max_pool(node.op, args)
                return value
            winners = state.winners[node.name] = decided.winners[node.name].to(args[0].device)
            return _chosen(args[0], winners, MAX_POOL[node.op])
        without = _without_bias(node, state)
        if without is not None:
            rest, bias = without
            state.left[node.name] = rest
            return rest + bias
        return evaluated(node, state.values, weights, n)
    except Exception as error:  # a stored program can hold anything
        error.add_note(f"at the node {node.name} ({node.op})")
        raise


def _without_bias(node: Node, state: State) -> tuple[Tensor, Tensor] | None:
    """Output of a layer before its bias, and the bias, where a composite leaves that out.

    Both are wanted then: what is left is the denominator, and its difference from the whole
    would cancel where the bias is large.
    """
    op = state.network.layout.weighings.get(node.name)
    if state.network.composite.bias == "absorbed" or op is None:
        return None
    if op.kind not in ("convolution", "dense") or not isinstance(op.bias, torch.Tensor):
        return None
    if op.moving or any(operand in state.constant for operand in op.operands):
        return None
    xs = [state.values[operand] for operand in op.operands]
    op = op.resolved(xs[0], state.values, as_held=True)
    assert op.shift is not None
    parts = [kind.apply(x, w) for kind, x, w in zip(op.maps, xs, op.tensors, strict=True)]
    return total(parts), op.shift


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
    place = next(iter(held(net.program.weights).values()), torch.empty(0)).device
    xs = {
        name: state.values[name].to(place, dtype if value.is_floating_point() else None)
        for name, value in ((name, state.values[name]) for name, _ in state.network.program.inputs)
    }
    return forward(net, xs, state)
