"""What a store's tables say of one unit: by class, and to which units it is linked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.absent import absent
from nrm_graph.circuits.engines import EDGE
from nrm_graph.circuits.source import source
from nrm_graph.network.grouped_units import grouped_units
from nrm_graph.network.units import automatic
from nrm_graph.store.input_group import group
from nrm_graph.store.read.sql_guard import chosen_inputs
from nrm_graph.tables import pruning

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from nrm_graph.events.sets import NeuronSet
    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Partition
    from nrm_graph.store.view import View

LABELS, NEIGHBOURS, STRONGEST = 40, 12, 24
"""Rows that are shown of classes, of neighbours on each side, and of a layer's units."""

_BY_LABEL = """
WITH sums AS (
  SELECT input_id, sum(CAST(relevance AS DOUBLE)) AS v
  FROM nodes JOIN explorer_units USING (unit) WHERE layer_id = $layer GROUP BY input_id
), inputs_and_sums AS (
  SELECT i.label, coalesce(s.v, 0) AS v FROM inputs i LEFT JOIN sums s USING (input_id) {where}
)
SELECT {label} AS label, count(*) AS inputs, avg(v) AS mean,
  stddev_samp(v) / sqrt(count(*)) AS stderr, count(*) FILTER (WHERE v <> 0) AS present
FROM inputs_and_sums GROUP BY 1 ORDER BY mean DESC, 1 LIMIT {limit}
"""

# The unit is one end of an edge; units of the other end may be summed to coarser ones.
_NEIGHBOURS = """
WITH sums AS (
  SELECT e.input_id, e.{other}_layer AS layer, coalesce(p.part, e.{other}_unit) AS unit,
    sum(CAST(e.relevance AS DOUBLE)) AS v
  FROM edges e JOIN explorer_units u ON u.unit = e.{this}_unit
  LEFT JOIN explorer_parts p ON p.layer = e.{other}_layer AND p.unit = e.{other}_unit
  WHERE e.{this}_layer = $layer {where} GROUP BY ALL
)
SELECT layer, unit, sum(v) / $inputs AS mean,
  sqrt(greatest(sum(v * v) - sum(v) * sum(v) / $inputs, 0) / nullif($inputs - 1, 0) / $inputs)
    AS stderr,
  count(*) AS present
FROM sums GROUP BY layer, unit ORDER BY abs(sum(v)) DESC, layer, unit LIMIT {limit}
"""

_STRONGEST = """
WITH sums AS (
  SELECT n.input_id, coalesce(p.part, n.unit) AS unit, sum(CAST(n.relevance AS DOUBLE)) AS v
  FROM nodes n LEFT JOIN explorer_parts p ON p.layer = n.layer_id AND p.unit = n.unit
  WHERE n.layer_id = $layer AND n.unit >= 0 {where} GROUP BY ALL
)
SELECT unit, sum(v) / $inputs AS mean, sum(abs(v)) / $inputs AS size,
  count(*) FILTER (WHERE v <> 0) AS present
FROM sums GROUP BY unit ORDER BY size DESC, unit LIMIT {limit}
"""


@dataclass(frozen=True, eq=False)
class StoredUnit:
    """A set of neurons that is made of whole units of a store.

    Attributes
    ----------
    event : NeuronSet
        The set.
    info : LayerInfo
        Its layer.
    units : ndarray of int64
        Units of the store that it is made of.
    """

    event: NeuronSet
    info: LayerInfo
    units: npt.NDArray[np.int64]

    @property
    def table(self) -> pa.Table:
        """Its units, as SQL joins them."""
        return pa.table({"unit": self.units.astype(np.int32)})


@dataclass(frozen=True)
class Neighbour:
    """A unit that a unit is linked to, with the relevance of the edges between them.

    Attributes
    ----------
    layer_id, unit : int
        Which; pseudo-units are negative.
    relevance : float
        Mean over inputs, or of one input.
    stderr : float or None
        Standard error of the mean; None of one input, or where it is not known.
    present : int or None
        Inputs that have a row.
    lacking : float or None
        What the mean may be off by for rows that the store left out; None where nothing bounds it.
    """

    layer_id: int
    unit: int
    relevance: float
    stderr: float | None = None
    present: int | None = None
    lacking: float | None = None


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of a unit on one side, the strongest first.

    Attributes
    ----------
    rows : tuple of Neighbour
        Those that are shown.
    partitions : tuple of Partition
        What units of every layer are here.
    pruned : bool
        Whether the store may have left edges out.
    """

    rows: tuple[Neighbour, ...]
    partitions: tuple[Partition, ...]
    pruned: bool = False


def count(db: View, where: str) -> int:
    """Count the inputs, pairs of key and target, that a condition chooses."""
    query = f"SELECT count(*) FROM inputs WHERE true {_chosen(where)}"
    return int(db.sql(query).fetchall()[0][0])


def by_label(db: View, unit: StoredUnit, where: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Relevance of a unit by label of the inputs, and of all of them.

    An input without a row has 0, which it is.
    """
    chosen = f"WHERE true {_chosen(where, 'i.')}"
    tables = {"explorer_units": unit.table}
    rows = []
    for label in ("label", "'all'"):
        query = _BY_LABEL.format(where=chosen, label=label, limit=LABELS + 1)
        params = {"layer": unit.info.layer_id}
        rows.append(db.sql(query, params=params, tables=tables).to_arrow_table().to_pylist())
    return rows[0], (rows[1] or [{"label": "all", "inputs": 0}])[0]


def strongest(
    db: View, info: LayerInfo, where: str
) -> tuple[list[dict[str, Any]], tuple[Partition, ...]]:
    """Units of a layer of the largest mean of abs(R), of the kind that people think in."""
    partitions, parts = _coarser(db, [info])
    number = count(db, where)
    rows = db.sql(
        _STRONGEST.format(where=_chosen(where, "n."), limit=STRONGEST),
        params={"layer": info.layer_id, "inputs": max(1, number)},
        tables={"explorer_parts": parts},
    ).to_arrow_table()
    return rows.to_pylist(), partitions


def stored_neighbours(db: View, unit: StoredUnit, where: str, side: str) -> Neighbours:
    """Neighbours of a unit by the mean of their edges over inputs.

    Parameters
    ----------
    db : Database
        The store.
    unit : StoredUnit
        The unit.
    where : str
        Condition over ``inputs``; all where it is empty.
    side : "above" or "below"
        Nearer the output, or what the unit reads.
    """
    this, other = ("dst", "src") if side == "below" else ("src", "dst")
    # Where the unit itself is coarser than the store's, its neighbours are seen in the same way.
    single = len(unit.units) == 1
    partitions, parts = _coarser(db, [] if single else _beside(db, unit.info, side))
    number = count(db, where)
    table = db.sql(
        _NEIGHBOURS.format(this=this, other=other, where=_chosen(where, "e."), limit=NEIGHBOURS),
        params={"layer": unit.info.layer_id, "inputs": max(1, number)},
        tables={"explorer_units": unit.table, "explorer_parts": parts},
    ).to_arrow_table()
    limited = pruning.stored(db.meta, db.topology)
    pruned = any({"dst": dst, "src": src}[this] == unit.info.layer_id for dst, src in limited)
    lacking = None
    if pruned and single and len(table):
        lacking = _lacking(db, unit, where, this, other, table)
    rows = [
        Neighbour(
            row["layer"],
            row["unit"],
            row["mean"],
            row["stderr"] if not pruned else None,
            row["present"],
            None if lacking is None else float(lacking[i]) / max(1, number),
        )
        for i, row in enumerate(table.to_pylist())
    ]
    return Neighbours(tuple(rows), partitions, pruned)


def exact_neighbours(db: View, m: Measure, event: NeuronSet, side: str) -> Neighbours:
    """Neighbours of a set of neurons in one input, exact; the strongest first."""
    info = db.topology.layer(event.layer)
    layers = _beside(db, info, side)
    partitions, _ = _coarser(db, [] if _is_single(db, event) else layers)
    chosen: Any = {"src": event} if side == "above" else {"dst": event}
    end = "dst_unit" if side == "above" else "src_unit"
    rows = []
    # What the layer itself takes up of a unit is an edge within it, to a pseudo-unit.
    for layer in [*layers, info] if side == "below" else layers:
        pair = (layer.name, info.name) if side == "above" else (info.name, layer.name)
        edges = m.edges(*pair, by="neuron", **chosen)
        neurons, relevance = edges[end].to_numpy(), edges["relevance"].to_numpy()
        ends = np.where(neurons < 0, neurons, partitions[layer.layer_id].labels.ravel()[neurons])
        units, places = np.unique(ends, return_inverse=True)
        sums = np.bincount(places, relevance, minlength=len(units))
        rows += [
            Neighbour(layer.layer_id, int(units[i]), float(sums[i]))
            for i in np.argsort(-np.abs(sums), kind="stable")[:NEIGHBOURS]
            if sums[i]
        ]
    rows.sort(key=lambda row: -abs(row.relevance))
    return Neighbours(tuple(rows[:NEIGHBOURS]), partitions)


def _is_single(db: View, event: NeuronSet) -> bool:
    """Whether a set lies within one unit of the store."""
    info = db.topology.layer(event.layer)
    part = db.partitions[info.layer_id]
    return len(np.unique(part.labels[event.mask(info.shape, part)])) <= 1


def _beside(db: View, info: LayerInfo, side: str) -> list[LayerInfo]:
    layers = db.topology.layers
    if side == "below":
        return [layers[i] for i in db.topology.sources(info.layer_id)]
    return [layers[group.dst] for group in db.topology.groups if group.src == info.layer_id]


def _coarser(db: View, layers: Iterable[LayerInfo]) -> tuple[tuple[Partition, ...], pa.Table]:
    """Units of layers with those of neurons summed to channels, features or heads.

    The table says of each unit that a store holds in them which of these it is part of.
    """
    usual = automatic(db.topology)
    by = {
        layer.name: usual[layer.layer_id]
        for layer in layers
        if db.resolutions[layer.layer_id] == "neuron"
    }
    units = grouped_units(db.topology, db.partitions, by) if by else None
    into: Mapping[int, npt.NDArray[np.int32]] = {} if units is None else units.into
    columns = {
        "layer": [np.full(len(part), layer_id) for layer_id, part in into.items()],
        "unit": [np.arange(len(part)) for part in into.values()],
        "part": list(into.values()),
    }
    none = np.zeros(0)
    parts = pa.table(
        {name: np.concatenate([none, *rows]).astype(np.int32) for name, rows in columns.items()}
    )
    return (db.partitions if units is None else units.partitions), parts


def _lacking(
    db: View, unit: StoredUnit, where: str, this: str, other: str, table: pa.Table
) -> npt.NDArray[np.float64] | None:
    """Bound what sums over inputs lack, for edges that the store left out; None if unknown."""
    rows = source(db, group(db, where if where.strip() else None, mixed_targets=True))
    bounds = absent(db, rows)
    if bounds is None:
        return None
    size = len(table)
    ends = {
        f"{this}_layer": np.full(size, unit.info.layer_id),
        f"{this}_unit": np.full(size, unit.units[0]),
        f"{other}_layer": table["layer"].to_numpy(),
        f"{other}_unit": table["unit"].to_numpy(),
    }
    edges = pa.table({name: ends[name] for name in EDGE})
    errors = bounds.errors(edges, table["present"].to_numpy())
    # Pseudo-units hold what is left out, and all rows of them are there.
    return np.where(table["unit"].to_numpy() < 0, 0.0, errors)


def _chosen(where: str, table: str = "") -> str:
    return f"AND {table}input_id IN ({chosen_inputs(where)})" if where.strip() else ""
