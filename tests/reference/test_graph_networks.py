"""Graph networks on a fixed graph: GNN-LRP's walks and sGNN-LRP's subgraphs are events.

References: the walk formula of Schnake et al. (2020) and the product of masks of Xiong et al.
(2022), in NumPy.  A layer ``relu(A H W + b)`` gives node and feature (J, a) of (K, b) the share
``A[K, J] H[J, a] W[a, b] / Z[K, b]``.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

NODES, TARGET = 5, 1
EDGES = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 3)]

# Float64 of a dozen layers of a few neurons; the package's two stabilisers per layer (1e-13) over
# denominators of not less than 1e-3 are of the size of 1e-10 of the largest share.
TOLERANCE = 1e-8


def adjacency() -> torch.Tensor:
    """``D^-1/2 (A + I) D^-1/2`` of a small graph."""
    a = torch.eye(NODES, dtype=torch.float64)
    for i, j in EDGES:
        a[i, j] = a[j, i] = 1
    d = a.sum(1).rsqrt()
    return d[:, None] * a * d


class Graph(nn.Module):
    """Two graph convolutions, readout by a sum over the nodes."""

    def __init__(self, order: str, bias: bool) -> None:
        super().__init__()
        self.order = order
        self.register_buffer("a", adjacency())
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)
        self.head = nn.Linear(3, 2, bias=False)
        self.biases = nn.ParameterList(torch.zeros(n) for n in (4, 3)) if bias else None

    def convolve(self, x, dense, k):
        y = self.a @ dense(x) if self.order == "weights first" else dense(self.a @ x)
        return torch.relu(y if self.biases is None else y + self.biases[k])

    def forward(self, x):
        x = self.convolve(x, self.first, 0)
        x = self.convolve(x, self.second, 1)
        return self.head(x.sum(1))


@functools.cache
def both(order: str, bias: bool):
    torch.manual_seed(3)
    net = Graph(order, bias).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    x = torch.randn(NODES, 3, dtype=torch.float64)
    rules = {
        "dense": ng.rules.Epsilon(1e-13),
        "sum": ng.rules.Norm(1e-13),
    }
    composite = ng.composites.composite("tiny", rules)
    return net, x, ng.measure(net, x, target=TARGET, composite=composite, resolution="token")


def transitions(net: Graph, x: torch.Tensor):
    """T1 and T2, ``[J, a, K, b]``, and the relevance of the last layer."""
    a = net.a.numpy()
    h, found = x.numpy(), []
    for k, dense in enumerate((net.first, net.second)):
        w = dense.weight.detach().numpy().T
        n = np.einsum("kj,ja,ab->jakb", a, h, w)
        z = n.sum((0, 1)) + (0 if net.biases is None else net.biases[k].detach().numpy())
        found.append(n / z)
        h = np.maximum(z, 0)
    share = h * net.head.weight.detach().numpy()[TARGET]
    return *found, share / share.sum()


def steps(net: Graph, m: ng.Measure) -> list[str]:
    """Input, first and second convolution: the layers that the activations belong to."""
    each = 2 if net.biases is None else 3  # by the graph, by the weights, a sum with the bias
    return [m.topology.layers[k * each].name for k in range(3)]


@pytest.fixture(params=itertools.product(["weights first", "nodes first"], [False, True]), ids=str)
def case(request):
    return both(*request.param)


def test_walks_of_nodes(case):
    net, x, m = case
    t1, t2, last = transitions(net, x)
    walks = np.einsum("iajb,jbkc,kc->ijk", t1, t2, last)
    names, scale = steps(net, m), np.abs(walks).sum()
    assert (np.abs(walks) > 1e-6 * scale).sum() > 20
    nodes = [[ng.Layer(name)[i] for i in range(NODES)] for name in names]
    events = [
        nodes[0][i] & nodes[1][j] & nodes[2][k]
        for i, j, k in itertools.product(range(NODES), repeat=3)
    ]
    found = m.many(events).reshape(walks.shape)
    np.testing.assert_allclose(found, walks, rtol=0, atol=TOLERANCE * scale)
    pair = m.joint(names[2], names[1], by="token").values
    expected = np.einsum("jbkc,kc->kj", t2, last)  # with walks that end in the first bias
    np.testing.assert_allclose(pair, expected, rtol=0, atol=TOLERANCE * scale)
    pair = m.joint(names[0], names[2], by="token").values
    np.testing.assert_allclose(pair, walks.sum(1), rtol=0, atol=TOLERANCE * scale)


def test_subgraphs(case):
    net, x, m = case
    t1, t2, last = transitions(net, x)
    names = steps(net, m)
    rng = np.random.default_rng(0)
    scale = np.abs(np.einsum("iajb,jbkc,kc->ijk", t1, t2, last)).sum()
    for _ in range(8):
        mask = rng.random(NODES) < 0.6
        # 1' M0 T1 M1 T2 M2 R, from the right.
        r = last * mask[:, None]
        r = np.einsum("jbkc,kc->jb", t2, r) * mask[:, None]
        r = np.einsum("iajb,jb->ia", t1, r) * mask[:, None]
        inside = ng.Layer(names[0])[mask] & ng.Layer(names[1])[mask] & ng.Layer(names[2])[mask]
        assert m(inside) == pytest.approx(r.sum(), abs=TOLERANCE * scale)
        if net.biases is None:  # no walk ends above the input
            stay = ng.stay({name: ng.Layer(name)[mask] for name in names})
            assert m(stay) == pytest.approx(r.sum(), abs=TOLERANCE * scale)
            stay = ng.stay({name: np.flatnonzero(mask).tolist() for name in names})
            assert m(stay) == pytest.approx(r.sum(), abs=TOLERANCE * scale)


def test_a_subgraph_is_the_sum_of_its_walks():
    net, x, m = both("weights first", False)
    walks = np.einsum("iajb,jbkc,kc->ijk", *transitions(net, x))
    names, chosen = steps(net, m), [0, 1, 3]
    stay = ng.stay(dict.fromkeys(names, chosen))
    expected = walks[np.ix_(chosen, chosen, chosen)].sum()
    assert m(stay) == pytest.approx(expected, abs=TOLERANCE * np.abs(walks).sum())
