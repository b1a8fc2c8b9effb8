"""Where two groups of inputs differ: edge by edge, tested over keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.circuits import statistics
from nrm_graph.circuits.checks import check_count
from nrm_graph.circuits.edge_graph import edge_graph, with_names
from nrm_graph.circuits.edges import (
    blocks,
    choose_edges,
    key_means,
    key_shares,
    nullable,
    pair_codes,
)
from nrm_graph.circuits.nodes import absorbed_share, node_sums
from nrm_graph.circuits.source import single
from nrm_graph.errors import InputError
from nrm_graph.network.weighted_targets import order
from nrm_graph.propagation.flags import reading
from nrm_graph.store.input_group import InputGroup, group, notes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import networkx as nx
    from numpy.typing import NDArray

    from nrm_graph.circuits.source import Source
    from nrm_graph.network.grouped_units import By
    from nrm_graph.network.targets import Sought
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.store.view import View

_STATISTICS = ("mean_a", "mean_b", "stderr", "welch_p", "welch_q", "permutation_p", "permutation_q")


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
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
        Difference of the means of the nodes at the edges' ends: ``layer_id``, ``unit``,
        ``relevance``.
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
    resolutions: tuple[str, ...] = field(repr=False)
    by: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def targets(self) -> tuple[tuple[Aim, ...], tuple[Aim, ...]]:
        """Targets that each group explains, or the texts of their weights."""
        return _aims(self.a), _aims(self.b)

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
            self.resolutions,
            self.nodes,
            self.table,
            "difference",
            top,
            _STATISTICS,
        )
        keys = {*self.a.keys, *self.b.keys}
        graph.graph |= {
            "inputs": len({*self.a.ids.tolist(), *self.b.ids.tolist()}),
            "keys": tuple(sorted(keys)),
            "weight": self.weight,
            "where": f"({_where(self.a)}) minus ({_where(self.b)})",
            "absorbed_a": self.absorbed[0],
            "absorbed_b": self.absorbed[1],
            "meaning": self.meaning,
            "flags": self.notes,
            "reading": self.a.bias,
        }
        if self.by:
            graph.graph["by"] = dict(self.by)
        if self.a.target is not None and self.a.target == self.b.target:
            graph.graph["target"] = self.a.target
        return graph

    def __repr__(self) -> str:
        n_a, n_b = (len(set(g.keys)) for g in (self.a, self.b))
        quantity = "R x logit" if self.weight == "logit" else "R"
        lines = [
            f"<Contrast of {quantity}: {n_a:,} keys ({_where(self.a)}) minus {n_b:,} "
            f"({_where(self.b)}){', paired' if self.paired else ''}",
            f"  {len(self.table):,} edges; {self.adjust.upper()} q < 0.05: "
            f"{_below(self.table['welch_q'])} ({'paired t' if self.paired else 'Welch'}), "
            f"{_below(self.table['permutation_q'])} (permutations"
            f"{', all' if self.exact else f', {self.draws:,} drawn'})",
            f"  absorbed: {self.absorbed[0]:.3f} and {self.absorbed[1]:.3f}",
            *(
                f"  {row['dst']}[{row['dst_unit']}] <- {row['src']}[{row['src_unit']}]: "
                f"{row['difference']:.4g}"
                + ("" if row["stderr"] is None else f" +- {row['stderr']:.2g}")
                for row in self.table.slice(0, 5).to_pylist()
            ),
            f"  {self.meaning}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines) + ">"


def _aims(g: InputGroup) -> tuple[Aim, ...]:
    return tuple(sorted(set(g.aims), key=order))


def _where(g: InputGroup) -> str:
    return "all" if g.where is None else g.where


def _below(q: pa.ChunkedArray) -> int:
    return sum(value is not None and value < 0.05 for value in q.to_pylist())


def contrast(
    db: View,
    a: str | None,
    b: str | None,
    *,
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
    """Compare two groups of inputs, edge by edge.

    The unit of replication is the key: several targets of a key in one group are averaged first.
    Keys that are all in both groups are pairs (a paired t-test, and permutations within keys).

    Parameters
    ----------
    db : Database
        The store.
    a, b : str or None
        SQL conditions over ``inputs`` that choose the groups; None is all.
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
        If a group is empty or has mixed targets, some keys but not all are in both groups, or
        scipy is not installed (``nrm-graph[stats]``).
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
    first, second = (
        group(db, where, target=target, mixed_targets=mixed_targets) for where in (a, b)
    )
    is_paired = _design(first, second)
    pooled = single(db, _pooled(first, second), weight, tables, by)
    chosen, unknown = choose_edges(db, pooled, edges, "rms", exact)
    both = single(db, first, weight, tables, by), single(db, second, weight, tables, by)
    columns, enumerated = _tests(db, both, chosen, is_paired, draws, seed, exact)
    for test in ("welch", "permutation"):
        columns[f"{test}_q"] = statistics.q_values(columns[f"{test}_p"], pair_codes(chosen), adjust)
    table = with_names(db.topology, chosen)
    for name in ("mean_a", "mean_b", "difference", *_STATISTICS[2:]):
        table = table.append_column(name, nullable(columns[name]))
    sizes = [len(set(g.keys)) for g in (first, second)]
    for name, size in zip(("n_a", "n_b"), sizes, strict=True):
        table = table.append_column(name, pa.array(np.full(len(table), size)))
    order = np.argsort(-np.abs(columns["difference"]), kind="stable")
    return Contrast(
        first,
        second,
        table.take(pa.array(order)),
        _node_differences(db, *both, chosen),
        is_paired,
        weight,
        adjust,
        draws,
        enumerated,
        (absorbed_share(db, both[0]), absorbed_share(db, both[1])),
        unknown,
        (*_notes(db, first, second, sizes, unknown), *_flagged(db, first, second, weight)),
        db.topology,
        pooled.resolutions(db),
        {} if pooled.units is None else pooled.units.names,
    )


def _design(a: InputGroup, b: InputGroup) -> bool:
    """Whether the groups are of the same keys; anything between that and none is refused."""
    ours, theirs = set(a.keys), set(b.keys)
    both = ours & theirs
    if both and ours != theirs:
        raise InputError(
            f"{len(both):,} of {len(ours | theirs):,} keys are in both groups, such as "
            f"{min(both)!r}: expected none (separate groups) or all of them (pairs); let the "
            "conditions exclude each other"
        )
    return bool(both)


def _pooled(a: InputGroup, b: InputGroup) -> InputGroup:
    """Both groups together, each pair once."""
    new = b.take(np.flatnonzero(~np.isin(b.ids, a.ids)))
    weighted = a.weighted or new.weighted
    both = InputGroup(
        None,
        np.concatenate([a.ids, new.ids]),
        a.keys + new.keys,
        a.labels + new.labels,
        np.concatenate([a.targets, new.targets]),
        np.concatenate([a.logits, new.logits]),
        sum((g.weighted or (None,) * len(g) for g in (a, new)), ()) if weighted else (),
        a.bias,
    )
    return both.take(np.argsort(both.ids))


def _tests(
    db: View,
    both: tuple[Source, Source],
    edges: pa.Table,
    is_paired: bool,
    draws: int,
    seed: int,
    computed: bool,
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """Statistics of every edge, and whether permutations were enumerated."""
    names = ("mean_a", "mean_b", "difference", "stderr", "welch_p", "permutation_p")
    columns = {name: np.zeros(len(edges)) for name in names}
    exact = False
    for part, block in blocks(edges, sum(len(rows.group) for rows in both)):
        keys: list[str] = []
        means = []
        for rows in both:
            group_keys, mean = key_means(db, rows, block, computed)
            keys += group_keys
            means.append(mean)
        columns["mean_a"][part], columns["mean_b"][part] = (m.mean(0) for m in means)
        if is_paired:
            within = means[0] - means[1]
            columns["stderr"][part], columns["welch_p"][part] = statistics.paired(within)
            p, exact = statistics.sign_flips(within, draws, seed)
        else:
            columns["stderr"][part], columns["welch_p"][part] = statistics.welch(*means)
            order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
            values = np.concatenate(means)[order]
            p, exact = statistics.label_permutations(values, order < len(means[0]), draws, seed)
        columns["permutation_p"][part] = p
    columns["difference"] = columns["mean_a"] - columns["mean_b"]
    return columns, exact


def _node_differences(db: View, a: Source, b: Source, edges: pa.Table) -> pa.Table:
    """Difference of the means, over keys, of the nodes at the ends of edges."""
    ids = np.concatenate([a.group.ids, b.group.ids])
    shares = [key_shares(a.group.keys) * a.weight, -key_shares(b.group.keys) * b.weight]
    return node_sums(db, edges, ids, np.concatenate(shares), a.nodes, a.tables)


def _flagged(db: View, a: InputGroup, b: InputGroup, weight: str) -> Iterator[str]:
    """Say how many inputs of each group are flagged."""
    for g, name in ((a, "first"), (b, "second")):
        yield from notes_of(db, g, weight, f"inputs of the {name} group")


def _notes(db: View, a: InputGroup, b: InputGroup, sizes: list[int], unknown: int) -> list[str]:
    """Say what to know before reading the numbers."""
    notes = []
    if a.target is None or a.target != b.target:
        outputs = [", ".join(map(db.outputs.text, _aims(g)[:5])) for g in (a, b)]
        notes.append(
            f"the groups explain different outputs, {outputs[0]} and {outputs[1]}: a difference "
            "may be one of the questions; target= fixes one for both"
        )
    if min(sizes) < 2:
        notes.append(
            f"no p-values: the groups have {sizes[0]:,} and {sizes[1]:,} keys, and a test needs "
            "at least 2 in each"
        )
    if unknown:
        notes.append(
            f"{unknown:,} edges are left out: the store prunes their pair of layers, and some "
            "input has no row of them, which is unknown and not zero; exact=True computes them"
        )
    return notes
