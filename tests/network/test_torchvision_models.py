"""The program of a torchvision network gives the network's own output."""

import pytest
import torch
import torchvision

import nrm_graph as ng
from nrm_graph.network import units
from nrm_graph.network.ir.interpreter import run
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.prepared_network import Network
from nrm_graph.rules import composites

SIZES = {
    "vgg16": 32,
    "resnet18": 64,
    "densenet121": 64,
    "googlenet": 64,
    "efficientnet_b0": 64,
    "mobilenet_v3_small": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 64,
}
QUICK = {"resnet18"}
ATTENTIVE = {"vit_b_16", "swin_t"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
def test_forward(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # torchvision starts the head of ViT at zero
            if not parameter.any():
                parameter.normal_(std=0.1)
    x = torch.randn(2, 3, SIZES[name], SIZES[name])
    program = trace(net, x[:1])
    found = layout(program)
    nothing = (None,) * len(found.topology.layers)
    network = Network(program, found, composites.epsilon(), nothing)
    for batch in (x, x[1:]):
        with torch.no_grad():
            expected = net(batch)
        tolerance = 2e-5 * float(expected.abs().max())
        torch.testing.assert_close(run(program, batch), expected, rtol=0, atol=tolerance)
        state = forward(network, batch)
        torch.testing.assert_close(state.output, expected, rtol=0, atol=tolerance)
    for layer in found.topology.layers[1:]:
        assert found.topology.sources(layer.layer_id), layer
    composites.attn_lrp().assign(found.topology)
    if name in ATTENTIVE:
        with pytest.raises(ng.CompositeError, match=r"no rule for .*softmax.* take attn_lrp"):
            composites.epsilon_gamma().assign(found.topology)
    else:
        composites.epsilon_gamma().assign(found.topology)


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
