"""What biases and constants hold, by their names."""

from collections import defaultdict

import pytest
import torch
from helpers.networks import ROUTED, UNUSUAL, unusual
from torch import nn

import nrm_graph as ng
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation.routed_constants import plain

pytestmark = pytest.mark.usefixtures("remembered_traces")


def sums_agree(m):
    """The constants of every layer sum to its bias in the report."""
    found = defaultdict(float)
    for row in m.constants().to_pylist():
        found[row["layer"]] += row["relevance"]
        assert abs(row["relevance"]) <= row["total_variation"] * (1 + 1e-12)
    for row in m.report().to_pylist():
        scale = max(1.0, row["total_variation"], abs(row["bias"]))
        assert found[row["layer"]] == pytest.approx(row["bias"], abs=1e-10 * scale), row["layer"]


def names(m, layer):
    return [r["constant"] for r in m.constants().to_pylist() if r["layer"] == layer]


LESS = [pytest.param(name, marks=pytest.mark.slow) for name in UNUSUAL]


@pytest.mark.parametrize("name", [*ROUTED, *LESS])
def test_constants_sum_to_the_bias(name):
    net, x = unusual(name)
    net = trace(net, x[:1])
    for composite in ("epsilon", "epsilon_gamma"):
        m = ng.measure(net, x[:1], target=1, composite=composite, dtype="float64")
        sums_agree(m)
    event = m.strongest(m.topology.layers[len(m.topology.layers) // 2].name, 1)
    sums_agree(m.given(event))
    sums_agree(m.given(~event))
    sums_agree(ng.measure(net, x[:1], target=1, composite="epsilon", scale="logit"))


@pytest.mark.smoke
def test_biases_bear_the_names_of_parameters():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3, bias=False)
    )
    net[1].bias.data.fill_(2.0)
    m = ng.measure(net.eval(), torch.rand(1, 4, 4), target=1, composite="epsilon")
    assert [(r["layer"], r["constant"]) for r in m.constants().to_pylist()] == [("0", "0.bias")]
    assert plain("0.weight.bias@conv2d") == "0.bias"


class Named(nn.Module):
    """A class token, a position embedding, and a number that is added."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.registers = nn.Parameter(torch.randn(1, 2, 3))
        self.position = nn.Parameter(torch.randn(1, 6, 3))
        self.up, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):  # (n, 3, 3)
        n = x.shape[0]
        x = torch.cat([self.token.expand(n, -1, -1), self.registers.expand(n, -1, -1), x], 1)
        x = self.up(x + self.position) + 0.5
        return self.head(torch.relu(x)[:, 0] + nn.functional.pad(x[:, 1, 1:], (1, 0), value=2.0))


@pytest.fixture(scope="module")
def named():
    torch.manual_seed(1)
    return ng.measure(Named(), torch.randn(3, 3), target=0, composite="epsilon", dtype="float64")


@pytest.mark.smoke
def test_constants_bear_their_own_names(named):
    m = named
    sums_agree(m)
    held = {layer.name: sorted(names(m, layer.name)) for layer in m.topology.layers}
    assert sorted({name for found in held.values() for name in found}) == [
        "0.5",
        "head.bias",
        "padding",
        "position",
        "registers",
        "token",
        "up.bias",
    ]
    first = next(name for name, found in held.items() if "token" in found)
    assert held[first] == ["position", "registers", "token"]
    assert m.constants().column_names == ["layer", "constant", "relevance", "total_variation"]


def test_a_report_names_constants_where_there_is_room(named):
    from nrm_graph.plots import plot_report

    m = named
    texts = [t.get_text() for t in plot_report(m).texts]
    assert {"padding", "0.5", "token, position, ..."} <= set(texts)
    assert not any("bias" in text for text in texts)
    from_table = [t.get_text() for t in plot_report(m.report()).texts]
    assert "padding" not in from_table
