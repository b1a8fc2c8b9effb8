"""Composites of zennit that are translated: their numbers against zennit's own, and refusals."""

from __future__ import annotations

import functools
import inspect
import re

import pytest
import torch
from oracles.test_convolutional import close, picture, plain, randomised, zennit_relevance
from torch import nn
from zennit import canonizers, composites, core, layer, rules, types
from zennit import torchvision as zennit_torchvision

import nrm_graph as ng
from nrm_graph.rules import registry, zennit_bridge, zennit_rules

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore")  # of zennit: hooks and deprecations

translated = ng.composites.from_zennit


class Small(nn.Module):
    """A folded and a free batch norm, a sum that zennit sees, pools, and no input above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = (
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
        )
        self.left, self.right = (
            nn.Conv2d(5, 4, 3, padding=1),
            nn.ConvTranspose2d(5, 4, 3, padding=1),
        )
        self.join, self.relu1, self.free = layer.Sum(), nn.ReLU(), nn.BatchNorm2d(4)
        self.pool, self.average = nn.MaxPool2d(2), nn.AvgPool2d(2, 1)
        self.inner, self.relu2, self.head = nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu1(self.join(torch.stack([self.left(x), self.right(x)], -1)))
        x = self.average(self.pool(self.free(x)))
        return self.head(self.relu2(self.inner(x.flatten(1))))


@functools.cache
def network():
    torch.manual_seed(0)
    net, x = randomised(Small()), torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    return net, x.double(), ng.trace(net, x.double())


def merged():
    return [canonizers.SequentialMergeBatchNorm()]


def agrees(chosen, names=("left", "inner")):
    net, x, program = network()
    expected, heatmap = zennit_relevance(net, chosen, x, 1, names)
    m = ng.measure(program, x, target=1, composite=translated(chosen))
    close(m.marginal("x", by="neuron"), heatmap, 1e-9)
    for name in names:
        close(m.marginal(name, by="neuron"), expected[name], 1e-9)


LOW, HIGH = torch.tensor([-1.0, 0.0, -0.5]).view(1, 3, 1, 1), 1.5 * torch.ones(1, 3, 6, 6)
NAMED = {
    "EpsilonGammaBox": {"low": LOW, "high": HIGH, "gamma": 0.7},
    "EpsilonPlus": {},
    "EpsilonAlpha2Beta1": {},
    "EpsilonPlusFlat": {},
    "EpsilonAlpha2Beta1Flat": {},
}


@pytest.mark.smoke
@pytest.mark.parametrize("zeroed", [None, "bias", ["bias"]])
@pytest.mark.parametrize("name", NAMED)
def test_named_composites(name, zeroed):
    agrees(getattr(composites, name)(**NAMED[name], zero_params=zeroed, canonizers=merged()))


@pytest.mark.parametrize("zeroed", [None, "bias"])
def test_excitation_backprop(zeroed):
    """It has no rules for activations and batch norms: ReLU's gradient is as good as Pass."""
    net, x = plain(), picture(3, 12, 12)
    chosen = composites.ExcitationBackprop(zero_params=zeroed)
    _, heatmap = zennit_relevance(net, chosen, x, 2)
    m = ng.measure(net, x, target=2, composite=translated(chosen))
    close(m.marginal("input", by="neuron"), heatmap, 1e-9)
    added = [(types.BatchNorm, rules.Pass()), (types.Activation, rules.Pass())]
    agrees(composites.ExcitationBackprop(layer_map=added, zero_params=zeroed, canonizers=merged()))


def test_large_stabilizers_tell_where_they_are_added():
    agrees(
        composites.EpsilonGammaBox(
            low=-0.5, high=2, gamma=2.0, epsilon=0.3, stabilizer=0.2, canonizers=merged()
        )
    )
    agrees(composites.EpsilonAlpha2Beta1(epsilon=0.0, stabilizer=0.2, canonizers=merged()))


BASE = composites.layer_map_base(1e-3)
MADE = {
    "every rule": lambda: composites.LayerMapComposite(
        [*BASE, (types.Convolution, rules.WSquare(0.1)), (nn.Linear, rules.Flat(0.2))]
    ),
    "mixed zero_params": lambda: composites.LayerMapComposite(
        [
            *BASE,
            (types.Convolution, rules.Gamma(0.5, zero_params="bias")),
            (nn.Linear, rules.Epsilon(0.1)),
        ]
    ),
    "zbox and norm on dense": lambda: composites.LayerMapComposite(
        [
            ((nn.ReLU, types.BatchNorm), rules.Pass()),
            ((layer.Sum, nn.AvgPool2d), rules.Epsilon(0.01)),
            (types.Convolution, rules.ZBox(-2.0, torch.tensor(3.0))),
            (nn.Linear, rules.Norm(0.1)),
        ]
    ),
    "the first of a map counts": lambda: composites.LayerMapComposite(
        [
            (types.ConvolutionStandard | types.ConvolutionTranspose, rules.ZPlus()),
            *BASE,
            (types.Linear, rules.AlphaBeta(1.0, 0.0)),
        ]
    ),
    "first": lambda: composites.SpecialFirstLayerMapComposite(
        [*BASE, (types.Linear, rules.ZPlus())], [(nn.Conv2d, rules.WSquare())]
    ),
    "names": lambda: composites.NameLayerMapComposite(
        name_map=[(("stem", "head"), rules.Gamma(1.0)), (("stem", "left"), rules.Flat())],
        layer_map=[*BASE, (types.Linear, rules.Epsilon())],
    ),
    "mixed": lambda: composites.MixedComposite(
        [
            composites.NameMapComposite([(("left",), rules.ZPlus())]),
            composites.EpsilonPlusFlat(layer_map=[(nn.Linear, rules.AlphaBeta())]),
        ]
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_composites_made_of_maps(name):
    chosen = MADE[name]()
    chosen.canonizers = [canonizers.CompositeCanonizer(merged())]
    agrees(chosen)


def test_a_composite_of_the_users_own_class():
    class Mine(composites.SpecialFirstLayerMapComposite):
        def __init__(self):
            first = [(types.Convolution, rules.ZBox(0.0, 1.0))]
            base = [*composites.layer_map_base(), (types.Linear, rules.Gamma(0.3))]
            super().__init__(base, first, canonizers=merged())

    agrees(Mine())
    assert translated(Mine()).name.endswith("Mine")


def test_a_registered_hook_is_read_like_its_template():
    template = rules.Gamma(0.3, 0.01)
    made = composites.LayerMapComposite([(types.Linear, template.copy())])
    kinds = dict(translated(made).kinds)
    assert kinds["convolution"] == kinds["dense"] == ng.rules.Gamma(0.3, 0.01)


def test_kinds_that_zennit_does_not_name_have_the_usual_rules():
    kinds = dict(translated(composites.EpsilonPlus(epsilon=0.1, stabilizer=0.2)).kinds)
    usual = dict(ng.composites.epsilon_plus().kinds)
    changed = {
        "convolution": ng.rules.ZPlus(0.2),
        "dense": ng.rules.Epsilon(0.1),
        "sum": ng.rules.Norm(0.2),
        "average": ng.rules.Norm(0.2),
        "batch_norm": ng.rules.Pass(),
    }
    assert kinds == usual | changed
    few = translated(composites.LayerMapComposite([(nn.Conv2d, rules.ZPlus())]))
    assert dict(few.kinds).keys() == usual.keys() - {"dense"}
    _, x, program = network()
    with pytest.raises(ng.CompositeError, match=r"has no rule for dense \(inner, head\)"):
        ng.measure(program, x, target=0, composite=few)


def test_ignoring_biases_is_another_reading_than_zero_params():
    """Gamma tells its cases by z with its bias, in zennit; so a store keeps zero_params."""
    net, x, program = network()
    chosen = translated(composites.EpsilonGammaBox(0.0, 1.0, zero_params="bias"))
    assert chosen.bias == "absorbed"
    _, heatmap = zennit_relevance(
        net,
        composites.EpsilonGammaBox(0.0, 1.0, zero_params="bias", canonizers=merged()),
        x,
        1,
    )
    ignored = ng.composites.get(chosen, "ignored")
    m = ng.measure(program, x, target=1, composite=ignored)
    with pytest.raises(AssertionError):
        close(m.marginal("x", by="neuron"), heatmap, 1e-6)


def test_a_translated_composite_is_stored():
    chosen = translated(MADE["names"]())
    again = ng.composites.from_json(chosen.to_json())
    assert again == chosen
    assert again.name == "zennit.NameLayerMapComposite"
    registry.check_registered(rule for _, rule in again.kinds)


def test_names_are_no_patterns():
    made = composites.NameMapComposite([(("a*", "b[0]"), rules.ZPlus())])
    assert [name for name, _ in translated(made).layers] == ["a[*]", "b[[]0]"]


def of(kind, rule):
    return composites.LayerMapComposite([(kind, rule)])


def replaced():
    rule = rules.Epsilon()
    rule.gradient_mapper = lambda out_grad, outputs: out_grad
    return rule


class Own(nn.Module):
    pass


class Overriding(composites.LayerMapComposite):
    def mapping(self, ctx, name, module):
        return None


class Canonizing(canonizers.AttributeCanonizer):
    def __init__(self):
        super().__init__(lambda name, module: None)


PIXELS = torch.rand(1, 3, 6, 6)
REFUSED = {
    "text": (lambda: "epsilon_plus", "expected a composite of zennit, as an object .*builtins.str"),
    "class": (lambda: composites.EpsilonPlus, "found the class zennit.composites.EpsilonPlus"),
    "function": (lambda: core.Composite(lambda ctx, name, module: None), "made of maps"),
    "override": (lambda: Overriding([]), "chooses rules by a function of its own"),
    "deconvnet": (composites.DeconvNet, "ReLUDeconvNet changes gradients"),
    "guided": (composites.GuidedBackprop, "ReLUGuidedBackprop changes gradients"),
    "beta smooth": (composites.BetaSmooth, "ReLUBetaSmooth changes gradients"),
    "hook": (lambda: of(nn.Linear, core.BasicHook()), r"zennit\.core\.BasicHook is no rule of"),
    "replaced": (lambda: of(nn.Linear, replaced()), "gradient_mapper of zennit's Epsilon is not"),
    "callable": (lambda: of(nn.Linear, rules.Epsilon(torch.sign)), "give .* a number as epsilon"),
    "clip": (
        lambda: of(nn.Linear, rules.ZPlus(core.Stabilizer(clip=True))),
        "stabilizer of zennit's ZPlus is no plain number.* a number as stabilizer",
    ),
    "scaled": (lambda: of(nn.Linear, rules.Norm(core.Stabilizer(norm_scale=True))), "no plain"),
    "negative": (lambda: of(nn.Linear, rules.Epsilon(-1.0)), "epsilon must be a finite number of"),
    "weights": (
        lambda: composites.EpsilonPlus(zero_params=["weight", "bias"]),
        r"zennit's ZPlus has zero_params=\['bias', 'weight'\]: only biases",
    ),
    "pixels": (
        lambda: composites.EpsilonGammaBox(low=PIXELS, high=1.0),
        r"low of zennit's ZBox has the shape \(1, 3, 6, 6\) and differs along the axes \[1, 2, 3\]",
    ),
    "list": (lambda: composites.EpsilonGammaBox(low=[0.0], high=1.0), "low of zennit's ZBox is"),
    "reversed": (lambda: composites.EpsilonGammaBox(2.0, 1.0), "low must not be above high"),
    "two sorts": (
        lambda: composites.LayerMapComposite(
            [(types.ConvolutionStandard, rules.ZPlus()), (types.Linear, rules.Epsilon())]
        ),
        r"ZPlus\(.*\) for Conv1d and Epsilon\(.*\) for ConvTranspose1d, which are one kind",
    ),
    "own class": (lambda: of(Own, rules.Epsilon()), "Own, which is no kind of layer here"),
    "all classes": (lambda: of(nn.Module, rules.Epsilon()), "Module, which is no kind of layer"),
    "activation": (lambda: of(types.Activation, rules.Epsilon()), "activations pass relevance on"),
    "max": (lambda: of(types.MaxPool, rules.Norm()), "Norm for MaxPool1d: max pooling gives"),
    "average": (lambda: of(types.AvgPool, rules.ZPlus()), "average pooling takes Norm or Epsilon"),
    "sum": (lambda: of(layer.Sum, rules.Pass()), "Pass for Sum: sums take Norm or Epsilon"),
    "batch norm": (
        lambda: of(types.BatchNorm, rules.Gamma()),
        "Gamma for BatchNorm1d: batch norms take",
    ),
    "layer norm": (lambda: of(nn.LayerNorm, rules.Epsilon()), "differentiates a norm with its spr"),
    "pass": (lambda: of(nn.Linear, rules.Pass()), "Pass for Linear: Pass is for what is element"),
    "silenced": (
        lambda: of(types.Linear, rules.Flat()),
        "Flat of 'convolution' gives relevance to neurons that an activation has silenced",
    ),
    "silenced by Pass": (
        lambda: of((nn.BatchNorm2d, nn.GELU), rules.Pass()),
        "Pass of 'batch_norm' gives relevance to neurons that an activation has silenced",
    ),
    "substring": (
        lambda: composites.NameMapComposite([("conv1", rules.Epsilon())]),
        r"takes tuples of names such as \('conv1',\), found 'conv1'",
    ),
    "named pass": (
        lambda: composites.NameMapComposite([(("relu1",), rules.Pass())]),
        "gives Pass to relu1: what is no layer",
    ),
    "names last": (
        lambda: composites.MixedComposite(
            [of(nn.Linear, rules.ZPlus()), composites.NameMapComposite([(("a",), rules.ZPlus())])]
        ),
        "put its NameMapComposite first",
    ),
    "canonizer": (
        lambda: composites.EpsilonPlus(canonizers=[Canonizing()]),
        "Canonizing changes the network in a way that is not known here",
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ng.CompositeError, match=message) as refused:
        translated(make())
    assert "\n" not in str(refused.value)


def test_what_is_not_translated_says_how():
    with pytest.raises(ng.CompositeError, match=r"translate it with ng\.composites\.from_zennit"):
        ng.composites.get(composites.EpsilonPlus())


def test_canonizers_of_torchvision_are_left_aside():
    for canonizer in (zennit_torchvision.VGGCanonizer(), zennit_torchvision.ResNetCanonizer()):
        chosen = translated(composites.EpsilonPlus(canonizers=[canonizer]))
        assert chosen.name == "zennit.EpsilonPlus"


def test_zennit_is_not_needed():
    """Classes are known by their names alone: these are none of zennit's."""
    for module in (zennit_bridge, zennit_rules):
        assert not re.search(r"^\s*(import|from) zennit", inspect.getsource(module), re.M)
    stranger = type("EpsilonPlus", (), {"__module__": "zennit.composites"})
    with pytest.raises(ng.CompositeError, match=r"an object of zennit\.composites\.EpsilonPlus"):
        translated(stranger())
