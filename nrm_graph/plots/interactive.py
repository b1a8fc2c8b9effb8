"""A graph as an interactive figure: exact numbers where one points, a unit where one clicks."""

from __future__ import annotations

import base64
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nrm_graph._optional import plotly
from nrm_graph.plots.circuit import circuit_note, circuit_title
from nrm_graph.plots.common import TEXT, graph_notes
from nrm_graph.plots.gallery import heat_map
from nrm_graph.plots.graph_layout import passes
from nrm_graph.plots.graph_parts import (
    checked,
    drawn_notes,
    pseudo_text,
    short_names,
    with_absorbed,
)
from nrm_graph.plots.node_images import checked_images
from nrm_graph.plots.plain_text import plain
from nrm_graph.plots.sheet import BELOW, NARROWEST, sheet_of
from nrm_graph.plots.text_layout import text_notes
from nrm_graph.plots.traces import EDGES, ENDS, UNITS, edge_lines, legend, marks, spaced

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    import networkx as nx
    import numpy.typing as npt

    from nrm_graph.plots.sheet import Sheet
    from nrm_graph.plots.traces import Trace

__all__ = ["EDGES", "ENDS", "UNITS", "flow_drawing", "flow_figure", "plain"]

_LINE = 15.0  # pixels of a line of text below the graph
_NAME = 26  # letters of a layer's name above its column; a unit tells the rest
_LETTERS = 100  # of a line of a note: two graphs may stand side by side
_WRAPPED = 6  # lines of one note
_AROUND = 22.0  # pixels above and below the marks


def flow_figure(
    graph: nx.DiGraph,
    *,
    images: Mapping[Any, npt.ArrayLike] | None = None,
    chosen: Collection[Hashable] = (),
    avoided: Collection[Hashable] = (),
    height: int | None = None,
) -> Any:
    r"""Draw a graph of relevance with Plotly, layer by layer from the input (left) to the output.

    The graph of a text whose units tell its tokens apart stands upright, the output on top.

    Parameters
    ----------
    graph : networkx.DiGraph
        As :func:`nrm_graph.plots.plot_subgraph` takes it: of one input, reduced, a circuit or a
        contrast.
    images : mapping of node to array_like, optional
        Maps (H, W) of signed numbers that are shown at their nodes, each on its own scale.  An
        empty mapping leaves room for maps that come later: nothing moves when they do.
    chosen, avoided : collection of node, optional
        Units that the measure is conditioned on: that walks pass, or do not pass.  A black ring
        marks the former; that of the latter is dashed and crossed out.
    height : int, optional
        Pixels; by default as many as the largest layer needs.

    Returns
    -------
    plotly.graph_objects.Figure
        Its width follows the page.

    Raises
    ------
    InputError
        If the graph is empty or lacks an attribute, an image has no two axes, or plotly is not
        installed.

    Notes
    -----
    It shows what :func:`nrm_graph.plots.plot_subgraph` does, in the same colours and on the same
    scales.  A unit or an edge that is pointed at says its exact numbers.

    The traces :data:`UNITS`, :data:`ENDS` (pseudo-units) and :data:`EDGES` hold a point a unit and
    a pseudo-unit, in the order of the graph, and an edge, from the weakest to the strongest.
    ``customdata`` of a unit is a list of its ``event`` (the expression that names its neurons),
    where the graph has it; of an edge a list of the events of its source and destination, each
    empty where there is none.

    Every text is escaped by :func:`plain`.

    Examples
    --------
    >>> import networkx as nx
    >>> graph = nx.DiGraph()
    >>> graph.add_node(("x", 0), layer="x", unit=0, relevance=1.0, depth=0, event="x[0]")
    >>> graph.add_node(("fc", 2), layer="fc", unit=2, relevance=1.0, depth=1, event="fc[2]")
    >>> graph.add_edge(("x", 0), ("fc", 2), relevance=1.0)
    >>> figure = flow_figure(graph)
    >>> [*next(figure.select_traces({"name": "units"})).customdata]
    [['x[0]'], ['fc[2]']]
    """
    plotly()  # before anything is laid out
    return figure_of(flow_drawing(graph, images, chosen, avoided, height))


def flow_drawing(
    graph: nx.DiGraph,
    images: Mapping[Any, npt.ArrayLike] | None = None,
    chosen: Collection[Hashable] = (),
    avoided: Collection[Hashable] = (),
    height: int | None = None,
) -> Trace:
    """Return what :func:`flow_figure` draws as plain dictionaries, ``data`` and ``layout``.

    A page that is asked again and again takes these: that Plotly looks at every value once more
    takes as long as the drawing.

    Raises
    ------
    InputError
        If the graph is empty or lacks an attribute, or an image has no two axes.
    """
    sheet = drawn_sheet(graph, images)
    return drawing(sheet, _title(graph), chosen=chosen, avoided=avoided, height=height)


def figure_of(drawn: Trace) -> Any:
    """Return the figure of a drawing, without the look that Plotly gives figures.

    Raises
    ------
    InputError
        If plotly is not installed.
    """
    layout = {**drawn["layout"], "template": "none"}
    return plotly("plotly.graph_objects").Figure({"data": drawn["data"], "layout": layout})


def drawn_sheet(
    graph: nx.DiGraph,
    images: Mapping[Any, npt.ArrayLike] | None = None,
    most: int | None = None,
) -> Sheet:
    """Lay out what :func:`flow_figure` draws, of edges the ``most`` strongest.

    Raises
    ------
    InputError
        If the graph is empty or lacks an attribute, or an image has no two axes.
    """
    drawn = with_absorbed(graph, checked(graph))
    return sheet_of(drawn, checked_images(drawn, images), most, roomy=images is not None)


def drawing(
    sheet: Sheet,
    title: Sequence[str] = (),
    *,
    chosen: Collection[Hashable] = (),
    avoided: Collection[Hashable] = (),
    height: int | None = None,
) -> Trace:
    """Draw what is laid out; see :func:`flow_drawing`."""
    graph = sheet.graph
    notes = _notes(sheet, [node for node in (*chosen, *avoided) if node not in graph])
    top, slant, names = _head(sheet, title)
    bottom = 40.0 + names + _LINE * len(notes)
    under = _AROUND + (BELOW + 34.0 if sheet.has_ends else 0.0)
    if height is not None:
        sheet = replace(sheet, half=max(60.0, (height - top - bottom - under - _AROUND) / 2.06))
    upper, lower = 1.06 * sheet.half + _AROUND, sheet.half + under
    layout = {
        **_LOOK,
        "height": round(top + upper + lower + bottom),
        "margin": {"l": 12, "r": 12, "t": round(top), "b": round(bottom)},
        "title": {
            "text": "<br>".join(map(plain, title)),
            "x": 0.0,
            "y": 1.0,
            "pad": {"t": 8 + 10 * max(len(title) - 1, 0), "l": 12},  # else its top is cut
            "xanchor": "left",
            "yanchor": "top",
            "font": {"size": 14},
        },
        "xaxis": _layers(sheet, slant) if sheet.text is None else _tokens(sheet, slant),
        "yaxis": _heights(sheet, [-round(lower), round(upper)]),
        "legend": {
            "orientation": "h",
            "x": 0.0,
            "y": -(8.0 + names) / (upper + lower),
            "yanchor": "top",
            "itemclick": False,
            "itemdoubleclick": False,
        },
        "annotations": [*_end_names(sheet), _below(notes, names)],
        "images": _pictures(sheet),
        "shapes": [
            shape
            for nodes, crossed in ((chosen, False), (avoided, True))
            for node in nodes
            if node in graph
            for shape in _ring(sheet, node, crossed)
        ],
    }
    if sheet.step <= NARROWEST:
        wide = len(sheet.columns) + 1.4
        if sheet.text is not None:
            wide = sheet.text.right - sheet.text.left + 5.0
        layout["width"] = round(NARROWEST * wide + 24)
    traces = [*edge_lines(sheet), *marks(sheet), *legend(graph, bool(chosen), bool(avoided))]
    return {"data": traces, "layout": layout}


_LOOK: dict[str, Any] = {
    "font": {"family": "system-ui, sans-serif", "size": 11, "color": TEXT},
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "hovermode": "closest",
    "hoverdistance": 12,
    "hoverlabel": {"bgcolor": "white", "align": "left", "font": {"size": 12, "color": TEXT}},
    "dragmode": "pan",
    "showlegend": True,
}


def _layers(sheet: Sheet, slant: int) -> dict[str, Any]:
    """Write the layers' names above their columns."""
    names, _ = short_names(list(sheet.columns))
    return {
        "range": [-0.95 if sheet.has_ends else -0.5, len(names) - 0.4],
        "side": "top",
        "tickvals": list(range(len(names))),
        "ticktext": [plain(name, _NAME) for name in names],
        "tickangle": slant,
        "showgrid": False,
        "zeroline": False,
    }


def _tokens(sheet: Sheet, slant: int) -> dict[str, Any]:
    """Write the tokens of a text below their columns."""
    assert sheet.text is not None
    names = sheet.text.names(sheet.graph)
    return {
        "range": [sheet.text.left, sheet.text.right],
        "tickvals": [*names],
        "ticktext": [plain(spaced(name), _NAME) for name in names.values()],
        "tickangle": slant,
        "showgrid": False,
        "zeroline": False,
    }


def _heights(sheet: Sheet, limits: Sequence[int]) -> dict[str, Any]:
    """Heights in pixels; the layers of a text are named beside their rows."""
    if sheet.text is None:
        return {"range": limits, "visible": False}
    names, _ = short_names(list(sheet.columns))
    return {
        "range": limits,
        "tickvals": sheet.heights(range(len(names))).tolist(),
        "ticktext": [plain(name, _NAME) for name in names],
        "automargin": True,
        "gridcolor": "#EEEEEE",
        "zeroline": False,
    }


def _head(sheet: Sheet, title: Sequence[str]) -> tuple[float, int, float]:
    """Pixels above the graph, the slant of the columns' names, and their pixels below the graph."""
    above = 32.0 + 19.0 * max(len(title) - 1, 0)  # the first line stands beside the buttons
    if sheet.text is not None:
        longest = max(min(len(name), _NAME) for name in sheet.text.names(sheet.graph).values())
        return above, -40, 10.0 + 6.6 * 0.64 * longest
    names, _ = short_names(list(sheet.columns))
    width = 6.6 * max(min(len(name), _NAME) for name in names)
    if width <= 0.92 * sheet.step:
        return above + 20.0, 0, 0.0
    slant = -40 if 0.64 * sheet.step >= 16.0 else -90
    return above + 14.0 + width * (0.64 if slant == -40 else 1.0), slant, 0.0


def _title(graph: nx.DiGraph) -> list[str]:
    facts = graph.graph
    text = circuit_title(graph) if "inputs" in facts else str(facts.get("title", ""))
    return textwrap.wrap(text, 110)[:3]


def _notes(sheet: Sheet, absent: Sequence[object]) -> list[str]:
    """Lines below the graph."""
    graph, columns = sheet.graph, list(sheet.columns)
    if sheet.text is not None:
        notes = text_notes(graph, sheet.text)
    else:
        past = any(passes(graph, columns, src, dst) for src, dst in sheet.edges)
        notes = drawn_notes(graph, columns, past)
    if len(sheet.edges) < graph.number_of_edges():
        notes.append(
            f"drawn: the {len(sheet.edges):,} strongest; a click on a unit shows all of its own"
        )
    if "inputs" in graph.graph:
        notes.append(circuit_note(graph, kept=False).replace("whiskers: ", "bands: "))
    if absent:
        units = ", ".join(
            " ".join(map(str, node)) if isinstance(node, tuple) else str(node) for node in absent
        )
        notes.append(f"conditioned on, but not drawn: {units}")
    notes.append(graph_notes(graph.graph))
    lines = (line for note in notes for line in textwrap.wrap(note, _LETTERS)[:_WRAPPED])
    return [plain(line) for line in lines]


def _below(notes: Sequence[str], names: float) -> dict[str, Any]:
    return {
        "text": "<br>".join(notes),
        "x": 0.0,
        "y": 0.0,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "top",
        "yshift": -32 - round(names),
        "align": "left",
        "showarrow": False,
        "font": {"size": 11, "color": "#444444"},
    }


def _end_names(sheet: Sheet) -> list[dict[str, Any]]:
    """Names of pseudo-units, slanted, because they stand side by side."""
    marks = []
    for node, data in sheet.graph.nodes(data=True):
        if data["unit"] >= 0 or (sheet.text is not None and "text" not in data):
            continue  # what a pseudo-unit of a text is stands below its column
        x, y = sheet.place(node)
        marks.append(
            {
                "x": x,
                "y": y,
                "text": plain(pseudo_text(data), 16),
                "textangle": -40,
                "xanchor": "right",
                "yanchor": "top",
                "yshift": -round(sheet.sizes[node] / 2.0),
                "xshift": 4,
                "showarrow": False,
                "font": {"size": 9},
            }
        )
    return marks


def _pictures(sheet: Sheet) -> list[dict[str, Any]]:
    """Put maps at their units, inside the frames that are the units' marks."""
    pictures = []
    for node, array in sheet.images.items():
        x, y = sheet.place(node)
        side = sheet.sizes[node] - 2.0
        data = base64.b64encode(heat_map(array)).decode()
        pictures.append(
            {
                "source": f"data:image/png;base64,{data}",
                "x": x,
                "y": y,
                "xref": "x",
                "yref": "y",
                "sizex": round(side / sheet.step * 1.3, 3),  # heights decide, which are exact
                "sizey": round(side, 1),
                "xanchor": "center",
                "yanchor": "middle",
                "sizing": "contain",
                "layer": "above",
            }
        )
    return pictures


def _ring(sheet: Sheet, node: Hashable, crossed: bool) -> list[dict[str, Any]]:
    """Mark a unit that the measure is conditioned on."""
    radius = round(sheet.sizes[node] / 2.0 + 4.0, 1)
    x, y = sheet.place(node)
    at: dict[str, Any] = {
        "xref": "x",
        "yref": "y",
        "xsizemode": "pixel",
        "ysizemode": "pixel",
        "xanchor": x,
        "yanchor": y,
        "x0": -radius,
        "x1": radius,
        "y0": -radius,
        "y1": radius,
        "layer": "above",
    }
    kind = "rect" if node in sheet.images else "circle"
    style = {
        "color": "black",
        "width": 1.6 if crossed else 2.6,
        "dash": "dot" if crossed else "solid",
    }
    ring = {**at, "type": kind, "line": style}
    strokes = [{**at, "type": "line", "line": {"color": "black", "width": 1.6}}] if crossed else []
    return [ring, *strokes]
