"""Graphs as CSV files for ``neo4j-admin database import``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.graphs.formats.columns import Column, Flat, node_id, scalar
from nrm_graph.network.topology import PSEUDO_UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nrm_graph.graphs.formats.columns import Node

SUFFIX = ".neo4j.csv"
_PLACE = re.compile(r"\d+(, \d+)*")
_KINDS = {bool: "boolean", int: "long", float: "double", str: "string"}


def neo4j(graph: Flat, path: Path) -> dict[Path, bytes]:
    """Encode the files of :func:`parts`, with headers as the importer of Neo4j 4 and 5 wants them.

    ``neo4j-admin database import full neo4j --nodes=NAME.nodes.csv --nodes=NAME.graph.csv
    --relationships=NAME.relationships.csv`` reads them; add ``--multiline-fields=true`` where a
    name holds a line break.

    * A unit is a node ``layer:unit`` with the label ``Unit``; a pseudo-unit has the labels
      ``Pseudo`` and ``Bias``, ``Stabilizer``, ``Remainder`` or ``Pruned``.  ``position`` is an
      array of integers.
    * An edge is a relationship ``FLOWS_TO`` from the input's side to the output's.
    * What the graph holds about itself is one node with the label ``Graph``: lists of numbers or
      texts are arrays, anything else with parts is JSON text.

    Text is always quoted and numbers never are; an empty field is an absent value.

    Raises
    ------
    InputError
        If a name of an attribute holds ``:`` or a text of a list holds ``;``, by which the
        importer would divide it.
    """
    nodes: dict[str, Sequence[str]] = {
        ":ID": [_text(node_id(node)) for node in graph.nodes],
        ":LABEL": [_label(node) for node in graph.nodes],
        "layer:string": [_text(layer) for layer, _ in graph.nodes],
        "unit:long": [str(unit) for _, unit in graph.nodes],
    }
    of_nodes = {k: v for k, v in graph.of_nodes.items() if k not in ("layer", "unit")}
    nodes |= _fields(of_nodes, path)
    edges: dict[str, Sequence[str]] = {
        ":START_ID": [_text(node_id(src)) for src, _ in graph.edges],
        ":END_ID": [_text(node_id(dst)) for _, dst in graph.edges],
        ":TYPE": ["FLOWS_TO"] * len(graph.edges),
    }
    edges |= _fields(graph.of_edges, path)
    # The only node without a colon in its ID.
    facts: dict[str, Sequence[str]] = {":ID": ["graph"], ":LABEL": ["Graph"]}
    for name, value in graph.facts.items():
        if value is not None:
            facts |= _fact(name, value, path)
    files = {}
    for part, columns in zip(parts(path), (nodes, edges, facts), strict=True):
        lines = [",".join(map(_header, columns)), *map(",".join, zip(*columns.values()))]  # noqa: B905
        files[part] = ("\n".join(lines) + "\n").encode()
    return files


def parts(path: Path) -> list[Path]:
    """Return the files that a path ``NAME.neo4j.csv`` stands for."""
    stem = path.name[: -len(SUFFIX)]
    return [path.with_name(f"{stem}.{part}.csv") for part in ("nodes", "relationships", "graph")]


def _text(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else repr(value)


def _header(name: str) -> str:
    return _text(name) if set(name) & set(',"\n\r') else name


def _label(node: Node) -> str:
    if node[1] >= 0:
        return "Unit"
    return f"Pseudo;{PSEUDO_UNITS[node[1]].capitalize()}" if node[1] in PSEUDO_UNITS else "Pseudo"


def _checked(name: str, path: Path) -> str:
    if ":" in name or not name:
        raise InputError(
            f"cannot write {path}: Neo4j wants names of attributes without ':', found {name!r}; "
            "rename it"
        )
    return name


def _fields(columns: Mapping[str, Column], path: Path) -> dict[str, Sequence[str]]:
    fields: dict[str, Sequence[str]] = {}
    for name, column in columns.items():
        if name == "position" and all(v is None or _PLACE.fullmatch(v) for v in column.values):
            values = ["" if v is None else v.replace(", ", ";") for v in column.values]
            fields["position:int[]"] = values
        else:
            fields[f"{_checked(name, path)}:{_KINDS[column.kind]}"] = [*map(_value, column.values)]
    return fields


def _fact(name: str, value: Any, path: Path) -> dict[str, Sequence[str]]:
    name = _checked(name, path)
    for kind in (str, int, float):
        if isinstance(value, list) and value and all(type(item) is kind for item in value):
            for item in value:
                if kind is str and (";" in item or not item):
                    raise InputError(
                        f"cannot write {path}: {item!r} among the {name} cannot be one item of an "
                        "array of Neo4j, which ';' divides; choose .graphml or .parquet"
                    )
            items = ";".join(item if kind is str else repr(item) for item in value)
            return {f"{name}:{_KINDS[kind]}[]": [_text(items) if kind is str else items]}
    value = scalar(value)
    return {f"{name}:{_KINDS[type(value)]}": [_value(value)]}
