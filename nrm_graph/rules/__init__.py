"""Propagation rules: how a neuron's relevance is shared among what it reads.

A rule turns one weighing operation and its operands into *terms*: each an effective operand
x', an effective weight w' and a factor per output neuron, so that the conditional relevance is
``q(i|j) = sum over terms of x'_i w'_ij factor_j`` (arXiv:2606.00557).  What does not reach an
operand is stated by its own formula: ``bias`` (the share of the denominator that biases hold)
and ``stabilizer`` (what epsilon absorbs and what the rule cannot place).  Names and parameters
are zennit's.

Notation: x+ = max(x, 0), x- = min(x, 0); stab(d) = d + eps * sign(d) with sign(0) = +1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nrm_graph.errors import CompositeError, StoreError
from nrm_graph.linear import Scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from nrm_graph.linear import Weighing


class Term(NamedTuple):
    """One summand of a rule's kernel."""

    operand: int
    x: Tensor
    weight: Tensor
    factor: Tensor


class Flow(NamedTuple):
    """The kernel of one operation at one batch of inputs.

    ``bias`` and ``stabilizer`` are q(bias|j) and q(stabilizer|j), of the output's shape, or
    None where they are zero.
    """

    terms: list[Term]
    bias: Tensor | None
    stabilizer: Tensor | None


class Rule:
    """Base of all rules: a frozen dataclass with plain parameters and one method."""

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """Kernel of ``op`` at the operands ``xs`` and its output ``z``."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {"rule": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


def _sign(d: Tensor) -> Tensor:
    return torch.where(d >= 0, 1.0, -1.0).to(d.dtype)


def _bias(op: Weighing, z: Tensor, zero_params: str | None = None) -> Tensor | None:
    if op.bias is None or zero_params == "bias":
        return None
    return op.bias.to(z.device, z.dtype)


def _shared(
    op: Weighing,
    parts: Sequence[tuple[int, Tensor, Tensor]],
    bias: Tensor | None,
    eps: float,
    scale: float | Tensor = 1.0,
) -> Flow:
    """Terms over one common denominator: the sum of the parts and the bias."""
    d = sum(op.maps[k].apply(x, w) for k, x, w in parts)
    assert not isinstance(d, int)
    if bias is not None:
        d = d + bias
    absorbed = eps * _sign(d)
    factor = scale / (d + absorbed)
    terms = [Term(k, x, w, factor) for k, x, w in parts]
    return Flow(terms, None if bias is None else bias * factor, absorbed * factor)


def _merge(*flows: Flow) -> Flow:
    def total(shares: list[Tensor | None]) -> Tensor | None:
        present = [share for share in shares if share is not None]
        return torch.stack(present).sum(0) if present else None

    return Flow(
        [term for flow in flows for term in flow.terms],
        total([flow.bias for flow in flows]),
        total([flow.stabilizer for flow in flows]),
    )


def _weights(op: Weighing, xs: Sequence[Tensor]) -> list[Tensor]:
    return [op.weight(k, x) for k, x in enumerate(xs)]


@dataclass(frozen=True)
class Epsilon(Rule):
    """``n = x w``, ``d = sum + b`` (Bach et al. 2015)."""

    epsilon: float = 1e-6
    zero_params: str | None = None

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        parts = [(k, xs[k], w) for k, w in enumerate(_weights(op, xs))]
        return _shared(op, parts, _bias(op, z, self.zero_params), self.epsilon)


@dataclass(frozen=True)
class Norm(Rule):
    """Epsilon for operations without parameters (sums, averages)."""

    stabilizer: float = 1e-6

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        return Epsilon(self.stabilizer).flow(op, xs, z)


@dataclass(frozen=True)
class Gamma(Rule):
    """Generalised gamma: the sign of z chooses which weights are favoured.

    Where z > 0: ``x+ (w + g w+) + x- (w + g w-)`` over ``sum + b + g b+``; where z < 0 the
    roles of w+ and w- change, over ``sum + b + g b-``; where z = 0 all goes to the stabilizer
    (Montavon et al. 2019; Andeol et al. 2021).
    """

    gamma: float = 0.25
    stabilizer: float = 1e-6
    zero_params: str | None = None

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        weights = _weights(op, xs)
        up = [w + self.gamma * w.clamp(min=0) for w in weights]
        down = [w + self.gamma * w.clamp(max=0) for w in weights]
        high = [x.clamp(min=0) for x in xs]
        low = [x.clamp(max=0) for x in xs]
        # Non-negative operands need half the terms; the answer is the same.
        signed = [bool((x < 0).any()) for x in xs]
        bias = _bias(op, z, self.zero_params)
        flows = []
        for chosen, favoured, other in ((z > 0, up, down), (z < 0, down, up)):
            parts = []
            for k in range(len(xs)):
                parts.append((k, high[k], favoured[k]))
                if signed[k]:
                    parts.append((k, low[k], other[k]))
            b = bias
            if bias is not None:
                half = bias.clamp(min=0) if favoured is up else bias.clamp(max=0)
                b = bias + self.gamma * half
            flows.append(_shared(op, parts, b, self.stabilizer, chosen.to(z.dtype)))
        flows.append(Flow([], None, (z == 0).to(z.dtype)))
        return _merge(*flows)


@dataclass(frozen=True)
class ZPlus(Rule):
    """``n = x+ w+ + x- w-``, ``d = sum + b+``; excitation backprop with ``zero_params="bias"``."""

    stabilizer: float = 1e-6
    zero_params: str | None = None

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        bias = _bias(op, z, self.zero_params)
        positive = None if bias is None else bias.clamp(min=0)
        return _shared(op, _agreeing(op, xs), positive, self.stabilizer)


def _agreeing(op: Weighing, xs: Sequence[Tensor]) -> list[tuple[int, Tensor, Tensor]]:
    """Parts with a positive product."""
    parts = []
    for k, w in enumerate(_weights(op, xs)):
        parts.append((k, xs[k].clamp(min=0), w.clamp(min=0)))
        if bool((xs[k] < 0).any()):
            parts.append((k, xs[k].clamp(max=0), w.clamp(max=0)))
    return parts


def _opposing(op: Weighing, xs: Sequence[Tensor]) -> list[tuple[int, Tensor, Tensor]]:
    """Parts with a negative product."""
    parts = []
    for k, w in enumerate(_weights(op, xs)):
        parts.append((k, xs[k].clamp(min=0), w.clamp(max=0)))
        if bool((xs[k] < 0).any()):
            parts.append((k, xs[k].clamp(max=0), w.clamp(min=0)))
    return parts


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """``alpha`` times the positive part minus ``beta`` times the negative part, each normalised.

    ``alpha - beta`` must be 1.  Where a part is empty its share has no place and belongs to
    the stabilizer.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-6
    zero_params: str | None = None

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-12:
            raise CompositeError(
                f"AlphaBeta needs alpha, beta >= 0 and alpha - beta = 1, found alpha="
                f"{self.alpha}, beta={self.beta}"
            )

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        bias = _bias(op, z, self.zero_params)
        up = None if bias is None else bias.clamp(min=0)
        down = None if bias is None else bias.clamp(max=0)
        flows = [_shared(op, _agreeing(op, xs), up, self.stabilizer, self.alpha)]
        if self.beta:
            flows.append(_shared(op, _opposing(op, xs), down, self.stabilizer, -self.beta))
        return _merge(*flows)


@dataclass(frozen=True)
class ZBox(Rule):
    """``n = x w - low w+ - high w-``, ``d = sum``: for inputs bounded by ``low`` and ``high``.

    The bias cancels.  Padding positions have no bounds and contribute nothing.
    """

    low: float = 0.0
    high: float = 1.0
    stabilizer: float = 1e-6

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        parts = []
        for k, w in enumerate(_weights(op, xs)):
            low, high = torch.full_like(xs[k], self.low), torch.full_like(xs[k], self.high)
            parts += [(k, xs[k], w), (k, low, -w.clamp(min=0)), (k, high, -w.clamp(max=0))]
        return _shared(op, parts, None, self.stabilizer)


@dataclass(frozen=True)
class WSquare(Rule):
    """``n = w^2``, ``d = sum + b^2``."""

    stabilizer: float = 1e-6
    zero_params: str | None = None

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        parts = [(k, torch.ones_like(xs[k]), w.square()) for k, w in enumerate(_weights(op, xs))]
        bias = _bias(op, z, self.zero_params)
        return _shared(op, parts, None if bias is None else bias.square(), self.stabilizer)


@dataclass(frozen=True)
class Flat(Rule):
    """``n = 1``, ``d = fan-in``: every real position alike, padding left out."""

    stabilizer: float = 1e-6

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        parts = [
            (k, torch.ones_like(xs[k]), torch.ones_like(w)) for k, w in enumerate(_weights(op, xs))
        ]
        return _shared(op, parts, None, self.stabilizer)


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance goes through unchanged: only for elementwise operations with one operand."""

    def flow(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Flow:
        """See :meth:`Rule.flow`."""
        if len(xs) != 1 or xs[0].shape != z.shape or not isinstance(op.maps[0], Scale):
            raise CompositeError(
                f"Pass needs an elementwise operation with one operand, found a {op.kind} with "
                f"{len(xs)}"
            )
        one = torch.ones((), dtype=z.dtype, device=z.device)
        return Flow([Term(0, torch.ones_like(z), one, torch.ones_like(z))], None, None)


RULES: dict[str, type[Rule]] = {
    rule.__name__: rule
    for rule in (Epsilon, Norm, Gamma, ZPlus, AlphaBeta, ZBox, WSquare, Flat, Pass)
}
"""The rules that a stored composite may name."""


def from_json(data: Mapping[str, Any]) -> Rule:
    """Read a rule that :meth:`Rule.to_json` wrote."""
    parameters = dict(data)
    name = parameters.pop("rule", None)
    if name not in RULES:
        raise StoreError(f"unknown rule {name!r}: expected one of {', '.join(RULES)}")
    try:
        return RULES[name](**parameters)
    except TypeError as error:
        raise StoreError(f"rule {name}: {error}") from None
