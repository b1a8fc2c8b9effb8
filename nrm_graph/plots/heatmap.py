"""Heat maps: where in a layer the relevance lies."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from nrm_graph.errors import InputError
from nrm_graph.network.token_texts import own_tokens
from nrm_graph.network.topology import ENDS
from nrm_graph.network.unit_names import token_axis
from nrm_graph.plots import token_strip
from nrm_graph.plots.common import (
    NEGATIVE,
    OVERLAY,
    POSITIVE,
    SIGNED,
    TEXT,
    grey,
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
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.plots.protocols import MeasureLike

_FEW = 32  # so many bars are drawn one by one, with numbers below
_MANY = 1000  # maps of more positions may leave their strongest few beyond the scale
_BEYOND = 0.001  # the share of positions that may lie there


def plot_heatmap(
    m: MeasureLike,
    ax: Axes | None = None,
    *,
    image: npt.ArrayLike | None = None,
    layer: str | None = None,
    channel_sum: bool = True,
    limit: float | None = None,
    colorbar: bool = True,
) -> Axes:
    r"""Draw the relevance of a layer's neurons where they lie, by default of the input.

    Parameters
    ----------
    m : Measure
        The measure, conditioned or not.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    image : array_like, (H, W) or (H, W, 3), optional
        Picture of the input, shown in grey below the relevance.
    layer : str, optional
        Name or alias of the layer; by default the network's input, of several the first.
    channel_sum : bool
        Of a (C, H, W) layer, show the sum over channels; False shows the channels side by side,
        on one scale.
    limit : float, optional
        The scale runs from -limit to limit.  By default it ends at the largest \|relevance\|,
        but for one position in a thousand of a large map; arrows at the ends of the colour bar
        say so.  Give it to compare several pictures.
    colorbar : bool
        Whether to draw the colour bar.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; ``ax.figure.savefig`` writes the picture.

    Raises
    ------
    InputError
        If the layer has no shape that can be drawn, or the image does not fit.

    Notes
    -----
    Vermillion is positive, blue negative, and zero is the middle of the scale.  A layer of maps
    is (C, H, W), or (H, W, C) where its units are features or tokens; a layer of two axes is
    drawn as it is, rows by columns, and a vector as bars.  Where the measure knows the tokens of
    its input, a layer of (tokens, features) is drawn as their texts, coloured by the sum over
    features; ``channel_sum=False`` shows the features.  Axes of length 1 do not count.  What
    biases and the stabiliser absorbed has no place in the picture: the line below it says how
    much that is.

    References
    ----------
    .. [1] P. Xiong et al., "Normalized Relevance Measure as a Unifying Framework to Explain
       Neural Network Latent Structures", arXiv:2606.00557 (2026).

    Examples
    --------
    >>> import torch, nrm_graph as ng
    >>> from nrm_graph.plots import plot_heatmap
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(),
    ...                           torch.nn.Linear(32, 2)).eval()
    >>> m = ng.measure(net, torch.rand(1, 6, 6), target=1)
    >>> ax = plot_heatmap(m)
    >>> ax.get_title()
    'relevance of input, target 1'
    >>> low, high = ax.images[0].get_clim()
    >>> low == -high
    True
    """
    info = m.topology.inputs[0] if layer is None else m.topology.layer(layer)
    axis = None if m.tokens is None else token_axis(info, len(m.tokens))
    if m.tokens is not None and axis is not None and channel_sum and image is None:
        return _strip(m, ax, info, axis, limit, colorbar)
    last = m.partitions[info.layer_id].resolution in ("feature", "token")
    values = np.asarray(m.marginal(info.name, by="neuron"), dtype=np.float64)
    shown = _pictured(values, info.name, last, channel_sum)
    maps = shown.ndim == 3
    background = None if image is None else grey(image)
    if background is not None and not maps:
        raise InputError(
            f"an image needs a layer of maps below it: {info.name} has the shape {info.shape}"
        )
    bound, beyond = _limit(shown, limit)
    is_new = ax is None
    if ax is None:
        ax = new_axes(*_size(shown))
    width = size_in_points(ax)[0]  # a colour bar will take some of it
    if maps:
        _draw_maps(ax, shown, bound, background, len(info.shape))
        if colorbar:
            _draw_colorbar(ax, bound, beyond, background is not None)
    else:
        _draw_bars(ax, shown, bound)
    ax.set_title(wrapped(heading(m, f"relevance of {info.name}"), width, 9.0), fontsize=9)
    note = f"{_whereabouts(m, info.layer_id)} {notes(m)}"
    ax.set_xlabel(wrapped(note, 0.9 * width, 7.0), fontsize=7, color=TEXT)
    if is_new:
        room_for(ax, ax.get_title().count("\n") + ax.get_xlabel().count("\n"), 8.0)
    return ax


def _strip(
    m: MeasureLike, ax: Axes | None, info: LayerInfo, axis: int, limit: float | None, colorbar: bool
) -> Axes:
    """Draw the tokens of the input, each with the sum over its features."""
    assert m.tokens is not None
    values = np.asarray(m.marginal(info.name, by="neuron"), dtype=np.float64)
    values = np.moveaxis(values, axis, 0).reshape(len(m.tokens), -1).sum(1)
    tokens = own_tokens(m.tokens)
    values = values[: len(tokens)]
    bound, beyond = _limit(values, limit)
    note = f"{_whereabouts(m, info.layer_id)} {notes(m)}"
    if ax is None:
        room = token_strip.height(tokens, 72.0 * 4.4)  # the colour bar takes some of the width
        lines = wrapped(note, 72.0 * 4.4, 7.0).count("\n") + 1
        ax = new_axes(5.4, min(40.0, max(1.1, room / 72.0)) + 0.55 + 0.125 * lines)
    width = size_in_points(ax)[0]
    if colorbar:
        _draw_colorbar(ax, bound, beyond, False)
        ax.figure.canvas.draw()  # lays out, so that the axes have their size
    token_strip.draw(ax, tokens, np.clip(values, -bound, bound), bound)
    ax.set_title(wrapped(heading(m, f"relevance of {info.name}"), width, 9.0), fontsize=9)
    ax.text(
        0.0,
        token_strip.height(tokens, size_in_points(ax)[0]) + 3.0,
        wrapped(note, width, 7.0),
        va="top",
        fontsize=7,
        color=TEXT,
    )
    return ax


def _pictured(
    values: npt.NDArray[np.float64], name: str, last: bool, channel_sum: bool
) -> npt.NDArray[np.float64]:
    """Return what to draw: maps, (count, H, W), or a vector, (n,)."""
    if not values.size:
        raise InputError(f"there is nothing to draw: {name} has no neurons")
    maps = values
    while maps.ndim > 3 and 1 in maps.shape:  # frames or windows of one
        maps = maps.squeeze(maps.shape.index(1))
    if maps.ndim > 3:
        raise InputError(
            f"{name} has the shape {values.shape}: expected a vector, (H, W) or (C, H, W); "
            "sum m.marginal(layer, by='neuron') over the other axes and draw that"
        )
    if maps.ndim == 3:
        maps = np.moveaxis(maps, -1, 0) if last else maps
        maps = maps.sum(0, keepdims=True) if channel_sum else maps
    if maps.size == max(maps.shape, default=1):
        return maps.ravel()
    return maps if maps.ndim == 3 else maps[None]


def _limit(values: npt.NDArray[np.float64], limit: float | None) -> tuple[float, bool]:
    """End of the scale, and whether any position lies beyond it."""
    sizes = np.abs(values)
    largest = float(sizes.max())
    if limit is not None:
        if not isinstance(limit, Real) or not math.isfinite(limit) or limit <= 0:
            raise InputError(f"limit must be a positive number, found {limit!r}")
        return float(limit), largest > limit
    bound = float(np.quantile(sizes, 1.0 - _BEYOND)) if sizes.size > _MANY else largest
    bound = bound or largest or 1.0
    return bound, largest > bound


def _size(maps: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Size of a new figure, in inches."""
    if maps.ndim < 3:
        return 5.2, 2.8
    rows, columns = _grid(len(maps))
    ratio = rows * maps.shape[1] / (columns * maps.shape[2])
    return 4.6, min(9.0, max(2.2, 3.4 * ratio)) + 0.9


def _grid(count: int) -> tuple[int, int]:
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def _draw_maps(
    ax: Axes,
    maps: npt.NDArray[np.float64],
    bound: float,
    background: npt.NDArray[np.float64] | None,
    axes: int,
) -> None:
    """Show maps, several of them as a mosaic with a gap between."""
    count, height, width = maps.shape
    rows, columns = _grid(count)
    gap = 0.06 * max(height, width) if count > 1 else 0.0
    step_x, step_y = width + gap, height + gap
    style: dict[str, Any] = {"interpolation": "nearest", "origin": "upper"}
    for i, values in enumerate(maps):
        x, y = (i % columns) * step_x - 0.5, (i // columns) * step_y - 0.5
        extent = (x, x + width, y + height, y)
        if background is not None:  # pale, for colours to show
            ax.imshow(0.65 + 0.35 * background, cmap="gray", vmin=0, vmax=1, extent=extent, **style)
        colours = SIGNED if background is None else OVERLAY
        ax.imshow(values, cmap=colours, vmin=-bound, vmax=bound, extent=extent, **style)
        if 1 < count <= 100:
            ax.text(x, y - 0.2 * gap, str(i), fontsize=5, color=TEXT, va="bottom")
    ax.set_xlim(-0.5, columns * step_x - gap - 0.5)
    ax.set_ylim(rows * step_y - gap - 0.5, -0.5 - (gap if count > 1 else 0.0))
    stretched = count == 1 and not 0.125 <= height / width <= 8.0
    ax.set_aspect("auto" if stretched else "equal")
    if axes == 3 or background is not None:
        ax.set_xticks([])
        ax.set_yticks([])
    else:
        ax.tick_params(labelsize=7)
    for side in ax.spines.values():
        side.set(edgecolor="#999999", linewidth=0.5, visible=count == 1)


def _draw_bars(ax: Axes, values: npt.NDArray[np.float64], bound: float) -> None:
    place = np.arange(len(values))
    if len(values) <= _FEW:
        ax.bar(place, values, 0.8, color=np.where(values < 0, NEGATIVE, POSITIVE).tolist())
        ax.set_xticks(place, [str(i) for i in place], fontsize=7 if len(values) <= 20 else 5.5)
    else:
        width = 0.85 * size_in_points(ax)[0] / len(values)
        for sign, shade in ((1, POSITIVE), (-1, NEGATIVE)):
            here = sign * values > 0
            ax.vlines(place[here], 0.0, values[here], colors=shade, linewidths=max(0.5, width))
    ax.axhline(0.0, color="#999999", linewidth=0.6)
    ax.set(xlim=(-0.7, len(values) - 0.3), ylim=(-1.05 * bound, 1.05 * bound))
    ax.set_ylabel("relevance", fontsize=8)
    ax.tick_params(labelsize=7)
    hide_frame(ax, "top", "right")


def _draw_colorbar(ax: Axes, bound: float, beyond: bool, over: bool) -> None:
    scale = ScalarMappable(Normalize(-bound, bound), OVERLAY if over else SIGNED)
    bar = ax.figure.colorbar(
        scale, ax=ax, extend="both" if beyond else "neither", shrink=0.9, aspect=24, pad=0.02
    )
    ticks = [-bound, -bound / 2, 0.0, bound / 2, bound]
    power = math.floor(math.log10(bound))
    power = power if not -3 < power < 4 else 0
    bar.set_ticks(ticks, labels=[f"{tick / 10.0**power:.2g}" for tick in ticks])
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label("relevance" + (rf" ($\times 10^{{{power}}}$)" if power else ""), fontsize=8)
    bar.outline.set_linewidth(0.5)


def _whereabouts(m: MeasureLike, layer_id: int) -> str:
    """Say what the picture cannot show: relevance that has no place in the layer."""
    rows = report_rows(m)
    whole = total(rows)
    info = m.topology.layers[layer_id]
    if info.kind in ENDS:
        share = sum(row.absorbed for row in rows) / whole
        parts = ["bias"] if m.bias == "absorbed" else []
        parts += ["stabilizer"]
        parts += ["remainder"] if any(row.absorbed_by["remainder"] for row in rows) else []
        kinds = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
        start = f"{percent(share)} of it is absorbed by {kinds}"
        others = [row for row in rows if row.kind in ENDS and row.layer != info.name]
        if others:
            part = sum(row.sum for row in others) / whole
            start = f"{percent(part)} of the whole is in other inputs, {percent(share)}"
            start += f" is absorbed by {kinds}"
    else:
        share = 1.0 - next(row.sum for row in rows if row.layer == info.name) / whole
        around = any(group.dst > layer_id > group.src for group in m.topology.groups)
        start = f"{percent(share)} of the whole is absorbed in layers above"
        start += " or goes around this one" if around else ""
    return f"{start}, and has no place in the picture."
