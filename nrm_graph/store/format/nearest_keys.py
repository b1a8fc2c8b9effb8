"""Keys that were probably meant by one that a store does not hold."""

from __future__ import annotations

import difflib
import heapq
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

SUGGESTED = 3
"""Keys that a message suggests, at most."""

COMPARED = 20_000
"""Keys that are compared letter by letter, at most: it takes a second."""

_DIGITS = re.compile("([0-9]{1,18})")

Form = tuple[tuple[str, ...], tuple[int, ...]]
"""What stands between the numbers of a key, and these."""


def nearest_keys(key: str, keys: Collection[str]) -> list[str]:
    """Return the keys that are nearest to a wrong one, the likeliest first, at most three.

    The first of these that fits any key decides: the same but for case, spaces and leading zeros;
    the same file in another folder; neighbours by number of the same form, such as ``img_12.png``;
    keys that hold it as a whole or are held by it; and, of what has letters, similar spellings.
    Numbers that merely share digits are not similar.

    >>> nearest_keys("0012", ["11", "12", "112", "210"])
    ['12']
    >>> nearest_keys("img_7.png", ["img_2.png", "img_6.png", "img_70.png", "dog_7.png"])
    ['img_6.png', 'img_2.png', 'img_70.png']
    >>> nearest_keys("0001", ["cat/0001.png", "cat/0010.png"])
    ['cat/0001.png']
    """
    for candidates in _candidates(key, keys):
        if candidates:
            return candidates
    return []


def _candidates(key: str, keys: Collection[str]) -> Iterator[list[str]]:
    """Keys of every way to be near, best first."""
    texts, numbers = _form(key)
    same, of_file, numbered, holding = [], [], [], []
    file, name = _form(key.rsplit("/", 1)[-1]), key.strip().casefold()
    whole = re.compile(rf"(?<![0-9a-z]){re.escape(name)}(?![0-9a-z])") if name else None
    for other in keys:
        form = _form(other)
        if form == (texts, numbers):
            same.append(other)
        if _form(other.rsplit("/", 1)[-1]) == file:
            of_file.append(other)
        if form[0] == texts and numbers:
            apart = tuple(abs(a - b) for a, b in zip(numbers, form[1], strict=True))
            numbered.append((apart, form[1], other))
        text = other.strip().casefold()
        if whole is not None and (whole.search(text) or (len(text) > 2 and text in name)):
            holding.append((abs(len(text) - len(name)), other))
    yield sorted(same)[:SUGGESTED]
    yield sorted(of_file)[:SUGGESTED]
    yield [other for *_, other in heapq.nsmallest(SUGGESTED, numbered)]
    yield [other for _, other in heapq.nsmallest(SUGGESTED, holding)]
    if re.search("[^0-9\\W_]", key):
        alike = keys
        if len(keys) > COMPARED:
            alike = heapq.nsmallest(COMPARED, (k for k in keys if k[:1] == key[:1]))
        yield difflib.get_close_matches(key, alike, n=SUGGESTED)


def _form(key: str) -> Form:
    """Take a key apart at its numbers, without case and spaces around it."""
    parts = _DIGITS.split(key.strip().casefold())
    return tuple(parts[::2]), tuple(map(int, parts[1::2]))
