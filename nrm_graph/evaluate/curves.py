"""Faithfulness curves: what is left of a target as more and more is ablated."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import InputError
from nrm_graph.tables.html_tables import Description, HtmlTable, Tabular, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

SCORES = ("logit", "probability", "margin")
"""The target's output; its softmax; how far it is above the largest other output."""

CIRCUIT, RANDOM = "circuit", "random"
RESAMPLES = 1000


@dataclass(frozen=True, eq=False, repr=False)
class Curves(Tabular):
    """What held-out inputs keep of their targets, by method and step.

    Attributes
    ----------
    by : str
        ``units`` or ``edges``.
    mode : str
        ``remove``: a method's strongest parts are ablated; ``keep``: all others of the same layers.
    baseline : str
        ``zero`` or ``mean``: what ablated neurons get.
    target : int, str or None
        The circuit's target; None where targets are mixed and each input has its own.
    where : str or None
        Condition that chose the held-out inputs.
    keys : tuple of str
        Key of every held-out input; the unit of replication.
    trained : int
        Number of inputs that the circuit and its rivals were computed from.
    fractions : ndarray, (steps,)
        Share of the circuit that is ablated, or kept.
    counts : mapping of str to ndarray of int, (steps,)
        How many parts that is, by layer, or pair of layers as ``src -> dst``; the same for every
        method.
    available : mapping of str to int
        How many parts each layer or pair has to choose from: units, or edges that any method has.
    unablated : ndarray, (inputs, 3)
        Scores of the network as it is, in the order of ``SCORES``; NaN where one is undefined.
    values : mapping of str to ndarray, (draws, steps, inputs, 3)
        Scores by method; one draw, but for ``random``.
    seed : int
        Of random draws and resamples.
    """

    by: str
    mode: str
    baseline: str
    target: int | str | None
    where: str | None
    keys: tuple[str, ...]
    trained: int
    fractions: npt.NDArray[np.float64]
    counts: Mapping[str, npt.NDArray[np.int64]]
    available: Mapping[str, int]
    unablated: npt.NDArray[np.float64]
    values: Mapping[str, npt.NDArray[np.float64]]
    seed: int
    target_text: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The circuit and its rivals."""
        return tuple(self.values)

    @property
    def ablated(self) -> npt.NDArray[np.int64]:
        """Parts in all layers, by step: those ablated, or kept."""
        return sum(self.counts.values(), np.zeros(len(self.fractions), np.int64))

    def mean(
        self, method: str, score: str = "logit", *, normalized: bool = False
    ) -> npt.NDArray[np.float64]:
        """Mean over the held-out inputs, and over draws, by step.

        Parameters
        ----------
        method : str
            One of ``methods``.
        score : str
            ``logit``, ``probability`` or ``margin``.
        normalized : bool
            Divide by the mean of the network as it is; NaN unless that is reliably above 0.

        Returns
        -------
        ndarray, (steps,)
        """
        heights: npt.NDArray[np.float64] = self._of(method, score).mean((0, 2))
        return heights / self._whole(score) if normalized else heights

    def interval(
        self, method: str, score: str = "logit", *, normalized: bool = False, level: float = 0.95
    ) -> npt.NDArray[np.float64]:
        """Bootstrap interval of :meth:`mean`.

        Keys are drawn anew, with all their inputs, and for ``random`` the draws too.

        Returns
        -------
        ndarray, (steps, 2)
            Lower and upper end.
        """
        return _ends(self._resampled(method, score, normalized), level).T

    def table(self, level: float = 0.95) -> pa.Table:
        """All curves, one row per method, score and step.

        Columns: method, score, fraction, parts (ablated, or kept), mean, low, high; share,
        share_low, share_high (of the network as it is; null where that makes no sense).
        """
        rows = []
        for method in self.methods:
            for score in SCORES:
                columns: list[Any] = []
                for normalized in (False, True):
                    ends = self.interval(method, score, normalized=normalized, level=level)
                    columns += [self.mean(method, score, normalized=normalized), *ends.T]
                rows += [
                    (method, score, float(f), int(n), *(_number(c[step]) for c in columns))
                    for step, (f, n) in enumerate(zip(self.fractions, self.ablated, strict=True))
                ]
        return _table(rows, _CURVE)

    def to_arrow(self) -> pa.Table:
        """Return :meth:`table`."""
        return self.table()

    def areas(self, level: float = 0.95) -> pa.Table:
        """Areas under the curves: their mean height over the fractions.

        Columns: method, score, area, low, high; share, share_low, share_high (of the network as it
        is); difference, difference_low, difference_high (of the method's area from the circuit's,
        over the same resamples: with ``remove`` it is positive where the circuit does more, with
        ``keep`` where it does less); and for ``random`` p, the share of draws that are at least as
        good as the circuit, the circuit counted as one of them.
        """
        rows = []
        for score in SCORES:
            circuit_areas = self._area(self._resampled(CIRCUIT, score, False))
            reference = float(self._area(self.mean(CIRCUIT, score)))
            for method in self.methods:
                resampled = self._area(self._resampled(method, score, False))
                area = float(self._area(self.mean(method, score)))
                share = self._area(self.mean(method, score, normalized=True))
                spread = self._area(self._resampled(method, score, True))
                columns = [area, *_ends(resampled, level), share, *_ends(spread, level)]
                if method == CIRCUIT:
                    columns += [None, None, None]
                else:
                    columns += [area - reference, *_ends(resampled - circuit_areas, level)]
                p = None
                if method == RANDOM and np.isfinite(reference):
                    draws = self._area(self._of(method, score).mean(2))
                    better = draws <= reference if self.mode == "remove" else draws >= reference
                    p = (1 + int(better.sum())) / (1 + len(draws))
                rows.append((method, score, *(_number(c) for c in columns), p))
        return _table(rows, _AREA)

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        return (table_of(self.areas(), caption="Areas under its curves"),)

    def _description(self) -> Description:
        """Say what was done, and the areas of the logit."""
        target = self.target_words()
        does = {"remove": "removed", "keep": "kept"}[self.mode]
        score = "logit" if np.isfinite(self._whole("logit")) else "probability"
        areas = ", ".join(
            f"{method} {float(self._area(self.mean(method, score, normalized=True))):.3g}"
            for method in self.methods
        )
        return Description(
            f"Curves of {target}: up to {int(self.ablated[-1])} {self.by} in {len(self.counts)} "
            f"{'layers' if self.by == 'units' else 'pairs of layers'} {does} ({self.baseline}), "
            f"{len(self.keys)} held-out inputs, {self.trained} of the circuit; "
            f"area of the {score}: {areas}"
        )

    def target_words(self) -> str:
        """Target in words, with its class where that is known."""
        if self.target is None:
            return "mixed targets"
        return f"target {self.target if self.target_text is None else self.target_text}"

    def _of(self, method: str, score: str) -> npt.NDArray[np.float64]:
        """Scores ``(draws, steps, inputs)``."""
        if method not in self.values:
            raise InputError(
                f"there is no curve of {method!r}: expected one of {', '.join(self.methods)}"
            )
        return self.values[method][..., _index(score)]

    def _whole(self, score: str) -> float:
        """Mean of the network as it is; NaN unless its interval is above 0."""
        values = self.unablated[:, _index(score)]
        low, _ = _ends(self._weights[0] @ values, 0.95)
        return float(values.mean()) if low > 0 else float("nan")

    @functools.cached_property
    def _weights(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Weights of inputs, and of random draws, in every resample."""
        rng = np.random.default_rng([self.seed, len(self.keys)])
        _, place = np.unique(np.array(self.keys, object), return_inverse=True)
        groups = int(place.max()) + 1
        inputs = rng.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)[:, place]
        draws = len(self.values[RANDOM]) if RANDOM in self.values else 1
        again = rng.multinomial(draws, np.full(draws, 1 / draws), RESAMPLES)
        return inputs / inputs.sum(1, keepdims=True), again / draws

    def _resampled(self, method: str, score: str, normalized: bool) -> npt.NDArray[np.float64]:
        """Means over resamples, ``(RESAMPLES, steps)``."""
        values = self._of(method, score)
        inputs, draws = self._weights
        if method != RANDOM:
            draws = np.ones((len(inputs), 1))
        steps = [((draws @ values[:, s]) * inputs).sum(1) for s in range(values.shape[1])]
        means: npt.NDArray[np.float64] = np.stack(steps, 1)
        if not normalized:
            return means
        if not np.isfinite(self._whole(score)):
            return np.full_like(means, np.nan)
        return means / (inputs @ self.unablated[:, _index(score)])[:, None]

    def _area(self, curve: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Mean height along the last axis."""
        width = self.fractions[-1] - self.fractions[0]
        area: npt.NDArray[np.float64] = np.trapezoid(curve, self.fractions, axis=-1) / width
        return area


def _index(score: str) -> int:
    if score not in SCORES:
        raise InputError(f"there is no score {score!r}: expected one of {', '.join(SCORES)}")
    return SCORES.index(score)


def _ends(samples: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.float64]:
    """Lower and upper end of an interval, over the first axis."""
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, found {level!r}")
    ends: npt.NDArray[np.float64] = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], 0)
    return ends


def _number(value: float | None) -> float | None:
    """Return a float that a table can hold; None for NaN."""
    return None if value is None or not np.isfinite(value) else float(value)


_SHARES = ("share", "share_low", "share_high")
_CURVE = ("method", "score", "fraction", "parts", "mean", "low", "high", *_SHARES)
_GAP = ("difference", "difference_low", "difference_high")
_AREA = ("method", "score", "area", "low", "high", *_SHARES, *_GAP, "p")


def _table(rows: Sequence[tuple[str | float | None, ...]], names: tuple[str, ...]) -> pa.Table:
    kinds = {"method": pa.string(), "score": pa.string(), "parts": pa.int64()}
    columns = list(zip(*rows, strict=True))
    return pa.table(
        {
            name: pa.array(column, kinds.get(name, pa.float64()))
            for name, column in zip(names, columns, strict=True)
        }
    )
