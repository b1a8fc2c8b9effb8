"""What does the explorer add to the calls beneath?  Ratios in one run, on a store of many edges.

Of the demo's network and images, all edges between neurons (18.6 million), or of any other store:
the first view (a gallery, then the flow of an input) and a click on a unit, each on an input that
was not asked for before.  Two clocks: until the server has answered, over HTTP as the page asks;
and in a browser, from the click until the figure is drawn anew.  Beneath are the calls of Python
that give the same numbers; of the figure, which somebody who calls them draws with
``Reduced.plot()``, that picture is timed by itself.  Medians, the three in turn.

    python benchmarks/explorer.py [--store STORE] [--rounds 9] [--nodes 40] [--no-browser]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

import nrm_graph as ng
from nrm_graph.cli.demo.fashion_cnn import load_demo
from nrm_graph.events.parser import parse
from nrm_graph.explorer.address import Address
from nrm_graph.explorer.answers import STORED, usual_units

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nrm_graph.measures.measure import Measure


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Asked:
    """The server, asked as the page asks it."""

    def __init__(self, url: str) -> None:
        self.base = url.partition("?")[0]
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.opener.open(url).read()
        layout = json.loads(self.opener.open(self.base + "_dash-layout").read())
        self.tab = layout["props"]["children"][1]["props"]["data"]

    def view(self, address: Address) -> int:
        """Ask for a view; returns the bytes of the answer."""
        body = {
            "output": "..view.children...views.children..",
            "outputs": [
                {"id": "view", "property": "children"},
                {"id": "views", "property": "children"},
            ],
            "inputs": [{"id": "url", "property": "search", "value": address.query_text()}],
            "changedPropIds": ["url.search"],
            "state": [{"id": "tab", "property": "data", "value": self.tab}],
        }
        request = urllib.request.Request(
            self.base + "_dash-update-component",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        answer = self.opener.open(request).read()
        if b'"problem"' in answer:
            raise SystemExit(f"the view failed: {answer[:500]!r}")
        return len(answer)


def beneath(path: str, address: Address, first: Measure | None = None) -> Measure:
    """Call what gives the numbers of the flow view in Python."""
    m = first
    if m is None:
        db = ng.open(path)
        m = db.measure(address.input)
        kind = usual_units(db)
        m = m if kind == STORED else m.with_units(kind)
    given = m.given(parse(address.event)) if address.event else m
    given.reduced(nodes=address.nodes).graph(5 * address.nodes)
    given.report()
    given.marginal(given.topology.inputs[0].name, by="neuron")
    tuple(given.flags)
    return m


@contextlib.contextmanager
def looked_at(explorer: Any) -> Iterator[Any]:
    from helpers import browser
    from helpers.explorer_pages import Looked

    with browser.chrome() as chrome:
        yield Looked(chrome, explorer)


def in_browser(looked: Any, address: Address, unit: str) -> float:
    """Seconds from a click on a unit until the figure of the conditioned measure is there."""
    looked.open(address, ".units")
    looked.drawn_units()
    time.sleep(1.0)  # the maps of the units come behind
    start = time.perf_counter()
    looked.click_unit(unit)
    looked.until_event(unit)
    looked.until(lambda: "R(event)" in looked.facts() and looked.drawn_units())
    return time.perf_counter() - start


def report(name: str, times: dict[str, list[float]], unit: str) -> None:
    base = statistics.median(times[unit])
    print(name)
    for what, values in times.items():
        median = statistics.median(values)
        print(f"  {what:<34} {1000 * median:8.1f} ms  {median / base:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--no-browser", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.store or str(Path(folder) / "demo.nrm")
        if options.store is None:
            model, images = load_demo()
            ng.extract(model, images, path, resolution="neuron")
        measure_all(path, options)


def measure_all(path: str, options: argparse.Namespace) -> None:
    with ng.open(path) as db:
        ((edges,),) = db.sql("SELECT count(*) FROM edges").fetchall()
        keys = list(db.keys)[: 2 * options.rounds + 2]
    print(f"{path}: {edges:,} edges, {options.nodes} units, {options.rounds} rounds")
    first: dict[str, list[float]] = {"calls": [], "answer": [], "gallery": []}
    click: dict[str, list[float]] = {"calls": [], "answer": [], "calls and Reduced.plot()": []}
    sizes = []
    with ng.explore(path, browser=False) as explorer, contextlib.ExitStack() as stack:
        asked = Asked(explorer.url)
        for key in keys[:2]:  # what is imported and traced at first use
            sizes.append(asked.view(Address(view="flow", input=key, nodes=options.nodes)))
            beneath(path, Address(input=key, nodes=options.nodes))
        looked = None
        if not options.no_browser:
            looked = stack.enter_context(looked_at(explorer))
            click["click in a browser"] = []
        for i in range(options.rounds):
            key = keys[2 + i]
            address = Address(view="flow", input=key, nodes=options.nodes)
            first["gallery"].append(seconds(lambda i=i: sizes.append(asked.view(Address(first=i)))))
            first["calls"].append(seconds(lambda a=address: beneath(path, a)))
            first["answer"].append(seconds(lambda a=address: sizes.append(asked.view(a))))
            m = beneath(path, address)
            graph = m.reduced(nodes=options.nodes).graph(5 * options.nodes)
            ranked = sorted(graph.nodes(data=True), key=lambda item: -abs(item[1]["relevance"]))
            top = m.topology.output.name
            unit = next(d["event"] for _, d in ranked if "event" in d and d["layer"] != top)
            conditioned = Address(view="flow", input=key, nodes=options.nodes, event=unit)
            click["calls"].append(seconds(lambda a=conditioned, m=m: beneath(path, a, m)))
            if looked is not None:
                click["click in a browser"].append(in_browser(looked, address, unit))
                unasked = Address(view="flow", input=key, nodes=options.nodes + 1)
                asked.view(unasked)
                conditioned = Address(view="flow", input=key, nodes=options.nodes + 1, event=unit)
            click["answer"].append(seconds(lambda a=conditioned: sizes.append(asked.view(a))))

            def drawn(m: Measure = m, unit: str = unit) -> None:
                reduced = m.given(parse(unit)).reduced(nodes=options.nodes)
                reduced.plot()
                plt.close("all")

            m._cache.pop("given", None)
            click["calls and Reduced.plot()"].append(seconds(drawn))
    report("first view of an input", first, "calls")
    report("click on a unit", click, "calls")
    print(f"largest answer: {max(sizes):,} bytes")


if __name__ == "__main__":
    main()
