"""What can be traced, what is refused, and what tracing leaves as it was."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.traced import Net, SideBySide
from torch import nn

import nrm_graph as ng
from nrm_graph.network.ir.interpreter import run
from nrm_graph.network.ir.program import from_json
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.prepared_network import Network
from nrm_graph.rules import composites

TINY = 1e-13


def net(how, **modules):
    torch.manual_seed(0)
    made = Net(how, **modules).double().eval()
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made


def conv(i, o, k=3, **options):
    return nn.Conv2d(i, o, k, **{"padding": k // 2} | options)


def head(m, x):
    return m.fc(x.mean((2, 3)))


def image(*shape):
    return torch.randn(2, *(shape or (2, 6, 6)), dtype=torch.float64)


def shared_activation(m, x):
    y = m.act(m.a(x))
    return head(m, m.act(m.b(y) + y))


def reused(m, x):
    return head(m, m.a(F.relu(m.a(x))))


def in_place(m, x):
    y = m.act(m.a(x))
    z = m.b(y)
    z += y
    return head(m, F.relu_(z))


def with_itself(m, x):
    x = m.a(x)
    return head(m, torch.cat([x, x], 1))


def functional(m, x):
    return head(m, F.conv2d(x, m.a.weight, m.a.bias, padding=1).relu())


def flattened(m, x):
    return m.fc(m.a(x).view(x.size(0), -1))


def batch_norm_before_padding(m, x):
    return head(m, m.a(m.bn(x)).relu())


def two_readers(m, x):
    y = m.a(x)
    return head(m, m.bn(y) + y)


def normed_twice(m, x):
    y = m.bn(m.a(x))
    return head(m, m.bn2(y) + y)


def masked(m, x):
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    return head(m, m.a(x).masked_fill(mask, 0.5))


def upsampled(m, x):
    return head(m, m.b(F.interpolate(m.a(x), scale_factor=2)))


def pools(*steps):
    def how(m, x):
        for step in steps:
            x = step(m.a(x) if step is steps[0] else x)
        return m.fc(x.flatten(1))

    return how


fc = nn.Linear
EXACT = {
    "shared_activation": (shared_activation, {"a": conv(2, 3), "b": conv(3, 3), "fc": fc(3, 3)}),
    "reused": (reused, {"a": conv(2, 2), "fc": fc(2, 3)}),
    "in_place": (
        in_place,
        {"a": conv(2, 3), "b": conv(3, 3), "act": nn.ReLU(inplace=True), "fc": fc(3, 3)},
    ),
    "with_itself": (with_itself, {"a": conv(2, 3), "fc": fc(6, 3)}),
    "functional": (functional, {"a": conv(2, 3), "fc": fc(3, 3)}),
    "flattened": (flattened, {"a": conv(2, 3, bias=False), "fc": fc(108, 3)}),
    "batch_norm_first": (
        batch_norm_before_padding,
        {"a": conv(2, 3), "bn": nn.BatchNorm2d(2), "fc": fc(3, 3)},
    ),
    "two_readers": (two_readers, {"a": conv(2, 3), "bn": nn.BatchNorm2d(3), "fc": fc(3, 3)}),
    "normed_twice": (
        normed_twice,
        {
            "a": conv(2, 3, bias=False),
            "bn": nn.BatchNorm2d(3, affine=False),
            "bn2": nn.BatchNorm2d(3),
            "fc": fc(3, 3),
        },
    ),
    "masked": (masked, {"a": conv(2, 3), "fc": fc(3, 3)}),
    "upsampled": (upsampled, {"a": conv(2, 3), "b": conv(3, 3, stride=2), "fc": fc(3, 3)}),
    "ceil_mode": (
        pools(lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), lambda x: F.avg_pool2d(x, 2, 1)),
        {"a": conv(2, 3, 2, padding=0), "fc": fc(12, 3)},
    ),
    "dilated": (
        pools(lambda x: F.max_pool2d(x, 2, 1, 0, 2), lambda x: F.adaptive_avg_pool2d(x, 3)),
        {"a": conv(2, 3, dilation=2), "fc": fc(27, 3)},
    ),
    "to_one": (pools(nn.AdaptiveAvgPool2d(1)), {"a": conv(2, 3), "fc": fc(3, 3)}),
}
SHARED = {"shared_activation": {"act": nn.ReLU()}}


def build(name):
    how, modules = EXACT[name]
    return net(how, **modules, **SHARED.get(name, {}))


def topology(model, x):
    return layout(trace(model, x)).topology


@functools.cache
def exact():
    """All of these networks side by side, inputs, and their program, which several tests look at.

    Three outputs are of each.
    """
    model, x = SideBySide({name: build(name) for name in EXACT}).eval(), image()
    return model, x, trace(model, x[:1])


def layers_of(name):
    """Layers of one of the networks by their names in it, in order."""
    start, found = f"parts.{name}.", layout(exact()[2]).topology.layers
    return {x.name.removeprefix(start): x for x in found if x.name.startswith(start)}


def test_networks_side_by_side_answer_and_come_back():
    model, x, program = exact()
    torch.testing.assert_close(run(program, x), model(x))
    assert from_json(program.to_json(), program.weights).hash() == program.hash()


@pytest.mark.parametrize("name", EXACT)
def test_relevance_is_input_times_gradient(name):
    """Epsilon with eps to 0 equals input times gradient over output; cuts sum to 1."""
    model, x, program = exact()
    rules = dict.fromkeys(
        ("convolution", "dense", "batch_norm", "sum", "average"), ng.rules.Epsilon(TINY)
    )
    target = 3 * list(EXACT).index(name) + 1
    m = ng.measure(
        from_json(program.to_json(), program.weights),
        x[:1],
        target=target,
        composite=composites.composite("exact", rules),
        resolution="neuron",
    )
    leaf = x[:1].clone().requires_grad_(True)
    out = model(leaf)[0, target]
    (gradient,) = torch.autograd.grad(out, leaf)
    expected = (leaf * gradient / out)[0].detach().numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(m.marginal("x", "neuron"), expected, rtol=0, atol=1e-9 * scale)
    for layer in (m.topology.layer("x"), *layers_of(name).values()):
        assert m.cut(layer.name).total == pytest.approx(1, abs=1e-9 * scale)


@pytest.mark.smoke
def test_aliases_of_a_shared_activation():
    found = layout(exact()[2]).topology
    part = "parts.shared_activation"
    assert found.layer(f"{part}.act").name == f"{part}.a"
    assert found.layer(f"{part}.act@1").name == f"{part}.add"


@pytest.mark.smoke
def test_a_reused_module_is_a_layer_per_call():
    assert list(layers_of("reused")) == ["a", "a@1", "average", "fc"]


def test_a_functional_call_is_named_by_its_parameter():
    assert list(layers_of("functional")) == ["a", "average", "fc"]


@pytest.mark.smoke
def test_batch_norm_folds_only_where_exact():
    for name, norm in (("batch_norm_first", "bn"), ("two_readers", "bn"), ("normed_twice", "bn2")):
        assert layers_of(name)[norm].kind == "batch_norm"
    assert "bn" not in layers_of("normed_twice")


@pytest.mark.parametrize("d", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_batch_norm_of_any_dimension(d):
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[d - 1]
    step = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    model = net(lambda m, x: m.s(x).flatten(1), s=nn.Sequential(step(2, 3, 2), norm(3), norm(3)))
    x = image(2, *[3] * d)
    program = trace(model, x[:1])
    torch.testing.assert_close(run(program, x), model(x))
    found = layout(program).topology
    assert [layer.name for layer in found.layers] == ["x", "s.0", "output"]
    assert found.layer("s.1") == found.layer("s.2") == found.layer("s.0")


def test_aliases_hold_the_same_neurons():
    model = nn.Sequential(
        conv(2, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Identity(),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.Flatten(),
        nn.Tanh(),
        nn.Linear(4, 3),
    ).double()
    found = topology(model, image()[:1])
    assert [layer.name for layer in found.layers] == ["input", "0", "8", "11"]
    for alias in ("1", "2", "3", "4"):
        assert found.layer(alias).name == "0"
    for alias in ("9", "10"):
        assert found.layer(alias).name == "8"
    for pooled in ("5", "6", "7"):
        with pytest.raises(ng.EventError, match="there is no layer"):
            found.layer(pooled)


def test_modules_with_odd_names():
    model = net(
        lambda m, x: m.blocks["b@1"](F.relu(m.blocks["a b-c"](x))),
        blocks=nn.ModuleDict({"a b-c": nn.Linear(3, 4), "b@1": nn.Linear(4, 2)}),
    )
    found = topology(model, image(3)[:1])
    assert [layer.name for layer in found.layers] == ["x", "blocks.a b-c", "blocks.b@1"]


def test_the_argument_names_the_input():
    class Add(nn.Module):
        def forward(self, input, relu):
            return F.relu(input + relu)

    found = topology(Add(), (torch.randn(1, 3), torch.randn(1, 3)))
    assert [(i.name, i.shape) for i in found.inputs] == [("input", (3,)), ("relu", (3,))]
    assert found.sources(2) == (0, 1)


def test_several_inputs_are_traced_and_all_of_them_are_wanted():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    model = Two()
    program = trace(model, (torch.randn(3), torch.randn(5)))
    x, y = torch.randn(2, 3), torch.randn(2, 5)
    torch.testing.assert_close(run(program, x, y), model(x, y))
    with pytest.raises(
        ng.InputError, match=r"x holds 1 tensor, expected 2: the network takes left, right"
    ):
        ng.measure(program, torch.randn(1, 3), composite="epsilon")
    with pytest.raises(ng.InputError):
        ng.measure(model, torch.randn(1, 3), composite="epsilon")


def test_tracing_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    seen = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    program = trace(model.train(), torch.randn(1, 3))
    assert not any(w.requires_grad for w in program.weights.values())
    assert all(module.training for module in model.modules())
    model.train()
    model[1].eval()
    trace(model, torch.randn(1, 3))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model[0].parameters()] == [False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(model[0]._forward_hooks) == 1
    assert not model._forward_pre_hooks
    assert seen
    handle.remove()


def test_a_model_in_training_mode_is_restored_when_tracing_fails():
    model = net(lambda m, x: torch.sin(m.a(x)), a=nn.Linear(3, 3)).train()
    with pytest.raises(ng.TraceError, match=r"aten\.sin\.default"):
        trace(model, image(3)[:1])
    assert model.training
    assert model.a.training


REFUSED = {
    "unknown": (lambda m, x: m.a(x).sin(), r"aten\.sin\.default in the model itself"),
    "quotient": (lambda m, x: m.a(x) / (x.abs() + 1), "abs|two values"),
    "random": (lambda m, x: m.a(x) + torch.rand(3, dtype=x.dtype), "random"),
    "log_softmax": (lambda m, x: torch.log_softmax(m.a(x), 1), "leave the log-softmax out"),
    "weight_of_the_input": (lambda m, x: F.linear(x, m.a(x[:1]).expand(3, 3)), "batch"),
    "norm_of_channels": (
        lambda m, x: (
            m.a(x).unsqueeze(2)
            * torch.rsqrt(m.a(x).unsqueeze(2).square().mean(1, keepdim=True) + 1e-6)
        ),
        "over the last axes",
    ),
    "constant": (lambda m, x: m.a.weight.expand(x.shape[0], 3, 3)[:, 0], "does not depend|batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_when_traced(name):
    how, message = REFUSED[name]
    with pytest.raises(ng.TraceError, match=message):
        trace(net(how, a=nn.Linear(3, 3)), image(3)[:1])


def test_several_outputs_need_a_choice():
    model = net(lambda m, x: (m.a(x), x), a=nn.Linear(3, 3))
    with pytest.raises(ng.InputError, match=r"returns 2 tensors: 0 of shape \(1, 3\), 1 "):
        trace(model, image(3)[:1])


def test_meta_parameters_are_refused():
    with pytest.raises(ng.TraceError, match="meta device"):
        trace(nn.Linear(3, 2, device="meta"), torch.randn(1, 3))


def attention(**options):
    def how(m, x):
        q, k, v = m.qkv(x).view(x.shape[0], 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, **options)
        return m.fc(m.norm(y.transpose(1, 2).flatten(2)).mean(1))

    return how


@pytest.mark.parametrize(
    "options",
    [
        {},
        # What these two do, test_grouped_heads_and_einsum shows of one network.
        pytest.param({"is_causal": True}, marks=pytest.mark.slow),
        pytest.param({"scale": 0.3}, marks=pytest.mark.slow),
        {"attn_mask": torch.eye(4, dtype=torch.bool)},
        {"attn_mask": torch.randn(4, 4, dtype=torch.float64)},
    ],
    ids=["plain", "causal", "scaled", "boolean", "additive"],
)
def test_attention_is_taken_apart(options):
    model = net(
        attention(**options), qkv=nn.Linear(5, 18), norm=nn.LayerNorm(6), fc=nn.Linear(6, 3)
    )
    x = image(4, 5)
    program = trace(model, x[0])
    torch.testing.assert_close(run(program, x), model(x))
    torch.testing.assert_close(run(program, x[1:]), model(x[1:]))
    found = layout(program).topology
    kinds = {layer.name: (layer.kind, layer.shape) for layer in found.layers}
    assert kinds["product"] == ("product", (2, 4, 4))
    assert kinds["attention_weights"] == ("softmax", (2, 4, 4))
    assert kinds["attention"] == ("attention", (2, 4, 3))
    reads = [found.layers[i].name for i in found.sources(found.layer("attention").layer_id)]
    assert reads == ["qkv", "attention_weights"]
    with pytest.raises(
        ng.CompositeError, match=r"no rule for product \(product\); softmax \(.*attn_lrp"
    ):
        ng.measure(program, x[:1], composite="epsilon")
    network = Network(program, layout(program), composites.epsilon(), (None,) * len(kinds))
    torch.testing.assert_close(forward(network, x).output, model(x))


WEIGHED = {
    "gate": lambda m, x: m.a(x) * torch.sigmoid(m.a(x)),
    "square": lambda m, x: m.a(x) * m.a(x),
    "group_norm": lambda m, x: F.group_norm(m.a(x), 3),
    "instance_norm": lambda m, x: F.instance_norm(m.a(x)),
    "rms_norm": lambda m, x: F.rms_norm(m.a(x), (6,)),
    "layer_norm": lambda m, x: F.layer_norm(m.a(x), (6, 6)),
    "softmax": lambda m, x: torch.softmax(m.a(x), 1),
    "interpolation": lambda m, x: F.interpolate(m.a(x), scale_factor=2, mode="bilinear"),
}


def test_normalisations_products_and_interpolation_are_layers():
    parts = {
        name: net(lambda m, x, how=how: m.fc(how(m, x).mean((2, 3))), a=conv(2, 3), fc=fc(3, 2))
        for name, how in WEIGHED.items()
    }
    model, x = SideBySide(parts).eval(), image()
    program = trace(model, x[:1])
    torch.testing.assert_close(run(program, x), model(x))
    for place, name in enumerate(WEIGHED):
        found = ng.measure(program, x[:1], target=2 * place, composite="attn_lrp")
        kind = {"square": "multiplication"}.get(name, name)
        layers = [
            layer
            for layer in found.topology.layers
            if layer.name.startswith(f"parts.{name}.") or layer.kind == kind
        ]
        assert [layer.kind for layer in layers].count(kind) == 1
        variation = max(found.report()["total_variation"].to_pylist())
        for layer in layers:  # sums of about 1e2 terms
            assert abs(found.cut(layer.name).total - 1) < TINY * max(1, variation), layer.name
