"""Conservation reports as bars, one row per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nrm_graph.plots.common import (
    ABSORBED,
    CHARACTER,
    HALO,
    NEGATIVE,
    POSITIVE,
    TEXT,
    add_legend,
    heading,
    hide_frame,
    new_axes,
    notes,
    percent,
    report_rows,
    room_for,
    size_in_points,
    total,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from matplotlib.axes import Axes

    from nrm_graph.plots.common import ReportRow
    from nrm_graph.plots.protocols import MeasureLike

_FAR = 8.0  # a scale that reaches so many times the whole is logarithmic beyond it
_LEAST, _TALLEST = 0.12, 60.0  # inches: of a row, and of a picture
_NAMES = {
    "bias": "absorbed by bias",
    "stabilizer": "absorbed by stabilizer",
    "remainder": "remainder of the rule",
    "pruned": "pruned",
}


def plot_report(m: MeasureLike | pa.Table, ax: Axes | None = None) -> Axes:
    """Draw a conservation report: what every layer carries, cancels and absorbs.

    Parameters
    ----------
    m : Measure or pyarrow.Table
        A measure, conditioned or not, or the table of its ``report()``.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure, whose height follows the layers.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; ``ax.figure.savefig`` writes the picture.

    Raises
    ------
    InputError
        If the table has no rows or lacks a column.

    Notes
    -----
    Layers run from the output (top) to the input.  The upper bar of a layer is its positive
    relevance, (total variation + sum) / 2, to the right of zero, and its negative relevance,
    (total variation - sum) / 2, to the left; their difference is the sum.  The lower bar stacks
    what its pseudo-neurons absorb, and bears the names of the constants that hold most of it
    where that is not the layer's own.  The line is the share left, the whole less everything that
    the layers above absorbed; a layer that is no cut holds another sum than that.  Where parts
    cancel far beyond the whole, the axis is logarithmic outside the interval that its label
    names.

    References
    ----------
    .. [1] P. Xiong et al., "Normalized Relevance Measure as a Unifying Framework to Explain
       Neural Network Latent Structures", arXiv:2606.00557 (2026).

    Examples
    --------
    >>> import torch, nrm_graph as ng
    >>> from nrm_graph.plots import plot_report
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> ax = plot_report(ng.measure(net, torch.ones(3), target=0))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['2', '0', 'input']
    """
    rows = report_rows(m)
    whole = total(rows)
    is_new = ax is None
    if ax is None:
        ax = new_axes(*_size(rows))
    _limits(ax, rows, whole)
    _draw_bars(ax, rows)
    remaining = whole - np.cumsum([0.0, *(row.absorbed for row in rows)])[:-1]
    _draw_left(ax, remaining)
    _label(ax, m, rows, remaining, whole, is_new)
    _name_constants(ax, m, rows)
    return ax


def _size(rows: Sequence[ReportRow]) -> tuple[float, float]:
    """Width and height in inches of a new figure: its names can be read, however many there are."""
    count = max(len(rows), 3)
    height = max(min(12.0, 1.5 + max(0.16, 0.34 - 0.004 * count) * count), 1.5 + _LEAST * count)
    names = CHARACTER * _font(72 * _LEAST) / 72 * max(len(row.layer) for row in rows)
    return max(6.6, 4.7 + names), min(_TALLEST, height)


def _font(row: float) -> float:
    """Size of the letters where rows have so many points."""
    return min(7.5, max(4.0, 0.8 * row))


def _masses(row: ReportRow) -> tuple[float, float]:
    """Positive and negative relevance of a layer, both as numbers above zero."""
    return max(0.0, (row.variation + row.sum) / 2), max(0.0, (row.variation - row.sum) / 2)


def _limits(ax: Axes, rows: Sequence[ReportRow], whole: float) -> None:
    """Choose a linear or logarithmic scale that reaches every bar."""
    unit = abs(whole)
    high = max(unit, *(_masses(row)[0] for row in rows))
    low = max(*(_masses(row)[1] for row in rows), 0.0)
    for row in rows:
        parts = row.absorbed_by.values()
        high = max(high, sum(v for v in parts if v > 0))
        low = max(low, -sum(v for v in parts if v < 0))
    if max(high, low) > _FAR * unit:
        ax.set_xscale("symlog", linthresh=unit, linscale=1.0)
        decades = int(np.ceil(np.log10(max(high, low) / unit))) + 1
        # As many ticks as there is room for: 1, 2, 5, 10, ... or powers of ten alone.
        steps = (1.0, 2.0, 5.0) if decades <= 2 else (1.0,)
        marks = unit * np.array([s * 10.0**p for p in range(decades) for s in steps])
        marks = marks[:: 1 + len(marks) // 7]
        ticks = np.concatenate([-marks[::-1], [0.0], marks])
        ax.set_xlim(-max(low * 1.3, 0.1 * unit), high * 1.3)
        lower, upper = ax.get_xlim()
        ax.set_xticks([t for t in ticks if lower <= t <= upper])
        ax.minorticks_off()
    else:
        room = 0.05 * (high + low)
        ax.set_xlim(-low - room, high + room)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.3g}")
    ax.set_ylim(len(rows) - 0.4, -0.6)


def _seen(rows: Sequence[ReportRow], kind: str) -> bool:
    """Whether a kind of absorption is large enough anywhere to be seen."""
    return max(abs(row.absorbed_by[kind]) for row in rows) >= 1e-4 * abs(total(rows))


def _draw_bars(ax: Axes, rows: Sequence[ReportRow]) -> None:
    place = np.arange(len(rows), dtype=np.float64)
    masses = np.array([_masses(row) for row in rows])
    ax.barh(place - 0.1, masses[:, 0], 0.52, color=POSITIVE, label="positive", linewidth=0)
    ax.barh(place - 0.1, -masses[:, 1], 0.52, color=NEGATIVE, label="negative", linewidth=0)
    ends = {1: np.zeros(len(rows)), -1: np.zeros(len(rows))}
    for kind, shade in ABSORBED.items():
        values = np.array([row.absorbed_by[kind] for row in rows])
        if not _seen(rows, kind):
            continue
        for sign, end in ends.items():
            part = np.where(sign * values > 0, values, 0.0)
            label = _NAMES[kind] if sign > 0 else "_"
            ax.barh(place + 0.29, part, 0.22, left=end, color=shade, label=label, linewidth=0)
            end += part
    ax.axvline(0.0, color="#333333", linewidth=0.6)


def _draw_left(ax: Axes, remaining: npt.NDArray[np.float64]) -> None:
    """Share left as a line of steps, down the layers."""
    heights = np.repeat(np.arange(len(remaining) + 1) - 0.5, 2)[1:-1]
    ax.plot(
        np.repeat(remaining, 2),
        heights,
        color="black",
        linewidth=1.0,
        solid_joinstyle="miter",
        zorder=3,
    )


def _name_constants(ax: Axes, m: MeasureLike | pa.Table, rows: Sequence[ReportRow]) -> None:
    """Name what holds most of a bias beside its bar, where it is not the layer's own alone."""
    if not hasattr(m, "constants"):
        return
    by_layer: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(m.constants().to_pylist(), key=lambda row: -abs(row["relevance"])):
        by_layer.setdefault(row["layer"], []).append(row)
    foreign = {
        layer
        for layer, constants in by_layer.items()
        if not all(row["constant"].startswith(layer) for row in constants)
    }
    if not foreign:
        return
    ax.figure.canvas.draw()  # lays out, so that it is known what fits
    width, height = size_in_points(ax)
    font = min(6.0, max(3.5, 0.4 * height / len(rows)))

    def across(value: float) -> float:
        """Points from the left end of the axes."""
        place = ax.transData.transform((value, 0.0))[0] - ax.bbox.x0
        return min(width, max(0.0, float(place) * width / ax.bbox.width))

    for y, row in enumerate(rows):
        if row.layer not in foreign:
            continue
        constants = by_layer[row.layer]
        names = [constant["constant"] for constant in constants]
        if abs(across(constants[0]["relevance"]) - across(0.0)) < 8.0:  # too small to be seen
            continue
        short = [n if len(n) <= 24 else f"...{n.rpartition('.')[2]}" for n in names[:2]]
        texts = [", ".join([*short, *(["..."] if len(names) > 2 else [])])]
        texts += [f"{short[0]}, ..."] if len(names) > 1 else []
        parts = row.absorbed_by.values()
        ends = sum(v for v in parts if v < 0), sum(v for v in parts if v > 0)
        right = bool(width - across(ends[1]) >= across(ends[0]))
        room = width - across(ends[1]) if right else across(ends[0])
        text = next((text for text in texts if 0.55 * font * len(text) <= room), None)
        if text is None:
            continue
        ax.annotate(
            text,
            (ends[right], y + 0.29),
            xytext=(2.0 if right else -2.0, 0.0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=font,
            color=TEXT,
            path_effects=HALO,
            zorder=4,
        )


def _label(
    ax: Axes,
    m: MeasureLike | pa.Table,
    rows: Sequence[ReportRow],
    remaining: npt.NDArray[np.float64],
    whole: float,
    is_new: bool,
) -> None:
    width, height = size_in_points(ax)
    font = _font(height / len(rows))
    ax.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize=font)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=7)
    columns = [
        ("sum", [row.sum / whole for row in rows]),
        ("absorbed", [row.absorbed / whole for row in rows]),
        ("left", [float(v) / whole for v in remaining]),
    ][max(0, 3 - int(width / 75.0)) :]  # narrow axes have room for the last
    style: dict[str, Any] = {"ha": "right"}
    for number, (name, shares) in enumerate(columns):
        across = 5.0 * font + number * 5.8 * font  # points to the right of the axes
        place: dict[str, Any] = {"xytext": (across, 0.0), "textcoords": "offset points", **style}
        ax.annotate(
            name,
            (1.0, 1.0),
            xycoords="axes fraction",
            va="bottom",
            fontsize=font,
            color=TEXT,
            **place,
        )
        for y, share in enumerate(shares):
            ax.annotate(
                percent(share),
                (1.0, y),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=font,
                color=TEXT if abs(share) >= 5e-5 else "#A0A0A0",
                **place,
            )
    text = "relevance" if abs(whole - 1.0) < 1e-3 else f"relevance ({whole:.4g} in all)"
    if ax.get_xscale() == "symlog":
        text += f"; linear from -{abs(whole):.3g} to {abs(whole):.3g}, logarithmic beyond"
    if hasattr(m, "report"):
        text += f"\n{notes(m)}"
        ax.set_title(wrapped(heading(m, "relevance by layer"), width, 9.0), fontsize=9, pad=12)
    # Layout keeps columns and names beside the axes, but not what is wider than they are.
    ax.set_xlabel(wrapped(text, 0.9 * width, 7.5), fontsize=7.5)
    if is_new:
        room_for(ax, ax.get_xlabel().count("\n"), 8.0)
    handles: list[Any] = [
        Patch(color=POSITIVE, label="positive"),
        Patch(color=NEGATIVE, label="negative"),
    ]
    for kind, shade in ABSORBED.items():
        if _seen(rows, kind):
            handles.append(Patch(color=shade, label=_NAMES[kind]))
    handles.append(Line2D([], [], color="black", linewidth=1.0, label="left"))
    add_legend(ax, handles, 32.0 + 10.0 * ax.get_xlabel().count("\n"))
    hide_frame(ax, "top", "right", "left")
