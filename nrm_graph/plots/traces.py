"""Traces of an interactive figure: lines of edges, and marks that one can point at."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.plots.common import NEGATIVE, NEUTRAL, POSITIVE, TEXT, colour
from nrm_graph.plots.graph_facts import edge_facts, facts_of_units
from nrm_graph.plots.graph_parts import doubtful, ends_text, own_text, reach, unit_text
from nrm_graph.plots.plain_text import letters, plain

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import networkx as nx
    import numpy.typing as npt

    from nrm_graph.plots.graph_facts import Facts
    from nrm_graph.plots.sheet import Sheet

    Line = npt.NDArray[np.float64]

Trace = dict[str, Any]
"""A part of a Plotly figure."""

UNITS, ENDS, EDGES = "units", "ends", "edges"
"""Names of the traces that hold what one can point at."""

_LEVELS = 6  # widths of edges
_LABELLED = 46.0  # columns of so many pixels show names of units
_LETTER, _TEXT_HEIGHT = 5.9, 10.0  # pixels
_WIDE = 90  # letters of a line of what stands at hover
_LONGEST = 40  # letters of a name beside a unit
_OF_TOKEN = 14  # and of one above its token


def edge_lines(sheet: Sheet) -> list[Trace]:
    """Draw edges, those of about one width and one colour in one trace, the strongest last."""
    graph = sheet.graph
    largest = max((abs(r) for *_, r in graph.edges(data="relevance")), default=0.0) or 1.0
    lines: dict[tuple[int, str, bool], list[Line]] = defaultdict(list)
    bands: dict[tuple[int, str], list[Line]] = defaultdict(list)
    for src, dst in sheet.edges:
        data = graph.edges[src, dst]
        line = sheet.lines[src, dst]
        relevance = float(data["relevance"])
        shade = NEUTRAL if graph.nodes[src]["unit"] < 0 else colour(relevance)
        lines[_level(abs(relevance) / largest), shade, doubtful(data)].append(line)
        low, high = reach(data)
        if high > low:
            bands[_level(min(1.0, (high - low) / largest)), shade].append(line)
    traces = []
    for (level, shade), curves in sorted(bands.items()):
        style = {"width": round(1.5 + 7.0 * _share(level), 2), "color": shade}
        traces.append(_joined(curves) | {"line": style, "opacity": 0.16})
    for (level, shade, dotted), curves in sorted(lines.items()):
        style = {"width": round(0.5 + 4.2 * _share(level), 2), "color": shade}
        style["dash"] = "dot" if dotted else "solid"
        opacity = round(0.3 + 0.6 * level / _LEVELS, 2)
        traces.append(_joined(curves) | {"line": style, "opacity": opacity})
    return traces


def _level(share: float) -> int:
    """Which of the widths an edge has; most differ where most edges are."""
    return max(1, int(np.ceil(_LEVELS * np.sqrt(share) - 1e-9)))


def _share(level: int) -> float:
    return (level / _LEVELS) ** 2


def _joined(curves: Sequence[Line]) -> Trace:
    """Draw several lines as one, with gaps between."""
    x: list[float | None] = []
    y: list[float | None] = []
    for line in curves:
        x += [*line[:, 0].tolist(), None]
        y += [*line[:, 1].tolist(), None]
    trace: Trace = {"type": "scatter", "mode": "lines", "x": x, "y": y}
    return trace | {"hoverinfo": "skip", "showlegend": False}


def marks(sheet: Sheet) -> list[Trace]:
    """Mark what one can point at: edges at their middles, pseudo-units and units."""
    graph = sheet.graph
    facts = facts_of_units(graph)
    middles = [sheet.clear_place(src, dst) for src, dst in sheet.edges]
    edges = {
        **_marks(EDGES, middles, [edge_facts(graph, src, dst) for src, dst in sheet.edges]),
        "customdata": [[_event(graph, src), _event(graph, dst)] for src, dst in sheet.edges],
        "marker": {"size": 10, "opacity": 0, "color": NEUTRAL},
    }
    ends = [node for node in graph if graph.nodes[node]["unit"] < 0]
    squares = {
        **_marks(ENDS, [sheet.place(node) for node in ends], [facts[node] for node in ends]),
        "marker": {
            "symbol": "square",
            "size": [sheet.sizes[node] for node in ends],
            "color": NEUTRAL,
            "line": {"width": 0.7, "color": TEXT},
        },
    }
    units = [node for node in graph if graph.nodes[node]["unit"] >= 0]
    events = [_event(graph, node) for node in units]
    circles = {
        **_marks(UNITS, [sheet.place(node) for node in units], [facts[node] for node in units]),
        "mode": "markers+text",
        "text": _labels(sheet, units),
        "textposition": "middle right" if sheet.text is None else _beside(sheet, units),
        "textfont": {"size": 10, "shadow": "auto"},
        "customdata": [[event] if event else [] for event in events],
        "marker": _unit_marks(sheet, units),
    }
    return [edges, squares, circles]


def _marks(name: str, places: Sequence[Sequence[float]], facts: Sequence[Facts]) -> Trace:
    return {
        "type": "scatter",
        "name": name,
        "mode": "markers",
        "x": [x for x, _ in places],
        "y": [y for _, y in places],
        "hoverinfo": "text",
        "hovertext": [_hover(of_one) for of_one in facts],
        "showlegend": False,
    }


def _unit_marks(sheet: Sheet, units: Sequence[Hashable]) -> Trace:
    """Draw circles in the colours of units, or the frames of their maps; those that are cut black.

    Frames tell the sign by their colour.
    """
    shades, frames, widths = [], [], []
    for node in units:
        data = sheet.graph.nodes[node]
        mapped, cut = node in sheet.images, bool(data.get("cut"))
        shades.append("white" if mapped else sheet.shades[node])
        frames.append("black" if cut else colour(data["relevance"]) if mapped else TEXT)
        widths.append(2 if cut or mapped else 0.7)
    return {
        "symbol": ["square" if node in sheet.images else "circle" for node in units],
        "size": [sheet.sizes[node] for node in units],
        "opacity": 1,
        "color": shades,
        "line": {"width": widths, "color": frames},
    }


def _labels(sheet: Sheet, units: Sequence[Hashable]) -> list[str]:
    """Write names beside units, as long as there is room for; none where there is little."""
    if sheet.text is not None:
        names = (own_text(sheet.graph.nodes[node], spaced) for node in units)
        return [plain(name, _OF_TOKEN) for name in names]
    if sheet.step < _LABELLED:
        return [""] * len(units)
    crowds = Counter(sheet.places[node][0] for node in units)
    texts = []
    for node in units:
        text = unit_text(sheet.graph.nodes[node], str, spaced)
        room = (sheet.step - sheet.sizes[node] - 8.0) / _LETTER
        dense = 2.0 * sheet.half / crowds[sheet.places[node][0]] < _TEXT_HEIGHT
        texts.append("" if dense else plain(text, max(3, letters(text, min(room, _LONGEST)))))
    return texts


def _beside(sheet: Sheet, units: Sequence[Hashable]) -> list[str]:
    """Where names of a text's units stand: below, of the topmost above, where no edge leads."""
    top = len(sheet.columns) - 1
    return [f"{'top' if sheet.places[node][1] == top else 'bottom'} center" for node in units]


def spaced(token: str) -> str:
    """Text of a token whose spaces can be seen."""
    return token.replace(" ", "\N{OPEN BOX}")


def _event(graph: nx.DiGraph, node: Hashable) -> str:
    return str(graph.nodes[node].get("event", ""))


def _hover(facts: Facts) -> str:
    title = "<br>".join(f"<b>{plain(line)}</b>" for line in textwrap.wrap(facts.title, 60)[:4])
    lines = (f"{plain(name, 60)}: {plain(value, 100)}" for name, value in facts.lines)
    return "<br>".join([title, *lines])


def legend(graph: nx.DiGraph, conditioned: bool, avoiding: bool) -> list[Trace]:
    """Draw marks without a place, for what the legend says."""
    filled = {"width": 0.7, "color": TEXT}
    entries: list[tuple[str, Trace]] = [
        ("positive", {"symbol": "circle", "color": POSITIVE, "line": filled}),
        ("negative", {"symbol": "circle", "color": NEGATIVE, "line": filled}),
    ]
    if any(unit < 0 for _, unit in graph.nodes(data="unit")):
        entries.append((ends_text(graph), {"symbol": "square", "color": NEUTRAL, "line": filled}))
    if any(is_cut for _, is_cut in graph.nodes(data="cut")):
        entries.append(("cut here", _outline("circle-open", 2.0)))
    if conditioned:
        entries.append(("conditioned on", _outline("circle-open", 3.0)))
    if avoiding:
        entries.append(("avoided", _outline("circle-x-open", 1.5)))
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [None],
            "y": [None],
            "name": text,
            "marker": {"size": 9, **marker},
            "hoverinfo": "skip",
        }
        for text, marker in entries
    ]


def _outline(symbol: str, width: float) -> Trace:
    return {"symbol": symbol, "color": "black", "line": {"width": width, "color": "black"}}
