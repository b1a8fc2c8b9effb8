"""Reduced graphs of texts: heads and neurons by position, the embeddings, all of them named."""

import numpy as np
import pytest
from helpers import language_models

import nrm_graph as ng
from nrm_graph.graphs.formats.attribution_json import attribution_graph
from nrm_graph.graphs.formats.columns import flat


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    folder = language_models.save(tmp_path_factory.mktemp("lm") / "gpt2", "gpt2", n_layer=2)
    lm = ng.load_model(f"hf:{folder}")
    return ng.measure(lm, "The capital of France is", target=" is", against=" the", dtype="float64")


def test_heads_neurons_and_embeddings_stand_at_their_tokens(m):
    graph = m.reduced(nodes=60).graph()
    tokens = list(m.tokens)
    units = [(node, data) for node, data in graph.nodes(data=True) if data["unit"] >= 0]
    layers = {node[0] for node, _ in units}
    assert "transformer.wte" in layers
    assert {name for name in layers if name.endswith("attn.attention")}
    assert {name for name in layers if name.endswith("mlp.c_fc")}
    for (layer, unit), data in units:
        if layer == m.topology.output.name:
            continue
        place = data["token_index"]
        assert data["token"] == tokens[place]
        A, whole = ng.Layer(layer), m.topology.layer(layer)
        if whole.kind == "embedding":
            event, name = A[unit], f"token {unit} {tokens[unit]!r}"
        elif whole.kind == "attention":
            head = unit // whole.shape[1]
            event, name = A[head, place], f"head {head}, token {place} {tokens[place]!r}"
        else:
            feature = unit % whole.shape[1]
            event, name = A[place, feature], f"neuron {place}, {feature} {tokens[place]!r}"
        assert (data["event"], data["name"]) == (repr(event), name)
        assert data["relevance"] == pytest.approx(m(event), rel=1e-9, abs=1e-12)


def test_the_laws_hold_and_the_target_sums_to_one(m):
    report = m.reduced(nodes=60).report().to_pylist()
    assert max(row["out_of"] for row in report if row["out_of"] is not None) < 1e-9
    assert max(row["into"] for row in report if row["into"] is not None) < 1e-9
    assert report[0]["relevance"] == pytest.approx(1.0, abs=1e-12)


def test_what_is_asked_for_is_kept(m):
    names = {n[0] for n in m.reduced(nodes=20, by="layer").graph()}
    assert "transformer.wte" in names
    plain = m.reduced("transformer.h.0.attn.attention", nodes=None)
    by_position = m.reduced("transformer.h.0.attn.attention", by="position", nodes=None)
    mix = m.topology.layer("transformer.h.0.attn.attention")
    assert len(plain.nodes) == 2 + mix.n_neurons  # the target's two, and single neurons
    assert len(by_position.nodes) == 2 + np.prod(mix.shape[:2])


def test_the_columns_of_an_attribution_graph_are_the_tokens(m):
    graph = attribution_graph(flat(m.reduced(nodes=60).graph()))
    columns = graph["metadata"]["prompt_tokens"]
    assert [token for token in columns if token in m.tokens] == sorted(
        (token for token in set(columns) & set(m.tokens)), key=m.tokens.index
    )
    assert {"The", " is"} <= set(columns)
