"""Tables of a measure: nodes and edges of its units, and edges of single neurons."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from nrm_graph.errors import EventError, InputError
from nrm_graph.events.sets import Event, NeuronSet
from nrm_graph.measures import event_passes
from nrm_graph.measures.neuron_edges import Between, neuron_batches, neuron_table
from nrm_graph.network.grouped_units import asked_units
from nrm_graph.network.topology import PRUNED
from nrm_graph.tables.plan import plan
from nrm_graph.tables.pruning import check

if TYPE_CHECKING:
    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.network.grouped_units import By
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.tables.bounded import Kept
    from nrm_graph.tables.pruning import Limit


M = TypeVar("M", bound="Algebra")


def tables(measure: Algebra, event: Event | None = None) -> tuple[pa.Table, pa.Table]:
    """Complete node and edge tables of the input, on the unit scale.

    Of a conditioned measure they hold R(n | condition) and R(j -> i | condition); the column
    ``conditional`` is q under the condition, by which walks of it go on from j, and null where
    the condition is no single conjunction.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.
    event : Event, optional
        Give R(n & event) and R(j -> i & event), which are defined where R(event) vanishes.
    """
    if event is None and "tables" in measure._cache:
        return measure._cache["tables"]  # type: ignore[no-any-return]
    units = plan(measure.network, measure.partitions)
    terms = measure.terms if event is None else measure._joint_terms(event)
    nodes_and_edges = event_passes.tables(measure.state, measure.start, terms, units)
    if event is None:
        measure._cache["tables"] = nodes_and_edges
    return nodes_and_edges


def bounded_tables(
    measure: Algebra, rows: int, event: Event | None = None
) -> tuple[pa.Table, pa.Table, Kept]:
    """Tables as of :func:`tables`, of the strongest edges, ``rows`` at most, and what was kept."""
    units = plan(measure.network, measure.partitions)
    terms = measure.terms if event is None else measure._joint_terms(event)
    return event_passes.bounded_tables(measure.state, measure.start, terms, units, rows)


def edges(
    measure: Algebra,
    upper: str,
    lower: str,
    /,
    by: By = "unit",
    *,
    dst: NeuronSet | None = None,
    src: NeuronSet | None = None,
    coverage: float = 1.0,
    top: int | None = None,
) -> pa.Table:
    """Edges from one layer to one that it reads, as in the ``edges`` table of a store.

    ``edges(layer, layer)`` gives the layer's pseudo-edges.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.
    upper, lower : str
        Layer nearer the output, and the one that it reads.
    by : "unit", "neuron", or units as :func:`nrm_graph.network.grouped_units.asked_units` takes
        Units of the measure's resolution; or single neurons, numbered by flat index, computed
        now from the network's program, however large the complete table would be; or other units,
        finer or coarser, computed as well.
    dst, src : NeuronSet, optional
        With ``by="neuron"``: only edges from a set of the upper layer, to a set of the lower.
    coverage : float
        Keep the fewest edges that hold this share of the sum of |relevance|.
    top : int, optional
        Keep at most so many edges, the strongest.

    Returns
    -------
    pyarrow.Table
        dst_layer, dst_unit, src_layer, src_unit, relevance, conditional; sorted by units.  With
        ``top`` or ``coverage`` the strongest first, and what is left out stands in the schema's
        metadata: ``left_out``, the sum of its relevance.

    Raises
    ------
    EventError
        If the first layer does not read the second directly, or a set is of another layer.
    InputError
        If there are too many neuron-level edges for one table: see :meth:`edge_batches`.
    """
    limit = check(coverage, top)
    if isinstance(by, str) and by == "neuron":
        asked = _between(measure, upper, lower, dst, src)
        # Pseudo-edges are few, and no limit is applied to them as they are computed.
        chosen = asked.upper != asked.lower
        return _strongest(neuron_table(asked, limit, measure.scale), limit, chosen)
    if dst is not None or src is not None:
        raise InputError(
            "dst and src go with by='neuron'; what a set of any units reads is "
            "m.given(event).marginal(layer, by=...)"
        )
    above, below = _pair(measure, upper, lower)
    _, rows = tables(in_units(measure, None if isinstance(by, str) and by == "unit" else by))
    keep = (rows["dst_layer"].to_numpy() == above.layer_id) & (
        rows["src_layer"].to_numpy() == below.layer_id
    )
    between = rows.filter(pa.array(keep))
    if measure.scale != 1.0:
        scaled = between["relevance"].to_numpy() * measure.scale
        between = between.set_column(4, "relevance", pa.array(scaled))
    return _strongest(between, limit)


def in_units(measure: M, by: By | None) -> M:
    """Return the measure with other units in its tables; its events stay what they are."""
    if by is None:
        return measure
    units = asked_units(measure.topology, measure.partitions, by)
    # Mean activations are remembered by unit.
    return replace(measure, partitions=units, state=replace(measure.state, means={}), _cache={})


def _strongest(edges: pa.Table, limit: Limit, chosen: bool = False) -> pa.Table:
    """Keep the edges that a limit asks for, the strongest first; say what is left out.

    They may be ``chosen`` already: what was left out then stands in rows of the pseudo-unit -3.
    """
    if limit.complete:
        return edges
    relevance = edges["relevance"].to_numpy().astype(np.float64)
    size = np.abs(relevance)
    is_edge = (edges["dst_unit"].to_numpy() != PRUNED) & (edges["src_unit"].to_numpy() != PRUNED)
    places = np.flatnonzero(is_edge)
    places = places[np.argsort(-size[places], kind="stable")]
    if not chosen:
        if limit.coverage < 1.0 and len(places):
            held = np.cumsum(size[places])
            goal = limit.coverage * held[-1] * (1 - 1e-12)  # rounding must not ask for more
            places = places[: int(np.searchsorted(held, goal)) + 1]
        places = places[: limit.top]
    left = float(relevance.sum() - relevance[places].sum())
    return edges.take(places).replace_schema_metadata({"left_out": repr(left)})


def edge_batches(
    measure: Algebra,
    upper: str,
    lower: str,
    /,
    *,
    dst: NeuronSet | None = None,
    src: NeuronSet | None = None,
) -> pa.RecordBatchReader:
    """Neuron-level edges as a stream of Arrow batches, each computed when it is read.

    Rows are those of ``edges(upper, lower, by="neuron", dst=dst, src=src)``; memory is
    bounded by a batch, and all edges of an upper neuron are in one.
    """
    return neuron_batches(_between(measure, upper, lower, dst, src), measure.scale)


def _between(
    measure: Algebra, upper: str, lower: str, dst: NeuronSet | None, src: NeuronSet | None
) -> Between:
    above, below = _pair(measure, upper, lower)
    masks = []
    for info, chosen in ((above, dst), (below, src)):
        if chosen is None:
            masks.append(np.ones(info.n_neurons, bool))
            continue
        if not isinstance(chosen, NeuronSet) or measure.topology.layer(chosen.layer) != info:
            raise EventError(f"expected a neuron set of layer {info.name}, found {chosen!r}")
        masks.append(chosen.mask(info.shape, measure.partitions[info.layer_id]).ravel())
    return Between(
        measure.state,
        measure.start,
        measure.terms,
        above.layer_id,
        below.layer_id,
        dst=masks[0],
        src=masks[1],
        known=measure._unconditioned.relevance,
    )


def _pair(measure: Algebra, upper: str, lower: str) -> tuple[LayerInfo, LayerInfo]:
    """Two layers, the first of which reads the second, or is it."""
    above, below = measure.topology.layer(upper), measure.topology.layer(lower)
    if above != below and below.layer_id not in measure.topology.sources(above.layer_id):
        names = [measure.topology.layers[i].name for i in measure.topology.sources(above.layer_id)]
        raise EventError(
            f"{above.name} does not read {below.name} directly; it reads "
            f"{', '.join(names) or 'nothing'}"
        )
    return above, below
