"""What networks do along an axis: parts set, maxima, running sums, fixed graphs, picked rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.traced import build, fc, kinds, rows, same
from torch import nn

import nrm_graph as ng
from nrm_graph.network.tracing.trace import trace

pytestmark = pytest.mark.slow

FROM, TO = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])


def set_parts(m, x):
    y = m.a(x)
    y[:, 0] = 0
    y[:, 1:3, :2] = x[:, :2, 2:]
    return m.fc(y.mean(1))


def shifted(m, x):
    y, z = m.a(x), torch.zeros_like(x)
    z[:, :-1, :2], z[:, 1:, 2:] = y[:, 1:, :2], y[:, :-1, 2:]
    return m.fc(z.mean(1))


def messages(m, x):
    y = m.a(x)
    return m.fc(torch.zeros_like(y).index_add(1, TO, y[:, FROM]).relu().mean(1))


def scattered(m, x):
    y = m.a(x)
    index = TO[None, :, None].expand(x.shape[0], -1, 4)
    return m.fc((y.scatter_add(1, index, y[:, FROM])).relu().mean(1))


def adaptive(m, x):
    return m.fc(F.adaptive_max_pool1d(m.a(x).transpose(1, 2), 2).mean(2))


class Cross(nn.Module):
    """Queries that are parameters; the heads of all samples on one axis."""

    def __init__(self):
        super().__init__()
        self.query, self.fc = nn.Parameter(torch.randn(2, 4)), fc(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        queries = self.query.expand(x.shape[0], -1, -1)
        return self.fc(self.attention(queries, x, x)[0].mean(1))


def test_learned_queries():
    torch.manual_seed(0)
    program = same(Cross().double().eval(), rows(3, 4))
    found = kinds(program)
    assert found["attention.attention_weights"] == "softmax"
    assert "product" not in found.values()
    m = ng.measure(program, rows(3, 4)[:1], target=0, composite="attn_lrp", dtype="float64")
    for layer in m.topology.layers:
        assert m.cut(layer.name).total == pytest.approx(1, abs=1e-9)


def test_one_entry_that_integers_name():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Linear(4, 5), fc(5)

        def forward(self, x, length):
            index = (length - 1).view(-1, 1, 1).expand(-1, 1, 5)
            return self.fc(self.a(x).gather(1, index).squeeze(1))

    torch.manual_seed(0)
    lengths = torch.tensor([[2], [4], [1]])
    program = same(Last().double().eval(), (rows(4, 4), lengths))
    assert kinds(program) == {"x": "input", "a": "dense", "sum": "sum", "fc": "dense"}


HOW = {
    "tril": (lambda m, x: m.fc(m.a(x).tril().mean(1)), {"average", "dense"}),
    "unshuffled": (
        lambda m, x: m.fc(F.pixel_unshuffle(m.a(x)[:, None], 2).flatten(2).mean(1)),
        {"average", "dense"},
    ),
    "set_parts": (set_parts, {"average", "dense"}),
    "shifted": (shifted, {"average", "dense"}),
    "messages": (messages, {"average", "dense"}),
    "scattered": (scattered, {"average", "dense", "sum"}),
    "running_sum": (lambda m, x: m.fc(m.a(x).cumsum(1)[:, -1]), {"dense"}),
    "running_sum_of_last": (lambda m, x: m.fc(m.a(x).cumsum(-1)[:, 0]), {"dense"}),
    "maximum": (lambda m, x: m.fc(m.a(x).max(1)[0]), {"dense"}),
    "kept": (lambda m, x: m.fc(m.a(x).max(dim=1, keepdim=True).values[:, 0]), {"dense"}),
    "largest": (lambda m, x: m.fc(m.a(x).amax(1)), {"dense"}),
    "of_all": (lambda m, x: m.fc(m.a(x).amax((1, 2))[:, None].expand(-1, 4)), {"dense"}),
    "adaptive": (adaptive, {"average", "dense"}),
}


@pytest.mark.parametrize("name", HOW)
def test_along_an_axis(name):
    how, expected = HOW[name]
    x = rows(4, 4)
    program = same(build(how, a=nn.Linear(4, 4), fc=fc(4)), x)
    assert set(kinds(program).values()) == {"input", *expected}
    m = ng.measure(program, x[:1], target=0, composite="attn_lrp", dtype="float64")
    assert m.cut("a").total == pytest.approx(1, abs=1e-9)
    a = ng.Layer("a")[1:3]
    assert m(a) + m(~a) == pytest.approx(1, abs=1e-9)


def test_the_place_of_a_maximum_is_refused():
    model = build(lambda m, x: m.fc(m.a(x) * x.max(1)[1][:, None]), a=nn.Linear(4, 4), fc=fc(4))
    with pytest.raises(ng.TraceError, match=r"max\.dim, for the place of the maximum"):
        trace(model, rows(4, 4)[:1])


def test_a_row_that_integers_pick():
    def how(m, ids):
        y = m.a(m.table(ids))
        return m.fc(y[torch.arange(ids.shape[0]), (ids > 0).sum(1) - 1])

    ids = torch.tensor([[3, 1, 0, 0], [1, 2, 3, 4], [4, 4, 2, 0]])
    program = same(build(how, table=nn.Embedding(5, 3), a=nn.Linear(3, 4), fc=fc(4)), ids)
    assert kinds(program) == {"table": "embedding", "a": "dense", "sum": "sum", "fc": "dense"}
    m = ng.measure(program, ids[:1], target=0, composite="attn_lrp", dtype="float64")
    found = m.marginal("a", "neuron")
    assert found[[0, 2, 3]].any() == 0
    assert found[1].any()


def test_boolean_inputs_hide_rows():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Linear(4, 4), fc(4)

        def forward(self, x, mask):
            y = self.a(x).masked_fill(~mask[..., None], 0).sum(1)
            return self.fc(y / mask.sum(1, keepdim=True))

    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1]]).bool()
    torch.manual_seed(0)
    program = same(Net().double().eval(), (rows(4, 4), mask))
    assert program.integers == ("mask",)
    assert kinds(program) == {"x": "input", "a": "dense", "sum": "sum", "fc": "dense"}
