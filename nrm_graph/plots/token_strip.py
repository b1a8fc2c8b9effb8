"""Texts of tokens, coloured by their relevance, in lines as people read them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import matplotlib.font_manager as fonts
from matplotlib.patches import FancyBboxPatch

from nrm_graph.plots.common import SIGNED, TEXT, size_in_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes

FONT = 9.0
_GAP, _LINE, _LETTER = 5.0, 27.0, 0.60  # points; width of a letter in font sizes
_LONGEST = 40


def drawable(text: str) -> str:
    """Text of strangers that a picture can hold: no control characters, no unknown glyphs."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    plain = (c if c.isprintable() and c != " " else "\N{OPEN BOX}" for c in text)
    return "".join(c if _known(c) else "\N{WHITE SQUARE}" for c in plain)


def drawn_words(text: str, most: int | None = None) -> str:
    """Text of strangers, word by word; of a long one so many letters at most."""
    text = " ".join(drawable(word) for word in text.split(" "))
    return (
        text if most is None or len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


NAME = 24
"""Letters of a unit's own name that pictures show."""


@lru_cache(maxsize=4096)
def _known(letter: str) -> bool:
    font: Any = fonts.get_font(fonts.findfont(fonts.FontProperties()))
    return bool(font.get_char_index(ord(letter)))


def lines(tokens: Sequence[str], width: float) -> list[list[int]]:
    """Positions of the tokens, line by line, for so many points of width."""
    rows: list[list[int]] = [[]]
    x = 0.0
    for i, token in enumerate(tokens):
        size = _size(token) + _GAP
        if rows[-1] and x + size > width:
            rows.append([])
            x = 0.0
        rows[-1].append(i)
        x += size
    return rows


def _size(token: str) -> float:
    return max(2.2, len(drawable(token)) + 1.0) * _LETTER * FONT


def height(tokens: Sequence[str], width: float) -> float:
    """Points that the lines take."""
    return _LINE * len(lines(tokens, width))


def draw(ax: Axes, tokens: Sequence[str], values: npt.NDArray[Any], bound: float) -> None:
    """Draw the tokens as boxes in reading order; below each its position."""
    width, room = size_in_points(ax)
    rows = lines(tokens, width)
    ax.set_xlim(0.0, width)
    ax.set_ylim(max(room, _LINE * len(rows)), 0.0)
    for number, row in enumerate(rows):
        x = 0.0
        for i in row:
            size, y = _size(tokens[i]), _LINE * number
            shade = SIGNED(0.5 + 0.5 * float(values[i]) / bound)
            dark = abs(float(values[i])) > 0.65 * bound
            ax.add_patch(
                FancyBboxPatch(
                    (x + 1.0, y + 2.0),
                    size - 2.0,
                    14.0,
                    boxstyle="round,pad=0.5,rounding_size=2",
                    facecolor=shade,
                    edgecolor="#BBBBBB",
                    linewidth=0.4,
                )
            )
            ax.text(
                x + size / 2,
                y + 9.0,
                drawable(tokens[i]),
                ha="center",
                va="center_baseline",
                fontsize=FONT,
                family="monospace",
                color="white" if dark else "black",
                parse_math=False,
            )
            ax.text(x + size / 2, y + 17.5, str(i), ha="center", va="top", fontsize=4.5, color=TEXT)
            x += size + _GAP
    ax.axis("off")
