"""Small maps at the nodes of a picture of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.plots.canvas import thumbnail
from nrm_graph.plots.common import SIGNED, colour, size_in_points, thin_frame

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import networkx as nx
    import numpy.typing as npt
    from matplotlib.axes import Axes

HEIGHT = 0.62
"""Inches that a node with a map takes in its column."""

_WIDEST = 0.62  # of the distance of two columns


def checked_images(
    graph: nx.DiGraph, images: Mapping[Any, npt.ArrayLike] | None
) -> dict[Hashable, npt.NDArray[np.float64]]:
    """Return the maps of nodes that a graph has.

    Raises
    ------
    InputError
        If one is no array of shape (H, W).
    """
    maps = {}
    for node, values in (images or {}).items():
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or not array.size:
            raise InputError(f"the image of {node!r} must have the shape (H, W): {array.shape}")
        if node in graph:
            maps[node] = array
    return maps


def draw_images(
    ax: Axes,
    graph: nx.DiGraph,
    places: Mapping[Hashable, tuple[float, float]],
    images: Mapping[Hashable, npt.NDArray[np.float64]],
    busiest: int,
) -> dict[Hashable, float]:
    """Draw the map of every node at its place, each on its own scale, centred at zero.

    Returns
    -------
    dict of node to float
        How far a map reaches to the right of its place, in columns.
    """
    width, height = size_in_points(ax)
    (left, right), (lower, upper) = ax.get_xlim(), ax.get_ylim()
    across, up = width / (right - left), height / (upper - lower)
    side = min(_WIDEST * across, 0.8 * up * 2.0 / max(busiest, 1))
    reach: dict[Hashable, float] = {}
    for node, array in images.items():
        shown = thumbnail(array)
        scale = side / max(shown.shape)
        wide, high = (shown.shape[1] * scale, shown.shape[0] * scale)
        x, y = places[node]
        place = (x - wide / across / 2, y - high / up / 2, wide / across, high / up)
        frame = ax.inset_axes(place, transform=ax.transData, zorder=2)
        limit = float(np.quantile(np.abs(shown), 0.995)) or float(np.abs(shown).max()) or 1.0
        options: dict[str, Any] = {"vmin": -limit, "vmax": limit, "aspect": "equal"}
        frame.imshow(shown, cmap=SIGNED, interpolation="nearest", **options)
        frame.set_xticks([])
        frame.set_yticks([])
        thin_frame(frame)
        for edge in frame.spines.values():
            edge.set(edgecolor=colour(float(graph.nodes[node]["relevance"])), linewidth=0.9)
        reach[node] = wide / across / 2
    return reach
