"""What a measure answers with: frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from nrm_graph._optional import data_frames
from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.tables.html_tables import COLUMNS, ROWS, Description, Displayed, HtmlTable, Tabular

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa


class Estimate(float):
    """A number that knows how far rounding may have taken it from the exact one.

    Attributes
    ----------
    error : float
        Bound of the absolute error, see :mod:`nrm_graph.measures.rounding_errors`.
    """

    error: float

    def __new__(cls, value: float, error: float) -> Self:
        """Attach its error to a value."""
        estimate = super().__new__(cls, value)
        estimate.error = error
        return estimate

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self), self.error


class Conditional(Estimate):
    """A conditional relevance: a float that knows what it rests on.

    Attributes
    ----------
    error : float
        Bound of the absolute error.
    amplification : float
        Sum of |R| over the condition's neurons, over |R(condition)|: how far rounding may have
        been amplified.
    absorbed : float
        Share of the conditional measure that biases, stabilizers and remainders absorbed.
    """

    amplification: float
    absorbed: float

    def __new__(
        cls, value: float, error: float, amplification: float, absorbed: float
    ) -> Conditional:
        """Attach what it rests on to a value."""
        conditional = super().__new__(cls, value, error)
        conditional.amplification = amplification
        conditional.absorbed = absorbed
        return conditional

    def __getnewargs__(self) -> tuple[float, float, float, float]:  # type: ignore[override]
        return float(self), self.error, self.amplification, self.absorbed


@dataclass(frozen=True)
class Cut:
    """A cut through the network: every walk passes ``layer``, bypasses it, or ended above.

    Attributes
    ----------
    layer : str
        The layer asked about.
    relevance : float
        Its relevance.
    bypass : dict of str to float
        Relevance of walks that bypass it, by the layer at which they arrive next.
    absorbed : dict of str to float
        What pseudo-neurons above the cut hold, by layer.
    """

    layer: str
    relevance: float
    bypass: dict[str, float]
    absorbed: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all parts; 1 but for rounding, on the unit scale."""
        return self.relevance + sum(self.bypass.values()) + sum(self.absorbed.values())

    def __float__(self) -> float:
        return self.total

    def _repr_html_(self) -> str:
        rows = [
            (self.layer, "passes through it", self.relevance),
            *((name, "arrives there next", share) for name, share in self.bypass.items()),
            *((name, "absorbed there", share) for name, share in self.absorbed.items()),
        ]
        table = HtmlTable(("layer", "walks", "relevance"), tuple(rows[:ROWS]), len(rows))
        title = f"Cut through {self.layer}, {self.total:.6g} in all"
        return Description(title).html(table)


@dataclass(frozen=True, eq=False)
class Side:
    """What one side of a matrix counts: units of a layer.

    Attributes
    ----------
    layer : str
        Name of the layer.
    units : ndarray of int
        Unit of every row or column.
    """

    layer: str
    units: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(Displayed):
    """Joint relevance of the units of two layers.

    Attributes
    ----------
    values : ndarray, (rows, columns)
        ``R(row & column)``, of the measure that was asked.
    rows, columns : Side
        Layer and units.
    error : float
        Bound of the absolute error of every value.
    """

    values: npt.NDArray[Any]
    rows: Side
    columns: Side
    error: float = 0.0

    def _description(self) -> Description:
        return Description(
            f"joint relevance of {self.rows.layer} x {self.columns.layer}, {self.values.shape}"
        )

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        values, shown = self.values[:ROWS, :COLUMNS], self.columns.units[:COLUMNS]
        rows = tuple(
            (str(unit), *row)
            for unit, row in zip(self.rows.units[:ROWS].tolist(), values.tolist(), strict=True)
        )
        corner = f"{self.rows.layer} \\ {self.columns.layer}"
        left_out = len(self.columns) - len(shown)
        columns = (corner, *map(str, shown.tolist()))
        return (HtmlTable(columns, rows, len(self.rows), left_out=left_out),)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with the units as index and columns.

        Raises
        ------
        InputError
            If pandas is not installed.
        """
        pd = data_frames()
        return pd.DataFrame(
            self.values,
            index=pd.Index(self.rows.units, name=self.rows.layer),
            columns=pd.Index(self.columns.units, name=self.columns.layer),
        )


@dataclass(frozen=True)
class Path:
    """One path from the output towards the input.

    Attributes
    ----------
    units : tuple of (str, int)
        Layer and unit of every step; of a walk, every neuron (flat index) that it passes, and at
        the end, where one absorbs it, a pseudo-neuron: -1 bias, -2 stabilizer, -4 remainder.
    relevance : float
        Of all walks through these units.
    """

    units: tuple[tuple[str, int], ...]
    relevance: float

    def __repr__(self) -> str:
        return f"<{self.relevance:.6g}: {self._steps()}>"

    def _steps(self) -> str:
        return " > ".join(
            f"{layer}[{unit}]" if unit >= 0 else f"{layer} {PSEUDO_UNITS[unit]}"
            for layer, unit in self.units
        )


@dataclass(frozen=True, repr=False)
class Paths(Tabular, Sequence[Path]):
    """The strongest paths, as a list, and what those that are not listed can hold.

    Attributes
    ----------
    paths : tuple of Path
        Strongest first.
    layers : tuple of str
        Layers that every path names, from the output to the input; empty for walks, which differ
        in the layers that they pass.
    bound : float
        No path that is not listed has a larger |relevance|, but for rounding of the pass.
    mass : float or None
        The sum of |relevance| over all paths that are not listed is not larger; None if not
        known.
    certified : bool
        Whether the list is exactly the top: no path that is not listed is stronger than one that
        is (of walks, than one of its sign).
    """

    paths: tuple[Path, ...]
    layers: tuple[str, ...]
    bound: float
    mass: float | None
    certified: bool

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        return self.paths[index]

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        lines = [f"{path.relevance:>12.5g}  {path._steps()}" for path in self.paths]
        return "\n".join([*lines, self._bounds()])

    def _description(self) -> Description:
        title = f"{len(self.paths):,} strongest {'paths' if self.layers else 'walks'}"
        return Description(title, notes=(self._bounds(),))

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        rows = tuple((path.relevance, path._steps()) for path in self.paths[:ROWS])
        return (HtmlTable(("relevance", "path"), rows, len(self.paths)),)

    def _bounds(self) -> str:
        """Say what paths that are not listed can hold."""
        weakest = min((abs(path.relevance) for path in self.paths), default=0.0)
        rest = "" if self.mass is None else f", the others together {self.mass:.4g}"
        certified = "certified" if self.certified else "not certified"
        if self.certified and self.bound > weakest:
            certified += ", each sign by itself"
        return f"weakest |R| {weakest:.4g}; any other at most {self.bound:.4g}{rest}: {certified}"

    def to_arrow(self) -> pa.Table:
        """One row per step: path, relevance (of the path), step, layer, unit."""
        import pyarrow as pa

        rows = [
            (i, path.relevance, step, layer, unit)
            for i, path in enumerate(self.paths)
            for step, (layer, unit) in enumerate(path.units)
        ]
        columns = list(zip(*rows, strict=True)) or [()] * 5
        kinds = (pa.int32(), pa.float64(), pa.int32(), pa.string(), pa.int32())
        names = ("path", "relevance", "step", "layer", "unit")
        return pa.table(
            {
                name: pa.array(column, kind)
                for name, column, kind in zip(names, columns, kinds, strict=True)
            }
        )
