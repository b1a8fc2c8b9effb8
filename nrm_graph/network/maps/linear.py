"""The linear maps behind the operations that weigh their inputs.

Each map computes ``z = f(x; w)``, bilinear in the operand x and the weight w, such that every
edge's weight is one entry of w.  Rules transform x and w elementwise and need three things of
a map: ``apply``, its transpose in x, and (for tables) its gradient in w.

A weight may depend on the input (:class:`Moving`): a product of two values is bilinear, and each
factor is the weight of the other; a normalisation is linear once its spread is held constant.

Maps compute with native values (see :mod:`nrm_graph.network.ir.batch_axis`); the shapes given to
``triples`` and ``dense_edges`` are native shapes of a batch of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nrm_graph.network.ir.held_weights import HALF, large, product, transposed
from nrm_graph.network.maps.average_pooling import Window
from nrm_graph.network.maps.convolution import Convolution, Triples, output_ranges
from nrm_graph.network.maps.interpolation import Taps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt


def _numbered(shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Give every entry of a tensor its number."""
    return np.arange(math.prod(shape)).reshape(shape)


def _spread(index: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Repeat indices as broadcasting does, flat."""
    return np.ascontiguousarray(np.broadcast_to(index, shape)).ravel()


@dataclass(frozen=True)
class Dense:
    """``z = x @ w.T`` on the last axis."""

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., in)`` and ``(out, in)`` to ``(..., out)``."""
        return product(x, w, bias)

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return transposed(s, w)

    def triples(
        self,
        z: tuple[int, ...],
        x: tuple[int, ...],
        w: tuple[int, ...],
        channels: range | None = None,
        lines: range | None = None,
    ) -> Triples:
        """Neuron-level edges; of some outputs (``channels``) at some tokens (``lines``)."""
        rows = np.arange(math.prod(z[:-1])) if lines is None else np.array(lines)
        outs = np.arange(w[0]) if channels is None else np.array(channels)
        r, o, i = (a.ravel() for a in np.meshgrid(rows, outs, np.arange(w[1]), indexing="ij"))
        return r * w[0] + o, r * w[1] + i, o * w[1] + i

    def chunks(
        self,
        z: tuple[int, ...],
        x: tuple[int, ...],
        w: tuple[int, ...],
        size: int,
        whole: bool = False,
    ) -> list[tuple[range, range | None]] | None:
        """Return outputs and tokens of pieces of about ``size`` edges."""
        if whole:  # channels of tokens are no outputs of their own
            return None
        return output_ranges(w[0], math.prod(z[:-1]), self.dense_edges(z, x, w), size)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z) * w[1]


@dataclass(frozen=True)
class Scale:
    """Elementwise ``z = x * w``, with broadcasting: the operand of a sum, or a batch-norm."""

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Broadcast product."""
        return x * w if bias is None else x * w + bias

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return (s * w).sum_to_size(x.shape)

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""
        return np.arange(math.prod(z)), _spread(_numbered(x), z), _spread(_numbered(w), z)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z)


def _pairs(z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
    """Triples of a batched product: index arrays whose axes are ``(..., rows, columns, inner)``."""
    full = (*z, x[-1])
    return (
        _spread(_numbered(z)[..., None], full),
        _spread(_numbered(x)[..., :, None, :], full),
        _spread(np.swapaxes(_numbered(w), -1, -2)[..., None, :, :], full),
    )


@dataclass(frozen=True)
class Right:
    """``z = x @ w``: rows of the operand meet a matrix on their right."""

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., T, K)`` and ``(..., K, S)`` to ``(..., T, S)``."""
        return x @ w if bias is None else x @ w + bias

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return (s @ w.mT).sum_to_size(x.shape)

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""
        return _pairs(z, x, w)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z) * x[-1]


@dataclass(frozen=True)
class Left:
    """``z = w @ x``: columns of the operand meet a matrix on their left."""

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., K, S)`` and ``(..., T, K)`` to ``(..., T, S)``."""
        return w @ x if bias is None else w @ x + bias

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return (w.mT @ s).sum_to_size(x.shape)

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""

        def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
            return (*shape[:-2], shape[-1], shape[-2])

        def back(index: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
            native: npt.NDArray[np.int64] = np.swapaxes(_numbered(shape), -1, -2).ravel()[index]
            return native

        o, i, e = _pairs(turned(z), turned(x), turned(w))
        return back(o, z), back(i, x), back(e, w)

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z) * x[-2]


@dataclass(frozen=True)
class Spread:
    """``z_j = w_j sum of x_i over the set that j is in``: what normalisations subtract.

    The sets lie along ``axes``; or, with ``groups``, they are groups of neighbouring channels
    (axis 1) with all positions.
    """

    axes: tuple[int, ...]
    groups: int = 0

    def _total(self, x: Tensor) -> Tensor:
        if not self.groups:
            return x.sum(self.axes, keepdim=True).expand(x.shape)
        sets = x.reshape(x.shape[0], self.groups, -1)
        return sets.sum(-1, keepdim=True).expand(sets.shape).reshape(x.shape)

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Sum over each set, weighed at every member."""
        z = self._total(x) * w
        return z if bias is None else z + bias

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return self._total(s * w)

    def variance(self, x: Tensor) -> Tensor:
        """Variance of each set, at every member or to be broadcast to them."""
        if not self.groups:
            return x.var(self.axes, correction=0, keepdim=True)
        sets = x.reshape(x.shape[0], self.groups, -1)
        return sets.var(-1, correction=0, keepdim=True).expand(sets.shape).reshape(x.shape)

    def sets(self, x: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Give the number of the set of every neuron, flat."""
        if self.groups:
            return np.repeat(np.arange(x[0] * self.groups), math.prod(x[1:]) // self.groups)
        reduced = tuple(1 if d in self.axes else n for d, n in enumerate(x))
        return _spread(_numbered(reduced), x)

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""
        sets = self.sets(x)
        members = np.argsort(sets, kind="stable").reshape(int(sets.max(initial=-1)) + 1, -1)
        size = members.shape[1]
        o = np.repeat(members, size, axis=1).ravel()
        i = np.tile(members, (1, size)).ravel()
        return o, i, _spread(_numbered(w), z)[o]

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        size = (
            math.prod(x[1:]) // self.groups if self.groups else math.prod(x[d] for d in self.axes)
        )
        return math.prod(z) * size


MAX_JACOBIAN = 1 << 26
"""Entries of a Jacobian that fit in memory."""


@dataclass(frozen=True)
class Jacobian:
    """``z = w x`` with a matrix for every sample: the first-order expansion of any operation.

    Attributes
    ----------
    z : tuple of int
        Native shape of the output, for a batch of one.
    """

    z: tuple[int, ...]

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(N, ...)`` and ``(N or 1, outputs, operands)`` to the output."""
        z = (w @ x.flatten(1)[..., None]).reshape(len(x), *self.z[1:])
        return z if bias is None else z + bias

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        return (w.mT @ s.flatten(1)[..., None]).reshape(len(s), *x.shape[1:])

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""
        edges = np.arange(math.prod(z) * math.prod(x))
        o, i = np.divmod(edges, math.prod(x))
        return o, i, edges

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        return math.prod(z) * math.prod(x)


Map = Convolution | Dense | Scale | Window | Taps | Left | Right | Spread | Jacobian


def same(x: Tensor) -> Tensor:
    """Return x."""
    return x


@dataclass(frozen=True, eq=False)
class Moving:
    """A weight or bias that depends on the input.

    Attributes
    ----------
    reads : tuple of str
        Values that it is made from.
    make : callable
        Makes it from their native tensors and from constants of the network.
    like : str
        A value that keeps its batch where the weight does.
    constants : tuple of Tensor
        Further arguments of ``make``.
    factor : float
        Multiplies what ``make`` gives: operands that share ``make`` share one evaluation.
    """

    reads: tuple[str, ...]
    make: Callable[..., Tensor]
    like: str
    constants: tuple[Tensor, ...] = ()
    factor: float = 1.0

    def at(self, values: Mapping[str, Any], like: Tensor) -> Tensor:
        """Return the tensor for one batch, without the factor."""
        constants = [c.to(like.device, like.dtype) for c in self.constants]
        return self.make(*[values[name] for name in self.reads], *constants)


@dataclass(frozen=True, eq=False)
class Weighing:
    """An operation that weighs its inputs: ``z = sum_k maps[k](x_k; w_k) + bias``.

    A product of two values is half of it with one as the operand, and half with the other.  (Of a
    softmax, which is not linear, maps and weights are those of its rule.)

    Attributes
    ----------
    kind : str
        Kind of the layer it makes.
    operands : tuple of str
        Values read; one may stand twice, with different maps.
    maps, weights : tuples, one entry per operand
        A weight of ``None`` is the number 1.
    bias : Tensor, Moving or None
        Broadcastable to z.
    """

    kind: str
    operands: tuple[str, ...]
    maps: tuple[Map, ...]
    weights: tuple[Tensor | Moving | None, ...]
    bias: Tensor | Moving | None

    @property
    def moving(self) -> bool:
        """Whether a weight depends on the input."""
        return any(isinstance(w, Moving) for w in (*self.weights, self.bias))

    @property
    def narrow(self) -> bool:
        """Whether a weight is held in half precision, and read in another."""
        return any(isinstance(w, Tensor) and w.dtype in HALF for w in self.weights)

    def like(self, k: int) -> str | None:
        """Value that keeps its batch where the weight of operand k does; None for constants."""
        weight = self.weights[k]
        return weight.like if isinstance(weight, Moving) else None

    def resolved(self, like: Tensor, values: Mapping[str, Any], as_held: bool = False) -> Weighing:
        """Give every weight its value, and all tensors the dtype and device of ``like``.

        ``as_held`` leaves large matrices in half precision, which :class:`Dense` takes as well.
        """
        evaluated: dict[tuple[Callable[..., Tensor], tuple[str, ...]], Tensor] = {}

        def one(weight: Tensor | Moving) -> Tensor:
            if not isinstance(weight, Moving):
                kept = as_held and isinstance(self.maps[0], Dense) and large(weight)
                return weight.to(like.device, None if kept else like.dtype)
            key = weight.make, weight.reads
            if key not in evaluated:
                evaluated[key] = weight.at(values, like)
            return evaluated[key] if weight.factor == 1.0 else evaluated[key] * weight.factor

        unit = torch.ones((), dtype=like.dtype, device=like.device)
        weights = tuple(unit if w is None else one(w) for w in self.weights)
        return replace(self, weights=weights, bias=None if self.bias is None else one(self.bias))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Weights of a resolved operation."""
        return tuple(w for w in self.weights if isinstance(w, Tensor))

    @property
    def shift(self) -> Tensor | None:
        """Bias of a resolved operation."""
        return self.bias if isinstance(self.bias, Tensor) else None

    def dense_edges(self, k: int, z: tuple[int, ...], x: tuple[int, ...]) -> int:
        """Count the neuron-level edges to operand k."""
        if isinstance(self.maps[k], Scale) and any(isinstance(m, Spread) for m in self.maps):
            return 0  # a norm's or softmax's set holds the neuron itself
        weight = self.weights[k]
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        return self.maps[k].dense_edges(z, x, shape)
