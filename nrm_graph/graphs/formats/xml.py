"""Graphs as XML: GraphML and GEXF, both written by NetworkX."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import networkx as nx

from nrm_graph.errors import InputError
from nrm_graph.graphs.formats.columns import Flat, node_id, rows, scalar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def graphml(graph: Flat, path: Path) -> dict[Path, bytes]:
    """Encode GraphML; read it back with ``networkx.read_graphml``.

    Nodes become ``layer:unit``.  What the graph holds about itself becomes its attributes,
    sequences and mappings as JSON text.
    """
    encodable = _stringified(graph)
    facts = {name: scalar(value) for name, value in graph.facts.items()}
    encodable.graph.update({name: value for name, value in facts.items() if value is not None})
    _refuse(path, _texts(encodable))
    sink = io.BytesIO()
    nx.write_graphml(encodable, sink)
    return {path: sink.getvalue()}


def gexf(graph: Flat, path: Path) -> dict[Path, bytes]:
    """Encode GEXF 1.2 for Gephi; read it back with ``networkx.read_gexf``.

    Nodes become ``layer:unit``, with a ``label`` for people; ``weight`` of an edge is
    abs(relevance), by which Gephi draws and lays out, and ``relevance`` bears the sign.  What the
    graph holds about itself is JSON text in the file's ``description``.
    """
    encodable = _stringified(graph)
    for node, data in zip(graph.nodes, encodable.nodes.values(), strict=True):
        data["label"] = f"{node[0]} {data.get('name', node[1])}"
    for data in encodable.edges.values():
        data["weight"] = abs(data.get("relevance", 0.0))
    facts = json.dumps(graph.facts, allow_nan=False, default=str)
    _refuse(path, _texts(encodable))
    text = "\n".join(nx.generate_gexf(encodable))
    # NetworkX writes no description; the creator comes before any text of the graph.
    text = text.replace("</creator>", f"</creator>\n<description>{escape(facts)}</description>", 1)
    return {path: f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n".encode()}


def _stringified(graph: Flat) -> nx.DiGraph:
    encodable = nx.DiGraph()
    nodes = rows(graph.of_nodes, len(graph.nodes))
    encodable.add_nodes_from(zip(map(node_id, graph.nodes), nodes, strict=True))
    edges = rows(graph.of_edges, len(graph.edges))
    encodable.add_edges_from(
        (node_id(src), node_id(dst), data)
        for (src, dst), data in zip(graph.edges, edges, strict=True)
    )
    return encodable


def _texts(graph: nx.DiGraph) -> Iterable[str]:
    holders: list[dict[str, Any]] = [graph.graph, *graph.nodes.values(), *graph.edges.values()]
    yield from graph
    for data in holders:
        for name, value in data.items():
            yield name
            if isinstance(value, str):
                yield value


def _refuse(path: Path, texts: Iterable[str]) -> None:
    """Refuse what XML 1.0 has no form for, which its writers would write nevertheless."""
    for text in texts:
        for letter in text:
            code = ord(letter)
            if (code < 0x20 and letter not in "\t\n") or 0xD800 <= code <= 0xDFFF or code in _NONE:
                raise InputError(
                    f"cannot write {path}: {text!r} holds {letter!r}, for which XML has no form; "
                    "choose .json or .parquet"
                )


_NONE = (0xFFFE, 0xFFFF)
