"""Axes of a layer along which the positions of a text lie; no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_INPUTS = ("input_ids", "attention_mask")
"""Inputs of a network of texts: ids, and 0 where a position is padding."""


def position_axes(shape: Sequence[int], length: int, heads_first: bool = True) -> tuple[int, ...]:
    """Return the axes of a layer's shape that run over so many positions.

    Layers of a transformer are ``(positions, features)``, ``(heads, positions, features)``,
    ``(positions, heads, features)`` where a norm comes before heads are taken apart, or
    ``(heads, positions, positions)`` of scores.

    Parameters
    ----------
    shape : sequence of int
        Of the layer.
    length : int
        Positions of a text.
    heads_first : bool
        Which axis is of heads where there are as many heads as positions.

    Examples
    --------
    >>> position_axes((5, 8), 5), position_axes((1, 8), 5), position_axes((2, 5, 5), 5)
    ((0,), (), (1, 2))
    >>> position_axes((5, 2, 8), 5), position_axes((5, 5, 8), 5, heads_first=False)
    ((0,), (0,))
    """
    if len(shape) == 2:
        return (0,) if shape[0] == length else ()
    if len(shape) != 3:
        return ()
    if shape[1] == length and (heads_first or shape[0] != length):
        return (1, 2) if shape[2] == length else (1,)
    return (0,) if shape[0] == length else ()
