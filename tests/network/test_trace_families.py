"""Every classification family of torchvision: what is traced answers as the network does."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import nn

import nrm_graph as ng
from nrm_graph.network import units
from nrm_graph.network.ir.interpreter import run
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.prepared_network import Network
from nrm_graph.rules import composites

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

ATTENTIVE = {"vit_b_16", "swin_t", "swin_v2_t", "maxvit_t"}

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
    laid_out = layout(program)
    topology, layers = laid_out.topology, laid_out.topology.layers
    network = Network(program, laid_out, composites.epsilon(), (None,) * len(layers))
    state = forward(network, x[1:])
    torch.testing.assert_close(state.output, expected[1:], rtol=0, atol=2e-5 * size)
    assert all(topology.sources(layer.layer_id) for layer in layers[1:])
    composites.attn_lrp().assign(topology)
    if name in ATTENTIVE:
        with pytest.raises(ng.CompositeError, match=r"no rule for .*softmax.* take attn_lrp"):
            composites.epsilon_gamma().assign(topology)
    else:
        composites.epsilon_gamma().assign(topology)
    paths = {path for path, _ in model.named_modules()}
    for layer in layers[1:]:
        assert not NODES.fullmatch(layer.name), layer.name
        owner = layer.name.split("@")[0]
        known = owner in paths or owner.rpartition(".")[0] in paths or owner == "output"
        assert known, layer.name


@pytest.mark.slow
def test_automatic_units_follow_channels_and_heads():
    torch.manual_seed(0)
    net = torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [3, 6], [4, 4]).eval()
    topology = layout(trace(net, torch.randn(1, 3, 32, 32))).topology
    kinds = dict(
        zip((layer.name for layer in topology.layers), units.automatic(topology), strict=True)
    )
    assert kinds["x"] == kinds["features.0.0"] == "channel"
    assert kinds["features.1.0.norm1"] == kinds["features.1.0"] == "feature"
    assert kinds["head"] == "neuron"
    weights = topology.layer("features.1.1.attn.attention_weights")
    assert weights.shape == (4, 3, 16, 16)
    assert kinds[weights.name] == "head"
    part = units.partition(weights, "head")
    assert part.n_units == 3
    assert (part.labels[:, 2] == 2).all()
