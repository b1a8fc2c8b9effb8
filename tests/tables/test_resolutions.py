"""Grouped tables are the neuron tables, summed."""

import numpy as np
import pytest
import torch
from reference import dense_rules
from torch import nn

import nrm_graph as ng

pytestmark = pytest.mark.usefixtures("remembered_traces")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.fc = nn.Linear(4 * 5 * 5, 6)

    def forward(self, x):
        h = torch.relu(self.a(x))
        h = torch.max_pool2d(torch.relu(self.b(h) + h), 2, 2, ceil_mode=True)
        return self.fc(self.pool(torch.relu(self.up(h)))[..., :5, :5].flatten(1))


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat"])
def test_channel_tables_are_summed_neuron_tables(composite):
    torch.manual_seed(0)
    net = Residual().double()
    x = torch.randn(3, 17, 17, dtype=torch.float64)
    program = ng.trace(net, x)
    fine = ng.measure(program, x, target=2, composite=composite, resolution="neuron")
    coarse = ng.measure(program, x, target=2, composite=composite, resolution="channel")
    labels = [part.labels.ravel() for part in coarse.partitions]

    def unit(layers, units):
        return [labels[i][u] if u >= 0 else u for i, u in zip(layers, units, strict=True)]

    expected: dict[tuple[int, ...], float] = {}
    rows = fine.tables()[1].to_pydict()
    keys = zip(
        rows["dst_layer"],
        unit(rows["dst_layer"], rows["dst_unit"]),
        rows["src_layer"],
        unit(rows["src_layer"], rows["src_unit"]),
        strict=True,
    )
    for key, relevance in zip(keys, rows["relevance"], strict=True):
        expected[key] = expected.get(key, 0.0) + relevance
    rows = coarse.tables()[1].to_pydict()
    names = ("dst_layer", "dst_unit", "src_layer", "src_unit")
    found = dict(zip(zip(*(rows[n] for n in names), strict=True), rows["relevance"], strict=True))
    variation = max(row["total_variation"] for row in fine.report().to_pylist())
    for key in expected.keys() | found.keys():
        # float64 sums of at most some thousand terms of the total variation's size
        assert found.get(key, 0.0) == pytest.approx(expected.get(key, 0.0), abs=1e-11 * variation)
    assert not np.isfinite(np.array(rows["conditional"], float)).all()
    for layer in fine.topology.layers:
        assert fine.cut(layer.name).total == pytest.approx(1.0, abs=1e-11 * variation)


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma"])
@pytest.mark.parametrize("resolution", ["channel", "neuron"])
def test_channels_whose_parts_are_empty(composite, resolution):
    """All weights of one sign: what an empty part cannot place is stabiliser, in tables too."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 2),
    ).double()
    with torch.no_grad():
        for conv in (net[0], net[2]):
            conv.weight[0].abs_()
            conv.weight[1] = -conv.weight[1].abs()
            conv.bias[0] = 0.0
            conv.bias[1] = 0.5
    x = torch.rand(2, 4, 4, dtype=torch.float64)
    m = ng.measure(net, x, target=1, composite=composite, resolution=resolution)
    nodes, edges = (table.to_pandas() for table in m.tables())
    variation = max(row["total_variation"] for row in m.report().to_pylist())
    for layer in m.topology.layers[1:]:
        of_layer = edges[edges.dst_layer == layer.layer_id]
        out = of_layer.groupby("dst_unit").relevance.sum()
        here = nodes[(nodes.layer_id == layer.layer_id) & (nodes.unit >= 0)]
        expected = here.set_index("unit").relevance
        assert expected.subtract(out, fill_value=0.0).abs().max() < 1e-12 * variation
        row = next(r for r in m.report().to_pylist() if r["layer"] == layer.name)
        for unit, name in ((-1, "bias"), (-2, "stabilizer")):
            found = of_layer[of_layer.src_unit == unit].relevance.sum()
            assert found == pytest.approx(row[name], abs=1e-12 * variation)


@pytest.mark.parametrize("resolution", ["channel", "neuron"])
def test_rows_that_wait_for_the_end_of_the_pass_are_the_same(resolution, monkeypatch):
    """As on an accelerator, where the pass must not wait for the host."""
    from nrm_graph.tables import builder as edges

    torch.manual_seed(0)
    m = ng.measure(Residual().double(), torch.randn(3, 17, 17).double(), resolution=resolution)
    at_once = m.tables()
    m._cache.clear()
    monkeypatch.setattr(edges, "_on_host", lambda tensor: False)
    for table, expected in zip(m.tables(), at_once, strict=True):
        assert table.equals(expected)


@pytest.mark.smoke
def test_single_neurons_in_an_order_of_the_users_own():
    """A partition that renumbers neurons: node and pseudo rows follow it, as edges do."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        net[0].weight.abs_()
    x = torch.rand(1, 3, dtype=torch.float64) + 1
    order = np.array([2, 0, 3, 1], np.int32)
    own = ng.measure(net, x, target=1, resolution={"0": order}).tables()
    usual = ng.measure(net, x, target=1, resolution="neuron").tables()
    for mine, plain, unit in zip(own, usual, ("unit", "dst_unit"), strict=True):
        found = mine.to_pandas()
        expected = plain.to_pandas()
        kind = "layer_id" if unit == "unit" else "dst_layer"
        for column, layer in (("src_unit", "src_layer"), (unit, kind)):
            if column in expected:
                inner = (expected[layer] == 1) & (expected[column] >= 0)
                expected.loc[inner, column] = order[expected.loc[inner, column]]
        keys = [c for c in expected if "unit" in c or "layer" in c]
        both = [t.sort_values(keys).reset_index(drop=True) for t in (found, expected)]
        np.testing.assert_allclose(both[0].to_numpy(float), both[1].to_numpy(float), atol=1e-13)


def test_neurons_below_groups_hold_the_kernel_of_their_rule_alone():
    """Which neurons a group reads is not known; those that no walk can reach hold no rows."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2)
    ).double()
    x = torch.randn(1, 3, 3, dtype=torch.float64)
    one = np.zeros((3, 1, 1), int)
    m = ng.measure(net, x, target=0, resolution={"2": one})
    k = dense_rules.kernel(dense_rules.linear(net[0], (1, 3, 3)), x.numpy().ravel(), "Gamma")
    rows = m.edges("0", "input").to_pydict()
    z = net[0](x[None]).detach().numpy().ravel()
    assert (z < 0).any()
    assert (z[rows["dst_unit"]] > 0).all()
    np.testing.assert_allclose(
        rows["conditional"], k.q[rows["dst_unit"], rows["src_unit"]], atol=1e-12
    )


class Copies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.fc = nn.Conv2d(2, 3, 2), nn.AvgPool2d(3), nn.Linear(3, 2)

    def forward(self, x):
        copies = nn.functional.interpolate(self.a(x), size=(3, 3))
        return self.fc(self.pool(copies).flatten(1))


def test_an_average_of_copies_of_one_neuron_has_its_conditional():
    torch.manual_seed(5)
    x = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    m = ng.measure(Copies().double(), x, target=0, resolution="neuron")
    rows = m.edges("pool", "a").to_pandas()
    assert list(rows.src_unit) == list(rows.dst_unit) == [0, 1, 2]
    np.testing.assert_allclose(rows.conditional, rows.relevance / m.marginal("pool"), rtol=1e-12)
