"""Every classification family of torchvision: what is traced answers as the network does."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import nn

from nrm_graph.network.ir.interpreter import run
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace

SIZES = {
    "alexnet": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
    "resnet18": 48,
    "resnext50_32x4d": 48,
    "wide_resnet50_2": 48,
    "densenet121": 48,
    "squeezenet1_1": 48,
    "googlenet": 48,
    "inception_v3": 80,
    "mobilenet_v2": 48,
    "mobilenet_v3_small": 48,
    "mobilenet_v3_large": 48,
    "efficientnet_b0": 48,
    "efficientnet_v2_s": 48,
    "regnet_x_400mf": 48,
    "regnet_y_400mf": 48,
    "mnasnet0_5": 48,
    "shufflenet_v2_x0_5": 48,
    "convnext_tiny": 48,
    "vit_b_16": 32,
    "swin_t": 64,
    "swin_v2_t": 64,
    "maxvit_t": 64,
}

QUICK = {"squeezenet1_1"}

OPTIONS = {
    "vit_b_16": {"image_size": 32},
    "googlenet": {"init_weights": False, "aux_logits": True},
    "inception_v3": {"init_weights": False, "aux_logits": True},
    "maxvit_t": {"input_size": (64, 64)},
}

NODES = re.compile(r"(conv[123]d|linear|relu|view|permute|mul|cat|getitem|transpose)(_\d+)?")


def build(name):
    torch.manual_seed(0)
    if name == "maxvit_t":
        model = torchvision.models.MaxVit((64, 64), 8, 2, [8, 8], [1, 1], 4, 0.1)
    else:
        model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
        elif isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.data.normal_(0, 0.1)  # the head of a vision transformer begins at 0
    return model.eval()


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
def test_family(name):
    model = build(name)
    x = torch.randn(2, 3, SIZES[name], SIZES[name])
    program = trace(model, x[:1])
    with torch.no_grad():
        expected = model(x)
    assert float(expected.abs().max()) > 0
    size = float(expected.abs().max())
    torch.testing.assert_close(run(program, x), expected, rtol=0, atol=1e-5 * size)
    layers = layout(program).topology.layers
    paths = {path for path, _ in model.named_modules()}
    for layer in layers[1:]:
        assert not NODES.fullmatch(layer.name), layer.name
        owner = layer.name.split("@")[0]
        known = owner in paths or owner.rpartition(".")[0] in paths or owner == "output"
        assert known, layer.name
