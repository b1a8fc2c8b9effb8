"""Propagation rules in dense matrix form, from the formulas alone; the package is not used here.

A layer is described by the matrix ``weight`` (one row per output neuron, one column per input
neuron), the vector ``bias``, its input ``x`` and ``structure``, which entries of the matrix
are connections (a connection may have weight 0).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True)
class Kernel:
    """q(i|j) of one operation: ``q[j, i]``, and what the two pseudo-neurons of j take."""

    q: np.ndarray
    bias: np.ndarray
    stabilizer: np.ndarray

    def check(self) -> Kernel:
        total = self.q.sum(1) + self.bias + self.stabilizer
        scale = np.abs(self.q).sum(1) + np.abs(self.bias) + np.abs(self.stabilizer)
        assert (np.abs(total - 1) <= 1e-13 * np.maximum(1, scale)).all(), total
        return self


@dataclass(frozen=True)
class Linear:
    """An affine operation as a matrix."""

    weight: np.ndarray
    bias: np.ndarray
    structure: np.ndarray


def affine(op: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> Any:
    """Matrix and constant of an affine map, column by column from basis vectors."""
    n = int(np.prod(shape))
    with torch.no_grad():
        zero = torch.zeros((1, *shape), dtype=torch.float64)
        constant = op(zero).reshape(-1).numpy().copy()
        columns = []
        for i in range(n):
            basis = zero.clone()
            basis.view(-1)[i] = 1.0
            columns.append(op(basis).reshape(-1).numpy() - constant)
    return np.stack(columns, axis=1), constant


def linear(module: nn.Module, shape: tuple[int, ...]) -> Linear:
    """A module without bias subtraction errors: the weights are applied without the bias."""
    plain = copy.deepcopy(module)
    ones = copy.deepcopy(module)
    bias = np.zeros(())
    if getattr(module, "running_mean", None) is not None:  # batch-norm
        weight, bias = affine(module, shape)
        return Linear(weight, bias, weight != 0)
    if getattr(module, "bias", None) is not None:
        with torch.no_grad():
            plain.bias.zero_()
            ones.bias.zero_()
            bias = module(torch.zeros((1, *shape), dtype=torch.float64)).reshape(-1).numpy()
    if getattr(module, "weight", None) is not None:
        with torch.no_grad():
            ones.weight.fill_(1.0)
    weight, _ = affine(plain, shape)
    structure, _ = affine(ones, shape)
    return Linear(weight, np.broadcast_to(bias, weight.shape[:1]).copy(), structure != 0)


def _sign(d: np.ndarray) -> np.ndarray:
    return np.where(d >= 0, 1.0, -1.0)


def _quotient(n: np.ndarray, b: np.ndarray, eps: float) -> Kernel:
    """Contributions n and b over their own stabilized sum."""
    d = n.sum(1) + b
    stabilized = d + eps * _sign(d)
    return Kernel(n / stabilized[:, None], b / stabilized, eps * _sign(d) / stabilized)


def _pos(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0)


def _neg(a: np.ndarray) -> np.ndarray:
    return np.minimum(a, 0)


def _of_neurons(bound: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A bound of every input neuron: that of its channel, the first axis behind the batch."""
    per_channel = np.reshape(bound, (-1, *[1] * (len(shape) - 2)))
    return np.broadcast_to(per_channel, shape).reshape(-1)


def kernel(op: Linear, x: np.ndarray, rule: str, **params: Any) -> Kernel:
    """Dense kernel of a rule; parameter names are those of the package."""
    shape = np.shape(x)
    w, b, x = op.weight, op.bias, np.asarray(x, np.float64).reshape(-1)
    eps = params.get("stabilizer", 1e-6)
    zero = np.zeros(len(w))
    xp, xn, wp, wn = _pos(x), _neg(x), _pos(w), _neg(w)
    if rule == "Epsilon":
        return _quotient(x * w, b, params.get("epsilon", 1e-6)).check()
    if rule == "Norm":
        return _quotient(x * w, b, eps).check()
    if rule == "Gamma":
        g = params.get("gamma", 0.25)
        z = (x * w).sum(1) + b
        above = _quotient(xp * (w + g * wp) + xn * (w + g * wn), b + g * _pos(b), eps)
        below = _quotient(xp * (w + g * wn) + xn * (w + g * wp), b + g * _neg(b), eps)
        up, down = z > 0, z < 0
        return Kernel(
            np.where(up[:, None], above.q, np.where(down[:, None], below.q, 0.0)),
            np.where(up, above.bias, np.where(down, below.bias, 0.0)),
            np.where(up, above.stabilizer, np.where(down, below.stabilizer, 1.0)),
        ).check()
    if rule == "ZPlus":
        bias = zero if params.get("zero_params") == "bias" else _pos(b)
        return _quotient(xp * wp + xn * wn, bias, eps).check()
    if rule == "AlphaBeta":
        alpha, beta = params.get("alpha", 2.0), params.get("beta", 1.0)
        pos = _quotient(xp * wp + xn * wn, _pos(b), eps)
        neg = _quotient(xp * wn + xn * wp, _neg(b), eps)
        return Kernel(
            alpha * pos.q - beta * neg.q,
            alpha * pos.bias - beta * neg.bias,
            alpha * pos.stabilizer - beta * neg.stabilizer,
        ).check()
    if rule == "ZBox":
        low, high = (_of_neurons(params[bound], shape) for bound in ("low", "high"))
        return _quotient(x * w - low * wp - high * wn, zero, eps).check()
    if rule == "WSquare":
        return _quotient(w * w, b * b, eps).check()
    if rule == "Flat":
        return _quotient(op.structure.astype(np.float64), zero, eps).check()
    if rule == "Pass":
        assert w.shape[0] == w.shape[1], "Pass needs as many outputs as inputs"
        return Kernel(np.eye(len(w)), zero, zero).check()
    raise ValueError(rule)
