"""The subgraph of a group of inputs, with statistics of every edge and node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph import graph as graphs
from nrm_graph import pruning
from nrm_graph.circuits.engines import local
from nrm_graph.circuits.group import group
from nrm_graph.circuits.partials import EDGE, NODE, edge_filter, partials_query
from nrm_graph.circuits.source import source
from nrm_graph.errors import InputError
from nrm_graph.topology import BIAS, PRUNED, PSEUDO_UNITS, REMAINDER, STABILIZER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import networkx as nx

    from nrm_graph.circuits.engines import Engine
    from nrm_graph.circuits.source import Source
    from nrm_graph.database import Database
    from nrm_graph.events import Event


def circuit(
    db: Database,
    where: str | None = None,
    *,
    inputs: Sequence[str | int] | None = None,
    top: int = 200,
    given: str | Event | None = None,
    layers: Sequence[str] | None = None,
    weight: str = "unit",
    per_input: bool = False,
    target: int | tuple[Any, ...] | None = None,
    mixed_targets: bool = False,
    engine: Engine = local,
) -> nx.DiGraph:
    """Aggregate a group; see :meth:`nrm_graph.database.Database.circuit`."""
    graphs.check_top(top)
    chosen = group(db, where, inputs=inputs, target=target, mixed_targets=mixed_targets)
    pairs = _layers(db, layers)
    rows = source(db, chosen, weight, given, per_input)
    totals, whole = _strongest(db, rows, top, pairs, engine)
    edges = _edge_statistics(db, rows, totals, top, pairs, engine)
    nodes = _node_statistics(db, rows, edges, engine)
    found = graphs.subgraph(
        db.topology,
        nodes.append_column("relevance", [_mean(rows, nodes)]),
        edges.append_column("relevance", [_mean(rows, edges)]).append_column(
            "conditional", pa.nulls(len(edges), pa.float64())
        ),
        max(top, 1),
        partitions=db.partitions,
    )
    _annotate(found, db, rows, nodes, edges)
    kept = float(np.abs(totals["total"].to_numpy()).sum())
    found.graph |= {
        "share": kept / whole if whole else 1.0,
        **_absorbed(db, rows, engine),
        "inputs": len(rows.group),
        "keys": tuple(sorted(set(rows.group.keys))),
        "weight": weight,
        "top": top,
    }
    found.graph |= {} if rows.group.target is None else {"target": rows.group.target}
    found.graph |= {} if where is None else {"where": where}
    found.graph |= {} if layers is None else {"layers": tuple(layers)}
    if given is not None:
        found.graph |= {"given": given if isinstance(given, str) else repr(given)}
        found.graph |= {
            "per_input": per_input,
            "undefined": rows.undefined,
            "condition_relevance": float(rows.base.mean()),
            "amplification": rows.amplification,
        }
    return found


def _layers(db: Database, names: Sequence[str] | None) -> list[int] | None:
    """Ids of layers that have edges between them."""
    if names is None:
        return None
    if isinstance(names, str):
        raise InputError(f"layers must be a list of names, found {names!r}")
    topology = db.topology
    ids = sorted({topology.layer(name).layer_id for name in names})
    if not any(group.dst in ids and group.src in ids for group in topology.groups):
        reads = [
            f"{topology.layers[g.dst].name} reads {topology.layers[g.src].name}"
            for g in topology.groups
            if g.dst in ids or g.src in ids
        ]
        raise InputError(
            f"there are no edges between the layers {', '.join(map(repr, names))}: "
            f"{'; '.join(reads[:6]) or 'name layers that read each other'}; the joint relevance of "
            "layers that are no neighbors is db.measure(key).joint(a, b)"
        )
    return ids


def _strongest(
    db: Database, rows: Source, top: int, pairs: list[int] | None, engine: Engine
) -> tuple[pa.Table, float]:
    """Edges of the largest |sum of v|, the strongest first, and the sum of |sum of v| over all."""
    query = partials_query(
        ("total",), table=rows.edges, weighted=rows.weighted, layers=pairs, pruned=rows.pruned
    )
    tables = {**rows.tables, "weights": rows.weights} if rows.weighted else rows.tables
    found = engine(db, query, rows.group.ids.tolist(), tables, EDGE)
    size = np.abs(found["total"].to_numpy())
    # Ties by the edge's name: the same circuit whatever the order of threads.
    places = graphs.strongest(size, top, [found[name].to_numpy() for name in EDGE])
    return found.take(places[size[places] > 0]), float(size.sum())


_STATISTICS = """
WITH limits AS (
  SELECT input_id, list_min(max(abs(relevance), {top})) AS least
  FROM {edges}{filter} GROUP BY input_id)
SELECT place, count(*) AS n, sum(v) AS total, sum(v * v) AS squares, sum(v * base) AS crossed,
  count(*) FILTER (WHERE v > 0) AS positive, count(*) FILTER (WHERE v < 0) AS negative,
  count(*) FILTER (WHERE size >= least AND size > 0) AS strong
FROM (
  SELECT place, CAST(relevance AS DOUBLE) * weight AS v, base, abs(relevance) AS size, least
  FROM {edges} JOIN chosen USING ({keys}) JOIN weights USING (input_id) JOIN limits USING (input_id)
) AS valued GROUP BY place
"""

_NODES = """
SELECT place, count(*) AS n, sum(v) AS total, sum(v * v) AS squares, sum(v * base) AS crossed,
  count(*) FILTER (WHERE v > 0) AS positive, count(*) FILTER (WHERE v < 0) AS negative,
  sum(CAST(activation AS DOUBLE)) AS activation
FROM (
  SELECT place, CAST(relevance AS DOUBLE) * weight AS v, base, activation
  FROM {nodes} JOIN chosen USING ({keys}) JOIN weights USING (input_id)
) AS valued GROUP BY place
"""


def _edge_statistics(
    db: Database,
    rows: Source,
    totals: pa.Table,
    top: int,
    pairs: list[int] | None,
    engine: Engine,
) -> pa.Table:
    """Aggregate the chosen edges, in their order."""
    query = _STATISTICS.format(
        top=int(top),
        edges=rows.edges,
        filter=edge_filter(pairs, rows.pruned),
        keys=", ".join(EDGE),
    )
    return _sums(db, rows, query, totals.select(EDGE), engine)


def _node_statistics(db: Database, rows: Source, edges: pa.Table, engine: Engine) -> pa.Table:
    """Aggregate the nodes that edges join."""
    ends = [
        np.column_stack([edges[f"{end}_layer"].to_numpy(), edges[f"{end}_unit"].to_numpy()])
        for end in ("dst", "src")
    ]
    pairs = np.unique(np.concatenate(ends), axis=0)
    chosen = pa.table(
        {"layer_id": pairs[:, 0].astype(np.int16), "unit": pairs[:, 1].astype(np.int32)}
    )
    query = _NODES.format(nodes=rows.nodes, keys=", ".join(NODE))
    found = _sums(db, rows, query, chosen, engine)
    mean = found["activation"].to_numpy() / len(rows.group)
    place = found.schema.get_field_index("activation")
    return found.set_column(place, "activation", pa.array(mean, mask=pairs[:, 1] < 0))


def _sums(db: Database, rows: Source, query: str, chosen: pa.Table, engine: Engine) -> pa.Table:
    """Aggregate chosen edges or nodes, a row each in their order; 0 where there is no row."""
    place = np.arange(len(chosen))
    tables = {
        **rows.tables,
        "weights": rows.weights,
        "chosen": chosen.append_column("place", [place]),
    }
    found = engine(db, query, rows.group.ids.tolist(), tables, ("place",))
    at = found["place"].to_numpy()
    for name in found.column_names[1:]:
        column = found[name]
        column = column.fill_null(0).to_numpy()
        values = np.zeros(len(chosen), np.float64 if column.dtype.kind == "f" else np.int64)
        values[at] = column
        chosen = chosen.append_column(name, [values])
    return chosen


def _mean(rows: Source, sums: pa.Table) -> Any:
    return sums["total"].to_numpy() / rows.base.sum()


def _scatter(rows: Source, sums: pa.Table) -> Any:
    """Return the standard deviation of what single inputs add to a mean.

    Of d = v - mean x base, over the mean of base: with bases of 1 that is the standard deviation
    of v, absent rows being 0; else the usual linearisation of a ratio of means.
    """
    count, mean = len(rows.group), _mean(rows, sums)
    squares = sums["squares"].to_numpy() - 2 * mean * sums["crossed"].to_numpy()
    squares = squares + mean**2 * (rows.base**2).sum()
    return np.sqrt(np.maximum(squares, 0.0) / max(count - 1, 1)) / abs(rows.base.mean())


def _annotate(
    found: nx.DiGraph, db: Database, rows: Source, nodes: pa.Table, edges: pa.Table
) -> None:
    """Add statistics to the nodes and edges of a graph."""
    names = [layer.name for layer in db.topology.layers]
    limits = pruning.stored(db.meta, db.topology)
    scatter = _scatter(rows, nodes)
    for i, row in enumerate(nodes.to_pylist()):
        data = found.nodes[(names[row["layer_id"]], row["unit"])]
        data |= _statistics(rows, row, scatter[i])
    scatter = _scatter(rows, edges)
    for i, row in enumerate(edges.to_pylist()):
        src, dst = ((names[row[f"{end}_layer"]], row[f"{end}_unit"]) for end in ("src", "dst"))
        missing = len(rows.group) - row["n"]
        if missing and (row["dst_layer"], row["src_layer"]) in limits:
            # What is not stored here is unknown, so only what is stored can be said.
            found.edges[src, dst]["missing"] = missing
            continue
        found.edges[src, dst].update(
            _statistics(rows, row, scatter[i]) | {"top_share": row["strong"] / len(rows.group)}
        )


def _statistics(rows: Source, row: Mapping[str, Any], scatter: float) -> dict[str, Any]:
    count = len(rows.group)
    nonzero = row["positive"] + row["negative"]
    same = row["positive"] if row["total"] > 0 else row["negative"]
    found: dict[str, Any] = {"inputs": nonzero}
    if nonzero:
        found["agreement"] = same / nonzero
    if count > 1:
        found |= {"std": float(scatter), "stderr": float(scatter) / count**0.5}
    return found


def _absorbed(db: Database, rows: Source, engine: Engine) -> dict[str, float]:
    """Mean relevance that pseudo-units hold, and that pruning took from the edges."""
    query = (
        "SELECT unit, sum(CAST(relevance AS DOUBLE) * weight) AS total "
        f"FROM {rows.nodes} JOIN weights USING (input_id) WHERE unit < 0 GROUP BY unit"
    )
    tables = {**rows.tables, "weights": rows.weights}
    found = engine(db, query, rows.group.ids.tolist(), tables, ("unit",))
    sums = dict(zip(found["unit"].to_pylist(), found["total"].to_pylist(), strict=True))
    parts = {
        PSEUDO_UNITS[unit]: sums.get(unit, 0.0) / rows.base.sum() + 0.0  # no -0.0
        for unit in (BIAS, STABILIZER, REMAINDER, PRUNED)
    }
    absorbed = sum(value for name, value in parts.items() if name != PSEUDO_UNITS[PRUNED])
    return {"absorbed": float(absorbed), **{name: float(v) for name, v in parts.items()}}
