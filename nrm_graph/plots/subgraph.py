"""Pictures of subgraphs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.plots.common import (
    CHARACTER,
    HALO,
    NEUTRAL,
    TEXT,
    graph_notes,
    new_axes,
    room_for,
    size_in_points,
    thin_frame,
    wrapped,
)
from nrm_graph.plots.graph_layout import (
    FLOOR,
    columns_of,
    curve,
    passes,
    places_of,
    shares_of,
)
from nrm_graph.plots.graph_marks import draw_edges, draw_legend
from nrm_graph.plots.graph_parts import (
    checked,
    drawn_notes,
    layer_name,
    most_units,
    picture_height,
    pseudo_text,
    short_names,
    unit_text,
    with_absorbed,
)
from nrm_graph.plots.node_images import HEIGHT, checked_images, draw_images
from nrm_graph.plots.text_graph import draw_text_graph
from nrm_graph.plots.text_layout import tells_tokens

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import networkx as nx
    import numpy.typing as npt
    from matplotlib.axes import Axes

_LARGEST = 160.0  # area of the most relevant node, in square points
_LABELLED = 7.5  # columns of up to this many nodes per inch show unit numbers
_RING = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.1}
_NAME = 0.035  # inches of height for every letter of the longest layer, which may stand slanted


def plot_subgraph(
    graph: nx.DiGraph,
    ax: Axes | None = None,
    *,
    image: npt.NDArray[Any] | None = None,
    images: Mapping[Any, npt.ArrayLike] | None = None,
) -> Axes:
    r"""Draw a subgraph of relevance, layer by layer from the input (left) to the output.

    The graph of a text whose units tell its tokens apart stands upright: tokens below, a row a
    layer, the output on top; grey squares to the left are what ends below each layer.

    Parameters
    ----------
    graph : networkx.DiGraph
        As :meth:`Measure.subgraph` gives it: nodes (layer, unit) with ``unit``, ``relevance``
        and ``depth``, edges with ``relevance`` from the input's side to the output's.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure, whose size follows the graph.
    image : ndarray, (H, W) or (H, W, 3), optional
        The input as a picture, shown below the input's neurons.
    images : mapping of node to array_like, optional
        Maps (H, W) of signed numbers that are shown at their nodes, such as a unit's own heat map;
        each is coloured on its own scale, centred at zero.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; ``ax.figure.savefig`` writes the picture.

    Raises
    ------
    InputError
        If the graph is empty or lacks an attribute.

    Notes
    -----
    Area of a node, and width and opacity of an edge, grow with \|relevance\|; vermillion is
    positive, blue negative.  Edges of a circuit have a pale band, two standard errors wider, and
    those of which the mean is less than two standard errors from 0 are dotted.  Edges that pass
    layers between their own are arched.  Pseudo-units, which absorb relevance, are grey squares at
    the bottom; of a connected graph, which has few, a square stands for all that a layer absorbs,
    with its relevance.  A black ring marks a unit that is cut: no kept edge leads on from it.
    Where nodes have a ``position`` (channel, row, column), a map below their layer shows them at
    row and column.
    ``graph.graph["title"]``, if there, is the title; ``graph.graph["meaning"]`` (what a positive
    number speaks for) and ``graph.graph["flags"]`` (what to know before trusting signs and sizes)
    stand below.

    Examples
    --------
    >>> import networkx as nx
    >>> graph = nx.DiGraph()
    >>> graph.add_node(("x", 0), layer="x", unit=0, relevance=1.0, depth=0)
    >>> graph.add_node(("fc", 2), layer="fc", unit=2, relevance=1.0, depth=1)
    >>> graph.add_edge(("x", 0), ("fc", 2), relevance=1.0)
    >>> [label.get_text() for label in plot_subgraph(graph).get_xticklabels()]
    ['x', 'fc']
    """
    graph = with_absorbed(graph, checked(graph))
    if image is None and images is None and tells_tokens(graph):
        return draw_text_graph(graph, ax)
    columns = columns_of(graph, list(graph))
    busiest = most_units(graph)
    small = checked_images(graph, images)
    places = places_of(graph, columns, busiest if small else None)
    maps = {} if small else _mapped(graph, columns)
    is_new = ax is None
    if ax is None:
        column = 1.25 if len(columns) <= 12 else 0.9 if len(columns) <= 24 else 0.65
        height = max(picture_height(busiest, bool(maps)), 2.4 + HEIGHT * busiest if small else 0.0)
        height += _NAME * max(map(len, short_names(list(columns))[0]))
        ax = new_axes(max(5.0, 1.5 + column * len(columns)), height)
    note = _note(ax, graph, list(columns), bool(maps))
    if is_new:
        room_for(ax, max(0, note.count("\n") - 1), 7.0)
    bottom = _limits(ax, graph, columns, bool(maps))
    names = list(columns)
    draw_edges(
        ax,
        graph,
        lambda src, dst: curve(places[src], places[dst], passes(graph, names, src, dst)),
    )
    reach = draw_images(ax, graph, places, small, busiest)
    _draw_nodes(ax, graph, places, busiest, reach)
    _label(ax, graph, columns, note)
    _draw_maps(ax, graph, maps, bottom, image)
    return ax


def _draw_nodes(
    ax: Axes,
    graph: nx.DiGraph,
    places: dict[Hashable, tuple[float, float]],
    busiest: int,
    reach: Mapping[Hashable, float],
) -> None:
    shown = list(places)
    pseudo = np.array([graph.nodes[node]["unit"] < 0 for node in shown])
    shares, shades = shares_of(graph, shown)
    sizes = np.maximum(shares, 0.04) * min(_LARGEST, 9000.0 / max(busiest, 1))
    xy = np.array([places[node] for node in shown])
    line: dict[str, Any] = {
        "linewidths": 0.5 if busiest <= 60 else 0.25,
        "edgecolors": "#333333",
        "zorder": 2,
    }
    pictured = np.array([node in reach for node in shown])  # a map stands there
    for chosen, marker in ((~pseudo & ~pictured, "o"), (pseudo, "s")):
        if chosen.any():
            x, y = xy[chosen].T
            colours = shades[chosen] if marker == "o" else NEUTRAL
            ax.scatter(x, y, s=sizes[chosen], c=colours, marker=marker, **line)
    if (cut := np.array([bool(graph.nodes[node].get("cut")) for node in shown])).any():
        x, y = xy[cut].T
        ax.scatter(x, y, s=sizes[cut] + 12.0, marker="o", **line | _RING)
    lower, upper = ax.get_ylim()
    readable = _LABELLED * ax.bbox.height / ax.figure.dpi * 2.0 / (upper - lower)
    columns: dict[float, int] = defaultdict(int)
    for node in shown:
        columns[places[node][0]] += 1
    for node, size in zip(shown, sizes, strict=True):
        x, y = places[node]
        unit = int(graph.nodes[node]["unit"])
        if unit < 0:
            text = pseudo_text(graph.nodes[node])
            offset = (2.0, -9.0)
        elif columns[x] <= max(readable, 8.0):
            text = unit_text(graph.nodes[node])
            x += reach.get(node, 0.0)
            offset = (1.5 if node in reach else float(np.sqrt(size)) / 2 + 1.5, 0.0)
        else:
            continue
        ax.annotate(
            text,
            (x, y),
            parse_math=False,
            xytext=offset,
            textcoords="offset points",
            ha="right" if unit < 0 else "left",
            va="top" if unit < 0 else "center",
            fontsize=6,
            rotation=40 if unit < 0 else 0,
            rotation_mode="anchor" if unit < 0 else "default",
            color=TEXT,
            path_effects=HALO,
            zorder=3,
        )


def _mapped(graph: nx.DiGraph, columns: dict[str, list[Hashable]]) -> dict[int, str]:
    """Columns whose nodes are neurons of (channel, row, column), by number."""
    shapes = graph.graph.get("shapes", {})
    return {i: name for i, name in enumerate(columns) if len(shapes.get(name, ())) == 3}


def _draw_maps(
    ax: Axes,
    graph: nx.DiGraph,
    maps: dict[int, str],
    top: float,
    image: npt.NDArray[Any] | None,
) -> None:
    """Show the neurons of spatial layers at their rows and columns."""
    bottom = ax.get_ylim()[0]
    nodes = [node for node in graph if "position" in graph.nodes[node]]
    if not nodes:
        return
    shares, shades = shares_of(graph, list(graph))
    rank = {node: i for i, node in enumerate(graph)}
    for x, name in maps.items():
        _, rows, width = graph.graph["shapes"][name]
        frame = ax.inset_axes((x - 0.4, bottom, 0.8, top - bottom), transform=ax.transData)
        here = [node for node in nodes if layer_name(graph, node) == name]
        if image is not None and graph.nodes[here[0]]["depth"] == 0:
            extent = (-0.5, width - 0.5, rows - 0.5, -0.5)
            frame.imshow(image, cmap="gray", interpolation="nearest", extent=extent)
        here.sort(key=lambda node: shares[rank[node]])  # the most relevant on top
        order = [rank[node] for node in here]
        places = np.array([graph.nodes[n]["position"].split(", ")[1:] for n in here], dtype=int)
        frame.scatter(
            places[:, 1],
            places[:, 0],
            s=4.0 + 22.0 * shares[order],
            c=shades[order],
            edgecolors="#333333",
            linewidths=0.2,
        )
        frame.set(xlim=(-0.5, width - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
        frame.set_xticks([])
        frame.set_yticks([])
        frame.set_facecolor("#F7F7F7")
        thin_frame(frame)


def _limits(ax: Axes, graph: nx.DiGraph, columns: dict[str, list[Hashable]], maps: bool) -> float:
    """Set the limits of the axes; return where the maps' space begins, downwards."""
    floor = any(graph.nodes[node]["unit"] < 0 for node in graph)
    width = len(columns) + (0.5 if floor else 0.2)
    bottom = FLOOR - 0.22 if floor else -1.1
    ax.set_xlim(0.1 - width + len(columns) - 0.5, len(columns) - 0.4)
    # Maps are squares of a column's width.
    share = min(0.4, 0.85 * ax.bbox.width / width / ax.bbox.height) if maps else 0.0
    ax.set_ylim(bottom - (1.1 - bottom) * share / (1.0 - share), 1.1)
    return bottom


def _note(ax: Axes, graph: nx.DiGraph, columns: list[str], maps: bool) -> str:
    """Write what stands below the axes."""
    past = any(passes(graph, columns, src, dst) for src, dst in graph.edges)
    lines = drawn_notes(graph, columns, past)
    if maps:
        lines.append("neurons: channel: row,column; below, at their rows and columns")
    width = size_in_points(ax)[0]
    return "\n".join(
        wrapped(line, width, 7.0) for line in (*lines, graph_notes(graph.graph))
    ).strip()


def _label(ax: Axes, graph: nx.DiGraph, columns: dict[str, list[Hashable]], note: str) -> None:
    names, _ = short_names(list(columns))
    ends = 12.0 if any(graph.nodes[node]["unit"] < 0 for node in graph) else 0.0  # their names
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(names)))
    spacing = ax.bbox.width / ax.figure.dpi * 72 / (len(names) + 0.5)
    font = 8.0
    if max(map(len, names)) * font * CHARACTER <= 0.9 * spacing:
        ax.set_xticklabels(names, fontsize=font)
    else:
        # Lines of slanted text are spacing * sin(40 degrees) apart: shrink only below that.
        slant = 40.0 if spacing * 0.64 >= font * 1.2 else 90.0
        font = min(font, max(3.0, spacing * (0.53 if slant == 40.0 else 0.83)))
        ax.set_xticklabels(
            names,
            fontsize=font,
            rotation=slant,
            ha="left" if slant == 40.0 else "center",
            rotation_mode="anchor" if slant == 40.0 else "default",
        )
    ax.tick_params(axis="x", length=0, pad=4)
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    if "title" in graph.graph:
        ax.set_title(str(graph.graph["title"]), fontsize=9, pad=12)
    ax.set_xlabel(note, fontsize=7, color="#444444", labelpad=4.0 + ends)
    draw_legend(ax, graph, 18.0 + ends + 10.0 * note.count("\n"))
