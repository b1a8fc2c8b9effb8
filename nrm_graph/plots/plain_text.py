"""Text of strangers in a Plotly figure, which reads tags, entities and templates in it."""

from __future__ import annotations

import unicodedata

_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%": "&#37;"})
_BACKWARDS = ("R", "AL", "AN")  # Unicode's classes of letters that run from right to left
_JOINER = "\u200d"
_APART = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"


def plain(text: object, most: int = 200) -> str:
    """Write a text so that Plotly shows it as it is, in titles, labels and what stands at hover.

    Parameters
    ----------
    text : object
        The text, or what ``str`` makes one of.
    most : int
        Letters that are shown; a longer text ends in an ellipsis.

    Returns
    -------
    str
        Without tags (``<b>``), entities, ``%{...}`` and ``$...$``.  Characters that cannot be
        seen, line breaks and those that turn the direction of writing among them, become an open
        box; text from right to left does not move what stands beside it.

    Examples
    --------
    >>> plain('<b>"R&D"</b>'), plain("x" * 9, 4)
    ('&lt;b&gt;"R&amp;D"&lt;/b&gt;', 'xxx…')
    """
    shown = shortened(visible(str(text)), most)
    if shown.isascii():
        return shown.translate(_ESCAPED)
    turns = any(unicodedata.bidirectional(letter) in _BACKWARDS for letter in shown)
    return shown.translate(_ESCAPED).join(_APART) if turns else shown.translate(_ESCAPED)


def letters(text: str, width: float) -> int:
    """Count the letters of a text that fit into so many usual ones.

    >>> letters("iiii", 3.0), letters("wwww", 3.0)
    (3, 2)
    """
    used = 0.0
    for count, letter in enumerate(text):
        wide = unicodedata.east_asian_width(letter) in "WF"
        used += 1.8 if wide else 1.45 if letter in "mwMW@%" else 1.15 if letter.isupper() else 1.0
        if used > width:
            return count
    return len(text)


def visible(text: str) -> str:
    """Put an open box for every character that cannot be seen, but for what joins emoji."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == _JOINER else "\N{OPEN BOX}" for c in text)


def shortened(text: str, most: int) -> str:
    """Cut a text that has more than so many letters."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "\N{HORIZONTAL ELLIPSIS}"
