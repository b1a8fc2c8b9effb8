"""Gamma in two parts is the four of its formula, and comes apart into them again."""

import pytest
import torch

from nrm_graph.network.maps.linear import Dense, Weighing
from nrm_graph.rules import Gamma
from nrm_graph.rules.base import Decisions, Group, Part, Signs, evaluated


def plus(x):
    return x.clamp(min=0)


def minus(x):
    return x.clamp(max=0)


def written_out(op, rule, z):
    """Groups of the formula: one for each sign of z."""
    w, bias = op.tensors[0], None if rule.zero_params else op.shift
    up, down = w + rule.gamma * plus(w), w + rule.gamma * minus(w)
    groups = []
    for where, favoured, other, half in ((1, up, down, plus), (-1, down, up, minus)):
        b = None if bias is None else bias + rule.gamma * half(bias)
        parts = (Part(0, plus, favoured), Part(0, minus, other))
        groups.append(Group(parts, b, rule.stabilizer, where=where))
    return tuple(groups)


def q_of(shares, outputs):
    """Dense q(i|j) of the shares of one sample, and the products that it is the sum of."""
    products = torch.stack(
        [
            term.x[0] * term.weight * share.factor.expand(1, outputs)[0, :, None]
            for share in shares
            for term in share.terms
        ]
    )
    return products.sum(0), products


def layer(seed, signed):
    torch.manual_seed(seed)
    w, b = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    w[0] = b[0] = 0.0  # z = 0
    w[1, 2] = 0.0
    x = torch.randn(1, 5, dtype=torch.float64)
    x = x if signed else x.abs()
    return Weighing("dense", ("x",), (Dense(),), (w,), b), x, x @ w.T + b


@pytest.mark.parametrize("zero_params", [None, "bias"])
@pytest.mark.parametrize("gamma", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("stabilizer", [1e-6, 0.0])
def test_gamma_is_its_formula(stabilizer, signed, gamma, zero_params):
    op, x, z = layer(3, signed)
    rule, signs = Gamma(gamma, stabilizer, zero_params), Signs((not signed,))
    unplaced = rule.unplaced(z, signs)
    kernel = evaluated(rule.groups(op, signs), op, [x], z, unplaced)
    expected = evaluated(written_out(op, rule, z), op, [x], z, unplaced)
    assert sum(len(share.terms) for share in kernel.shares) == 2
    q, _ = q_of(kernel.shares, 6)
    wanted, _ = q_of(expected.shares, 6)
    torch.testing.assert_close(q, wanted, rtol=1e-13, atol=1e-15)
    for (unit, part), (other, same) in zip(kernel.absorbed(), expected.absorbed(), strict=True):
        assert unit == other
        torch.testing.assert_close(part, same, rtol=1e-13, atol=1e-15)
    ends = q.sum(1) + sum(part[0] for _, part in kernel.absorbed())
    torch.testing.assert_close(ends, torch.ones_like(ends))


@pytest.mark.parametrize("zero_params", [None, "bias"])
@pytest.mark.parametrize("signed", [True, False])
def test_every_edge_is_one_product_of_a_kernel_taken_apart(signed, zero_params):
    op, x, z = layer(4, signed)
    rule, signs = Gamma(zero_params=zero_params), Signs((not signed,))
    kernel = evaluated(rule.groups(op, signs), op, [x], z, rule.unplaced(z, signs))
    q, _ = q_of(kernel.shares, 6)
    alone, products = q_of(kernel.apart(), 6)
    torch.testing.assert_close(alone, q, rtol=1e-13, atol=1e-15)
    assert int((products != 0).sum(0).max()) == 1
    biases = [s.bias * s.factor for s in kernel.apart() if s.bias is not None]
    if not zero_params:
        torch.testing.assert_close(sum(biases), kernel.bias())


def test_the_sign_of_z_is_that_of_the_other_precision():
    op, x, z = layer(5, True)
    rule, signs = Gamma(), Signs((False,))
    groups = rule.groups(op, signs)
    double = evaluated(groups, op, [x], z, rule.unplaced(z, signs))
    single = op.resolved(x.float(), {})
    turned = z.float()
    turned[0, 2] = -1e-9 * z[0, 2].sign()  # rounded over 0
    decisions = Decisions(z, tuple(share.d for share in double.shares))
    near = evaluated(rule.groups(single, signs), single, [x.float()], turned, None, decisions)
    assert all(
        torch.equal(share.d.sign(), same.d.sign().float())
        for share, same in zip(near.shares, double.shares, strict=True)
    )
    assert near.shares[0].d.dtype == torch.float32
