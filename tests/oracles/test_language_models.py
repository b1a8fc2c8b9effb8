"""Language models from their folders against independent implementations, float64.

autolrp works on the autograd graph, ``attention_gradients`` on a backward pass of its own.  Of
autolrp the rules of ``adapted_autolrp`` are replaced (sums and biases share by value instead of
magnitude, gated products half and half or all to the signal, LayerNorm is centred), and GPT-2 has a
GELU of one operation, for it takes the steps of ``gelu_new`` apart.  Both oracles take the model
as transformers itself loads the folder, and ids as its tokenizer gives them; positions and types
are the model's, the row of the answer is the test's own.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import language_models
from helpers.language_models import FAMILIES, MASKED
from helpers.transformer_networks import tiny
from reference import adapted_autolrp, attention_gradients
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the oracles: hooks and deprecations

GRADIENTS = {"attn_lrp": (False, False), "cp_lrp": (True, False), "relp": (True, True)}
"""Whether attention weights are detached, and whether products are halved all the same."""

KINDS = ["gpt2", "llama", "gemma3", "qwen3", "gpt_neox", "bert", "modernbert"]
"""Positions added or turned, grouped keys, windows, norms of queries, parallel branches, gates."""

PADDED = 11
TARGET, AGAINST = " Paris", " London"
MUCH = 1e-9
"""Of the layer's largest: stabilisers of 1e-14 over denominators that may be as small as 1e-5."""


class AtPlace(nn.Module):
    """A weighted sum of the logits at one place of a text, from ids or from embedded tokens."""

    def __init__(self, model: nn.Module, place: int, weights: torch.Tensor) -> None:
        super().__init__()
        self.model, self.place, self.weights = model, place, weights

    def forward(self, x):
        given = {"inputs_embeds": x} if x.is_floating_point() else {"input_ids": x}
        return self.model(**given).logits[:, self.place] @ self.weights


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A folder as the package loads it, and as transformers does."""

    family: str
    lm: Any
    model: nn.Module
    tokenizer: Any

    @property
    def text(self) -> str:
        return language_models.text(self.family)

    @property
    def ids(self) -> torch.Tensor:
        return self.tokenizer(self.text, return_tensors="pt")["input_ids"]

    @property
    def place(self) -> int:
        ids = self.ids[0].tolist()
        last = len(ids) - 1
        return ids.index(self.tokenizer.mask_token_id) if self.family in MASKED else last

    def weights(self, against: str | None) -> dict[int, float]:
        kind = FAMILIES[self.family][1]
        space = "\u2581" if kind == "spaces" else "\u0120"
        names = [TARGET] if against is None else [TARGET, against]
        words = [name.strip().lower() if kind == "words" else space + name[1:] for name in names]
        vocabulary = self.tokenizer.get_vocab()
        return dict(zip([vocabulary[word] for word in words], (1.0, -1.0), strict=False))

    def answer(self, against: str | None) -> AtPlace:
        weights = torch.zeros(self.model.config.vocab_size, 1, dtype=torch.float64)
        for token, weight in self.weights(against).items():
            weights[token] = weight
        return AtPlace(self.model, self.place, weights)


@functools.cache
def loaded(family: str, **options: Any) -> Loaded:
    import transformers

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / family
        language_models.save(folder, family, torch.float64, **options)
        cls = getattr(transformers, FAMILIES[family][0])
        return Loaded(
            family,
            ng.load_model(f"hf:{folder}"),
            cls.from_pretrained(folder).eval(),
            transformers.AutoTokenizer.from_pretrained(folder),
        )


def rules(composite: str) -> Any:
    return tiny(getattr(ng.composites, composite)())


def marginal(m: ng.Measure, layer: Any, own: int) -> np.ndarray:
    """Relevance of a layer at a text's own positions; behind them it must be nothing at all."""
    values = np.asarray(m.marginal(layer.name, by="neuron")).reshape(layer.shape)
    for axis, size in enumerate(layer.shape):
        if size == PADDED:
            values, behind = np.split(values, [own], axis)
            assert not behind.any(), layer.name
    return values


def agree(m: ng.Measure, expected: dict[str, torch.Tensor], text: Loaded) -> set[str]:
    """Compare every layer; those that the oracle does not have are returned, by name."""
    lacking = set()
    layers = m.topology.layers
    for before, layer in zip((layers[0], *layers), layers, strict=False):
        # The row that is answered for is a layer of its own, and so is the answer.
        source = before if layer.kind == "output" or layer.name.endswith(".sum") else layer
        paths = [f"model.{path}" for path in (source.name, *source.aliases)]
        values = marginal(m, layer, text.ids.shape[1])
        for path in paths:
            if path not in expected:
                continue
            there = expected[path][0].numpy()
            if there.shape != values.shape:  # computed for the place alone
                elsewhere = np.delete(there, text.place, axis=0)
                assert not elsewhere.any(), path
                there = there[text.place].reshape(values.shape)
            atol = MUCH * np.abs(there).max()
            np.testing.assert_allclose(values, there, rtol=0, atol=atol, err_msg=path)
        if not any(path in expected for path in paths):
            lacking.add(layer.name)
    return lacking


def compare_with_gradients(m: ng.Measure, composite: str, text: Loaded) -> None:
    """At every layer; what no gradient reaches has no relevance at all."""
    leaf = f"model.{m.topology.inputs[0].name}"
    network = text.answer(AGAINST)
    expected = attention_gradients.relevance(
        network, [text.ids], 0, (leaf,), *GRADIENTS[composite], within=True
    )
    assert expected[leaf].any()
    lacking = agree(m, expected, text)
    assert composite != "attn_lrp" or not lacking
    for layer in m.topology.layers:
        if layer.name in lacking:
            assert not marginal(m, layer, text.ids.shape[1]).any(), layer.name


def measured(text, composite, against):
    options = {"composite": rules(composite), "dtype": "float64"}
    return ng.measure(text.lm, text.text, target=TARGET, against=against, **options)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f == "gpt2" else pytest.mark.slow) for f in KINDS]
)
def test_gradient_times_input_at_every_layer(family):
    text = loaded(family)
    for composite in GRADIENTS:
        m = measured(text, composite, AGAINST)
        compare_with_gradients(m, composite, text)


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_padded_texts_have_the_gradients_of_the_text_alone(family):
    text = loaded(family)
    padded = text.tokenizer(
        text.text,
        padding="max_length",
        max_length=PADDED,
        padding_side="right",
        return_tensors="pt",
    )
    assert padded["attention_mask"].sum() == text.ids.shape[1] < PADDED
    x = {name: padded[name][0] for name in ("input_ids", "attention_mask")}
    for composite in GRADIENTS:
        m = ng.measure(
            text.lm.program(PADDED),
            x,
            target=text.weights(AGAINST),
            composite=rules(composite),
            dtype="float64",
        )
        assert m.topology.inputs[0].shape[0] == PADDED
        compare_with_gradients(m, composite, text)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param("gpt2", {"activation_function": "gelu"}, marks=pytest.mark.slow),
        pytest.param("llama", {}, marks=pytest.mark.slow),
        ("bert", {}),
    ],
)
def test_autolrp_at_every_module(family, options):
    import autolrp

    text = loaded(family, **options)
    presets = {
        "attn_lrp": autolrp.ATTNLRP | {"MulBackward": adapted_autolrp.halved},
        "cp_lrp": autolrp.CPLRP | {"MulBackward": adapted_autolrp.open_gates},
    }
    x = text.model.get_input_embeddings()(text.ids).detach()
    for composite, preset in presets.items():
        theirs = preset | adapted_autolrp.BY_VALUE
        for against in (None, AGAINST):
            m = measured(text, composite, against)
            expected = adapted_autolrp.relevance(text.answer(against), x, 0, theirs)
            expected[f"model.{m.topology.inputs[0].name}"] = expected.pop("x")
            lacking = agree(m, expected, text)
            modules = {"embedding", "dense", "layer_norm", "rms_norm"}
            owned = {layer.name for layer in m.topology.layers if layer.kind in modules}
            assert not owned & lacking
