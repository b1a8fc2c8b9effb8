"""A click conditions, adds, avoids and takes away."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.events.parser import parse
from nrm_graph.explorer.clicks import clicked, units

UNITS = [f"{layer}[{unit}]" for layer in "ab" for unit in range(3)] + ["'odd name'.units([2])"]
CLICKS = st.lists(
    st.tuples(st.sampled_from(UNITS), st.sampled_from(["", "add", "avoid"])), max_size=8
)


def after(expression, unit, kind):
    return clicked(expression, unit, **({kind: True} if kind else {}))


@given(CLICKS)
def test_an_event_is_what_the_clicks_say(clicks):
    """A model of its own: two sets of units, of which a click changes one."""
    expression, passed, avoided = "", set(), set()
    for unit, kind in clicks:
        expression = after(expression, unit, kind)
        name = repr(parse(unit))
        if name in passed | avoided:
            passed.discard(name)
            avoided.discard(name)
        elif kind == "avoid":
            avoided.add(name)
        elif kind == "add":
            passed.add(name)
        else:
            passed, avoided = {name}, set()
        assert units(expression) == (passed, avoided)
        if expression:
            assert repr(parse(expression)) == expression  # an editable text, always


def test_units_of_one_layer_are_joined_and_of_two_are_both_passed():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    m = ng.measure(net, torch.rand(4), target=1)
    layer, inputs = ng.Layer("0"), ng.Layer("input")
    text = clicked(clicked("'0'[1]", "'0'[2]", add=True), "input[3]", add=True)
    assert m(parse(text)) == pytest.approx(m((layer[1] | layer[2]) & inputs[3]), rel=1e-12)
    text = clicked(text, "input[0]", avoid=True)
    assert m(parse(text)) == pytest.approx(m((layer[1] | layer[2]) & inputs[3]), rel=1e-12)


def test_a_click_beside_an_expression_of_ones_own_keeps_it():
    assert clicked("a[:2] -> b[1] | ~b[2]", "a[1]", add=True) == (
        "((a[:2] -> b[1]) | ~b[2]) & a[1]"
    )


def test_what_is_no_event_is_refused():
    with pytest.raises(ng.EventError):
        clicked("a[1", "b[2]")
    with pytest.raises(ng.EventError):
        clicked("", "b[")
