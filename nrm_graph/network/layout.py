"""Which values of a program are layers, what they are called, and what they read."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from nrm_graph.network.ir.operations import ENDS, SAME, WEIGH
from nrm_graph.network.ir.program import passive
from nrm_graph.network.layer_names import IN_PLACE, alias_names, layer_names
from nrm_graph.network.maps.linear import Scale, Weighing
from nrm_graph.network.maps.of_operation import weighing
from nrm_graph.network.topology import EdgeGroup, LayerInfo, Topology

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.network.ir.program import Node, Program


@dataclass(frozen=True)
class Layout:
    """How a program maps to layers.

    Attributes
    ----------
    topology : Topology
        Layers and edge groups.
    layer_of : dict of str to int
        Layer id of every value that is a layer.
    weighings : dict of str to Weighing
        The linear map of every value that weighs its inputs.
    activation : dict of str to str
        For every layer's value, the value after the activations that only it feeds.
    batches : dict of str to BatchAxis
        Where every value keeps its batch.
    """

    topology: Topology
    layer_of: dict[str, int]
    weighings: dict[str, Weighing]
    activation: dict[str, str]
    batches: dict[str, BatchAxis]


def layout(program: Program) -> Layout:
    """Find the layers of a program and name them (design: module paths, never node names)."""
    shapes, native, batches = program.shapes(), program.native_shapes(), program.batches()
    rest = passive(program)
    weighings = {
        node.name: weighing(node, program, native, rest)
        for node in program.nodes
        if node.op in WEIGH and node.name not in rest
    }
    values = [name for name, _ in program.inputs if name not in rest]
    ends = dict.fromkeys(values, "input")
    ends |= {n.name: ENDS[n.op] for n in program.nodes if n.op in ENDS and n.name not in rest}
    values += [n.name for n in program.nodes if n.name in weighings or n.name in ends]
    nodes = {node.name: node for node in program.nodes}
    names = layer_names(program)
    home = _home(program, set(values), native, rest)
    if len(home[program.output]) != 1 or _moved(program, nodes, set(values)):
        # What is returned is a selection of layers: a layer of its own, read one to one.
        values.append("output")
        weighings["output"] = _identity(program)
        shapes["output"], native["output"] = shapes[program.output], native[program.output]
        batches["output"] = batches[program.output]
        names["output"] = "output"
        home["output"] = {"output": Fraction(1)}
    layer_of = {value: i for i, value in enumerate(values)}
    sources = {value: _sources(value, op, native, home) for value, op in weighings.items()}
    depth: dict[str, int] = dict.fromkeys(ends, 0)
    for value in values:
        if value in weighings:
            depth[value] = 1 + max((depth[source] for source in sources[value]), default=0)
    groups = tuple(
        EdgeGroup(layer_of[value], layer_of[source], count)
        for value in values
        if value in weighings
        for source, count in sorted(sources[value].items(), key=lambda item: layer_of[item[0]])
    )
    final = next(iter(home["output"] if "output" in home else home[program.output]))
    aliases = alias_names(program, names, layer_of, final)
    layers = tuple(
        LayerInfo(
            layer_of[value],
            names[value],
            weighings[value].kind if value in weighings else ends[value],
            tuple(shapes[value]),
            depth[value],
            tuple(aliases[value]),
        )
        for value in values
    )
    return Layout(
        Topology(layers, groups),
        layer_of,
        weighings,
        _activations(program, values),
        batches,
    )


def _sources(
    value: str,
    op: Weighing,
    native: Mapping[str, tuple[int, ...]],
    home: Mapping[str, Mapping[str, Fraction]],
) -> dict[str, int]:
    """Layers that an operation reads, and the neuron-level edges to each."""
    edges: dict[str, int] = defaultdict(int)
    for index, operand in enumerate(op.operands):
        count = op.dense_edges(index, native[value], native[operand])
        for source, share in home[operand].items():
            edges[source] += round(count * share)
    return edges


def _home(
    program: Program,
    layers: set[str],
    native: dict[str, tuple[int, ...]],
    rest: frozenset[str],
) -> dict[str, dict[str, Fraction]]:
    """For every value, the layers whose neurons it consists of, with their shares of it.

    Shares are exact through concatenations; what selects from one keeps its shares.
    """
    home: dict[str, dict[str, Fraction]] = {name: {} for name in rest}
    home |= {name: {name: Fraction(1)} for name, _ in program.inputs if name not in rest}
    for node in program.nodes:
        if node.name in rest:
            continue
        if node.name in layers:
            home[node.name] = {node.name: Fraction(1)}
            continue
        references = [name for name in node.references() if name not in rest]
        share = Fraction(1, max(1, len(references)))
        shares: dict[str, Fraction] = defaultdict(Fraction)
        for read in references:
            if node.op == "aten.cat.default":
                share = Fraction(math.prod(native[read]), math.prod(native[node.name]))
            for layer, part in home[read].items():
                shares[layer] += share * part
        home[node.name] = dict(shares)
    return home


def _moved(program: Program, nodes: dict[str, Node], layers: set[str]) -> bool:
    """Whether the output differs in shape or order from the layer it comes from, or is an input."""
    value, shape = program.output, None
    while value in nodes and value not in layers:
        if nodes[value].op not in SAME | IN_PLACE:
            return True
        shape = nodes[value].shape if shape is None else shape
        value = next(nodes[value].references())
    return value not in nodes or (shape is not None and shape != nodes[value].shape)


def _identity(program: Program) -> Weighing:
    return Weighing("output", (program.output,), (Scale(),), (None,), None)


def _activations(program: Program, values: list[str]) -> dict[str, str]:
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in program.nodes:
        for name in node.references():
            readers[name].append(node)
    after = {}
    for value in values:
        last = value
        while len(readers[last]) == 1 and readers[last][0].op in SAME and last != program.output:
            last = readers[last][0].name
        after[value] = last
    return after
