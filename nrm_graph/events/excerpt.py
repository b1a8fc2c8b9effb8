"""Where in a text something is wrong: an excerpt with a caret below the place."""

from __future__ import annotations

import re
import unicodedata

_WINDOW = 60
_CARET = re.compile(r"[ \u3000]*\^")


def pointed(problem: str, text: str, position: int) -> str:
    """Return a problem, and below it the text around a position with a caret under that.

    Parameters
    ----------
    problem : str
        What is wrong, on one line.
    text : str
        What it is wrong with; line ends and tabs are shown as blanks.
    position : int
        Number of characters before the place.

    Returns
    -------
    str
        Three lines.

    Examples
    --------
    >>> print(pointed("expected an index", "a & b[1]", 2))
    expected an index
      a & b[1]
        ^
    """
    start = max(0, position - _WINDOW // 2)
    shown = "".join(c if c.isprintable() else " " for c in text[start : start + _WINDOW])
    before = "... " if start else ""
    after = " ..." if start + _WINDOW < len(text) else ""
    # A wide character has a wide blank below it: the caret stands right on a screen, and at the
    # same number of characters.
    blanks = "".join(("", " ", "\u3000")[_columns(c)] for c in shown[: position - start])
    return f"{problem}\n  {before}{shown}{after}\n  {' ' * len(before)}{blanks}^"


def inline(message: str) -> str:
    """Return a message with its caret, if it has one, in the text instead of below it.

    Examples
    --------
    >>> inline(pointed("expected an index", "a & b[1]", 2))
    'expected an index, at ^ in: a ^& b[1]'
    """
    lines = message.split("\n")
    if len(lines) != 3 or not _CARET.fullmatch(lines[-1]):
        return message
    problem, shown, caret = lines
    left, place = sum(map(_columns, caret)) - 1, 0
    while place < len(shown) and left > 0:
        left -= _columns(shown[place])
        place += 1
    while place < len(shown) and not _columns(shown[place]):
        place += 1
    marked = f"{shown[:place]}^{shown[place:]}".strip()
    return f"{problem}, at ^ in: {marked}"


def _columns(character: str) -> int:
    """Width of a character on a screen."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
