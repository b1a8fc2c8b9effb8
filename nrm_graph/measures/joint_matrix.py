"""The exact joint relevance of the units of two layers, as a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import EventError, InputError
from nrm_graph.events.sets import NeuronSet
from nrm_graph.measures import rounding_errors
from nrm_graph.measures.joint import NeuronGroups
from nrm_graph.measures.marginals import units_of
from nrm_graph.measures.results import Matrix, Side
from nrm_graph.progress import Progress

if TYPE_CHECKING:
    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.network.units import Resolution


def joint(
    measure: Algebra,
    rows: str | NeuronSet,
    columns: str | NeuronSet,
    by: Resolution | tuple[Resolution, Resolution] = "unit",
) -> Matrix:
    """Exact joint relevance of every unit of one layer with every unit of another.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.
    rows, columns : str or NeuronSet
        Layers, neighbours or not and in either order; or a neuron set, to which the units are
        restricted: ``ng.Layer("conv1").units([3, 7])``, or a region.
    by : str, array_like of int, or a pair of them
        Resolution of both sides, or of each; see :meth:`marginal`.

    Returns
    -------
    Matrix
        ``values[i, j]`` is R(row i & column j) of this measure, in float64; units without a
        neuron in the set asked for are left out.  ``error`` bounds the error of every value.

    Notes
    -----
    As many passes as the side with fewer units has, between the two layers alone, in batches
    of about ``memory`` bytes.
    """
    pair = by if isinstance(by, tuple) else (by, by)
    if len(pair) != 2:
        raise InputError(f"by takes one resolution or a pair, found {len(pair)}")
    sides = [
        _side(measure, s, resolution) for s, resolution in zip((rows, columns), pair, strict=True)
    ]
    upper, lower = sorted((group for group, _ in sides), key=lambda g: -g.layer_id)
    passes = min(upper.count, lower.count) * len(measure.terms)
    with Progress(f"joint {sides[0][1].layer}, {sides[1][1].layer}", passes, "passes") as meter:
        values, error = rounding_errors.evaluate_joint(
            measure._precisions, measure.terms, upper, lower, measure.memory, meter.advance
        )
    if upper is not sides[0][0]:
        values = values.T
    # Of a conditioned measure, R(condition) may be off as well.
    error += np.abs(values).max(initial=0.0) * measure._condition_uncertainty
    return Matrix(
        values * measure.scale, sides[0][1], sides[1][1], float(error) * abs(measure.scale)
    )


def _side(measure: Algebra, asked: str | NeuronSet, by: Resolution) -> tuple[NeuronGroups, Side]:
    """Return the groups of neurons of one side of a joint matrix."""
    if not isinstance(asked, str | NeuronSet):
        raise EventError(f"joint takes a layer's name or a neuron set, found {asked!r}")
    info = measure.topology.layer(asked if isinstance(asked, str) else asked.layer)
    part = units_of(measure, info, by)
    if isinstance(asked, str):
        labels, units = part.labels.astype(np.int64), np.arange(part.n_units)
    else:
        mask = asked.mask(info.shape, measure.partitions[info.layer_id])
        units, place = np.unique(part.labels[mask], return_inverse=True)
        labels = np.full(info.shape, -1, np.int64)
        labels[mask] = place.ravel()
    return NeuronGroups(info.layer_id, labels, len(units)), Side(info.name, units.astype(np.int64))
