"""Relevance of whole layers: marginals, cuts, and the report of what is conserved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError
from nrm_graph.events.sets import Event, Layer
from nrm_graph.measures import constant_shares, event_passes
from nrm_graph.measures.results import Cut
from nrm_graph.network.units import partition

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Partition, Resolution


def marginal(measure: Algebra, layer: str, by: Resolution = "unit") -> npt.NDArray[Any]:
    """Relevance of a layer.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.
    layer : str
        Name or alias.
    by : str or array_like of int
        ``unit`` sums over the units of the measure's resolution; ``neuron`` gives every
        neuron; or any resolution or partition, see :func:`nrm_graph.network.units.partition`.

    Returns
    -------
    ndarray, (n_units,) or the layer's shape
        In the dtype of the pass.
    """
    info = measure.topology.layer(layer)
    values = measure._relevance(info).cpu().numpy() * measure.scale
    if isinstance(by, str) and by == "neuron":
        return values.astype(values.dtype)
    part = units_of(measure, info, by)
    sums = np.bincount(
        part.labels.ravel(), values.ravel().astype(np.float64), minlength=part.n_units
    )
    return sums.astype(values.dtype)


def units_of(measure: Algebra, layer: LayerInfo, by: Resolution) -> Partition:
    """Units of a layer: the measure's own, or those of any resolution or partition."""
    if isinstance(by, str) and by == "unit":
        return measure.partitions[layer.layer_id]
    return partition(layer, by)


def strongest(measure: Algebra, layer: str, k: int) -> Event:
    """Return the set of the k units of a layer that together carry most relevance.

    Relevance adds up within a layer, so these are the units of largest relevance.
    """
    relevance = marginal(measure, layer)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= len(relevance):
        raise InputError(f"k must be a number of units from 1 to {len(relevance)}, found {k!r}")
    chosen = np.argsort(-relevance, kind="stable")[:k]
    return Layer(measure.topology.layer(layer).name).units(np.sort(chosen).tolist())


def cut(measure: Algebra, layer: str) -> Cut:
    """Return the cut through a layer and the tensors that bypass it."""
    info = measure.topology.layer(layer)
    names = [entry.name for entry in measure.topology.layers]
    arrived, absorbed = event_passes.cut(measure.state, measure.start, measure.terms, info.layer_id)
    relevance = arrived.pop(info.layer_id, 0.0) * measure.scale
    return Cut(
        info.name,
        relevance,
        {names[i]: share * measure.scale for i, share in arrived.items()},
        {names[i]: share * measure.scale for i, share in absorbed.items()},
    )


def report(measure: Algebra) -> pa.Table:
    """Conservation report, one row per layer from the output to the input.

    Columns: layer, kind, sum, bias, stabilizer, pruned, remainder (what the layer's
    pseudo-neurons hold), total_variation (sum of |R|).  The schema's metadata says which reading
    they come from: ``bias`` is ``absorbed`` or ``ignored``.
    """
    _, absorbed = measure._nodes()

    def lost(layer_id: int, kind: str) -> float:
        return float(absorbed.get((layer_id, kind), 0.0)) * measure.scale

    rows = []
    for layer in reversed(measure.topology.layers):
        values = measure._relevance(layer).double()
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "sum": float(values.sum()) * measure.scale,
                "bias": lost(layer.layer_id, "bias"),
                "stabilizer": lost(layer.layer_id, "stabilizer"),
                "pruned": 0.0,
                "remainder": lost(layer.layer_id, "remainder"),
                "total_variation": float(values.abs().sum()) * abs(measure.scale),
            }
        )
    return pa.Table.from_pylist(rows, metadata={"bias": measure.bias})


def constants(measure: Algebra) -> pa.Table:
    """Return what biases and constants hold, a row per layer and name, the largest first.

    Columns: layer, constant (``features.0.bias``, ``class_token``, ``padding``), relevance,
    total_variation (sum of |R| over the layer's neurons).  The relevances of a layer sum to
    its ``bias`` in :meth:`report`; what holds nothing is left out.
    """
    return constant_shares.table(measure.state, measure.start, measure.terms, measure.scale)
