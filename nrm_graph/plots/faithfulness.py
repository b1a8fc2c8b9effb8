"""Faithfulness curves of a circuit and its rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import PercentFormatter

from nrm_graph.errors import InputError
from nrm_graph.plots.common import (
    NEUTRAL,
    POSITIVE,
    TEXT,
    add_legend,
    hide_frame,
    new_axes,
    size_in_points,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nrm_graph.plots.protocols import CurvesLike

_STYLES = {
    "circuit": (POSITIVE, "-", "o"),
    "random": (NEUTRAL, "-", "s"),
    "activation": ("#0072B2", "--", "^"),
    "gradient_x_activation": ("#009E73", ":", "D"),
}
"""Colour (of Okabe and Ito), line and marker of every method."""


def plot_faithfulness(curves: CurvesLike, ax: Axes | None = None, *, score: str = "logit") -> Axes:
    """Draw what held-out inputs keep of their target as more and more is ablated.

    Parameters
    ----------
    curves : Curves
        What :func:`nrm_graph.evaluate.faithfulness` returned.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    score : "logit", "probability" or "margin"
        What is drawn: as a share of the network as it is, or raw where that is not reliably
        above 0.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; ``ax.figure.savefig`` writes the picture.

    Raises
    ------
    InputError
        If there is no such score, or it is undefined for the network's outputs.

    Notes
    -----
    Bands are 95 % bootstrap intervals over keys, and over draws for random orders.  The legend
    gives the area under each curve, its mean height.

    Examples
    --------
    >>> plot_faithfulness(curves, score="margin")  # doctest: +SKIP
    """
    normalized = bool(np.isfinite(curves.mean("circuit", score, normalized=True)).all())
    if not np.isfinite(curves.mean("circuit", score)).all():
        raise InputError(f"the {score} is undefined: the target has no other outputs beside it")
    ax = new_axes(5.4, 3.6) if ax is None else ax
    areas = {row["method"]: row for row in curves.areas().to_pylist() if row["score"] == score}
    x = curves.fractions
    handles = []
    for order, method in enumerate(curves.methods):
        colour, line, marker = _STYLES[method]
        low, high = curves.interval(method, score, normalized=normalized).T
        above = 4.0 - 0.1 * order
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=above - 1)
        area = areas[method]["share" if normalized else "area"]
        name = method.replace("gradient_x_activation", "gradient x activation")
        handles += ax.plot(
            x,
            curves.mean(method, score, normalized=normalized),
            line,
            color=colour,
            marker=marker,
            markersize=3.0,
            linewidth=1.8 if method == "circuit" else 1.2,
            label=f"{name} ({area:.2f})",
            zorder=above,
        )
    ax.axhline(0.0, color=TEXT, linewidth=0.5, zorder=1)
    if normalized:
        ax.axhline(1.0, color=TEXT, linewidth=0.5, linestyle=(0, (2, 2)), zorder=1)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.set_xlim(x[0], x[-1])
    width, points = size_in_points(ax)[0], 8.0
    parts = f"{int(curves.ablated[-1]):,} {curves.by}"
    where = "layer" if curves.by == "units" else "pair of layers"
    verb = {"remove": "ablated", "keep": "kept, all others ablated"}[curves.mode]
    label = f"share of the circuit's {parts} {verb}; rivals: as many in every {where}"
    ax.set_xlabel(wrapped(label, width, points), fontsize=points)
    ax.set_ylabel(f"{score} of the target" + (", of the whole network's" if normalized else ""),
                  fontsize=8)  # fmt: skip
    ax.tick_params(labelsize=7)
    title = (
        f"{curves.target_words()}: {len(set(curves.keys)):,} held-out inputs, "
        f"circuit of {curves.trained:,}; "
        f"ablated to {'zero' if curves.baseline == 'zero' else 'the mean'}"
    )
    ax.set_title(wrapped(title, width, 9.0), fontsize=9)
    add_legend(ax, handles, 30.0 + 10.0 * ax.get_xlabel().count("\n"))
    hide_frame(ax, "top", "right")
    return ax
