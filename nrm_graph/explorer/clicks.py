"""What a click on a unit makes of the event that the measure is conditioned on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.events.parser import parse
from nrm_graph.events.sets import And, Combined, NeuronSet, Not

if TYPE_CHECKING:
    from nrm_graph.events.sets import Event


def terms(expression: str) -> list[Event]:
    """Return the parts of a conjunction; none of an empty expression.

    Raises
    ------
    EventError
        If it is no event.
    """
    if not expression.strip():
        return []
    event = parse(expression)
    return list(event.parts) if isinstance(event, And) else [event]


def clicked(expression: str, unit: str, *, add: bool = False, avoid: bool = False) -> str:
    """Return the expression after a click on a unit.

    A unit that is part of the event is taken away.  Any other becomes the whole event, or with
    ``add`` a further part, or with ``avoid`` one that walks must not pass.  A walk passes a layer
    at most once, so a further unit of a layer joins those that are there: walks pass either.

    Parameters
    ----------
    expression : str
        The event before; may be empty.
    unit : str
        Expression of one unit.
    add, avoid : bool
        Whether shift or alt was held.

    Raises
    ------
    EventError
        If one of them is no event, or the unit no neuron set.

    Examples
    --------
    >>> clicked("", "b[3]")
    'b[3]'
    >>> clicked("b[3]", "a[1]", add=True)
    'b[3] & a[1]'
    >>> clicked("b[3] & a[1]", "a[2]", add=True)
    'b[3] & (a[1] | a[2])'
    >>> clicked("b[3] & (a[1] | a[2])", "a[1]"), clicked("b[3]", "b[3]")
    ('b[3] & a[2]', '')
    >>> clicked("b[3]", "a[4]", avoid=True)
    'b[3] & ~a[4]'
    """
    parts, event = terms(expression), parse(unit)
    chosen = event if isinstance(event, NeuronSet) else None
    left = [rest for part in parts if (rest := _without(part, event)) is not None]
    if left != parts:
        return _text(left)
    if avoid:
        return _text([*parts, ~event])
    if not add:
        return repr(event)
    for place, part in enumerate(parts):
        if chosen is not None and isinstance(part, NeuronSet) and part.layer == chosen.layer:
            return _text([*parts[:place], part | chosen, *parts[place + 1 :]])
    return _text([*parts, event])


def units(expression: str) -> tuple[set[str], set[str]]:
    """Return the single sets that an event passes and those that it avoids, as expressions.

    Empty where the expression is no event.
    """
    passed: set[str] = set()
    avoided: set[str] = set()
    for part in terms(expression):
        if isinstance(part, Not):
            avoided.update(map(repr, _alternatives(part.event)))
        else:
            passed.update(map(repr, _alternatives(part)))
    return passed, avoided


def _without(part: Event, unit: Event) -> Event | None:
    """Return what is left of a part without a unit; None where nothing is."""
    if unit == part or (isinstance(part, Not) and part.event == unit):
        return None
    alternatives = _alternatives(part)
    if unit not in alternatives:
        return part
    first, *others = (other for other in alternatives if other != unit)
    for other in others:
        first = first | other
    return first


def _alternatives(event: Event) -> list[Event]:
    """Return the sets that a union of one layer joins."""
    joined = []
    while isinstance(event, Combined) and event.operator == "|":
        joined.append(event.right)
        event = event.left
    return [event, *reversed(joined)]


def _text(parts: list[Event]) -> str:
    if not parts:
        return ""
    event = parts[0]
    for part in parts[1:]:
        event = event & part
    return repr(event)
