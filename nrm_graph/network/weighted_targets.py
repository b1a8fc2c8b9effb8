"""Weighted targets: signed weights over outputs, and the text that names them in a store.

The text is JSON: an object from flat indices of outputs, ascending, to their weights as floats,
without spaces, such as ``{"0":1.0,"1":-1.0}``.  Equal weights have one text, in whatever order
they were given, and by whichever name of a place.
"""

from __future__ import annotations

import json
import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

Aim = int | str
"""What is explained of one input: flat index of an output, or the text of weights."""

MAX_WEIGHTS = 1000
"""Outputs that one target may weigh: the text stands in every row of ``inputs``."""

MAX_TEXT = 64 << 10


def checked(target: Mapping[Any, float]) -> dict[Any, float]:
    """Refuse weights that no network can give a meaning, before anything is traced.

    Raises
    ------
    InputError
        If there are none or too many, one is no finite number or is zero, or one is of what is no
        output.

    Examples
    --------
    >>> checked({np.int64(3): 1, (-1, 5): -0.5})
    {3: 1.0, (-1, 5): -0.5}
    """
    if not target:
        raise InputError("target is an empty mapping: expected weights of outputs, such as {3: 1}")
    if len(target) > MAX_WEIGHTS:
        raise InputError(f"target weighs {len(target):,} outputs: expected at most {MAX_WEIGHTS:,}")
    weights: dict[Any, float] = {}
    for place, weight in target.items():
        number = isinstance(place, int | np.integer) and not isinstance(place, bool)
        if not number and not isinstance(place, tuple):
            raise InputError(
                f"target weighs {place!r}: expected indices or places of outputs, such as "
                "{3: 1, 5: -1}"
            )
        value = _number(weight)
        if not math.isfinite(value):
            raise InputError(
                f"the weight of target {place} must be a finite number, found {repr(weight)[:100]}"
            )
        if not value:
            raise InputError(f"the weight of target {place} is zero: leave out what does not count")
        weights[int(place) if number else place] = value
    return weights


def _number(weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real):
        return math.nan
    try:
        return float(weight)
    except OverflowError:  # an int or a fraction
        return math.inf


def text_of(weights: Mapping[int, float]) -> str:
    """Text of weights by flat index.

    Examples
    --------
    >>> text_of({5: -1, 3: 1})
    '{"3":1.0,"5":-1.0}'
    """
    listed = {str(int(index)): float(weight) for index, weight in sorted(weights.items())}
    return json.dumps(listed, separators=(",", ":"))


def weights_of(text: str) -> dict[int, float]:
    """Weights by flat index that a text stands for; nothing in it is trusted.

    Raises
    ------
    InputError
        If it is not the text of any.

    Examples
    --------
    >>> weights_of('{"3":1.0,"5":-1.0}')
    {3: 1.0, 5: -1.0}
    """
    try:
        raw: Any = json.loads(text) if len(text) <= MAX_TEXT else None
        weights = {int(index): weight for index, weight in raw.items()}
        fits = text_of(checked(weights)) == text and min(weights) >= 0 and max(weights) < 1 << 31
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError, InputError):
        fits = False
    if not fits:
        raise InputError(
            f"{repr(text)[:100]} is not how a store names weights: expected text such as "
            '{"3":1.0,"5":-1.0}, or a mapping'
        )
    return weights


def order(aim: Aim) -> tuple[bool, Aim]:
    """Key that sorts indices before texts."""
    return isinstance(aim, str), aim
