"""Where two groups of inputs differ: edge by edge, tested over keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.circuits import statistics
from nrm_graph.circuits.checks import check_count
from nrm_graph.circuits.compared_groups import (
    aims_of,
    comparability,
    differences,
    flagged,
    pairing,
    same_inputs,
    second_store,
)
from nrm_graph.circuits.edge_graph import edge_graph, edge_text, with_names
from nrm_graph.circuits.edges import nullable, pair_codes
from nrm_graph.circuits.nodes import absorbed_share, ends_of
from nrm_graph.circuits.positions import check_same_length, position_notes
from nrm_graph.circuits.sides import STATISTICS, choose_edges, edge_tests, node_tests, two_sides
from nrm_graph.circuits.source import single
from nrm_graph.propagation.flags import reading
from nrm_graph.store.input_group import InputGroup, group
from nrm_graph.tables.html_tables import Description, HtmlTable, Tabular, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import networkx as nx
    from numpy.typing import NDArray

    from nrm_graph.network.grouped_units import By
    from nrm_graph.network.targets import Sought
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.unit_names import UnitKind
    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.store.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(Tabular):
    r"""Difference of the means of two groups of inputs, edge by edge.

    Attributes
    ----------
    a, b : InputGroup
        The groups.
    table : pyarrow.Table
        One row per edge, that of the largest \|difference\| first: ``dst_layer``, ``dst_unit``,
        ``src_layer``, ``src_unit``, the layers' names ``dst`` and ``src``, ``mean_a``, ``mean_b``,
        ``difference`` (of the means, a minus b) and its ``stderr``, ``welch_p`` and ``welch_q``
        (with ``paired``, of the paired t-test), ``permutation_p`` and ``permutation_q``, ``n_a``
        and ``n_b``, the numbers of keys.  What is undefined is null.
    nodes : pyarrow.Table
        One row per node at the edges' ends: ``layer_id``, ``unit``, ``layer`` (its name),
        ``relevance`` (the difference of the means), and columns as those of edges.
    paired : bool
        Whether every key is in both groups.
    weight, adjust : str
        As asked.
    draws : int
        Labelings of the permutation test, when they are drawn.
    exact : bool
        Whether all labelings were enumerated instead.
    absorbed : tuple of float
        Mean share of the measure that biases, stabilizers and remainders hold, in a and b.
    unknown : int
        Edges left out because the store prunes their pair of layers and an input has no row of
        them: there an absent row is no zero.
    notes : tuple of str
        What to know before reading the numbers.
    by : mapping of str to str
        What the units are of layers whose units were summed to coarser ones.
    stores : tuple of str
        Names of the two stores that the groups are of; empty where that is one.
    """

    a: InputGroup
    b: InputGroup
    table: pa.Table
    nodes: pa.Table
    paired: bool
    weight: str
    adjust: str
    draws: int
    exact: bool
    absorbed: tuple[float, float]
    unknown: int
    notes: tuple[str, ...]
    topology: Topology = field(repr=False)
    kinds: tuple[UnitKind, ...] = field(repr=False)
    by: Mapping[str, str] = field(default_factory=dict, repr=False)
    stores: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[tuple[Aim, ...], tuple[Aim, ...]]:
        """Targets that each group explains, or the texts of their weights."""
        return aims_of(self.a), aims_of(self.b)

    @property
    def meaning(self) -> str:
        """What a positive difference speaks for, in words."""
        logits = [*self.a.logits.tolist(), *self.b.logits.tolist()]
        sense = "a positive difference is of shares, whose sign turns with that of an input's logit"
        if self.weight == "logit" or min(logits) >= 0:
            sense = "a positive difference speaks more for the target in the first group"
        elif max(logits) < 0:
            sense = "a positive difference speaks more against the target in the first group"
        return reading(sense, self.a.bias)

    def graph(self, top: int = 50) -> nx.DiGraph:
        r"""Graph of the strongest differences.

        Parameters
        ----------
        top : int
            Number of edges.

        Returns
        -------
        networkx.DiGraph
            As of :meth:`nrm_graph.database.Database.circuit`, to be drawn and exported as one:
            ``relevance`` of nodes and edges is the difference; edges have the further columns of
            the table.  ``graph["share"]`` is of the sum of \|difference\| over the table.
        """
        graph = edge_graph(
            self.topology,
            self.kinds,
            self.nodes,
            self.table,
            "difference",
            top,
            STATISTICS,
        )
        keys = {*self.a.keys, *self.b.keys}
        graph.graph |= {
            "inputs": len({*self.a.ids.tolist(), *self.b.ids.tolist()}),
            "keys": tuple(sorted(keys)),
            "weight": self.weight,
            "where": " minus ".join(f"({name})" for name in self._names),
            "contrast": True,
            "absorbed_a": self.absorbed[0],
            "absorbed_b": self.absorbed[1],
            "meaning": self.meaning,
            "flags": self.notes,
            "reading": self.a.bias,
        }
        if self.by:
            graph.graph["by"] = dict(self.by)
        names = {layer.layer_id: layer.name for layer in self.topology.layers}
        for row in self.nodes.to_pylist():
            node = (names[row["layer_id"]], row["unit"])
            if node in graph:
                statistics = {name: row[name] for name in STATISTICS if row[name] is not None}
                graph.nodes[node].update(statistics)
        if self.a.target is not None and self.a.target == self.b.target:
            graph.graph |= self.a.target_facts
        return graph

    @property
    def _names(self) -> tuple[str, ...]:
        """What each group is of."""
        groups = tuple("all" if g.where is None else g.where for g in (self.a, self.b))
        if not self.stores:
            return groups
        return tuple(f"{g} of {s}" for g, s in zip(groups, self.stores, strict=True))

    def _description(self) -> Description:
        n_a, n_b = (len(set(g.keys)) for g in (self.a, self.b))
        quantity = "R x logit" if self.weight == "logit" else "R"
        title = (
            f"Contrast of {quantity}: {n_a:,} keys ({self._names[0]}) minus {n_b:,} "
            f"({self._names[1]}){', paired' if self.paired else ''}"
        )
        lines = (
            f"{len(self.table):,} edges; {self.adjust.upper()} q < 0.05: "
            f"{_below(self.table['welch_q'])} ({'paired t' if self.paired else 'Welch'}), "
            f"{_below(self.table['permutation_q'])} (permutations"
            f"{', all' if self.exact else f', {self.draws:,} drawn'})",
            f"absorbed (mean share that ends in biases, stabilizers and remainders): "
            f"{self.absorbed[0]:.3f} and {self.absorbed[1]:.3f}",
        )
        strongest = (
            f"{edge_text(row)}: {row['difference']:.4g}"
            + ("" if row["stderr"] is None else f" +- {row['stderr']:.2g}")
            for row in self.table.slice(0, 5).to_pylist()
        )
        notes = (self.meaning, *(f"note: {note}" for note in self.notes))
        return Description(title, lines, tuple(strongest), notes)

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        ends = ("src", "src_unit", "src_name", "dst", "dst_unit", "dst_name")
        columns = (*ends, "difference", *STATISTICS)
        return (table_of(self.table, columns, caption="Its edges, the largest difference first"),)

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table`."""
        return self.table


def _below(q: pa.ChunkedArray) -> int:
    return sum(value is not None and value < 0.05 for value in q.to_pylist())


def contrast(
    db: View,
    a: str | None,
    b: str | None = None,
    *,
    other: View | None = None,
    edges: int = 1000,
    weight: str = "logit",
    target: Sought | None = None,
    mixed_targets: bool = False,
    adjust: str = "bh",
    draws: int = 10_000,
    seed: int = 0,
    exact: bool = False,
    tables: str | None = None,
    by: By | None = None,
) -> Contrast:
    """Compare two groups of inputs, edge by edge and node by node; or one group in two stores.

    The unit of replication is the key: several targets of a key in one group are averaged first.
    Keys that are all in both groups are pairs (a paired t-test, and permutations within keys).
    With ``other`` the same keys and targets are pairs: of checkpoints, of a fine-tuned network and
    its base, of clean and attacked inputs.

    Parameters
    ----------
    db : Database
        The store.
    a, b : str or None
        SQL conditions over ``inputs`` that choose the groups; None is all, of ``a`` alone.
    other : Database, optional
        In place of ``b``: the same inputs in another store, chosen by ``a`` there as well.  Keys
        that are in one alone, or of which another target is explained there, are counted in a note
        and left out, as are layers that the other network has none like.
    edges : int
        Number of edges to compare: those of the largest root mean square over both groups
        together, so that the choice knows nothing of the labels that are tested.
    weight : "logit" or "unit"
        Compare relevance times logit, or relevance.
    target : int, tuple, mapping or str, optional
        Only inputs of this target (index, place, weights or their text), in both groups.  Without
        it the groups may explain different outputs, as those of two classes do, and the answer says
        so.
    mixed_targets : bool
        Allow different targets within a group.
    adjust : "bh" or "by"
        q-values after Benjamini and Hochberg, or Benjamini and Yekutieli (under any dependence),
        within each pair of layers.
    draws : int
        Labelings that the permutation test draws; all are enumerated where there are no more.
    seed : int
        Seed of the labelings.
    exact : bool
        Of a store that leaves edges out: compute the chosen edges for every input from the stored
        program, where an input has no row of one as well, instead of leaving edges out.
        An interrupted call goes on where it stopped when it is made again of the same ``Database``.
    tables : str, optional
        Reduced tables that ``db.materialize(name=..., watch=...)`` made, by their name, in place of
        the store's own; with an event, the inputs' conditional relevances, defined of all.
    by : str or mapping of layer name to str or array, optional
        Sum the store's units to coarser ones, as in :meth:`nrm_graph.database.Database.circuit`.

    Returns
    -------
    Contrast
        Its table, graph and notes.

    Raises
    ------
    InputError
        If a group is empty or has mixed targets, some keys but not all are in both groups, two
        stores share no key and target or no layers, or scipy is not installed
        (``nrm-graph[stats]``).
    QueryError
        If ``a`` or ``b`` is not one SQL condition over ``inputs``.

    Notes
    -----
    Welch's test asks whether means are equal; permutations ask whether labels are exchangeable.
    In groups of one key the difference is given, and no p- and q-values.

    Edges are chosen by the stored rows of all keys, whatever their labels.  Such a choice is the
    same for every labeling, so permutations keep their level; and of normal values it is
    independent of the t statistic under the hypothesis (Basu's theorem: a pooled sum of squares is
    a function of what is complete and sufficient).  No keys need to be set aside for it.

    Examples
    --------
    >>> found = contrast(db, "label = 'cat'", "label = 'dog'")  # doctest: +SKIP
    >>> found.table, found.graph(top=50), found.notes  # doctest: +SKIP
    """
    statistics.check_adjustment(adjust)
    check_count("edges", edges)
    check_count("draws", draws)
    check_count("seed", seed, 0)
    second_db = second_store(db, b, other, tables)
    first = group(db, a, target=target, mixed_targets=mixed_targets)
    second = group(second_db, b if other is None else a, target=target, mixed_targets=mixed_targets)
    notes: list[str] = []
    if other is None:
        is_paired = pairing(first, second)
    else:
        (first, second), is_paired = same_inputs(first, second, notes), True
    rows = single(db, first, weight, tables, by)
    *both, apart = two_sides(db, rows, second_db, single(second_db, second, weight, tables, by))
    check_same_length(rows.tokens, both[1].rows.tokens)
    notes += [*differences(db, second_db, apart), *position_notes(rows.tokens)]
    chosen, unknown = choose_edges(both, edges, exact)
    columns, enumerated = edge_tests(both, chosen, is_paired, draws, seed, exact)
    table = with_names(db.topology, rows.kinds(db), chosen)
    sizes = [len(set(g.keys)) for g in (first, second)]
    table = _with_tests(table, columns, pair_codes(chosen), adjust, "difference")
    for name, size in zip(("n_a", "n_b"), sizes, strict=True):
        table = table.append_column(name, pa.array(np.full(len(table), size)))
    order = np.argsort(-np.abs(columns["difference"]), kind="stable")
    nodes = ends_of(chosen)
    layers = nodes["layer_id"].to_numpy()
    names = np.array([layer.name for layer in db.topology.layers], object)
    tests = node_tests(both, nodes, is_paired, draws, seed)
    nodes = nodes.append_column("layer", pa.array(names[layers], pa.string()))
    nodes = nodes.append_column("activation", pa.nulls(len(nodes), pa.float64()))
    return Contrast(
        first,
        second,
        table.take(pa.array(order)),
        _with_tests(nodes, tests, layers.astype(np.int64), adjust, "relevance"),
        is_paired,
        weight,
        adjust,
        draws,
        enumerated,
        (absorbed_share(db, rows), absorbed_share(second_db, both[1].rows)),
        unknown,
        (
            *notes,
            *comparability(db, first, second, sizes, unknown),
            *flagged((db, second_db), (first, second), weight),
        ),
        db.topology,
        rows.kinds(db),
        {} if rows.units is None else rows.units.names,
        () if other is None else (db.path.name, second_db.path.name),
    )


def _with_tests(
    table: pa.Table,
    columns: dict[str, NDArray[np.float64]],
    families: NDArray[np.int64],
    adjust: str,
    difference: str,
) -> pa.Table:
    """Append statistics, and q-values within families."""
    for test in ("welch", "permutation"):
        columns[f"{test}_q"] = statistics.q_values(columns[f"{test}_p"], families, adjust)
    for name in ("mean_a", "mean_b", "difference", *STATISTICS[2:]):
        column = nullable(columns[name])
        table = table.append_column(difference if name == "difference" else name, column)
    return table
