"""The column ``item``: places of inputs in the data set, counted through all calls of a store.

A call numbers its inputs by their places in what it was given, from a first number on: place n of
the call is the item ``start + n``, whether or not the inputs before it could be read.

* The first call starts at 0.
* A call that meets an input which the store holds goes on with that input's numbering: its start
  is that item minus its place.  So a data set that was interrupted, or has grown, is numbered as
  if it had been taken at once, and what failed before gets its own place when it succeeds.
* Any other call, of new inputs alone, starts behind the largest item of the store.

The start is fixed before anything is explained, so that batches, writer threads and processes of
Ray agree; to find an input that is held, up to ``AHEAD`` inputs (or ``AHEAD_BYTES``) are read
ahead, and none where the keys of all inputs are known.  A number that another input bears already
is not given again: from there on a call counts behind the largest item (as when a data set has
been shuffled).  Calls at the same time do not know of each other, and may give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nrm_graph.extraction.samples import Sample

AHEAD = 1000
AHEAD_BYTES = 256 << 20


@dataclass
class Numbering:
    """Items of the places of one call.

    Attributes
    ----------
    start : int
        Item of the place 0.
    held : mapping of str to int
        Items of the keys that the store held before.
    """

    start: int
    held: Mapping[str, int]
    _taken: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._taken = frozenset(self.held.values())

    def item(self, key: str, place: int) -> int:
        """Item of an input: its own where it is stored, else by its place."""
        if key in self.held:
            return self.held[key]
        if self.start + place in self._taken:
            self.start = max(self._taken) + 1
        return self.start + place


def first_item(
    stored_items: Mapping[str, int],
    entries: Iterator[tuple[str, Any]],
    keys: Sequence[str] | None,
    sample_of: Callable[[Any, str], Sample],
) -> tuple[list[tuple[str, Any]], int]:
    """Find the item of the first place of a call.

    Parameters
    ----------
    stored_items : mapping of str to int
        Items of the keys that the store holds.
    entries : iterator of (str, item)
        As of :func:`nrm_graph.extraction.samples.items`.
    keys : sequence of str or None
        Keys of all inputs, where they are known.
    sample_of : callable
        Makes a sample of an item and its name; may raise anything.

    Returns
    -------
    list of (str, item)
        What was read of the entries.
    int
        The item.
    """
    if not stored_items:
        return [], 0
    new = max(stored_items.values()) + 1
    if keys is not None:
        starts = (stored_items[key] - n for n, key in enumerate(keys) if key in stored_items)
        return [], next((start for start in starts if start >= 0), new)
    ahead: list[tuple[str, Any]] = []
    size = 0
    for name, item in entries:
        place = len(ahead)
        ahead.append((name, item))
        try:
            sample = sample_of(item, name)
        except Exception:
            continue
        if stored_items.get(sample.key, -1) >= place:
            return ahead, stored_items[sample.key] - place
        size += sum(array.nbytes for array in sample.arrays)
        if len(ahead) >= AHEAD or size >= AHEAD_BYTES:
            break
    return ahead, new
