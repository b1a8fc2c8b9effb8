"""A graph as columns: one type per attribute, for formats that know no more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.output_files import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import networkx as nx

Node = tuple[str, int]


@dataclass(frozen=True)
class Column:
    """One attribute of all nodes or of all edges.

    Attributes
    ----------
    kind : type
        ``bool``, ``int``, ``float`` or ``str``, the type of every value.
    values : list
        One per node or edge, None where it is absent.
    """

    kind: type
    values: list[Any]


@dataclass(frozen=True)
class Flat:
    """A graph without NumPy, tuples and mixed types.

    Attributes
    ----------
    nodes : list of (layer, unit)
    edges : list of (node, node)
        From the input's side to the output's.
    of_nodes, of_edges : dict of str to Column
        The attributes; ``relevance`` and ``depth`` (of nodes) are there even without any node.
    facts : dict
        What the graph holds about itself, as JSON can hold it.
    """

    nodes: list[Node]
    edges: list[tuple[Node, Node]]
    of_nodes: dict[str, Column]
    of_edges: dict[str, Column]
    facts: dict[str, Any]


def flat(graph: nx.DiGraph) -> Flat:
    """Take a graph of relevance apart.

    None and what is not finite become absent; sequences and mappings become JSON text; an
    attribute that is int here and float there is float, and any other mixture is text.

    Raises
    ------
    InputError
        If a node is no (layer name, unit).
    """
    for node in graph:
        is_pair = isinstance(node, tuple) and len(node) == 2
        if not is_pair or not (isinstance(node[0], str) and isinstance(node[1], int | np.integer)):
            raise InputError(
                f"expected nodes (layer name, unit) as Measure.subgraph gives them, found {node!r}"
            )
    edges = list(graph.edges(data=True))
    nodes = [(name, int(unit)) for name, unit in graph]
    return Flat(
        nodes,
        [((a[0], int(a[1])), (b[0], int(b[1]))) for a, b, _ in edges],
        _columns([d for _, d in graph.nodes(data=True)], {"relevance": float, "depth": int}),
        _columns([data for *_, data in edges], {"relevance": float}),
        plain(dict(graph.graph)),
    )


def node_id(node: Node) -> str:
    """Name of a node in formats whose nodes are text: ``layer:unit``."""
    return f"{node[0]}:{node[1]}"


def rows(columns: Mapping[str, Column], count: int) -> list[dict[str, Any]]:
    """Attributes of every node or edge, without those that are absent."""
    return [
        {name: c.values[i] for name, c in columns.items() if c.values[i] is not None}
        for i in range(count)
    ]


def scalar(value: Any) -> bool | int | float | str | None:
    """Return a value that is none of Python's scalars as JSON text."""
    value = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, allow_nan=False, default=str)


def _columns(items: Sequence[Mapping[Any, Any]], kinds: Mapping[str, type]) -> dict[str, Column]:
    names = dict.fromkeys([*kinds, *(str(name) for item in items for name in item)])
    columns = {}
    for name in names:
        values = [scalar(item.get(name)) for item in items]
        kind = _kind({type(v) for v in values if v is not None}, kinds.get(name))
        if kind is not None:
            columns[name] = Column(kind, [None if v is None else kind(v) for v in values])
    return columns


def _kind(kinds: set[type], otherwise: type | None) -> type | None:
    if not kinds:
        return otherwise
    if kinds == {int, float}:
        return float
    return kinds.pop() if len(kinds) == 1 else str
