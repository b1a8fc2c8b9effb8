"""Weights in half precision: the numbers of float32, and never the whole network in it."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import language_models

import nrm_graph as ng
from nrm_graph.network.ir.held_weights import HALF, HeldWeights
from nrm_graph.propagation import forward

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
    m.report()
    m.reduced(nodes=5)
    kernels = m.state.kernels
    narrow = [n for n, op in m.network.layout.weighings.items() if op.narrow]
    assert len(narrow) > 6
    assert len(kernels.keys() & set(narrow)) <= 1
    assert not {name for name, _ in m.network.groups} & set(narrow)
    assert len(wide_matrices() - before) <= 2  # of the last kernel
    double = ng.measure(half, TEXT, dtype="float64")
    assert double.logit == pytest.approx(m.logit, rel=1e-5)


def test_large_heads_are_multiplied_in_parts(pair, monkeypatch):
    m = ng.measure(pair[0], TEXT)
    monkeypatch.setattr(forward, "PART", 100)
    parts = ng.measure(pair[0], TEXT)
    torch.testing.assert_close(m.state.output, parts.state.output)
    assert m.predicted == parts.predicted


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
