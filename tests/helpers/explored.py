"""Pages of the explorer over small stores, and what their components show: text, links, tables."""

from dash.development.base_component import Component

from helpers import small
from nrm_graph.explorer.address import Address, from_query
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


def walk(tree):
    """Every component of a view, a parent before its children; texts too."""
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from walk(part)
    elif tree is not None:
        yield tree
        if isinstance(tree, Component):
            yield from walk(getattr(tree, "children", None))


def of_class(tree, name):
    """Components that have a class name."""
    return [part for part in walk(tree) if name in (getattr(part, "className", "") or "").split()]


def texts(tree):
    """All text that a reader sees, in order, joined."""
    return "".join(str(part) for part in walk(tree) if isinstance(part, str | int | float))


def hrefs(tree, text=""):
    """Where the links lead whose text contains another, by their text; the last of equal ones."""
    return {
        label: part.href
        for part in walk(tree)
        if hasattr(part, "href") and text in (label := texts(part.children))
    }


def links(tree, text=""):
    """Addresses of the page that the links of :func:`hrefs` lead to."""
    found = hrefs(tree, text)
    assert [href for href in found.values() if not href.startswith("?")] == []
    return {label: from_query(href) for label, href in found.items()}


def problems(tree):
    """Errors that a view shows."""
    return [texts(part) for part in of_class(tree, "problem")]


def kinds(tree):
    """Names of the components' classes."""
    return {type(part).__name__ for part in walk(tree) if isinstance(part, Component)}


def figure(component, name):
    """The Plotly figure of a name."""
    (graph,) = [p for p in walk(component) if getattr(p, "id", None) == {"figure": name}]
    return graph.figure


def cells(component, name):
    """Texts of the table rows of the section with a class name."""
    (section,) = of_class(component, name)
    rows = [part for part in walk(section) if type(part).__name__ == "Tr"]
    return [[texts(cell) for cell in row.children] for row in rows]
