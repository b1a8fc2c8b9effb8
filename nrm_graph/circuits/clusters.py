"""Groups of inputs that a network treats alike, within a class: sub-strategies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph._optional import stats_library
from nrm_graph.circuits.checks import check_count
from nrm_graph.circuits.clustering import choose, divide, rotated, standardized, unit
from nrm_graph.circuits.edge_graph import edge_graph, with_names
from nrm_graph.circuits.edges import blocks, choose_edges, edge_values, key_shares, nullable
from nrm_graph.circuits.nodes import node_sums
from nrm_graph.circuits.statistics import key_sums
from nrm_graph.errors import InputError
from nrm_graph.propagation import flags
from nrm_graph.store.input_group import Group, group

if TYPE_CHECKING:
    import networkx as nx
    from numpy.typing import NDArray

    from nrm_graph.network.targets import Sought
    from nrm_graph.network.topology import Topology
    from nrm_graph.store.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """Keys of a group, divided by how relevance flows.

    Attributes
    ----------
    group : Group
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

    group: Group
    assignment: pa.Table
    clusters: pa.Table
    edges: pa.Table
    choice: pa.Table
    reference: float | None
    unknown: int
    nodes: tuple[pa.Table, ...] = field(repr=False)
    topology: Topology = field(repr=False)
    resolutions: tuple[str, ...] = field(repr=False)

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.clusters)

    @property
    def silhouette(self) -> float | None:
        """Mean over the keys, or None with one cluster."""
        known = self.assignment["silhouette"].drop_null().to_numpy()
        return float(known.mean()) if len(known) else None

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
        found = edge_graph(
            self.topology,
            self.resolutions,
            self.nodes[cluster],
            rows,
            "mean",
            top,
            ("rest", "separation"),
        )
        keys = [r["key"] for r in self.assignment.to_pylist() if r["cluster"] == cluster]
        found.graph |= {"inputs": len(keys), "keys": tuple(keys), "weight": "unit"}
        own = np.isin(np.array(self.group.keys, object), keys)
        logits = self.group.logits[own].tolist()
        found.graph |= {
            "meaning": flags.group_meaning(logits, "unit"),
            "flags": flags.group_notes(logits, (), "unit"),
        }
        found.graph |= {} if self.group.target is None else {"target": self.group.target}
        found.graph |= {} if self.group.where is None else {"where": self.group.where}
        return found

    def __repr__(self) -> str:
        chosen = "all inputs" if self.group.where is None else self.group.where
        lines = [f"<{self.k} clusters of {len(self.assignment):,} keys ({chosen})"]
        if self.silhouette is not None:
            lines[0] += f", silhouette {self.silhouette:.3f}"
        if self.reference is not None:
            best = max(self.choice["silhouette"].to_pylist(), default=None)
            said = "none" if best is None else f"{best:.3f}"
            lines.append(
                f"  k was chosen: the best silhouette is {said}, that of structureless data up to "
                f"{self.reference:.3f}"
            )
        for row in self.clusters.to_pylist():
            mine = self.edges.filter(np.asarray(self.edges["cluster"]) == row["cluster"])
            told = ", ".join(
                f"{e['dst']}[{e['dst_unit']}] <- {e['src']}[{e['src_unit']}]"
                for e in mine.slice(0, 3).to_pylist()
            )
            lines.append(f"  {row['cluster']}: {row['size']:,} keys, told by {told or 'no edge'}")
        if not self.k:
            lines.append("  no edge's relevance differs between the keys: there are no clusters")
        elif missing := self.assignment["cluster"].null_count:
            lines.append(f"  {missing:,} keys have no relevance on the chosen edges")
        if self.unknown:
            lines.append(f"  {self.unknown:,} edges of pruned pairs of layers are left out")
        return "\n".join(lines) + ">"


def clusters(
    db: View,
    where: str | None = None,
    *,
    k: int | None = None,
    edges: int = 500,
    target: Sought | None = None,
    mixed_targets: bool = False,
    seed: int = 0,
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
    names, unknown = choose_edges(db, chosen, "unit", edges, "std")
    keys, flows = _flows(db, chosen, names)
    some = np.flatnonzero(np.abs(flows).sum(1))
    standard = standardized(flows[some])
    points = rotated(unit(standard))
    distinct = len(np.unique(points.round(9), axis=0))
    choice: list[tuple[int, float]] = []
    reference = None
    if k is None:
        k, choice, reference = choose(points, distinct, seed)
    elif k > max(distinct, 1):
        raise InputError(f"{k} clusters were asked for, and there are {distinct:,} different flows")
    of = divide(points, k, seed)
    silhouettes = np.full(len(keys), np.nan)
    if k > 1 and k < len(points):
        score = stats_library("sklearn.metrics").silhouette_samples
        silhouettes[some] = score(points, of)
    label = dict(zip(chosen.keys, chosen.labels, strict=True))
    cluster = np.full(len(keys), -1)
    cluster[some] = of
    count = int(of.max()) + 1 if len(of) else 0
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
        _summary(of, silhouettes[some], count),
        _told(with_names(db.topology, names), flows[some], standard, of, count),
        pa.table(
            {
                "k": pa.array([n for n, _ in choice], pa.int64()),
                "silhouette": pa.array([value for _, value in choice], pa.float64()),
            }
        ),
        reference,
        unknown,
        tuple(_nodes(db, chosen, names, keys, cluster, c) for c in range(count)),
        db.topology,
        db.resolutions,
    )


def _flows(db: View, chosen: Group, edges: pa.Table) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Keys, and the mean over targets of each key's edges, (K, E)."""
    keys, _, counts = key_sums(chosen.keys, np.zeros((len(chosen), 0)))
    flows = np.zeros((len(keys), len(edges)))
    for part, block in blocks(edges, len(chosen)):
        _, sums, _ = key_sums(chosen.keys, edge_values(db, chosen, block))
        flows[:, part] = sums / counts[:, None]
    return keys, flows


def _summary(of: NDArray[np.int64], silhouettes: NDArray[np.float64], count: int) -> pa.Table:
    means = [silhouettes[of == c].mean() for c in range(count)]
    return pa.table(
        {
            "cluster": pa.array(range(count), pa.int64()),
            "size": pa.array(np.bincount(of, minlength=count), pa.int64()),
            "silhouette": nullable(np.array(means, np.float64)),
        }
    )


def _told(
    edges: pa.Table,
    flows: NDArray[np.float64],
    standard: NDArray[np.float64],
    of: NDArray[np.int64],
    count: int,
) -> pa.Table:
    """Mean flow of every cluster, and how well each edge tells it from the others."""
    empty = np.zeros(0)
    parts = [_rows(edges.slice(0, 0), 0, empty, empty, empty)]
    for c in range(count):
        mine = of == c
        mean = flows[mine].mean(0)
        rest, apart = np.full(len(mean), np.nan), np.zeros(len(mean))
        if not mine.all():
            rest = flows[~mine].mean(0)
            between = standard[mine].mean(0) - standard[~mine].mean(0)
            apart = mine.mean() * (1 - mine.mean()) * between**2
        order = np.lexsort([-np.abs(mean), -apart])
        parts.append(_rows(edges.take(pa.array(order)), c, mean[order], rest[order], apart[order]))
    return pa.concat_tables(parts)


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


def _nodes(
    db: View,
    chosen: Group,
    edges: pa.Table,
    keys: tuple[str, ...],
    cluster: NDArray[np.int64],
    which: int,
) -> pa.Table:
    """Mean relevance, over a cluster's keys, of the nodes at the ends of edges."""
    held = {key for key, c in zip(keys, cluster.tolist(), strict=True) if c == which}
    rows = [i for i, key in enumerate(chosen.keys) if key in held]
    shares = key_shares([chosen.keys[i] for i in rows])
    return node_sums(db, edges, chosen.ids[rows], shares)
