"""The subgraph of a group of inputs, with statistics of every edge and node."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.checks import checked_layers
from nrm_graph.circuits.edge_statistics import MOST_EDGES, chosen_edges
from nrm_graph.circuits.engines import local
from nrm_graph.circuits.exact import exact_sums
from nrm_graph.circuits.nodes import ends_of
from nrm_graph.circuits.positions import position_notes
from nrm_graph.circuits.source import source
from nrm_graph.circuits.sums import NODE, WHOLE
from nrm_graph.errors import InputError
from nrm_graph.graphs.largest import check_top, largest
from nrm_graph.graphs.subgraph import graph_of
from nrm_graph.network.topology import BIAS, PRUNED, PSEUDO_UNITS, REMAINDER, STABILIZER
from nrm_graph.progress import Progress
from nrm_graph.store.input_group import facts_of, group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import networkx as nx

    from nrm_graph.circuits.edge_statistics import Chosen
    from nrm_graph.circuits.engines import Engine
    from nrm_graph.circuits.source import Source
    from nrm_graph.events.sets import Event
    from nrm_graph.network.grouped_units import By
    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View


def circuit(
    db: View,
    where: str | None = None,
    *,
    inputs: Sequence[str | int] | None = None,
    top: int = 200,
    given: str | Event | None = None,
    layers: Sequence[str] | None = None,
    weight: str = "unit",
    per_input: bool = False,
    target: Sought | None = None,
    mixed_targets: bool = False,
    engine: str | Engine = "local",
    exact: bool = False,
    connected: bool = True,
    tables: str | None = None,
    by: By | None = None,
) -> nx.DiGraph:
    r"""Return a connected graph of a group's strong edges, with statistics.

    The measure of a group is the mixture of its inputs' measures: relevances are means over
    all inputs, absent rows being exact zeros, and conditionals are ratios of means,
    sum of R(A & B) / sum of R(B).

    Parameters
    ----------
    db : Database
        The store.
    where : str, optional
        SQL condition over ``inputs``, such as ``"label = 'cat'"``; all by default.
    inputs : sequence of key or input_id, optional
        Of the chosen inputs only these.
    top : int
        Number of edges that are kept, at most; no more than 999,999.
    given : str or Event, optional
        A condition that ``db.materialize`` made, by its name or event.  Inputs of which
        R(condition) is below rounding are computed from the stored program, at every call.
    layers : sequence of str, optional
        Only edges between these layers.
    weight : "unit" or "logit"
        With ``logit``, relevance times the input's logit is averaged.
    per_input : bool
        With ``given``: the mean of the inputs' own conditional measures, over the inputs
        where they are defined.
    target : int, tuple, mapping or str, optional
        Only inputs of this target: a flat index, a place such as (position, class), weights of
        these such as ``{3: 1, 5: -1}``, or their text in ``inputs``.
    mixed_targets : bool
        Allow a group of which different outputs are explained.
    engine : "local" or "ray", or an Engine
        Where the sums are computed; ``ray`` needs ``nrm-graph[ray]``.  See
        :class:`nrm_graph.circuits.engines.Engine`.
    exact : bool
        Of a store that leaves edges out: choose edges by the stored rows, then compute them for
        every input from the stored program.  An interrupted call goes on where it stopped when it
        is made again of the same ``Database``.
    connected : bool
        Share the edges over the layers, so that every node is reached from the target (or from the
        topmost of ``layers``) and leads on to an end; see :mod:`nrm_graph.graphs.connected`.
        Otherwise those of the largest \|mean\|, wherever they stand.
    tables : str, optional
        Reduced tables that ``db.materialize(name=..., watch=...)`` made, by their name, in place of
        the store's own: steps between nodes, and ends.  With an event they are conditioned, as by
        ``given``.
    by : str or mapping of layer name to str or array, optional
        Sum the store's units to coarser ones: ``channel``, ``feature``, ``token`` or ``head`` in
        layers of that kind, or what each layer that is named is divided into; see
        :func:`nrm_graph.network.grouped_units.asked_units`.
        Relevances are sums, exactly, and activations of what is summed are not known.  In a pair
        of layers that the store bounds a sum is of what is stored, and has ``missing`` as single
        edges do; ``exact`` computes it.

    Returns
    -------
    networkx.DiGraph
        As of :func:`nrm_graph.graphs.subgraph.subgraph`.  ``relevance`` of nodes and
        edges is the mean; further ``std`` (over inputs) and ``stderr`` (of the mean), not of a
        single input; ``inputs``, in how many it is not 0; ``agreement``, the share of those
        that have the sign of the mean; and of edges ``top_share``, the share of inputs of which
        the edge is among their own ``top`` strongest.  ``graph`` holds ``inputs`` (their
        number), ``keys``, ``target`` (not where they differ), ``weight``, ``where``, ``share``
        (of the sum of \|mean\| over all stored edges, that the graph keeps), ``share_strongest``
        (that the strongest ``top`` edges would keep) and, as means, ``bias``, ``stabilizer``,
        ``remainder``, their sum ``absorbed``, and ``pruned``; with ``given`` further ``undefined``,
        the number of inputs whose conditional is; with ``tables`` their name.  ``reading`` says
        whether biases are ``absorbed`` or ``ignored``.

        Of an edge in a pair of layers that the store prunes, of which an input has no row,
        ``missing`` says how many have none; its mean is that of what is stored, and
        statistics are left out.  Where the store bounds its edges (``max_edges``) the mean over
        all inputs lies between ``low`` and ``high``; without ``connected`` ``graph["rivals"]``
        counts the edges outside of the graph that may belong among the strongest, at most (which
        edges a connected graph would have were all stored, no bound on single edges tells).  With
        ``exact`` nothing is missing, and ``graph["exact"]`` is True; ``top_share`` stands where
        the stored rows tell it.

    Raises
    ------
    InputError
        If no input is chosen, their targets differ, the layers have no edges between them, or
        the condition is not materialized for all of them.
    QueryError
        If ``where`` is not one SQL condition over ``inputs``.
    UndefinedConditional
        If the group's R(condition) is below rounding.

    Notes
    -----
    ``std`` of a ratio of means is that of the usual linearisation (Cochran, Sampling
    Techniques, 1977, section 2.11).
    """
    query_engine = engine_of(engine)
    check_top(top)
    if top > MOST_EDGES:
        raise InputError(
            f"top must be at most {MOST_EDGES:,} for a circuit, found {top:,}: "
            "nrm_graph.circuits.sums.edge_partials gives the sums of all edges as a table"
        )
    inside = group(db, where, inputs=inputs, target=target, mixed_targets=mixed_targets)
    rows = source(db, inside, weight, given, per_input, tables, by)
    pairs = _layers(db, layers, rows.pairs(db))
    with Progress("circuit", 2) as meter:
        chosen = chosen_edges(db, rows, top, pairs, query_engine, connected)
        meter.advance()
        nodes, absorbed = _node_statistics(db, rows, chosen.edges, query_engine)
        meter.advance()
    edges = _scattered(rows, exact_sums(db, rows, chosen) if exact else chosen.edges)
    by_size = largest(np.abs(edges["relevance"].to_numpy()), len(edges))
    graph = graph_of(
        db.topology,
        nodes,
        edges.append_column("conditional", pa.nulls(len(edges), pa.float64())).take(by_size),
        kinds=rows.kinds(db),
        cut=chosen.cut,
    )
    _annotate(graph, db, rows, nodes, edges)
    size = float(np.abs(chosen.edges["total"].to_numpy()).sum())
    graph.graph |= {"share": size / chosen.size if chosen.size else 1.0}
    if connected:
        strongest = chosen.strongest / chosen.size if chosen.size else 1.0
        graph.graph |= {"connected": True, "share_strongest": strongest}
    graph.graph |= {
        **absorbed,
        "inputs": len(rows.group),
        "keys": tuple(sorted(set(rows.group.keys))),
        "weight": weight,
        "top": top,
        "program": db.meta["program_hash"],
    }
    if rows.units is not None:
        graph.graph["by"] = dict(rows.units.names)
    graph.graph |= facts_of(db, rows.group, weight, rows.divisor is not None)
    graph.graph["flags"] += position_notes(rows.tokens)
    graph.graph |= _certainty(graph, chosen, edges, top, exact)
    choice = {
        "where": where,
        "layers": None if layers is None else tuple(layers),
    }
    graph.graph |= rows.group.target_facts
    graph.graph |= {name: value for name, value in choice.items() if value is not None}
    if rows.condition is not None:
        graph.graph |= {"given" if rows.nodes_of is None else "tables": rows.condition}
    if rows.divisor is not None:
        graph.graph |= {
            "per_input": per_input,
            "undefined": rows.undefined,
            "condition_relevance": float(rows.base.mean()),
            "amplification": rows.amplification,
        }
    return graph


def engine_of(engine: str | Engine) -> Engine:
    """Return the engine of a name, or the one that is given.

    Raises
    ------
    InputError
        If there is none.
    """
    if callable(engine):
        return engine
    if engine == "local":
        return local
    if engine == "ray":
        from nrm_graph.circuits.ray_engine import Remote

        return Remote()
    raise InputError(f"engine must be 'local' or 'ray', found {engine!r}")


def _layers(
    db: View, names: Sequence[str] | None, pairs: Sequence[tuple[int, int]]
) -> list[int] | None:
    """Ids of layers that have edges between them."""
    if names is None:
        return None
    topology = db.topology
    ids = sorted({topology.layer(name).layer_id for name in checked_layers(names)})
    if not any(dst in ids and src in ids for dst, src in pairs):
        reads = [
            f"{topology.layers[dst].name} reads {topology.layers[src].name}"
            for dst, src in pairs
            if dst in ids or src in ids
        ]
        raise InputError(
            f"there are no edges between the layers {', '.join(map(repr, names))}: name at least "
            f"two that read each other ({'; '.join(reads[:6]) or 'none of these does'}); the joint "
            "relevance of layers that are no neighbors is db.joint(a, b, where)"
        )
    return ids


_SUMS = """sum((v - mean * base) * (v - mean * base)) AS scatter, sum(base * base) AS present,
  count(*) FILTER (WHERE v > 0) AS positive, count(*) FILTER (WHERE v < 0) AS negative"""

# Of the chosen nodes, and of all that absorb.
_TOTALS = """
SELECT {keys}, sum(CAST(relevance AS DOUBLE) * weight) AS total,
  sum(CAST(activation AS DOUBLE)) AS activation
FROM {nodes} LEFT JOIN chosen USING ({keys}) LEFT JOIN weights USING (input_id)
WHERE place IS NOT NULL OR unit < 0 GROUP BY {keys}
"""

_NODES = """
SELECT place, {sums}
FROM (
  SELECT place, mean, CAST(relevance AS DOUBLE) * weight AS v, base
  FROM {nodes} JOIN chosen USING ({keys}) LEFT JOIN weights USING (input_id)
) AS valued GROUP BY place
"""


def _node_statistics(
    db: View, rows: Source, edges: pa.Table, engine: Engine
) -> tuple[pa.Table, dict[str, Any]]:
    """Aggregate the nodes that edges join, and what pseudo-units hold.

    ``relevance`` is the mean, as ``activation`` is.
    """
    chosen = ends_of(edges)
    names = {"nodes": rows.nodes, "keys": ", ".join(NODE)}
    tables = {**rows.tables, "weights": rows.weights, "chosen": _placed(chosen)}
    totals = engine(db, _TOTALS.format(**names), rows.group.ids.tolist(), tables, NODE)
    sums = {
        (layer, unit): (total, math.nan if activation is None else activation)
        for layer, unit, total, activation in zip(
            *(totals[name].to_pylist() for name in totals.column_names), strict=True
        )
    }
    pairs = zip(*(chosen[name].to_pylist() for name in NODE), strict=True)
    both = np.array([sums.get(pair, (0.0, 0.0)) for pair in pairs])
    total, activation = both.reshape(-1, 2).T
    chosen = chosen.append_column("mean", [total / rows.base.sum()])
    summed = _sums(db, rows, _NODES.format(sums=_SUMS, **names), chosen, engine)
    unknown = np.isnan(activation) | (chosen["unit"].to_numpy() < 0)
    mean = pa.array(activation / len(rows.group), mask=unknown)
    return _scattered(rows, summed).append_column("activation", mean), _absorbed(db, rows, sums)


def _absorbed(
    db: View, rows: Source, sums: Mapping[tuple[int, int], tuple[float, float]]
) -> dict[str, Any]:
    """Mean relevance that pseudo-units hold, and that pruning took from the edges."""
    relevance = dict.fromkeys((BIAS, STABILIZER, REMAINDER, PRUNED), 0.0)
    in_layers: dict[str, float] = {}
    for (layer, unit), (total, _) in sorted(sums.items()):
        if unit in relevance:
            mean = total / float(rows.base.sum())
            relevance[unit] += mean
            if unit != PRUNED:
                name = db.topology.layers[layer].name
                in_layers[name] = in_layers.get(name, 0.0) + mean
    absorbed = sum(value for unit, value in relevance.items() if unit != PRUNED)
    named = {PSEUDO_UNITS[unit]: value for unit, value in relevance.items()}
    return {"absorbed": absorbed, "absorbed_in": in_layers, **named}


def _sums(
    db: View,
    rows: Source,
    query: str,
    chosen: pa.Table,
    engine: Engine,
    **further: pa.Table,
) -> pa.Table:
    """Aggregate chosen edges or nodes, a row each in their order; 0 where there is no row."""
    tables = {**rows.tables, **further, "weights": rows.weights, "chosen": _placed(chosen)}
    partials = engine(db, query, rows.group.ids.tolist(), tables, ("place",))
    at = partials["place"].to_numpy()
    for name in partials.column_names[1:]:
        column = partials[name].fill_null(0).to_numpy()
        values = np.zeros(len(chosen), np.float64 if column.dtype.kind == "f" else np.int64)
        values[at] = column
        chosen = chosen.append_column(name, [values])
    return chosen


def _placed(chosen: pa.Table) -> pa.Table:
    return chosen.append_column("place", [np.arange(len(chosen))])


def _scattered(rows: Source, sums: pa.Table) -> pa.Table:
    """Name the mean ``relevance``, and add the standard deviation of what inputs add to it.

    Of d = v - mean x base, over the mean of base: with bases of 1 that is the standard deviation
    of v, absent rows being 0; else the usual linearisation of a ratio of means.
    """
    mean = sums["mean"].to_numpy()
    absent = np.maximum((rows.base**2).sum() - sums["present"].to_numpy(), 0.0)
    squares = sums["scatter"].to_numpy() + mean**2 * absent
    std = np.sqrt(squares / max(len(rows.group) - 1, 1)) / abs(rows.base.mean())
    names = ["relevance" if name == "mean" else name for name in sums.column_names]
    return sums.rename_columns(names).append_column("std", [std])


def _annotate(graph: nx.DiGraph, db: View, rows: Source, nodes: pa.Table, edges: pa.Table) -> None:
    """Add statistics to the nodes and edges of a graph."""
    names = [layer.name for layer in db.topology.layers]
    extent = abs(float(rows.base.sum()))
    for row in nodes.to_pylist():
        data = graph.nodes[(names[row["layer_id"]], row["unit"])]
        data |= _statistics(rows, row)
    for row in edges.to_pylist():
        src, dst = ((names[row[f"{end}_layer"]], row[f"{end}_unit"]) for end in ("src", "dst"))
        missing = len(rows.group) - row.get(WHOLE, row["n"])
        lacking = row.get("lacking", math.inf) / extent
        if missing and lacking and (row["dst_layer"], row["src_layer"]) in rows.limits:
            # What is not stored here is unknown, so only what is stored can be said.
            graph.edges[src, dst]["missing"] = missing
            if math.isfinite(lacking):
                mean = row["relevance"]
                graph.edges[src, dst].update(low=mean - lacking, high=mean + lacking)
            continue
        graph.edges[src, dst].update(_statistics(rows, row))
        if row["strong"] >= 0:
            graph.edges[src, dst]["top_share"] = row["strong"] / len(rows.group)


def _certainty(
    graph: nx.DiGraph, chosen: Chosen, edges: pa.Table, top: int, exact: bool
) -> dict[str, Any]:
    """Say what a store that bounds its edges cannot tell of a circuit."""
    facts: dict[str, Any] = {"exact": True} if exact else {}
    if chosen.bounds is None:
        return facts
    notes = graph.graph["flags"]
    if lacking := sum("missing" in data for _, _, data in graph.edges(data=True)):
        notes += (
            f"{lacking:,} of the {len(edges):,} edges are not stored of every input: their means "
            "lie between low and high, and no more is known of them; exact=True computes them",
        )
    if chosen.rivals is None:
        if chosen.bounds.most.any():
            notes += ("the edges were chosen by what is stored: others may belong in their place",)
        return facts | {"flags": notes}
    least = chosen.rivals.least
    if exact and len(edges) == top:
        least = max(least, float(np.abs(edges["total"].to_numpy()).min()))
    facts["rivals"] = chosen.rivals.above(least)
    if facts["rivals"]:
        notes += (
            f"up to {facts['rivals']:,} other edges may be among the strongest {top:,}: these were "
            "chosen by what is stored",
        )
    return facts | {"flags": notes}


def _statistics(rows: Source, row: Mapping[str, Any]) -> dict[str, Any]:
    count = len(rows.group)
    nonzero = row["positive"] + row["negative"]
    same = row["positive"] if row["relevance"] * rows.base.sum() > 0 else row["negative"]
    statistics: dict[str, Any] = {"inputs": nonzero}
    if nonzero:
        statistics["agreement"] = same / nonzero
    if count > 1:
        statistics |= {"std": row["std"], "stderr": row["std"] / count**0.5}
    return statistics
