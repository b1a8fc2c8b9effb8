"""Running a network with some of its units, or some of its edges, ablated.

A *unit* is ablated where the rest of the network reads it: after the activations that it alone
feeds.  Its neurons get a baseline, zero or their mean over a reference set, and everything below
the output is computed on from there.

An *edge* is ablated for its reader alone: the unit ``dst`` is computed again from operands in
which the neurons of ``src`` have the baseline, through whatever selects in between (pooling,
flattening), and every other unit sees what it saw.  Of a linear map this subtracts
``W[dst, src] (a[src] - baseline)``; of a softmax, a norm or a product it is what the operation
gives without that operand.  Ablating all edges that leave a unit is ablating the unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.network.ir.interpreter import resolve
from nrm_graph.network.ir.operations import function

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.network.ir.program import Node
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network

Change = Callable[[str, Any, Mapping[str, Any]], Any]
"""Takes a value's name, the value and all values before it; gives what is to stand there."""

Baselines = Mapping[int, "Tensor"] | None
"""By layer, of the layer's shape; None for zero."""

UnitsByLayer = Mapping[int, "Collection[int]"]
"""Units to ablate, by layer."""

EdgesByPair = Mapping[tuple[int, int], Mapping[int, frozenset[int]]]
"""Source units to ablate, by (dst layer, src layer) and dst unit."""


def place_of(net: Network, layer_id: int) -> str:
    """Value at which a layer is ablated: the last one that holds its neurons for all readers.

    Raises
    ------
    InputError
        If no operation computes the layer: the network returns a selection of others.
    """
    name = net.values[layer_id]
    info = net.layout.topology.layers[layer_id]
    if name == "output" and name in net.layout.weighings:
        raise InputError(
            f"the units of {info.name} cannot be ablated: the layer is a selection of others that "
            "the network returns; ablate those"
        )
    after = net.layout.activation[name]
    shapes = net.program.shapes()
    return after if shapes[after] == shapes[name] else name


def execute(
    net: Network, xs: Sequence[Tensor], change: Change | None = None, keep: bool = False
) -> dict[str, Any]:
    """Run a network on a batch.

    Parameters
    ----------
    net : Network
        The network.
    xs : sequence of Tensor, (N, ...)
        Its inputs, in order.
    change : callable, optional
        Called after every value; what it gives takes the value's place.
    keep : bool
        Keep all values; else a value is dropped after its last reader, all but the output.

    Returns
    -------
    dict of str to Tensor
        Native values.
    """
    program = net.program
    last = {name: node.name for node in program.nodes for name in node.references()}
    last[program.output] = ""
    values: dict[str, Any] = {}
    n = xs[0].shape[0]

    def put(name: str, value: Any) -> None:
        values[name] = value if change is None else change(name, value, values)

    for (name, _), x in zip(program.inputs, xs, strict=True):
        put(name, x)
    for node in program.nodes:
        put(node.name, _evaluated(net, node, values, n))
        if not keep:
            for name in dict.fromkeys(node.references()):
                if last[name] == node.name:
                    del values[name]
    return values


def _evaluated(net: Network, node: Node, values: Mapping[str, Any], n: int) -> Any:
    args = resolve(node.args, values, net.program.weights, n)
    kwargs = {k: resolve(v, values, net.program.weights, n) for k, v in node.kwargs}
    return function(node.op)(*args, **kwargs)


def outputs(net: Network, values: Mapping[str, Any]) -> Tensor:
    """Network output ``(N, outputs)`` among the values of a run."""
    name = net.program.output
    output = net.layout.batches[name].samples(values[name])
    return output.reshape(output.shape[0], -1)


@dataclass(frozen=True)
class Ablation:
    """A network whose parts can be ablated.

    Attributes
    ----------
    net : Network
        The network.
    partitions : tuple of Partition
        Units of every layer.
    baselines : mapping of int to Tensor, or None
        What ablated neurons get, by layer, of the layer's shape; None for zero.
    factor : float
        What they keep of their difference from it.
    """

    net: Network
    partitions: tuple[Partition, ...]
    baselines: Baselines = None
    factor: float = 0.0

    @torch.no_grad()
    def without_units(self, xs: Sequence[Tensor], units: UnitsByLayer) -> Tensor:
        """Output ``(N, outputs)`` with units ablated.

        Raises
        ------
        InputError
            If a layer cannot be ablated.
        """
        at = {place_of(self.net, layer): layer for layer, chosen in units.items() if chosen}
        masks = {layer: self._mask(layer, units[layer]) for layer in at.values()}

        def change(name: str, value: Any, values: Mapping[str, Any]) -> Any:
            layer = at.get(name)
            return value if layer is None else self._ablated(layer, name, value, masks[layer])

        return outputs(self.net, execute(self.net, xs, change))

    @torch.no_grad()
    def without_edges(self, xs: Sequence[Tensor], edges: EdgesByPair) -> Tensor:
        """Output ``(N, outputs)`` with edges ablated.

        Raises
        ------
        InputError
            If a pair of layers has no edges.
        """
        by_reader: dict[int, dict[int, Mapping[int, frozenset[int]]]] = defaultdict(dict)
        topology = self.net.layout.topology
        for (dst, src), chosen in edges.items():
            if src not in topology.sources(dst):
                names = topology.layers[dst].name, topology.layers[src].name
                raise InputError(f"the layer {names[0]} does not read {names[1]} directly")
            if any(chosen.values()):
                by_reader[dst][src] = chosen
        at = {self._made(dst): self._reader(dst, srcs) for dst, srcs in by_reader.items()}
        n = xs[0].shape[0]

        def change(name: str, value: Any, values: Mapping[str, Any]) -> Any:
            return value if name not in at else at[name](value, values, n)

        return outputs(self.net, execute(self.net, xs, change, keep=True))

    def _made(self, layer_id: int) -> str:
        """Value that holds a reader's neurons first."""
        name = self.net.values[layer_id]
        # What the network returns may be a selection, which is a layer of its own.
        return self.net.program.output if name == "output" else name

    def _mask(self, layer_id: int, units: Collection[int]) -> Tensor:
        part = self.partitions[layer_id]
        chosen = np.zeros(part.n_units, bool)
        chosen[np.fromiter(units, np.int64, len(units))] = True
        return self._tensor(chosen[part.labels])

    def _tensor(self, mask: npt.NDArray[np.bool_]) -> Tensor:
        output = self.net.program.weights
        device = next((w.device for w in output.values()), torch.device("cpu"))
        return torch.from_numpy(np.ascontiguousarray(mask).reshape(mask.shape)).to(device)

    def _ablated(self, layer_id: int, name: str, native: Tensor, mask: Tensor) -> Tensor:
        """Give the neurons of a mask their baseline, in a value laid out like ``name``."""
        batch = self.net.layout.batches[name]
        value = batch.samples(native)
        mask = mask.expand(value.shape)
        if name in self.net.unbounded:  # what a mask hides stays hidden
            mask = mask & value.isfinite()
        if self.baselines is None and not self.factor:
            return batch.native(value.masked_fill(mask, 0))
        base = torch.zeros((), dtype=value.dtype, device=value.device)
        if self.baselines is not None:
            base = self.baselines[layer_id].to(value.dtype)
        if self.factor:
            base = base + self.factor * (value - base)
        return batch.native(torch.where(mask, base, value))

    def _reader(self, dst: int, sources: Mapping[int, Mapping[int, frozenset[int]]]) -> Any:
        """Prepare the ablation of edges that enter one layer."""
        places = {src: place_of(self.net, src) for src in sources}
        between = self._between(dst, tuple(places.values()))
        # Units that lack the same sources are computed at once.
        alike: dict[Any, list[int]] = defaultdict(list)
        for unit in sorted({unit for chosen in sources.values() for unit in chosen}):
            lacks = tuple(
                (src, cut_units.get(unit, frozenset())) for src, cut_units in sources.items()
            )
            if any(units for _, units in lacks):
                alike[lacks].append(unit)
        groups = [
            (
                self._mask(dst, units),
                [(src, places[src], self._mask(src, cut)) for src, cut in lacks if cut],
            )
            for lacks, units in alike.items()
        ]
        return partial(self._without, self._made(dst), between, groups)

    def _between(self, dst: int, places: Sequence[str]) -> list[Node]:
        """Operations from the sources to their reader, which is the last one."""
        reader, touched, operations = self._made(dst), set(places), []
        for name, node in self.net.order[: self.net.position[reader] + 1]:
            if node is None or (name in self.net.layout.layer_of and name != reader):
                continue
            if not touched.isdisjoint(node.references()):
                touched.add(name)
                operations.append(node)
        return operations

    def _without(
        self,
        name: str,
        between: Sequence[Node],
        groups: Sequence[tuple[Tensor, Sequence[tuple[int, str, Tensor]]]],
        value: Tensor,
        values: Mapping[str, Any],
        n: int,
    ) -> Tensor:
        batch = self.net.layout.batches[name]
        result = batch.samples(value)
        for mask, sources in groups:
            ablated_values = dict(values)
            for layer_id, place, lost in sources:
                ablated_values[place] = self._ablated(layer_id, place, values[place], lost)
            for node in between:
                ablated_values[node.name] = _evaluated(self.net, node, ablated_values, n)
            result = torch.where(mask, batch.samples(ablated_values[name]), result)
        return batch.native(result)


@torch.no_grad()
def means(
    net: Network, layers: Collection[int], batches: Iterable[Sequence[Tensor]]
) -> dict[int, Tensor]:
    """Mean of every neuron of some layers where they are ablated, over all samples.

    Parameters
    ----------
    net : Network
        The network.
    layers : collection of int
        Layer ids.
    batches : iterable of sequence of Tensor
        The reference set.

    Returns
    -------
    dict of int to Tensor
        Of the layer's shape, float64; what is infinite (masked scores) counts as 0.
    """
    at = {place_of(net, layer): layer for layer in layers}
    total: dict[int, Any] = dict.fromkeys(at.values(), 0.0)
    count = 0

    def add(name: str, value: Any, values: Mapping[str, Any]) -> Any:
        if name in at:
            samples = net.layout.batches[name].samples(value).double()
            samples = samples.masked_fill(~samples.isfinite(), 0.0)
            total[at[name]] = total[at[name]] + samples.sum(0)
        return value

    for xs in batches:
        execute(net, xs, add)
        count += xs[0].shape[0]
    return {layer: sums / count for layer, sums in total.items()}
