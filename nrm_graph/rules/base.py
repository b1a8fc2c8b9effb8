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
    ignoring : bool
        Whether biases and constants are left out: the operation has no shift, its output is the
        sum of what is left, and constants among its operands count nothing.
    """

    non_negative: tuple[bool, ...]
    silent: bool = False
    ignoring: bool = False


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

    ``following`` are parts that count with the sign of z (and nothing where z = 0, where the group
    serves nobody), as does ``following_bias``: the denominator is
    ``sum x' w' + b + sign(z) (sum over following + following_bias)``.  ``plain`` and ``sign`` then
    speak of the first half, and of the denominator times the sign of z.
    """

    parts: tuple[Part, ...]
    bias: Tensor | None
    eps: float
    scale: float = 1.0
    where: int = 0
    plain: bool = False
    sign: int = 0
    unit: bool = False
    following: tuple[Part, ...] = ()
    following_bias: Tensor | None = None


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
    follows : bool
        Whether these are the parts that count with the sign of z, term for term beside those of
        the share before: d is that of the share before, times the sign of z.
    """

    terms: tuple[Term, ...]
    d: Tensor
    bias: Tensor | None
    eps: float
    scale: float
    sign: int
    follows: bool = False

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

    def apart(self) -> list[Share]:
        """Shares of which no two give to the same edge, where the rule's parts allow it."""
        apart: list[Share] = []
        for share in self.shares:
            if share.follows:
                before = apart.pop()
                apart += [_of_sign(before, share, sign) for sign in (1, -1)]
            else:
                apart.append(share)
        return apart

    def absorbed(self) -> list[tuple[int, Tensor]]:
        """Pseudo-units and their q, broadcastable to the output's shape."""
        found = ((BIAS, self.bias()), (STABILIZER, self.stabilizer()), (REMAINDER, self.remainder))
        return [(unit, share) for unit, share in found if share is not None]


def _of_sign(share: Share, following: Share, sign: int) -> Share:
    """Both of two shares, where z has one sign."""
    terms = []
    for first, second in zip(share.terms, following.terms, strict=True):
        alike = first.weight + sign * second.weight
        if first.x.data_ptr() == second.x.data_ptr():  # x is nowhere negative, and is |x|
            terms.append(first._replace(weight=alike))
        else:
            unlike = first.weight - sign * second.weight
            terms.append(Term(first.operand, first.x.clamp(min=0), alike))
            terms.append(Term(first.operand, first.x.clamp(max=0), unlike))
    bias = share.bias
    if bias is not None and following.bias is not None:
        bias = bias + sign * following.bias
    d = share.d.masked_fill(share.d.sign() * following.d.sign() * sign < 0, torch.inf)
    known = sign * following.sign
    return Share(tuple(terms), d, bias, following.eps, following.scale, known)


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return sum(present[1:], present[0]) if present else None


class Rule:
    """Base of all rules: a frozen dataclass with plain parameters and one method.

    ``proportional`` says that n_ij vanishes where x_i does, ``per_channel`` which parameters may be
    tuples, of one number for every channel, ``own_weights`` that parts have the operation's own
    weights, as they are: large ones may then be in half precision.
    """

    proportional: ClassVar[bool] = True
    per_channel: ClassVar[tuple[str, ...]] = ()
    own_weights: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Let a rule with parts of its own speak for itself of their weights."""
        super().__init_subclass__()
        if "groups" in vars(cls) and "own_weights" not in vars(cls):
            cls.own_weights = False

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """Parts and denominators of ``op``, whose weights are :attr:`Weighing.tensors`.

        Under a composite that ignores biases (``signs.ignoring``) ``op.shift`` is None, and no
        group may have a bias.
        """
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
        parameters = asdict(self)  # type: ignore[call-overload]
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items()}
        return {"rule": type(self).__name__, **values}


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
    left: Sequence[Tensor | None] | None = None,
) -> Kernel:
    """Evaluate groups at the operands ``xs`` and the output ``z`` of one batch.

    ``left`` has for every operand where it is no constant, if constants are left out (None: it
    has none).

    With ``decisions`` the signs are those, so that rounding alone tells both precisions apart; but
    a denominator beyond half its stabilizer keeps its own.
    """
    shares: list[Share] = []
    decisive = z if decisions is None else decisions.z
    for group in groups:
        terms = _terms(group.parts, xs, left)
        if not terms:
            continue
        if group.unit:
            one = torch.ones((), dtype=z.dtype, device=z.device).expand(z.shape)
            shares.append(Share(terms, one, group.bias, 0.0, group.scale, 1))
            continue
        other = None if decisions is None else decisions.denominators[len(shares)].to(z.dtype)
        if group.following:
            pair, lost = _of_both_signs(group, op, xs, z, decisive, other, left)
            shares += pair
            unplaced = _total([unplaced, lost])
            continue
        d = z if group.plain else _denominator(op, terms, group.bias)
        if group.sign > 0 and not group.plain:
            # -0.0, or what rounding makes of a sum of non-negative numbers
            stabilised = d.abs_().add_(group.eps)
        else:
            stabilised = _stabilised(d, group.eps, other)
        if not group.eps:  # nothing stabilises d = 0: what is there cannot be placed
            empty = stabilised == 0
            if group.where:
                empty = empty & ((decisive > 0) if group.where > 0 else (decisive < 0))
            stabilised.masked_fill_(empty, torch.inf)
            unplaced = _total([unplaced, group.scale * empty.to(d.dtype)])
        if group.where:
            if stabilised.shape != z.shape:  # without its bias, d may be smaller
                stabilised = stabilised.expand_as(z).clone()
            unserved = (decisive <= 0) if group.where > 0 else (decisive >= 0)
            stabilised.masked_fill_(unserved, torch.inf)
        shares.append(Share(terms, stabilised, group.bias, group.eps, group.scale, group.sign))
    return Kernel(tuple(shares), unplaced)


def _terms(
    parts: Sequence[Part], xs: Sequence[Tensor], left: Sequence[Tensor | None] | None
) -> tuple[Term, ...]:
    terms = []
    for part in parts:
        x = part.transform(xs[part.operand])
        there = None if left is None else left[part.operand]
        if there is not None and x is not xs[part.operand]:  # 1 of a constant is 0 too
            x = x * there
        terms.append(Term(part.operand, x, part.weight))
    return tuple(terms)


def _stabilised(d: Tensor, eps: float, other: Tensor | None) -> Tensor:
    """stab(d); within half a stabilizer the sign is that of ``other``."""
    signed = d if other is None else torch.where(d.abs() <= eps / 2, other, d)
    size = torch.full((), eps, dtype=d.dtype, device=d.device)
    return torch.copysign(size, signed).add_(d)


def may_vanish(z: Tensor) -> bool:
    """Whether a value may be 0 somewhere; where asking would wait for the device, it may."""
    return z.device.type != "cpu" or not z.numel() or bool(z.abs().amin() == 0)


def _of_both_signs(
    group: Group,
    op: Weighing,
    xs: Sequence[Tensor],
    z: Tensor,
    decisive: Tensor,
    other: Tensor | None,
    left: Sequence[Tensor | None] | None,
) -> tuple[tuple[Share, Share], Tensor | None]:
    """Evaluate a group some parts of which take the sign of z, and what it cannot place."""
    terms, following = _terms(group.parts, xs, left), _terms(group.following, xs, left)
    side = z if decisive is z else decisive.sign().to(z.dtype)
    added = _denominator(op, following, group.following_bias)
    if group.plain and side is z:
        towards = z.abs().add_(added)
    else:
        d = z if group.plain else _denominator(op, terms, group.bias)
        towards = (d * side.sign()).add_(added)
    if group.sign > 0:
        towards.abs_().add_(group.eps)  # rounding alone makes it negative
    else:
        signed = None if other is None else other * side.sign()
        towards = _stabilised(towards, group.eps, signed)
    lost = None
    if not group.eps:
        empty = towards == 0
        lost = group.scale * (empty & (side != 0)).to(z.dtype)
        towards.masked_fill_(empty, torch.inf)
    if may_vanish(side):
        towards.masked_fill_(side == 0, torch.inf)
    if group.sign > 0:
        d = torch.copysign(towards, side)
    else:
        d = torch.where(side < 0, -towards, towards)
    rest = (group.eps, group.scale, group.sign)
    first = Share(terms, d, group.bias, 0.0, group.scale, 0)
    return (first, Share(following, towards, group.following_bias, *rest, follows=True)), lost


def _denominator(op: Weighing, terms: Sequence[Term], bias: Tensor | None) -> Tensor:
    first, *rest = terms
    d = op.maps[first.operand].apply(first.x, first.weight, bias)
    for term in rest:
        d = d + op.maps[term.operand].apply(term.x, term.weight)
    return d
