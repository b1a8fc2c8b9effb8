"""Targets as people and addresses write them: numbers, classes, places and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.network.weighted_targets import weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.network.targets import Outputs

_SHOWN = 60
_MOST_DIGITS = 18


def read_target(text: str | None, classes: Sequence[str] | None, outputs: Outputs) -> Any:
    """Read a target of a store; None of no text.

    It is a number, the name of a class, a place such as ``-1:464`` or ``-1:cat``, or weights of
    these such as ``3=1,5=-1``, or as ``inputs.weights`` holds them.

    Raises
    ------
    InputError
        If it is none of these.
    """
    if text is None or not text.strip():
        return None
    known = [] if classes is None else list(classes)
    whole = _output(text, known)
    if whole is not None:
        return whole
    if text.startswith("{"):
        return weights_of(text)
    shown = repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
    weights: dict[Any, float] = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        output = _output(name.strip(), known)
        try:
            value = float(weight)
        except ValueError:
            output = None
        if output in weights:
            raise InputError(f"the target {shown} names the output {name.strip()} twice")
        if output is None:
            place = ", a place such as -1:464" if isinstance(outputs.place(0), tuple) else ""
            named = ", the name of a class" if known else ""
            raise InputError(
                f"there is no target {shown}: expected a number{named}{place} or weights such as "
                "3=1,5=-1"
            )
        weights[output] = value
    return weights


def _output(name: str, classes: Sequence[str]) -> Any:
    """Read the number of an output, the name of a class or a place; None where it is none."""
    if _is_number(name):
        return int(name)
    if classes.count(name) == 1:
        return classes.index(name)
    first, *rest = name.split(":")
    if not rest or not all(rest):
        return None
    *middle, last = rest
    if not all(map(_is_number, middle)):
        return None
    start = int(first) if _is_number(first) else first
    end = last if last == "predicted" else _output(last, classes)
    return None if end is None else (start, *map(int, middle), end)


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS
