"""What the explorer's views return, walked: text, links, pictures."""

from urllib.parse import unquote_plus

from dash.development.base_component import Component

from nrm_graph.explorer.address import from_query


def walk(node):
    """Every component of a tree, a parent before its children; texts too."""
    if isinstance(node, list | tuple):
        for child in node:
            yield from walk(child)
        return
    yield node
    if isinstance(node, Component):
        yield from walk(getattr(node, "children", None))


def of_class(tree, name):
    return [c for c in walk(tree) if name in (getattr(c, "className", None) or "").split()]


def texts(tree):
    """All text that a reader sees, in order, joined."""
    return "".join(str(c) for c in walk(tree) if isinstance(c, str | int | float))


def links(tree):
    """Addresses that links lead to, by the text of the link; the last of equal texts."""
    found = {}
    for c in walk(tree):
        href = getattr(c, "href", None)
        if href is not None:
            assert href.startswith("?"), unquote_plus(href)
            found[texts(c.children)] = from_query(href)
    return found


def kinds(tree):
    return {type(c).__name__ for c in walk(tree) if isinstance(c, Component)}
