"""Weights in half precision: the numbers of float32, and never the whole network in it."""

from __future__ import annotations

import gc
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import language_models
from torch.utils._python_dispatch import TorchDispatchMode

import nrm_graph as ng
from nrm_graph.network.ir import held_weights
from nrm_graph.network.ir.finite import finite
from nrm_graph.network.ir.held_weights import HALF, HeldWeights
from nrm_graph.network.ir.interpreter import run
from nrm_graph.rules import Epsilon, Gamma, Softmax
from nrm_graph.rules.composite import composite

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model in bfloat16, and the same numbers in float32."""
    folder = tmp_path_factory.mktemp("hf")
    half = ng.load_model(f"hf:{language_models.save(folder / 'half', 'llama', torch.bfloat16)}")
    wide = ng.load_model(f"hf:{folder / 'half'}")
    wide.module.float()
    return half, wide


def wide_matrices():
    """Matrices of the network's sizes that are alive in float32 or float64."""
    gc.collect()
    sizes = {(132, 16), (24, 16), (16, 24), (16, 16), (8, 16)}
    kinds = (torch.float32, torch.float64)
    tensors = (x for x in gc.get_objects() if type(x) is torch.Tensor)
    return {x.data_ptr() for x in tensors if x.dtype in kinds and tuple(x.shape) in sizes}


def test_numbers_are_those_of_float32(pair):
    half, _ = pair
    m, n = (ng.measure(lm, TEXT) for lm in pair)
    assert m.logit == pytest.approx(n.logit, rel=1e-6)
    assert {p.dtype for p in half.module.parameters()} == {torch.bfloat16}
    for layer in m.topology.layers:
        np.testing.assert_allclose(
            m.marginal(layer.name), n.marginal(layer.name), atol=2e-5, err_msg=layer.name
        )
        assert m.cut(layer.name).total == pytest.approx(1, abs=1e-4)
    program = half.program(6)  # its identity is that of the numbers, however they are held
    assert program.hash() == replace(program, weights=dict(program.weights)).hash()


def test_no_two_layers_are_wide_at_once(pair):
    half, _ = pair
    program = half.program(6)
    assert isinstance(program.weights, HeldWeights)
    floats = [w for w in program.weights.values() if w.is_floating_point()]
    assert {w.dtype for w in floats} == {torch.float32}
    matrices = {n: w for n, w in program.weights.held.items() if w.ndim == 2 and w.shape[0] > 1}
    assert {w.dtype for n, w in matrices.items() if not n.startswith("constant.")} == {
        torch.bfloat16
    }
    # Memory is the module's own.
    own = {p.data_ptr() for p in half.module.parameters()}
    assert {w.data_ptr() for w in program.weights.held.values() if w.dtype in HALF} <= own
    before = wide_matrices()
    m = ng.measure(half, TEXT)
    first = m.reduced(nodes=5)
    assert m._unconditioned.known is None  # relevance of all neurons is let go of
    m.report()
    assert m.reduced(nodes=5).nodes == first.nodes
    assert m._unconditioned.known is not None  # and kept where it was there
    kernels = m.state.kernels
    narrow = [n for n, op in m.network.layout.weighings.items() if op.narrow]
    assert len(narrow) > 6
    assert len(kernels) <= 1
    assert not {name for name, _ in m.network.groups} & set(narrow)
    assert len(wide_matrices() - before) <= 2  # of the last kernel
    double = ng.measure(half, TEXT, dtype="float64")
    assert double.logit == pytest.approx(m.logit, rel=1e-5)


class Sizes(TorchDispatchMode):
    """Notes the shape and type of all that is computed."""

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for x in made if isinstance(made, list | tuple) else (made,):
            if isinstance(x, torch.Tensor):
                self.made.add((tuple(x.shape), x.dtype))
        return made


def test_large_matrices_become_wide_in_parts(pair, monkeypatch):
    """A vocabulary's most of all, which embeds and answers: not for a moment, and alike."""
    half, _ = pair
    m = ng.measure(half, TEXT)
    graph = m.reduced(nodes=8)
    vocabulary, hidden = 132, 16
    monkeypatch.setattr(held_weights, "PART", 10 * hidden)
    with Sizes() as sizes:
        parts = ng.measure(half, TEXT)
        again = parts.reduced(nodes=8)
    wide = {shape for shape, dtype in sizes.made if dtype not in held_weights.HALF}
    assert (10, hidden) in wide
    assert not {(vocabulary, hidden), (hidden, vocabulary)} & wide
    largest = max(math.prod(shape) for shape in wide if shape and shape[-1] == vocabulary)
    assert largest < len(m.tokens) * vocabulary  # no position but one has logits
    assert m.predicted == parts.predicted
    torch.testing.assert_close(m.state.output, parts.state.output)
    for layer in m.topology.layers:
        np.testing.assert_allclose(
            parts.marginal(layer.name), m.marginal(layer.name), atol=1e-6, err_msg=layer.name
        )
    columns = ["dst_layer", "dst_unit", "src_layer", "src_unit"]
    assert again.edges.select(columns) == graph.edges.select(columns)
    np.testing.assert_allclose(again.edges["relevance"], graph.edges["relevance"], atol=1e-6)


def test_tracing_widens_no_vocabulary(pair, monkeypatch):
    """What looks at numbers of weights, and runs what is traced, does so in parts too."""
    monkeypatch.setattr(held_weights, "PART", 160)
    weights = dict(pair[0].module.named_parameters())
    large = [w for w in weights.values() if held_weights.large(w)]
    program = pair[0].program(6)
    ids = torch.arange(6)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with Sizes() as sizes:
        for weight in large:
            assert finite(weight)
            assert held_weights.holdable(weight) is weight
        run(program, *(inputs[name] for name, _ in program.inputs))
        identity = program.hash()
    assert len(large) > 6
    wide = {shape for shape, dtype in sizes.made if dtype not in held_weights.HALF}
    assert not {tuple(weight.shape) for weight in large} & wide
    assert identity == replace(program, weights=dict(program.weights)).hash()


def test_only_rules_that_leave_weights_alone_take_them_as_they_are_held(pair, monkeypatch):
    """What gamma makes of a weight would be rounded to half precision."""
    monkeypatch.setattr(held_weights, "PART", 160)
    kinds = {"product": Epsilon(), "attention": Epsilon(), "softmax": Softmax()}
    rules = composite("gamma", kinds | {"dense": Gamma(0.3)})
    m, n = (ng.measure(lm, TEXT, composite=rules) for lm in pair)
    for layer in m.topology.layers:
        np.testing.assert_allclose(
            m.marginal(layer.name), n.marginal(layer.name), atol=2e-5, err_msg=layer.name
        )

    class Twice(Epsilon):
        def groups(self, op, signs):
            return super().groups(op, signs)

    assert Epsilon.own_weights
    assert not Twice.own_weights
    assert not Gamma.own_weights


def test_nothing_is_of_positions_times_vocabulary(pair):
    m = ng.measure(pair[0], TEXT)
    rows = pair[0].reader.outputs
    for name, value in m.state.values.items():
        if isinstance(value, torch.Tensor) and value.shape and value.shape[-1] == rows:
            assert value.numel() == rows, name


def test_stores_name_half_precision(pair, tmp_path):
    half, _ = pair
    with ng.extract(half, [TEXT], tmp_path / "s.nrm", progress=False) as db:
        first = db.measure(db.sql("SELECT key FROM inputs").fetchall()[0][0])
    with ng.open(tmp_path / "s.nrm", weights=half.weights) as db:
        key = db.sql("SELECT key FROM inputs").fetchall()[0][0]
        m = db.measure(key)
        assert m.logit == first.logit
        assert isinstance(db.program.weights, HeldWeights)
        assert db.verify(sample=1).sound


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "bert", "mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_of_half_precision_hide_padding(family, attention, tmp_path):
    lm = ng.load_model(f"hf:{language_models.save(tmp_path / 'hf', family, torch.bfloat16)}")
    lm.module.set_attn_implementation(attention)
    encoded = lm.reader.encode(language_models.text(family))
    length = len(encoded.ids)
    alone, padded = (
        ng.measure(lm.program(n), encoded.inputs(n, lm.reader.pad), composite="attn_lrp")
        for n in (length, length + 6)
    )
    assert padded.logit == pytest.approx(alone.logit, rel=1e-5)
    first = alone.topology.inputs[0].name
    short, long = alone.marginal(first), padded.marginal(first)
    np.testing.assert_allclose(long[: len(short)], short, atol=1e-5)
    assert not long[len(short) :].any()
