"""Texts of a store as a page shows them: keys, labels, names and tokens may hold anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dash import html

from nrm_graph.plots.common import SIGNED
from nrm_graph.plots.plain_text import shortened, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST, TITLE = 60, 400
"""Letters that are shown of a text, and of it all when the pointer rests on it."""

TOKENS = 40
"""Tokens of a strip."""


def tame(text: str, letters: int = LONGEST) -> str:
    r"""Return the beginning of a text without what breaks lines or turns text around.

    >>> tame("a\nb"), tame("abcdef", 4)
    ('a␣b', 'abc…')
    """
    return visible(shortened(text, letters))


def shown(text: str, letters: int = LONGEST) -> html.Bdi:
    """Return a text of a store, apart from the direction of the text around it."""
    short = tame(text, letters)
    whole: dict[str, Any] = {} if short == text else {"title": tame(text, TITLE)}
    return html.Bdi(short, **whole)


def strip(
    tokens: Sequence[str],
    values: Sequence[float] | None = None,
    count: int = 0,
    most: int = TOKENS,
) -> html.P:
    r"""Return tokens in reading order.

    Parameters
    ----------
    tokens : sequence of str
        Their texts; the first ``most`` are shown.
    values : sequence of float, optional
        Relevance of each, which colours it; the scale ends at the largest \|relevance\|.
    count : int
        How many tokens there are in all, where not all are given.
    """
    bound = max(map(abs, values or ()), default=0.0) or 1.0
    words = []
    for place, token in enumerate(tokens[:most]):
        about: dict[str, Any] = {"title": f"{place}: {tame(token, TITLE)}"}
        if values is not None:
            share = values[place] / bound
            about["title"] += f", R = {values[place]:.6g}"
            red, green, blue, _ = SIGNED(0.5 + 0.5 * share, bytes=True)
            style = {"backgroundColor": f"#{red:02x}{green:02x}{blue:02x}"}
            if abs(share) > 0.65:
                style["color"] = "white"
            about["style"] = style
        words.append(html.Bdi(tame(token, 24), className="token", **about))
    more = max(count, len(tokens)) - len(words)
    return html.P(
        [*words, *([html.Span(f"and {more:,} more")] if more > 0 else [])], className="strip"
    )
