"""Which unit every element of every value was selected from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph import states
from nrm_graph.operations import MAX_POOL, SAME, function
from nrm_graph.program import Batch, Ref, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from nrm_graph.states import Network
    from nrm_graph.units import Partition


def offsets(partitions: Sequence[Partition]) -> Any:
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
        float64, native values of a batch of one; exact for fewer than 2^53 units.
    """
    first = offsets(partitions)
    native, batches = net.program.native_shapes(), net.layout.batches
    labels: dict[str, Tensor] = {}

    def of_layer(name: str) -> Tensor:
        i = net.layout.layer_of[name]
        own = torch.from_numpy(partitions[i].labels.astype(np.float64) + first[i])
        return batches[name].native(own[None])

    def argument(value: Any) -> Any:
        if isinstance(value, Ref):
            return labels[value.name]
        if isinstance(value, Weight):
            return torch.full_like(
                net.program.weights[value.name], -1.0, dtype=torch.float64, device="cpu"
            )
        if isinstance(value, Batch):
            return value.scale + value.offset
        if isinstance(value, tuple):
            return [argument(v) for v in value]
        return value

    for name, _ in net.program.inputs:
        labels[name] = of_layer(name)
    for node in net.program.nodes:
        references = list(node.references())
        if node.name in net.layout.layer_of:
            labels[node.name] = of_layer(node.name)
        elif not references:
            labels[node.name] = torch.full(native[node.name], -1.0, dtype=torch.float64)
        elif node.op in SAME:
            labels[node.name] = labels[references[0]].expand(native[node.name])
        elif node.op in MAX_POOL:
            source, args = labels[references[0]], [argument(a) for a in node.args[1:]]
            high = states.max_pool(node.op, [source, *args])[0]
            low = -states.max_pool(node.op, [-source, *args])[0]
            if not torch.equal(high, low):
                if winners is None:
                    return None
                spatial = MAX_POOL[node.op]
                index = winners[node.name].cpu().flatten(-spatial)
                high = source.flatten(-spatial).gather(-1, index).reshape(high.shape)
            labels[node.name] = high
        elif node.op == "aten.masked_fill.Scalar":
            mask = net.program.weights[node.args[1].name].cpu()
            labels[node.name] = labels[references[0]].masked_fill(mask, -1.0)
        elif node.op in ("aten.pad.default", "aten.constant_pad_nd.default") and (
            len(node.args) < 3
            or node.args[2] in ("constant", None)
            or node.op != "aten.pad.default"
        ):
            source = labels[references[0]]
            labels[node.name] = torch.nn.functional.pad(source, list(node.args[1]), value=-1.0)
        else:
            kwargs = {k: argument(v) for k, v in node.kwargs}
            labels[node.name] = function(node.op)(*[argument(a) for a in node.args], **kwargs)
    return labels
