"""Interpolation, as a linear map with countable edges: every output reads a few taps per axis."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.maps.convolution import Triples

MAX_PAIRS = 1 << 31
"""Pairs of positions of one axis that are tried for an interpolation's taps."""

_UNITS = 1 << 22
"""Numbers that are tried at once."""


@dataclass(frozen=True)
class Taps:
    """``z[.., o] = sum over taps t of w[o, t] x[.., positions[o][t]]`` on the last axes.

    The weight has an output axis and a tap axis for every spatial axis, in turn.

    Attributes
    ----------
    positions : tuple, one entry per spatial axis, of a tuple per output of the positions it reads
        Outputs at the border read fewer.
    """

    positions: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def _n(self) -> int:
        return len(self.positions)

    def _table(self, d: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Positions of the taps of axis d, ``(outputs, taps)``, and which of them are real."""
        rows = self.positions[d]
        size = max(len(row) for row in rows)
        index = np.zeros((len(rows), size), np.int64)
        real = np.zeros((len(rows), size), bool)
        for o, row in enumerate(rows):
            index[o, : len(row)], real[o, : len(row)] = row, True
        return index, real

    @functools.cached_property
    def _real(self) -> Tensor:
        """Which entries of the weight are connections."""
        real = np.ones((), bool)
        for d in range(self._n):
            real = np.multiply.outer(real, self._table(d)[1])
        return torch.from_numpy(real)

    def _index(self, x: Sequence[int]) -> npt.NDArray[np.int64]:
        """Flat spatial position of every entry of the weight."""
        index = np.zeros((), np.int64)
        for d in range(self._n):
            index = np.add.outer(index * x[d - self._n], self._table(d)[0])
        return index

    def _at(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._index(x.shape).ravel()).to(x.device)

    def _connected(self, w: Tensor) -> Tensor:
        return w * self._real.to(w.device)

    def apply(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(N, C, *in)`` to ``(N, C, *out)``."""
        n = self._n
        read = x.flatten(-n)[..., self._at(x)].reshape(*x.shape[:-n], *w.shape)
        taps = tuple(range(read.ndim - 2 * n + 1, read.ndim, 2))
        z: Tensor = (read * self._connected(w)).sum(taps)
        return z if bias is None else z + bias

    def transpose(self, s: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Gradient in x."""
        n = self._n
        beside_taps = s.reshape(*s.shape[:-n], *(size for o in s.shape[-n:] for size in (o, 1)))
        values = (beside_taps * self._connected(w)).flatten(-2 * n)
        shape = (*s.shape[:-n], math.prod(x.shape[-n:]))
        back = s.new_zeros(shape).index_add_(-1, self._at(x), values)
        return back.reshape(*s.shape[:-n], *x.shape[-n:])

    def triples(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> Triples:
        """Neuron-level edges."""
        n = self._n
        real = np.flatnonzero(self._real.numpy().ravel())
        outputs = np.arange(math.prod(z[-n:])).reshape([k for o in z[-n:] for k in (o, 1)])
        o = np.broadcast_to(outputs, w).ravel()[real]
        i = self._index(x).ravel()[real]
        maps = np.arange(math.prod(z[:-n]))[:, None]
        return (
            (maps * math.prod(z[-n:]) + o).ravel(),
            (maps * math.prod(x[-n:]) + i).ravel(),
            np.broadcast_to(real, (len(maps), len(real))).ravel(),
        )

    def dense_edges(self, z: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...]) -> int:
        """Count the neuron-level edges."""
        per_map = math.prod(sum(len(row) for row in rows) for rows in self.positions)
        return math.prod(z[: -self._n]) * per_map


def taps(
    call: Callable[..., Tensor],
    sizes: Sequence[int],
    output_size: Sequence[int] | None,
    rest: Sequence[object],
    scales: Sequence[float] | None,
) -> tuple[Taps, Tensor]:
    """Taps and float64 weights of an interpolation, out of torch's own numbers.

    It is a product over the axes, and reproduces constants: along each axis its matrix is what
    it makes of unit vectors that are constant along the others.

    Parameters
    ----------
    call : callable
        The operation, called with x, ``output_size``, ``rest`` and ``scales``.
    sizes : sequence of int
        Spatial shape of the operand.
    """
    n = len(sizes)
    positions, weights = [], torch.ones((), dtype=torch.float64)
    for d, size in enumerate(sizes):
        # Along the other axes one position is made of one.
        outputs = (
            None if output_size is None else [output_size[d] if i == d else 1 for i in range(n)]
        )
        factors = None if scales is None else [scales[d] if i == d else 1.0 for i in range(n)]
        columns, rows, values = [], [], []
        count = math.ceil(size * scales[d]) if scales else output_size[d] if output_size else size
        if size * count > MAX_PAIRS:
            raise TraceError(
                f"an interpolation from {size:,} to {count:,} positions is too long, expected at "
                f"most {MAX_PAIRS:,} pairs of them"
            )
        step = max(1, _UNITS // max(size, count))
        for a in range(0, size, step):
            units = _units(size, a, step)
            shape = [size if axis == d else 1 for axis in range(n)]
            responses = call(units.reshape(-1, 1, *shape), outputs, *rest, factors).flatten(1)
            column, row = responses.nonzero(as_tuple=True)
            columns.append(column + a)
            rows.append(row)
            values.append(responses[column, row])
        length = responses.shape[1]
        row, column, value = torch.cat(rows), torch.cat(columns), torch.cat(values)
        order = torch.argsort(row * size + column)
        row, column, value = row[order], column[order], value[order]
        counts = torch.bincount(row, minlength=length)
        place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        table = torch.zeros(length, int(counts.max()), dtype=torch.float64)
        table[row, place] = value
        positions.append(
            tuple(tuple(part.tolist()) for part in torch.split(column, counts.tolist()))
        )
        weights = weights[..., None, None] * table
    return Taps(tuple(positions)), weights


def _units(size: int, first: int, count: int) -> Tensor:
    """Return some of all unit vectors."""
    count = min(count, size - first)
    vectors = torch.zeros(count, size, dtype=torch.float64)
    vectors[torch.arange(count), torch.arange(count) + first] = 1
    return vectors
