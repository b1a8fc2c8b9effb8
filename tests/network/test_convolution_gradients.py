"""Weight gradients and channel tables of grouped convolutions are torch's."""

import pytest
import torch

from nrm_graph.network.maps.convolution import Convolution

CASES = [
    (d, stride, dilation, padding, kernel, multiplier, skip)
    for d, kernel in ((1, 11), (2, 4), (2, 5), (3, 3))
    for stride, dilation, padding in ((1, 1, 2), (2, 1, 0), (3, 2, 4))
    for multiplier in (1, 2)
    for skip in (0, 1)
]


@pytest.mark.parametrize(
    ("d", "stride", "dilation", "padding", "kernel", "multiplier", "skip"), CASES
)
def test_depthwise_gradient(d, stride, dilation, padding, kernel, multiplier, skip):
    torch.manual_seed(0)
    map_ = Convolution(
        (stride,) * d, (padding,) * d, (dilation,) * d, False, (0,) * d, 3, (skip,) * d
    )
    x = torch.randn(2, 3, *(13, 12, 11)[:d])
    w = torch.randn(3 * multiplier, 1, *(kernel,) * d, requires_grad=True)
    z = map_.apply(x, w)
    s = torch.randn_like(z)
    (expected,) = torch.autograd.grad(z, w, s)
    transpose, gradient = map_.both(s, w.detach(), x)
    size = expected.abs().max()
    for found in (gradient, map_.weight_gradient(s, w.detach(), x)):
        torch.testing.assert_close(found, expected, rtol=0, atol=float(1e-5 * size))
    torch.testing.assert_close(transpose, map_.transpose(s, w.detach(), x))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_channel_table_is_block_diagonal(groups, transposed):
    torch.manual_seed(1)
    map_ = Convolution((1, 1), (0, 0), (1, 1), transposed, (0, 0), groups, (0, 0))
    shape = (8, 12 // groups, 3, 2) if transposed else (12, 8 // groups, 3, 2)
    w = torch.randn(shape, dtype=torch.float64)
    # A map that is constant, under windows that read all of it: the middle of the output.
    x = torch.eye(8, dtype=torch.float64)[:, :, None, None].expand(8, 8, 5, 5)
    expected = map_.apply(x, w)[:, :, 2, 2].T
    torch.testing.assert_close(map_.channel_table(map_.channel_blocks(w)), expected)
