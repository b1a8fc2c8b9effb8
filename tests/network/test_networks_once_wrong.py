"""Networks whose numbers were wrong once: fused steps, batches, masks, whole numbers."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.traced import same
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import TraceError
from nrm_graph.network import units
from nrm_graph.network.ir import operations
from nrm_graph.network.maps import interpolation
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation import prepared_network
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.output_weights import initial_relevance
from nrm_graph.rules import Epsilon, composites
from nrm_graph.tables.builder import edge_tables
from nrm_graph.tables.plan import plan


class Between(nn.Module):
    """A function between two dense layers."""

    def __init__(self, function, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 2)
        self.function = function
        self.double().eval()

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def batch(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_norms_are_fused_only_where_they_are_that_norm():
    def scaled(h):
        return h * torch.rsqrt(torch.add(h.square().mean(-1, keepdim=True), 0.5, alpha=2))

    with pytest.raises(TraceError, match="a normalisation other than"):
        trace(Between(scaled), batch(3, 4)[:1])
    with pytest.raises(TraceError, match="linalg_vector_norm"):
        trace(Between(lambda h: F.normalize(h, dim=-1, eps=1.0)), batch(3, 4)[:1])
    program = same(Between(lambda h: F.normalize(h, dim=-1)), batch(3, 4))
    assert "aten.rms_norm.default" in [node.op for node in program.nodes]


class Chosen(nn.Module):
    """Its first constant holds whole numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("choice", torch.tensor([1, 0, 2, 3]))
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.double().eval()

    def forward(self, x):
        return self.last(F.normalize(self.first(x[:, self.choice]), dim=-1))


def test_a_normalisation_has_the_type_of_the_network():
    same(Chosen(), batch(3, 4))


def test_steps_that_share_steps_are_traced_in_time():
    def shared(h):
        a, b = torch.sigmoid(h), h
        for _ in range(30):  # written out, the last step has a million terms
            a, b = b, torch.tanh(a * b) * b
        return b

    begin = time.perf_counter()
    same(Between(shared), batch(3, 4))
    assert time.perf_counter() - begin < 60


class Switched(nn.Module):
    """Computes something else while it is exported."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(x * 2 if torch.compiler.is_exporting() else x)


def test_a_network_that_answers_otherwise_than_its_program_is_refused():
    with pytest.raises(TraceError, match="does not answer as Switched"):
        trace(Switched().eval(), torch.ones(1, 4))


def tables(network, x, composite, resolution="neuron"):
    """Edges of every sample, in one batch and alone."""
    program = trace(network, x[:1])
    net = prepared_network.network(program, composites.get(composite), torch.float64)
    made = plan(net, units.resolve(net.layout.topology, resolution))

    def edges(xs):
        state = forward(net, xs)
        weights = torch.zeros_like(state.output)
        weights[:, 0] = 1
        return [found[1] for found in edge_tables(state, initial_relevance(state, weights), made)]

    return edges(x), [edges(x[b : b + 1])[0] for b in range(len(x))]


def test_registered_operations_have_their_own_weights_in_a_batch():
    op = "aten.logsumexp.default"
    ng.register_operation(op, "pool")
    try:
        base = composites.get("attn_lrp")
        composite = composites.Composite("own", (*base.kinds, ("pool", Epsilon())))
        network = Between(lambda h: h + torch.logsumexp(h, 1, keepdim=True))
        together, alone = tables(network, batch(3, 4), composite)
        for one, other in zip(together, alone, strict=True):
            for column in one.column_names:
                np.testing.assert_allclose(one[column], other[column], atol=1e-12)
    finally:
        del operations.REGISTERED[op], operations.WEIGH[op]
        operations.SUPPORTED.discard(op)
        operations.CARRYING.discard(op)


class Attending(nn.Module):
    """Attention over windows: the parts of a split keep their batch among the windows."""

    def __init__(self, masked=False, windows=3):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.last = nn.Linear(3, 9), nn.Linear(3, 2)
        self.bias = nn.Parameter(torch.randn(3, 3))
        self.masked, self.windows = masked, windows
        self.double().eval()

    def forward(self, x):
        n = x.shape[0]
        q, k, v = self.qkv(x.reshape(n * self.windows, 3, 3)).chunk(3, -1)
        scores = q @ k.transpose(1, 2)
        if self.masked:
            hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        mixed = torch.softmax(scores + self.bias, -1) @ v
        return self.last(mixed.reshape(n, self.windows * 3, 3).mean(1))


def test_copies_of_a_sample_whose_windows_are_split():
    m = ng.measure(Attending(), batch(3, 3, 3), target=0, composite="attn_lrp", dtype="float64")
    events = [ng.Layer("qkv")[i] & ng.Layer("product")[i] for i in range(2)]
    np.testing.assert_allclose(m.many(events), [m(event) for event in events], atol=1e-12)


def test_scores_that_are_hidden_before_something_is_added():
    network = Attending(masked=True, windows=1)
    m = ng.measure(network, batch(3, 3), target=0, composite="attn_lrp", dtype="float64")
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-9)
    nodes, edges = m.tables()
    for table in (nodes, edges):
        assert np.isfinite(table["relevance"].to_numpy()).all()


class Positions(nn.Module):
    """Whole numbers, negative ones among them, are added to what is not negative."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.double().eval()

    def forward(self, x, positions):
        return self.last(torch.relu(self.first(x + positions)))


def test_whole_numbers_may_be_negative():
    inputs = batch(1, 4).abs(), torch.tensor([[-3, -1, 2, 0]])
    m = ng.measure(Positions(), inputs, target=0, composite="epsilon_plus", dtype="float64")
    assert "add" not in m.network.non_negative[True]
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("scales", [None, [1.7, 2.5]])
def test_taps_of_interpolations_are_found_piece_by_piece(monkeypatch, scales):
    monkeypatch.setattr(interpolation, "_UNITS", 8)
    call = operations.function("aten.upsample_bilinear2d.vec")
    size = None if scales else [7, 5]
    found, weights = interpolation.taps(call, (5, 4), size, [False], scales)
    x = batch(1, 2, 5, 4)
    torch.testing.assert_close(found.apply(x, weights), call(x, size, False, scales))


def test_an_interpolation_of_absurd_length_is_refused():
    call = operations.function("aten.upsample_linear1d.vec")
    with pytest.raises(TraceError, match="too long"):
        interpolation.taps(call, (200_000,), [400_000], [False], None)


class Padded(nn.Module):
    """Attention whose mask of padding is moved about before it is added."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.double().eval()

    def forward(self, ids, mask):
        x = self.embed(ids)
        hidden = mask == 0
        mixed, _ = self.attention(x, x, x, key_padding_mask=hidden, need_weights=False)
        return self.last(x + mixed)


@functools.cache
def padded():
    """The program of such attention, traced once."""
    return trace(Padded(), (torch.tensor([[3, 1, 4]]), torch.tensor([[1, 1, 0]])))


def test_padding_is_masked_where_the_mask_is_moved():
    inputs = torch.tensor([[3, 1, 4]]), torch.tensor([[1, 1, 0]])
    m = ng.measure(padded(), inputs, target=(0, 1), composite="attn_lrp", dtype="float64")
    assert "attention.add" not in [layer.name for layer in m.topology.layers]
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-9)


def test_targets_may_be_numbers_of_numpy(tmp_path):
    network = trace(nn.Sequential(nn.Linear(4, 3)), torch.ones(1, 4))
    rows = [{"input": torch.ones(4), "key": "k"}]
    for i, target in enumerate([np.int64(2), [np.int64(2)]]):
        path = tmp_path / f"{i}.nrm"
        with ng.extract(network, rows, path, target=target, progress=False, device="cpu") as db:
            assert db.measure("k").target == 2


def test_pruned_stores_of_masked_attention_are_sound(tmp_path):
    x = torch.tensor([3, 1, 4]), torch.tensor([1, 1, 0])
    options = {"target": (0, 1), "composite": "attn_lrp", "resolution": "neuron", "top": 5}
    network, rows = padded(), [{"input": x, "key": "k"}]
    path = tmp_path / "s.nrm"
    with ng.extract(network, rows, path, progress=False, device="cpu", **options) as db:
        report = db.verify(sample=1)
        assert report.sound, report.findings
