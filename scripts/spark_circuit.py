"""Aggregate a store with Apache Spark, and compare with what DuckDB finds.

Shards are plain Parquet, and the SQL of circuits keeps to what both engines run, so that a cluster
that holds the shards can do what ``db.circuit`` does in one process::

    pip install pyspark        # 4.0 or later, with Java 17 or 21; no dependency of this package
    python scripts/spark_circuit.py relevance.nrm --where "label = 'c3'" --top 200

Files and inputs are those of the manifests, never a pattern over the folder: a replaced shard must
not be counted.  First the mergeable sums of every edge (:mod:`nrm_graph.circuits.sums`) are
compared row by row, then every statistic of the circuit, whose queries Spark runs through the same
interface (:class:`nrm_graph.circuits.engines.Engine`) as any engine.  The script ends with status 1
where anything differs by more than the rounding of a sum in another order.

What had to be adapted, with pyspark 4.3.0: one query.  The k-th largest value of an input is
``list_min(max(x, k))`` in DuckDB, which Spark has not; a window does the same in both.  Encodings
need no setting there: DELTA_BINARY_PACKED and BYTE_STREAM_SPLIT are read with and without
``spark.sql.parquet.enableVectorizedReader``, which ``--row-reader`` turns off, for a Spark whose
vectorized reader refuses them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import nrm_graph as ng
from nrm_graph.circuits import edge_statistics
from nrm_graph.circuits.circuit import circuit
from nrm_graph.circuits.engines import EDGE, local
from nrm_graph.circuits.source import source
from nrm_graph.circuits.sums import SUMS, partials_query
from nrm_graph.store.input_group import group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import networkx as nx
    import pyarrow as pa

LIMITS = """
SELECT input_id, min(size) AS least FROM (
  SELECT input_id, abs(relevance) AS size,
    row_number() OVER (PARTITION BY input_id ORDER BY abs(relevance) DESC) AS place
  FROM {edges}{filter}) AS ranked
WHERE place <= {top} GROUP BY input_id
"""
"""The k-th largest |relevance| of every input, in SQL that both engines run."""

EPS = float(np.finfo(np.float64).eps)


class Spark:
    """An engine of circuits: a local Spark session.

    Parameters
    ----------
    vectorized : bool
        Whether Spark decodes Parquet column by column.
    cores : int
        Threads.
    """

    def __init__(self, vectorized: bool = True, cores: int = 2) -> None:
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.master(f"local[{cores}]").appName("nrm_graph")
        for name, value in {
            "spark.ui.enabled": False,
            "spark.driver.host": "127.0.0.1",
            "spark.sql.shuffle.partitions": 2 * cores,
            "spark.sql.parquet.enableVectorizedReader": vectorized,
        }.items():
            builder = builder.config(name, str(value).lower())
        self.session = builder.getOrCreate()
        self.session.sparkContext.setLogLevel("ERROR")

    def __call__(
        self,
        db: ng.Database,
        query: str,
        ids: Sequence[int],
        tables: Mapping[str, pa.Table],
        keys: Sequence[str],
    ) -> pa.Table:
        """Run a query over the rows of some inputs."""
        for table in ("edges", "nodes"):
            parts = [
                self.session.read.parquet(*part.paths).where(
                    "true" if part.ids is None else f"input_id IN ({_listed(part.ids)})"
                )
                for part in db._snapshot.parts(table, ids)
            ]
            rows = parts[0]
            for other in parts[1:]:
                rows = rows.union(other)
            rows.createOrReplaceTempView(table)
        for name, data in tables.items():
            self.session.createDataFrame(data).createOrReplaceTempView(name)
        return self.session.sql(query).toArrow()

    def close(self) -> None:
        """End the session."""
        self.session.stop()


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(str(int(i)) for i in ids)


def largest_difference(ours: pa.Table, theirs: pa.Table) -> float:
    """Compare partials of the same inputs by edge, in roundings of a sum in another order.

    Parameters
    ----------
    ours, theirs : pyarrow.Table
        Columns of :data:`EDGE` and all of :data:`SUMS`, in any order of rows.

    Returns
    -------
    float
        Largest difference of ``total`` and ``squares`` over ``n * eps`` times what the terms can
        amount to; at most 2 where both engines are right.  Infinite where edges or counts differ.
    """
    if len(ours) != len(theirs):
        return float("inf")
    ours, theirs = (t.sort_by([(name, "ascending") for name in EDGE]) for t in (ours, theirs))
    left, right = ({name: t[name].to_numpy() for name in (*EDGE, *SUMS)} for t in (ours, theirs))
    for name in (*EDGE, "n", "positive", "negative"):
        if not np.array_equal(left[name], right[name]):
            return float("inf")
    n, squares = left["n"], left["squares"]
    worst = 0.0
    # Cauchy and Schwarz: sum |v| is at most the root of n times the sum of squares.
    for name, size in (("total", np.sqrt(n * squares)), ("squares", squares)):
        limit = n * EPS * size + np.finfo(np.float64).tiny
        worst = max(worst, float((np.abs(left[name] - right[name]) / limit).max(initial=0)))
    return worst


def differences(ours: nx.DiGraph, theirs: nx.DiGraph, tolerance: float = 1e-9) -> list[str]:
    """Say where two circuits differ: nodes, edges, and every attribute.

    Sums of cancelling terms lose digits, hence a tolerance relative to the largest number of the
    same name in the circuit.
    """
    found = []
    if set(ours.nodes) != set(theirs.nodes) or set(ours.edges) != set(theirs.edges):
        return ["the nodes or edges are others"]
    places = [(ours.nodes[n], theirs.nodes[n], n) for n in ours.nodes]
    places += [(ours.edges[e], theirs.edges[e], e) for e in ours.edges]
    places.append((ours.graph, theirs.graph, "graph"))
    largest: dict[str, float] = {}
    for data, _, _ in places:
        for name, value in data.items():
            if isinstance(value, float):
                largest[name] = max(largest.get(name, 0.0), abs(value))
    for left, right, place in places:
        if set(left) != set(right):
            found.append(f"{place}: attributes {sorted(set(left) ^ set(right))}")
            continue
        for name, value in left.items():
            if isinstance(value, float):
                same = abs(value - right[name]) <= tolerance * largest[name]
            else:
                same = value == right[name]
            if not same:
                found.append(f"{place}: {name} is {value!r} and {right[name]!r}")
    return found


def compare(path: Path, spark: Any, where: str | None, top: int) -> list[str]:
    """Aggregate with both engines; print what was compared, return what differs."""
    found = []
    with ng.open(path) as db:
        chosen = group(db, where, mixed_targets=True)
        ids = chosen.ids.tolist()
        for weight in ("unit", "logit"):
            query = partials_query(weighted=weight != "unit")
            tables = {"weights": source(db, chosen, weight).weights}
            ours, theirs = (engine(db, query, ids, tables, EDGE) for engine in (local, spark))
            worst = largest_difference(ours, theirs)
            rows = int(np.sum(ours["n"].to_numpy()))
            print(
                f"weight {weight}: {len(ours):,} edges from {rows:,} rows of {len(ids):,} inputs; "
                f"largest difference {worst:.2g} roundings"
            )
            if worst > 2:
                found.append(f"sums with weight {weight} differ by {worst:.2g} roundings")
        options = {"top": top, "mixed_targets": True}
        ours = circuit(db, where, **options)
    product, edge_statistics.LIMITS = edge_statistics.LIMITS, LIMITS
    try:
        with ng.open(path) as db:  # anew: a database remembers the limits of its inputs
            theirs = circuit(db, where, engine=spark, **options)
    finally:
        edge_statistics.LIMITS = product
    print(f"circuit: {theirs.number_of_nodes()} nodes, {theirs.number_of_edges()} edges")
    return found + differences(ours, theirs)


def main() -> int:
    """Run the command line; 1 where the engines differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--where", help="SQL condition over inputs; all by default")
    parser.add_argument("--top", type=int, default=200)
    parser.add_argument("--row-reader", action="store_true", help="no vectorized Parquet reader")
    args = parser.parse_args()
    spark = Spark(vectorized=not args.row_reader)
    try:
        found = compare(args.store, spark, args.where, args.top)
    finally:
        spark.close()
    print(*(found or ["Spark and DuckDB agree"]), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
