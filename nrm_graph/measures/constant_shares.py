"""What biases and constants hold of a layer's relevance, by their names."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nrm_graph.network.ir.interpreter import exact
from nrm_graph.network.ir.program import Ref, Weight
from nrm_graph.propagation.kernels import kernel_of
from nrm_graph.propagation.relevance_pass import relevance_pass
from nrm_graph.propagation.routed_constants import plain
from nrm_graph.propagation.tensor_sums import accumulate

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.measures.event_passes import Terms
    from nrm_graph.network.ir.program import Node
    from nrm_graph.propagation.state import State

# Where each operation has its bias among the arguments.
_PLACES = {
    "aten.addmm.default": 0,
    "aten.layer_norm.default": 3,
    "aten.group_norm.default": 3,
    "aten.add.Tensor": None,
    "aten.sub.Tensor": None,
}


def bias_name(state: State, name: str) -> str:
    """Name of the bias of a layer: a parameter, a folded constant, or a number in the code."""
    net = state.network
    _, node = net.order[net.position[name]]
    if node is None:
        return "bias"
    place = _PLACES.get(node.op, 2)
    if place is not None and len(node.args) > place and isinstance(node.args[place], Weight):
        bias = plain(node.args[place].name)
        return f"{node.module}.bias" if bias == f"{node.name}.shift" else bias
    if place is None:
        return _added(state, node)
    return f"{node.module or net.layout.topology.layers[net.layout.layer_of[name]].name}.bias"


def _added(state: State, node: Node) -> str:
    """Name of what a sum adds beside its operands."""
    operands = state.network.layout.weighings[node.name].operands
    for argument in node.args[:2]:
        if isinstance(argument, Weight):
            return plain(argument.name)
        if isinstance(argument, Ref) and argument.name not in operands:
            _, passive = state.network.order[state.network.position[argument.name]]
            return argument.name if passive is None else passive.module or argument.name
    number = next((a for a in node.args[:2] if isinstance(a, int | float)), None)
    return "constant" if number is None else f"{float(number):g}"


def shares(state: State, name: str) -> dict[str, Tensor]:
    """``q(bias|j)`` of a layer by the name of what holds it, laid out as its value is."""
    op, kernel = state.network.layout.weighings[name], kernel_of(state, name)
    by_name: dict[str, Tensor] = {}
    if state.network.composite.bias == "ignored":
        return by_name
    for share in kernel.shares:
        if share.bias is not None:
            accumulate(by_name, bias_name(state, name), share.bias * share.factor)
        for term in share.terms:
            codes = state.constant.get(op.operands[term.operand])
            if codes is None:
                continue
            for code in codes.unique().tolist():
                if code:
                    part = op.maps[term.operand].apply(term.x * (codes == code), term.weight)
                    accumulate(by_name, state.constants[int(code) - 1], part * share.factor)
    return by_name


_CONSTANTS = pa.schema(
    [
        ("layer", pa.string()),
        ("constant", pa.string()),
        ("relevance", pa.float64()),
        ("total_variation", pa.float64()),
    ]
)


def table(state: State, start: Tensor, terms: Terms, scale: float) -> pa.Table:
    """Return what biases and constants hold; see ``Measure.constants``."""
    layers = state.network.layout.topology.layers
    rows: list[dict[str, Any]] = [
        {
            "layer": layers[layer_id].name,
            "constant": name,
            "relevance": float(part.double().sum()) * scale,
            "total_variation": float(part.double().abs().sum()) * abs(scale),
        }
        for (layer_id, name), part in constants(state, start, terms).items()
        if bool(part.any())
    ]
    places = {layer.name: layer.layer_id for layer in layers}
    rows.sort(key=lambda row: (-places[row["layer"]], -row["total_variation"]))
    return pa.Table.from_pylist(rows, _CONSTANTS)


@exact
def constants(state: State, start: Tensor, terms: Terms) -> dict[tuple[int, str], Tensor]:
    """Relevance that biases and constants hold under an event, by layer id and name.

    Returns
    -------
    dict of (layer id, name) to Tensor, the layer's shape
        ``R(n, its bias & event)``, split by what holds it.
    """
    relevance: dict[tuple[int, str], Tensor] = {}
    split: dict[int, dict[str, Tensor]] = defaultdict(dict)
    values = state.network.values
    for coefficient, clause in terms:
        arrived: list[Tensor] = []  # at the layer of the last visit

        def visit(layer_id: int, r: Tensor, arrived: list[Tensor] = arrived) -> None:
            arrived[:] = [r]

        def absorb(layer_id: int, kind: str, _: Tensor, arrived: list[Tensor] = arrived) -> None:
            if kind != "bias":
                return
            name = values[layer_id]
            split[layer_id] = split[layer_id] or {
                which: state.samples(name, q.expand_as(state.values[name]))
                for which, q in shares(state, name).items()
            }
            for which, q in split[layer_id].items():
                accumulate(relevance, (layer_id, which), (arrived[0] * q)[0])

        relevance_pass(state, start * coefficient, clause, visit=visit, absorb=absorb)
    return relevance
