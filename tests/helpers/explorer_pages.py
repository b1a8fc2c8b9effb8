"""Looking at the explorer's pages in a browser, as the tests do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from helpers.browser import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome

    from nrm_graph.explorer.address import Address
    from nrm_graph.explorer.serve import Explorer

PATIENCE = 30.0
"""Seconds that a page may take on a busy machine."""

_PLACE = """
const [figure, kind, subject] = arguments;
const graph = document.getElementById(JSON.stringify({figure: figure}));
const plot = graph && graph.querySelector(".js-plotly-plot");
if (!plot || !plot._fullLayout || !plot.data) return null;
const trace = plot.data.find((trace) => trace.name === kind);
const place = trace.customdata.findIndex((data) => data.join(" -> ") === subject);
if (place < 0) return null;
const {xaxis, yaxis} = plot._fullLayout;
const across = xaxis._offset + xaxis.l2p(trace.x[place]);
const down = yaxis._offset + yaxis.l2p(trace.y[place]);
window.scrollBy(0, plot.getBoundingClientRect().top + down - window.innerHeight / 2);
const box = plot.getBoundingClientRect();
return [Math.round(box.left + across), Math.round(box.top + down)];
"""
_CELLS = """
return Array.from(document.querySelectorAll(arguments[0] + " tr"))
  .filter((row) => row.querySelector("td"))
  .map((row) => Array.from(row.cells, (cell) => cell.textContent))
"""


class Looked:
    """A browser that looks at an explorer."""

    def __init__(self, chrome: Chrome, explorer: Explorer) -> None:
        self.chrome, self.explorer = chrome, explorer
        chrome.get(explorer.url)
        self.see("main h2, main .card, main .part, main .controls")

    def open(self, address: Address, selector: str) -> None:
        """Open a page by its address, as a link does."""
        self.chrome.get(f"http://127.0.0.1:{self.explorer.port}/{address.query_text()}")
        self.see(selector)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Return what a condition gives, once it gives something."""

        def asked(_: Any) -> Any:
            try:
                return condition()
            except (StaleElementReferenceException, ValueError):  # it is drawn anew meanwhile
                return None

        return WebDriverWait(self.chrome, PATIENCE, 0.05).until(asked)

    def see(self, selector: str) -> None:
        """Wait for what a selector names, in a view that is drawn."""
        script = (
            "return !document.querySelector('#view[data-dash-is-loading=\"true\"]') && "
            "document.querySelector(arguments[0]) !== null"
        )
        self.until(lambda: self.chrome.execute_script(script, selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of what a selector names."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), (e) => e.textContent)"
        found: list[str] = self.chrome.execute_script(script, selector)
        return found

    def cells(self, selector: str) -> list[list[str]]:
        """Return the texts of the rows of a table."""
        rows: list[list[str]] = self.chrome.execute_script(_CELLS, selector)
        return rows

    def one(self, selector: str) -> Any:
        """Return the only element that a selector names."""
        (element,) = self.chrome.find_elements(By.CSS_SELECTOR, selector)
        return element

    def facts(self) -> dict[str, str]:
        """Return the totals beside the graph, as exactly as the page has them."""
        script = (
            "return Array.from(document.querySelectorAll('.totals dt'), "
            "(e) => [e.textContent, e.nextSibling.title])"
        )
        return dict(self.chrome.execute_script(script))

    def units(self) -> dict[str, float]:
        """Return the units that the table beside the graph lists, and their relevance."""
        return {row[0]: float(row[2]) for row in self.cells(".units")}

    def drawn_units(self, figure: str = "flow") -> list[str]:
        """Return the units that the figure draws, once it is there."""
        script = (
            "const graph = document.getElementById(arguments[0]);"
            "const plot = graph && graph.querySelector('.js-plotly-plot');"
            "if (!plot || !plot.data) return null;"
            "const trace = plot.data.find((trace) => trace.name === 'units');"
            "return trace.customdata.map((data) => data[0])"
        )
        name = json.dumps({"figure": figure}, separators=(",", ":"))
        drawn: list[str] = self.until(lambda: self.chrome.execute_script(script, name))
        return drawn

    def click_unit(self, unit: str, key: str | None = None, figure: str = "flow") -> None:
        """Click a unit in the figure, with a key held or none."""
        self.click_mark(figure, "units", unit, key)

    def click_mark(self, figure: str, kind: str, subject: str, key: str | None = None) -> None:
        """Click a unit or an edge, ``source -> destination``, with a key held or none."""
        place = self.until(lambda: self.chrome.execute_script(_PLACE, figure, kind, subject))
        held = ActionChains(self.chrome)
        if key is not None:
            held.key_down(key).perform()
        pointer = ActionBuilder(self.chrome)
        # From beside: it is hovered over before it is clicked, as by hand.
        pointer.pointer_action.move_to_location(place[0] - 30, place[1] - 3)
        pointer.pointer_action.move_to_location(*place).pause(0.1).click()
        pointer.perform()
        if key is not None:
            ActionChains(self.chrome).key_up(key).perform()

    def event(self) -> str:
        """Return the expression that the view shows."""
        value: str = self.one(".event input").get_attribute("value")
        return value

    def until_event(self, expression: str) -> None:
        """Wait for a view that is conditioned on an expression."""
        self.until(lambda: self.event() == expression)
        self.see(".event input")

    def write(self, selector: str, text: str) -> None:
        """Write a text into a field, in the place of what it holds, and press Enter."""
        field = self.one(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text, Keys.ENTER)

    def fill(self, name: str, text: str) -> None:
        """Write a text into the field of a name."""
        self.until(lambda: self.chrome.find_elements(By.CSS_SELECTOR, control(name)))
        self.write(control(name), text)

    def pick(self, name: str, text: str) -> None:
        """Choose what begins with a text from the list of a name."""
        self.until(lambda: self.chrome.find_elements(By.CSS_SELECTOR, control(name)))
        self.one(control(name)).click()
        options = ".dash-dropdown-content .dash-dropdown-option"

        def offered() -> Any:
            every = self.chrome.find_elements(By.CSS_SELECTOR, options)
            return [option for option in every if option.text.startswith(text)]

        self.until(offered)[0].click()

    def follow(self, text: str, within: str = "main") -> None:
        """Click the first link whose text begins with a text."""

        def links() -> Any:
            every = self.chrome.find_elements(By.CSS_SELECTOR, f"{within} a")
            return [link for link in every if link.text.startswith(text)]

        self.until(links)[0].click()

    def settled(self) -> None:
        """Wait for all that the page computes."""
        script = "return !document.querySelector('[data-dash-is-loading=\"true\"]')"
        self.until(lambda: self.chrome.execute_script(script))

    def serious(self) -> list[str]:
        """Return the errors in the console, and empty it."""
        return [line for line in console(self.chrome) if line.startswith("SEVERE")]


def control(name: str) -> str:
    """Select the field of a name."""
    return f'[id=\'{{"control":"{name}"}}\']'
