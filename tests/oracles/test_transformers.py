"""Transformers, DenseNet, 1-D and 3-D convolutions against independent implementations, float64.

autolrp works on the autograd graph (``adapted_autolrp`` says which of its rules are replaced),
``attention_gradients`` on a backward pass of its own; captum on module hooks.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from helpers.transformer_networks import IDS, NETWORKS, drawn, picture, tiny
from reference import adapted_autolrp, attention_gradients
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the oracles: hooks and deprecations
]

TARGET = 2

QUICK = [("llama", "attn_lrp"), ("llama", "cp_lrp"), ("vit", "attn_lrp")]


def close(found, expected, what: str = "", tolerance: float = 1e-7) -> None:
    """To 1e-7 of the layer's largest: 1e-14 of stabiliser over small denominators, twice."""
    expected = np.asarray(expected, np.float64)
    scale = np.abs(expected).max()
    assert scale > 0, what
    np.testing.assert_allclose(
        np.asarray(found), expected, rtol=0, atol=tolerance * scale, err_msg=what
    )


COMPOSITES = {"attn_lrp": False, "cp_lrp": True}
GRADIENTS = {"attn_lrp": (False, False), "cp_lrp": (True, False), "relp": (True, True)}

# One of each in every run of the tests: tracing takes some seconds.
FEW = [
    pytest.param(
        name,
        composite,
        marks=[] if (name, composite) in QUICK else [pytest.mark.slow],
    )
    for name in NETWORKS
    for composite in GRADIENTS
]


@functools.cache
def program(name: str, biases: bool, embedded: bool):
    net = drawn(name, biases=biases, **({"activation_function": "gelu"} if embedded else {}))
    x = example(name, embedded)
    return net, x, ng.trace(net, x)


def example(name: str, embedded: bool) -> torch.Tensor:
    if name in ("vit", "swin"):
        return picture(1, 3, 32, 32)
    return picture(1, 5, 8) if embedded else IDS


def measured(found: ng.trace, x, composite: str) -> ng.Measure:
    rules = tiny(getattr(ng.composites, composite)())
    return ng.measure(found, x, target=TARGET, composite=rules, dtype="float64")


# Gradient times input


@pytest.mark.parametrize(("name", "composite"), FEW)
def test_gradient_times_input_at_every_module(name, composite):
    net, x, found = program(name, True, False)
    leaf = NETWORKS[name][1]
    expected = attention_gradients.relevance(
        net, [x], TARGET, (leaf,) if leaf else (), *GRADIENTS[composite]
    )
    m = measured(found, x, composite)
    ends = m.topology.inputs[0].name
    close(m.marginal(ends, by="neuron"), expected[leaf or "x"][0], ends)
    compared = set()
    for layer in m.topology.layers:
        for path in (layer.name, *layer.aliases):
            if path not in expected:
                continue
            there = expected[path].numpy().reshape(layer.shape)
            if np.abs(there).max() > 1e-9:
                close(m.marginal(layer.name, by="neuron"), there, path)
                compared.add(layer.layer_id)
    # Every layer with parameters, and residual sums that are modules.
    owned = [la for la in m.topology.layers if la.kind in ("dense", "layer_norm", "rms_norm")]
    live = [la for la in owned if np.abs(m.marginal(la.name)).max() > 1e-9]
    missing = {la.name for la in live if la.layer_id not in compared}
    assert live
    assert not missing


# autolrp


@pytest.mark.slow
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
def test_autolrp_on_transformers(name, composite):
    """From embedded vectors on."""
    import autolrp

    embedded = name != "vit"
    options = {"activation_function": "gelu"} if name == "gpt2" else {}
    net, x = drawn(name, **options), example(name, embedded)
    rules = autolrp.CPLRP if COMPOSITES[composite] else autolrp.ATTNLRP
    expected = adapted_autolrp.relevance(net, x, TARGET, rules | adapted_autolrp.BY_VALUE)
    m = measured(ng.trace(net, x), x, composite)
    close(m.marginal(m.topology.inputs[0].name, by="neuron"), expected["x"][0])


def densenet() -> nn.Module:
    """DenseNet-121, batch-norm without shift: autolrp passes relevance through it.

    What is folded here is then the convolution's own weight times a positive number.
    """
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.densenet121(num_classes=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
        net.classifier.bias.zero_()
    return net.double().eval()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
def test_autolrp_on_densenet(rule):
    net, x = densenet(), picture(1, 3, 32, 32)
    expected = adapted_autolrp.relevance(net, x, TARGET, {"ConvolutionBackward": rule})
    on_convolutions = {"epsilon": ng.rules.Epsilon(1e-14), "zplus": ng.rules.ZPlus(1e-14)}[rule]
    kinds = {
        "convolution": on_convolutions,
        "dense": ng.rules.Epsilon(1e-14),
        "batch_norm": ng.rules.Pass(),
        "average": ng.rules.Flat(1e-14),  # it spreads what a pool averages evenly
    }
    m = ng.measure(net, x, target=TARGET, composite=ng.composites.composite("tiny", kinds))
    close(m.marginal("x", by="neuron"), expected["x"][0])


# captum


def solid() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    features = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 3, (1, 2, 2), stride=(1, 2, 1)),
        nn.ReLU(),
    )
    return features, nn.Sequential(nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 4)), (2, 4, 8, 8)


def signal() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    features = nn.Sequential(
        nn.Conv1d(3, 6, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 4, 3, dilation=2),
        nn.ReLU(),
    )
    return features, nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 4)), (3, 32)


class Split(nn.Module):
    def __init__(self, features, classifier) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@pytest.mark.parametrize("make", [signal, solid])
def test_captum_epsilon_on_one_and_three_dimensions(make):
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    torch.manual_seed(0)
    features, classifier, shape = make()
    net, x = Split(features, classifier).double().eval(), picture(1, *shape)
    m = ng.measure(net, x, target=TARGET, composite="epsilon", scale="logit")
    found = m.marginal("x", by="neuron")
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv3d | nn.Linear):
            module.rule = EpsilonRule(1e-6)
    # captum starts from the logit.
    heatmap = LRP(net).attribute(x.clone().requires_grad_(True), target=TARGET)[0]
    close(found, heatmap.detach().numpy())
