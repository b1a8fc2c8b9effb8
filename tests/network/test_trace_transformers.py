"""Language models of ``transformers``: token ids, masks, norms and activations written out."""

from __future__ import annotations

import functools
from itertools import product

import pytest
import torch
from helpers.traced import kinds, same, sources
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import nrm_graph as ng
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace


def gpt2(layers=2):
    config = GPT2Config(
        vocab_size=20,
        n_positions=12,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel, config, "logits"


def bert(layers=2):
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    return BertModel, config, "last_hidden_state"


def llama(layers=2):
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=12,
    )
    return LlamaForCausalLM, config, "logits"


def build(how, implementation, layers=2):
    kind, config, output = how(layers)
    config._attn_implementation = implementation
    torch.manual_seed(0)
    model = kind(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model, output


def tokens(masked):
    torch.manual_seed(1)
    found = {"input_ids": torch.randint(0, 20, (3, 5))}
    if masked:
        found["attention_mask"] = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    return found


QUICK = [(bert, "sdpa", False, 1), (llama, "sdpa", True, 1)]
ALL = list(product((gpt2, bert, llama), ("eager", "sdpa"), (True, False), (2,)))


@functools.cache
def traced(how, implementation, masked, layers=2):
    model, output = build(how, implementation, layers)
    # Llama computes its norms in float32, whatever its weights are.
    return same(model, tokens(masked), output, 1e-6 if how is llama else 1e-12)


@pytest.mark.parametrize(
    ("how", "implementation", "masked", "layers"),
    [
        pytest.param(
            *case,
            id=f"{case[0].__name__}-{case[1]}-{'mask' if case[2] else 'ids'}-{case[3]}",
            marks=[] if case in QUICK else [pytest.mark.slow],
        )
        for case in [*QUICK, *ALL]
    ],
)
def test_language_models(how, implementation, masked, layers):
    program = traced(how, implementation, masked, layers)
    assert program.integers == tuple(tokens(masked))
    found = kinds(program)
    assert [layer.kind for layer in layout(program).topology.inputs] == ["embedding"]
    attention = [name.removesuffix(".attention") for name, k in found.items() if k == "attention"]
    assert len(attention) == layers
    assert all(found[f"{name}.attention_weights"] == "softmax" for name in attention)
    expected = {"embedding", "dense", "sum", "product", "softmax", "attention"}
    expected |= {"rms_norm", "gate"} if how is llama else {"layer_norm"}
    assert set(found.values()) == expected


@pytest.mark.slow
def test_names_of_gpt2():
    program = traced(gpt2, "eager", True)
    found = layout(program).topology
    assert found.inputs[0].name == "transformer.wte"
    assert found.inputs[0].shape == (5, 16)
    assert found.layer("transformer.h.0.mlp.act").name == "transformer.h.0.mlp.c_fc"
    assert found.output.name == "lm_head"
    assert "constant.transformer.wpe.weight" in program.weights
    assert sources(program, "transformer.add") == ["transformer.wte"]


def test_names():
    program = traced(bert, "sdpa", False, 1)
    assert layout(program).topology.inputs[0].name == "embeddings.word_embeddings"
    assert "constant.embeddings.position_embeddings.weight" in program.weights
    assert "constant.embeddings.token_type_embeddings.weight" in program.weights
    program = traced(llama, "sdpa", True, 1)
    assert {"model.layers.0.input_layernorm", "model.layers.0.mlp.gate"} <= set(kinds(program))


@pytest.mark.slow
def test_left_padding_hides_rows_as_a_whole():
    ids, (model, output) = tokens(False), build(llama, "sdpa")
    ids["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1]])
    same(model, ids, output, 1e-6)


@pytest.mark.slow
def test_ids_without_batch_axis_and_a_choice_of_outputs():
    model, _ = build(bert, "sdpa")
    ids = tokens(False)["input_ids"]
    with pytest.raises(ng.InputError, match=r"state of shape \(1, 5, 16\), pooler_output of shape"):
        trace(model, ids[0])
    program = trace(model, ids[0], output="pooler_output")
    assert program.inputs == (("input_ids", (5,)),)
    assert program.outputs == (("pooler_output", (16,)),)
    assert layout(program).topology.output.name == "pooler.dense"
    both = same(model, ids, ["last_hidden_state", "pooler_output"])
    assert both.outputs == (("last_hidden_state", (5, 16)), ("pooler_output", (16,)))
    assert layout(both).topology.output.shape == (96,)
    assert sources(both, "output") == ["encoder.layer.1.output.LayerNorm", "pooler.dense"]
    with pytest.raises(ng.InputError, match="there is no output 'logits'"):
        trace(model, ids[0], output="logits")


def test_a_token_id_out_of_range_is_refused_when_run():
    from nrm_graph.network.ir.interpreter import run

    ids = torch.full((1, 5), 20)
    with pytest.raises(ng.InputError, match="a token id is 20, but the embedding has 20 rows"):
        run(traced(bert, "sdpa", False, 1), ids)
