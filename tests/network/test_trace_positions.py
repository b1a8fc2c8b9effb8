"""Language models whose positions, or the place they answer for, are computed from token ids."""

from __future__ import annotations

import pytest
import torch
import transformers

import nrm_graph as ng
from nrm_graph.network.tracing.trace import trace

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
IDS = torch.tensor([[5, 7, 3, 2]])
OTHERS = (torch.tensor([[6, 2, 1, 1]]), torch.tensor([[2, 9, 4, 1]]))


def build(name, kind="float64", **options):
    torch.manual_seed(0)
    model = getattr(transformers, name)
    config = model.config_class(
        **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} | options
    )
    model = model(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.to(getattr(torch, kind))


def answers(model, given, output, target, tolerance=1e-5):
    """The program of the first input answers as the model does at others, and conserves."""
    program = trace(model, given[0], output)
    for x in given:
        with torch.no_grad():
            value = model(**x)[output][0]
        own = float(value[target] if value.ndim > 1 else value[target[-1]])
        place = target if value.ndim > 1 else target[-1]
        m = ng.measure(program, x, target=place, composite="attn_lrp", dtype="float64")
        assert m.logit == pytest.approx(own, rel=tolerance, abs=tolerance)
        for layer in m.topology.layers:
            assert m.cut(layer.name).total == pytest.approx(1, abs=1e-6), layer.name
    return m


def test_positions_counted_from_the_ids():
    model = build("RobertaForMaskedLM", **SIZES)
    m = answers(model, [{"input_ids": ids} for ids in (IDS, *OTHERS)], "logits", (2, 1))
    assert [layer.name for layer in m.topology.inputs] == [
        f"roberta.embeddings.{name}_embeddings" for name in ("word", "token_type", "position")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output", "options"),
    [
        ("GPT2ForSequenceClassification", "logits", {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("CLIPTextModel", "pooler_output", SIZES),
        ("MPNetForMaskedLM", "logits", SIZES),
    ],
)
def test_more_models(name, output, options):
    options = options | {"vocab_size": 20}
    answers(build(name, **options), [{"input_ids": i} for i in (IDS, *OTHERS)], output, (2, 1))


@pytest.mark.slow
def test_given_positions():
    model = build("LlamaForCausalLM", "float32", num_key_value_heads=1, **SIZES)
    x = [{"input_ids": IDS, "position_ids": torch.arange(4)[None] + i} for i in (0, 3)]
    answers(model, x, "logits", (2, 1), 1e-4)


@pytest.mark.slow
def test_a_mask_of_ones_in_the_type_of_the_values():
    options = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1]}
    model = build("FunnelForMaskedLM", "float32", vocab_size=20, **options)
    answers(model, [{"input_ids": i} for i in (IDS, OTHERS[0])], "logits", (2, 1), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BertForMaskedLM", SIZES),
        ("RobertaForMaskedLM", SIZES),
        ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("LlamaForCausalLM", SIZES | {"num_key_value_heads": 1}),
        ("T5EncoderModel", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}),
    ],
)
def test_half_precision_with_a_mask(name, options, implementation, kind):
    model = build(name, kind, **options | {"vocab_size": 20})
    model.set_attn_implementation(implementation)
    output = "last_hidden_state" if name.startswith("T5") else "logits"
    x = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    program = trace(model, x, output)
    m = ng.measure(program, x, target=(2, 1), composite="attn_lrp")
    with torch.no_grad():
        expected = model.float()(**x)[output][0, 2, 1]
    assert m.logit == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    assert m.cut(m.topology.inputs[0].name).total == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LlamaForCausalLM", SIZES | {"num_key_value_heads": 1}), ("RobertaForMaskedLM", SIZES)],
)
def test_embeddings_as_the_input(name, options, kind):
    model = build(name, kind, **options)
    x = {"inputs_embeds": model.get_input_embeddings()(IDS).detach()}
    m = ng.measure(model, x, target=(2, 1), composite="attn_lrp", output="logits")
    with torch.no_grad():
        expected = model.float()(inputs_embeds=x["inputs_embeds"].float()).logits[0, 2, 1]
    assert m.logit == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    assert [layer.name for layer in m.topology.inputs] == ["inputs_embeds"]
