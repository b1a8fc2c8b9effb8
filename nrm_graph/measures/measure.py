"""Exact answers for one input: the Normalized Relevance Measure (arXiv:2606.00557)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import EventError, InputError
from nrm_graph.events.sets import Event, Layer, NeuronSet
from nrm_graph.measures import constant_shares, event_passes, rounding_errors
from nrm_graph.measures.event_algebra import Algebra
from nrm_graph.measures.joint import Groups
from nrm_graph.measures.neuron_edges import Between, neuron_batches, neuron_table
from nrm_graph.measures.paths import unit_paths, walks
from nrm_graph.measures.results import Cut, Matrix, Side
from nrm_graph.network.units import partition
from nrm_graph.tables.plan import plan
from nrm_graph.tables.pruning import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    import networkx as nx
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from nrm_graph.measures.results import Paths
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Partition


@dataclass(frozen=True, eq=False, repr=False)
class Measure(Algebra):
    """The relevance measure of one input and target, conditioned or not.

    Call it with an event; see :func:`nrm_graph.measure` for how to get one.

    Attributes
    ----------
    target : int or None
        Output that is explained, as a flat index; None for weighted outputs.
    logit : float
        Its value, or the weighted sum.
    predicted : int
        The largest output.
    condition : Event or None
        What the measure is conditioned on.
    condition_relevance, condition_error : float
        R(condition), on the unit scale, and a bound of its error; 1 and 0 without a condition.
    amplification : float
        Sum of |R| over the condition's neurons, over |R(condition)|: how far rounding may have
        been amplified.  Of a union over layers, the same of every conjunction that it is summed
        from.
    error : float
        Of a conditioned measure, how far its tables and marginals as a whole may be off: the sum
        of the errors of a layer is about this share of its sum of |R|.  They are computed in
        float64 where float32 loses too much.
    memory : int
        Bytes that events of one batch may hold.
    tokens : tuple of str, or None
        Text of every position of the input, where it is known.

    Notes
    -----
    Single events, conditionals and joint matrices are computed in float64 whatever the dtype of
    the pass, with its decisions (winners of pools, signs that rules branch on), and conditionals
    state their ``error`` (see :mod:`nrm_graph.measures.rounding_errors`); marginals and tables are
    computed in the dtype of the pass.
    """

    def marginal(self, layer: str, by: Any = "unit") -> npt.NDArray[Any]:
        """Relevance of a layer.

        Parameters
        ----------
        layer : str
            Name or alias.
        by : str or array_like of int
            ``unit`` sums over the units of the measure's resolution; ``neuron`` gives every
            neuron; or any resolution or partition, see :func:`nrm_graph.network.units.partition`.

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
            ``values[i, j]`` is R(row i & column j) of this measure, in float64; units without a
            neuron in the set asked for are left out.  ``error`` bounds the error of every value.

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
        values, error = rounding_errors.evaluate_joint(
            self._precisions, self.terms, upper, lower, self.memory
        )
        if upper is not sides[0][0]:
            values = values.T
        # Of a conditioned measure, R(condition) may be off as well.
        error += np.abs(values).max(initial=0.0) * self._condition_uncertainty
        return Matrix(values * self.scale, sides[0][1], sides[1][1], float(error) * abs(self.scale))

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
        arrived, absorbed = event_passes.cut(self.state, self.start, self.terms, info.layer_id)
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
                    "remainder": lost(layer.layer_id, "remainder"),
                    "total_variation": float(values.abs().sum()) * abs(self.scale),
                }
            )
        return pa.Table.from_pylist(rows)

    def constants(self) -> pa.Table:
        """Return what biases and constants hold, a row per layer and name, the largest first.

        Columns: layer, constant (``features.0.bias``, ``class_token``, ``padding``), relevance,
        total_variation (sum of |R| over the layer's neurons).  The relevances of a layer sum to
        its ``bias`` in :meth:`report`; what holds nothing is left out.
        """
        return constant_shares.table(self.state, self.start, self.terms, self.scale)

    def tables(self, event: Event | None = None) -> tuple[pa.Table, pa.Table]:
        """Complete node and edge tables of the input, on the unit scale.

        Of a conditioned measure they hold R(n | condition) and R(j -> i | condition); the column
        ``conditional`` is q under the condition, by which walks of it go on from j, and null where
        the condition is no single conjunction.

        Parameters
        ----------
        event : Event, optional
            Give R(n & event) and R(j -> i & event), which are defined where R(event) vanishes.
        """
        if event is not None:
            made = plan(self.network, self.partitions)
            return event_passes.tables(self.state, self.start, self._joint_terms(event), made)
        if "tables" not in self._cache:
            made = plan(self.network, self.partitions)
            self._cache["tables"] = event_passes.tables(self.state, self.start, self.terms, made)
        return self._cache["tables"]  # type: ignore[no-any-return]

    def edges(
        self,
        upper: str,
        lower: str,
        /,
        by: str = "unit",
        *,
        dst: NeuronSet | None = None,
        src: NeuronSet | None = None,
        coverage: float = 1.0,
        top: int | None = None,
    ) -> pa.Table:
        """Edges from one layer to one that it reads, as in the ``edges`` table of a store.

        ``edges(layer, layer)`` gives the layer's pseudo-edges.

        Parameters
        ----------
        upper, lower : str
            Layer nearer the output, and the one that it reads.
        by : "unit" or "neuron"
            Units of the measure's resolution; or single neurons, numbered by flat index, computed
            now from the network's program, however large the complete table would be.
        dst, src : NeuronSet, optional
            With ``by="neuron"``: only edges from a set of the upper layer, to a set of the lower.
        coverage : float
            With ``by="neuron"``: keep the fewest edges that hold this share of the sum of
            |relevance|; what is left out stands in rows of the pseudo-unit -3.
        top : int, optional
            With ``by="neuron"``: keep at most so many edges, the strongest.

        Returns
        -------
        pyarrow.Table
            dst_layer, dst_unit, src_layer, src_unit, relevance, conditional; sorted by units.

        Raises
        ------
        EventError
            If the first layer does not read the second directly, or a set is of another layer.
        InputError
            If there are too many neuron-level edges for one table: see :meth:`edge_batches`.
        """
        if isinstance(by, str) and by == "neuron":
            asked = self._between(upper, lower, dst, src)
            return neuron_table(asked, check(coverage, top), self.scale)
        if not isinstance(by, str) or by != "unit":
            raise InputError(f"edges: expected by='unit' or by='neuron', found {by!r}")
        if dst is not None or src is not None or top is not None or coverage != 1.0:
            raise InputError("dst, src, coverage and top go with by='neuron'")
        above, below = self._pair(upper, lower)
        _, rows = self.tables()
        keep = (rows["dst_layer"].to_numpy() == above.layer_id) & (
            rows["src_layer"].to_numpy() == below.layer_id
        )
        found = rows.filter(pa.array(keep))
        if self.scale != 1.0:
            scaled = found["relevance"].to_numpy() * self.scale
            found = found.set_column(4, "relevance", pa.array(scaled))
        return found

    def edge_batches(
        self,
        upper: str,
        lower: str,
        /,
        *,
        dst: NeuronSet | None = None,
        src: NeuronSet | None = None,
    ) -> pa.RecordBatchReader:
        """Neuron-level edges as a stream of Arrow batches, each computed when it is read.

        Rows are those of ``edges(upper, lower, by="neuron", dst=dst, src=src)``; memory is
        bounded by a batch, and all edges of an upper neuron are in one.
        """
        return neuron_batches(self._between(upper, lower, dst, src), self.scale)

    def _between(
        self, upper: str, lower: str, dst: NeuronSet | None, src: NeuronSet | None
    ) -> Between:
        above, below = self._pair(upper, lower)
        masks = []
        for info, chosen in ((above, dst), (below, src)):
            if chosen is None:
                masks.append(np.ones(info.n_neurons, bool))
                continue
            if not isinstance(chosen, NeuronSet) or self.topology.layer(chosen.layer) != info:
                raise EventError(f"expected a neuron set of layer {info.name}, found {chosen!r}")
            masks.append(chosen.mask(info.shape, self.partitions[info.layer_id]).ravel())
        return Between(
            self.state,
            self.start,
            self.terms,
            above.layer_id,
            below.layer_id,
            dst=masks[0],
            src=masks[1],
            known=self._own.relevance,
        )

    def _pair(self, upper: str, lower: str) -> tuple[LayerInfo, LayerInfo]:
        """Two layers, the first of which reads the second, or is it."""
        above, below = self.topology.layer(upper), self.topology.layer(lower)
        if above != below and below.layer_id not in self.topology.sources(above.layer_id):
            names = [self.topology.layers[i].name for i in self.topology.sources(above.layer_id)]
            raise EventError(
                f"{above.name} does not read {below.name} directly; it reads "
                f"{', '.join(names) or 'nothing'}"
            )
        return above, below

    def subgraph(self, top: int = 200) -> nx.DiGraph:
        """Return the strongest ``top`` edges; see :func:`nrm_graph.graphs.subgraph.subgraph`.

        ``graph["meaning"]`` says what a positive number speaks for, and ``graph["flags"]`` what
        else to know (:attr:`flags`).
        """
        from nrm_graph.graphs.subgraph import subgraph

        nodes, edges = self.tables()
        kinds = [part.resolution for part in self.partitions]
        found = subgraph(self.topology, nodes, edges, top, self.scale, kinds, self.tokens)
        found.graph |= {"meaning": self.meaning, "flags": tuple(map(str, self.flags))}
        return found

    def paths(
        self,
        k: int = 10,
        layers: Sequence[str] | None = None,
        by: Any = "unit",
        *,
        sign: str = "both",
        end: str = "input",
        beam: int | None = None,
        progress: bool = False,
    ) -> Paths:
        """Return the strongest walks, or the strongest paths of units, with what others may hold.

        Parameters
        ----------
        k : int
            Number of paths; of walks, of each sign.
        layers : sequence of str, optional
            Layers of which each path names one unit; by default all that every walk passes.
        by : str, array_like or mapping
            Resolution of the units, see :func:`nrm_graph.measures.paths.unit_paths.strongest`.
            With ``by="neuron"`` and no ``layers``, or where every unit is a neuron, paths are
            walks: the exact k best ones (:func:`nrm_graph.measures.paths.walks.strongest`).
        sign, end : str
            Of walks: "both", "positive" or "negative"; "input", or "any" to let walks that a bias
            or stabilizer absorbs compete.
        beam : int, optional
            Of paths of units: prefixes carried on from every layer; by default 256 to 4096, the
            more the smaller the layers are; a wider one certifies more.
        progress : bool
            Show a bar on a terminal.

        Returns
        -------
        Paths
            A sequence of ``Path(units, relevance)`` with ``bound``, ``mass`` and ``certified``.
            Every relevance is that of the event; grouped edges are never multiplied.
        """
        neurons = isinstance(by, str) and by == "neuron"
        single = isinstance(by, str) and by == "unit" and all(p.single for p in self.partitions)
        if layers is None and (neurons or single):
            if beam is not None:
                raise InputError("beam goes with paths of units; walks are exact without one")
            return walks.strongest(self, k, sign, end, progress=progress)
        if sign != "both" or end != "input":
            raise InputError("sign and end go with walks: by='neuron', without layers")
        return unit_paths.strongest(self, k, layers, beam, by, progress)

    def heatmap(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the relevance of the input; see :func:`nrm_graph.plots.plot_heatmap`.

        ``m.given(unit).heatmap(image=...)`` is a unit's own heat map.
        """
        from nrm_graph.plots import plot_heatmap

        return plot_heatmap(self, ax, **options)
