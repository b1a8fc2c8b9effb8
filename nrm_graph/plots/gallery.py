"""A gallery of a unit's reference inputs, each with the region that it reads."""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from nrm_graph.errors import InputError
from nrm_graph.plots.canvas import block, thumbnail
from nrm_graph.plots.common import (
    OVERLAY,
    SIGNED,
    TEXT,
    grey,
    new_figure,
    percent,
    thin_frame,
    wrapped,
)
from nrm_graph.plots.token_strip import drawn_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nrm_graph.plots.protocols import ReferencesLike

_SIDE, _GAP, _BETWEEN, _LINE = 1.3, 0.07, 0.3, 0.125  # inches: of a picture, between pictures
_MARGIN = 0.35  # of a crop around its box, in sides of the box
_FRAME = "#111111"


def plot_references(
    found: ReferencesLike,
    *,
    crop: bool = False,
    columns: int | None = None,
    classes: Sequence[str] | None = None,
    limit: float | None = None,
) -> Figure:
    r"""Draw a gallery of reference inputs.

    Parameters
    ----------
    found : References
        Of :func:`nrm_graph.circuits.references.references`, with regions.
    crop : bool
        Show the region and a margin around it instead of the whole input.
    columns : int, optional
        Inputs side by side; by default about as many as there are rows.
    classes : sequence of str, optional
        Names of the outputs; by default those of the store.
    limit : float, optional
        The scale of every heat map runs from -limit to limit; by default each has its own, which
        ends at its largest \|relevance\|, but for one position in 200 of a large map.

    Returns
    -------
    matplotlib.figure.Figure
        ``savefig`` writes it.

    Raises
    ------
    InputError
        If there is nothing to draw, or an argument does not fit.

    Notes
    -----
    Each input is shown twice: as it is stored, stretched to its own range, with its region
    framed; and in grey below R(pixel given the unit), vermillion where positive and blue where
    negative.  Maps of more than 64 rows or columns are shown as sums over blocks, but not in
    crops.  An input whose conditional measure is undefined has no frame and says so.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> from nrm_graph import Layer
    >>> from nrm_graph.circuits.references import References
    >>> table = pa.table({"key": ["a"], "label": ["cat"], "target": [0], "relevance": [0.25],
    ...                   "activation": [1.5], "held": [0.75], "reason": pa.nulls(1, pa.string()),
    ...                   "box": [{"top": 0, "left": 1, "bottom": 2, "right": 3}]})
    >>> picture = np.arange(12.0).reshape(3, 4)
    >>> found = References(Layer("conv")[3], "relevance", "unit", None, 10, 0.5, table,
    ...                    (picture,), (picture - 5,))
    >>> len(plot_references(found).axes)
    2
    """
    rows = found.table.to_pylist()
    if not rows:
        raise InputError("there is nothing to draw: no input was found")
    if found.share is None:
        raise InputError("there are no regions to draw: call references with a share")
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise InputError(f"limit must be a positive number, found {limit!r}")
    if columns is None:
        columns = math.ceil(math.sqrt(len(rows)))
    if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
        raise InputError(f"columns must be at least 1, found {columns!r}")
    columns = min(columns, len(rows))
    lines = math.ceil(len(rows) / columns)
    classes = found.classes if classes is None else classes
    sign = "R" if found.weight == "unit" else "R \N{MULTIPLICATION SIGN} logit"
    captions = [_caption(i, row, sign, classes) for i, row in enumerate(rows)]
    below = 0.07 + _LINE * max(1 + caption.count("\n") for caption in captions)
    step = 2 * _SIDE + _GAP + _BETWEEN, _SIDE + below + 0.2
    width = max(4.4, _BETWEEN + columns * step[0])
    title = wrapped(_title(found, limit), 72 * (width - 0.3), 9.0)
    head = 0.25 + 0.17 * (1 + title.count("\n"))
    height = head + lines * step[1]
    figure = new_figure(width, height, layout=None)
    start = (width - columns * step[0] + _BETWEEN) / 2
    for i, row in enumerate(rows):
        x = start + (i % columns) * step[0]
        y = height - head - (i // columns) * step[1] - _SIDE
        left, right = (
            figure.add_axes((at / width, y / height, _SIDE / width, _SIDE / height))
            for at in (x, x + _SIDE + _GAP)
        )
        draw_example(left, right, row, found.images[i], found.heatmaps[i], crop, limit)
        style: dict[str, Any] = {"ha": "center", "va": "top", "color": TEXT, "parse_math": False}
        middle = (x + _SIDE + _GAP / 2) / width
        figure.text(middle, (y - 0.07) / height, captions[i], fontsize=7, **style)
    figure.text(0.5, 1 - 0.12 / height, title, fontsize=9, **style)
    return figure


def draw_example(
    left: Axes,
    right: Axes,
    row: dict[str, Any],
    image: npt.NDArray[Any] | None,
    heat: npt.NDArray[np.float64] | None,
    crop: bool,
    limit: float | None = None,
) -> None:
    """Draw one input, and beside it what its conditional relevance selects."""
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
        thin_frame(ax)
    if image is None:
        left.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=7, color=TEXT)
        return
    style: dict[str, Any] = {"interpolation": "nearest"}
    left.imshow(stretched(image), cmap="gray", vmin=0, vmax=1, **style)
    right.imshow(0.65 + 0.35 * grey(stretched(image)), cmap="gray", vmin=0, vmax=1, **style)
    if heat is None:
        right.text(
            0.5, 0.5, "undefined", transform=right.transAxes, ha="center", va="center",
            fontsize=7, color=TEXT,
        )  # fmt: skip
        return
    shown = heat if crop else thumbnail(heat)
    bound = limit or _end(shown)
    step = 1 if crop else block(heat.shape)
    height, width = (step * n for n in shown.shape)  # the last blocks may reach over the edge
    style["extent"] = (-0.5, width - 0.5, height - 0.5, -0.5)
    frame = right.get_xlim(), right.get_ylim()
    right.imshow(shown, cmap=OVERLAY, vmin=-bound, vmax=bound, **style)
    right.set(xlim=frame[0], ylim=frame[1])
    if row["box"] is None:
        return
    top, bottom = row["box"]["top"], row["box"]["bottom"]
    start, end = row["box"]["left"], row["box"]["right"]
    for ax in (left, right):
        for width, shade in ((2.4, "white"), (1.0, _FRAME)):
            ax.add_patch(
                Rectangle(
                    (start - 0.5, top - 0.5),
                    end - start,
                    bottom - top,
                    fill=False,
                    edgecolor=shade,
                    linewidth=width,
                )
            )
        if crop:
            half = (0.5 + _MARGIN) * max(bottom - top, end - start)
            x, y = (start + end - 1) / 2, (top + bottom - 1) / 2
            ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half))


def heat_map(heat: npt.NDArray[np.float64]) -> bytes:
    """Return a heat map as a PNG by itself, on its own scale; large ones as sums over blocks."""
    shown = thumbnail(heat)
    steps = np.arange(SIGNED.N)
    numbers = np.floor((shown / _end(shown) + 1) / 2 * SIGNED.N).clip(0, steps[-1])
    picture = Image.fromarray(numbers.astype(np.uint8))  # a palette takes a third of the bytes
    picture.putpalette(SIGNED(steps, bytes=True)[:, :3].tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _end(heat: npt.NDArray[np.float64]) -> float:
    """End of a scale: the largest number, but for one in 200 of a large map."""
    sizes = np.abs(heat)
    return float(np.quantile(sizes, 0.995) if sizes.size > 200 else 0.0) or float(sizes.max()) or 1


def stretched(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return an image, (H, W) or (H, W, C), as grey values or colours from 0 to 1.

    Stored inputs are what the network takes, such as standardised colours: what the smallest and
    largest number are becomes black and white.  Other than 3 channels become their mean.
    """
    values = np.asarray(image, dtype=np.float64)
    if values.ndim == 3 and values.shape[2] != 3:
        values = values.mean(2)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)


def _caption(i: int, row: dict[str, Any], sign: str, classes: Sequence[str] | None) -> str:
    target = row["target"]
    named = classes is not None and target is not None and 0 <= target < len(classes)
    text = str(classes[target]) if classes is not None and named else f"target {target}"
    text = "weighted outputs" if target is None else text
    label = row["label"]
    if label is not None:
        text = drawn_words(label) if label == text else f"{label}, explained as {text}"
    lines = [
        f"{i + 1}. {_short(row['key'], 26)}",
        _short(text, 34),
        f"{sign} {row['relevance']:.3g}; activation {row['activation']:.3g}",
    ]
    if row["reason"] is not None:
        lines.append("\n".join(textwrap.wrap(_short(row["reason"], 70), 36)))
    return "\n".join(lines)


def _short(text: str, letters: int) -> str:
    text = drawn_words(text)
    return text if len(text) <= letters else text[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _title(references: ReferencesLike, limit: float | None) -> str:
    ranked = "relevance R" if references.by == "relevance" else "mean activation"
    if references.by == "relevance" and references.weight == "logit":
        ranked = "relevance R times logit"
    chosen = f"of {references.inputs:,} inputs"
    if references.where is not None:
        chosen += f" where {textwrap.shorten(references.where, 60, placeholder=' ...')}"
    scale = "each on its own scale" if limit is None else f"from {-limit:g} to {limit:g}"
    event = textwrap.shorten(references.event_text, 80, placeholder=" ...")
    assert references.share is not None  # checked
    return (
        f"Inputs with the largest {ranked} of {event}, {chosen}\n"
        f"frame: the smallest box that holds {percent(references.share)} of the positive "
        f"R(pixel given the unit); colours {scale}"
    )
