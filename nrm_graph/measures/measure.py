"""Exact answers for one input: the Normalized Relevance Measure (arXiv:2606.00557)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from nrm_graph.errors import InputError
from nrm_graph.measures import edge_tables, joint_matrix, marginals
from nrm_graph.measures.event_algebra import Algebra
from nrm_graph.measures.paths import search
from nrm_graph.measures.reduced import reduced
from nrm_graph.network.grouped_units import kinds_of
from nrm_graph.tables.html_tables import HtmlTable, pairs_of, table_of

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

    from nrm_graph.network.grouped_units import By


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
    classes : sequence of str, or None
        Names of the outputs, where they are known.

    Notes
    -----
    Single events, conditionals and joint matrices are computed in float64 whatever the dtype of
    the pass, with its decisions (winners of pools, signs that rules branch on), and conditionals
    state their ``error`` (see :mod:`nrm_graph.measures.rounding_errors`); marginals and tables are
    computed in the dtype of the pass.
    """

    marginal = marginals.marginal
    strongest = marginals.strongest
    cut = marginals.cut
    report = marginals.report
    constants = marginals.constants
    joint = joint_matrix.joint
    tables = edge_tables.tables
    edges = edge_tables.edges
    edge_batches = edge_tables.edge_batches
    paths = search.paths
    reduced = reduced.reduced

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        inputs = self.topology.inputs
        given = self.condition is not None
        facts = pairs_of(
            [
                ("input", ", ".join(f"{info.name} {info.shape}" for info in inputs)),
                ("target", self.target_text().removeprefix("target ")),
                ("logit", self.logit),
                ("predicted", self.outputs.text(self.predicted, self.classes)),
                ("given", repr(self.condition) if given else None),
                ("R(given)", self.condition_relevance if given else None),
                ("its error", self.condition_error if given else None),
                ("amplification", self.amplification if given else None),
                ("absorbed", self.absorbed),
                ("meaning", self.meaning),
                *(("flag", str(flag)) for flag in self.flags),
            ]
        )
        columns = ("layer", "kind", "sum", "total_variation", "bias", "stabilizer", "remainder")
        return facts, table_of(self.report(), columns, caption="Its layers, from the output")

    def subgraph(
        self, top: int = 200, *, connected: bool = True, by: By | None = None
    ) -> nx.DiGraph:
        """Return ``top`` edges, at most; see :func:`nrm_graph.graphs.subgraph.subgraph`.

        Every node is reached from the target and leads on to an end; with ``connected=False`` they
        are the strongest edges, wherever they stand.  ``by`` chooses other units than the
        measure's, finer or coarser: see :func:`nrm_graph.network.grouped_units.asked_units`.

        ``graph["meaning"]`` says what a positive number speaks for, and ``graph["flags"]`` what
        else to know (:attr:`flags`).
        """
        from nrm_graph.graphs.subgraph import subgraph

        measure = edge_tables.in_units(self, by)
        nodes, edges = edge_tables.tables(measure)
        kinds = kinds_of(measure.partitions, self.partitions)
        graph = subgraph(
            self.topology,
            nodes,
            edges,
            top,
            self.scale,
            kinds,
            self.tokens,
            connected=connected,
        )
        graph.graph |= self.facts
        if by is not None:
            changed = zip(self.topology.layers, kinds, self.partitions, strict=True)
            graph.graph["by"] = {
                layer.name: kind.resolution
                for layer, kind, part in changed
                if kind.resolution != part.resolution
            }
        return graph

    def with_units(self, by: By) -> Self:
        """Return the same measure with other units, finer or coarser, in tables and pictures.

        Parameters
        ----------
        by : str or mapping of layer name to str or array
            As :func:`nrm_graph.network.grouped_units.asked_units` takes it.

        Raises
        ------
        InputError
            If the units are unknown, or the measure is conditioned: its condition may name units.

        Examples
        --------
        >>> import torch, nrm_graph as ng
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> m = ng.measure(net, torch.ones(1, 3, 3), target=0).with_units("channel")
        >>> m.marginal("0").shape
        (2,)
        """
        if self.condition is not None:
            raise InputError(
                "units are chosen before a condition, which may name them: "
                "m.with_units(by).given(event)"
            )
        return edge_tables.in_units(self, by)

    def heatmap(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the relevance of the input; see :func:`nrm_graph.plots.plot_heatmap`.

        ``m.given(unit).heatmap(image=...)`` is a unit's own heat map.
        """
        from nrm_graph.plots import plot_heatmap

        return plot_heatmap(self, ax, **options)
