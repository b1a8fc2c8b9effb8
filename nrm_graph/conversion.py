"""From an exported graph to the nodes of a program.

What no input value reaches is evaluated and becomes a constant; attention is taken apart into
its product, softmax and mix, so that each is a layer.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrm_graph.batching import PLAIN, BatchAxis
from nrm_graph.errors import TraceError
from nrm_graph.operations import ROUTE, SAME, SUPPORTED
from nrm_graph.program import Batch, Node, Program, Ref, Weight

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHAPE_ONLY = {
    "aten.new_zeros.default",
    "aten.new_ones.default",
    "aten.new_full.default",
    "aten.zeros_like.default",
    "aten.ones_like.default",
    "aten.full_like.default",
}

_SAME_AS = {
    "<built-in function getitem>": "aten.getitem",
    "aten._native_batch_norm_legit_no_training.default": "aten.batch_norm.default",
    "aten._softmax.default": "aten.softmax.int",
    # Memory formats are not kept, so a view may need a copy.
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}

_PRODUCTS = {"aten.matmul.default", "aten.bmm.default", "aten.mm.default"}

_ATTENTION = "aten.scaled_dot_product_attention.default"

_HINTS = {
    "aten.embedding.default": "relevance cannot pass an embedding: explain the network from the "
    "embedded vectors on",
    "aten.log_softmax.int": "explain the scores before it: leave the log-softmax out",
    "aten.div.Tensor": "a quotient of two values that both depend on the input has no rule",
}


def _affine(value: Any) -> int | Batch:
    """Turn a symbolic integer into ``scale * n + offset``."""
    if isinstance(value, int):
        return value
    expression = value.node.expr
    symbols = expression.free_symbols
    if not symbols:
        return int(expression)
    if len(symbols) > 1:
        raise TraceError(f"a size depends on several free sizes: {expression}")
    (symbol,) = symbols
    at = [int(expression.subs(symbol, n)) for n in (2, 3, 5)]
    scale = at[1] - at[0]
    if at[2] - at[1] != 2 * scale:
        raise TraceError(f"a size grows as {expression} with the batch: expected linear growth")
    return Batch(scale, at[0] - 2 * scale)


def place(shape: Sequence[int | Batch]) -> tuple[tuple[int, ...], BatchAxis] | None:
    """Shape of a sample and the batch axis, samples first; None if there is no single axis."""
    found = [d for d, size in enumerate(shape) if isinstance(size, Batch)]
    if len(found) != 1:
        return None
    size = shape[found[0]]
    assert isinstance(size, Batch)
    if size.offset or size.scale < 1:
        return None
    batch = BatchAxis(found[0], 1, size.scale)
    native = tuple(s.scale if isinstance(s, Batch) else s for s in shape)
    return batch.shape(native), batch


class Converter:
    """Collects the nodes of a program from an exported graph.

    Attributes
    ----------
    nodes : list of Node
        Converted so far.
    refused : Counter of (operation and reason, module path)
        What cannot be converted.
    """

    def __init__(self, exported: Any, input_names: Sequence[str]) -> None:
        signature = exported.graph_signature
        self.graph = exported.graph
        self.stored = {**exported.constants, **exported.state_dict}
        self.named = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.input_names = list(input_names)
        self.constants: dict[str, Any] = {}  # fx name -> value of what no input value reaches
        self.weight_names: dict[str, str] = {}  # fx name -> name in the program
        self.renamed: dict[str, str] = {}  # fx name of an input -> forward's argument
        self.inputs: list[tuple[str, tuple[int, ...]]] = []
        self.nodes: list[Node] = []
        self.refused: Counter[tuple[str, str]] = Counter()
        self.calls: dict[str, list[str]] = {}  # module path -> its calls in order
        self.mixes: set[str] = set()  # values that are softmax weights
        self.output = ""

    def program(self) -> Program:
        """Convert the whole graph.

        Raises
        ------
        TraceError
            If it returns several tensors, or holds operations that are not known.
        """
        for fx in self.graph.nodes:
            if fx.op == "placeholder":
                self._placeholder(fx)
            elif fx.op == "output":
                self._output(fx)
            elif fx.users and not isinstance(fx.meta.get("val"), int | torch.SymInt):
                self._operation(fx)
        if self.refused:
            listed = "; ".join(f"{op} in {path or 'the model itself'}" for op, path in self.refused)
            raise TraceError(
                f"operations without a rule: {listed}. Replace them by supported ones, or explain "
                "a part of the network that does without"
            )
        used = {self.weight_names[name]: value for name, value in self.constants.items()}
        return Program(tuple(self.inputs), tuple(self.nodes), self.output, used)

    def _placeholder(self, fx: Any) -> None:
        if fx.name in self.named:
            name = self.named[fx.name]
            self.constants[fx.name], self.weight_names[fx.name] = self.stored[name].detach(), name
            return
        k = len(self.inputs)
        taken = {node.name for node in self.graph.nodes if node.name != fx.name}
        name = self.input_names[k] if k < len(self.input_names) else fx.name
        self.renamed[fx.name] = fx.name if name in taken else name
        self.inputs.append((self.renamed[fx.name], tuple(fx.meta["val"].shape[1:])))

    def _output(self, fx: Any) -> None:
        results = [r for r in fx.args[0] if isinstance(r, torch.fx.Node)]
        if len(results) != 1:
            raise TraceError(
                f"the network returns {len(results)} tensors, expected 1: wrap it in a module "
                "that returns the one to explain"
            )
        if results[0].name in self.constants:
            raise TraceError("the network's output does not depend on its input")
        self.output = self.renamed.get(results[0].name, results[0].name)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value.name in self.constants:
                return Weight(self.weight_names[value.name])
            meta = value.meta.get("val")
            if isinstance(meta, int | torch.SymInt):
                return _affine(meta)
            return Ref(self.renamed.get(value.name, value.name))
        if isinstance(value, list | tuple):
            return tuple(self._argument(item) for item in value)
        if isinstance(value, torch.SymInt):
            return _affine(value)
        if isinstance(value, torch.memory_format | torch.layout | torch.device):
            return None
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TraceError(f"an argument of type {type(value).__name__} cannot be stored: {value!r}")

    def _where(self, fx: Any) -> tuple[str, str]:
        """Return the module path and the call of a node; calls are numbered as they come."""
        stack = (fx.meta.get("nn_module_stack") or {"": ("", "")}).items()
        levels, raw = [], ""
        for key, (path, _) in stack:
            raw = f"{raw}/{key}"
            calls = self.calls.setdefault(path, [])
            if raw not in calls:
                calls.append(raw)
            number = calls.index(raw)
            levels.append(f"{path}@{number}" if number else path)
        return str(path), "/".join(levels[1:])

    def _operation(self, fx: Any) -> None:
        op = _SAME_AS.get(str(fx.target), str(fx.target))
        module, call = self._where(fx)
        sources = [n for n in fx.all_input_nodes if isinstance(n.meta.get("val"), Tensor | list)]
        if torch.Tag.nondeterministic_seeded in getattr(fx.target, "tags", ()) and (
            op not in SUPPORTED and op != _ATTENTION
        ):
            self.refused[f"{op} (random numbers)", module] += 1
            return
        if op in _SHAPE_ONLY or all(n.name in self.constants for n in sources):
            value = self._evaluate(fx)
            if value is not None:
                self.constants[fx.name] = value
                self.weight_names[fx.name] = f"constant.{fx.name}"
                return
        moving = [a for a in _flat(fx.args) if a.name not in self.constants and a in sources]
        op, problem = self._canonical(op, fx, moving)
        if problem:
            self.refused[problem, module] += 1
            return
        meta = fx.meta.get("val")
        placed = self._place(meta)
        if placed is None:
            self.refused[f"{op} (a value without a batch axis of its own)", module] += 1
            return
        args = tuple(self._argument(a) for a in fx.args)
        kwargs = {k: self._argument(v) for k, v in fx.kwargs.items()}
        if op == _ATTENTION:
            self._attention(fx, args, kwargs, module, call)
            return
        if op == "aten.pad.default" and args[1:] and not any(args[1]):
            op, args, kwargs = "aten.alias.default", args[:1], {}
        elif op.startswith("nrm.gate"):
            kwargs = {}
        elif op == "aten.softmax.int":
            args, kwargs = args[:2], {}
            self.mixes.add(fx.name)
        elif (op in SAME or op in ROUTE) and len(moving) == 1 and moving[0].name in self.mixes:
            self.mixes.add(fx.name)
        self._add(fx.name, op, args, kwargs, module, call, *placed)

    def _canonical(self, op: str, fx: Any, moving: list[Any]) -> tuple[str, str]:
        """Our name of an operation, and why it is refused, if it is."""
        if op in _PRODUCTS and len(moving) == 2:
            return ("nrm.attention" if moving[0].name in self.mixes else "nrm.product"), ""
        if op == "aten.bmm.default":
            return "aten.matmul.default", ""
        if op == "aten.mul.Tensor" and len(moving) == 2:
            return "nrm.gate", ""
        if op == _ATTENTION:
            return op, ""
        if op not in SUPPORTED:
            return op, f"{op} ({_HINTS[op]})" if op in _HINTS else op
        if op in SAME and len(moving) != 1:
            return op, f"{op} of two values that both depend on the input"
        if op == "aten.masked_fill.Scalar" and (
            len(moving) != 1 or fx.args[1].name not in self.constants
        ):
            return op, f"{op} with a mask that is not constant"
        if op == "aten.instance_norm.default" and not fx.args[5]:
            return op, f"{op} with running statistics"
        return op, ""

    def _place(self, meta: Any) -> tuple[tuple[int, ...], BatchAxis] | None:
        if isinstance(meta, Tensor):
            return place([_affine(d) for d in meta.shape])
        return (), PLAIN  # a list of parts

    def _add(
        self,
        name: str,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        module: str,
        call: str,
        shape: tuple[int, ...],
        batch: BatchAxis,
    ) -> Ref:
        kept = tuple(sorted((k, v) for k, v in kwargs.items() if v is not None))
        self.nodes.append(Node(name, op, args, kept, module, call, shape, batch))
        return Ref(name)

    def _attention(
        self, fx: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str, call: str
    ) -> None:
        """``softmax(q k^T scale + mask) v`` in five steps (torch's own definition)."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k, v = (
            [_affine(d) for d in a.meta["val"].shape] if isinstance(a, torch.fx.Node) else []
            for a in fx.args[:3]
        )
        refs = [given[name] for name in names[:3]]
        if not all(isinstance(r, Ref) for r in refs) or kwargs.get("enable_gqa"):
            self.refused["attention with constant or grouped queries, keys or values", module] += 1
            return
        scores = (*q[:-1], k[-2])
        steps = [place([*k[:-2], k[-1], k[-2]]), place(scores), place([*q[:-1], v[-1]])]
        if any(p is None for p in steps):
            self.refused["attention over the batch", module] += 1
            return
        turned, square, mixed = (p for p in steps if p is not None)
        dtype = fx.meta["val"].dtype
        length, size = int(str(q[-1])), k[-2]

        def step(suffix: str, op: str, *step_args: Any, at: Any = square) -> Ref:
            return self._add(f"{fx.name}.{suffix}", op, step_args, {}, module, call, *at)

        key = step("key", "aten.transpose.int", refs[1], -2, -1, at=turned)
        value = step("product", "nrm.product", refs[0], key)
        scale = given.get("scale")
        scale = 1 / math.sqrt(length) if scale is None else scale
        value = step("scaled", "aten.mul.Tensor", value, float(scale))
        mask = given.get("attn_mask")
        if isinstance(mask, Ref):
            self.refused["attention with a mask that is not constant", module] += 1
            return
        if given.get("is_causal"):
            found = torch.ones(int(str(q[-2])), int(str(size)), dtype=torch.bool).tril()
            mask = self._constant(f"{fx.name}.causal", found)
        if mask is not None:
            found = self.constants[next(n for n, w in self.weight_names.items() if w == mask.name)]
            if found.dtype == torch.bool:
                hidden = self._constant(f"{fx.name}.hidden", ~found)
                value = step("masked", "aten.masked_fill.Scalar", value, hidden, -math.inf)
            else:
                shift = self._constant(f"{fx.name}.shift", found.to(dtype))
                value = step("masked", "aten.add.Tensor", value, shift)
        value = step("weights", "aten.softmax.int", value, -1)
        self._add(fx.name, "nrm.attention", (value, refs[2]), {}, module, call, *mixed)

    def _constant(self, name: str, value: Tensor) -> Weight:
        self.constants[name], self.weight_names[name] = value, f"constant.{name}"
        return Weight(f"constant.{name}")

    def _evaluate(self, fx: torch.fx.Node) -> Any:
        """Value of a node that no input value reaches, unless its shape has the batch in it."""
        meta = fx.meta.get("val")
        parts = meta if isinstance(meta, list | tuple) else [meta]
        if not all(isinstance(p, Tensor) and _static(p) for p in parts):
            return None

        def value(arg: Any) -> Any:
            if not isinstance(arg, torch.fx.Node):
                return arg
            if arg.name in self.constants:
                return self.constants[arg.name]
            found = arg.meta["val"]
            if isinstance(found, Tensor):
                shape = [d if isinstance(d, int) else 2 for d in found.shape]
                return torch.empty(shape, dtype=found.dtype)
            raise TraceError(f"{fx.target} needs the batch size to make a constant")

        args, kwargs = torch.fx.node.map_arg((fx.args, fx.kwargs), value)
        with torch.no_grad():
            return fx.target(*args, **kwargs)  # type: ignore[operator]


def _static(value: Tensor) -> bool:
    return all(isinstance(d, int) for d in value.shape)


def _flat(value: Any) -> list[Any]:
    """Nodes among nested arguments, with repetition."""
    if isinstance(value, torch.fx.Node):
        return [value]
    if isinstance(value, list | tuple):
        return [node for item in value for node in _flat(item)]
    return []
