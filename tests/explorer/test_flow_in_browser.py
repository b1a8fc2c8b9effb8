"""The flow view in a real browser: its numbers are the measure's, before and after clicks."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

import nrm_graph as ng
from nrm_graph.explorer.address import Address

pytestmark = pytest.mark.slow

KEY, OTHER = "test-00000", "test-00001"
FLOW = Address(view="flow", input=KEY, nodes=24)


def compare(looked, m, nodes=24):
    """The page says what the measure says: totals, units, layers, exactly as far as it is shown."""
    facts = looked.facts()
    assert float(facts["logit"]) == m.logit
    assert float(facts["absorbed by biases and stabilizers"]) == m.absorbed
    if m.condition is not None:
        assert float(facts["R(event)"]) == m.condition_relevance
        assert float(facts["its error, at most"]) == m.condition_error
        assert float(facts["amplification"]) == m.amplification
    graph = m.reduced(nodes=nodes).graph(5 * nodes)
    expected = {
        data["event"]: data["relevance"] for _, data in graph.nodes(data=True) if "event" in data
    }
    assert looked.units() == {
        unit: float(f"{relevance:.6g}") for unit, relevance in expected.items()
    }
    assert set(looked.drawn_units()) == expected.keys()
    report = m.report().to_pylist()
    assert [row[:3] for row in looked.cells(".layers")] == [
        [row["layer"], f"{row['sum']:.4g}", f"{row['total_variation']:.4g}"] for row in report
    ]


def test_clicks_condition_add_avoid_and_take_away(looked, db):
    looked.open(FLOW, ".units")
    m = db.measure(KEY)
    compare(looked, m)
    A, B, C = (ng.Layer("features.6")[15], ng.Layer("features.3")[15], ng.Layer("features.0")[1])
    looked.click_unit(repr(A))
    looked.until_event(repr(A))
    compare(looked, m.given(A))
    looked.click_unit(repr(B), Keys.SHIFT)
    looked.until_event(repr(A & B))
    compare(looked, m.given(A & B))
    looked.click_unit(repr(C), Keys.ALT)
    looked.until_event(repr(A & B & ~C))
    compare(looked, m.given(A & B & ~C))
    looked.click_unit(repr(B))
    looked.until_event(repr(A & ~C))
    compare(looked, m.given(A & ~C))


def test_a_link_a_reload_back_and_forward_restore_the_view(looked, db):
    A = ng.Layer("features.6")[15]
    m = db.measure(KEY)
    looked.open(FLOW, ".units")
    looked.click_unit(repr(A))
    looked.until_event(repr(A))
    address = looked.chrome.current_url
    assert "token" not in address
    looked.chrome.refresh()
    looked.until_event(repr(A))
    compare(looked, m.given(A))
    looked.chrome.back()
    looked.until_event("")
    compare(looked, m)
    looked.chrome.forward()
    looked.until_event(repr(A))
    compare(looked, m.given(A))
    looked.chrome.get("about:blank")
    looked.chrome.get(address)
    looked.see(".units")
    assert looked.event() == repr(A)
    compare(looked, m.given(A))


def test_an_expression_is_written_and_a_wrong_one_is_told(looked, db):
    looked.open(FLOW, ".units")
    text = "features.3[2:9] & ~features.0[1]"
    looked.write(".event input", text)
    looked.see(".chip")
    looked.until(lambda: "R(event)" in looked.facts())
    event = ng.Layer("features.3")[2:9] & ~ng.Layer("features.0")[1]
    compare(looked, db.measure(KEY).given(event))
    looked.write(".event input", "features.3[2")
    looked.see(".problem")
    (problem,) = looked.texts(".problem")
    assert problem.startswith("cannot read the expression at character 13: expected")
    looked.write(".event input", "features.99[2]")
    looked.until(lambda: "features.99" in " ".join(looked.texts(".problem")))
    looked.write(".event input", "")
    looked.until(lambda: not looked.texts(".problem"))
    compare(looked, db.measure(KEY))


def test_sign_threshold_layers_and_number_of_units(looked, db):
    m = db.measure(KEY)
    looked.open(FLOW, ".units")
    fewer = Address(view="flow", input=KEY, nodes=9, watch="features.3 features.6")
    looked.open(fewer, ".units")
    graph = m.reduced(["features.3", "features.6"], nodes=9).graph(45)
    expected = {data["event"] for _, data in graph.nodes(data=True) if "event" in data}
    assert set(looked.drawn_units()) == expected
    looked.open(Address(**{**vars(fewer), "sign": "negative", "threshold": 0.001}), ".units")
    kept = {
        end
        for src, dst, r in graph.edges(data="relevance")
        if r <= -0.001
        for end in (src, dst)
        if "event" in graph.nodes[end]
    }
    assert set(looked.drawn_units()) == {graph.nodes[node]["event"] for node in kept}
    looked.open(Address(**{**vars(fewer), "threshold": 10.0}), ".problem")
    assert "lower the threshold" in looked.texts(".problem")[0]


def test_two_inputs_side_by_side_share_the_event(looked, db):
    A = ng.Layer("features.6")[15]
    looked.open(Address(view="flow", input=KEY, second=OTHER, nodes=12), ".units")
    assert len(looked.texts(".side")) == 2
    looked.click_unit(looked.drawn_units("flow2")[-2], figure="flow2")
    looked.until(lambda: looked.event())
    looked.open(Address(view="flow", input=KEY, second=OTHER, nodes=12, event=repr(A)), ".units")
    exact = looked.chrome.execute_script(
        "return Array.from(document.querySelectorAll('.totals dt'), (e) => "
        "[e.textContent, e.nextSibling.title]).filter((p) => p[0] === 'R(event)')"
    )
    values = [db.measure(key).given(A).condition_relevance for key in (KEY, OTHER)]
    assert [float(text) for _, text in exact] == values


def test_the_keyboard_reaches_units(looked, db):
    looked.open(FLOW, ".units")
    link = looked.chrome.execute_script(
        "const link = document.querySelector('.units tbody .ways a'); link.focus(); return link"
    )
    unit = next(iter(looked.units()))
    link.send_keys(Keys.ENTER)
    looked.until_event(unit)
