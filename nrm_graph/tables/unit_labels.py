"""Which unit every element of every value was selected from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.network.ir.held_weights import on_device
from nrm_graph.network.ir.interpreter import resolve
from nrm_graph.network.ir.operations import MAX_POOL
from nrm_graph.network.units import compact
from nrm_graph.propagation.forward import max_pool
from nrm_graph.propagation.routing import carry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network

    Labels = npt.NDArray[np.signedinteger[Any]]
    """Unit of every element."""


def offsets(partitions: Sequence[Partition]) -> Labels:
    """First global unit of every layer, and the number of all units."""
    return np.concatenate([[0], np.cumsum([part.n_units for part in partitions])])


def unit_labels(
    net: Network, partitions: Sequence[Partition], winners: Mapping[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """For every value, the global unit that each element was selected from; -1 for constants.

    Parameters
    ----------
    winners : dict of str to Tensor, or None
        Max-pool selections of one sample.  With None, the answer is None if a pool selects
        between units (so that labels depend on the input).

    Returns
    -------
    dict of str to Tensor
        float64, native values of a batch of one; exact for fewer than 2^53 units.  Along axes that
        units do not tell apart they are views that repeat their numbers.
    """
    first = offsets(partitions)
    native, batches = net.program.native_shapes(), net.layout.batches
    labels: dict[str, Any] = {}
    selected = {name: index.cpu() for name, index in (winners or {}).items()}
    weights = on_device(net.program.weights, "cpu")

    def of_layer(name: str) -> Tensor:
        i = net.layout.layer_of[name]
        units = partitions[i].labels
        numbers = torch.from_numpy(compact(units).astype(np.float64)) + float(first[i])
        return batches[name].native(numbers.expand(units.shape)[None])

    for name, _ in net.program.inputs:
        if name in net.layout.layer_of:
            labels[name] = of_layer(name)
    for node in net.program.nodes:
        if node.name in net.passive:
            continue
        references = list(node.references())
        if node.name in net.layout.layer_of:
            labels[node.name] = of_layer(node.name)
        elif not references:
            labels[node.name] = torch.full(native[node.name], -1.0, dtype=torch.float64)
        elif node.op in MAX_POOL and winners is None:
            source, args = labels[references[0]], resolve(node.args[1:], {}, {}, 1)
            spatial = MAX_POOL[node.op]
            if not any(source.stride()[-spatial:]):  # one unit, whatever is selected
                one = source[(..., *[slice(0, 1)] * spatial)]
                labels[node.name] = one.expand(native[node.name])
                continue
            high = max_pool(node.op, [source, *args])[0]
            if not torch.equal(high, -max_pool(node.op, [-source, *args])[0]):
                return None
            labels[node.name] = high
        else:
            labels[node.name] = carry(
                node, labels.__getitem__, selected, weights, native[node.name], 1, -1.0
            )
    return labels
