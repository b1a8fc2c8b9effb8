"""Graphs as files and tables: of one input's relevance, or of a data set's circuit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph._optional import plotly
from nrm_graph.errors import InputError
from nrm_graph.output_files import in_folder, plain, write_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import networkx as nx
    import numpy.typing as npt
    import pyarrow as pa

__all__ = ["GRAPH_SUFFIXES", "PICTURES", "graph_path", "to_arrow", "write_graph"]

PICTURES = (".svg", ".png")
"""Suffixes of pictures, among those of graphs."""

GRAPH_SUFFIXES = (
    ".graphml",
    ".gexf",
    ".json",
    ".attribution.json",
    ".parquet",
    ".neo4j.csv",
    ".html",
    *PICTURES,
)


def graph_path(path: str | os.PathLike[str]) -> Path:
    """Check that a graph can be written to a path, before anything is computed for it.

    Raises
    ------
    InputError
        If the suffix is not known, the folder does not exist, or plotly is not installed, which
        pages need.
    """
    text = os.fspath(path)
    path = Path(text)
    if _suffix(path) is None:
        raise InputError(
            f"cannot write a graph to {text!r}: expected a name that ends in "
            f"{', '.join(GRAPH_SUFFIXES)}"
        )
    if _suffix(path) == ".html":
        plotly()
    return in_folder(path)


def write_graph(
    graph: nx.DiGraph,
    path: str | os.PathLike[str],
    *,
    image: npt.NDArray[Any] | None = None,
    images: Mapping[Any, npt.ArrayLike] | None = None,
) -> list[Path]:
    """Write a graph in the format that the suffix of the path names.

    Parameters
    ----------
    graph : networkx.DiGraph
        Nodes are (layer, unit), as of ``Measure.subgraph`` or ``Database.circuit``.
    path : path-like
        The suffix names the format:

        ============================ =======================================================
        ``.graphml``                 GraphML; nodes become ``layer:unit``
        ``.gexf``                    GEXF, for Gephi; nodes become ``layer:unit``
        ``.json``                    node-link; read it back with
                                     ``networkx.node_link_graph(data, edges="edges")``
        ``NAME.attribution.json``    the attribution graph of circuit-tracer and Neuronpedia:
                                     :func:`nrm_graph.graphs.formats.attribution_json.attribution_graph`
        ``NAME.parquet``             two tables, ``NAME.nodes.parquet`` and
                                     ``NAME.edges.parquet``: :func:`to_arrow`
        ``NAME.neo4j.csv``           ``NAME.nodes.csv``, ``NAME.relationships.csv`` and
                                     ``NAME.graph.csv`` for Neo4j's bulk import:
                                     :func:`nrm_graph.graphs.formats.neo4j.neo4j`
        ``.html``                    one page that opens by double click, asks nobody for
                                     anything and stays interactive; it needs
                                     ``nrm-graph[explorer]``:
                                     :func:`nrm_graph.graphs.formats.html_page.html_page`
        ``.svg``, ``.png``           a picture
        ============================ =======================================================
    image : ndarray, (H, W) or (H, W, 3), optional
        The input, shown in a picture or page; see :func:`nrm_graph.plots.plot_subgraph`.
    images : mapping of node to array_like, optional
        Maps (H, W) of signed numbers that a page shows at their nodes, such as a unit's own heat
        map.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    InputError
        If the suffix is not known, the file cannot be written, its format cannot hold a name or
        images, or plotly is not installed where a page is asked for.
    NrmError
        If the disk is full or fails.  Files that were there before are as they were.

    Notes
    -----
    Numbers are written so that they are read back as they were.  An attribute that is None or not
    finite is left out; JSON writes null.
    """
    path = graph_path(path)
    suffix = _suffix(path)
    if images is not None and suffix != ".html":
        raise InputError(f"images of nodes are shown in .html alone, found the path {str(path)!r}")
    if suffix in PICTURES:
        from nrm_graph.plots import save_subgraph

        save_subgraph(graph, path, image=image)
        return [path]
    try:
        if suffix == ".html":
            from nrm_graph.graphs.formats.html_page import html_page

            return write_files({path: html_page(graph, images, image).encode()})
        if suffix == ".json":
            return write_files({path: _node_link(graph).encode()})
        return write_files(_encoded(graph, suffix, path))
    except UnicodeEncodeError as error:
        text = error.object[error.start : error.end]
        raise InputError(f"cannot write {path}: a name holds {text!r}, which is no text") from None


def to_arrow(graph: nx.DiGraph) -> tuple[pa.Table, pa.Table]:
    """Return a graph as two tables.

    Parameters
    ----------
    graph : networkx.DiGraph
        Nodes are (layer, unit).

    Returns
    -------
    nodes : pyarrow.Table
        ``layer`` (string), ``unit`` (int64; negative for pseudo-units), and one column for each
        attribute, null where a node lacks it; relevance and its like are float64.
    edges : pyarrow.Table
        ``src_layer``, ``src_unit``, ``dst_layer``, ``dst_unit``, and the attributes.

    Raises
    ------
    InputError
        If a node is no (layer name, unit).

    Notes
    -----
    What the graph holds about itself is JSON text in the metadata of both schemas, under
    ``graph``.

    Examples
    --------
    >>> import networkx as nx
    >>> graph = nx.DiGraph(share=1.0)
    >>> graph.add_node(("x", 0), relevance=0.5, depth=0)
    >>> nodes, edges = to_arrow(graph)
    >>> nodes.to_pylist()
    [{'layer': 'x', 'unit': 0, 'relevance': 0.5, 'depth': 0}]
    >>> nodes.schema.metadata[b"graph"]
    b'{"share": 1.0}'
    """
    from nrm_graph.graphs.formats.columns import flat
    from nrm_graph.graphs.formats.parquet import tables

    return tables(flat(graph))


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    fitting = [suffix for suffix in GRAPH_SUFFIXES if name.endswith(suffix) and name != suffix]
    return max(fitting, key=len, default=None)


def _encoded(graph: nx.DiGraph, suffix: str | None, path: Path) -> dict[Path, bytes]:
    """Encode a graph as the files that a path stands for."""
    from nrm_graph.graphs.formats import attribution_json, columns, neo4j, parquet, xml

    encode: Callable[[columns.Flat, Path], dict[Path, bytes]] = {
        ".graphml": xml.graphml,
        ".gexf": xml.gexf,
        ".attribution.json": attribution_json.attribution,
        ".parquet": parquet.parquet,
        ".neo4j.csv": neo4j.neo4j,
    }[str(suffix)]
    return encode(columns.flat(graph), path)


def _node_link(graph: nx.DiGraph) -> str:
    import networkx as nx

    strict = nx.DiGraph(**plain(dict(graph.graph)))
    strict.add_nodes_from((node, plain(data)) for node, data in graph.nodes(data=True))
    strict.add_edges_from((src, dst, plain(data)) for src, dst, data in graph.edges(data=True))
    data = nx.node_link_data(strict, edges="edges")
    return json.dumps(data, indent=1, allow_nan=False, default=str) + "\n"
