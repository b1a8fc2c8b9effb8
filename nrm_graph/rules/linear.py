"""Rules for operations that are linear in what they read; names and parameters are zennit's.

x+ = max(x, 0), x- = min(x, 0), the same for weights w and biases b.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from nrm_graph.errors import CompositeError
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.network.maps.linear import Dense, same
from nrm_graph.rules.base import Group, Part, Rule, Signs, may_vanish

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nrm_graph.network.maps.linear import Weighing

    Bound = float | tuple[float, ...]
    """A bound of inputs: one for all, or one for every channel."""


def _bias(op: Weighing, zero_params: str | None = None) -> Tensor | None:
    return None if zero_params == "bias" else op.shift


def _plus(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def _minus(x: Tensor) -> Tensor:
    return x.clamp(max=0)


def _positive(signs: Signs, k: int) -> Callable[[Tensor], Tensor]:
    return same if signs.non_negative[k] else _plus


def _agreeing(op: Weighing, signs: Signs, agree: bool = True) -> tuple[Part, ...]:
    """Parts whose products are all positive (``agree``) or all negative."""
    parts = []
    for k, w in enumerate(op.tensors):
        same, other = (_plus(w), _minus(w)) if agree else (_minus(w), _plus(w))
        parts.append(Part(k, _positive(signs, k), same))
        if not signs.non_negative[k]:
            parts.append(Part(k, _minus, other))
    return tuple(parts)


class Checked(Rule):
    """A rule whose parameters are numbers, and ``zero_params``."""

    def __post_init__(self) -> None:
        """Refuse parameters that would give wrong numbers, or be passed over in silence."""
        for name, value in vars(self).items():
            least = " of at least 0" if name in _NON_NEGATIVE else ""
            if name == "zero_params":
                fits, expected = value in (None, "bias"), "None or 'bias'"
            else:
                numbers = value if isinstance(value, tuple) else (value,)
                fits = all(math.isfinite(v) and not (least and v < 0) for v in numbers)
                expected = f"a finite number{least}"
            if not fits:
                raise CompositeError(
                    f"{type(self).__name__}: {name} must be {expected}, found {value!r}"
                )


_NON_NEGATIVE = ("epsilon", "stabilizer", "gamma")


@dataclass(frozen=True)
class Epsilon(Checked):
    """``n = x w``, ``d = sum + b`` (Bach et al. 2015)."""

    own_weights: ClassVar[bool] = True

    epsilon: float = 1e-6
    zero_params: str | None = None

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        parts = tuple(Part(k, same, w) for k, w in enumerate(op.tensors))
        bias = _bias(op, self.zero_params)
        return (Group(parts, bias, self.epsilon, plain=bias is op.bias),)


@dataclass(frozen=True)
class Norm(Checked):
    """Epsilon for operations without parameters (sums, averages)."""

    stabilizer: float = 1e-6

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        return Epsilon(self.stabilizer).groups(op, signs)


@dataclass(frozen=True)
class Gamma(Checked):
    """Generalised gamma: the sign of z chooses which weights are favoured.

    Where z > 0: ``x+ (w + g w+) + x- (w + g w-)`` over ``sum + b + g b+``; where z < 0 the
    roles of w+ and w- change, over ``sum + b + g b-``; where z = 0 all goes to the stabilizer
    (Montavon et al. 2019; Andeol et al. 2021).
    """

    gamma: float = 0.25
    stabilizer: float = 1e-6
    zero_params: str | None = None

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        bias = _bias(op, self.zero_params)
        # d is z and more of the same sign, unless the bias is left out of d.
        sign = 1 if bias is op.bias else 0
        operands = list(enumerate(op.tensors))
        if signs.silent and all(signs.non_negative):  # where z is not positive, nothing arrives
            parts = tuple(Part(k, same, w + self.gamma * _plus(w)) for k, w in operands)
            b = None if bias is None else bias + self.gamma * _plus(bias)
            return (Group(parts, b, self.stabilizer, sign=sign),)
        # x+ w+ and x- w- are the positive part of x w, which is half of x w + |x w|: all over
        # 1 + g / 2, it is x w and, with the sign of z, a share of |x| |w|.
        share = self.gamma / (2 + self.gamma)
        following = tuple(
            Part(k, same if signs.non_negative[k] else torch.abs, share * w.abs())
            for k, w in operands
        )
        group = Group(
            tuple(Part(k, same, w) for k, w in operands),
            bias,
            self.stabilizer / (1 + self.gamma / 2),
            plain=bias is op.bias and op.kind != "softmax",
            sign=sign,
            following=following,
            following_bias=None if bias is None else share * bias.abs(),
        )
        return (group,)

    def unplaced(self, z: Tensor, signs: Signs) -> Tensor | None:
        """See :meth:`Rule.unplaced`."""
        if signs.silent or (self.stabilizer and not may_vanish(z)):
            return None
        return (z == 0).to(z.dtype)


@dataclass(frozen=True)
class ZPlus(Checked):
    """``n = x+ w+ + x- w-``, ``d = sum + b+``; excitation backprop with ``zero_params="bias"``."""

    stabilizer: float = 1e-6
    zero_params: str | None = None

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        bias = _bias(op, self.zero_params)
        up = None if bias is None else _plus(bias)
        return (Group(_agreeing(op, signs), up, self.stabilizer, sign=1),)


@dataclass(frozen=True)
class AlphaBeta(Checked):
    """``alpha`` times the positive part minus ``beta`` times the negative part, each normalised.

    ``alpha - beta`` must be 1.  Where a part is empty its share has no place and belongs to
    the stabilizer.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-6
    zero_params: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0 or self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-12:
            raise CompositeError(
                f"AlphaBeta needs alpha, beta >= 0 and alpha - beta = 1, found alpha="
                f"{self.alpha}, beta={self.beta}"
            )

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        bias = _bias(op, self.zero_params)
        up = None if bias is None else _plus(bias)
        groups = [Group(_agreeing(op, signs), up, self.stabilizer, self.alpha, sign=1)]
        if self.beta:
            down = None if bias is None else _minus(bias)
            parts = _agreeing(op, signs, agree=False)
            # An empty part has d = 0, whose sign counts as positive: no sign for all.
            groups.append(Group(parts, down, self.stabilizer, -self.beta))
        return tuple(groups)


@dataclass(frozen=True)
class ZBox(Checked):
    """``n = x w - low w+ - high w-``, ``d = sum``: for inputs bounded by ``low`` and ``high``.

    The bias cancels.  Padding positions have no bounds and contribute nothing.

    Attributes
    ----------
    low, high : float, or sequence of float
        Bounds of all inputs, or one for each channel that a convolution reads (each feature of a
        dense layer), the same at all positions; arrays such as zennit's of shape (1, 3, 1, 1) do.
    """

    proportional: ClassVar[bool] = False
    per_channel: ClassVar[tuple[str, ...]] = ("low", "high")

    low: Bound = 0.0
    high: Bound = 1.0
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse bounds that are none."""
        for name in ("low", "high"):
            object.__setattr__(self, name, per_channel(name, getattr(self, name)))
        super().__post_init__()
        lows, highs = np.atleast_1d(self.low), np.atleast_1d(self.high)
        if isinstance(self.low, tuple) and isinstance(self.high, tuple) and len(lows) != len(highs):
            raise CompositeError(
                f"ZBox: low is of {len(lows)} channels and high of {len(highs)}: give as many of "
                "both, or one number for all"
            )
        reversed_at = np.flatnonzero(lows > highs)
        if len(reversed_at):
            c = reversed_at[0]
            low, high = (float(bounds[c % len(bounds)]) for bounds in (lows, highs))
            where = f" in channel {c}" if max(len(lows), len(highs)) > 1 else ""
            raise CompositeError(
                f"ZBox: low must not be above high, found low={low:g} and high={high:g}{where}"
            )

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        parts = []
        for k, w in enumerate(op.tensors):
            parts.append(Part(k, same, w))
            for bound, half in ((self.low, _plus), (self.high, _minus)):
                if bound:  # a bound of 0 gives nothing
                    fill: Callable[[Tensor], Tensor]
                    if isinstance(bound, tuple):
                        fill = _of_channels(op, k, bound)
                    else:
                        fill = partial(torch.full_like, fill_value=bound)
                    parts.append(Part(k, fill, -half(w)))
        return (Group(tuple(parts), None, self.stabilizer),)


def per_channel(name: str, bound: object) -> Bound:
    """Return a bound of ZBox as a number, or as one number for every channel.

    Raises
    ------
    CompositeError
        If it is neither.
    """
    refusal = CompositeError(
        f"ZBox: {name} must be a number, or one for every channel, found {reprlib.repr(bound)}"
    )
    try:
        values = np.asarray(bound.detach().cpu() if isinstance(bound, torch.Tensor) else bound)
        numeric = values.dtype.kind in "iuf"
    except (TypeError, ValueError, RuntimeError):
        raise refusal from None
    if not numeric or not values.size or values.size != max(values.shape, default=1):
        raise refusal
    if not values.ndim:
        return bound if isinstance(bound, int | float) else float(values)
    return tuple(map(float, values.ravel()))


def _of_channels(op: Weighing, k: int, bound: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """Make of an operand its bounds, which differ by channel."""
    if not isinstance(op.maps[k], Convolution | Dense):
        raise CompositeError(
            "ZBox with bounds per channel needs a convolution or nn.Linear, found another "
            f"operation ({op.kind}): give it one number for low and one for high"
        )
    inner = op.tensors[k].ndim - 2  # axes behind the channels: none of a dense layer

    def filled(x: Tensor) -> Tensor:
        channels = x.shape[-1 - inner]
        if len(bound) != channels:
            raise CompositeError(
                f"ZBox: the layer reads {channels} channels, found bounds of {len(bound)}: "
                f"give {channels}, or one number for all"
            )
        values = torch.tensor(bound, dtype=x.dtype, device=x.device)
        return torch.empty_like(x).copy_(values.view(-1, *[1] * inner))

    return filled


@dataclass(frozen=True)
class WSquare(Checked):
    """``n = w^2``, ``d = sum + b^2``."""

    proportional: ClassVar[bool] = False

    stabilizer: float = 1e-6
    zero_params: str | None = None

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        parts = tuple(Part(k, torch.ones_like, w.square()) for k, w in enumerate(op.tensors))
        bias = _bias(op, self.zero_params)
        return (Group(parts, None if bias is None else bias.square(), self.stabilizer, sign=1),)


@dataclass(frozen=True)
class Flat(Checked):
    """``n = 1``, ``d = fan-in``: every real position alike, padding left out."""

    proportional: ClassVar[bool] = False

    stabilizer: float = 1e-6

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        parts = tuple(
            Part(k, torch.ones_like, torch.ones_like(w)) for k, w in enumerate(op.tensors)
        )
        return (Group(parts, None, self.stabilizer),)
