"""Inputs, models and options: what does not fit is refused, what users vary changes nothing."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
from helpers.small_convolution import A, B, L, image, network, program
from torch import nn

import nrm_graph as ng


@pytest.fixture(scope="module")
def m():
    return ng.measure(network(), image(), target=1, dtype="float64")


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


WRONG_INPUTS = {
    "nan": lambda x: x.clone().index_fill(0, torch.tensor([0]), float("nan")),
    "infinity": lambda x: x / 0,
    "channels": lambda x: torch.cat([x, x]),
    "size": lambda x: torch.randn(2, 6, 6),
    "batch of two": lambda x: torch.stack([x, x]),
    "batch of none": lambda x: x[None][:0],
    "flat": lambda x: x.flatten(),
    "number": lambda x: torch.tensor(1.0),
    "array": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "nothing": lambda x: None,
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_inputs_that_do_not_fit(name):
    with pytest.raises(ng.InputError):
        ng.measure(network(), WRONG_INPUTS[name](image()), target=1)


SAME_INPUTS = {
    "batch of one": lambda x: x[None],
    "double": lambda x: x.double(),
    "parameter": lambda x: nn.Parameter(x),
    "strided": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "channels last": lambda x: x[None].to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", SAME_INPUTS)
def test_forms_of_one_input(name, m):
    found = ng.measure(network(), SAME_INPUTS[name](image()), target=1, dtype="float64")
    np.testing.assert_allclose(found.marginal("0"), m.marginal("0"), atol=1e-9)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, pytest.param(torch.uint8, marks=pytest.mark.slow)]
)
def test_integer_inputs_are_numbers(dtype):
    x = (image() > 0).to(dtype)
    found = ng.measure(network(), x, target=1, dtype="float64")
    same = ng.measure(program(), x.float(), target=1, dtype="float64")
    np.testing.assert_array_equal(found.marginal("0"), same.marginal("0"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_explained_in_float32(dtype):
    torch.manual_seed(0)
    m = ng.measure(nn.Linear(3, 2).to(dtype), torch.ones(3), target=0)
    assert m.marginal("dense").dtype == np.float32
    assert m.cut("input").total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        *((4, 4), (1, 4, 4), (16,)),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((2, 8), (1, 1, 4, 4), (1, 16))),
    ],
)
def test_a_network_that_accepts_any_shape(shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math_prod(shape), 2))
    m = ng.measure(net, torch.randn(shape), target=0, dtype="float64")
    assert m.cut("input").total == pytest.approx(1, abs=1e-9)


def math_prod(shape):
    return int(np.prod(shape))


@pytest.mark.parametrize("model", [None, lambda x: x, 3, "vgg16", nn.Linear])
def test_models_must_be_modules(model):
    with pytest.raises(ng.InputError, match="model must be"):
        ng.measure(model, torch.ones(3))


@pytest.mark.parametrize(
    "option",
    [{"composite": c} for c in ("nope", 3, ng.rules.Epsilon(), ["epsilon"])]
    + [{"resolution": r} for r in ("nope", None, 3, ["channel"], {"nope": "channel"}, {"0": [1]})]
    + [{"resolution": {"0": [[1], [1, 2]]}}, {"resolution": {0: "channel"}}]
    + [{"dtype": d} for d in ("float16", torch.float64, 3)]
    + [{"device": d} for d in ("nope", None, "meta", "cuda:77")]
    + [{"scale": s} for s in (2, "nope", None, ["unit"])],
    ids=str,
)
def test_options_that_do_not_exist(option):
    with pytest.raises(ng.NrmError):
        ng.measure(program(), image(), **{"target": 1, **option})


@pytest.mark.parametrize("name", ["identity", "sequential", "relu", "flatten", "pool"])
def test_networks_without_layers(name):
    net, x = {
        "identity": (nn.Identity(), torch.ones(2)),
        "sequential": (nn.Sequential(), torch.ones(2)),
        "relu": (nn.ReLU(), torch.tensor([1.0, -1.0])),
        "flatten": (nn.Flatten(), torch.ones(1, 2, 2)),
        "pool": (nn.Sequential(nn.MaxPool1d(2), nn.Flatten()), torch.randn(1, 6)),
    }[name]
    m = ng.measure(net, x, target=0, dtype="float64")
    source = m.topology.layers[0].name
    assert m(L(source)[...]) == 1
    assert [row["sum"] for row in m.report().to_pylist()] == [1, 1]
    assert m.tables()[1].num_rows == 1


def test_a_square_is_an_activation():
    m = ng.measure(Function(lambda x: x * x), torch.tensor([1.0, 2.0]), target=1)
    assert m(L("x")[1]) == 1
    assert m.logit == 4


@pytest.mark.parametrize(
    "reorder",
    [
        lambda y: y.flip(1),
        lambda y: y.unflatten(1, (2, 2)).transpose(1, 2),
        lambda y: y.roll(1, 1),
    ],
)
def test_outputs_in_another_order_than_their_layer(reorder):
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4).double(), torch.rand(1, 3, dtype=torch.float64)
    m = ng.measure(
        nn.Sequential(layer, Function(reorder)), x, target=1, composite=ng.composites.epsilon(0.0)
    )
    row = int(reorder(torch.arange(4)[None]).flatten()[1])
    share = layer.weight[row].detach() * x[0] / m.logit
    np.testing.assert_allclose(m.marginal("input"), share, rtol=1e-9)


def test_one_number_per_input():
    m = ng.measure(Function(lambda x: x.mean(1)), torch.tensor([1.0, 2.0]), target=0)
    assert m(L("x")[1]) == pytest.approx(2 / 3, abs=1e-5)


def test_channels_last_models(m):
    net = network().to(memory_format=torch.channels_last)
    found = ng.measure(net, image(), target=1, dtype="float64")
    np.testing.assert_allclose(found.marginal("0"), m.marginal("0"), atol=1e-9)


def test_nothing_of_the_users_is_changed():
    net, x = network().train(), image().requires_grad_(True)
    net[1].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    m = ng.measure(net, x, target=1)
    m(A & B), m.report(), m.tables(), m.cut("0")
    assert x.grad is None
    assert x.requires_grad
    assert not m.start.requires_grad
    assert not any(v.requires_grad for v in m.state.values.values())
    assert [p.training for p in net] == [True, False, True, True, True, True, True]
    assert (net[0].weight.grad == 1).all()
    assert all(p.grad is None for n, p in net.named_parameters() if n != "0.weight")
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_grad_modes(context, m):
    with context():
        inside = ng.measure(network(), image(), target=1, dtype="float64")
        numbers = [inside(A & B), inside(A, given=B)]
        rows = inside.tables()[1].num_rows
    assert numbers == [m(A & B), m(A, given=B)]
    assert rows == m.tables()[1].num_rows
    assert inside(A & B) == m(A & B)


def test_dropout_and_batch_norm_follow_evaluation_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2))
    net[1].running_mean.normal_()
    answers = [
        ng.measure(net.train(mode), torch.ones(3), target=0, dtype="float64").marginal("input")
        for mode in (True, False, True)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


def test_answers_repeat_and_threads_agree(m):
    event = (A | ~B) & ng.stay({"0": [0, 1]})
    expected = (m(event), m(B, given=A), m.marginal("0").tobytes())
    found = []

    def ask() -> None:
        fresh = ng.measure(program(), image(), target=1, dtype="float64")
        for measure in (m, fresh):
            marginal = measure.marginal("0").tobytes()
            found.append((measure(event), measure(B, given=A), marginal))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


@pytest.mark.parametrize("top", [0, -1, 1.5, "a", None])
def test_subgraphs_have_at_least_one_edge(m, top):
    with pytest.raises(ng.InputError, match="top"):
        m.subgraph(top)


def test_measures_and_events_print_briefly_and_pickle(m):
    assert len(repr(m)) < 200
    event = A & ~B
    assert pickle.loads(pickle.dumps(event)) == event
    assert pickle.loads(pickle.dumps(m))(event) == m(event)
