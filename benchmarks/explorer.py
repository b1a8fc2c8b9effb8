"""What does the explorer add to the calls beneath?  Ratios in one run, on a store of many edges.

Of the demo's network and images, all edges between neurons (18.6 million), or of any other store:
the first view of an input and a click on a unit, each of an input that was not asked for before.
Two clocks: until the server has answered, over HTTP as the page asks it; and in a browser, from the
click until the figure is drawn anew.  Beneath are the calls of Python that give the same numbers;
the pictures that somebody draws of them without a page are timed by themselves.  Medians.

    python benchmarks/explorer.py [--store STORE] [--rounds 9] [--nodes 40] [--no-browser]
"""

from __future__ import annotations

import argparse
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
    from collections.abc import Callable

    import networkx as nx

    from nrm_graph.measures.measure import Measure


POINTER = 0.1
"""Seconds that the tests' pointer rests on a unit before it clicks."""


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


def measured(db: Any, key: str) -> Measure:
    """Measure an input in the units that the page shows."""
    m = db.measure(key)
    kind = usual_units(db)
    return m if kind == STORED else m.with_units(kind)


def beneath(m: Measure, address: Address) -> nx.DiGraph:
    """Call what gives the numbers of the flow view in Python; returns its graph."""
    given = m.given(parse(address.event)) if address.event else m
    graph = given.reduced(nodes=address.nodes).graph(5 * address.nodes)
    given.report()
    given.marginal(given.topology.inputs[0].name, by="neuron")
    tuple(given.flags)
    return graph


def strongest(m: Measure, graph: nx.DiGraph) -> str:
    """Expression of the strongest unit below the output."""
    ranked = sorted(graph.nodes(data=True), key=lambda item: -abs(item[1]["relevance"]))
    top = m.topology.output.name
    return next(str(d["event"]) for _, d in ranked if "event" in d and d["layer"] != top)


def drawn(m: Measure, address: Address) -> None:
    """Draw what a click shows, as somebody does who has no page."""
    given = m.given(parse(address.event))
    given.reduced(nodes=address.nodes).plot()
    given.heatmap()
    plt.close("all")


def report(name: str, times: dict[str, list[float]]) -> None:
    base = statistics.median(times["calls"])
    print(name)
    for what, values in times.items():
        median = statistics.median(values)
        print(f"  {what:<34} {1000 * median:8.1f} ms  {median / base:5.2f}")


def measure_server(db: Any, asked: Asked, keys: list[str], nodes: int) -> None:
    """Print what the server adds."""
    first: dict[str, list[float]] = {"calls": [], "answer": [], "a page of the gallery": []}
    click: dict[str, list[float]] = {"calls": [], "answer": [], "pictures by matplotlib": []}
    sizes = []
    for i, key in enumerate(keys):
        address = Address(view="flow", input=key, nodes=nodes)
        gallery = Address(first=i)
        first["a page of the gallery"].append(
            seconds(lambda a=gallery: sizes.append(asked.view(a)))  # type: ignore[misc]
        )

        def calls(address: Address = address) -> None:
            beneath(measured(db, address.input), address)

        first["calls"].append(seconds(calls))
        first["answer"].append(
            seconds(lambda a=address: sizes.append(asked.view(a)))  # type: ignore[misc]
        )
        m = measured(db, key)
        address = address.changed(event=strongest(m, beneath(m, address)))
        click["calls"].append(seconds(lambda m=m, a=address: beneath(m, a)))  # type: ignore[misc]
        click["answer"].append(
            seconds(lambda a=address: sizes.append(asked.view(a)))  # type: ignore[misc]
        )
        m = measured(db, key)
        click["pictures by matplotlib"].append(
            seconds(lambda m=m, a=address: drawn(m, a))  # type: ignore[misc]
        )
    for times in (first, click):
        times |= {name: values[1:] for name, values in times.items()}  # imports, caches
    report("first view of an input, until the server has answered", first)
    report("click on a unit, until the server has answered", click)
    print(f"largest answer: {max(sizes):,} bytes")


def measure_browser(db: Any, explorer: Any, keys: list[str], nodes: int) -> None:
    """Print what it takes in a browser, on the same machine."""
    from helpers import browser
    from helpers.explorer_pages import Looked

    times: dict[str, list[float]] = {"calls": [], "click until all is drawn": []}
    with browser.chrome() as chrome:
        looked = Looked(chrome, explorer)
        for key in keys:
            address = Address(view="flow", input=key, nodes=nodes)
            m = measured(db, key)
            unit = strongest(m, beneath(m, address))
            conditioned = address.changed(event=unit)
            times["calls"].append(
                seconds(lambda m=m, a=conditioned: beneath(m, a))  # type: ignore[misc]
            )
            looked.open(address, ".units")
            looked.drawn_units()
            time.sleep(2.0)  # the maps of the units come behind
            before = time.perf_counter()
            looked.click_unit(unit)
            looked.until_event(unit)
            looked.until(lambda: "R(event)" in looked.facts() and looked.drawn_units())
            times["click until all is drawn"].append(time.perf_counter() - before - POINTER)
    report("click on a unit, in a browser (its drawing, its clicks and its polls included)", times)


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
        with ng.open(path) as db, ng.explore(path, browser=False) as explorer:
            ((edges,),) = db.sql("SELECT count(*) FROM edges").fetchall()
            print(f"{path}: {edges:,} edges, {options.nodes} units, {options.rounds} rounds")
            keys = list(db.keys)
            half = options.rounds + 1
            measure_server(db, Asked(explorer.url), keys[:half], options.nodes)
            if not options.no_browser:
                measure_browser(db, explorer, keys[half : half + options.rounds], options.nodes)


if __name__ == "__main__":
    main()
