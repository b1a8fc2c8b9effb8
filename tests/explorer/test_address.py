"""The address is the whole state of the page."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.explorer.address import _CHOICES, LONGEST, Address, from_query

pytestmark = pytest.mark.smoke

KINDS = {
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    int: st.integers(0, 10**9),
    float: st.floats(0, 1e9),
}
ADDRESSES = st.builds(
    Address,
    **{
        field.name: st.sampled_from(_CHOICES[field.name])
        if field.name in _CHOICES
        else KINDS[type(field.default)]
        for field in dataclasses.fields(Address)
    },
)


@given(ADDRESSES)
def test_an_address_comes_back_from_its_query(address):
    assert from_query(address.query_text()) == address
    assert "token" not in address.query_text().split("=")[0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?nodes=many", "nodes must be a number, found 'many'"),
        ("?nodes=-3", "nodes must be from 0 to 1e9, found '-3'"),
        ("?threshold=nan", "threshold must be from 0"),
        ("?threshold=inf", "threshold must be from 0"),
        ("?nodes=" + "9" * 5000, "nodes must be"),
        ("?view=<script>", "view must be one of gallery, flow, unit, circuit, sql; found"),
        ("?text=" + "a" * LONGEST, f"characters, expected at most {LONGEST:,}"),
    ],
)
def test_an_address_that_does_not_fit_is_refused(query, message):
    with pytest.raises(ng.NrmError, match=message.replace("?", r"\?")):
        from_query(query)


def test_unknown_names_are_passed_over():
    assert from_query("?token=x&view=sql&constructor=1") == Address(view="sql")
