"""Events as JSON, to keep them in files: read without trust, never evaluated.

An event is an object whose ``event`` names its kind::

    {"event": "indexed", "layer": NAME, "index": [ITEM, ...]}
    {"event": "units", "layer": NAME, "ids": [INTEGER, ...]}
    {"event": "combined", "layer": NAME, "first": SET, "then": [["&" or "|" or "-", SET], ...]}
    {"event": "edge", "dst": SET, "src": SET}
    {"event": "not", "of": EVENT}
    {"event": "and", "of": [EVENT, ...]}        {"event": "or", "of": [EVENT, ...]}

An ITEM is an integer, ``"..."``, ``{"slice": [START, STOP, STEP]}`` (each an integer or null),
``{"list": [...]}`` (a list of integers, or lists of one length of such, and so on) or
``{"mask": {"shape": [...], "bits": TEXT}}``: a boolean array in C order, eight to a byte, the
first in the highest bit, in Base64.  A SET is an event of the first three kinds.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import EventError
from nrm_graph.events.sets import (
    And,
    BoolMask,
    Combined,
    Edge,
    Event,
    Indexed,
    NeuronSet,
    Not,
    Or,
    Slice,
    Units,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_DEPTH = 100
MAX_PARTS = 100_000
MAX_NUMBERS = 10_000_000
MAX_NAME = 1000
_MAX_AXES = 64  # of a NumPy array
_MAX_BITS = 1 << 40
_LOW, _HIGH = -(1 << 63), (1 << 63) - 1


def to_json(event: Event) -> dict[str, Any]:
    """Write an event as an object that JSON can hold.

    Parameters
    ----------
    event : Event
        Any event.  At most 100 levels of nesting, not counting chains of one layer's sets, and
        100,000 parts.

    Returns
    -------
    dict
        Made of dicts, lists, text, integers and None.

    Raises
    ------
    EventError
        If it is no event, or larger than the limits, or holds what no index is made of.

    Examples
    --------
    >>> from nrm_graph.events.sets import Layer
    >>> to_json(Layer("conv1")[3, 4:9])
    {'event': 'indexed', 'layer': 'conv1', 'index': [3, {'slice': [4, 9, None]}]}
    """
    made = _Writer().event(event, 1)
    from_json(made)  # what could not be read again is never written
    return made


def from_json(obj: object) -> Event:
    """Read an event from what ``json.loads`` gives; nothing in it is trusted.

    Parameters
    ----------
    obj : object
        As :func:`to_json` makes it.

    Returns
    -------
    Event
        The event; whether it fits a network shows when it is asked about.

    Raises
    ------
    EventError
        If a field is missing, unknown, of a wrong type or too large, naming it.

    Examples
    --------
    >>> from_json({"event": "not", "of": {"event": "units", "layer": "a", "ids": [1, 2]}})
    ~a.units([1, 2])
    """
    return _Reader().event(obj, 1)


class _Writer:
    """Counts levels, so that a deep event is an error in words and not of the recursion."""

    def event(self, event: object, depth: int) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            raise EventError(f"an event of more than {MAX_DEPTH} levels cannot be written as JSON")
        if isinstance(event, Indexed):
            return {
                "event": "indexed",
                "layer": event.layer,
                "index": [_item_to_json(item) for item in event.index],
            }
        if isinstance(event, Units):
            return {"event": "units", "layer": event.layer, "ids": list(event.ids)}
        if isinstance(event, Combined):
            chain: list[Combined] = []
            node: NeuronSet = event
            while isinstance(node, Combined):
                chain.append(node)
                node = node.left
            return {
                "event": "combined",
                "layer": event.layer,
                "first": self.event(node, depth + 1),
                "then": [[n.operator, self.event(n.right, depth + 1)] for n in reversed(chain)],
            }
        if isinstance(event, Edge):
            dst, src = self.event(event.dst, depth + 1), self.event(event.src, depth + 1)
            return {"event": "edge", "dst": dst, "src": src}
        if isinstance(event, Not):
            return {"event": "not", "of": self.event(event.event, depth + 1)}
        if isinstance(event, And | Or):
            kind = "and" if isinstance(event, And) else "or"
            return {"event": kind, "of": [self.event(part, depth + 1) for part in event.parts]}
        raise EventError(f"expected an event such as ng.Layer('conv1')[3], found {event!r}")


def _item_to_json(item: Any) -> Any:
    if item is Ellipsis:
        return "..."
    if isinstance(item, Slice):
        return {"slice": [item.start, item.stop, item.step]}
    if isinstance(item, BoolMask):
        bits = base64.b64encode(item.packed).decode("ascii")
        return {"mask": {"shape": list(item.shape), "bits": bits}}
    if isinstance(item, tuple):
        return {"list": _lists(item)}
    return item


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


class _Reader:
    def __init__(self) -> None:
        self.parts = 0
        self.numbers = 0
        self.kinds: dict[str, Callable[[Mapping[str, Any], int], Event]] = {
            "indexed": self.indexed,
            "units": self.units,
            "combined": self.combined,
            "edge": self.edge,
            "not": self.inverse,
            "and": lambda raw, depth: And(self.several(raw, depth)),
            "or": lambda raw, depth: Or(self.several(raw, depth)),
        }

    def event(self, raw: object, depth: int) -> Event:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise EventError(f"an event has at most {MAX_PARTS:,} parts, found more")
        if depth > MAX_DEPTH:
            raise EventError(f"an event has at most {MAX_DEPTH} levels of nesting, found more")
        if not isinstance(raw, dict):
            raise EventError(f"expected an event as a JSON object, found {_short(raw)}")
        kind = raw.get("event")
        call = self.kinds.get(kind) if isinstance(kind, str) else None
        if call is None:
            raise _wrong("event", f"one of {', '.join(self.kinds)}", kind)
        return call(raw, depth)

    def neurons(self, raw: object, depth: int, field: str, layer: str | None = None) -> NeuronSet:
        """Read a set of one layer's neurons, of a given layer where one is named."""
        found = self.event(raw, depth)
        if not isinstance(found, NeuronSet):
            raise EventError(f"{field} of an event must be neurons of one layer: it is none")
        if layer is not None and found.layer != layer:
            raise EventError(
                f"{field} of an event must be neurons of {_short(layer)}, "
                f"found {_short(found.layer)}"
            )
        return found

    def indexed(self, raw: Mapping[str, Any], depth: int) -> Event:
        layer, items = self.fields(raw, "layer", "index")
        index = tuple(self.item(item) for item in _listed(items, "index"))
        if sum(item is Ellipsis for item in index) > 1:
            raise EventError("an index holds at most one '...'")
        return Indexed(_name(layer), index)

    def units(self, raw: Mapping[str, Any], depth: int) -> Event:
        layer, ids = self.fields(raw, "layer", "ids")
        return Units(_name(layer), tuple(self.integer(i, "ids") for i in _listed(ids, "ids")))

    def combined(self, raw: Mapping[str, Any], depth: int) -> Event:
        layer, first, then = self.fields(raw, "layer", "first", "then")
        name = _name(layer)
        found = self.neurons(first, depth + 1, "first", name)
        steps = _listed(then, "then")
        if not steps:
            raise _wrong("then", "a list of at least one step", then)
        for step in steps:
            pair = step if isinstance(step, list) and len(step) == 2 else (None, None)
            if pair[0] not in ("&", "|", "-"):
                raise _wrong("a step of then", "['&' or '|' or '-', neurons]", step)
            found = Combined(name, pair[0], found, self.neurons(pair[1], depth + 1, "then", name))
        return found

    def edge(self, raw: Mapping[str, Any], depth: int) -> Event:
        dst, src = self.fields(raw, "dst", "src")
        return Edge(self.neurons(dst, depth + 1, "dst"), self.neurons(src, depth + 1, "src"))

    def inverse(self, raw: Mapping[str, Any], depth: int) -> Event:
        (inner,) = self.fields(raw, "of")
        return Not(self.event(inner, depth + 1))

    def several(self, raw: Mapping[str, Any], depth: int) -> tuple[Event, ...]:
        (parts,) = self.fields(raw, "of")
        return tuple(self.event(part, depth + 1) for part in _listed(parts, "of"))

    def fields(self, raw: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
        """Values of exactly these fields."""
        expected, found = {"event", *names}, set(raw)
        if found != expected:
            odd = sorted(map(str, found ^ expected))[0]
            problem = "lacks" if odd in expected else "has an unknown"
            raise EventError(f"an event of the kind {raw['event']} {problem} field {_short(odd)}")
        return tuple(raw[name] for name in names)

    def item(self, raw: object) -> Any:
        if raw == "...":
            return Ellipsis
        if not isinstance(raw, dict):
            return self.integer(raw, "index")
        if len(raw) != 1:
            raise _wrong("an item of index", "an object with one of slice, list and mask", raw)
        ((kind, value),) = raw.items()
        if kind == "slice":
            ends = _listed(value, "slice")
            if len(ends) != 3:
                raise _wrong("slice", "[start, stop, step]", value)
            return Slice(*(None if end is None else self.integer(end, "slice") for end in ends))
        if kind == "list":
            return self.nested(_listed(value, "list"))
        if kind == "mask":
            return self.mask(value)
        raise _wrong("an item of index", "an object with one of slice, list and mask", kind)

    def nested(self, raw: list[Any]) -> tuple[Any, ...]:
        """Read a rectangular list of integers; an empty one has no inner lists."""
        if not raw:
            return ()
        shape: list[int] = []
        value: Any = raw
        while isinstance(value, list):
            if not value or len(shape) == _MAX_AXES:
                raise _wrong("list", "integers in lists of one length", raw)
            shape.append(len(value))
            value = value[0]

        def read(value: object, axes: list[int]) -> Any:
            if not axes:
                return self.integer(value, "list")
            if not isinstance(value, list) or len(value) != axes[0]:
                raise _wrong("list", "integers in lists of one length", raw)
            return tuple(read(v, axes[1:]) for v in value)

        found: tuple[Any, ...] = read(raw, shape)
        return found

    def mask(self, raw: object) -> BoolMask:
        if not isinstance(raw, dict) or set(raw) != {"shape", "bits"}:
            raise _wrong("mask", "an object with shape and bits", raw)
        shape = tuple(self.integer(d, "shape") for d in _listed(raw["shape"], "shape"))
        if len(shape) > _MAX_AXES or any(d < 0 for d in shape):
            raise _wrong("shape", f"at most {_MAX_AXES} numbers of at least 0", raw["shape"])
        if math.prod(d or 1 for d in shape) > _MAX_BITS:  # NumPy refuses it even where one is 0
            raise _wrong("shape", "that of a layer", shape)
        try:
            packed = base64.b64decode(raw["bits"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise _wrong("bits", "Base64 text", raw["bits"]) from None
        count = math.prod(shape)
        spare = -count % 8
        if len(packed) != (count + spare) // 8 or (spare and packed[-1] & ((1 << spare) - 1)):
            raise EventError(f"the bits of a mask must be {count:,}, as its shape says")
        return BoolMask(shape, packed)

    def integer(self, value: object, field: str) -> int:
        self.numbers += 1
        if self.numbers > MAX_NUMBERS:
            raise EventError(f"an event holds at most {MAX_NUMBERS:,} numbers, found more")
        if isinstance(value, bool) or not isinstance(value, int) or not _LOW <= value <= _HIGH:
            raise _wrong(field, "64-bit integers", value)
        return value


def _wrong(field: str, expected: str, found: object) -> EventError:
    return EventError(f"in an event, expected {field} to be {expected}, found {_short(found)}")


def _short(value: object) -> str:
    """Beginning of a value's text; of large ones the type alone, whose text would take long."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value[:100])
    return repr(value)[:100]


def _listed(value: object, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(field, "a list", value)
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise _wrong("layer", f"text of at most {MAX_NAME} characters", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _wrong("layer", "valid Unicode", value) from None
    return value
