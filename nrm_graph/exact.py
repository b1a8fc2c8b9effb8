"""Exact answers for one input: the Normalized Relevance Measure (arXiv:2606.00557).

All numbers come from relevance passes over the traced program at the neuron level; grouped
edges are never multiplied, because grouping destroys the Markov property (see the README).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from nrm_graph import conditioned
from nrm_graph.answers import Conditional, Cut, Matrix, Side
from nrm_graph.clauses import expand
from nrm_graph.errors import EventError, InputError, UndefinedConditional
from nrm_graph.events import Event, Layer, NeuronSet
from nrm_graph.joint import Groups, joint
from nrm_graph.plan import plan
from nrm_graph.units import partition

if TYPE_CHECKING:
    from collections.abc import Sequence

    import networkx as nx
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.states import Network, State
    from nrm_graph.topology import LayerInfo, Topology
    from nrm_graph.units import Partition

ROUNDING = 32
"""R(B) counts as vanished below this many machine epsilons of the sum of |R| it is made of."""


@dataclass(frozen=True, eq=False, repr=False)
class Measure:
    """The relevance measure of one input and target, conditioned or not.

    Call it with an event; see :func:`nrm_graph.measure` for how to get one.

    Attributes
    ----------
    target : int or None
        Output that is explained; None for weighted outputs.
    logit : float
        Its value, or the weighted sum.
    predicted : int
        The largest output.
    condition : Event or None
        What the measure is conditioned on.
    condition_relevance : float
        R(condition), on the unit scale; 1 without a condition.
    amplification : float
        Sum of |R| over the condition's neurons, over |R(condition)|: how far rounding may have
        been amplified.
    memory : int
        Bytes that events of one batch may hold.
    """

    network: Network
    state: State
    partitions: tuple[Partition, ...]
    start: Tensor
    target: int | None
    logit: float
    predicted: int
    scale: float = 1.0
    memory: int = conditioned.MEMORY
    condition: Event | None = None
    condition_relevance: float = 1.0
    amplification: float = 1.0
    terms: conditioned.Terms = ((1.0, {}),)
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        target = "weighted outputs" if self.target is None else f"target {self.target}"
        given = "" if self.condition is None else f" given {self.condition!r}"
        layers = len(self.topology.layers)
        return f"<Measure of {target}{given}, logit {self.logit:.4g}: {layers} layers>"

    @property
    def topology(self) -> Topology:
        """Layers and edge groups of the network."""
        return self.network.layout.topology

    @property
    def absorbed(self) -> float:
        """Share of the measure that pseudo-neurons of any layer hold."""
        if self.condition is not None:
            return float(self._cache["absorbed"])
        return sum(float(part.double().sum()) for part in self._nodes()[1].values())

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
        if self.amplification > 100:
            found.append(
                f"the condition's relevance nearly cancels: rounding is amplified "
                f"{self.amplification:.3g} times"
            )
        return tuple(found)

    def __call__(self, event: Event, given: Event | None = None) -> float:
        """Relevance of an event, or conditional relevance R(event | given).

        Returns
        -------
        float
            A :class:`nrm_graph.answers.Conditional` where there is a condition.

        Raises
        ------
        UndefinedConditional
            If R(given) is below rounding.
        """
        if given is not None:
            return self.given(given)(event)
        (value,) = self.many([event]).tolist()
        if self.condition is None:
            return value  # type: ignore[no-any-return]
        return Conditional(value, self.amplification, self.absorbed)

    def many(self, events: Sequence[Event]) -> npt.NDArray[np.float64]:
        """Relevance of many events, which share the activations and, where alike, passes."""
        return self._values(events) / self.condition_relevance * self.scale

    def _values(self, events: Sequence[Event]) -> npt.NDArray[np.float64]:
        """R(event & condition) of events, on the unit scale."""
        owners, coefficients, clauses = [], [], []
        for number, event in enumerate(events):
            if not isinstance(event, Event):
                raise EventError(f"expected an event such as ng.Layer('conv1')[3], found {event!r}")
            whole = event if self.condition is None else self.condition & event
            for coefficient, clause in expand(whole, self.topology, self.partitions):
                owners.append(number)
                coefficients.append(coefficient)
                clauses.append(clause)
        known = self._root_relevance if len(clauses) > 2 or "root" in self._cache else None
        found = conditioned.values(self.state, self.start, clauses, known, self.memory)
        total = np.zeros(len(events))
        weights = np.array(coefficients, np.float64)
        np.add.at(total, np.array(owners, np.int64), found * weights)
        return total

    def _root_relevance(self, layer_id: int) -> Tensor:
        """Relevance of a layer ``(1, *shape)`` without the condition."""
        if "root" not in self._cache:
            whole: conditioned.Terms = ((1.0, {}),)
            found = (
                self._nodes()
                if self.condition is None
                else conditioned.nodes(self.state, self.start, whole)
            )
            self._cache["root"] = found[0]
        found = self._cache["root"].get(layer_id)
        shape = self.topology.layers[layer_id].shape
        return self.start.new_zeros(1, *shape) if found is None else found[None]

    def given(self, event: Event) -> Measure:
        """Return the measure conditioned on an event: R(. & event) / R(event).

        All answers of a measure can be asked of it, exactly, above, between and below the
        event's layers.  Conditioning twice is conditioning on both.

        Raises
        ------
        UndefinedConditional
            If R(event) is below rounding.
        EventError
            If the event does not fit the network.

        Notes
        -----
        Conditional relevance has no scale: ``scale="logit"`` does not multiply it.
        """
        if not isinstance(event, Event):
            raise EventError(f"expected an event such as ng.Layer('conv1')[3], found {event!r}")
        known = self._cache.get("given")
        if known is not None and known[0] == event:
            return known[1]  # type: ignore[no-any-return]
        both = event if self.condition is None else self.condition & event
        terms = expand(both, self.topology, self.partitions)
        value, size, absorbed = conditioned.certified(self.state, self.start, terms)
        eps = float(torch.finfo(self.start.dtype).eps)
        if abs(value) <= ROUNDING * eps * size:
            raise UndefinedConditional(
                f"R({both!r}) is {value:.3g}, below rounding ({ROUNDING} eps times "
                f"{size:.3g}): the conditional is undefined; condition on a set whose "
                "relevance does not cancel"
            )
        shares = tuple((coefficient / value, clause) for coefficient, clause in terms)
        if not np.isfinite([coefficient for coefficient, _ in shares]).all():
            raise UndefinedConditional(f"R({both!r}) is too small for its inverse: {value:.3g}")
        cache = {"absorbed": absorbed / value}
        if "root" in self._cache or (self.condition is None and "nodes" in self._cache):
            self._root_relevance(0)
            cache["root"] = self._cache["root"]
        found = replace(
            self,
            scale=1.0,
            condition=both,
            condition_relevance=value,
            amplification=size / abs(value),
            terms=shares,
            _cache=cache,
        )
        self._cache["given"] = (event, found)
        return found

    def interaction(self, a: Event, b: Event) -> float:
        """R(a & b) - R(a) R(b): how far two events are from independent, on the unit scale."""
        both, left, right = self.many([a & b, a, b]) / self.scale
        return float(both - left * right)

    def _nodes(self) -> tuple[dict[int, Tensor], dict[tuple[int, str], Tensor]]:
        """Relevance and absorbed shares of every layer."""
        if "nodes" not in self._cache:
            self._cache["nodes"] = conditioned.nodes(self.state, self.start, self.terms)
        return self._cache["nodes"]  # type: ignore[no-any-return]

    def _relevance(self, layer: LayerInfo) -> Tensor:
        found = self._nodes()[0].get(layer.layer_id)
        return self.start.new_zeros(layer.shape) if found is None else found

    def marginal(self, layer: str, by: Any = "unit") -> npt.NDArray[Any]:
        """Relevance of a layer.

        Parameters
        ----------
        layer : str
            Name or alias.
        by : str or array_like of int
            ``unit`` sums over the units of the measure's resolution; ``neuron`` gives every
            neuron; or any resolution or partition, see :func:`nrm_graph.units.partition`.

        Returns
        -------
        ndarray, (n_units,) or the layer's shape
            In the dtype of the pass.
        """
        info = self.topology.layer(layer)
        values = self._relevance(info).cpu().numpy() * self.scale
        if isinstance(by, str) and by == "neuron":
            return values.astype(values.dtype)
        part = self._partition(info, by)
        sums = np.bincount(
            part.labels.ravel(), values.ravel().astype(np.float64), minlength=part.n_units
        )
        return sums.astype(values.dtype)

    def _partition(self, layer: LayerInfo, by: Any) -> Partition:
        if isinstance(by, str) and by == "unit":
            return self.partitions[layer.layer_id]
        return partition(layer, by)

    def strongest(self, layer: str, k: int) -> Event:
        """Return the set of the k units of a layer that together carry most relevance.

        Relevance adds up within a layer, so these are the units of largest relevance.
        """
        found = self.marginal(layer)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= len(found):
            raise InputError(f"k must be a number of units from 1 to {len(found)}, found {k!r}")
        chosen = np.argsort(-found, kind="stable")[:k]
        return Layer(self.topology.layer(layer).name).units(np.sort(chosen).tolist())

    def joint(self, rows: str | NeuronSet, columns: str | NeuronSet, by: Any = "unit") -> Matrix:
        """Exact joint relevance of every unit of one layer with every unit of another.

        Parameters
        ----------
        rows, columns : str or NeuronSet
            Layers, neighbours or not and in either order; or a neuron set, to which the units are
            restricted: ``ng.Layer("conv1").units([3, 7])``, or a region.
        by : str, array_like of int, or a pair of them
            Resolution of both sides, or of each; see :meth:`marginal`.

        Returns
        -------
        Matrix
            ``values[i, j]`` is R(row i & column j) of this measure; units without a neuron in the
            set asked for are left out.

        Notes
        -----
        As many passes as the side with fewer units has, between the two layers alone, in batches
        of about ``memory`` bytes.
        """
        pair = by if isinstance(by, tuple) else (by, by)
        if len(pair) != 2:
            raise InputError(f"by takes one resolution or a pair, found {len(pair)}")
        sides = [self._side(s, how) for s, how in zip((rows, columns), pair, strict=True)]
        upper, lower = sorted((group for group, _ in sides), key=lambda g: -g.layer_id)
        values = joint(self.state, self.start, self.terms, upper, lower, self.memory)
        if upper is not sides[0][0]:
            values = values.T
        kind = self.start.cpu().numpy().dtype
        return Matrix((values * self.scale).astype(kind), sides[0][1], sides[1][1])

    def _side(self, asked: str | NeuronSet, by: Any) -> tuple[Groups, Side]:
        """Return the groups of neurons of one side of a joint matrix."""
        if not isinstance(asked, str | NeuronSet):
            raise EventError(f"joint takes a layer's name or a neuron set, found {asked!r}")
        info = self.topology.layer(asked if isinstance(asked, str) else asked.layer)
        part = self._partition(info, by)
        if isinstance(asked, str):
            labels, units = part.labels.astype(np.int64), np.arange(part.n_units)
        else:
            mask = asked.mask(info.shape, self.partitions[info.layer_id])
            units, place = np.unique(part.labels[mask], return_inverse=True)
            labels = np.full(info.shape, -1, np.int64)
            labels[mask] = place.ravel()
        return Groups(info.layer_id, labels, len(units)), Side(info.name, units.astype(np.int64))

    def cut(self, layer: str) -> Cut:
        """Return the cut through a layer and the tensors that bypass it."""
        info = self.topology.layer(layer)
        names = [found.name for found in self.topology.layers]
        arrived, absorbed = conditioned.cut(self.state, self.start, self.terms, info.layer_id)
        relevance = arrived.pop(info.layer_id, 0.0) * self.scale
        return Cut(
            info.name,
            relevance,
            {names[i]: share * self.scale for i, share in arrived.items()},
            {names[i]: share * self.scale for i, share in absorbed.items()},
        )

    def report(self) -> pa.Table:
        """Conservation report, one row per layer from the output to the input.

        Columns: layer, kind, sum, bias, stabilizer, pruned, remainder (what the layer's
        pseudo-neurons hold), total_variation (sum of |R|).
        """
        _, absorbed = self._nodes()

        def lost(layer_id: int, kind: str) -> float:
            part = absorbed.get((layer_id, kind))
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
        """Complete node and edge tables of the input, on the unit scale.

        Of a conditioned measure they hold R(n | condition) and R(j -> i | condition); the column
        ``conditional`` is q under the condition, by which walks of it go on from j, and null where
        the condition is no single conjunction.
        """
        if "tables" not in self._cache:
            made = plan(self.network, self.partitions)
            self._cache["tables"] = conditioned.tables(self.state, self.start, self.terms, made)
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
