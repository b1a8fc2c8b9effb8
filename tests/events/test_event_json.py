"""Events as JSON: the same event again, and no trust in what is read."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.events import serialization
from nrm_graph.events.parser import parse
from nrm_graph.events.sets import And, BoolMask, Combined, Edge, Indexed, Not, Or, Slice, Units

pytestmark = pytest.mark.smoke

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
SMALL = st.integers(-3, 3)
NAMES = st.sampled_from(["x", "features.28", "odd name\n", "é漢", ""])


@st.composite
def masks(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    bits = draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return np.array(bits, bool).reshape(shape)


@st.composite
def lists(draw):
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    size = int(np.prod(shape))
    return np.array(draw(st.lists(SMALL, min_size=size, max_size=size))).reshape(shape).tolist()


SLICES = st.builds(slice, *[st.none() | INTEGERS] * 3)
ITEMS = st.one_of(INTEGERS, SLICES, masks(), lists(), st.just([]), st.booleans())


@st.composite
def indexed(draw, layer):
    items = draw(st.lists(ITEMS, max_size=3))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ...)
    return ng.Layer(layer)[tuple(items)]


@st.composite
def sets(draw, layer=None, depth=2):
    layer = draw(NAMES) if layer is None else layer
    if depth and draw(st.booleans()):
        left, right = draw(sets(layer, depth - 1)), draw(sets(layer, depth - 1))
        return {"&": left & right, "|": left | right, "-": left - right}[
            draw(st.sampled_from("&|-"))
        ]
    if draw(st.booleans()):
        return ng.Layer(layer).units(draw(st.lists(INTEGERS, max_size=3)))
    return draw(indexed(layer))


LEAVES = st.one_of(sets(), st.builds(ng.Edge, sets(), sets()))
EVENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(EVENTS)
def test_the_same_event_comes_back(event):
    text = json.dumps(ng.event_to_json(event), allow_nan=False)
    found = ng.event_from_json(json.loads(text))
    assert found == event
    assert repr(found) == repr(event)
    assert json.dumps(ng.event_to_json(found)) == text


def test_kinds_that_users_write():
    for text in (
        "a[1] & b[[1, 2], 4:9, ...] | ~(a[...] - a.units([0, 2]))",
        "(a[1] -> b[2]) & c[[[1, 2], [3, 4]], ::2]",
        "a[()]",
        "a[True]",
    ):
        event = parse(text)
        assert ng.event_from_json(ng.event_to_json(event)) == event


def test_long_chains_are_flat():
    event = ng.Layer("a")[0]
    for i in range(1, 3000):
        event = event | ng.Layer("a")[i]
    found = ng.event_from_json(json.loads(json.dumps(ng.event_to_json(event))))
    assert repr(found) == repr(event)
    assert repr(found).endswith(" | a[2998]) | a[2999])")
    assert found.mask((4000,)).sum() == 3000


def test_what_cannot_be_written():
    deep = ng.Layer("a")[0]
    for i in range(200):
        deep = Or((Not(deep), ng.Layer("a")[i]))
    for event, message in (
        (3, "expected an event"),
        (deep, "more than 100 levels"),
        (ng.Layer("a")[1 << 70], "64-bit integers"),
        (ng.Layer("\ud800")[1], "valid Unicode"),
        (Indexed("a", ("b",)), "64-bit integers, found 'b'"),
        (Indexed("a", (1.5,)), "64-bit integers"),
        (Units("a", (True,)), "64-bit integers, found True"),
        (Combined("a", "^", parse("a[1]"), parse("a[2]")), "['&' or '|' or '-', neurons]"),
        (Combined("a", "&", parse("a[1]"), parse("b[2]")), "neurons of 'a', found 'b'"),
        (And((1,)), "expected an event"),
        (Indexed("a", (BoolMask((9,), b"\xff"),)), "the bits of a mask must be 9"),
        (Indexed("a", (((1, 2), (3,)),)), "lists of one length"),
    ):
        with pytest.raises(ng.EventError, match=re.escape(message)):
            ng.event_to_json(event)


A = {"event": "indexed", "layer": "a", "index": [1]}


def index(*items):
    return {"event": "indexed", "layer": "a", "index": list(items)}


def bits(data, *shape):
    return index({"mask": {"shape": list(shape), "bits": base64.b64encode(data).decode()}})


def nested(depth):
    found = A
    for _ in range(depth):
        found = {"event": "not", "of": found}
    return found


def deep_list(depth):
    found = [1]
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "as a JSON object, found None"),
        ([], "as a JSON object, found a list of 0"),
        ({}, "one of indexed, units"),
        ({"event": "__import__"}, "one of indexed, units"),
        ({"event": ["indexed"]}, "one of indexed, units"),
        ({"event": "indexed", "layer": "a"}, "lacks field 'index'"),
        ({**A, "more": 1}, "has an unknown field 'more'"),
        ({**A, 1: 1}, "has an unknown field '1'"),
        ({**A, "layer": 3}, "layer to be text"),
        ({**A, "layer": "a" * 1001}, "layer to be text"),
        ({**A, "layer": "\udc80"}, "valid Unicode"),
        ({**A, "index": 3}, "index to be a list"),
        (index(1.0), "64-bit integers, found 1.0"),
        (index(True), "64-bit integers, found True"),
        (index(None), "64-bit integers, found None"),
        (index("1"), "64-bit integers, found '1'"),
        (index([1]), "64-bit integers, found a list of 1"),
        (index(1 << 63), "64-bit integers"),
        (index(10**5000), "an integer of 16610 bits"),
        (index("...", "..."), "at most one '...'"),
        (index({}), "one of slice, list and mask"),
        (index({"slice": [1, 2, 3], "list": []}), "one of slice, list and mask"),
        (index({"other": 1}), "one of slice, list and mask"),
        (index({"slice": [1, 2]}), "[start, stop, step]"),
        (index({"slice": [1, 2, "3"]}), "64-bit integers"),
        (index({"slice": 1}), "slice to be a list"),
        (index({"list": 1}), "list to be a list"),
        (index({"list": [[1, 2], [3]]}), "lists of one length"),
        (index({"list": [1, [2]]}), "64-bit integers"),
        (index({"list": [[1], 2]}), "lists of one length"),
        (index({"list": [[]]}), "lists of one length"),
        (index({"list": deep_list(2000)}), "lists of one length"),
        (index({"mask": [True]}), "an object with shape and bits"),
        (index({"mask": {"shape": [3]}}), "an object with shape and bits"),
        (index({"mask": {"shape": [3], "bits": 7}}), "Base64 text, found 7"),
        (index({"mask": {"shape": [3], "bits": "é"}}), "Base64 text"),
        (index({"mask": {"shape": [3], "bits": "!!!!"}}), "Base64 text"),
        (index({"mask": {"shape": 3, "bits": ""}}), "shape to be a list"),
        (bits(b"\xff\xff", 3), "bits of a mask must be 3"),
        (bits(b"\xff", 3), "bits of a mask must be 3"),
        (bits(b"", 1 << 40), "bits of a mask must be 1,099,511,627,776"),
        (bits(b"", 1 << 62, 0, 1 << 62), "that of a layer"),
        (bits(b"", -1, 0), "numbers of at least 0"),
        (bits(b"", *[0] * 65), "at most 64 numbers"),
        ({"event": "units", "layer": "a", "ids": [1.5]}, "64-bit integers"),
        ({"event": "units", "layer": "a", "ids": "12"}, "ids to be a list"),
        ({"event": "edge", "dst": A, "src": nested(1)}, "src of an event must be neurons"),
        ({"event": "not", "of": [A]}, "as a JSON object"),
        ({"event": "and", "of": A}, "of to be a list"),
        ({"event": "or", "of": [A, 3]}, "as a JSON object, found 3"),
        ({"event": "combined", "layer": "a", "first": A, "then": []}, "at least one step"),
        ({"event": "combined", "layer": "a", "first": A, "then": [["&"]]}, "neurons]"),
        ({"event": "combined", "layer": "a", "first": A, "then": [["+", A]]}, "neurons]"),
        ({"event": "combined", "layer": "a", "first": A, "then": [[["&"], A]]}, "neurons]"),
        ({"event": "combined", "layer": "b", "first": A, "then": [["&", A]]}, "found 'a'"),
        (nested(200), "at most 100 levels"),
        (nested(100_000), "at most 100 levels"),
    ],
)
def test_hostile_data_is_refused_in_a_sentence(raw, message):
    with pytest.raises(ng.EventError, match=re.escape(message)) as told:
        ng.event_from_json(raw)
    assert len(str(told.value)) < 500


def test_sizes_are_limited(monkeypatch):
    monkeypatch.setattr(serialization, "MAX_NUMBERS", 100)
    monkeypatch.setattr(serialization, "MAX_PARTS", 10)
    with pytest.raises(ng.EventError, match="at most 100 numbers"):
        ng.event_from_json(index({"list": [1] * 200}))
    with pytest.raises(ng.EventError, match="at most 10 parts"):
        ng.event_from_json({"event": "or", "of": [A] * 20})
    with pytest.raises(ng.EventError, match="at most 100 numbers"):
        ng.event_to_json(ng.Layer("a")[list(range(200))])


def test_slices_and_masks_stay_what_they_are():
    event = ng.Layer("a")[np.arange(12).reshape(3, 4) > 5]
    raw = ng.event_to_json(event)
    assert raw["index"] == [{"mask": {"shape": [3, 4], "bits": "A/A="}}]
    found = ng.event_from_json(raw)
    assert found.mask((3, 4)).sum() == 6
    assert ng.event_from_json(index({"slice": [None, -1, 2]})).index == (Slice(None, -1, 2),)
    assert isinstance(ng.event_from_json({"event": "edge", "dst": A, "src": A}), Edge)
