"""Kernels of networks with attention, norms and gates as one dense matrix, from the formulas alone.

Nothing of the package is used here.  A :class:`Reference` runs a network in NumPy, layer by layer
in the order of execution.  Every value remembers for each of its entries which neuron it is
(``origin``, a global number; -1 for constants), so reshaping, masking or repeating heads is done
to values and origins alike, and the kernel between layers falls out:

* ``q[j, i]``: conditional relevance of all neurons of all layers, a strictly triangular matrix;
* ``bias``, ``stabilizer``, ``remainder``: what the pseudo-neurons of j take, each by its own
  formula; ``check`` compares the sum of all with 1.

Where biases are ``ignored``, neurons that are connected to no input are constants (origin -1), and
constants and biases are no contributions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference import brute, dense_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


REMAINDER = -4


@dataclass(frozen=True)
class Value:
    """Numbers and the neurons that they are."""

    value: np.ndarray
    origin: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def to(self, route: Callable[[np.ndarray], np.ndarray]) -> Value:
        """Reshape, permute, repeat, slice: the same for numbers and neurons."""
        return Value(route(self.value), route(self.origin))

    def map(self, function: Callable[[Any], Any]) -> Value:
        """An activation, or a constant factor: relevance passes it unchanged."""
        found = function(torch.from_numpy(self.value))
        return Value(np.asarray(found, np.float64), self.origin)

    def fill(self, mask: np.ndarray, number: float) -> Value:
        """Put a constant where ``mask`` is."""
        mask = np.broadcast_to(mask, self.shape)
        return Value(np.where(mask, number, self.value), np.where(mask, -1, self.origin))


def join(values: Sequence[Value], axis: int) -> Value:
    return Value(
        np.concatenate([v.value for v in values], axis),
        np.concatenate([v.origin for v in values], axis),
    )


def constant(value: Any) -> Value:
    value = np.asarray(value, np.float64)
    return Value(value, np.full(value.shape, -1))


@dataclass
class Reference:
    """A network's layers, and the shares that each neuron gives away."""

    epsilon: float = 1e-6
    cp: bool = False  # CP-LRP: attention weights and gates are constant
    bias: str = "absorbed"
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=lambda: [0])
    rows: list[np.ndarray] = field(default_factory=list)  # per layer: shares of all neurons below
    lost: list[np.ndarray] = field(default_factory=list)  # per layer: (3, neurons)

    # Layers

    def input(self, name: str, value: Any) -> Value:
        value = np.asarray(value, np.float64)
        return self._layer(name, "input", value, np.zeros((value.size, 0)), 0, 0, 0)

    def _layer(self, name, kind, z, q, bias, stabilizer, remainder, reads=True) -> Value:
        """Add a layer; ``reads`` has where a neuron is connected to one that is no constant."""
        z, start = np.asarray(z, np.float64), self.offsets[-1]
        lost = np.stack([np.broadcast_to(b, z.size) for b in (bias, stabilizer, remainder)])
        if kind != "input":
            total = q.sum(1) + lost.sum(0)
            scale = np.abs(q).sum(1) + np.abs(lost).sum(0)
            # A sum of some ten products: a few roundings of its largest.
            assert (np.abs(total - 1) <= 1e-13 * np.maximum(1, scale)).all(), (name, total)
        assert name not in self.names
        self.names.append(name)
        self.kinds.append(kind)
        self.shapes.append(z.shape)
        self.offsets.append(start + z.size)
        self.rows.append(q)
        self.lost.append(lost)
        origin = np.arange(start, start + z.size).reshape(z.shape)
        if self.bias == "absorbed":
            return Value(z, origin)
        return Value(z, np.where(np.broadcast_to(reads, z.size).reshape(z.shape), origin, -1))

    def _left(self, operand: Value) -> np.ndarray:
        """Entries of an operand that count as contributions, flat."""
        left: np.ndarray = (operand.origin.ravel() >= 0) | (self.bias == "absorbed")
        return left

    def _spread(self, n: np.ndarray, operand: Value) -> tuple[np.ndarray, np.ndarray]:
        """Columns of an operand's entries as columns of neurons, and what constants hold."""
        origin, found = operand.origin.ravel(), np.zeros((len(n), self.offsets[-1]))
        for column in range(len(origin)):
            if origin[column] >= 0:
                found[:, origin[column]] += n[:, column]
        return found, n[:, origin < 0].sum(1)

    def _quotient(self, name, kind, z, parts, bias, eps) -> Value:
        """Contributions over their stabilised sum; ``z`` is the network's own number.

        A part is what the entries of an operand contribute and where they are connected.
        """
        d = sum(n.sum(1) for n, _, _ in parts) + bias
        # z comes by another order of summation, here and there with cancellation.
        size = sum(np.abs(n).sum(1) for n, _, _ in parts) + np.abs(bias)
        assert (np.abs(d - z.ravel()) <= 1e-12 * np.maximum(1, size)).all(), name
        if self.bias == "ignored":
            bias, parts = 0.0, [(n * self._left(o), links, o) for n, links, o in parts]
            d = sum(n.sum(1) for n, _, _ in parts)
        sign = np.where(d >= 0, 1.0, -1.0)
        stabilised = d + eps * sign
        q = np.zeros((z.size, self.offsets[-1]))
        held = np.broadcast_to(bias, d.shape).astype(np.float64)
        reads = np.zeros(z.size, bool)
        for n, links, operand in parts:
            spread, fixed = self._spread(n, operand)
            q += spread
            held = held + fixed
            reads |= (links & self._left(operand)).any(1)
        share, lost = stabilised[:, None], eps * sign / stabilised
        return self._layer(name, kind, z, q / share, held / stabilised, lost, 0, reads)

    def affine(self, name: str, kind: str, x: Value, op: Callable) -> Value:
        """Any affine operation of one operand: ``n = x w``, w from basis vectors."""
        weight, bias = dense_rules.affine(op, x.shape)
        with torch.no_grad():
            z = op(torch.from_numpy(x.value.copy())[None])[0].numpy()
        n = np.where(weight == 0, 0.0, weight * x.value.ravel())
        return self._quotient(name, kind, z, [(n, weight != 0, x)], bias, self.epsilon)

    def module(self, name: str, kind: str, x: Value, module: torch.nn.Module):
        """A convolution or a dense layer."""
        op = dense_rules.linear(module, x.shape)
        with torch.no_grad():
            z = module(torch.from_numpy(x.value.copy())[None])[0].numpy()
        part = (op.weight * x.value.ravel(), op.weight != 0, x)
        return self._quotient(name, kind, z, [part], op.bias, self.epsilon)

    def add(self, name: str, *operands: Value) -> Value:
        """A sum with broadcasting; constants among its operands are biases."""
        z = sum(o.value for o in operands)
        parts = []
        for o in operands:
            full = o.to(lambda a: np.broadcast_to(a, z.shape))
            parts.append((np.diag(full.value.ravel()), np.eye(z.size, dtype=bool), full))
        return self._quotient(name, "sum", z, parts, 0.0, self.epsilon)

    def layer_norm(
        self, name, kind, x: Value, groups: np.ndarray, gamma: Any, beta: Any, eps: float
    ) -> Value:
        """``n_ij = x_i (delta_ij - 1/n) gamma_j / std``; neurons of one group share a mean."""
        v, groups = x.value.ravel(), np.broadcast_to(groups, x.shape).ravel()
        gamma, beta = (np.broadcast_to(p, x.shape).ravel() for p in (gamma, beta))
        n, z = np.zeros((v.size, v.size)), np.zeros(v.size)
        for j in range(v.size):
            mine = np.flatnonzero(groups == groups[j])
            std = math.sqrt(np.var(v[mine]) + eps)
            for i in mine:
                n[j, i] = v[i] * ((i == j) - 1 / len(mine)) * gamma[j] / std
            z[j] = (v[j] - v[mine].mean()) / std * gamma[j] + beta[j]
        part = (n, groups[:, None] == groups, x)
        return self._quotient(name, kind, z.reshape(x.shape), [part], beta, self.epsilon)

    def rms_norm(self, name: str, x: Value, weight: Any, eps: float) -> Value:
        """The identity; over the last axis."""
        z = x.value / np.sqrt((x.value**2).mean(-1, keepdims=True) + eps) * weight
        q, held = self._spread(np.eye(z.size), x)
        left = self._left(x)  # the spread, which is constant by the rule, reads the whole set
        reads = np.broadcast_to(left.reshape(x.shape).any(-1, keepdims=True), x.shape).ravel()
        if self.bias == "absorbed":
            return self._layer(name, "rms_norm", z, q, held, 0, 0)
        return self._layer(name, "rms_norm", z, q, 0, ~left, 0, reads)

    def softmax(self, name: str, x: Value, axis: int = -1) -> Value:
        """``q(i|j) = x_i (delta_ij - s_i)``; the remainder is ``1 - x_j + sum s_i x_i``."""
        s = torch.softmax(torch.from_numpy(x.value), axis).numpy()
        hidden = ~(x.value > np.finfo(np.float32).min)
        v = np.where(hidden | ~self._left(x).reshape(x.shape), 0.0, x.value)
        reads = np.zeros(v.size, bool)
        place = np.arange(v.size).reshape(v.shape)
        q, remainder = np.zeros((v.size, v.size)), np.zeros(v.size)
        for line in np.moveaxis(place, axis, -1).reshape(-1, v.shape[axis]):
            for j in line:
                for i in line:
                    q[j, i] = v.flat[i] * ((i == j) - s.flat[i])
                remainder[j] = 1 - v.flat[j] + sum(s.flat[i] * v.flat[i] for i in line)
                reads[j] = self._left(x)[line].any()
        q, held = self._spread(q, x)
        return self._layer(name, "softmax", s, q, held, 0, remainder, reads)

    def matmul(self, name: str, kind: str, a: Value, b: Value) -> Value:
        """``n = a b / 2`` to each operand, ``d = z``; CP-LRP gives all of attention to b."""
        z = a.value @ b.value
        lead = z.shape[:-2]
        wide = [o.to(lambda v: np.broadcast_to(v, lead + v.shape[-2:])) for o in (a, b)]
        half = [1 / 2, 1 / 2] if not (self.cp and kind == "attention") else [0, 1]
        at = [np.arange(o.value.size).reshape(o.shape) for o in wide]
        parts = [np.zeros((z.size, o.value.size)) for o in wide]
        links = [np.zeros(part.shape, bool) for part in parts]
        for j, (*h, row, column) in enumerate(np.ndindex(z.shape)):
            for k in range(a.shape[-1]):
                left, right = at[0][(*h, row, k)], at[1][(*h, k, column)]
                product = wide[0].value.flat[left] * wide[1].value.flat[right]
                parts[0][j, left] = product * half[0]
                parts[1][j, right] = product * half[1]
                links[0][j, left] = links[1][j, right] = True
        parts = list(zip(parts, links, wide, strict=True))
        return self._quotient(name, kind, z, parts, 0.0, self.epsilon)

    def multiply(self, name: str, kind: str, a: Value, b: Value, held: bool = False) -> Value:
        """Half of the relevance to each operand; with ``held`` the second is a constant."""
        z = a.value * b.value
        wide = [o.to(lambda v: np.broadcast_to(v, z.shape)) for o in (a, b)]
        eye = np.eye(z.size, dtype=bool)
        if held:
            parts = [(np.diag(z.ravel()), eye, wide[0]), (np.zeros(eye.shape), eye, wide[1])]
            return self._quotient(name, kind, z, parts, 0.0, self.epsilon)
        left = [self._left(o) for o in wide]
        count = sum(t.astype(int) for t in left)  # those that share the whole
        q, lost = np.zeros((z.size, self.offsets[-1])), np.zeros(z.size)
        for o, there in zip(wide, left, strict=True):
            spread, fixed = self._spread(np.diag(there / np.maximum(1, count)), o)
            q, lost = q + spread, lost + fixed
        return self._layer(name, kind, z, q, lost, count == 0, 0, count > 0)

    def output(self, x: Value) -> Value:
        """Selected outputs, read one to one."""
        q, held = self._spread(np.eye(x.value.size), x)
        return self._layer("output", "output", x.value, q, held, 0, 0)

    # Answers

    def slice(self, name: str) -> slice:
        i = self.names.index(name)
        return slice(self.offsets[i], self.offsets[i + 1])

    def matrix(self) -> np.ndarray:
        q = np.zeros((self.offsets[-1],) * 2)
        for i, rows in enumerate(self.rows):
            q[self.offsets[i] : self.offsets[i + 1], : rows.shape[1]] = rows
        return q

    def relevance(self, target: int) -> np.ndarray:
        """R of every neuron, all layers after one another."""
        q, found = self.matrix(), np.zeros(self.offsets[-1])
        found[self.offsets[-2] + target] = 1.0
        for i in reversed(range(len(self.names))):
            mine = slice(self.offsets[i], self.offsets[i + 1])
            found += found[mine] @ q[mine]
        return found

    def absorbed(self) -> np.ndarray:
        """Shares of bias, stabilizer and remainder of every neuron, ``(3, neurons)``."""
        return np.concatenate(self.lost, axis=1)


class KernelWalks(brute.Walks):
    """All walks of a reference, in place of those of :class:`brute.Net`.

    Layers are numbered; millions of walks leave no room for names.
    """

    def __init__(self, ref: Reference, target: int, limit: int = 6_000_000) -> None:
        q, lost = ref.matrix(), ref.absorbed()
        self.target, self.layers = target, list(ref.names)
        self.shapes = dict(zip(ref.names, ref.shapes, strict=True))
        self.number = {name: i for i, name in enumerate(ref.names)}
        assert max(np.diff(ref.offsets)) < 128  # flat indices are int8
        self.steps = {}
        waiting: dict[str, list[Any]] = {name: [] for name in ref.names}
        done: list[tuple[np.ndarray, dict[str, np.ndarray], str, int]] = []
        waiting[ref.names[-1]].append((np.ones(1), {ref.names[-1]: np.full(1, target, np.int8)}))
        for name in reversed(ref.names):
            mine = ref.slice(name)
            sources = {s: q[mine, ref.slice(s)] for s in ref.names if np.any(q[mine, ref.slice(s)])}
            if ref.kinds[ref.names.index(name)] != "input":
                self.steps[name] = brute.Step(sources, lost[0, mine], lost[1, mine])
            value, at = _together(waiting.pop(name), ref.names)
            assert len(value) <= limit
            if name not in self.steps:
                done.append((value, at, name, 0))
                continue
            for unit, share in zip((-1, -2, REMAINDER), lost[:, mine], strict=True):
                part = share[at[name]]
                keep = np.flatnonzero(part)
                done.append((value[keep] * part[keep], _pick(at, keep), name, unit))
            for source, block in sources.items():
                j, i = np.nonzero(block)
                count = np.bincount(j, minlength=len(block))
                first = np.concatenate([[0], np.cumsum(count)[:-1]])
                times = count[at[name]]
                walk = np.repeat(np.arange(len(value)), times)
                inside = np.arange(len(walk)) - np.repeat(np.cumsum(times) - times, times)
                edge = first[at[name][walk]] + inside
                onward = _pick(at, walk) | {source: i[edge].astype(np.int8)}
                waiting[source].append((value[walk] * block[j[edge], i[edge]], onward))
        self.value = np.concatenate([v for v, *_ in done])
        self.at = {
            name: np.concatenate([at.get(name, _nowhere(len(v))) for v, at, *_ in done])
            for name in ref.names
        }
        numbers = [np.full(len(v), self.number[name], np.int8) for v, _, name, _ in done]
        self.end_layer = np.concatenate(numbers)
        units = [
            at[name] if unit == 0 else np.full(len(v), unit, np.int8) for v, at, name, unit in done
        ]
        self.end_unit = np.concatenate(units)
        # Layers are visited in falling order: the next one is the next below that is visited.
        self.after = {}
        below = _nowhere(len(self.value))
        for name in ref.names:
            visited = self.at[name] >= 0
            self.after[name] = np.where(visited, below, np.int8(-1))
            below = np.where(visited, np.int8(self.number[name]), below)

    def edge(self, dst, dmask, src, smask):
        direct = self.after[dst] == self.number[src]
        return direct & self.passes(dst, dmask) & self.passes(src, smask)

    def ends(self, layer, unit):
        return (self.end_layer == self.number[layer]) & (self.end_unit == unit)

    def flow(self, dst, src, event=None):
        direct = self.after[dst] == self.number[src]
        return self.joint(dst, src, direct if event is None else direct & event)


def _nowhere(count: int) -> np.ndarray:
    return np.full(count, -1, np.int8)


def _pick(at: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: found[rows] for name, found in at.items()}


def _together(parts: Any, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Walks that arrive at a layer by several ways."""
    if not parts:
        return np.zeros(0), {name: np.zeros(0, int) for name in names}
    seen = [name for name in names if any(name in at for _, at in parts)]
    joined = {
        name: np.concatenate([at.get(name, _nowhere(len(v))) for v, at in parts]) for name in seen
    }
    return np.concatenate([v for v, _ in parts]), joined


def table(rows, upper: int, lower: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges as matrices of relevance and of q; pairs are unique."""
    relevance, q = np.zeros((upper, lower)), np.zeros((upper, lower))
    at = rows["dst_unit"].to_numpy(), rows["src_unit"].to_numpy()
    assert len(set(zip(*at, strict=True))) == len(at[0])
    relevance[at], q[at] = rows["relevance"].to_numpy(), rows["conditional"].to_numpy()
    return relevance, q
