"""Neuron sets and events: frozen values, bound to a network only when they are asked about.

A set of neurons of one layer is the event "the walk passes through the set"
(arXiv:2606.00557).  Events combine with ``&``, ``|``, ``~`` and ``-``.  Because a walk visits
a layer at most once, ``&`` of two sets of one layer is their intersection;
:mod:`nrm_graph.events.conjunctions` binds an event to a network.

>>> A = Layer("features.28")[12]
>>> B = Layer("features.21")[[3, 7], 4:9, :]
>>> A & ~B
features.28[12] & ~features.21[[3, 7], 4:9, :]
>>> ~(A | B) == ~A & ~B
True
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import EventError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from nrm_graph.network.units import Partition

_PLAIN = re.compile(r"[\w@]+(?:\.[\w@]+)*")
"""Names of layers that an expression takes without quotes."""


class Event:
    """A set of walks.  Combine with ``&``, ``|``, ``~`` and ``-``."""

    def __and__(self, other: Event) -> Event:
        """Return the walks of both."""
        return conjunction(self, other) if isinstance(other, Event) else NotImplemented

    def __or__(self, other: Event) -> Event:
        """Return the walks of either."""
        if not isinstance(other, Event):
            return NotImplemented
        return Or(_flat(Or, (self, other)))

    def __sub__(self, other: Event) -> Event:
        """Return the walks of this event and not of the other."""
        return self & ~other if isinstance(other, Event) else NotImplemented

    def __invert__(self) -> Event:
        """All other walks, those that bypass the layer included."""
        return Not(self)

    def __bool__(self) -> bool:
        """Refuse: ``A and B`` is not the event ``A & B``."""
        raise TypeError("an event has no truth value: use &, | and ~ instead of and, or, not")


@dataclass(frozen=True, eq=True)
class BoolMask:
    """A boolean array as a hashable value."""

    shape: tuple[int, ...]
    packed: bytes

    def array(self) -> npt.NDArray[np.bool_]:
        """Return the array again."""
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=int(np.prod(self.shape)))
        return bits.astype(bool).reshape(self.shape)

    def __repr__(self) -> str:
        return f"<mask of {int(self.array().sum())} in {self.shape}>"


@dataclass(frozen=True)
class Slice:
    """A slice as a hashable value."""

    start: int | None
    stop: int | None
    step: int | None

    def __repr__(self) -> str:
        text = (
            f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"
        )
        return text if self.step is None else f"{text}:{self.step}"


Item = int | Slice | BoolMask | EllipsisType | tuple[Any, ...]
"""One entry of an index as a hashable value; an array of integers as nested tuples."""


def checked(event: object) -> Event:
    """Return what is an event.

    Raises
    ------
    EventError
        If it is anything else.
    """
    if not isinstance(event, Event):
        raise EventError(f"expected an event such as ng.Layer('conv1')[3], found {event!r}")
    return event


def _freeze(item: object) -> Item:
    wrong = EventError(
        f"cannot index neurons with {item!r}: expected integers, slices, lists of integers "
        "or a boolean mask, as in NumPy"
    )
    try:
        if isinstance(item, slice):
            return Slice(*(None if i is None else index(i) for i in _ends(item)))
        if item is Ellipsis:
            return item
        if isinstance(item, int | np.integer) and not isinstance(item, bool):
            return int(item)
        if hasattr(item, "detach"):  # a tensor, without importing torch
            item = item.detach().cpu().numpy()
        array = np.asarray(item)
    except (TypeError, ValueError):  # no integer; a ragged list; a dtype that NumPy lacks
        raise wrong from None
    if array.dtype == bool:
        return BoolMask(array.shape, np.packbits(array).tobytes())
    if array.size == 0:
        return ()
    if array.dtype.kind not in "iu":
        raise wrong
    return _tuples(array.tolist())


def _ends(item: slice) -> tuple[Any, Any, Any]:
    return item.start, item.stop, item.step


def _tuples(value: list[Any] | int) -> tuple[Any, ...] | int:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _thaw(item: Item) -> Any:
    if isinstance(item, Slice):
        return slice(item.start, item.stop, item.step)
    if isinstance(item, BoolMask):
        return item.array()
    if isinstance(item, tuple):
        return np.array(item, dtype=np.int64)
    return item


def _text(item: object) -> str:
    if item is Ellipsis:
        return "..."
    if isinstance(item, tuple):
        return "[" + ", ".join(_text(i) for i in item) + "]"
    return repr(item)


def _name(layer: str) -> str:
    """Write a layer's name so that it can be read again: in quotes where it is no plain one."""
    if _PLAIN.fullmatch(layer):
        return layer
    escaped = layer.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class NeuronSet(Event):
    """A set of neurons of one layer."""

    layer: str

    def mask(self, shape: tuple[int, ...], units: Partition | None = None) -> npt.NDArray[np.bool_]:
        """Which neurons of the layer are meant, as a boolean array of its shape."""
        raise NotImplementedError

    def __and__(self, other: Event) -> Event:
        """Intersection within a layer, joint event across layers."""
        if isinstance(other, NeuronSet) and other.layer == self.layer:
            return Combined(self.layer, "&", self, other)
        return super().__and__(other)

    def __or__(self, other: Event) -> Event:
        """Union."""
        if isinstance(other, NeuronSet) and other.layer == self.layer:
            return Combined(self.layer, "|", self, other)
        return super().__or__(other)

    def __sub__(self, other: Event) -> Event:
        """Difference within a layer; across layers, ``A & ~B``."""
        if isinstance(other, NeuronSet) and other.layer == self.layer:
            return Combined(self.layer, "-", self, other)
        return super().__sub__(other)


@dataclass(frozen=True, repr=False)
class Indexed(NeuronSet):
    """Neurons selected by a NumPy-style index into the layer's shape."""

    layer: str
    index: tuple[Item, ...]

    def mask(self, shape: tuple[int, ...], units: Partition | None = None) -> npt.NDArray[np.bool_]:
        """See :meth:`NeuronSet.mask`."""
        mask = np.zeros(shape, bool)
        try:
            mask[tuple(_thaw(item) for item in self.index)] = True
        except (IndexError, ValueError, TypeError) as error:
            raise EventError(
                f"{self!r} does not fit layer {self.layer} of shape {shape}: {error}"
            ) from None
        return mask

    def __repr__(self) -> str:
        index = ", ".join(_text(item) for item in self.index) if self.index else "()"
        return f"{_name(self.layer)}[{index}]"


@dataclass(frozen=True, repr=False)
class Units(NeuronSet):
    """Neurons of stored units."""

    layer: str
    ids: tuple[int, ...]

    def mask(self, shape: tuple[int, ...], units: Partition | None = None) -> npt.NDArray[np.bool_]:
        """See :meth:`NeuronSet.mask`."""
        if units is None:
            raise EventError(f"{self!r} needs the units of a measure or store")
        wrong = [i for i in self.ids if not 0 <= i < units.n_units]
        if wrong:
            raise EventError(
                f"layer {self.layer} has units 0 to {units.n_units - 1}, found {wrong[0]}"
            )
        return np.isin(units.labels, self.ids)

    def __repr__(self) -> str:
        return f"{_name(self.layer)}.units({list(self.ids)})"


@dataclass(frozen=True, repr=False)
class Combined(NeuronSet):
    """Two sets of one layer, combined by ``&``, ``|`` or ``-``."""

    layer: str
    operator: str
    left: NeuronSet
    right: NeuronSet

    def mask(self, shape: tuple[int, ...], units: Partition | None = None) -> npt.NDArray[np.bool_]:
        """See :meth:`NeuronSet.mask`."""
        chain: list[Combined] = []
        node: NeuronSet = self
        while isinstance(node, Combined):  # not by recursion: chains of thousands are usual
            chain.append(node)
            node = node.left
        mask = node.mask(shape, units)
        for part in reversed(chain):
            right = part.right.mask(shape, units)
            if part.operator == "|":
                mask = mask | right
            else:
                mask = mask & (right if part.operator == "&" else ~right)
        return mask

    def __repr__(self) -> str:
        rights, node = [], self.left
        rights.append(f" {self.operator} {self.right!r})")
        while isinstance(node, Combined):
            rights.append(f" {node.operator} {node.right!r})")
            node = node.left
        return "(" * len(rights) + repr(node) + "".join(reversed(rights))


@dataclass(frozen=True)
class Layer:
    """A layer by name; index it to get a :class:`NeuronSet`.

    Examples
    --------
    >>> Layer("conv1")[3, 4:9]
    conv1[3, 4:9]
    >>> Layer("conv1")[:] - Layer("conv1")[0]
    (conv1[:] - conv1[0])
    """

    name: str

    # Python would iterate over ``layer[0], layer[1], ...`` without end: any index is taken.
    __iter__ = None
    __contains__ = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise EventError(f"a layer is known by its name, a string; found {self.name!r}")

    def __getitem__(self, index: object) -> NeuronSet:
        """Neurons by NumPy index: integers, slices, lists, boolean masks, ``...``."""
        items = index if isinstance(index, tuple) else (index,)
        return Indexed(self.name, tuple(_freeze(item) for item in items))

    def units(self, ids: Iterable[int]) -> NeuronSet:
        """Neurons of the stored units with these ids."""
        try:
            return Units(self.name, tuple(index(i) for i in ids))
        except (TypeError, ValueError):
            raise EventError(f"units of {self.name} must be integers, found {ids!r}") from None


@dataclass(frozen=True, repr=False)
class Edge(Event):
    """The walk steps directly from a neuron of ``dst`` to a neuron of ``src``.

    ``dst`` is the set nearer the output.  With a skip connection this is not ``dst & src``,
    which longer routes satisfy as well.
    """

    dst: NeuronSet
    src: NeuronSet

    def __post_init__(self) -> None:
        for name in ("dst", "src"):
            if not isinstance(getattr(self, name), NeuronSet):
                raise EventError(
                    f"Edge needs two neuron sets, as in Edge(Layer('a')[1], Layer('b')[2]); "
                    f"{name} is {getattr(self, name)!r}"
                )

    def __repr__(self) -> str:
        return f"({self.dst!r} -> {self.src!r})"


@dataclass(frozen=True, repr=False)
class Not(Event):
    """Every walk that is not in ``event``."""

    event: Event

    def __invert__(self) -> Event:
        """Remove the double negation."""
        return self.event

    def __repr__(self) -> str:
        return f"~{self.event!r}"


@dataclass(frozen=True, repr=False)
class And(Event):
    """Walks that are in every part."""

    parts: tuple[Event, ...]

    def __invert__(self) -> Event:
        """De Morgan."""
        return Or(tuple(~part for part in self.parts))

    def __repr__(self) -> str:
        return " & ".join(f"({p!r})" if isinstance(p, Or) else repr(p) for p in self.parts)


@dataclass(frozen=True, repr=False)
class Or(Event):
    """Walks that are in at least one part."""

    parts: tuple[Event, ...]

    def __invert__(self) -> Event:
        """De Morgan."""
        return And(tuple(~part for part in self.parts))

    def __repr__(self) -> str:
        return " | ".join(repr(p) for p in self.parts)


def _flat(kind: type[And] | type[Or], parts: Sequence[Event]) -> tuple[Event, ...]:
    return tuple(
        inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,))
    )


def conjunction(*parts: Event) -> Event:
    """Return the event that is all of ``parts``."""
    return And(_flat(And, parts)) if len(parts) != 1 else parts[0]


def stay(sets: Mapping[str, object]) -> Event:
    """Return the event that a walk leaves no given set: it avoids every complement.

    This is the relevance of a subgraph (sGNN-LRP): in each layer the walk either passes
    through the set given or does not pass through the layer at all.

    Parameters
    ----------
    sets : mapping of layer name to index or NeuronSet
        ``{"features.28": [3, 9]}`` means ``Layer("features.28")[[3, 9]]``.
    """
    if not isinstance(sets, Mapping) or not sets:
        raise EventError(
            "stay needs a mapping of at least one layer, as in stay({'features.28': [3, 9]}); "
            f"found {sets!r}"
        )
    parts = []
    for name, chosen in sets.items():
        inside = chosen if isinstance(chosen, NeuronSet) else Layer(name)[chosen]
        if inside.layer != name:
            raise EventError(f"stay was given a set of {inside.layer} for layer {name}")
        parts.append(~(Layer(name)[...] - inside))
    return conjunction(*parts)
