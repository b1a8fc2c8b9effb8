"""The mean over inputs of the joint relevance of the units of two layers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph._optional import data_frames
from nrm_graph.events.serialization import to_json
from nrm_graph.events.sets import NeuronSet
from nrm_graph.measures.results import Matrix
from nrm_graph.progress import Progress
from nrm_graph.store.input_group import group
from nrm_graph.store.measure import measure
from nrm_graph.tables.html_tables import Description, HtmlTable

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from nrm_graph.network.targets import Sought
    from nrm_graph.network.units import Resolution
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.view import View


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MeanMatrix(Matrix):
    """Mean joint relevance of the units of two layers, over inputs.

    Attributes
    ----------
    values, rows, columns, error
        As of :class:`nrm_graph.measures.results.Matrix`: means, and the bound of their rounding.
    stderr : ndarray of float64, (rows, columns)
        Standard error of the mean over inputs; NaN of a single one.
    group : InputGroup
        The inputs.
    weight : str
        What relevance is multiplied by.
    """

    stderr: npt.NDArray[np.float64]
    group: InputGroup
    weight: str

    def _description(self) -> Description:
        chosen = "all" if self.group.where is None else f"where {self.group.where}"
        quantity = "R x logit" if self.weight == "logit" else "R"
        return Description(
            f"mean {quantity} of {self.rows.layer} x {self.columns.layer}, {self.values.shape}, "
            f"over {len(self.group):,} inputs ({chosen})"
        )

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        (means,) = super()._html_tables()
        (errors,) = Matrix(self.stderr, self.rows, self.columns)._html_tables()
        return replace(means, caption="Means"), replace(errors, caption="Their standard errors")

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with the units as index, and ``mean`` and ``stderr`` of every column.

        ``to_pandas()["mean"]`` is as :meth:`Matrix.to_pandas` returns.

        Raises
        ------
        InputError
            If pandas is not installed.
        """
        pd = data_frames()
        means = super().to_pandas()
        errors = Matrix(self.stderr, self.rows, self.columns).to_pandas()
        return pd.concat({"mean": means, "stderr": errors}, axis=1)


@dataclass(frozen=True, eq=False)
class _Running:
    """Mean and sum of squares around it of the inputs that were computed."""

    ids: frozenset[int]
    first: Matrix
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64]
    error: float

    def with_next(self, identity: int, matrix: Matrix, factor: float) -> _Running:
        """Add an input (Welford 1962: sums of squares would cancel)."""
        values, count = matrix.values * factor, len(self.ids) + 1
        step = values - self.mean
        mean = self.mean + step / count
        return _Running(
            self.ids | {identity},
            self.first,
            mean,
            self.scatter + step * (values - mean),
            self.error + matrix.error * abs(factor),
        )


def joint(
    db: View,
    rows: str | NeuronSet,
    columns: str | NeuronSet,
    where: str | None = None,
    *,
    by: Resolution | tuple[Resolution, Resolution] = "unit",
    weight: str = "unit",
    target: Sought | None = None,
    mixed_targets: bool = False,
) -> MeanMatrix:
    """Average the exact joint relevance of every unit of one layer with every unit of another.

    Each input's matrix is computed from the stored program, whatever the store's resolution.

    Parameters
    ----------
    db : Database
        The store.
    rows, columns : str or NeuronSet
        Layers or neuron sets, as in :meth:`nrm_graph.Measure.joint`.
    where : str, optional
        SQL condition over ``inputs``; all by default.
    by : str, array_like of int, or a pair of them
        Units of both sides, or of each, as in :meth:`nrm_graph.Measure.joint`.
    weight : "unit" or "logit"
        With ``logit``, relevance times the input's logit is averaged.
    target, mixed_targets
        As in :meth:`nrm_graph.database.Database.circuit`.

    Returns
    -------
    MeanMatrix
        Means, their standard errors over inputs, and the bound of their rounding.

    Raises
    ------
    InputError
        If no input is chosen, their targets differ, or the store keeps no tensors.
    EventError
        If a layer or a set does not fit the network.

    Notes
    -----
    A call that was interrupted goes on where it stopped when it is made again of the same
    ``Database``.
    """
    chosen = group(db, where, target=target, mixed_targets=mixed_targets)
    weights = chosen.weights(weight)
    name = _name(rows, columns, by, weight)
    inputs = frozenset(chosen.ids.tolist())
    running: _Running | None = db._joints.get(name)
    if running is not None and not running.ids <= inputs:
        running = None
    with Progress("joint relevance", len(chosen), "inputs") as meter:
        for identity, factor in zip(chosen.ids.tolist(), weights.tolist(), strict=True):
            if running is None or identity not in running.ids:
                matrix = measure(db, identity).joint(rows, columns, by)
                if running is None:
                    zero = np.zeros(matrix.values.shape)
                    running = _Running(frozenset(), matrix, zero, zero, 0.0)
                running = running.with_next(identity, matrix, factor)
                db._joints = {name: running}  # that of one call: matrices may be large
            meter.advance()
    assert running is not None  # a group has inputs
    count = len(chosen)
    spread = np.sqrt(running.scatter / max(count - 1, 1) / count)
    return MeanMatrix(
        running.mean,
        running.first.rows,
        running.first.columns,
        running.error / count,
        stderr=spread if count > 1 else np.full(spread.shape, np.nan),
        group=chosen,
        weight=weight,
    )


def _name(rows: object, columns: object, by: object, weight: str) -> str:
    """Tell calls for the same numbers from others."""
    sides = [to_json(side) if isinstance(side, NeuronSet) else side for side in (rows, columns)]
    pair = by if isinstance(by, tuple) else (by, by)
    units = [part if isinstance(part, str) else np.asarray(part).tolist() for part in pair]
    return json.dumps([sides, units, weight], default=repr)
