"""Best completions through a whole operation at once: products of matrices in max-plus algebra.

Where every step of a convolution or dense layer is one product x' w' factor, the best completion
of a neuron is log |factor| + max over taps and channels of (log |w'| + log |x'| + best below), with
the signs of the three turning the largest product into the most negative one.  That reads each
edge too, but makes no list of edges: some twenty times faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from nrm_graph.measures.kernel_edges import origins
from nrm_graph.measures.paths.sliced_convolution import sliceable
from nrm_graph.network.maps.linear import Dense
from nrm_graph.propagation.kernels import kernel_of

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.maps.convolution import Convolution
    from nrm_graph.propagation.state import State

AT_ONCE = 1 << 20
"""Sums that are compared at once: what a processor's cache holds."""


def applies(state: State, layer_id: int) -> bool:
    """Whether all steps from a layer are single products, each to a neuron of its own."""
    net = state.network
    name = net.values[layer_id]
    op = net.layout.weighings.get(name)
    if op is None or len(op.maps) > 1:
        return False
    kind, operand, batches = op.maps[0], op.operands[0], net.layout.batches
    if not (batches[name].plain and batches[operand].plain):
        return False
    if not (sliceable(kind) or (isinstance(kind, Dense) and state.values[name].ndim == 2)):
        return False
    shares = kernel_of(state, name).apart()
    if any(len(share.terms) > 1 for share in shares):
        return False
    serving: Any = sum((share.factor != 0).to(torch.int8) for share in shares)
    if not shares or int(serving.max()) > 1:
        return False
    places = origins(state, operand)
    return int(np.bincount(places[places >= 0]).max(initial=0)) <= 1


def best(
    state: State, layer_id: int, below: npt.NDArray[np.float64], first: int
) -> npt.NDArray[np.float64]:
    """Best completion of every neuron of a layer, over steps to neurons.

    Parameters
    ----------
    state : State
        Activations of one input.
    layer_id : int
        A layer that :func:`applies`.
    below : ndarray, (2, neurons)
        log2 of the largest completion of each sign, of all neurons below.
    first : int
        Neurons before this one may not be stepped to.

    Returns
    -------
    ndarray, (2, n)
    """
    net = state.network
    name = net.values[layer_id]
    op, z = net.layout.weighings[name], state.values[name]
    places = origins(state, op.operands[0])
    ahead = np.where(places >= first, below[:, np.maximum(places, 0)], -np.inf)
    onward = torch.from_numpy(ahead).to(z.device, z.dtype)
    total = z.new_full((2, z.numel()), -torch.inf)
    for share in kernel_of(state, name).apart():
        ((_, x, weight),) = share.terms
        turned = _turned(onward.reshape(2, *x.shape[1:]), x[0])
        if isinstance(op.maps[0], Dense):
            onwards = _product(weight, turned[..., None])
        else:
            onwards = _convolved(op.maps[0], weight, turned, z.shape[2:])  # type: ignore[arg-type]
        factor = share.factor.expand_as(z).flatten()
        total = torch.maximum(total, _turned(onwards.reshape(2, -1), factor))
    return total.cpu().double().numpy()  # type: ignore[no-any-return]


def _turned(best: Tensor, q: Tensor) -> Tensor:
    """Multiply ``(2, ...)`` by signed numbers: add their logarithms, swap where negative."""
    return torch.where(q < 0, best.flip(0), best) + q.abs().log2()


def _convolved(kind: Convolution, w: Tensor, x: Tensor, size: tuple[int, ...]) -> Tensor:
    x = F.pad(x, [kind.padding[1]] * 2 + [kind.padding[0]] * 2, value=-torch.inf)
    spans = [(n - 1) * s + 1 for n, s in zip(size, kind.stride, strict=True)]
    largest: Tensor | None = None
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            down, right = i * kind.dilation[0], j * kind.dilation[1]
            rows = slice(down, down + spans[0], kind.stride[0])
            columns = slice(right, right + spans[1], kind.stride[1])
            part = _product(w[:, :, i, j], x[:, :, rows, columns].flatten(2))
            largest = part if largest is None else torch.maximum(largest, part)
    assert largest is not None
    return largest


def _product(w: Tensor, x: Tensor) -> Tensor:
    """Max-plus product of ``(O, C)`` signed weights and ``(2, C, L)``: ``(2, O, L)``."""
    size = w.abs().log2()
    # Positive weights keep the sign, negative ones swap it: a row for each.
    nothing = torch.full_like(size, -torch.inf)
    rows = torch.cat([torch.where(w > 0, size, nothing), torch.where(w < 0, size, nothing)], 1)
    columns = torch.cat([torch.cat([x[0], x[1]]), torch.cat([x[1], x[0]])], 1)
    product = x.new_empty(len(w), columns.shape[1])
    wide = min(columns.shape[1], 4096)
    high = max(1, AT_ONCE // (rows.shape[1] * wide))
    for a in range(0, len(w), high):
        for b in range(0, columns.shape[1], wide):
            sums = rows[a : a + high, :, None] + columns[None, :, b : b + wide]
            torch.amax(sums, 1, out=product[a : a + high, b : b + wide])
    return product.reshape(len(w), 2, -1).transpose(0, 1)
