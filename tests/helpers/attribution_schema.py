"""What an attribution graph must be for the schema and the viewer that read it."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

TEXT, NUMBER = {"type": "string"}, {"type": "number"}
SCHEMA = {  # as https://www.neuronpedia.org/graph/validator and circuit-tracer require it
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "transcoder_list", "prompt_tokens", "prompt"],
            "properties": {
                "slug": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"},
                "scan": TEXT,
                "prompt": TEXT,
                "prompt_tokens": {"type": "array", "items": TEXT, "minItems": 2},
                "transcoder_list": {"type": "array", "items": TEXT},
                "node_threshold": NUMBER,
                "schema_version": {"const": 1},
                "info": {"type": "object"},
                "generation_settings": {"type": "object"},
            },
        },
        "qParams": {
            "type": "object",
            "required": ["pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"],
            "properties": {
                "pinnedIds": {"type": "array", "items": TEXT},
                "supernodes": {"type": "array", "items": {"type": "array", "items": TEXT}},
                "linkType": {"const": "both"},
                "clickedId": TEXT,
                "sg_pos": TEXT,
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "node_id",
                    "feature",
                    "layer",
                    "ctx_idx",
                    "feature_type",
                    "jsNodeId",
                    "clerp",
                ],
                "properties": {
                    "node_id": TEXT,
                    "feature": {"type": "integer"},
                    "layer": {"type": "string", "pattern": "^(E|[0-9]+)$"},
                    "ctx_idx": {"type": "integer", "minimum": 0},
                    "feature_type": {
                        "enum": [
                            "cross layer transcoder",
                            "mlp reconstruction error",
                            "embedding",
                            "logit",
                        ],
                    },
                    "token_prob": NUMBER,
                    "is_target_logit": {"type": "boolean"},
                    "run_idx": {"type": "integer"},
                    "reverse_ctx_idx": {"type": "integer"},
                    "jsNodeId": TEXT,
                    "clerp": TEXT,
                    "influence": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                    "activation": {"type": ["number", "null"]},
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {"source": TEXT, "target": TEXT, "weight": NUMBER},
            },
        },
    },
}


def valid(data: dict[str, Any]) -> None:
    """Check what the schema and the viewer of circuit-tracer rely on."""
    jsonschema.validate(data, SCHEMA)
    tokens = data["metadata"]["prompt_tokens"]
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {end for link in data["links"] for end in (link["source"], link["target"])} <= set(ids)
    seen: dict[tuple[Any, ...], int] = {}
    for node in data["nodes"]:
        assert node["ctx_idx"] < len(tokens)
        key = node["layer"], node["feature"], node["ctx_idx"]
        seen[key] = seen.get(key, 0) + 1
        if node["feature_type"] == "logit":  # the viewer reads p from the label
            assert float(node["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(
                node["token_prob"], abs=5e-4
            )
    # The viewer hides a feature that stands at more than two thirds of the tokens.
    assert max(seen.values(), default=0) <= len(tokens) * 2 / 3
