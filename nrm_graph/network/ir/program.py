"""The traced network as plain data: ATen operations, literal arguments, named tensors.

A program holds nothing that runs: operation names are looked up in an allow-list
(:mod:`nrm_graph.network.ir.operations`) when it is executed, so a stored program can be read from a
stranger without running the stranger's code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from nrm_graph.errors import StoreError
from nrm_graph.foreign_errors import typed
from nrm_graph.network.ir.batch_axis import PLAIN, BatchAxis
from nrm_graph.network.ir.held_weights import HALF, HeldWeights, held, large, narrow, rows
from nrm_graph.network.ir.operations import ENDS, PASSIVE, SAME, WEIGH

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Ref:
    """The value of an earlier node or input."""

    name: str


@dataclass(frozen=True)
class Weight:
    """A named tensor of the program."""

    name: str


@dataclass(frozen=True)
class Batch:
    """An integer that depends on the batch size n: ``scale * n + offset``."""

    scale: int
    offset: int


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes
    ----------
    name : str
        Name of its value.
    op : str
        ATen name, such as ``aten.conv2d.default``.
    args : tuple
        Nested tuples of ``Ref``, ``Weight``, ``Batch`` and literals.
    kwargs : tuple of (str, value)
        Keyword arguments, sorted.
    module : str
        Path of the module that called it.
    call : str
        The modules being called, outermost first: ``layer1/layer1.0/layer1.0.relu@1`` is the
        second call of that activation.
    shape : tuple of int
        Shape of one sample's value.
    batch : BatchAxis
        Where the value keeps its batch.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    module: str
    call: str
    shape: tuple[int, ...]
    batch: BatchAxis = PLAIN

    def leaves(self) -> Iterator[object]:
        """Everything in the arguments, nested or not, in order."""
        return flattened((self.args, self.kwargs))

    def references(self) -> Iterator[str]:
        """Names of the values read, in order."""
        return (leaf.name for leaf in self.leaves() if isinstance(leaf, Ref))

    def weight_names(self) -> Iterator[str]:
        """Names of the tensors among the arguments, in order."""
        return (leaf.name for leaf in self.leaves() if isinstance(leaf, Weight))


def flattened(argument: object) -> Iterator[object]:
    """Items of an argument, however deeply its tuples are nested, in order."""
    if isinstance(argument, tuple):
        for item in argument:
            yield from flattened(item)
    else:
        yield argument


@dataclass(frozen=True, repr=False)
class Program:
    """A traced network.

    Attributes
    ----------
    inputs : tuple of (str, shape)
        Names of forward's tensor arguments and their shapes without the batch axis.
    nodes : tuple of Node
        In execution order.
    output : str
        The value that holds the targets.
    weights : mapping of str to Tensor
        Parameters, buffers and folded constants; what is held in half precision becomes float32
        whenever it is read, see :mod:`nrm_graph.network.ir.held_weights`.
    aliases : tuple of (value, name)
        Modules whose output is that value: names for a layer that holds the same neurons.
    integers : tuple of str
        Inputs that hold integers (token ids, masks); they are no layers.
    outputs : tuple of (str, shape)
        What the output holds, where it was chosen by name: the flattened tensors side by side,
        if there are several.
    """

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    nodes: tuple[Node, ...]
    output: str
    weights: Mapping[str, Tensor]
    aliases: tuple[tuple[str, str], ...] = ()
    integers: tuple[str, ...] = ()
    outputs: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Read what is held in half precision in float32."""
        if not isinstance(self.weights, HeldWeights) and narrow(self.weights):
            object.__setattr__(self, "weights", HeldWeights(self.weights))

    def __repr__(self) -> str:
        """Say what it takes and gives; nodes and tensors would fill pages."""
        takes = ", ".join(f"{name} {shape}" for name, shape in self.inputs)
        gives = ", ".join(f"{name} {shape}" for name, shape in self.outputs)
        gives = gives or str(self.shapes()[self.output])
        return f"<Program of {len(self.nodes)} operations: {takes} to {gives}>"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample of every value."""
        return dict(self.inputs) | {node.name: node.shape for node in self.nodes}

    def native_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every value as the operations see it, for a batch of one."""
        return {name: (1, *shape) for name, shape in self.inputs} | {
            node.name: node.batch.native_shape(node.shape) for node in self.nodes
        }

    def batches(self) -> dict[str, BatchAxis]:
        """Where every value keeps its batch."""
        return {name: PLAIN for name, _ in self.inputs} | {n.name: n.batch for n in self.nodes}

    def to_json(self) -> str:
        """Canonical text of the graph; the tensors are kept apart."""
        graph: dict[str, Any] = {
            "inputs": [[name, list(shape)] for name, shape in self.inputs],
            "nodes": [
                {
                    "name": node.name,
                    "op": node.op,
                    "args": _encode(node.args),
                    "kwargs": {k: _encode(v) for k, v in node.kwargs},
                    "module": node.module,
                    "call": node.call,
                    "shape": list(node.shape),
                    **({} if node.batch.plain else {"batch": list(astuple(node.batch))}),
                }
                for node in self.nodes
            ],
            "output": self.output,
            "aliases": [list(pair) for pair in self.aliases],
        }
        if self.integers:
            graph["integers"] = list(self.integers)
        if self.outputs:
            graph["outputs"] = [[name, list(shape)] for name, shape in self.outputs]
        return json.dumps(graph, indent=1, sort_keys=True)

    def hash(self) -> str:
        """SHA-256 of the canonical graph and of the bytes of every tensor."""
        digest = hashlib.sha256(self.to_json().encode())
        for name, tensor in sorted(held(self.weights).items()):
            kind = tensor.dtype
            if isinstance(self.weights, HeldWeights) and kind in HALF:
                kind = self.weights.dtype
            digest.update(f"{name}:{kind}:{tuple(tensor.shape)};".encode())
            for part in [tensor[p] for p in rows(tensor)] if large(tensor) else [tensor]:
                read = part.detach().to("cpu", kind).contiguous()
                digest.update(read.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def passive(program: Program) -> frozenset[str]:
    """Values that carry no relevance, for they depend on integer inputs alone.

    Masks and positions are; what an embedding makes of token ids is not.  Integers that depend
    on the size of the batch alone count too.
    """
    silent, still = set(program.integers), set[str]()
    for node in program.nodes:
        if node.op not in ENDS:
            sort = passivity(node.op, node.references(), silent, still)
            if sort is not None:
                (silent if sort else still).add(node.name)
    return frozenset(silent)


def passivity(
    op: str, references: Iterable[str], passive: Collection[str], still: Collection[str]
) -> bool | None:
    """Tell a node that is passive (True), and one made from constants alone (False).

    Parameters
    ----------
    op : str
        The operation.
    references : iterable of str
        Values that it reads.
    passive, still : collection of str
        Earlier values of both sorts.
    """
    read = list(references)
    weighs = op in WEIGH and op not in PASSIVE
    if weighs or not all(name in passive or name in still for name in read):
        return None
    return any(name in passive for name in read) or (op in PASSIVE and op not in SAME)


def _encode(value: object) -> object:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Weight):
        return {"weight": value.name}
    if isinstance(value, Batch):
        return {"batch": [value.scale, value.offset]}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "ref":
            return Ref(str(inner))
        if kind == "weight":
            return Weight(str(inner))
        if kind == "batch" and all(isinstance(number, int) for number in inner):
            return Batch(*inner)
        if kind == "float" and inner in ("inf", "-inf"):
            return float(inner)
        raise ValueError(f"unknown argument {value!r}")
    return value


class _Graph(msgspec.Struct):
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    nodes: tuple[Node, ...]
    output: str
    aliases: tuple[tuple[str, str], ...]
    integers: tuple[str, ...] = ()
    outputs: tuple[tuple[str, tuple[int, ...]], ...] = ()


def _node(raw: dict[str, Any]) -> dict[str, Any]:
    """Fields of a node, its arguments decoded."""
    kwargs = tuple(sorted((name, _decode(value)) for name, value in raw["kwargs"].items()))
    batch = zip(("axis", "outer", "inner"), raw.get("batch", (0, 1, 1)), strict=True)
    return raw | {"args": _decode(raw["args"]), "kwargs": kwargs, "batch": dict(batch)}


def from_json(text: str, weights: Mapping[str, Tensor]) -> Program:
    """Read a program that :meth:`Program.to_json` wrote.

    Raises
    ------
    StoreError
        If the text is not such a program, or names a tensor or value that is not there.
    """
    try:
        raw = json.loads(text)
        graph = typed(raw | {"nodes": [_node(node) for node in raw["nodes"]]}, _Graph)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"program.json is not a program of this package: {error}") from None
    program = Program(weights=weights, **msgspec.structs.asdict(graph))
    _check(program)
    return program


def _check(program: Program) -> None:
    known = {name for name, _ in program.inputs}
    if not known.issuperset(program.integers):
        raise StoreError("program.json is damaged: its integers are no inputs")
    for node in program.nodes:
        missing = [name for name in node.references() if name not in known]
        if missing or node.name in known:
            raise StoreError(
                f"program.json is damaged: {node.name} reads {missing or 'itself twice'}"
            )
        for name in node.weight_names():
            if name not in program.weights:
                raise StoreError(f"weights.safetensors lacks the tensor {name!r}")
        known.add(node.name)
    if program.output not in known:
        raise StoreError(f"program.json is damaged: its output {program.output} is not there")
