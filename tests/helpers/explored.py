"""Pages of the explorer over small stores, and what their components show."""

from helpers import small
from nrm_graph.explorer.address import Address
from nrm_graph.explorer.answers import Answers
from nrm_graph.explorer.page import Page

HOSTILE = "</script><b onload=alert(1)>\"'`=\u202eabc"
"""A text that HTML, SQL, an address and a file's name could each stumble over."""


def store(path, labels="aaaaaabbbbbb", target="predicted", scale=1.0, key="k{}"):
    """Store the small network's inputs, with labels."""
    inputs = [
        {"input": scale * x, "key": key.format(i), "label": label}
        for i, (x, label) in enumerate(zip(small.X, labels, strict=False))
    ]
    return small.extract(path, inputs, target=target)


def page(*stores, **address):
    """One state of the page."""
    return Page(Address().changed(**address), stores, Answers())


def walk(component):
    """Every component and every text of a view, in order."""
    if isinstance(component, list | tuple):
        for part in component:
            yield from walk(part)
    elif component is not None:
        yield component
        if hasattr(component, "to_plotly_json"):
            yield from walk(getattr(component, "children", None))


def texts(component):
    """All text of a view."""
    return " ".join(str(part) for part in walk(component) if isinstance(part, str | int | float))


def links(component, text=""):
    """Addresses of the links whose text contains another, by their text."""
    return {
        label: part.href
        for part in walk(component)
        if hasattr(part, "href") and text in (label := texts(part.children))
    }


def figure(component, name):
    """The Plotly figure of a name."""
    (graph,) = [p for p in walk(component) if getattr(p, "id", None) == {"figure": name}]
    return graph.figure


def cells(component, name):
    """Texts of the table rows of the section with a class name."""
    (section,) = [p for p in walk(component) if name in (getattr(p, "className", "") or "").split()]
    rows = [part for part in walk(section) if type(part).__name__ == "Tr"]
    return [[texts(cell) for cell in row.children] for row in rows]
