"""What a measure answers with: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd


class Conditional(float):
    """A conditional relevance: a float that knows what it rests on.

    Attributes
    ----------
    amplification : float
        Sum of |R| over the condition's neurons, over |R(condition)|: how far rounding may have
        been amplified.
    absorbed : float
        Share of the conditional measure that biases and stabilizers absorbed.
    """

    amplification: float
    absorbed: float

    def __new__(cls, value: float, amplification: float, absorbed: float) -> Conditional:
        """Attach what it rests on to a value."""
        made = super().__new__(cls, value)
        made.amplification = amplification
        made.absorbed = absorbed
        return made

    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override]
        return float(self), self.amplification, self.absorbed


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
class Matrix:
    """Joint relevance of the units of two layers.

    Attributes
    ----------
    values : ndarray, (rows, columns)
        ``R(row & column)``, of the measure that was asked.
    rows, columns : Side
        Layer and units.
    """

    values: npt.NDArray[Any]
    rows: Side
    columns: Side

    def __repr__(self) -> str:
        return f"<joint relevance of {self.rows.layer} x {self.columns.layer}, {self.values.shape}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with the units as index and columns; needs pandas."""
        import pandas as pd

        return pd.DataFrame(
            self.values,
            index=pd.Index(self.rows.units, name=self.rows.layer),
            columns=pd.Index(self.columns.units, name=self.columns.layer),
        )
