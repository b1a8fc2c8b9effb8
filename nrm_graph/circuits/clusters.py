"""Groups of inputs that a network treats alike, within a class: sub-strategies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph._optional import stats_library
from nrm_graph.circuits.checks import check_count
from nrm_graph.circuits.clustering import choose, divide, normalized, rotated, standardized
from nrm_graph.circuits.edge_graph import edge_graph, edge_text, with_names
from nrm_graph.circuits.edges import blocks, key_means, nullable, varying_edges
from nrm_graph.circuits.nodes import ends_of, node_means
from nrm_graph.circuits.source import single
from nrm_graph.errors import InputError
from nrm_graph.propagation import flags
from nrm_graph.store.input_group import InputGroup, group
from nrm_graph.tables.html_tables import Description, HtmlTable, Tabular, table_of

if TYPE_CHECKING:
    import networkx as nx
    from numpy.typing import NDArray

    from nrm_graph.circuits.source import Source
    from nrm_graph.network.targets import Sought
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.unit_names import UnitKind
    from nrm_graph.store.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(Tabular):
    """Keys of a group, divided by how relevance flows.

    Attributes
    ----------
    group : InputGroup
        The inputs.
    assignment : pyarrow.Table
        One row per key, in order: ``key``, ``label``, ``cluster`` (0 is the largest; null for a
        key without relevance on the chosen edges) and ``silhouette`` (from -1 to 1; null with one
        cluster).
    clusters : pyarrow.Table
        One row per cluster: ``cluster``, ``size`` and the mean ``silhouette``.
    edges : pyarrow.Table
        One row per cluster and edge, those that tell the cluster from the others best first:
        ``cluster``, ``dst_layer``, ``dst_unit``, ``src_layer``, ``src_unit``, ``dst``, ``src``,
        ``mean`` (mean relevance over the cluster's keys), ``rest`` (over the other clusters'
        keys; null with one cluster) and ``separation``, the share of the variance of the
        normalised flow that this division explains, from 0 to 1.
    choice : pyarrow.Table
        Where ``k`` was chosen: ``k``, the ``silhouette`` it gives; empty where it was given.
    reference : float or None
        Where ``k`` was chosen: the largest silhouette of structureless data.
    unknown : int
        Edges left out because the store prunes their pair of layers and an input has no row of
        them.
    """

    group: InputGroup
    assignment: pa.Table
    clusters: pa.Table
    edges: pa.Table
    choice: pa.Table
    reference: float | None
    unknown: int
    nodes: tuple[pa.Table, ...] = field(repr=False)
    topology: Topology = field(repr=False)
    kinds: tuple[UnitKind, ...] = field(repr=False)

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.clusters)

    @property
    def silhouette(self) -> float | None:
        """Mean over the keys, or None with one cluster."""
        values = self.assignment["silhouette"].drop_null().to_numpy()
        return float(values.mean()) if len(values) else None

    def graph(self, cluster: int, top: int = 50) -> nx.DiGraph:
        """Graph of the strongest edges of a cluster's mean flow.

        Parameters
        ----------
        cluster : int
            Its number.
        top : int
            Number of edges.

        Returns
        -------
        networkx.DiGraph
            As of :meth:`nrm_graph.database.Database.circuit`, of the edges that were chosen;
            edges have ``rest`` and ``separation`` too.
        """
        check_count("cluster", cluster, 0)
        if cluster >= self.k:
            raise InputError(f"there are {self.k} clusters, from 0 on: there is no {cluster}")
        rows = self.edges.filter(np.asarray(self.edges["cluster"]) == cluster)
        graph = edge_graph(
            self.topology,
            self.kinds,
            self.nodes[cluster],
            rows,
            "mean",
            top,
            ("rest", "separation"),
        )
        keys = [r["key"] for r in self.assignment.to_pylist() if r["cluster"] == cluster]
        graph.graph |= {"inputs": len(keys), "keys": tuple(keys), "weight": "unit"}
        members = np.isin(np.array(self.group.keys, object), keys)
        logits = self.group.logits[members].tolist()
        graph.graph |= {
            "meaning": flags.reading(flags.group_meaning(logits, "unit"), self.group.bias),
            "reading": self.group.bias,
            "flags": flags.group_notes(logits, (), "unit"),
        }
        graph.graph |= self.group.target_facts
        graph.graph |= {} if self.group.where is None else {"where": self.group.where}
        return graph

    def _description(self) -> Description:
        chosen = "all inputs" if self.group.where is None else self.group.where
        lines, notes = [f"{self.k} clusters of {len(self.assignment):,} keys ({chosen})"], []
        if self.silhouette is not None:
            lines[0] += f", silhouette {self.silhouette:.3f}"
        if self.reference is not None:
            best = max(self.choice["silhouette"].to_pylist(), default=None)
            best_text = "none" if best is None else f"{best:.3f}"
            lines.append(
                f"k was chosen: the best silhouette is {best_text}, that of structureless data "
                f"up to {self.reference:.3f}"
            )
        rows = (
            f"{row['cluster']}: {row['size']:,} keys, told by {self._told_by(row['cluster'])}"
            for row in self.clusters.to_pylist()
        )
        if not self.k:
            notes.append("no edge's relevance differs between the keys: there are no clusters")
        elif missing := self.assignment["cluster"].null_count:
            notes.append(f"{missing:,} keys have no relevance on the chosen edges")
        if self.unknown:
            notes.append(
                f"{self.unknown:,} edges of pruned pairs are left out; exact=True computes them"
            )
        return Description(lines[0], tuple(lines[1:]), tuple(rows), tuple(notes))

    def _told_by(self, cluster: int) -> str:
        """Name the edges that tell a cluster from the others best."""
        rows = self.edges.filter(np.asarray(self.edges["cluster"]) == cluster).slice(0, 3)
        return ", ".join(map(edge_text, rows.to_pylist())) or "no edge"

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        told = pa.array(map(self._told_by, self.clusters["cluster"].to_pylist()), pa.string())
        return (
            table_of(self.clusters.append_column("told by", told)),
            table_of(self.assignment, caption="Its keys"),
        )

    def to_arrow(self) -> pa.Table:
        """Return :attr:`assignment`."""
        return self.assignment


def clusters(
    db: View,
    where: str | None = None,
    *,
    k: int | None = None,
    edges: int = 500,
    target: Sought | None = None,
    mixed_targets: bool = False,
    seed: int = 0,
    exact: bool = False,
    tables: str | None = None,
) -> Clusters:
    r"""Divide the inputs of a group by how their relevance flows.

    Within a class, clusters are different strategies for the same decision, as spectral relevance
    analysis finds them in heat maps (Lapuschkin et al. 2019); here in flows.

    Parameters
    ----------
    db : Database
        The store.
    where : str, optional
        SQL condition over ``inputs`` that chooses the group; all by default.
    k : int, optional
        Number of clusters; chosen by default, see the notes.
    edges : int
        Number of edges that flows are compared on: those of the largest standard deviation.
    target, mixed_targets
        As in :meth:`nrm_graph.database.Database.circuit`.  Several targets of a key are averaged.
    seed : int
        Seed of the starts and references.
    exact : bool
        Of a store that leaves edges out: compute the chosen edges for every input from the stored
        program, where an input has no row of one as well, instead of leaving edges out.
        An interrupted call goes on where it stopped when it is made again of the same ``Database``.
    tables : str, optional
        Reduced tables that ``db.materialize(name=..., watch=...)`` made, by their name, in place of
        the store's own; with an event, the inputs' conditional relevances, defined of all.

    Returns
    -------
    Clusters
        Assignment of keys, mean flows and the edges that tell clusters apart.

    Raises
    ------
    InputError
        If no input is chosen, targets differ, there are fewer different flows than ``k``, or
        scikit-learn is not installed (``nrm-graph[stats]``).

    Notes
    -----
    A flow is normalised to sign(R) \|R\|\ :sup:`1/2` of length 1 (the Hellinger distance, with
    signs), standardized edge by edge, so that no edge decides alone, and brought to length 1
    again; then :class:`sklearn.cluster.KMeans` divides the keys.

    ``k`` is chosen from 2 to 8 by the mean silhouette (Rousseeuw 1987), on at most 500 keys.  Any
    data has a best k, so the same is done with 19 draws of a normal distribution of the same
    means and covariances: unless the silhouette exceeds all of theirs, k is 1.  This seldom finds
    what is not there, and needs keys to find what is: tens, not ten.  ``choice`` and ``reference``
    hold the numbers, and ``k`` can be given.

    The clusters were found in these flows, so a test on the same flows that they differ would be
    circular; ``separation`` describes and tests nothing.

    Examples
    --------
    >>> found = clusters(db, "label = 'cat'")  # doctest: +SKIP
    >>> found.assignment, found.graph(0)  # doctest: +SKIP
    """
    check_count("edges", edges)
    check_count("seed", seed, 0)
    if k is not None:
        check_count("k", k)
    chosen = group(db, where, target=target, mixed_targets=mixed_targets)
    rows = single(db, chosen, "unit", tables)
    names, unknown = varying_edges(db, rows, edges, exact)
    keys, flows = _flows(db, rows, names, exact)
    flowing = np.flatnonzero(np.abs(flows).sum(1))
    standard = standardized(flows[flowing])
    points = rotated(normalized(standard))
    distinct = len(np.unique(points.round(9), axis=0))
    choice: list[tuple[int, float]] = []
    reference = None
    if k is None:
        k, choice, reference = choose(points, distinct, seed)
    elif k > max(distinct, 1):
        raise InputError(f"{k} clusters were asked for, and there are {distinct:,} different flows")
    assigned = divide(points, k, seed)
    silhouettes = np.full(len(keys), np.nan)
    if k > 1 and k < len(points):
        score = stats_library("sklearn.metrics").silhouette_samples
        silhouettes[flowing] = score(points, assigned)
    label = dict(zip(chosen.keys, chosen.labels, strict=True))
    cluster = np.full(len(keys), -1)
    cluster[flowing] = assigned
    count = int(assigned.max()) + 1 if len(assigned) else 0
    nodes = ends_of(names)
    _, relevance = node_means(db, rows, nodes)
    return Clusters(
        chosen,
        pa.table(
            {
                "key": pa.array(keys, pa.string()),
                "label": pa.array([label[key] for key in keys], pa.string()),
                "cluster": pa.array(cluster, pa.int64(), mask=cluster < 0),
                "silhouette": nullable(silhouettes),
            }
        ),
        _summary(assigned, silhouettes[flowing], count),
        _edge_table(
            with_names(db.topology, rows.kinds(db), names),
            flows[flowing],
            standard,
            assigned,
            count,
        ),
        pa.table(
            {
                "k": pa.array([n for n, _ in choice], pa.int64()),
                "silhouette": pa.array([value for _, value in choice], pa.float64()),
            }
        ),
        reference,
        unknown,
        tuple(_nodes(nodes, relevance[cluster == c]) for c in range(count)),
        db.topology,
        rows.kinds(db),
    )


def _flows(
    db: View, rows: Source, edges: pa.Table, exact: bool
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Keys, and the mean over targets of each key's edges, (K, E)."""
    keys = tuple(sorted(set(rows.group.keys)))
    flows = np.zeros((len(keys), len(edges)))
    for part, block in blocks(edges, len(rows.group)):
        _, flows[:, part] = key_means(db, rows, block, exact)
    return keys, flows


def _summary(assigned: NDArray[np.int64], silhouettes: NDArray[np.float64], count: int) -> pa.Table:
    means = [silhouettes[assigned == c].mean() for c in range(count)]
    return pa.table(
        {
            "cluster": pa.array(range(count), pa.int64()),
            "size": pa.array(np.bincount(assigned, minlength=count), pa.int64()),
            "silhouette": nullable(np.array(means, np.float64)),
        }
    )


def _edge_table(
    edges: pa.Table,
    flows: NDArray[np.float64],
    standard: NDArray[np.float64],
    assigned: NDArray[np.int64],
    count: int,
) -> pa.Table:
    """Mean flow of every cluster, and how well each edge tells it from the others."""
    empty = np.zeros(0)
    tables = [_rows(edges.slice(0, 0), 0, empty, empty, empty)]
    for c in range(count):
        members = assigned == c
        mean = flows[members].mean(0)
        rest, apart = np.full(len(mean), np.nan), np.zeros(len(mean))
        if not members.all():
            rest = flows[~members].mean(0)
            between = standard[members].mean(0) - standard[~members].mean(0)
            apart = members.mean() * (1 - members.mean()) * between**2
        order = np.lexsort([-np.abs(mean), -apart])
        tables.append(_rows(edges.take(pa.array(order)), c, mean[order], rest[order], apart[order]))
    return pa.concat_tables(tables)


def _rows(
    edges: pa.Table,
    cluster: int,
    mean: NDArray[np.float64],
    rest: NDArray[np.float64],
    apart: NDArray[np.float64],
) -> pa.Table:
    edges = edges.add_column(0, "cluster", pa.array(np.full(len(edges), cluster), pa.int64()))
    for name, column in (("mean", mean), ("rest", rest), ("separation", apart)):
        edges = edges.append_column(name, nullable(column))
    return edges


def _nodes(nodes: pa.Table, relevance: NDArray[np.float64]) -> pa.Table:
    """Mean relevance of nodes over the keys of a cluster, whose own are (keys, nodes)."""
    nodes = nodes.append_column("relevance", pa.array(relevance.mean(0)))
    return nodes.append_column("activation", pa.nulls(len(nodes), pa.float64()))
