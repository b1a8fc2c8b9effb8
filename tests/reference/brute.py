"""Tiny networks, their dense kernels and all their walks, by enumeration.

Nothing of the package is used here.  A network is a list of :class:`Node`; ``Net`` runs it,
``Walks`` lists every walk from the target with the product of its conditional relevances.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from reference import dense_rules

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYERS = {"input", "dense", "conv2d", "conv_bn", "avgpool", "add"}
BIAS, STABILIZER = -1, -2

KINDS = {
    "dense": "dense",
    "conv2d": "convolution",
    "conv_bn": "convolution",
    "avgpool": "average",
    "add": "sum",
}
_PLAIN = {"convolution": "Epsilon", "dense": "Epsilon", "average": "Norm", "sum": "Norm"}
_FLAT = {"convolution": "Flat", "dense": "Flat"}
# Rules by kind, and those of layers that read the input.
COMPOSITES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "epsilon": (_PLAIN, {}),
    "epsilon_gamma": (_PLAIN | {"convolution": "Gamma"}, {}),
    "epsilon_gamma_box": (_PLAIN | {"convolution": "Gamma"}, {"convolution": "ZBox"}),
    "epsilon_plus": (_PLAIN | {"convolution": "ZPlus"}, {}),
    "epsilon_plus_flat": (_PLAIN | {"convolution": "ZPlus"}, _FLAT),
    "epsilon_alpha2_beta1": (_PLAIN | {"convolution": "AlphaBeta"}, {}),
    "epsilon_alpha2_beta1_flat": (_PLAIN | {"convolution": "AlphaBeta"}, _FLAT),
    "wsquare": (_PLAIN | {"convolution": "WSquare", "dense": "WSquare"}, {}),
    "excitation_backprop": (dict.fromkeys(_PLAIN, "ZPlus"), {}),
}
PARAMETERS: dict[str, dict[str, Any]] = {"ZBox": {"low": 0.0, "high": 1.0}}


@dataclass(frozen=True)
class Node:
    """One operation; ``args`` are names of earlier nodes.

    ``name`` of a node of kind dense, conv2d and avgpool is its module path; sums must be named
    ``add``, ``add_1``, ... in the order of the list.  A ``constant`` is a parameter of a shape;
    the first output of a ``cut`` layer has no weights.
    """

    name: str
    op: str
    args: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict, hash=False)


class Net(nn.Module):
    """The network of a list of nodes; the last node is the output."""

    def __init__(self, nodes: Sequence[Node], shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.nodes, self.shape = list(nodes), shape
        shapes: dict[str, tuple[int, ...]] = {}
        value: dict[str, torch.Tensor] = {}
        for node in nodes:
            args = [value[a] for a in node.args]
            if node.op == "constant":
                drawn = torch.randn(
                    (1, *node.params["shape"]), generator=generator, dtype=torch.float64
                )
                self.register_parameter(node.name, nn.Parameter(drawn, requires_grad=False))
            module = self._build(node, args)
            if module is not None:
                module = module.double()
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter.copy_(
                            torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                            * node.params.get("std", 0.6)
                        )
                    if node.params.get("cut"):
                        module.weight[0] = 0
                    if node.op == "conv_bn":
                        bn = module[1]
                        bn.running_mean.normal_(generator=generator)
                        bn.running_var.uniform_(0.5, 2.0, generator=generator)
                if node.op == "conv_bn":
                    self.add_module(node.name, module[0])
                    self.add_module(node.name + "_bn", module[1])
                else:
                    self.add_module(node.name, module)
            self.eval()
            if node.op == "input":
                value[node.name] = torch.zeros((1, *shape), dtype=torch.float64)
            else:
                with torch.no_grad():
                    value[node.name] = self.run(node, args)
            shapes[node.name] = tuple(value[node.name].shape[1:])
        self.shapes = shapes

    @staticmethod
    def _build(node: Node, args: list[torch.Tensor]) -> nn.Module | None:
        p = {k: v for k, v in node.params.items() if k not in ("std", "functional", "cut")}
        if node.params.get("functional"):
            return None
        if node.op == "dense":
            return nn.Linear(args[0].shape[-1], p.pop("out"), **p)
        if node.op == "conv2d":
            return nn.Conv2d(args[0].shape[1], p.pop("out"), p.pop("kernel", 3), **p)
        if node.op == "conv_bn":
            out = p.pop("out")
            conv = nn.Conv2d(args[0].shape[1], out, p.pop("kernel", 3), **p)
            return nn.Sequential(conv, nn.BatchNorm2d(out))
        if node.op == "relu":
            return nn.ReLU()
        if node.op == "maxpool":
            return nn.MaxPool2d(**p)
        if node.op == "avgpool":
            return nn.AvgPool2d(**p)
        if node.op == "flatten":
            return nn.Flatten()
        return None

    def run(self, node: Node, args: list[torch.Tensor]) -> torch.Tensor:
        if node.op == "add":
            return args[0] + args[1]
        if node.op == "constant":
            return getattr(self, node.name)
        if node.op == "concat":
            count = max(args, key=lambda a: not isinstance(a, nn.Parameter)).shape[0]
            alike = [
                a.expand(count, *a.shape[1:]) if isinstance(a, nn.Parameter) else a for a in args
            ]
            return torch.cat(alike, 1)
        if node.op == "relu" and node.params.get("functional"):
            return F.relu(args[0])
        if node.op == "flatten" and node.params.get("functional"):
            return torch.flatten(args[0], 1)
        y = getattr(self, node.name)(args[0])
        return getattr(self, node.name + "_bn")(y) if node.op == "conv_bn" else y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = {"x": x}
        for node in self.nodes:
            if node.op != "input":
                value[node.name] = self.run(node, [value[a] for a in node.args])
        return value[self.nodes[-1].name]


def _pool_selection(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    """0/1 matrix of max-pooling: the first maximum in scan order."""
    k, s, pad = p["kernel_size"], p.get("stride") or p["kernel_size"], p.get("padding", 0)
    channels, height, width = x.shape
    rows = []
    for c in range(channels):
        for top in range(-pad, height + pad - k + 1, s):
            for left in range(-pad, width + pad - k + 1, s):
                best = None
                for i in range(max(top, 0), min(top + k, height)):
                    for j in range(max(left, 0), min(left + k, width)):
                        if best is None or x[c, i, j] > x[c, best[0], best[1]]:
                            best = (i, j)
                row = np.zeros(x.shape)
                row[c, best[0], best[1]] = 1
                rows.append(row.reshape(-1))
    return np.stack(rows)


def _stacked(parts: list[tuple[dict[str, np.ndarray], int]]) -> dict[str, np.ndarray]:
    """0/1 matrices of several values under one another, by layer."""
    rows = sum(size for _, size in parts)
    stacked: dict[str, np.ndarray] = {}
    start = 0
    for matrices, size in parts:
        for layer, s in matrices.items():
            whole = stacked.setdefault(layer, np.zeros((rows, s.shape[1])))
            whole[start : start + size] = s
        start += size
    return stacked


def _matrix(net: Net, node: Node, value: dict[str, torch.Tensor]) -> dense_rules.Linear:
    """Matrix of a layer, its operands side by side."""
    if node.op == "add":
        n = value[node.name].numel()
        eye = np.hstack([np.eye(n)] * len(node.args))
        return dense_rules.Linear(eye, np.zeros(n), eye != 0)
    op = dense_rules.linear(getattr(net, node.name), tuple(value[node.args[0]].shape[1:]))
    if node.op != "conv_bn":
        return op
    out = tuple(value[node.name].shape[1:])
    bn = dense_rules.linear(getattr(net, node.name + "_bn"), out)
    scale = np.diag(bn.weight)
    return dense_rules.Linear(scale[:, None] * op.weight, scale * op.bias + bn.bias, op.structure)


@dataclass
class Step:
    """All that a layer's neurons can step to: ``q[src][j, i]`` and the pseudo-neurons."""

    q: dict[str, np.ndarray]
    bias: np.ndarray
    stabilizer: np.ndarray
    constant: np.ndarray | None = None  # neurons that read no input, by any way


def kernels(net: Net, x: torch.Tensor, composite: str, bias: str = "absorbed") -> dict[str, Step]:
    """Kernel between layers at one input (without batch axis or with one of size 1).

    Where biases are ``ignored``, the matrices have neither a bias nor the columns of what no walk
    can bring to an input: parameters, and neurons that are connected to nothing else.
    """
    value = {"x": x.reshape(1, *net.shape)}
    select: dict[str, dict[str, np.ndarray]] = {}  # node -> layer -> 0/1 matrix
    steps: dict[str, Step] = {}
    for node in net.nodes:
        if node.op != "input":
            with torch.no_grad():
                value[node.name] = net.run(node, [value[a] for a in node.args])
        n = value[node.name].numel()
        if node.op == "input":
            select[node.name] = {node.name: np.eye(n)}
        elif node.op == "constant":
            select[node.name] = {}
        elif node.op in ("relu", "flatten"):
            select[node.name] = select[node.args[0]]
        elif node.op == "maxpool":
            pick = _pool_selection(value[node.args[0]][0].numpy(), node.params)
            select[node.name] = {layer: pick @ s for layer, s in select[node.args[0]].items()}
        elif node.op == "concat":
            select[node.name] = _stacked([(select[a], value[a].numel()) for a in node.args])
        else:
            flat = np.concatenate([value[a].reshape(-1).numpy() for a in node.args])
            read = _stacked([(select[a], value[a].numel()) for a in node.args])
            neurons = sum((s.sum(1) for s in read.values()), np.zeros(len(flat))) > 0
            op, (kinds, first) = _matrix(net, node, value), COMPOSITES[composite]
            rule = (first if "x" in read else {}).get(KINDS[node.op]) or kinds[KINDS[node.op]]
            constant = ~((op.weight != 0) & neurons).any(1)
            if bias == "ignored":
                op = dense_rules.Linear(
                    op.weight * neurons, np.zeros_like(op.bias), op.structure & neurons
                )
            k = dense_rules.kernel(op, flat, rule, **PARAMETERS.get(rule, {}))
            q = {layer: k.q @ s for layer, s in read.items()}
            held = k.bias + k.q[:, ~neurons].sum(1)
            steps[node.name] = Step(q, held, k.stabilizer, constant)
            # Where they are left out, constant neurons are nobody's: no walk steps to them.
            own = np.diag((~constant).astype(float)) if bias == "ignored" else np.eye(n)
            select[node.name] = {node.name: own}
    return steps


class Walks:
    """Every walk from one output neuron, with its relevance.

    Attributes
    ----------
    value : ndarray, one entry per walk
    at : dict of layer name to int ndarray
        The neuron (flat index) that each walk passes through, -1 where it bypasses the layer.
    after : dict of layer name to ndarray of layer names
        The layer stepped to next ("" where the walk does not go on to a neuron).
    end_layer, end_unit : ndarray
        Layer of the end and its flat index, or -1 / -2 for bias and stabilizer.
    """

    def __init__(
        self,
        net: Net,
        x: torch.Tensor,
        target: int,
        composite: str,
        limit: int = 60_000,
        bias: str = "absorbed",
    ) -> None:
        self.net, self.target = net, target
        self.steps = kernels(net, x, composite, bias)
        self.layers = [node.name for node in net.nodes if node.op in LAYERS]
        self.shapes = {name: net.shapes[name] for name in self.layers}
        found: list[tuple[float, list[tuple[str, int]]]] = []
        out = net.nodes[-1].name
        stack: list[tuple[float, list[tuple[str, int]]]] = [(1.0, [(out, target)])]
        while stack:
            r, walk = stack.pop()
            layer, j = walk[-1]
            if layer == "x" or j < 0:
                found.append((r, walk))
                if len(found) > limit:
                    raise OverflowError(f"more than {limit} walks")
                continue
            step = self.steps[layer]
            for src, q in step.q.items():
                units = np.flatnonzero(q[j])
                stack.extend((r * q[j, i], [*walk, (src, int(i))]) for i in units)
            for unit, share in ((BIAS, step.bias[j]), (STABILIZER, step.stabilizer[j])):
                if share != 0:
                    found.append((r * share, [*walk, (layer, unit)]))
        n = len(found)
        self.value = np.array([r for r, _ in found])
        self.at = {name: np.full(n, -1) for name in self.layers}
        self.after = {name: np.full(n, "", dtype="U16") for name in self.layers}
        self.end_layer = np.array([walk[-1][0] for _, walk in found], dtype="U16")
        self.end_unit = np.array([walk[-1][1] for _, walk in found])
        for number, (_, walk) in enumerate(found):
            for position, (layer, j) in enumerate(walk):
                if j < 0:
                    continue
                self.at[layer][number] = j
                if position + 1 < len(walk) and walk[position + 1][1] >= 0:
                    self.after[layer][number] = walk[position + 1][0]

    def __len__(self) -> int:
        return len(self.value)

    def total(self, event: np.ndarray | None = None) -> float:
        """R(event), the event given as a boolean array over the walks."""
        return float(self.value.sum() if event is None else self.value[event].sum())

    def passes(self, layer: str, mask: np.ndarray) -> np.ndarray:
        """Walks through the neurons of a boolean mask of the layer's shape."""
        at = self.at[layer]
        return (at >= 0) & mask.reshape(-1)[at]

    def visits(self, layer: str) -> np.ndarray:
        return self.at[layer] >= 0

    def edge(self, dst: str, dmask: np.ndarray, src: str, smask: np.ndarray) -> np.ndarray:
        """Walks that step directly from one set to the other."""
        return (self.after[dst] == src) & self.passes(dst, dmask) & self.passes(src, smask)

    def ends(self, layer: str, unit: int) -> np.ndarray:
        """Walks that end in a pseudo-neuron of a layer."""
        return (self.end_layer == layer) & (self.end_unit == unit)

    def marginal(self, layer: str, event: np.ndarray | None = None) -> np.ndarray:
        """R(n & event) of every neuron, flat."""
        keep = self.visits(layer) if event is None else self.visits(layer) & event
        size = int(np.prod(self.shapes[layer]))
        return np.bincount(self.at[layer][keep], weights=self.value[keep], minlength=size)

    def joint(self, a: str, b: str, event: np.ndarray | None = None) -> np.ndarray:
        """R({i} & {j} & event), rows the neurons of a, columns those of b."""
        keep = self.visits(a) & self.visits(b)
        keep = keep if event is None else keep & event
        size = [int(np.prod(self.shapes[name])) for name in (a, b)]
        table = np.zeros(size)
        np.add.at(table, (self.at[a][keep], self.at[b][keep]), self.value[keep])
        return table

    def flow(self, dst: str, src: str, event: np.ndarray | None = None) -> np.ndarray:
        """R(j -> i & event) of direct steps, rows dst, columns src."""
        direct = self.after[dst] == src
        return self.joint(dst, src, direct if event is None else direct & event)

    def variation(self) -> float:
        """The largest total variation of a layer."""
        return max(float(np.abs(self.marginal(layer)).sum()) for layer in self.layers)
