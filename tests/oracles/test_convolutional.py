"""Independent implementations of relevance propagation: autolrp, zennit, zennit-crp, captum.

The packages are for tests only.  Where their semantics differ from this package's, a comment at
the test says so.  Every comparison is in float64, relative to the largest value.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the oracles: hooks and deprecations


def close(found, expected, tolerance: float = 1e-7) -> None:
    expected = np.asarray(expected, np.float64)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * scale)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Batch-norm statistics and parameters that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                # zennit leaves its merged batch-norm a factor 1 / sqrt(1 + eps).
                module.eps = 0.0
    return net.double().eval()


def picture(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def zennit_relevance(net, composite, x, target, names=()):
    """Relevance at the outputs of the named modules and at the input, for a unit seed."""
    from zennit.attribution import Gradient

    def keep(module, _, output):
        module.kept = output
        output.retain_grad()

    modules = dict(net.named_modules())
    count = net(x[None]).shape[1]
    with Gradient(net, composite) as attributor:
        hooks = [modules[name].register_forward_hook(keep) for name in names]
        seed = torch.eye(count, dtype=x.dtype)[[target]]
        _, heatmap = attributor(x[None].clone().requires_grad_(True), seed)
        found = {name: modules[name].kept.grad[0].numpy() for name in names}
        for name in names:
            del modules[name].kept
    for hook in hooks:
        hook.remove()
    return found, heatmap[0].detach().numpy()


def zennit_composite(name, canonizers=()):
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus, LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Epsilon, Gamma, Norm, Pass
    from zennit.types import Activation, AvgPool, Convolution, Linear

    if name == "epsilon_plus":
        return EpsilonPlus(canonizers=list(canonizers))
    if name == "epsilon_alpha2_beta1":
        return EpsilonAlpha2Beta1(canonizers=list(canonizers))
    on_convolutions = {"epsilon": Epsilon(1e-6), "epsilon_gamma": Gamma(0.25)}[name]
    rules = [(Activation, Pass()), (Sum, Norm()), (AvgPool, Norm())]
    rules += [(Convolution, on_convolutions), (Linear, Epsilon(1e-6))]
    return LayerMapComposite(rules, canonizers=list(canonizers))


# ResNet


@pytest.fixture(scope="module")
def resnet():
    import torchvision

    torch.manual_seed(0)
    return randomised(torchvision.models.resnet18(num_classes=10))


@pytest.fixture(scope="module")
def resnet_program(resnet):
    return ng.trace(resnet, picture(3, 64, 64))


def channels(values) -> np.ndarray:
    values = np.asarray(values)
    return values.reshape(len(values), -1).sum(1)


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon"])
def test_resnet18_against_zennit(resnet, resnet_program, name):
    """Its canonizer merges batch-norm and makes modules of the sums, which get Norm as here.

    zennit gives batch-norm Pass where it is not merged; here it is always folded or Epsilon.
    """
    from zennit.torchvision import ResNetCanonizer

    x = picture(3, 64, 64)
    layers = ("layer1.0.conv1", "layer2.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2")
    composite = zennit_composite(name, [ResNetCanonizer()])
    expected, heatmap = zennit_relevance(resnet, composite, x, 3, layers)
    m = ng.measure(resnet_program, x, target=3, composite=name)
    close(m.marginal("x", by="neuron"), heatmap)
    for layer in layers:
        close(m.marginal(layer, by="neuron"), expected[layer])


class Functional(nn.Module):
    """Residual, with functional sums and ReLUs that zennit's hooks do not see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(3))
        self.down = nn.Conv2d(6, 6, 1, stride=2, bias=False)
        self.head = nn.Linear(6 * 16, 4, bias=False)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        h = torch.relu(self.b(torch.relu(self.a(h)))) + h
        h = torch.relu(self.c(torch.max_pool2d(h, 2))) + torch.relu(self.down(h))
        return self.head(h.flatten(1))


@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
def test_a_functional_residual_network_against_autolrp(rule):
    """It works on the autograd graph.

    Its semantics are others where a bias counts (the bias keeps |b| / (|z| + |b|)) and where
    operands of a sum have two signs (shares of magnitudes): hence no biases, and ReLU before
    the sums.
    """
    import autolrp

    torch.manual_seed(0)
    net, x = Functional().double(), picture(3, 8, 8)
    kinds = {"ConvolutionBackward": rule}
    wrapped = autolrp.tensor(x[None].clone())
    config = autolrp.LRPConfig(rule={**autolrp.BASE, **kinds}, eps=1e-13)
    net(wrapped)[0, 3].lrp(config=config)
    heatmap = wrapped.relevance.detach().as_subclass(torch.Tensor)[0].numpy()
    on_convolutions = {"epsilon": ng.rules.Epsilon(1e-13), "zplus": ng.rules.ZPlus(1e-13)}[rule]
    composite = ng.composites.composite(
        "tiny",
        {
            "convolution": on_convolutions,
            "dense": ng.rules.Epsilon(1e-13),
            "sum": ng.rules.Norm(1e-13),
        },
    )
    m = ng.measure(net, x, target=3, composite=composite)
    close(m.marginal("x", by="neuron"), heatmap)


# Sequential networks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma"])
def test_vgg11_bn_against_zennit(name):
    import torchvision
    from zennit.torchvision import VGGCanonizer

    torch.manual_seed(0)
    net = randomised(torchvision.models.vgg11_bn(num_classes=10))
    x = picture(3, 64, 64)
    layers = ("features.0", "features.11", "features.25", "classifier.0", "classifier.3")
    expected, heatmap = zennit_relevance(
        net, zennit_composite(name, [VGGCanonizer()]), x, 3, layers
    )
    m = ng.measure(net, x, target=3, composite=name)
    close(m.marginal("x", by="neuron"), heatmap)
    for layer in layers:
        close(m.marginal(layer, by="neuron"), expected[layer])


def varied() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, dilation=2, padding=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(6, 6, (3, 2), groups=6, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(18, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )


@pytest.mark.parametrize(
    "name", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma"]
)
def test_a_varied_network_against_zennit(name):
    from zennit.canonizers import SequentialMergeBatchNorm

    net, x = randomised(varied()), picture(4, 18, 18)
    layers = ("0", "2", "5", "6", "10", "12")
    net[10] = nn.Linear(net[:10](x[None]).shape[1], 8).double()
    composite = zennit_composite(name, [SequentialMergeBatchNorm()])
    expected, heatmap = zennit_relevance(net, composite, x, 2, layers)
    m = ng.measure(net, x, target=2, composite=name)
    close(m.marginal("input", by="neuron"), heatmap)
    for layer in layers:
        if layer != "2":  # followed by the merged batch-norm: its own output has no gradient
            close(m.marginal(layer, by="neuron"), expected[layer])


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(45, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    ).double()


@pytest.mark.smoke
def test_captum_epsilon():
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    class Split(nn.Module):  # it knows no nn.Flatten
        def __init__(self):
            super().__init__()
            self.features, self.classifier = plain()[:8], plain()[9:]

        def forward(self, x):
            return self.classifier(self.features(x).flatten(1))

    net, x = Split(), picture(3, 12, 12)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.rule = EpsilonRule(1e-6)
    # captum starts from the logit.
    heatmap = LRP(net).attribute(x[None].clone().requires_grad_(True), target=2)[0]
    m = ng.measure(plain(), x, target=2, composite="epsilon", scale="logit")
    close(m.marginal("input", by="neuron"), heatmap.detach().numpy())


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_gamma"])
def test_joint_tables_of_zennit_crp(name):
    """Conditions of two layers, each channel by itself; ``exclude_parallel`` is "passes"."""
    pytest.importorskip(
        "crp", reason="zennit-crp pins an older zennit: pip install --no-deps zennit-crp==0.6.0"
    )
    from crp.attribution import CondAttribution

    net, x = plain(), picture(3, 12, 12)
    attribution = CondAttribution(net)
    rows = [(k, j) for k in (0, 2, 4) for j in (1, 5)]
    conditions = [{"y": [2], "5": [k], "3": [j]} for k, j in rows]
    batch = x[None].clone().requires_grad_(True)
    found = attribution(batch, conditions, zennit_composite(name), record_layer=["0"], init_rel=1)
    m = ng.measure(net, x, target=2, composite=name)
    joint = found.relevances["0"].detach().sum((2, 3)).numpy()
    for row, (k, j) in enumerate(rows):
        A, B = ng.Layer("5")[k], ng.Layer("3")[j]
        mine = [m(A & B & ng.Layer("0")[c]) for c in range(6)]
        np.testing.assert_allclose(mine, joint[row], rtol=0, atol=1e-8 * np.abs(joint).max())
