"""What users do wrong is answered by an error of this package; what they vary changes nothing."""

from __future__ import annotations

import copy
import functools
import operator
import pickle
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng

torch.set_num_threads(1)

L = ng.Layer
A, B = L("0")[0], L("3")[1]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@functools.cache
def program():
    return ng.trace(network(), image())


def image() -> torch.Tensor:
    return torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def m():
    return ng.measure(network(), image(), target=1, dtype="float64")


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# Neuron sets

SAME_AS_NUMPY = {
    "negative": -1,
    "list": [0, 2],
    "negative list": [-1, 0],
    "empty list": [],
    "empty array": np.array([]),
    "tensor": torch.tensor([0, 1]),
    "tensor of one": torch.tensor(1),
    "int64": np.int64(1),
    "uint8": np.uint8(1),
    "mask of channels": np.array([True, False, True]),
    "mask tensor": torch.tensor([True, False, True]),
    "mask of rows": np.arange(12).reshape(3, 4) % 5 == 0,
    "full mask": np.arange(48).reshape(3, 4, 4) % 7 == 0,
    "no neurons": np.zeros((3, 4, 4), bool),
    "ellipsis": ...,
    "ellipsis last": (..., 1),
    "slice": slice(0, 2),
    "backwards": slice(None, None, -2),
    "numpy slice": slice(np.int64(0), np.int64(2)),
    "tuple": (0, 1, 2),
    "range": range(2),
    "mixed": ([0, 2], slice(1, 3), -1),
    "mask and integers": (np.array([True, False, True]), 0, 1),
}


@pytest.mark.parametrize("name", SAME_AS_NUMPY)
def test_indexing_is_numpys(m, name):
    index = SAME_AS_NUMPY[name]
    values = m.marginal("0", by="neuron")
    thawed = tuple(
        i.numpy() if isinstance(i, torch.Tensor) else list(i) if isinstance(i, range) else i
        for i in (index if isinstance(index, tuple) else (index,))
    )
    mask = np.zeros(values.shape, bool)
    if np.size(thawed[0]):
        mask[thawed] = True
    assert m(L("0")[index]) == pytest.approx(values[mask].sum(), abs=1e-12)
    assert hash(L("0")[index]) == hash(L("0")[index])
    assert L("0")[index] == L("0")[index]


NO_INDEX = {
    "out of range": 99,
    "below range": -9,
    "list out of range": [0, 3],
    "float": 1.5,
    "whole float": [1.0],
    "float tensor": torch.tensor([1.0]),
    "bfloat16": torch.tensor([1.0], dtype=torch.bfloat16),
    "nan": float("nan"),
    "mask too long": np.ones(4, bool),
    "mask of another shape": np.ones((3, 4, 5), bool),
    "none": None,
    "word": "a",
    "ragged": [[0], [1, 2]],
    "too many": (0, 0, 0, 0),
    "zero step": slice(None, None, 0),
    "float slice": slice(0.5, None),
    "two ellipses": (..., ...),
    "set": {0, 1},
    "huge": 10**30,
    "event": A,
}


@pytest.mark.parametrize("name", NO_INDEX)
def test_an_index_that_does_not_fit(m, name):
    with pytest.raises(ng.EventError, match=r"cannot index neurons|does not fit"):
        m(L("0")[NO_INDEX[name]])


def test_true_is_not_one():
    assert L("0")[True] != L("0")[1]  # NumPy: True selects all


def test_a_layer_is_not_a_sequence(m):
    with pytest.raises(TypeError):
        list(L("0"))
    with pytest.raises(TypeError):
        assert 1 in L("0")
    with pytest.raises(ng.EventError, match="by its name"):
        m.marginal(L("0"))
    with pytest.raises(ng.EventError, match="by its name"):
        L(3)


@pytest.mark.parametrize("ids", [0, [1.5], ["1"], "12", [float("inf")], [None], [[1]], [48], [-1]])
def test_units_must_be_integers_of_the_layer(m, ids):
    with pytest.raises(ng.EventError):
        m(L("0").units(ids))


def test_a_long_chain_of_sets(m):
    neurons = [L("0")[i % 3, i % 4, i % 4] for i in range(3000)]
    union = functools.reduce(operator.or_, neurons)
    assert m(union) == pytest.approx(m(L("0")[:, range(4), range(4)]), abs=1e-12)


def test_events_too_large_are_refused(m):
    unions = [L("0")[0, i // 4, i % 4] | L("3")[0, i % 2, i // 8] for i in range(14)]
    with pytest.raises(ng.EventError, match="conjunctions"):
        m(functools.reduce(operator.and_, unions))
    nested = A
    for i in range(3000):
        nested = (nested & B) | L("0")[i % 3]
    with pytest.raises(ng.EventError, match="nested"):
        m(nested)


# Events


@pytest.mark.parametrize("wrong", ["0[1]", None, 3, [A], np.ones(3), L("0")])
def test_what_is_no_event(m, wrong):
    with pytest.raises(ng.EventError, match="a list of events"):
        m.many(A)
    with pytest.raises(ng.EventError, match="expected an event"):
        m(wrong)
    with pytest.raises(ng.EventError, match="expected an event"):
        m.many([A, wrong])
    with pytest.raises((ng.EventError, TypeError)):
        m(A, given=3 if wrong is None else wrong)
    for combine in (operator.and_, operator.or_, operator.sub):
        with pytest.raises(TypeError):
            combine(A, wrong)


def test_python_words_are_refused():
    for use in (lambda: A and B, lambda: A or B, lambda: not A):
        with pytest.raises(TypeError, match="use &"):
            use()


def test_an_unknown_layer_is_named(m):
    for event in (L("nope")[0], A & L("nope")[0], ng.stay({"nope": [0]}), ng.Edge(B, L("nope")[0])):
        with pytest.raises(ng.EventError, match="nope"):
            m(event)


@pytest.mark.parametrize("sets", [{}, None, [A], "abc", {"0": 1.5}, {"0": A | B}, {"1": A}])
def test_stay_wants_a_mapping_of_sets(sets):
    with pytest.raises(ng.EventError):
        ng.stay(sets)


def test_edges_without_a_connection(m):
    assert m(ng.Edge(L("6")[...], L("0")[...])) == 0
    for dst, src in ((A, B), (A, A)):
        with pytest.raises(ng.EventError, match="nearer the output"):
            m(ng.Edge(dst, src))
    for dst, src in ((A, 3), (L("3"), L("0")), (A | B, A)):
        with pytest.raises(ng.EventError, match="neuron sets"):
            ng.Edge(dst, src)


def test_aliases_are_their_layer(m):
    assert m(L("1")[0]) == m(A)
    assert m(L("1")[0] & A) == m(A)
    assert m(L("1")[0] & L("0")[1]) == 0
    assert m(L("1")[...] - A) == m(L("0")[...] - A)
    assert m(ng.stay({"1": [0], "4": [1]})) == m(ng.stay({"0": [0], "3": [1]}))
    assert m(ng.Edge(L("4")[1], L("1")[0])) == m(ng.Edge(B, A))


def test_empty_and_full_sets(m):
    assert m(L("0")[[]]) == 0
    assert m(L("0")[[]] & B) == 0
    assert m(~L("0")[[]]) == pytest.approx(1, abs=1e-12)
    whole = m(L("0")[...])
    assert whole == pytest.approx(m.marginal("0").sum(), abs=1e-12)
    assert abs(whole - 1) > 0.1  # biases above absorb: a full set is not the sure event
    assert m(~L("0")[...]) == pytest.approx(1 - whole, abs=1e-12)


# Conditionals


def cancelling(below: float = 0.0) -> tuple[nn.Module, torch.Tensor]:
    """Two hidden neurons of relevance 1 and -1 beside one of 1; ``below`` mixes them further."""
    first, second, third = (nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 1))
    with torch.no_grad():
        first.weight.copy_(torch.eye(3) + below)
        second.weight.copy_(torch.eye(3) + below)
        second.bias.zero_()
        x = torch.ones(3)
        hidden = second(first(x))
        third.weight.copy_(torch.tensor([[1.0, -1.0, 1.0]]) / hidden)
        third.bias.zero_()
    return nn.Sequential(first, second, third).double(), x.double()


def test_a_condition_that_cancels_is_undefined():
    net, x = cancelling()
    m = ng.measure(net, x, composite=ng.composites.epsilon(1e-12))
    pair = L("1")[:2]
    np.testing.assert_allclose(m.marginal("1"), [1, -1, 1], atol=1e-9)
    with pytest.raises(ng.UndefinedConditional, match="below rounding"):
        m(L("0")[0], given=pair)
    assert m(L("0")[0] & pair) == pytest.approx(1, abs=1e-9)


def test_a_condition_that_cancels_is_undefined_whatever_is_below():
    # Relevance of the two hidden neurons cancels exactly; below them it grows to ten thousands.
    torch.manual_seed(1)
    first, second = (nn.Linear(3, n, bias=False).double() for n in (3, 1))
    x = (torch.rand(3) + 0.5).double()
    a, b = 24691.356, 108643.82
    with torch.no_grad():
        rows = [[a / x[0], (1 - a) / x[1], 0], [0, b / x[1], (1 - b) / x[2]], [0, 0, 1]]
        first.weight.copy_(torch.tensor(rows))
        hidden = first(x)
        second.weight.copy_(torch.tensor([[1 / hidden[0], -1 / hidden[1], 1]]))
    m = ng.measure(nn.Sequential(first, second), x, composite="epsilon")
    r = m.marginal("0")
    assert r[0] == -r[1]
    with pytest.raises(ng.UndefinedConditional):
        m(L("input")[0], given=L("0")[:2])


def test_amplification_is_the_condition_of_the_quotient(m):
    r = m.marginal("0", by="neuron")[0]
    given = m(B, given=A)
    assert given.amplification == pytest.approx(np.abs(r).sum() / abs(r.sum()), rel=1e-9)
    for event in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert event == given
        assert event.amplification == given.amplification


def test_a_given_of_no_relevance(m):
    for nothing in (L("0")[[]], L("6")[0], A & ~A):
        with pytest.raises(ng.UndefinedConditional):
            m(B, given=nothing)
    assert m(A, given=A) == pytest.approx(1)
    assert m(A, given=L("6")[1]) == pytest.approx(m(A), abs=1e-12)


# Targets


def outputs(*values: float) -> tuple[nn.Module, torch.Tensor]:
    layer = nn.Linear(2, len(values))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[v - 1, 1.0] for v in values]))
        layer.bias.zero_()
    return layer.double(), torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize(
    "target",
    [
        *(5, -1, "label", 1.0, True, None, [1], {}, {9: 1}, {1.5: 1}, {"a": 1}, {True: 1}),
        *({1: 0.0}, {1: np.nan}, {1: np.inf}, {1: "a"}, {1: None}, {1: 1j}),
    ],
    ids=str,
)
def test_targets_that_mean_nothing(target):
    with pytest.raises(ng.InputError):
        ng.measure(program(), image(), target=target)


@pytest.mark.slow
def test_targets_that_mean_the_same():
    net, x = outputs(3.0, 1.0, 2.0)
    r = [
        ng.measure(net, x, target=t, composite="epsilon").marginal("input")
        for t in (0, np.int64(0), "predicted", {0: 1}, {0: -2.0}, types.MappingProxyType({0: 1}))
    ]
    for other in r[1:]:
        np.testing.assert_array_equal(other, r[0])


def test_a_difference_of_equal_logits_is_refused():
    net, x = outputs(2.0, 2.0, 1.0)
    with pytest.raises(ng.InputError, match="zero"):
        ng.measure(net, x, target={0: 1, 1: -1})
    m = ng.measure(net, x, target={0: 1, 2: -1}, composite="epsilon")
    assert m.logit == pytest.approx(1)
    np.testing.assert_allclose(m.marginal("dense"), [2, 0, -1])


def test_zero_and_negative_logits_are_flagged():
    net, x = outputs(0.0, -2.0, 3.0)
    zero = ng.measure(net, x, target=0, composite="epsilon")
    assert any("small" in flag for flag in zero.flags)
    assert zero.cut("input").total == pytest.approx(1)
    negative = ng.measure(net, x, target=1, composite="epsilon")
    assert any("negative" in flag for flag in negative.flags)
    assert ng.measure(net, x, target=2, composite="epsilon").flags == ()


def test_the_logit_scale_multiplies_everything(m):
    scaled = ng.measure(network(), image(), target=1, dtype="float64", scale="logit")
    assert scaled(A) == pytest.approx(m(A) * m.logit, rel=1e-9)
    assert scaled(~A) == pytest.approx(m(~A) * m.logit, rel=1e-9)
    assert scaled(B, given=A) == pytest.approx(m(B, given=A), rel=1e-9)
    np.testing.assert_allclose(scaled.marginal("0"), m.marginal("0") * m.logit, rtol=1e-9)
    assert scaled.cut("0").total == pytest.approx(m.logit, rel=1e-9)
    edges = [np.array(q.edges("3", "0")["relevance"]) for q in (m, scaled)]
    np.testing.assert_allclose(edges[1], edges[0] * m.logit, rtol=1e-9)
    rows = [q.report().to_pydict() for q in (m, scaled)]
    for column in ("sum", "bias", "stabilizer"):
        np.testing.assert_allclose(rows[1][column], np.array(rows[0][column]) * m.logit, rtol=1e-9)
    variation = np.array(rows[0]["total_variation"]) * abs(m.logit)
    np.testing.assert_allclose(rows[1]["total_variation"], variation, rtol=1e-9)


# Inputs, models, options

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


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integer_inputs_are_numbers(dtype):
    x = (image() > 0).to(dtype)
    found = ng.measure(network(), x, target=1, dtype="float64")
    same = ng.measure(network(), x.float(), target=1, dtype="float64")
    np.testing.assert_array_equal(found.marginal("0"), same.marginal("0"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_explained_in_float32(dtype):
    torch.manual_seed(0)
    m = ng.measure(nn.Linear(3, 2).to(dtype), torch.ones(3), target=0)
    assert m.marginal("dense").dtype == np.float32
    assert m.cut("input").total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (2, 8), (1, 1, 4, 4), (16,), (1, 16)])
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
    [{"composite": c} for c in ("nope", None, 3, ng.rules.Epsilon(), ["epsilon"])]
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
