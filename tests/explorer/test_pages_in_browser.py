"""Every page in a real browser: its width, its console, the keyboard, progress, newer clicks."""

from __future__ import annotations

import time

import pytest
from selenium.webdriver.common.keys import Keys

from nrm_graph.explorer import app, sql
from nrm_graph.explorer.address import VIEWS, Address
from nrm_graph.progress import Ended, Progress
from nrm_graph.propagation import relevance_pass

pytestmark = pytest.mark.slow

KEY, OTHER, UNIT = "test-00000", "test-00001", "features.6[15]"
GROUP = "label = 'trouser'"
PAGES = {
    "gallery": Address(input=KEY, second=OTHER),
    "flow": Address(view="flow", input=KEY, event=UNIT),
    "two flows": Address(view="flow", input=KEY, second=OTHER),
    "layer by layer": Address(view="flow", input=KEY, graph="connected", nodes=100),
    "unit": Address(view="unit", unit=UNIT, input=KEY),
    "contrast": Address(view="circuit", where=GROUP, against="label = 'bag'"),
    "sql": Address(view="sql", query="SELECT * FROM inputs", chart="bar"),
}


def test_no_page_is_wider_than_the_window(looked):
    for name, address in PAGES.items():
        looked.open(address, "main .controls")
        looked.settled()
        wide, window, problems = looked.chrome.execute_script(
            "const page = document.documentElement;"
            "const problems = document.querySelectorAll('main .problem');"
            "return [page.scrollWidth, innerWidth, problems.length]"
        )
        assert wide <= window == 1280, name
        assert problems == 0, looked.texts(".problem")
        assert looked.serious() == [], name


def test_figures_keep_their_height_when_the_window_changes(looked):
    looked.open(Address(view="flow", input=KEY), ".units")
    looked.settled()
    height = "return document.querySelector('.js-plotly-plot').offsetHeight"
    width = "return document.querySelector('.js-plotly-plot')._fullLayout.width"
    size = {"height": 800, "deviceScaleFactor": 1, "mobile": False}
    looked.until(lambda: looked.chrome.execute_script(width))
    before = looked.chrome.execute_script(width)
    looked.until(lambda: looked.chrome.execute_script(height) > 600)
    tall = looked.chrome.execute_script(height)
    try:
        metrics = size | {"width": 1100}
        looked.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        looked.until(lambda: looked.chrome.execute_script(width) < before)
        assert looked.chrome.execute_script(height) == tall
    finally:
        metrics = size | {"width": 1280}
        looked.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_each_of_two_graphs_has_the_maps_of_its_units(looked):
    looked.open(Address(view="flow", input=KEY, second="test-00002", nodes=12), ".units")
    script = (
        "return Array.from(document.querySelectorAll('.js-plotly-plot'), "
        "(plot) => plot._fullLayout.images.length)"
    )
    looked.until(lambda: [n > 3 for n in looked.chrome.execute_script(script)] == [True, True])


def test_the_keyboard_reaches_everything(looked):
    looked.open(Address(view="flow", input=KEY, nodes=4), ".units")
    looked.settled()
    body = looked.one("body")
    reached = []
    for _ in range(60):
        body.send_keys(Keys.TAB)
        reached.append(
            looked.chrome.execute_script(
                "const e = document.activeElement;"
                "const label = e.closest('.control');"
                "const field = label && label.querySelector('[id]');"
                "return e.closest('nav') ? 'nav ' + e.textContent : e.closest('.ways') ? 'table' :"
                " e.closest('.table') === e ? 'scroll' : field ? field.id : e.textContent"
            )
        )
        body = looked.chrome.switch_to.active_element
    for view in VIEWS:
        assert any(r.lower() == f"nav {view}" for r in reached), view
    for name in ("graph", "watch", "by", "nodes", "sign", "threshold", "event"):
        assert any(f'"{name}"' in r for r in reached), name
    assert {"PNG", "HTML", "as Python", "table", "scroll"} <= set(reached)
    looked.one("nav a:nth-child(5)").send_keys(Keys.ENTER)
    looked.see(".query")


@pytest.fixture
def states(monkeypatch):
    """What became of the renderings of flows and circuits."""
    states = []

    def noted(usual):
        def render(page):
            states.append("began")
            try:
                view = usual(page)
            except Ended:
                states.append("ended")
                raise
            states.append("done")
            return view

        return render

    for view in ("flow", "circuit"):
        monkeypatch.setitem(app._VIEWS, view, noted(app._VIEWS[view]))
    return states


def test_what_takes_long_says_how_far_it_has_come(looked, monkeypatch):
    usual = app._VIEWS["circuit"]

    def slow(page):
        with Progress("inputs", 20, "inputs") as progress:
            for _ in range(20):
                progress.advance()
                time.sleep(0.1)
        return usual(page)

    monkeypatch.setitem(app._VIEWS, "circuit", slow)
    looked.open(Address(view="sql"), ".query")
    assert not looked.one("#busy").is_displayed()
    looked.follow("Circuit", "nav")
    told = looked.until(lambda: looked.one("#busy").is_displayed() and looked.one("#told").text)
    assert told.startswith("inputs: ")
    assert " of 20 inputs, " in told
    looked.see("#circuit-groups")
    looked.until(lambda: not looked.one("#busy").is_displayed())


def test_a_newer_click_ends_an_older_pass(looked, states, monkeypatch):
    """As on a network of many layers: every layer of a pass takes a while."""
    usual = relevance_pass.look
    monkeypatch.setattr(relevance_pass, "look", lambda: time.sleep(0.5) or usual())
    looked.open(Address(view="sql", input=OTHER, by="neuron", nodes=400), ".query")
    looked.follow("Flow", "nav")
    looked.until(lambda: states == ["began"])
    looked.follow("Gallery", "nav")
    looked.see(".card")
    looked.until(lambda: states == ["began", "ended"])
    assert looked.texts("nav a.here") == ["Gallery"]
    monkeypatch.undo()
    looked.follow("Flow", "nav")  # what was ended is not remembered as if it had been done
    looked.see(".units")
    looked.settled()
    assert looked.texts("nav a.here") == ["Flow"]
    assert looked.texts(".problem") == []


def test_a_newer_click_ends_a_query(looked):
    """DuckDB is interrupted: the page need not wait for what nobody will look at."""
    long = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b"
    looked.open(Address(view="circuit", query=long), "#circuit-groups")
    looked.follow("SQL", "nav")
    looked.until(lambda: looked.one("#view").get_attribute("data-dash-is-loading"))
    before = time.monotonic()
    looked.follow("Gallery", "nav")
    looked.see(".card")
    assert time.monotonic() - before < sql.SECONDS / 2
