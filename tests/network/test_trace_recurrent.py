"""Recurrent networks, unrolled into their steps."""

from __future__ import annotations

import pytest
import torch
from helpers.traced import build, fc, kinds, rows, same
from torch import nn

import nrm_graph as ng
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing import export, trace

pytestmark = pytest.mark.slow


def last(m, x):
    return m.fc(m.rnn(x)[0][:, -1])


NETWORKS = {
    "lstm": lambda: nn.LSTM(4, 3, batch_first=True),
    "gru": lambda: nn.GRU(4, 3, batch_first=True),
    "tanh": lambda: nn.RNN(4, 3, batch_first=True),
    "relu": lambda: nn.RNN(4, 3, batch_first=True, nonlinearity="relu", bias=False),
    "both_ways": lambda: nn.LSTM(4, 3, batch_first=True, bidirectional=True),
    "layers": lambda: nn.GRU(4, 3, 2, batch_first=True, dropout=0.5),
    "projected": lambda: nn.LSTM(4, 3, batch_first=True, proj_size=2),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETWORKS)
def test_recurrent_networks(name):
    rnn = NETWORKS[name]()
    width = rnn(torch.zeros(1, 5, 4))[0].shape[-1]
    program = same(build(last, rnn=rnn, fc=fc(width)), rows(5, 4))
    found = kinds(program)
    gated = name not in ("tanh", "relu")
    assert set(found.values()) == {"input", "dense", "sum"} | ({"gate"} if gated else set())
    assert layout(program).topology.inputs[0].shape == (5, 4)
    if name == "lstm":
        # The first cell state is 0: what is kept of it is left out.
        assert list(found.values()).count("gate") == 3 * 5 - 1


def test_sequence_first_final_states_and_cells():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.cell = nn.LSTM(4, 3, bidirectional=True), nn.LSTMCell(6, 3)
            self.other, self.fc = nn.GRUCell(3, 3), fc(6)

        def forward(self, x):
            y, (h, c) = self.rnn(x.transpose(0, 1))
            state = self.cell(y[0])
            state = self.cell(y[1], state)
            return self.fc(torch.cat([self.other(state[0], h[0]), c[1]], 1))

    torch.manual_seed(0)
    program = same(Net().double().eval(), rows(2, 4))
    assert "gate" in kinds(program).values()


def test_relevance_runs_through_time():
    torch.manual_seed(0)
    model = build(last, rnn=nn.LSTM(4, 3, batch_first=True), fc=fc(3))
    m = ng.measure(model, rows(5, 4)[:1], target=1, composite="attn_lrp", dtype="float64")
    for layer in m.topology.layers:
        assert m.cut(layer.name).total == pytest.approx(1, abs=1e-10)


def test_very_long_sequences_are_refused(monkeypatch):
    monkeypatch.setattr(export, "MAX_STEPS", 9)
    model = build(last, rnn=nn.GRU(4, 3, 2, batch_first=True), fc=fc(3))
    with pytest.raises(ng.TraceError, match=r"gru would be unrolled into 10 steps, expected at mo"):
        trace.trace(model, rows(5, 4)[0])
