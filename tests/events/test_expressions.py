"""Events from text: syntax, precedence, errors with a position, and round trips."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrm_graph.errors import EventError
from nrm_graph.events.parser import MAX_DEPTH, MAX_LENGTH, parse
from nrm_graph.events.sets import And, Edge, Event, Layer, NeuronSet, Not, Or

A, B, C = Layer("a")[1], Layer("b")[2], Layer("c")[3]


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("features.28[12]", Layer("features.28")[12]),
        ("f.21[[3, 7], 4:9, :]", Layer("f.21")[[3, 7], 4:9, :]),
        ("f[::2, -1, 3::-1, :-2]", Layer("f")[::2, -1, 3::-1, :-2]),
        ("f[..., 0]", Layer("f")[..., 0]),
        ("f[ 1 ,]", Layer("f")[1,]),
        ("f[[]]", Layer("f")[[]]),
        ("f[()]", Layer("f")[()]),
        ("f[[[0, 1], [2, 3]], 1]", Layer("f")[[[0, 1], [2, 3]], 1]),
        ("f[True]", Layer("f")[True]),
        ("0[3]", Layer("0")[3]),
        ("relu@1.add_1[3]", Layer("relu@1.add_1")[3]),
        ('"odd name [1]"[3]', Layer("odd name [1]")[3]),
        (r"'it\'s'[3]", Layer("it's")[3]),
        ("layer1.0.units([1, 2])", Layer("layer1.0").units([1, 2])),
        ('"odd name".units([])', Layer("odd name").units([])),
        ("my.units[3]", Layer("my.units")[3]),
        ("my.units.units([3])", Layer("my.units").units([3])),
        ("a[1] -> b[2]", Edge(A, B)),
        ("(a[1] | a[2])->b[2]", Edge(A | Layer("a")[2], B)),
        ("a[1]-b[2]", A - B),
        ("~~a[1]", A),
        ("(((a[1])))", A),
        ("a[1] | b[2] & c[3]", A | (B & C)),
        ("a[1] & b[2] - c[3]", A & (B - C)),
        ("a[1] - b[2] - c[3]", (A - B) - C),
        ("~a[1] - b[2]", (~A) - B),
        ("~a[1] & b[2]", (~A) & B),
        ("~(a[1] & b[2])", ~(A & B)),
        ("~a[1] -> b[2]", ~Edge(A, B)),
        ("a[1] & a[1] -> b[2] & c[3]", A & Edge(A, B) & C),
        ("c[3] - a[1] -> b[2]", C - Edge(A, B)),
        ("\ta[1]\n|\nb[2] ", A | B),
    ],
)
def test_syntax(text: str, event: Event) -> None:
    assert parse(text) == event


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", 0, "empty"),
        ("   ", 3, "empty"),
        ("a", 1, r"a\[...\] is the whole layer"),
        ("a[]", 2, "index is empty"),
        ("a[1", 3, "expected ']'"),
        ("a[1.5]", 2, "expected an integer"),
        ("a[1_0]", 2, "expected an integer"),
        ("a[٣]", 2, "expected an integer"),
        ("a[" + "9" * 5000 + "]", 2, "too large"),
        ("a[1:2:3:4]", 9, "at most three parts"),
        ("a[::0]", 5, "cannot be 0"),
        ("a[..., ...]", 2, "at most one"),
        ("a[[1], [[1, 2], [3]]]", 2, "rectangular"),
        ("a[b[1]]", 2, "expected an integer"),
        ("a[1] b[2]", 5, "expected &"),
        ("a[1] and b[2]", 5, "expected &"),
        ("a[1] &", 6, "expected a neuron set"),
        ("(a[1]", 5, r"expected '\)'"),
        ("a[1])", 4, "expected &"),
        ("a[1] -> b[2] -> c[3]", 13, "cannot be chained"),
        ("(a[1] & b[2]) -> c[3]", 0, "on its left"),
        ("a[1] -> ~b[2]", 8, "expected a neuron set"),
        ("a[1] -> (b[2] & c[3])", 8, "on its right"),
        ("'a[1]", 0, "not closed"),
        ("a[<mask of 3 in (4,)>]", 2, "boolean mask"),
        ("a[1]; import os", 4, "unexpected character"),
        ("__import__('os')", 10, "expected an index"),
        ("a.units(3)", 8, "list of unit numbers"),
        ("a.units([[3]])", 8, "flat list"),
        ("'a'.count([3])", 4, "expected units"),
        ("...[1]", 0, "expected a neuron set"),
    ],
)
def test_errors_point_at_the_position(text: str, position: int, message: str) -> None:
    with pytest.raises(EventError, match=message) as info:
        parse(text)
    first, excerpt, caret = str(info.value).split("\n")
    assert f"at character {position + 1}:" in first
    column = caret.index("^")
    if position < len(text.rstrip()):
        assert excerpt[column] == text[position]
    assert len(caret) < 80


def test_bounds() -> None:
    with pytest.raises(EventError, match="10000 characters"):
        parse("a[1]" + " " * MAX_LENGTH)
    assert parse("(" * MAX_DEPTH + "a[1]" + ")" * MAX_DEPTH) == A
    for text in (
        "(" * 101 + "a[1]" + ")" * 101,
        "(" * 5000,
        "a[" + "[" * 4000,
        "~(" * 3000,
        "a[1] -> (" * 900,
    ):
        with pytest.raises(EventError, match="levels of nesting"):
            parse(text)
    assert parse("~" * 9000 + "a[1]") == A
    with pytest.raises(EventError, match=r"a\[\[1, 2, 3\]\]"):
        parse("|".join(["a[1]"] * 1500))
    long = parse("|".join(["a[1]", "b[2]"] * 900))
    assert isinstance(long, Or)
    assert len(long.parts) == 1800


# Round trips.  Layers of three neurons per axis; names may stand without quotes, any text in them.

names = st.from_regex(r"[a-z0-9_@]{1,4}(\.[a-z0-9_@]{1,4}){0,2}", fullmatch=True)
integers = st.integers(-3, 2)
bounds = st.none() | st.integers(-4, 4)
slices = st.builds(slice, bounds, bounds, st.none() | st.sampled_from([-2, -1, 1, 2]))
items = integers | slices | st.lists(integers, max_size=3) | st.just(Ellipsis)


def sets_of(name: str) -> st.SearchStrategy[NeuronSet]:
    """Neuron sets of one layer of one axis, combined ones included."""
    leaf = items.map(lambda item: Layer(name)[item]) | st.lists(
        st.integers(0, 2), min_size=1, max_size=3
    ).map(lambda ids: Layer(name).units(ids))
    return st.recursive(
        leaf,
        lambda inner: st.tuples(inner, inner, st.sampled_from("&|-")).map(
            lambda t: {"&": t[0] & t[1], "|": t[0] | t[1], "-": t[0] - t[1]}[t[2]]
        ),
        max_leaves=4,
    )


def events(layers: list[str], *, distinct: bool) -> st.SearchStrategy[Event]:
    @st.composite
    def build(draw: st.DrawFn) -> Event:
        pool = list(draw(st.permutations(layers)))

        def name() -> str:
            return pool.pop() if distinct else draw(st.sampled_from(layers))

        def leaf() -> Event:
            if draw(st.booleans()):
                return draw(sets_of(name()))
            return Edge(draw(sets_of(name())), draw(sets_of(name())))

        def grow(depth: int) -> Event:
            kind = draw(st.sampled_from(["leaf", "~", "&", "|", "-"])) if depth else "leaf"
            if kind == "leaf":
                return leaf()
            if kind == "~":
                return ~grow(depth - 1)
            left, right = grow(depth - 1), grow(depth - 1)
            return {"&": left & right, "|": left | right, "-": left - right}[kind]

        return grow(2)

    return build()


@settings(deadline=None, max_examples=50)
@given(names | st.text(max_size=6), st.lists(items, max_size=4))
def test_round_trip_of_indexed_sets(name: str, index: list[object]) -> None:
    if sum(item is Ellipsis for item in index) > 1:
        return
    for chosen in (Layer(name)[tuple(index)], Layer(name).units([1, 2])):
        assert parse(repr(chosen)) == chosen


@settings(deadline=None, max_examples=50)
@given(events([f"l.{i}" for i in range(8)], distinct=True))
def test_round_trip_over_distinct_layers_is_exact(event: Event) -> None:
    assert parse(repr(event)) == event


def holds(event: Event, walk: dict[str, int | None]) -> bool:
    """Whether a walk, in the order of its layers, is in the event."""
    if isinstance(event, Not):
        return not holds(event.event, walk)
    if isinstance(event, And):
        return all(holds(part, walk) for part in event.parts)
    if isinstance(event, Or):
        return any(holds(part, walk) for part in event.parts)
    if isinstance(event, Edge):
        visited = [layer for layer, neuron in walk.items() if neuron is not None]
        steps = set(itertools.pairwise(visited))
        return (
            (event.dst.layer, event.src.layer) in steps
            and holds(event.dst, walk)
            and holds(event.src, walk)
        )
    assert isinstance(event, NeuronSet)
    neuron = walk[event.layer]
    return neuron is not None and bool(event.mask((3,), UNITS)[neuron])


class _Units:
    n_units = 3
    labels = np.arange(3)


UNITS = _Units()
WALKS = [
    dict(zip("xyz", neurons, strict=True))
    for neurons in itertools.product([None, 0, 1, 2], repeat=3)
]


@settings(deadline=None, max_examples=40)
@given(events(["x", "y", "z"], distinct=False))
def test_round_trip_over_shared_layers_keeps_the_meaning(event: Event) -> None:
    again = parse(repr(event))
    assert [holds(again, walk) for walk in WALKS] == [holds(event, walk) for walk in WALKS]


@given(st.text(alphabet='a1[]():.,&|~->" ', max_size=40))
def test_any_text_parses_or_raises_an_event_error(text: str) -> None:
    with contextlib.suppress(EventError):
        assert isinstance(parse(text), Event)
