"""Exact answers for one input: the Normalized Relevance Measure (arXiv:2606.00557).

All numbers come from relevance passes over the traced program at the neuron level; grouped
edges are never multiplied, because grouping destroys the Markov property (see the README).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from nrm_graph import propagate
from nrm_graph.clauses import expand
from nrm_graph.edges import edge_tables
from nrm_graph.errors import EventError, InputError, UndefinedConditional
from nrm_graph.events import Event
from nrm_graph.plan import plan

if TYPE_CHECKING:
    import networkx as nx
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.states import Network, State
    from nrm_graph.topology import LayerInfo, Topology
    from nrm_graph.units import Partition

ROUNDING = 32
"""R(B) counts as vanished below this many machine epsilons of the sum of |R| it is made of."""


class Conditional(float):
    """A conditional relevance: a float that knows how far rounding may have been amplified.

    Attributes
    ----------
    amplification : float
        Sum of |R| over the condition's neurons, over |R(condition)|.
    """

    amplification: float

    def __new__(cls, value: float, amplification: float) -> Conditional:
        """Attach the amplification to a value."""
        made = super().__new__(cls, value)
        made.amplification = amplification
        return made

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self), self.amplification


@dataclass(frozen=True)
class Cut:
    """A cut through the network: every walk passes ``layer``, bypasses it, or ended above.

    Attributes
    ----------
    layer : str
        The layer asked about.
    relevance : float
        Its relevance.
    bypass : dict of str to float
        Relevance of walks that bypass it, by the layer at which they arrive next.
    absorbed : dict of str to float
        What pseudo-neurons above the cut hold, by layer.
    """

    layer: str
    relevance: float
    bypass: dict[str, float]
    absorbed: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all parts; 1 but for rounding, on the unit scale."""
        return self.relevance + sum(self.bypass.values()) + sum(self.absorbed.values())

    def __float__(self) -> float:
        return self.total


@dataclass(frozen=True, eq=False, repr=False)
class Measure:
    """The relevance measure of one input and target.

    Call it with an event; see :func:`measure` for how to get one.
    """

    network: Network
    state: State
    partitions: tuple[Partition, ...]
    start: Tensor
    target: int | None
    logit: float
    predicted: int
    scale: float = 1.0
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        target = "weighted outputs" if self.target is None else f"target {self.target}"
        return f"<Measure of {target}, logit {self.logit:.4g}: {len(self.topology.layers)} layers>"

    @property
    def topology(self) -> Topology:
        """Layers and edge groups of the network."""
        return self.network.layout.topology

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader must know before trusting signs and sizes."""
        found = []
        if self.logit < 0:
            found.append(
                f"the target's logit is negative ({self.logit:.4g}): positive relevance speaks "
                "against the target"
            )
        spread = float(self.state.output.abs().max())
        if abs(self.logit) < 0.05 * spread:
            found.append(
                f"the target's logit ({self.logit:.4g}) is small beside the largest output "
                f"({spread:.4g}): relevances may be very large"
            )
        return tuple(found)

    def __call__(self, event: Event, given: Event | None = None) -> float:
        """Relevance of an event, or conditional relevance R(event | given).

        Raises
        ------
        UndefinedConditional
            If R(given) is below rounding.
        """
        if given is None:
            return self._value(event)[0] * self.scale
        both = self._value(event & given)[0]
        value, magnitude = self._value(given)
        eps = float(torch.finfo(self.start.dtype).eps)
        if abs(value) <= ROUNDING * eps * magnitude:
            raise UndefinedConditional(
                f"R({given!r}) is {value:.3g}, below rounding ({ROUNDING} eps times "
                f"{magnitude:.3g}): the conditional is undefined; condition on a set whose "
                "relevance does not cancel"
            )
        return Conditional(both / value, magnitude / abs(value))

    def _value(self, event: Event) -> tuple[float, float]:
        if not isinstance(event, Event):
            raise EventError(f"expected an event such as ng.Layer('conv1')[3], found {event!r}")
        total, size = 0.0, 0.0
        for coefficient, clause in expand(event, self.topology, self.partitions):
            with torch.no_grad():
                outcome = propagate.relevance_pass(self.state, self.start, clause)
            total += coefficient * float(outcome.value)
            size += abs(coefficient) * float(outcome.magnitude if clause else 1.0)
        return total, size if total or size else 1.0

    def _unconditional(self) -> dict[str, Any]:
        """Relevance and absorbed shares of every layer, from one pass."""
        if not self._cache:
            relevance: dict[int, Tensor] = {}
            lost: dict[tuple[int, str], Tensor] = {}
            with torch.no_grad():
                propagate.relevance_pass(
                    self.state,
                    self.start,
                    visit=lambda i, r: relevance.__setitem__(i, r[0]),
                    absorb=lambda i, kind, r: lost.__setitem__((i, kind), r[0]),
                )
            self._cache.update(relevance=relevance, lost=lost)
        return self._cache

    def _relevance(self, layer: LayerInfo) -> Tensor:
        found = self._unconditional()["relevance"].get(layer.layer_id)
        return self.start.new_zeros(layer.shape) if found is None else found

    def marginal(self, layer: str, by: str = "unit") -> npt.NDArray[Any]:
        """Relevance of a layer.

        Parameters
        ----------
        layer : str
            Name or alias.
        by : str
            ``unit`` sums over the units of the resolution; ``neuron`` gives every neuron.

        Returns
        -------
        ndarray, (n_units,) or the layer's shape
            In the dtype of the pass.
        """
        info = self.topology.layer(layer)
        values = self._relevance(info).cpu().numpy() * self.scale
        if by == "neuron":
            return values.astype(values.dtype)
        if by != "unit":
            raise InputError(f"marginal: expected by='unit' or by='neuron', found {by!r}")
        part = self.partitions[info.layer_id]
        sums = np.bincount(
            part.labels.ravel(), values.ravel().astype(np.float64), minlength=part.n_units
        )
        return sums.astype(values.dtype)

    def cut(self, layer: str) -> Cut:
        """Return the cut through a layer and the tensors that bypass it."""
        info = self.topology.layer(layer)
        names = [found.name for found in self.topology.layers]
        relevance, reached = 0.0, False
        bypass: dict[str, float] = {}
        absorbed: dict[str, float] = {}

        def stop(layer_id: int, r: Tensor) -> bool:
            nonlocal relevance, reached
            if layer_id > info.layer_id:
                return False
            share = float(r.sum()) * self.scale
            if layer_id == info.layer_id:
                relevance = share
            else:
                bypass[names[layer_id]] = share
            return True

        def absorb(layer_id: int, kind: str, r: Tensor) -> None:
            name = names[layer_id]
            absorbed[name] = absorbed.get(name, 0.0) + float(r.sum()) * self.scale

        with torch.no_grad():
            propagate.relevance_pass(self.state, self.start, absorb=absorb, stop=stop)
        return Cut(info.name, relevance, bypass, absorbed)

    def report(self) -> pa.Table:
        """Conservation report, one row per layer from the output to the input.

        Columns: layer, kind, sum, bias, stabilizer, pruned, remainder (what the layer's
        pseudo-neurons hold), total_variation (sum of |R|).
        """
        found = self._unconditional()

        def lost(layer_id: int, kind: str) -> float:
            part = found["lost"].get((layer_id, kind))
            return 0.0 if part is None else float(part.double().sum()) * self.scale

        rows = []
        for layer in reversed(self.topology.layers):
            values = self._relevance(layer).double()
            rows.append(
                {
                    "layer": layer.name,
                    "kind": layer.kind,
                    "sum": float(values.sum()) * self.scale,
                    "bias": lost(layer.layer_id, "bias"),
                    "stabilizer": lost(layer.layer_id, "stabilizer"),
                    "pruned": 0.0,
                    "remainder": 0.0,
                    "total_variation": float(values.abs().sum()) * abs(self.scale),
                }
            )
        return pa.Table.from_pylist(rows)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Complete node and edge tables of the input, on the unit scale."""
        if "tables" not in self._unconditional():
            made = plan(self.network, self.partitions)
            (self._cache["tables"],) = edge_tables(self.state, self.start, made)
        return self._cache["tables"]  # type: ignore[no-any-return]

    def edges(self, dst: str, src: str) -> pa.Table:
        """Edges from one layer to one that it reads, as in the ``edges`` table of a store.

        ``edges(layer, layer)`` gives the layer's pseudo-edges.

        Raises
        ------
        EventError
            If the first layer does not read the second directly.
        """
        upper, lower = self.topology.layer(dst), self.topology.layer(src)
        if upper != lower and lower.layer_id not in self.topology.sources(upper.layer_id):
            names = [self.topology.layers[i].name for i in self.topology.sources(upper.layer_id)]
            raise EventError(
                f"{upper.name} does not read {lower.name} directly; it reads "
                f"{', '.join(names) or 'nothing'}"
            )
        _, rows = self.tables()
        keep = (rows["dst_layer"].to_numpy() == upper.layer_id) & (
            rows["src_layer"].to_numpy() == lower.layer_id
        )
        found = rows.filter(pa.array(keep))
        if self.scale != 1.0:
            scaled = found["relevance"].to_numpy() * self.scale
            found = found.set_column(4, "relevance", pa.array(scaled))
        return found

    def subgraph(self, top: int = 200) -> nx.DiGraph:
        """Return the strongest ``top`` edges as a graph; see :func:`nrm_graph.graph.subgraph`."""
        from nrm_graph.graph import subgraph

        nodes, edges = self.tables()
        return subgraph(self.topology, nodes, edges, top, self.scale, partitions=self.partitions)
