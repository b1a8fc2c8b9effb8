"""Sets and events as users write them: indexing is NumPy's, and what means nothing is refused."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
import torch
from helpers.small_convolution import A, B, L, image, network

import nrm_graph as ng

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def m():
    return ng.measure(network(), image(), target=1, dtype="float64")


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
