"""The axes of a flow: where its circles, maps, links and texts go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from nrm_graph.network.unit_names import token_of
from nrm_graph.plots.common import (
    HALO,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    SIGNED,
    TEXT,
    add_legend,
    colour,
    percent,
    room_for,
    size_in_points,
    wrapped,
)
from nrm_graph.plots.token_strip import NAME, drawable, drawn_words

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.plots.protocols import MeasureLike

_PALE = "#E4E4E4"
_FONT = 6.5
_CELLS = 64  # a map at a unit shows at most so many rows and columns


@dataclass
class LayerColumn:
    """One layer of the picture: what is drawn of it, and where."""

    layer: LayerInfo
    units: list[int]
    values: npt.NDArray[np.float64]  # of the units
    sum: float
    lost: float  # what is absorbed here and on the way to the column to the left
    more: int  # units that are not drawn
    rest: float  # and their relevance
    heights: dict[int, float] = field(default_factory=dict)
    beneath: float = 0.0  # height of the circle of the others


class Canvas:
    """Axes whose sizes are known, so that circles and texts keep apart."""

    def __init__(
        self,
        ax: Axes,
        columns: list[LayerColumn],
        whole: float,
        maps: dict[tuple[int, int], npt.NDArray[np.float64]],
        links: list[npt.NDArray[np.float64] | None],
    ) -> None:
        self.ax, self.columns, self.whole, self.maps = ax, columns, whole, maps
        self.links = links
        ax.set_xlim(-0.55, len(columns) - 0.45)
        # Sizes of circles are in points and distances are not: let the layout settle first.
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.draw_without_rendering()
        width, height = size_in_points(ax)
        top = max(y for c in columns for y in (*c.heights.values(), c.beneath))
        text = 2.0 * _FONT
        self.across = width / (len(columns) + 0.1)
        longest = max(len(column.layer.name) for column in columns)
        for name in ax.get_xticklabels():
            name.set_fontsize(min(8.0, max(4.0, self.across / (0.56 * longest))))
        self.up = (height - text) / (top + 1.05)
        ax.set_ylim(-0.55, top + 0.5 + text / self.up)
        self.side = max(8.0, self.up - 2.3 * _FONT)  # of a map
        room = max(3.0, min(self.up - 1.6 * _FONT, 0.55 * self.across))
        self.diameter = min(26.0, max(12.0, 0.5 * self.side) if maps else room)
        # "120 others: 12 %" must fit; narrow columns go without the shares.
        self.font = min(_FONT, self.across / (17.0 * 0.52))
        self.shares = self.font >= 4.5
        self.font = max(4.5, self.font)
        parts = [abs(v) for c in columns for v in (*c.values, c.rest, c.lost)]
        # Parts that cancel may exceed every unit.
        self.strengths = [0.0 if v is None else float(np.abs(v).max(initial=0.0)) for v in links]
        self.largest = max(*parts, *self.strengths) or 1.0

    def ports(self, x: int, unit: int) -> tuple[float, float]:
        """Where links end: at the sides of a map, else at the circle."""
        array = self.maps.get((self.columns[x].layer.layer_id, unit))
        half = 0.0 if array is None else self.frame(array)[0] / 2
        return x - half, x + half

    def frame(self, array: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Width and height of a map, in units of the axes."""
        ratio = array.shape[1] / array.shape[0]
        side = min(self.side, 0.6 * self.across / max(ratio, 1e-3))
        return side * ratio / self.across, side / self.up

    def size(self, relevance: float) -> float:
        """Area of a circle's frame, in square points, as scatter wants it."""
        return max(self.diameter**2 * abs(float(relevance)) / self.largest, 3.0)

    def draw_links(self) -> None:
        """Draw the joint relevance of each pair of columns."""
        t = np.linspace(0.0, 1.0, 24)
        ease = t * t * (3.0 - 2.0 * t)  # leaves and arrives horizontally
        drawn = []
        for x, joint in enumerate(self.links):
            if joint is None:
                continue
            for (i, j), value in np.ndenumerate(joint):
                share = abs(value) / self.strengths[x] if self.strengths[x] else 0.0
                if share >= 0.01:
                    left, right = self.columns[x], self.columns[x + 1]
                    x0 = self.ports(x, left.units[i])[1]
                    x1 = self.ports(x + 1, right.units[j])[0]
                    y0, y1 = left.heights[left.units[i]], right.heights[right.units[j]]
                    line = np.column_stack([x0 + (x1 - x0) * t, y0 + (y1 - y0) * ease])
                    # Widths are on the scale of the circles; the strongest of a pair stand out.
                    width = 0.3 + 0.3 * self.diameter * (abs(value) / self.largest) ** 0.5
                    drawn.append((share, width, to_rgba(colour(value), 0.1 + 0.65 * share), line))
        if not drawn:
            return
        drawn.sort(key=lambda link: link[0])  # the strongest on top
        self.ax.add_collection(
            LineCollection(
                [line for *_, line in drawn],
                colors=[shade for _, _, shade, _ in drawn],
                linewidths=[width for _, width, _, _ in drawn],
                capstyle="butt",
                zorder=1,
            )
        )

    def draw_units(self, m: MeasureLike, ringed: set[tuple[int, int]]) -> None:
        """Draw circles, maps and texts; a black ring marks what the condition names."""
        for x, column in enumerate(self.columns):
            shape = column.layer.shape
            neurons = len(shape) > 1 and m.partitions[column.layer.layer_id].single
            for unit, value in zip(column.units, column.values, strict=True):
                y, area = column.heights[unit], self.size(value)
                ring = (x, unit) in ringed
                self.ax.scatter(
                    [self.ports(x, unit)[1]], [y], s=[area], c=[colour(value)], zorder=6,
                    edgecolors="black" if ring else "white", linewidths=1.4 if ring else 0.5,
                    label="unit",
                )  # fmt: skip
                lift = area**0.5 / 2
                array = self.maps.get((column.layer.layer_id, unit))
                if array is not None:
                    self._inset(x, y, array, value)
                    lift = self.frame(array)[1] * self.up / 2 + 1.0
                place = ",".join(str(i) for i in np.unravel_index(unit, shape)) if neurons else ""
                name = f"[{place}]" if neurons else str(unit)
                resolution = m.partitions[column.layer.layer_id].resolution
                token = token_of(column.layer, resolution, unit, m.tokens)
                if token is not None:
                    name = f"{drawable(token)} {name}"
                own = m.partitions[column.layer.layer_id].names.get(unit)
                self._text(x, y, name if own is None else drawn_words(own, NAME), value, lift)
            if column.more:
                area = self.size(column.rest)
                self.ax.scatter(
                    [x], [column.beneath], s=[area], c=_PALE,
                    edgecolors=colour(column.rest), linewidths=0.6, zorder=3, label="others",
                )  # fmt: skip
                others = f"{column.more:,} other{'s' if column.more > 1 else ''}"
                self._text(x, column.beneath, others, column.rest, area**0.5 / 2)

    def _text(self, x: float, y: float, name: str, relevance: float, lift: float) -> None:
        """Write above a circle, where links, which arrive from the sides, are few."""
        text = f"{name}: {percent(relevance / self.whole)}" if self.shares else name
        self.ax.annotate(
            text, (x, y), xytext=(0.0, lift + 1.0), textcoords="offset points", ha="center",
            parse_math=False,
            va="bottom", fontsize=self.font, color=TEXT, path_effects=HALO, zorder=5,
        )  # fmt: skip

    def _inset(self, x: float, y: float, array: npt.NDArray[np.float64], value: float) -> None:
        width, height = self.frame(array)
        frame = self.ax.inset_axes(
            (x - width / 2, y - height / 2, width, height), transform=self.ax.transData, zorder=4
        )
        array = thumbnail(array)
        limit = float(np.quantile(np.abs(array), 0.995)) or float(np.abs(array).max()) or 1.0
        frame.imshow(
            array, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
        )
        frame.set_xticks([])
        frame.set_yticks([])
        for side in frame.spines.values():
            side.set(edgecolor=colour(value), linewidth=0.8)

    def draw_lost(self) -> None:
        """Draw what is absorbed."""
        for x, column in enumerate(self.columns):
            if column.layer.kind == "input" and not column.lost:
                continue
            # A circle has pi / 4 of the area of its frame, a square all of it.
            area = self.size(column.lost * np.pi / 4)
            if abs(column.lost) >= 5e-5 * abs(self.whole):
                self.ax.scatter(
                    [x], [0.0], s=[area], c=NEUTRAL, marker="s", linewidths=0.6, zorder=3,
                    edgecolors=NEGATIVE if column.lost < 0 else TEXT, label="absorbed",
                )  # fmt: skip
            self._text(x, 0.0, "absorbed", column.lost, area**0.5 / 2)


def block(shape: tuple[int, ...], cells: int = _CELLS) -> int:
    """Rows and columns of a block of :func:`thumbnail`."""
    return -(-max(shape) // cells)


def thumbnail(array: npt.NDArray[np.float64], cells: int = _CELLS) -> npt.NDArray[np.float64]:
    """Sum blocks of a map that is finer than its frame can show: so many rows and columns."""
    step = block(array.shape, cells)
    padded = np.pad(array, [(0, -n % step) for n in array.shape])
    rows, columns = (n // step for n in padded.shape)
    sums: npt.NDArray[np.float64] = padded.reshape(rows, step, columns, step).sum((1, 3))
    return sums


def label(
    ax: Axes, columns: list[LayerColumn], whole: float, title: str, note: str, grows: bool
) -> None:
    """Write everything that stands outside of the axes; the figure grows with it, if it may."""
    width = size_in_points(ax)[0]
    ax.xaxis.tick_top()
    names = [f"{column.layer.name}\n{percent(column.sum / whole)}" for column in columns]
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.tick_params(axis="x", length=0, pad=2)
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title(wrapped(title, width, 9.0), fontsize=9, pad=8)
    text = (
        "input (left) to output; areas: |relevance|, link widths: root of |joint relevance|\n"
        "a column's circles add up to the share at its top"
    )
    text = f"{wrapped(text, 1.2 * width, 7.0)}\n{wrapped(note, 1.05 * width, 7.0)}"
    ax.set_xlabel(text, fontsize=7, color=TEXT)
    if grows:
        room_for(ax, max(0, ax.get_xlabel().count("\n") - 1), 7.0)
    mark: dict[str, Any] = {"linestyle": "", "markersize": 6}
    handles = [
        Line2D([], [], color=POSITIVE, marker="o", label="positive", **mark),
        Line2D([], [], color=NEGATIVE, marker="o", label="negative", **mark),
        Line2D([], [], color=_PALE, marker="o", mec=NEUTRAL, label="units not drawn", **mark),
        Line2D([], [], color=NEUTRAL, marker="s", mec=TEXT, label="absorbed", **mark),
    ]
    add_legend(ax, handles, 16.0 + 9.0 * ax.get_xlabel().count("\n"))
