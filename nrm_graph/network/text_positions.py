"""Axes of a layer along which the positions of a text lie; no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_INPUTS = ("input_ids", "attention_mask")
"""Inputs of a network of texts: ids, and 0 where a position is padding."""


def position_axes(shape: Sequence[int], length: int) -> tuple[int, ...]:
    """Return the axes of a layer's shape that run over so many positions.

    Layers of a transformer are ``(positions, features)``, ``(heads, positions, features)``,
    ``(heads, features, positions)`` of turned keys, or ``(heads, positions, positions)`` of scores.

    Examples
    --------
    >>> position_axes((5, 8), 5), position_axes((1, 8), 5), position_axes((2, 5, 5), 5)
    ((0,), (), (1, 2))
    """
    if len(shape) < 2:
        return ()
    first = len(shape) - 2
    if shape[first] == length:
        scores = len(shape) > 2 and shape[-1] == length
        return (first, first + 1) if scores else (first,)
    return (first + 1,) if len(shape) > 2 and shape[-1] == length else ()
