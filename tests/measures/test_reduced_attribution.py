"""Reduced graphs as attribution JSON: valid by the schema, and with the numbers of their tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import reduced
from helpers.attribution_schema import valid
from helpers.transformer_networks import IDS, drawn

import nrm_graph as ng
from nrm_graph.graphs.formats import write_graph

if TYPE_CHECKING:
    from pathlib import Path

    from nrm_graph.measures.reduced.reduced import Reduced

torch.set_num_threads(1)


def written(r: Reduced, top: int | None, folder: Path) -> dict:
    (path,) = write_graph(r.graph(top), folder / "g.attribution.json")
    data = json.loads(path.read_text())
    valid(data)
    return data


def check_tables(r: Reduced, data: dict) -> None:
    """All steps and ends are links between the nodes that they lead to."""
    names = [layer.name for layer in r.topology.layers]
    known = {n["node_id"]: (n["nrm_graph"]["layer"], n["nrm_graph"]["unit"]) for n in data["nodes"]}
    links = {
        (known[link["source"]], known[link["target"]]): link["weight"] for link in data["links"]
    }
    rows = [*r.edges.to_pylist(), *r.ends.to_pylist()]
    assert links == {
        ((names[e["src_layer"]], e["src_unit"]), (names[e["dst_layer"]], e["dst_unit"])): (
            e["relevance"]
        )
        for e in rows
    }
    weights = {(names[n["layer_id"]], n["unit"]): n["relevance"] for n in r.nodes.to_pylist()}
    held = {known[n["node_id"]]: n["nrm_graph"]["relevance"] for n in data["nodes"]}
    assert {node: value for node, value in held.items() if node[1] >= 0} == weights
    ends = {node[1] for node in held if node[1] < 0}
    assert ends == set(r.ends["src_unit"].to_pylist())


@pytest.mark.smoke
@pytest.mark.parametrize("top", [None, 12])
@pytest.mark.parametrize("target", [0, {0: 1.0, 2: -1.0}])
def test_of_an_image_network(tmp_path: Path, top: int | None, target) -> None:
    x = reduced.Images(1).images[0]
    m = ng.measure(reduced.program(), x, target=target)
    for measure in (m, m.given(reduced.EVENT)):
        r = measure.reduced(reduced.WATCH[:2], reduced.BY)  # no input: some walks end in it
        data = written(r, top, tmp_path)
        logits = [n for n in data["nodes"] if n["feature_type"] == "logit"]
        assert {n["feature"] for n in logits} == ({0} if target == 0 else {0, 2})
        if top is None:
            check_tables(r, data)
            absorbed = [n for n in data["nodes"] if n["feature_type"] == "mlp reconstruction error"]
            assert "input not watched" in {n["clerp"].split(": ")[1] for n in absorbed}


def test_of_a_transformer(tmp_path: Path) -> None:
    tokens = ("a", "b", "a", "c", "b")
    m = ng.measure(
        drawn("gpt2", n_layer=1),
        IDS[:1],
        target=1,
        composite="attn_lrp",
        tokens=tokens,
        dtype="float64",
    )
    for by in ("token", "feature"):
        r = m.reduced(["model.transformer.h.?", "model.transformer.wte"], by, nodes=12)
        data = written(r, None, tmp_path)
        check_tables(r, data)
        shown = data["metadata"]["prompt_tokens"]
        assert (shown[0], shown[-1]) == ("(absorbed)", "(units)")
        of_tokens = [n for n in data["nodes"] if "token" in n["nrm_graph"]]
        assert bool(of_tokens) == (by == "token")
        for n in of_tokens:
            assert shown[n["ctx_idx"]] == n["nrm_graph"]["token"] in tokens
        written(r, 9, tmp_path)
