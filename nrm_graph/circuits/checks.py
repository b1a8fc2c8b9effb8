"""Refusals of what statistics over circuits cannot take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from nrm_graph.store.view import View


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises
    ------
    InputError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, found {value!r}")


def check_circuit(graph: object, db: View) -> None:
    """Refuse what is no graph of relevance, or of another network than a store's.

    Raises
    ------
    InputError
        If it is no directed graph, a node is no (layer name, unit), an edge has no relevance, or
        ``graph["program"]`` says that it was computed from another network.
    """
    import networkx as nx

    if not isinstance(graph, nx.DiGraph):
        raise InputError(f"expected a circuit as db.circuit() returns it, found {graph!r}")
    for node in graph:
        is_pair = isinstance(node, tuple) and len(node) == 2 and isinstance(node[0], str)
        if not (is_pair and isinstance(node[1], int | np.integer)):
            raise InputError(f"a circuit's nodes are (layer name, unit), found {node!r}")
    for src, dst, relevance in graph.edges(data="relevance"):
        if relevance is None:
            raise InputError(f"the edge from {src!r} to {dst!r} has no relevance")
    program, own = graph.graph.get("program"), db.meta["program_hash"]
    if program not in (None, own):
        raise InputError(
            f"the circuit is of another network (program {str(program)[:12]}) than {db.path.name} "
            f"(program {own[:12]}): compute it from this store, or delete graph['program'] to test "
            "whether it transfers"
        )


def checked_layers(names: object) -> list[str]:
    """Refuse what is no list of at least one layer's name.

    Raises
    ------
    InputError
        If it is not; whether there are such layers is not looked at.
    """
    if isinstance(names, str) or not isinstance(names, Iterable) or not (layers := list(names)):
        raise InputError(f"layers must be a list of names of layers, found {names!r}")
    return layers
