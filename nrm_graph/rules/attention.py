"""Rules for products of values and for the softmax, as transformers and gates have them.

Each factor of a product is the other's weight (:mod:`nrm_graph.network.maps.linear`), halved, so
that :class:`~nrm_graph.rules.linear.Epsilon` gives ``n / (2 z)`` to each: AttnLRP's rule for the
products of attention (Achtibat et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from nrm_graph.errors import CompositeError
from nrm_graph.network.maps.linear import Scale, same
from nrm_graph.rules.base import Group, Part, Rule, Signs
from nrm_graph.rules.linear import Checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nrm_graph.network.maps.linear import Weighing


PRODUCTS = ("product", "attention", "gate", "multiplication")
"""Kinds of layers that multiply two values."""


@dataclass(frozen=True)
class Uniform(Rule):
    """Each of K operands of an elementwise operation gets R / K (Achtibat et al. 2024)."""

    proportional: ClassVar[bool] = False

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        if not all(isinstance(kind, Scale) for kind in op.maps):
            raise CompositeError(
                f"{type(self).__name__} needs an elementwise operation, found a {op.kind}"
            )
        like = op.tensors[0]
        share = torch.full((), 1 / len(op.maps), dtype=like.dtype, device=like.device)
        parts = tuple(Part(k, torch.ones_like, share) for k in range(len(op.maps)))
        # Where constants are left out, what is left shares all.
        return (Group(parts, None, 0.0, unit=not signs.ignoring),)


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance goes through unchanged: only for elementwise operations with one operand."""

    proportional: ClassVar[bool] = False

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        if len(op.tensors) != 1 or not isinstance(op.maps[0], Scale):
            raise CompositeError(
                f"Pass needs an elementwise operation with one operand, found a {op.kind} with "
                f"{len(op.tensors)}"
            )
        return Uniform().groups(op, signs)


@dataclass(frozen=True)
class Hold(Checked):
    """One factor of a product is held constant: all goes to the other (CP-LRP, Ali et al. 2022).

    ``n = x w`` and ``d = z``, the held factor being the weight.

    Attributes
    ----------
    operand : int
        Number of the factor that is held: 0 for the attention weights of a mix (weights, values),
        1 for the gate of a product (signal, gate).
    """

    operand: int = 1
    epsilon: float = 1e-6

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        if op.kind not in PRODUCTS or self.operand not in (0, 1):
            raise CompositeError(
                f"Hold needs a product of two values and operand 0 or 1, found operand "
                f"{self.operand} of a {op.kind}"
            )
        free = 1 - self.operand
        # Of z = x w / 2 + w x / 2 the free factor's half is all there is.
        part = Part(free, same, 2 * op.tensors[free])
        # Left-out constants are in only one of the halves.
        return (Group((part,), op.shift, self.epsilon, plain=not signs.ignoring),)


@dataclass(frozen=True)
class Softmax(Rule):
    """``q(i|j) = x_i (delta_ij - s_i)`` for s = softmax(x) (Achtibat et al. 2024).

    A first-order Taylor expansion; masked scores count as 0.  Its columns sum to
    ``x_j - sum_i s_i x_i``: what that lacks to 1 goes to the pseudo-neuron ``remainder``.
    """

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        """See :meth:`Rule.groups`."""
        if op.kind != "softmax":
            raise CompositeError(f"the rule Softmax is for a softmax, found a {op.kind}")
        one, shares = op.tensors

        def weighed(x: Tensor) -> Tensor:
            return _visible(x) * shares

        return (Group((Part(0, _visible, one), Part(1, weighed, -one)), None, 0.0, unit=True),)

    def remainder(self, op: Weighing, xs: Sequence[Tensor], z: Tensor) -> Tensor:
        """See :meth:`Rule.remainder`."""
        x = _visible(xs[0])
        mean = op.maps[1].apply(x * z, op.tensors[0])
        return 1 - x + mean


def _visible(x: Tensor) -> Tensor:
    """Scores, 0 where they are masked: by -inf, or by the least number of float32 or less."""
    return x.masked_fill(x <= torch.finfo(torch.float32).min, 0.0)
