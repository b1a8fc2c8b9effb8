"""Colours, scales and texts that all pictures share; nothing here keeps global state."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from nrm_graph.errors import InputError
from nrm_graph.network.topology import ENDS
from nrm_graph.output_files import write_files
from nrm_graph.propagation.flags import sentences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from nrm_graph.plots.protocols import MeasureLike

POSITIVE, NEGATIVE, NEUTRAL = "#D55E00", "#0072B2", "#9A9A9A"
"""Vermillion and blue of Okabe and Ito, which colour-blind readers tell apart, and grey."""

SIGNED = LinearSegmentedColormap.from_list("signed", [NEGATIVE, "#F2F2F2", POSITIVE])
"""Colours of relevance, centred at zero."""


def _overlay() -> LinearSegmentedColormap:
    # Saturates before it covers, so that small relevance tints the image and hides nothing.
    stops = np.linspace(-1.0, 1.0, 65)
    colours = [(*to_rgb(NEGATIVE if t < 0 else POSITIVE), min(1.0, abs(t) ** 0.7)) for t in stops]
    return LinearSegmentedColormap.from_list("overlay", colours)


OVERLAY = _overlay()
"""As SIGNED, but transparent at zero: to lie over a grey image."""

ABSORBED = {
    "bias": "#6E6E6E",
    "stabilizer": "#BDBDBD",
    "remainder": "#009E73",
    "pruned": "#CC79A7",
}
"""Colours of what a layer's pseudo-neurons hold, by column of a measure's report."""

TEXT = "#333333"
CHARACTER = 0.62  # width of a letter in font sizes
HALO = [withStroke(linewidth=1.6, foreground="white")]  # text stays readable on lines


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Return a figure of a size in inches, of which pyplot knows nothing."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def new_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure of a size in inches."""
    return new_figure(width, height).add_subplot()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all; the suffix of the path names the format.

    Raises
    ------
    InputError
        If the file cannot be written.
    NrmError
        If the disk is full or fails.  A file that was there before is as it was.
    """
    sink = io.BytesIO()
    figure.savefig(sink, dpi=160, facecolor="white", format=path.suffix[1:] or "png")
    write_files({path: sink.getvalue()})


def hide_frame(ax: Axes, *sides: str) -> None:
    """Hide some sides of the frame of axes."""
    for side in sides:
        ax.spines[side].set_visible(False)


def thin_frame(ax: Axes) -> None:
    """Draw the frame of axes as a thin grey line."""
    for side in ax.spines.values():
        side.set(edgecolor="#999999", linewidth=0.5)


def size_in_points(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes; a layout that runs later may change them a little."""
    points = 72.0 / ax.figure.dpi
    return ax.bbox.width * points, ax.bbox.height * points


def colour(relevance: float) -> str:
    """Colour of a sign."""
    return NEGATIVE if relevance < 0 else POSITIVE


def percent(share: float) -> str:
    """Write a share in per cent, with as many digits as a reader can use.

    >>> [percent(v) for v in (1.0, 0.379, -0.042, 0.0004, -0.0, 123.4)]
    ['100 %', '38 %', '-4.2 %', '0.04 %', '0 %', '12,340 %']
    """
    value = 100.0 * share
    if abs(value) < 0.005:
        return "0 %"
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.095 else 2
    return f"{value:,.{digits}f} %"


def wrapped(text: str, points: float, font: float) -> str:
    """Break the lines of a text that would be wider than so many points."""
    letters = max(16, int(points / (font * 0.52)))  # text is narrower than its widest letters
    lines = (textwrap.wrap(line, letters, break_long_words=True) for line in text.split("\n"))
    return "\n".join(part for line in lines for part in line)


def add_legend(ax: Axes, handles: Sequence[Artist], below: float) -> None:
    """Put a legend so many points below the axes, in as many columns as there is room for."""
    width = size_in_points(ax)[0]
    # In points, whatever height the layout will leave to the axes.
    figure = ax.get_figure(root=True)
    assert figure is not None
    lower = ScaledTranslation(0.0, -below / 72.0, figure.dpi_scale_trans)
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=ax.transAxes + lower,
        ncols=min(len(handles), max(1, int(1.2 * width / 80.0))),
        fontsize=7,
        frameon=False,
        borderpad=0.0,
        columnspacing=1.5,
    )


def heading(m: MeasureLike, shown: str) -> str:
    """Title of a measure's picture: what is shown, of which target, under which condition."""
    target = m.target_text().replace("(' ", "('\N{NO-BREAK SPACE}")  # lines break elsewhere
    text = f"{shown}, {target}{without_biases(m.bias)}"
    if m.condition is not None:
        text += f", given {textwrap.shorten(repr(m.condition), 120, placeholder=' ...')}"
    return text


def without_biases(bias: str) -> str:
    """Say in a title that biases and constants are left out."""
    return "" if bias == "absorbed" else ", biases ignored"


def notes(m: MeasureLike) -> str:
    """Write what stands under every picture of a measure: what signs mean, flags and rounding."""
    text = sentences(m.meaning, [flag for flag in m.flags if flag.name != "amplified"])
    if m.condition is None:
        return text
    return (
        f"{text} Relative error up to {m.error:.2g} (rounding amplified {m.amplification:.3g} "
        "times)."
    )


def graph_notes(facts: Mapping[str, Any]) -> str:
    """Write the same of a graph, from its attributes."""
    return sentences(str(facts.get("meaning", "")), [str(flag) for flag in facts.get("flags", ())])


def room_for(ax: Axes, lines: int, font: float) -> None:
    """Make a figure taller by so many lines of text."""
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.set_figheight(figure.get_figheight() + 1.3 * font / 72.0 * lines)


@dataclass(frozen=True)
class ReportRow:
    """What a layer carries and absorbs, as the report of a measure says it.

    Attributes
    ----------
    layer, kind : str
        Name and kind of the layer.
    sum, variation : float
        Sum of its relevance, and of the absolute values.
    absorbed_by : mapping of str to float
        Relevance that each kind of pseudo-neuron holds, by the names of :data:`ABSORBED`.
    """

    layer: str
    kind: str
    sum: float
    variation: float
    absorbed_by: Mapping[str, float]

    @property
    def absorbed(self) -> float:
        """Relevance that the pseudo-neurons of the layer hold."""
        return sum(self.absorbed_by.values())


def report_rows(source: object) -> list[ReportRow]:
    """Rows of a measure's report, from the output to the input.

    Raises
    ------
    InputError
        If the source is neither a measure nor a table like its report.
    """
    table = source.report() if hasattr(source, "report") else source
    if hasattr(table, "to_pylist"):
        rows: list[dict[str, Any]] = table.to_pylist()
    elif hasattr(table, "to_dict") and hasattr(table, "columns"):
        rows = table.to_dict("records")
    else:
        raise InputError(
            f"expected a measure or the table of its report, found {type(source).__name__}"
        )
    if not rows:
        raise InputError("there is nothing to draw: the report has no rows")
    needed = ("layer", "kind", "sum", "total_variation", *ABSORBED)
    missing = [name for name in needed if name not in rows[0]]
    if missing:
        raise InputError(f"the report has no column {', '.join(missing)}")
    return [
        ReportRow(
            str(row["layer"]),
            str(row["kind"]),
            float(row["sum"]),
            float(row["total_variation"]),
            {kind: float(row[kind] or 0.0) for kind in ABSORBED},
        )
        for row in rows
    ]


def total(rows: Sequence[ReportRow]) -> float:
    """Relevance of all walks: 1, or the logit on its scale."""
    ends = sum(row.sum for row in rows if row.kind in ENDS)
    return (ends + sum(row.absorbed for row in rows)) or 1.0


def grey(image: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Image in grey, from 0 to 1.

    Raises
    ------
    InputError
        If it is not an array of shape (H, W), with channels last or first.
    """
    try:
        values = np.asarray(image, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"image must be an array, found {type(image).__name__}") from None
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] in (3, 4):
        values = values[..., :3] @ np.array([0.299, 0.587, 0.114])
    elif values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise InputError(
            f"image must have the shape (H, W), (H, W, 1), (H, W, 3) or (3, H, W), found "
            f"{np.shape(image)}"
        )
    if not np.isfinite(values).all():
        raise InputError("image must be finite")
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.full_like(values, 0.5)
    return (values - low) / (high - low)
