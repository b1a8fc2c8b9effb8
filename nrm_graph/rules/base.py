"""What every rule is made of: groups of parts, and their values at one batch.

A rule turns one weighing operation into *groups* of *parts*.  A part is an effective operand
x' and an effective weight w'; the parts of a group share one denominator ``d = sum x' w' + b``,
and the conditional relevance is ``q(i|j) = sum over parts of x'_i w'_ij factor_j`` with
``factor = scale / stab(d)`` (arXiv:2606.00557).  What does not reach an operand is stated by its
own formula: ``bias`` (``b factor``) and ``stabilizer`` (``scale eps / |stab(d)|``, and what the
rule cannot place).

Groups hold no activations: they are made once for a network, at the first input, and only what
can be non-zero is made (see :class:`Signs`).

Notation: x+ = max(x, 0), x- = min(x, 0); stab(d) = d + eps * sign(d) with sign(0) = +1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from nrm_graph.network.topology import BIAS, REMAINDER, STABILIZER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from nrm_graph.network.maps.linear import Weighing


@dataclass(frozen=True)
class Signs:
    """What is known of an operation's values before any input is seen.

    Attributes
    ----------
    non_negative : tuple of bool
        For every operand, whether no neuron of it is ever negative.
    silent : bool
        Whether relevance vanishes wherever the output is not positive (only ReLUs read it).
    """

    non_negative: tuple[bool, ...]
    silent: bool = False


class Part(NamedTuple):
    """One product of a denominator: operand number, how x becomes x', and w'."""

    operand: int
    transform: Callable[[Tensor], Tensor]
    weight: Tensor


class Group(NamedTuple):
    """Parts over one denominator.

    ``where`` restricts the group to outputs of one sign of z (1 or -1; 0 for all).  ``plain``
    says that the denominator is z itself, so that it need not be computed again; ``unit``, that it
    is 1.  ``sign`` is that of the denominator wherever relevance may be; 0 if it is not known.
    """

    parts: tuple[Part, ...]
    bias: Tensor | None
    eps: float
    scale: float = 1.0
    where: int = 0
    plain: bool = False
    sign: int = 0
    unit: bool = False


class Term(NamedTuple):
    """A part at one batch: operand number, x' and w'."""

    operand: int
    x: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Share:
    """A group at one batch: ``q(i|j)`` is the sum over terms of x' w' times ``factor``.

    Attributes
    ----------
    terms : tuple of Term
        What shares the denominator.
    d : Tensor
        ``stab(d)`` of every output neuron; infinite where the group does not serve it.
    bias : Tensor or None
        ``q(bias|j) = bias * factor``.
    eps, scale : float
        ``factor = scale / d`` and ``q(stabilizer|j) = eps * scale / |d|``.
    sign : int
        Sign of d wherever relevance may be; 0 if it is not known.
    """

    terms: tuple[Term, ...]
    d: Tensor
    bias: Tensor | None
    eps: float
    scale: float
    sign: int

    def weigh(self, relevance: Tensor) -> Tensor:
        """Return ``s = R * factor``."""
        s = relevance / self.d
        return s if self.scale == 1.0 else s * self.scale

    @property
    def factor(self) -> Tensor:
        """What the products of a neuron are multiplied by."""
        return self.scale / self.d

    def stabilizer(self) -> Tensor:
        """q(stabilizer|j)."""
        return self.eps * self.scale / self.d.abs()


class Kernel(NamedTuple):
    """The kernel of one operation at one batch of inputs.

    Attributes
    ----------
    shares : tuple of Share
        By denominator.
    unplaced : Tensor or None
        Share that the rule cannot place, of the output's shape; it belongs to the stabilizer.
    held : Tensor or None
        Share of constants that were routed in (padding, class tokens); it belongs to the bias.
    remainder : Tensor or None
        What the rule's own shares lack to 1, of the output's shape (see :meth:`Rule.remainder`).
    """

    shares: tuple[Share, ...]
    unplaced: Tensor | None = None
    held: Tensor | None = None
    remainder: Tensor | None = None

    def bias(self) -> Tensor | None:
        """q(bias|j), of the output's shape."""
        parts = [share.bias * share.factor for share in self.shares if share.bias is not None]
        return _total([*parts, self.held])

    def stabilizer(self) -> Tensor | None:
        """q(stabilizer|j), of the output's shape."""
        parts = [share.stabilizer() for share in self.shares if share.eps]
        return _total([*parts, self.unplaced])

    def absorbed(self) -> list[tuple[int, Tensor]]:
        """Pseudo-units and their q, broadcastable to the output's shape."""
        found = ((BIAS, self.bias()), (STABILIZER, self.stabilizer()), (REMAINDER, self.remainder))
        return [(unit, share) for unit, share in found if share is not None]


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return sum(present[1:], present[0]) if present else None


class Rule:
    """Base of all rules: a frozen dataclass with plain parameters and one method.

    ``proportional`` says that n_ij vanishes where x_i does.
    """

    proportional: ClassVar[bool] = True

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """Parts and denominators of ``op``, whose weights are :attr:`Weighing.tensors`."""
        raise NotImplementedError

    def unplaced(self, z: Tensor, signs: Signs) -> Tensor | None:
        """Share of every output neuron that no group serves."""
        return None

    def remainder(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Tensor | None:
        """Share of every output neuron that the rule loses, by a formula of its own.

        A rule whose contributions, bias and stabilizer do not sum to its denominator must say by
        how much, so that every column of the kernel sums to 1.

        Parameters
        ----------
        op : Weighing
            The operation, its weights as they are at this batch.
        xs : sequence of Tensor
            Operands.
        z : Tensor
            Output.
        """
        return None

    def to_json(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {"rule": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


class Decisions(NamedTuple):
    """What a rule decided at the same batch in another precision.

    Attributes
    ----------
    z : Tensor
        Output there, whose signs say which group serves a neuron.
    denominators : tuple of Tensor
        ``stab(d)`` there of every share.
    """

    z: Tensor
    denominators: tuple[Tensor, ...]


def evaluated(
    groups: Sequence[Group],
    op: Weighing,
    xs: Sequence[Tensor],
    z: Tensor,
    unplaced: Tensor | None = None,
    decisions: Decisions | None = None,
) -> Kernel:
    """Evaluate groups at the operands ``xs`` and the output ``z`` of one batch.

    With ``decisions`` the signs are those, so that rounding alone tells both precisions apart; but
    a denominator beyond half its stabilizer keeps its own.
    """
    shares: list[Share] = []
    decisive = z if decisions is None else decisions.z
    for group in groups:
        terms = tuple(Term(p.operand, p.transform(xs[p.operand]), p.weight) for p in group.parts)
        if not terms:
            continue
        if group.unit:
            one = torch.ones((), dtype=z.dtype, device=z.device).expand(z.shape)
            shares.append(Share(terms, one, group.bias, 0.0, group.scale, 1))
            continue
        d = z if group.plain else _denominator(op, terms, group.bias)
        if group.sign > 0 and not group.plain:
            d.abs_()  # -0.0, or what rounding makes of a sum of non-negative numbers
        eps = torch.full((), group.eps, dtype=d.dtype, device=d.device)
        signed = d
        if decisions is not None:
            other = decisions.denominators[len(shares)].to(d.dtype)
            signed = torch.where(d.abs() <= group.eps / 2, other, d)
        stabilised = torch.copysign(eps, signed).add_(d)
        if not group.eps:  # nothing stabilises d = 0: what is there cannot be placed
            empty = d == 0
            if group.where:
                empty = empty & ((decisive > 0) if group.where > 0 else (decisive < 0))
            stabilised.masked_fill_(empty, torch.inf)
            lost = group.scale * empty.to(d.dtype)
            unplaced = lost if unplaced is None else unplaced + lost
        if group.where:
            if stabilised.shape != z.shape:  # without its bias, d may be smaller
                stabilised = stabilised.expand_as(z).clone()
            unserved = (decisive <= 0) if group.where > 0 else (decisive >= 0)
            stabilised.masked_fill_(unserved, torch.inf)
        shares.append(Share(terms, stabilised, group.bias, group.eps, group.scale, group.sign))
    return Kernel(tuple(shares), unplaced)


def _denominator(op: Weighing, terms: Sequence[Term], bias: Tensor | None) -> Tensor:
    first, *rest = terms
    d = op.maps[first.operand].apply(first.x, first.weight, bias)
    for term in rest:
        d = d + op.maps[term.operand].apply(term.x, term.weight)
    return d
