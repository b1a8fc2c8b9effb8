"""Promised families, in float64: padding changes nothing, laws hold, positions are constants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import language_models
from helpers.language_models import FAMILIES, MASKED

import nrm_graph as ng
from nrm_graph.network.text_positions import position_axes

torch.set_num_threads(1)

FAST = ("gpt2", "bert")
"""Families of the default run."""

CASES = [
    pytest.param((family, attention), marks=() if fast else pytest.mark.slow)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    for fast in [family in FAST and attention == "sdpa"]
]

CONSTANTS = {
    "gpt2": "transformer.wpe.weight",
    "bert": "bert.embeddings.position_embeddings.weight",
    "roberta": "roberta.embeddings.position_embeddings.weight",
    "distilbert": "distilbert.embeddings.position_embeddings.weight",
}
"""Where a family keeps its positions as an embedding; the others turn queries and keys."""

PADDED = 11
MUCH = 1e-9


@pytest.fixture
def loaded(request, tmp_path):
    """A family from its folder, with the attention that is asked for."""
    family, attention = request.param
    folder = language_models.save(tmp_path / family, family, torch.float64)
    lm = ng.load_model(f"hf:{folder}")
    lm.module.set_attn_implementation(attention)
    return family, lm


def own(m, layer, length):
    """Relevance of a layer's neurons, and how much of it lies beyond a text's own positions."""
    values = m.marginal(layer.name, by="neuron").reshape(layer.shape)
    beyond = 0.0
    for axis in position_axes(layer.shape, PADDED):
        kept, rest = np.split(values, [length], axis)
        beyond, values = max(beyond, np.abs(rest).max(initial=0.0)), kept
    return values, beyond


def at_length(lm, encoded, length):
    x = encoded.inputs(length, lm.reader.pad)
    return ng.measure(lm.program(length), x, composite="attn_lrp")


def logits(lm, encoded):
    """Logits of the model itself at the text's own place, without padding."""
    with torch.no_grad():
        rows = lm.module(input_ids=torch.tensor([encoded.ids])).logits[0]
    return rows[encoded.ids.index(lm.reader.mask) if lm.head == "masked" else -1]


def lawful(m):
    for layer in m.topology.layers:
        assert m.cut(layer.name).total == pytest.approx(1, abs=MUCH), layer.name
    for row in m.reduced(nodes=30).report().to_pylist():
        assert abs(row["into"] or 0.0) < MUCH
        assert abs(row["out_of"] or 0.0) < MUCH


def same(m, padded, length):
    """A padded text has the numbers of the text alone, and nothing beyond it."""
    assert padded.logit == pytest.approx(m.logit, rel=1e-12)
    for mine, theirs in zip(m.topology.layers, padded.topology.layers, strict=True):
        values, beyond = own(padded, theirs, length)
        assert beyond == 0, theirs.name
        expected = m.marginal(mine.name, by="neuron").reshape(values.shape)
        np.testing.assert_allclose(values, expected, atol=MUCH, err_msg=mine.name)
    queries = [layer.name for layer in m.topology.layers if layer.name.endswith("q_proj")]
    watch = [m.topology.inputs[0].name, *queries]
    graphs = [one.reduced(watch, "feature", nodes=None) for one in (m, padded)]
    for name in ("nodes", "edges", "ends"):
        first, second = (numbers(getattr(graph, name)) for graph in graphs)
        for row in first.keys() | second.keys():  # a row that is exactly 0 is left out
            assert first.get(row, 0.0) == pytest.approx(second.get(row, 0.0), abs=MUCH), row
    means = [numbers(graph.nodes, "activation") for graph in graphs]
    assert means[0] == pytest.approx(means[1], abs=MUCH)


def numbers(table, column="relevance"):
    """A column by what the rows are of."""
    places = [name for name in table.column_names if name.endswith(("layer_id", "layer", "unit"))]
    rows = zip(*(table[name].to_pylist() for name in places), strict=True)
    return dict(zip(rows, table[column].to_pylist(), strict=True))


@pytest.mark.parametrize("loaded", CASES, indirect=True)
def test_promised_families(loaded):
    family, lm = loaded
    text = language_models.text(family)
    encoded = lm.reader.encode(text)
    length = len(encoded.ids)
    m = ng.measure(lm, text)
    # Rotations are of float32 in the model, and of the program's type here.
    answers = logits(lm, encoded)
    assert m.target == int(answers.argmax())
    assert m.logit == pytest.approx(float(answers.max()), rel=1e-6)
    assert m.start.dtype == torch.float64
    lawful(m)
    # Positions and types are constants: tokens alone are where walks end.
    assert [layer.kind for layer in m.topology.inputs] == ["embedding"]
    assert tuple(m.topology.inputs[0].shape) == (length, 16)
    names = {row["constant"] for row in m.constants().to_pylist()}
    assert CONSTANTS.get(family) in {*names, None}
    if family in ("bert", "roberta"):
        assert f"{family}.embeddings.token_type_embeddings.weight" in names
    padded = at_length(lm, encoded, PADDED)
    same(m, padded, length)
    if family in MASKED:
        return
    first = lm.reader.encode(text.split()[0])
    one = type(first)(first.ids[-1:], first.tokens[-1:])  # a text of one token
    alone = at_length(lm, one, 1)
    same(alone, at_length(lm, one, PADDED), 1)
    full = lm.reader.encode(text + " is" * (PADDED - length))
    assert len(full.ids) == PADDED
    whole = at_length(lm, full, PADDED)
    answers = logits(lm, full)
    assert whole.logit == pytest.approx(float(answers.max()), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "gemma3", "modernbert"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_that_are_hidden_as_a_whole(family, attention, tmp_path):
    """Behind a sliding window's end a position of padding sees nothing: no number is lost."""
    folder = language_models.save(tmp_path / family, family, torch.float64)
    lm = ng.load_model(f"hf:{folder}")
    lm.module.set_attn_implementation(attention)
    encoded = lm.reader.encode(language_models.text(family))
    padded = at_length(lm, encoded, 24)
    for name, value in padded.state.values.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert not value.isnan().any(), name
    assert padded.logit == pytest.approx(ng.measure(lm, language_models.text(family)).logit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "cls"),
    [
        ("gpt2", "GPT2ForSequenceClassification"),
        ("gpt_neox", "GPTNeoXForSequenceClassification"),
        ("llama", "LlamaForSequenceClassification"),
        ("mistral", "MistralForSequenceClassification"),
        ("qwen3", "Qwen3ForSequenceClassification"),
        ("gemma3", "Gemma3TextForSequenceClassification"),
        ("bert", "BertForSequenceClassification"),
        ("roberta", "RobertaForSequenceClassification"),
        ("distilbert", "DistilBertForSequenceClassification"),
        ("modernbert", "ModernBertForSequenceClassification"),
    ],
)
def test_classifiers(family, cls, tmp_path):
    folder = language_models.save(tmp_path / family, family, torch.float64, cls=cls, num_labels=3)
    lm = ng.load_model(f"hf:{folder}")
    assert lm.head == "classification"
    encoded = lm.reader.encode("The capital of France is")
    padded = at_length(lm, encoded, PADDED)
    with torch.no_grad():
        answers = lm.module(input_ids=torch.tensor([encoded.ids])).logits[0]
    assert padded.logit == pytest.approx(float(answers.max()), rel=1e-6, abs=1e-6)
    m = ng.measure(lm, "The capital of France is")
    same(m, padded, len(encoded.ids))
    lawful(m)
