"""The reduced graph of one input: nodes, exact steps between them, and ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nrm_graph.measures.reduced.nodes import (
    AUTOMATIC,
    chosen_nodes,
    node_sizes,
    shares_held,
    watched_layers,
)
from nrm_graph.measures.reduced.products import strongest_products
from nrm_graph.measures.reduced.steps import direct_steps, passes
from nrm_graph.measures.reduced.tables import Tables, tables, with_ends
from nrm_graph.measures.reduced.unit_maps import image_of, picture, unit_maps
from nrm_graph.network.topology import END_UNITS, PSEUDO_UNITS, EdgeGroup
from nrm_graph.network.unit_names import watched_kind
from nrm_graph.progress import Progress
from nrm_graph.tables.html_tables import ROWS, Description, HtmlTable, Tabular, table_of
from nrm_graph.tables.unit_sums import activations, own_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import networkx as nx
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.measures.reduced.nodes import Budget, By, Watch, WatchedLayer
    from nrm_graph.measures.reduced.steps import Steps
    from nrm_graph.measures.results import Paths
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.unit_names import UnitKind
    from nrm_graph.propagation.state import State

PAIR = ("dst_layer", "src_layer")

SHOWN = 8
"""Layers that a graph names where it is printed."""

PICTURED = 60
"""Steps and ends that a picture shows, at most."""

_SHOWN = ("src", "src_unit", "dst", "dst_unit", "relevance", "conditional")
_ENDS = (
    "Its strongest steps and ends (of src_unit "
    + ", ".join(f"{unit} {PSEUDO_UNITS[unit]}" for unit in END_UNITS)
    + ")"
)


@dataclass(frozen=True, eq=False, repr=False)
class Reduced(Tabular):
    r"""Exact steps between chosen neurons of one input, and where walks end that leave them.

    Attributes
    ----------
    nodes : pyarrow.Table
        layer_id, unit, relevance, activation (the mean), neurons (how many a node has).
    edges : pyarrow.Table
        dst_layer, dst_unit, src_layer, src_unit, relevance, conditional: R of the walks that visit
        dst, then src, and no watched neuron in between.  ``conditional`` is that share of the walks
        at dst, where dst is a single neuron and the measure's condition a single conjunction; null
        elsewhere.
    ends : pyarrow.Table
        The same columns: R of the walks that visit no watched neuron after dst, by where they end;
        src_layer is dst_layer and src_unit a pseudo-unit: -1 bias, -2 stabilizer, -4 remainder, -5
        an input that is not watched.
    measure : Measure
        What it was made of.
    watched : tuple of WatchedLayer
        Neurons of every node, layer by layer from the output; the target's come first.
    carried : tuple of float
        Share of the sum of \|R\| over the units of every watched layer that its nodes hold.
    """

    nodes: pa.Table
    edges: pa.Table
    ends: pa.Table
    measure: Algebra
    watched: tuple[WatchedLayer, ...]
    carried: tuple[float, ...]

    @property
    def topology(self) -> Topology:
        """Layers of the network, whose ids the tables have."""
        return self.measure.topology

    @property
    def kinds(self) -> tuple[UnitKind, ...]:
        """What the units of every layer are."""
        partitions = self.measure.partitions
        kinds = [part.kind for part in partitions]
        for layer in self.watched:
            i = layer.layer_id
            spelled = layer.holds_whole_units(self.topology.layers[i], partitions[i])
            kinds[i] = watched_kind(kinds[i], layer.resolution, spelled)
        return tuple(kinds)

    def _description(self) -> Description:
        names = [self.topology.layers[layer.layer_id].name for layer in self.watched]
        shown = names if len(names) <= SHOWN else [*names[: SHOWN // 2], "...", *names[-2:]]
        return Description(
            f"reduced graph: {len(self.nodes):,} nodes in {len(names)} layers "
            f"({', '.join(shown)}), {len(self.edges):,} steps"
        )

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        rows = self.to_arrow()
        sizes = pc.abs(rows["relevance"])
        strongest = rows.take(pc.sort_indices(sizes, [("", "descending")])[:ROWS])
        return (
            table_of(self.report(), caption="Its layers, from the output"),
            table_of(strongest, _SHOWN, caption=_ENDS, total=len(rows)),
        )

    def to_arrow(self) -> pa.Table:
        """Return steps and ends in one table, with the layers' names ``dst`` and ``src``."""
        rows = pa.concat_tables([self.edges, self.ends])
        names = pa.array([layer.name for layer in self.topology.layers])
        for end in ("dst", "src"):
            rows = rows.append_column(end, names.take(rows[f"{end}_layer"]))
        return rows

    def graph(self, top: int | None = None) -> nx.DiGraph:
        """Return nodes, steps and ends as a graph, see :meth:`Measure.subgraph`.

        Parameters
        ----------
        top : int, optional
            Number of steps and ends that are kept, at most, so that the graph is connected; by
            default all.  Layers that a step passes over, ``steps_over``, are watched ones.
        """
        from nrm_graph.graphs.subgraph import subgraph

        rows = pa.concat_tables([self.edges, self.ends])
        pairs = sorted(set(zip(*(self.edges[n].to_pylist() for n in PAIR), strict=True)))
        watched = replace(self.topology, groups=tuple(EdgeGroup(dst, src, 0) for dst, src in pairs))
        graph = subgraph(
            watched,
            with_ends(self.nodes, self.ends),
            rows,
            max(len(rows), 1) if top is None else top,
            kinds=self.kinds,
            tokens=self.measure.tokens,
            connected=top is not None,
        )
        graph.graph |= {**self.measure.facts, "reduced": True}
        return graph

    def paths(self, k: int = 10) -> Paths:
        """Return the strongest sequences of visits, from the target to where the walk ends.

        The relevance of a path is that of all walks that visit its nodes and no others: the product
        of the shares of its steps, and of that of ends at its last node.

        Raises
        ------
        InputError
            If a node that walks step on from is not a single neuron, or shares are not known:
            grouped steps are never multiplied (see docs/concepts.md).
        """
        tables = Tables(self.nodes, self.edges, self.ends)
        return strongest_products(tables, self.topology, self.watched[0], k)

    def report(self) -> pa.Table:
        r"""Return what every watched layer holds and keeps, from the output to the input.

        Columns: layer, nodes, share (of the sum of \|R\| over its units, that its nodes hold),
        relevance, total_variation, steps_in, steps_out, bias, stabilizer, remainder, input (not
        watched), and the largest differences of single nodes from the two laws: ``into`` (steps
        into a node are its relevance; null at the target) and ``out_of`` (steps out of it and
        ends below are; null at inputs, where walks end in the node itself).
        """
        return _report(self)

    def plot(self, ax: Axes | None = None, *, top: int = PICTURED, images: bool = False) -> Axes:
        """Draw the strongest steps that make a connected graph.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on, see :func:`nrm_graph.plots.plot_subgraph`.
        top : int
            Number of steps and ends, at most.
        images : bool
            Show at every unit where in the input the relevance goes that passes through it: a pass
            a unit, of a network with an input of shape (C, H, W).
        """
        from nrm_graph.plots import plot_subgraph

        graph = self.graph(top)
        maps = unit_maps(self.measure, self.watched, set(graph)) if images else None
        return plot_subgraph(graph, ax, images=maps)

    @property
    def image(self) -> npt.NDArray[Any] | None:
        """The input that is a picture, (H, W, C), as the network takes it; None where none is."""
        return image_of(self.measure)

    def maps(self) -> dict[tuple[str, int], npt.NDArray[np.float64]] | None:
        """Return where in the input the relevance goes that passes through each unit, (H, W).

        By layer and unit, as nodes of :meth:`graph` are; a pass a unit.  None where no input is a
        picture, of shape (C, H, W).
        """
        if picture(self.topology) is None:
            return None
        names = {layer.layer_id: layer.name for layer in self.topology.layers}
        rows = zip(*(self.nodes[name].to_pylist() for name in ("layer_id", "unit")), strict=True)
        return unit_maps(self.measure, self.watched, {(names[i], unit) for i, unit in rows})


def reduced(
    measure: Algebra, watch: Watch = AUTOMATIC, by: By = "unit", nodes: Budget = 200
) -> Reduced:
    r"""Return the graph of exact steps between chosen neurons.

    Of every walk only its visits to the *watched* neurons are noted.  A step A -> B holds the walks
    that visit A, then B, and no watched neuron in between, over whatever layers, skips and branches
    lie there; what visits no further one ends below A.  Steps into a node sum to its relevance,
    steps out of it and ends below do, and those of the target sum to 1.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.
    watch : str, NeuronSet or a sequence of them
        Layers, by names or patterns (``"layer?.?"``, ``*`` crosses dots), or neuron sets.  By
        default those that people think in, found from the module tree: convolutions, outputs of
        residual blocks, attention heads and hidden layers of MLPs.  The target's neurons are
        watched always.  Of two layers of which one merely copies the other, the lower is watched.
        Of networks with attention that embed ids, the embeddings too.
    by : str, array_like of int, or mapping of layer name to one of these
        What neurons of a layer are one node: "unit" (of the measure's resolution), any resolution
        (see :func:`nrm_graph.network.units.partition`), "position" (heads and embeddings by
        position, single neurons elsewhere: what "unit" is of networks with attention that embed
        ids, where nothing is said of ``watch``), or "layer".
    nodes : int, mapping of layer name to int, or None
        How many units are watched, those of largest \|R\|: shared out over the layers so that
        each keeps the same share of its sum of \|R\|; so many of each layer; or all.  The
        target's are not counted.  Walks pass freely through the others.

    Returns
    -------
    Reduced
        Tables of nodes, edges and ends; ``graph()``, ``paths(k)``, ``report()``, ``plot()``.

    Raises
    ------
    EventError
        If a layer is unknown, or watched sets of one layer are not disjoint.
    InputError
        If units or numbers do not fit.

    Notes
    -----
    A pass for every node, from the side that costs less, in the measure's dtype.  Between groups
    of neurons steps are exact, and their products are not: see docs/concepts.md.
    """
    return of_watched(measure, *_chosen(measure, watch, by, nodes))


def _chosen(
    measure: Algebra, watch: Watch, by: By, nodes: Budget
) -> tuple[tuple[WatchedLayer, ...], tuple[float, ...]]:
    """Nodes, and the shares that they hold; all others, of which there are millions, are let go.

    So is the relevance of all neurons, where the network is one that just fits into memory.
    """
    passing = measure.network.narrow and measure._unconditioned.known is None
    target, *candidates = watched_layers(measure, watch, by)
    sizes = node_sizes(measure, candidates)
    watched = chosen_nodes(measure.topology.layers, candidates, sizes, nodes)
    carried = shares_held(candidates, sizes, watched)
    if passing:
        measure._unconditioned.let_go()
    return (target, *watched), (1.0, *carried)


def of_watched(
    measure: Algebra, watched: Sequence[WatchedLayer], carried: tuple[float, ...]
) -> Reduced:
    """Return the reduced graph of given nodes; see :func:`reduced`."""
    steps = _steps(measure, watched)
    means = [_activation(measure.state, layer) for layer in watched]
    return Reduced(*tables(watched, steps, means, measure.scale), measure, tuple(watched), carried)


def _steps(measure: Algebra, watched: Sequence[WatchedLayer]) -> Steps:
    groups = [layer.groups for layer in watched]
    downwards, count = passes(measure.state, groups)
    with Progress("reduced graph", count * len(measure.terms), "passes") as meter:
        return direct_steps(
            measure.state,
            measure.start,
            measure.terms,
            groups,
            measure.memory,
            meter.advance,
            downwards,
        )


def _activation(state: State, layer: WatchedLayer) -> npt.NDArray[np.float64]:
    name = state.network.values[layer.layer_id]
    value = activations(state, name).double()
    own, sizes = own_positions(state, name, value), layer.groups.sizes()
    if own is not None:
        value = value.masked_fill(~own, 0)
        sizes = np.maximum(layer.groups.sums(own.double())[0].cpu().numpy(), 1)
    sums: npt.NDArray[np.float64] = layer.groups.sums(value)[0].cpu().numpy()
    return sums / sizes


def _report(reduced: Reduced) -> pa.Table:
    sums = {
        name: _sums(rows, layer, unit)
        for name, rows, layer, unit in (
            ("into", reduced.edges, "src_layer", "src_unit"),
            ("out_of", reduced.edges, "dst_layer", "dst_unit"),
            ("ends", reduced.ends, "dst_layer", "dst_unit"),
        )
    }
    rows = []
    target = reduced.topology.output.layer_id
    inputs = {layer.layer_id for layer in reduced.topology.inputs}
    for layer, carried in zip(reduced.watched, reduced.carried, strict=True):
        layer_id = layer.layer_id
        keys = [(layer_id, unit) for unit in layer.units.tolist()]
        own = reduced.nodes["layer_id"].to_numpy() == layer_id
        relevance = reduced.nodes["relevance"].to_numpy()[own]
        into, out_of, ends = (np.array([sums[name].get(key, 0.0) for key in keys]) for name in sums)
        kind = reduced.ends["src_unit"].to_numpy()
        there = reduced.ends["dst_layer"].to_numpy() == layer_id
        ended = reduced.ends["relevance"].to_numpy()
        by_kind = {
            PSEUDO_UNITS[unit]: float(ended[there & (kind == unit)].sum()) for unit in END_UNITS
        }
        rows.append(
            {
                "layer": reduced.topology.layers[layer_id].name,
                "nodes": len(keys),
                "share": carried,
                "relevance": float(relevance.sum()),
                "total_variation": float(np.abs(relevance).sum()),
                "steps_in": None if layer_id == target else float(into.sum()),
                "steps_out": float(out_of.sum()),
                **{name: share for name, share in by_kind.items() if name != "input not watched"},
                "input": by_kind["input not watched"],
                "into": None if layer_id == target else float(np.abs(into - relevance).max()),
                "out_of": None
                if layer_id in inputs
                else float(np.abs(out_of + ends - relevance).max()),
            }
        )
    return pa.Table.from_pylist(rows)


def _sums(rows: pa.Table, layer: str, unit: str) -> dict[tuple[int, int], float]:
    sums = rows.group_by([layer, unit]).aggregate([("relevance", "sum")])
    columns = (sums[name].to_pylist() for name in (layer, unit, "relevance_sum"))
    return {(i, u): r for i, u, r in zip(*columns, strict=True)}
