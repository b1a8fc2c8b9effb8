"""Graphs as the JSON of attribution graphs, which circuit-tracer and Neuronpedia show."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from nrm_graph._version import __version__
from nrm_graph.graphs.formats.columns import Flat, rows
from nrm_graph.network.token_texts import text_of
from nrm_graph.network.topology import PSEUDO_UNITS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUFFIX = ".attribution.json"
ABSORBED, UNITS = "(absorbed)", "(units)"
"""First and last column of the picture, beside those of the input's units."""


def attribution(graph: Flat, path: Path) -> dict[Path, bytes]:
    """Encode what :func:`attribution_graph` returns as JSON."""
    text = json.dumps(attribution_graph(graph), allow_nan=False, indent=1, default=str)
    return {path: f"{text}\n".encode()}


def attribution_graph(graph: Flat) -> dict[str, Any]:
    """Map a graph of relevance to an attribution graph [1]_ [2]_.

    The format was made for prompts of language models.  Here its fields hold:

    ``metadata``
        ``prompt`` is the graph's title, the SQL condition of its group or its text;
        ``prompt_tokens`` are the columns of the picture: first ``(absorbed)``, then all tokens of
        a text whose units tell them apart, else one for each unit of the input that is in the
        graph (its token, else its name), last ``(units)``.  ``slug`` is made of the
        prompt and ``scan``, the model's name, is ``nrm-graph``: change both before an upload.
        ``node_threshold`` is 1, which shows every node, ``transcoder_list`` empty, and
        ``generation_settings`` is what the graph holds about itself.
    ``nodes``
        ``layer`` is ``E`` for the input, else the rank of the layer among those of the graph;
        ``ctx_idx`` the node's column: that of its token, of its own for a unit of the input, else
        the last one, or the first for what biases, stabilizers and remainders absorb.
        ``feature_type`` is ``logit`` for units of the deepest layer, which is the output unless
        it was left out; ``mlp reconstruction error`` for pseudo-units, which are like it what the
        units do not explain; ``embedding`` for the input; ``cross layer transcoder`` for all
        other units, neurons or channels, though nothing was transcoded.  ``feature`` is the
        Cantor pair of layer and unit, of an output its index, of a pseudo-unit its number below
        zero.  ``activation`` is the mean activation, null where it is not known.  ``influence``
        is the share of the sum of abs(relevance) that the node and all stronger ones of its layer
        hold, so that a threshold keeps the strongest of every layer.  ``token_prob``, and p in
        the label of an output, is the share of the target's relevance that starts there: 1 for
        a single output, and no probability.  ``clerp`` is the label.
    ``links``
        ``weight`` is the relevance, from the input's side to the output's.
    ``qParams``
        Nothing pinned, grouped or clicked.

    Nodes and links bear our own attributes as they are under ``nrm_graph``.

    Notes
    -----
    The viewer of circuit-tracer hides a feature that stands at more than two thirds of the
    prompt's tokens: with a single token it would hide everything.  Hence the two columns that are
    always there.  It reads p from the label of an output.

    References
    ----------
    .. [1] E. Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language
       Models", Transformer Circuits Thread (2025).
    .. [2] JSON schema of https://www.neuronpedia.org/graph/validator
    """
    attributes = rows(graph.of_nodes, len(graph.nodes))
    layers = _layers(graph, attributes)
    places, tokens = _columns(graph, attributes)
    influence = _influence(graph)
    deepest = max(layers.values(), default=0)
    outputs = [
        i for i, (layer, unit) in enumerate(graph.nodes) if unit >= 0 and layers[layer] == deepest
    ]
    outputs = [] if deepest == 0 else outputs
    starting = sum(attributes[i].get("relevance", 0.0) for i in outputs)
    nodes: list[dict[str, Any]] = []
    for i, ((layer, unit), data) in enumerate(zip(graph.nodes, attributes, strict=True)):
        rank = layers[layer] - 1  # hidden layers from 0; the input is E
        stage = str(rank) if rank >= 0 else "E"
        label = data.get("name", PSEUDO_UNITS.get(unit, f"unit {unit}"))
        node: dict[str, Any] = {
            "node_id": f"{stage}_{unit}_{places[i]}",
            "feature": _cantor(max(rank, 0), unit) if unit >= 0 else unit,
            "layer": stage,
            "ctx_idx": places[i],
            "feature_type": "cross layer transcoder",
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{stage}_{unit}-{places[i]}",
            "clerp": f"{layer}: {label}",
            "influence": influence[i],
            "activation": data.get("activation"),
            "nrm_graph": {**data, "layer": layer, "unit": unit},
        }
        if unit < 0:
            node["feature_type"] = "mlp reconstruction error"
        elif rank < 0:
            node |= {"feature_type": "embedding", "feature": unit}
        elif i in outputs:
            share = data.get("relevance", 0.0) / starting if starting else 0.0
            node |= {"feature_type": "logit", "feature": unit, "token_prob": share}
            node |= {"is_target_logit": True, "influence": None}
            text = data.get("output", label)
            node["clerp"] = f'Output "{_inside(text)}" (p={share:.3f})'
        nodes.append(node)
    return {
        "metadata": _metadata(graph, tokens),
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": _links(graph, [node["node_id"] for node in nodes]),
    }


def _metadata(graph: Flat, tokens: list[str]) -> dict[str, Any]:
    text = text_of([*map(str, graph.facts.get("tokens", ()))])
    title = graph.facts.get("title") or graph.facts.get("where") or text or "relevance"
    slug = "-".join(re.findall("[a-z0-9]+", str(title).lower()))[:60].strip("-")
    return {
        "slug": slug or "nrm-graph",
        "scan": "nrm-graph",
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": str(title),
        "node_threshold": 1.0,
        "schema_version": 1,
        "info": {
            "description": "Normalized relevance measure (arXiv:2606.00557) of a network's units.",
            "generator": {"name": "nrm-graph", "version": __version__},
        },
        "generation_settings": graph.facts,
    }


def _layers(graph: Flat, attributes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Rank of every layer by depth; inputs, and nothing else, have 0."""
    depths: dict[str, int] = {}
    for (layer, _), data in zip(graph.nodes, attributes, strict=True):
        depths[layer] = int(data.get("depth", 1))
    above = sorted((name for name in depths if depths[name] > 0), key=lambda n: (depths[n], n))
    return dict.fromkeys(depths, 0) | {name: i for i, name in enumerate(above, 1)}


def _columns(graph: Flat, attributes: Sequence[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """Column of every node, and the text below every column."""
    below: dict[tuple[str, int], str] = {}
    of_nodes: list[tuple[str, int] | None] = []
    for node, data in zip(graph.nodes, attributes, strict=True):
        column = None
        if node[1] >= 0 and "token_index" in data:
            column = "", int(data["token_index"])
            below[column] = str(data["token"])
        elif node[1] >= 0 and data.get("depth") == 0:
            column = node
            below[column] = str(data.get("name", f"unit {node[1]}"))
        of_nodes.append(column)
    if any(column[0] == "" for column in below):  # nodes that tell the tokens of a text apart
        below |= {("", i): str(token) for i, token in enumerate(graph.facts.get("tokens", ()))}
    order = {column: i for i, column in enumerate(sorted(below), 1)}
    units = len(order) + 1
    numbers = [
        0 if node[1] < 0 else units if column is None else order[column]
        for node, column in zip(graph.nodes, of_nodes, strict=True)
    ]
    return numbers, [ABSORBED, *(below[column] for column in order), UNITS]


def _influence(graph: Flat) -> list[float]:
    """Share of its layer's sum of abs(relevance) that a node and all stronger ones hold."""
    sizes = [abs(v or 0.0) for v in graph.of_nodes["relevance"].values]
    members: dict[str, list[int]] = defaultdict(list)
    for i, (layer, _) in enumerate(graph.nodes):
        members[layer].append(i)
    influence = [1.0] * len(sizes)
    for places in members.values():
        total, stronger = sum(sizes[i] for i in places), 0.0
        for i in sorted(places, key=lambda i: -sizes[i]):
            stronger += sizes[i]
            influence[i] = min(1.0, stronger / total) if total else 1.0
    return influence


def _cantor(layer: int, unit: int) -> int:
    return (layer + unit) * (layer + unit + 1) // 2 + unit


def _inside(label: object) -> str:
    """Text that the viewer finds again between quotes and before ``(p=``."""
    return str(label).replace('"', "'").replace("(p=", "(p =")


def _links(graph: Flat, ids: Sequence[str]) -> list[dict[str, Any]]:
    named = dict(zip(graph.nodes, ids, strict=True))
    links = []
    for (src, dst), data in zip(graph.edges, rows(graph.of_edges, len(graph.edges)), strict=True):
        ends = {"source": named[src], "target": named[dst]}
        links.append({**ends, "weight": data.get("relevance", 0.0), "nrm_graph": data})
    return links
