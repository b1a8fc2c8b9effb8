"""Networks that keep the batch elsewhere than in front: relevance is that of single samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import UNUSUAL, network

import nrm_graph as ng
from nrm_graph.measures import create
from nrm_graph.network import units
from nrm_graph.network.ir.batch_axis import BatchAxis
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation import relevance_pass
from nrm_graph.propagation.forward import forward
from nrm_graph.tables import builder
from nrm_graph.tables.plan import plan


def tables(net, x, target=1):
    state = forward(net, x)
    start = torch.zeros_like(state.output)
    start[:, target] = 1
    return state, start


def close(a, b, scale=1.0):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-9 * max(1.0, scale))


@pytest.mark.smoke
@pytest.mark.parametrize("outer", [1, 2])
@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_views_of_a_batch_axis(axis, outer, inner):
    batch = BatchAxis(axis, outer, inner)
    native = [4, 5, 7]
    native[axis] = outer * 6 * inner
    x = torch.arange(np.prod(native)).reshape(native)
    samples = batch.samples(x)
    assert samples.shape[0] == 6
    assert torch.equal(batch.native(samples), x)
    one = batch.one(x, 2)
    assert torch.equal(one.flatten(), samples[2].flatten())
    assert batch.shape(tuple(one.shape)) == samples.shape[1:]
    assert batch.native_shape(samples.shape[1:]) == one.shape


@pytest.mark.slow
def test_shapes_of_layers():
    found = {
        name: {layer.name: layer.shape for layer in network(name)[2].layout.topology.layers}
        for name in UNUSUAL
    }
    assert found["windows"]["inner"] == (4, 4, 4)
    assert found["sequence_first"]["up"] == (4, 5)
    assert found["sequence_first"]["down"] == (4, 4)
    assert found["frames"]["conv"] == (2, 2, 3, 3)
    assert found["frames_in_front"]["conv"] == (2, 2, 2, 2)
    assert found["frames_in_front"]["mix"] == (2, 2, 4)
    assert found["batch_inside"]["a"] == (4,)


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_program_gives_the_models_output(name):
    net, x, prepared = network(name)
    for batch in (x, x[:1], x[1:]):
        with torch.no_grad():
            close(forward(prepared, batch).output, net(batch))


@pytest.mark.parametrize("name", UNUSUAL)
def test_relevance_is_input_times_gradient(name):
    """Epsilon with eps to 0 on piecewise linear networks, without the bias' share."""
    net, x, prepared = network(name)
    state, start = tables(prepared, x)
    relevance = {}
    relevance_pass.relevance_pass(state, start, visit=relevance.__setitem__)
    leaf = x.clone().requires_grad_(True)
    out = net(leaf)[:, 1]
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    expected = (leaf * gradient).detach() / out.detach().reshape(-1, *[1] * (x.ndim - 1))
    close(relevance[0], expected, float(expected.abs().max()))


@pytest.mark.parametrize("rules", ["exact", "epsilon_gamma"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_a_batch_of_three_is_three_single_runs(name, rules):
    _, x, prepared = network(name, rules)
    state, start = tables(prepared, x)
    topology = prepared.layout.topology
    parts = units.resolve(topology, "neuron")
    together, lost = {}, {}
    relevance_pass.relevance_pass(
        state,
        start,
        visit=together.__setitem__,
        absorb=lambda i, kind, r: lost.__setitem__((i, kind), r),
    )
    found = builder.edge_tables(state, start, plan(prepared, parts))
    for b in range(3):
        own, alone_start = tables(prepared, x[b : b + 1])
        alone, alone_lost = {}, {}
        relevance_pass.relevance_pass(
            own,
            alone_start,
            visit=alone.__setitem__,
            absorb=lambda i, kind, r, into=alone_lost: into.__setitem__((i, kind), r),
        )
        assert together.keys() == alone.keys()
        assert lost.keys() == alone_lost.keys()
        for i, r in alone.items():
            assert r.shape[1:] == topology.layers[i].shape
            close(together[i][b], r[0], float(r.abs().max()))
        for key, r in alone_lost.items():
            close(lost[key][b], r[0], float(r.abs().max()))
        ((nodes, steps),) = builder.edge_tables(own, alone_start, plan(prepared, parts))
        for table, single in zip(found[b], (nodes, steps), strict=True):
            assert table.num_rows == single.num_rows
            for column in table.column_names:
                a, c = (t[column].to_numpy() for t in (table, single))
                a, c = np.nan_to_num(a), np.nan_to_num(c)
                close(a, c, float(np.abs(c).max(initial=0)))


@pytest.mark.parametrize("rules", ["exact", "epsilon_gamma"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_edges_sum_to_nodes_and_cuts_to_one(name, rules):
    _, x, prepared = network(name, rules)
    m = create.from_network(prepared, x[:1], 1, "neuron")
    nodes, steps = (t.to_pydict() for t in m.tables())
    relevance = {
        (i, u): r
        for i, u, r in zip(nodes["layer_id"], nodes["unit"], nodes["relevance"], strict=True)
    }
    scale = max(abs(r) for r in relevance.values())
    into, out = {}, {}
    for dl, du, sl, su, r in zip(
        *(steps[c] for c in ("dst_layer", "dst_unit", "src_layer", "src_unit", "relevance")),
        strict=True,
    ):
        out[dl, du] = out.get((dl, du), 0.0) + r
        into[sl, su] = into.get((sl, su), 0.0) + r
    top = m.topology.output.layer_id
    for key, r in relevance.items():
        if key[0] and key[1] >= 0:
            close(out.get(key, 0.0), r, scale)
        if key[0] != top:
            close(into.get(key, 0.0), r, scale)
    for layer in m.topology.layers:
        close(m.cut(layer.name).total, 1.0, scale)


@pytest.mark.parametrize("name", UNUSUAL)
def test_events_mask_the_samples_view(name):
    """R(n) of one neuron as an event is that neuron's entry of the marginal."""
    _, x, prepared = network(name)
    m = create.from_network(prepared, x[2:], 0, "neuron")
    rng = np.random.default_rng(0)
    for layer in m.topology.layers:
        values = m.marginal(layer.name, by="neuron")
        index = tuple(int(rng.integers(d)) for d in layer.shape)
        scale = float(np.abs(values).max())
        close(m(ng.Layer(layer.name)[index]), values[index], scale)
        close(m(~ng.Layer(layer.name)[index]), 1 - values[index], scale)


def test_edges_of_windows_against_the_chain_rule():
    """R(j -> i) = w_ji x_i / z_j R_j for the dense layer inside the windows."""
    net, x, prepared = network("windows")
    m = create.from_network(prepared, x[:1], 1, "neuron")
    w = net.norm.weight.detach().numpy()
    rows = m.edges("norm", "inner").to_pydict()
    state = m.state
    inner = next(n.name for n in m.network.program.nodes if n.module == "inner")
    hidden = state.samples(inner, state.values[inner])[0].relu().numpy()
    z = hidden @ w.T + net.norm.bias.detach().numpy()
    r = m.marginal("norm", by="neuron")
    seen = 0
    for j, i, value in zip(rows["dst_unit"], rows["src_unit"], rows["relevance"], strict=True):
        a, b, c = np.unravel_index(j, (4, 4, 3))
        a2, b2, d = np.unravel_index(i, (4, 4, 4))
        assert (a, b) == (a2, b2)
        close(value, r[a, b, c] * w[c, d] * hidden[a, b, d] / z[a, b, c], float(np.abs(r).max()))
        seen += 1
    assert seen > 20


class Mixing(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.fc, self.how = torch.nn.Linear(3, 3), how

    def forward(self, x):
        return self.how(self.fc(x))


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.roll(1, 0),
        lambda x: x.flip(0),
        lambda x: x[:1].expand(x.shape[0], -1) + x,
        lambda x: torch.softmax(x, 0),
        lambda x: x + 0.001 * x.mean(0, keepdim=True),
    ],
    ids=["mean", "roll", "flip", "first", "softmax", "faint_mean"],
)
def test_networks_that_mix_samples_are_refused(how):
    with pytest.raises(ng.TraceError, match=r"mixes the samples|batch"):
        trace(Mixing(how), torch.randn(1, 3))
