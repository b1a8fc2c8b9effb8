"""A graph as one page that needs nothing beside it: the figure, and numbers where one clicks."""

from __future__ import annotations

import base64
import html
import io
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nrm_graph._optional import plotly
from nrm_graph.network.token_texts import text_of
from nrm_graph.plots.circuit import circuit_title
from nrm_graph.plots.common import NEUTRAL, colour, percent
from nrm_graph.plots.gallery import stretched
from nrm_graph.plots.graph_facts import (
    facts_of_units,
    number,
    other_facts,
    relevance_word,
    share_of,
    value_text,
)
from nrm_graph.plots.graph_parts import of_steps
from nrm_graph.plots.interactive import drawing, drawn_sheet, figure_of
from nrm_graph.plots.plain_text import shortened, visible

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    import networkx as nx
    import numpy.typing as npt

    from nrm_graph.plots.sheet import Sheet

DRAWN = 400
"""Edges that are drawn before a click; the tables have all."""

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
"""What the page may do: run what stands in it, and ask nobody for anything."""

_TEXT, _SHORT = 300, 70  # letters of a text that are shown, and in lists
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_POINTS = 9  # of the line of an edge, which are joined smoothly
_HIDDEN = {"title", "shapes", "absorbed_in", "keys", "connected", "reduced", "contrast", "program"}
_WORDS = {
    "store": "store",
    "input": "input",
    "tokens": "text",
    "target_text": "target",
    "given": "given",
    "where": "inputs where",
    "inputs": "number of inputs",
    "weight": "weight",
    "reading": "biases",
    "meaning": "meaning",
    "flags": "note",
    "share": "kept of the sum of |R| over all edges",
    "share_strongest": "the strongest edges would keep",
    "absorbed": "absorbed",
    "absorbed_a": "absorbed in the first group",
    "absorbed_b": "absorbed in the second group",
}
_SHARES = {"share", "share_strongest", "kept"}


def html_page(
    graph: nx.DiGraph,
    images: Mapping[Any, npt.ArrayLike] | None = None,
    image: npt.NDArray[Any] | None = None,
) -> str:
    """Write a graph as a page that opens by double click, stays interactive and asks nobody.

    Parameters
    ----------
    graph : networkx.DiGraph
        As :func:`nrm_graph.plots.interactive.flow_figure` takes it.
    images : mapping of node to array_like, optional
        Maps (H, W) that are shown at their nodes.
    image : ndarray, (H, W) or (H, W, 3), optional
        The input, shown beside the graph.

    Raises
    ------
    InputError
        If the graph is empty or lacks an attribute, an image does not fit, or plotly is not
        installed.

    Notes
    -----
    Of a larger graph the 400 strongest edges are drawn; a click on a unit shows and lists all of
    its own.
    """
    script: str = plotly("plotly.offline").get_plotlyjs()
    sheet = drawn_sheet(graph, images, DRAWN)
    data = _data(sheet).translate(_ESCAPES)
    facts = graph.graph
    title = circuit_title(graph) if "inputs" in facts else _title(facts)
    files = resources.files(__package__)
    heading = html.escape(_shown(title))
    listed = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd><bdi>{html.escape(text)}</bdi></dd></div>"
        for name, text in _facts(facts)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>
{files.joinpath("page.css").read_text("utf-8")}</style>
</head>
<body>
<header><h1><bdi>{heading}</bdi></h1><dl>{listed}</dl></header>
<main>
<div id="plot"><noscript>The graph needs JavaScript, which stands in this file.</noscript></div>
<aside id="panel">{_picture(image)}
<div class="tools" id="tools"></div>
<div id="facts"></div>
</aside>
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
<script>
{files.joinpath("page.js").read_text("utf-8")}</script>
</body>
</html>
"""


def _data(sheet: Sheet) -> str:
    """Write figure, nodes and edges as JSON; edges that are drawn come first, in their order."""
    graph = sheet.graph
    facts = facts_of_units(graph)
    ranks = {node: i for i, node in enumerate(graph)}
    nodes = [
        {
            "title": _shown(facts[node].title),
            "short": shortened(visible(facts[node].title), _SHORT),
            "end": data["unit"] < 0,
            "relevance": float(data["relevance"]),
            "text": number(float(data["relevance"])),
            "lines": _lines(facts[node].lines),
        }
        for node, data in graph.nodes(data=True)
    ]
    drawn = set(sheet.edges)
    rest = [edge for edge in graph.edges if edge not in drawn]
    edges = [_edge(sheet, src, dst, ranks) for src, dst in (*sheet.edges, *rest)]
    short = "mean" if "inputs" in graph.graph else "R"
    words = {
        "edge": "step" if of_steps(graph) else "edge",
        "relevance": relevance_word(graph),
        "short": "difference" if graph.graph.get("contrast") else short,
    }
    page = {
        "nodes": nodes,
        "edges": edges,
        "words": words,
        "pictured": [ranks[node] for node in sheet.images],
        "listed": [ranks[node] for node in sorted(graph, key=lambda node: _place(sheet, node))],
    }
    text = json.dumps(page, allow_nan=False)
    return f'{{"figure": {figure_of(drawing(sheet)).to_json()}, {text[1:]}'


def _place(sheet: Sheet, node: Hashable) -> tuple[bool, int, float]:
    """Where a node stands in the list of all: from the output on, the strongest first."""
    data = sheet.graph.nodes[node]
    return data["unit"] < 0, -int(data["depth"]), -abs(float(data["relevance"]))


def _edge(sheet: Sheet, src: Hashable, dst: Hashable, ranks: Mapping[Any, int]) -> dict[str, Any]:
    graph = sheet.graph
    data = graph.edges[src, dst]
    line = sheet.curve(src, dst, _POINTS)
    return {
        "src": ranks[src],
        "dst": ranks[dst],
        "relevance": float(data["relevance"]),
        "text": number(float(data["relevance"])),
        "of_src": share_of(graph, src, dst, src),
        "of_dst": share_of(graph, src, dst, dst),
        "lines": _lines(other_facts(data)),
        "colour": NEUTRAL if graph.nodes[src]["unit"] < 0 else colour(data["relevance"]),
        "x": line[:, 0].tolist(),
        "y": line[:, 1].tolist(),
    }


def _lines(lines: Iterable[tuple[str, str]]) -> list[list[str]]:
    return [[_shown(name), _shown(value)] for name, value in lines]


def _shown(text: str) -> str:
    return shortened(visible(text), _TEXT)


def _title(facts: Mapping[str, Any]) -> str:
    """Title of the graph of one input."""
    if facts.get("title"):
        return str(facts["title"])
    text = "Reduced graph" if facts.get("reduced") else "Graph of relevance"
    for name, word in (("input", " of"), ("target_text", ", target"), ("given", ", given")):
        text += f"{word} {shortened(str(facts[name]), 60)}" if name in facts else ""
    return text


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what a graph holds about itself, what is known first."""
    names = [name for name in _WORDS if name in facts]
    names += [name for name in facts if name not in _WORDS and name not in _HIDDEN]
    lines = []
    for name in names:
        value = facts[name]
        if name == "target" and "target_text" in facts:
            continue
        if name == "tokens":
            value = text_of([*map(str, value)])
        texts = value if name == "flags" else [value]
        word = _shown(_WORDS.get(name, str(name).replace("_", " ")))
        write = percent if name in _SHARES else value_text
        lines += [(word, _shown(write(text))) for text in texts if text is not None]
    return lines


def _picture(image: npt.NDArray[Any] | None) -> str:
    """Show the input."""
    if image is None:
        return ""
    pixels = (255 * stretched(image)).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="the input">'
