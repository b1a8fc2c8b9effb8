"""Which values of a program are layers, what they are called, and what they read."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nrm_graph.linear import Scale, Weighing, weighing
from nrm_graph.operations import SAME, WEIGH
from nrm_graph.program import Weight
from nrm_graph.topology import EdgeGroup, LayerInfo, Topology

if TYPE_CHECKING:
    from nrm_graph.program import Node, Program


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
    """

    topology: Topology
    layer_of: dict[str, int]
    weighings: dict[str, Weighing]
    activation: dict[str, str]


def layout(program: Program) -> Layout:
    """Find the layers of a program and name them (design: module paths, never node names)."""
    shapes = dict(program.inputs) | {node.name: node.shape for node in program.nodes}
    weighings = {
        node.name: weighing(node, program.weights, shapes)
        for node in program.nodes
        if node.op in WEIGH
    }
    values = [name for name, _ in program.inputs]
    values += [node.name for node in program.nodes if node.name in weighings]
    nodes = {node.name: node for node in program.nodes}
    names = _names(program)
    home = _home(program, set(values))
    if len(home[program.output]) != 1 or _moved(program, nodes, set(values)):
        # What is returned is a selection of layers: a layer of its own, read one to one.
        values.append("output")
        weighings["output"] = _identity(program)
        shapes["output"] = shapes[program.output]
        names["output"] = "output"
        home["output"] = ("output",)
    layer_of = {value: i for i, value in enumerate(values)}
    reads = {value: [home[operand] for operand in w.operands] for value, w in weighings.items()}
    depth: dict[str, int] = dict.fromkeys((name for name, _ in program.inputs), 0)
    groups = []
    for value in values:
        if value not in weighings:
            continue
        sources: dict[str, int] = defaultdict(int)
        for index, homes in enumerate(reads[value]):
            count = weighings[value].dense_edges(
                index, shapes[value], shapes[weighings[value].operands[index]]
            )
            for source in homes:
                sources[source] += count // len(homes)
        depth[value] = 1 + max((depth[s] for s in sources), default=0)
        groups += [
            EdgeGroup(layer_of[value], layer_of[s], n)
            for s, n in sorted(sources.items(), key=lambda item: layer_of[item[0]])
        ]
    aliases = _alias_names(program, home, names, layer_of)
    layers = tuple(
        LayerInfo(
            layer_of[value],
            names[value],
            weighings[value].kind if value in weighings else "input",
            tuple(shapes[value]),
            depth[value],
            tuple(aliases[value]),
        )
        for value in values
    )
    return Layout(
        Topology(layers, tuple(groups)), layer_of, weighings, _activations(program, values)
    )


def _home(program: Program, layers: set[str]) -> dict[str, tuple[str, ...]]:
    """For every value, the layers whose neurons it consists of."""
    home: dict[str, tuple[str, ...]] = {name: (name,) for name, _ in program.inputs}
    for node in program.nodes:
        if node.name in layers:
            home[node.name] = (node.name,)
        else:
            found = dict.fromkeys(h for r in node.references() for h in home[r])
            home[node.name] = tuple(found)
    return home


def _moved(program: Program, nodes: dict[str, Node], layers: set[str]) -> bool:
    """Whether the output differs in shape from the layer it comes from, or is an input."""
    value, shape = program.output, None
    while value in nodes and value not in layers:
        shape = shape or nodes[value].shape
        value = next(nodes[value].references())
    return value not in nodes or (shape is not None and shape != nodes[value].shape)


def _identity(program: Program) -> Weighing:
    return Weighing("output", (program.output,), (Scale(),), (None,), None)


def _names(program: Program) -> dict[str, str]:
    names = {name: name for name, _ in program.inputs}
    sums: dict[str, list[Node]] = defaultdict(list)  # by call of a module
    base: dict[str, str] = {}
    for node in program.nodes:
        kind = WEIGH.get(node.op)
        if kind is None:
            continue
        if kind == "sum":
            sums[node.call if node.module else ""].append(node)
        else:
            base[node.name] = _path(node, kind)
    for nodes in sums.values():
        for i, node in enumerate(nodes):
            stem = f"{node.module}.add" if node.module else "add"
            base[node.name] = f"{stem}_{i}" if i else stem
        if nodes[-1].module:
            base[nodes[-1].name] = nodes[-1].module
    seen: Counter[str] = Counter()
    taken = set(names)
    for node in program.nodes:
        if node.name in base:
            stem = base[node.name]
            name = stem if not seen[stem] else f"{stem}@{seen[stem]}"
            while name in taken:
                seen[stem] += 1
                name = f"{stem}@{seen[stem]}"
            seen[stem] += 1
            taken.add(name)
            names[node.name] = name
    return names


def _path(node: Node, kind: str) -> str:
    """Return the module path; for a functional call with a parameter, the parameter's owner."""
    if len(node.args) > 1 and isinstance(node.args[1], Weight):
        owner, _, attribute = node.args[1].name.rpartition(".")
        if attribute not in ("weight", "scale") and not owner.startswith("constant"):
            stem = attribute.removesuffix("_weight")
            return f"{owner}.{stem}" if owner else stem
        if (
            attribute == "weight"
            and owner.startswith(node.module + ".")
            and (not owner.endswith(".folded"))
        ):
            return owner
    return node.module or kind


def _alias_names(
    program: Program,
    home: dict[str, tuple[str, ...]],
    names: dict[str, str],
    layer_of: dict[str, int],
) -> dict[str, list[str]]:
    taken = {names[value] for value in layer_of}
    aliases: dict[str, list[str]] = defaultdict(list)
    for value, path in program.aliases:
        homes = home.get(value, ())
        if len(homes) == 1 and path not in taken and value not in layer_of:
            taken.add(path)
            aliases[homes[0]].append(path)
        elif value in layer_of and path not in taken:
            # A folded batch-norm bears its own module's name beside the convolution's.
            taken.add(path)
            aliases[value].append(path)
    final = home["output"][0] if "output" in home else home[program.output][0]
    if "output" not in taken:
        aliases[final].append("output")
    return aliases


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
