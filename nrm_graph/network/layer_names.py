"""What layers are called: module paths, never node names of the exporter."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from nrm_graph.network.ir.operations import ENDS, SAME, WEIGH
from nrm_graph.network.ir.program import Weight, passive

if TYPE_CHECKING:
    from collections.abc import Collection

    from nrm_graph.network.ir.program import Node, Program

_SUMS = {"aten.add.Tensor", "aten.sub.Tensor"}

IN_PLACE = {
    f"aten.{name}"
    for name in (
        "alias.default",
        "clone.default",
        "contiguous.default",
        "expand.default",
        "flatten.using_ints",
        "reshape.default",
        "view.default",
        "_unsafe_view.default",
    )
}
"""Operations that may leave every neuron where it is; they do if the shape stays."""


def layer_names(program: Program) -> dict[str, str]:
    """Name of every value that is a layer.

    An operation with a parameter bears the path of the module that owns it.  Others bear their
    module's path and what they are (``layer1.0.add``, ``layer1.0.add_1``).  A sum that is the last
    layer of a module bears the module's path, and so does the only operation of a module without
    children.
    Later calls are ``<name>@1``, ``<name>@2``.
    """
    rest = passive(program)
    names = {name: name for name, _ in program.inputs if name not in rest}
    stems: dict[str, str] = {}
    free: dict[str, list[Node]] = defaultdict(list)  # without parameter, by call of a module
    mixes = {next(n.references()) for n in program.nodes if n.op == "nrm.attention"}
    parents, owned = _parents(program), {node.module for node in program.nodes}
    for node in program.nodes:
        if node.name in rest or (node.op not in WEIGH and node.op not in ENDS):
            continue
        owner = _owner(node, parents, owned)
        if owner is None:
            free[node.call].append(node)
        else:
            stems[node.name] = owner
    for nodes in free.values():
        module = nodes[0].module
        seen: Counter[str] = Counter()
        for node in nodes:
            kind = {**WEIGH, **ENDS}[node.op]
            kind = "add" if node.op in _SUMS else kind
            if kind == "softmax" and _before(program, node.name, mixes):
                kind = "attention_weights"
            stem = f"{module}.{kind}" if module else kind
            stems[node.name] = f"{stem}_{seen[kind]}" if seen[kind] else stem
            seen[kind] += 1
        sums = [node for node in nodes if node.op in _SUMS]
        if module and sums and _last_layer(program, nodes[0].call, rest) == sums[-1].name:
            stems[sums[-1].name] = module
        elif module and len(nodes) == 1 and module not in parents:
            stems[nodes[0].name] = module
    count: Counter[str] = Counter()
    taken = set(names.values())
    for node in program.nodes:
        if node.name not in stems:
            continue
        stem = name = stems[node.name]
        while name in taken:
            count[stem] += 1
            name = f"{stem}@{count[stem]}"
        taken.add(name)
        names[node.name] = name
    return names


def _last_layer(program: Program, call: str, rest: Collection[str]) -> str:
    """Return the last value that is a layer in a call of a module and of all it calls."""
    inside = (n for n in program.nodes if f"{n.call}/".startswith(f"{call}/") and n.op in WEIGH)
    return [node.name for node in inside if node.name not in rest][-1]


def _parents(program: Program) -> set[str]:
    """Return the modules that hold others, or parameters under a name of their own."""
    paths = {node.module for node in program.nodes} | {
        name.rpartition(".")[0] for name in program.weights
    }
    return {path[:i] for path in paths for i, c in enumerate(path) if c == "."}


def _before(program: Program, value: str, mixes: Collection[str]) -> bool:
    """Whether a value reaches one of ``mixes`` through operations that keep or move it."""
    reached = {value}
    for node in program.nodes:
        if node.op not in WEIGH and any(name in reached for name in node.references()):
            reached.add(node.name)
    return not reached.isdisjoint(mixes)


def _owner(node: Node, parents: Collection[str], owned: Collection[str]) -> str | None:
    """Path that an operation's own parameter gives it, or None.

    Where another module has the parameter as well and is not called itself, or calls it for
    something else (tied weights), the operation keeps the path of the module that calls it.
    """
    path = _path(node)
    if path is None or path == node.module or not node.module or node.module in parents:
        return path
    tied = node.op in ENDS or path.rpartition(".")[0] in owned or path in owned
    return node.module if tied and not path.startswith(f"{node.module}.") else path


def _path(node: Node) -> str | None:
    kind = {**WEIGH, **ENDS}[node.op]
    if kind in ("layer_norm", "group_norm", "rms_norm") or node.op == "aten.addmm.default":
        place = 2
    elif kind in ("convolution", "dense"):
        place = 1
    elif kind == "embedding":
        place = 0
    elif kind in ("batch_norm", "instance_norm"):
        return node.module or kind
    else:
        return None
    weight = node.args[place] if len(node.args) > place else None
    if not isinstance(weight, Weight) or weight.name.startswith("constant."):
        return None
    # A folded weight is called <parameter>@<node>.
    name = weight.name.removesuffix(f"@{node.name}")
    owner, _, attribute = name.rpartition(".")
    if attribute == "weight":
        return owner or kind
    stem = attribute.removesuffix("_weight")
    return f"{owner}.{stem}" if owner else stem


def alias_names(
    program: Program, names: dict[str, str], layer_of: Collection[str], final: str
) -> dict[str, list[str]]:
    """Return the further names of layers, by their value.

    A module is an alias of the layer whose neurons it returns one to one: activations, dropout,
    folded batch-norm.  A pool or a reshape is none, for its index means something else.
    """
    batches, shapes, rest = program.batches(), program.shapes(), passive(program)
    same: dict[str, str] = {name: name for name in layer_of}
    for node in program.nodes:
        references = [name for name in dict.fromkeys(node.references()) if name not in rest]
        if node.name in same or node.op not in SAME | IN_PLACE or len(references) != 1:
            continue
        before = references[0]
        unmoved = (shapes[before], batches[before]) == (node.shape, node.batch)
        if shapes[before] == node.shape and node.op == "aten.reshape.default":
            # (n * tokens, features) for (n, tokens, features): the same order in every sample.
            unmoved = all(b.axis == 0 and b.outer == 1 for b in (batches[before], node.batch))
        if unmoved and before in same:
            same[node.name] = same[before]
    taken = {names[value] for value in layer_of}
    aliases: dict[str, list[str]] = defaultdict(list)
    for value, path in (*program.aliases, (final, "output")):
        if value in same and path not in taken:
            taken.add(path)
            aliases[same[value]].append(path)
    return aliases
