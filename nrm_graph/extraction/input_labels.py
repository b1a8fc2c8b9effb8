"""Labels of inputs, of whatever kind: plain values, their text, and the class they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TEXT = 1 << 16
MAX_DEPTH = 20
_EXACT = 1 << 53  # whole floats beyond it are not written as integers


def plain(value: object, name: str = "the label", depth: int = 0) -> Any:
    """Return a label as None, a bool, number or text, or a list or dict of these.

    Tensors and arrays of one element are that element, others lists; bytes are UTF-8; what is of
    another kind is its text (a date, a path, an enumeration).

    Raises
    ------
    InputError
        If it has no text of its own, or is nested too deeply.

    Examples
    --------
    >>> plain(torch.tensor([2])), plain(np.str_("cat")), plain(torch.tensor([1.0, 0.0]))
    (2, 'cat', [1.0, 0.0])
    """
    if depth > MAX_DEPTH:
        raise InputError(f"{name} is nested more than {MAX_DEPTH} deep: give its text")
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.item() if value.numel() == 1 else value.to_dense().tolist()
    elif isinstance(value, np.generic | np.ndarray):
        value = value.item() if value.size == 1 else value.tolist()
    if value is None or isinstance(value, bool):
        return value
    for number in (int, float):  # members of enumerations may be such
        if isinstance(value, number):
            return number(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{name} is {repr(value)[:100]}: expected UTF-8, or text") from None
    if isinstance(value, Mapping):
        return {str(k): plain(v, name, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, name, depth + 1) for v in value]
    kind: Any = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        raise InputError(
            f"{name} is a {kind.__name__}, which has no text of its own: expected text, a "
            "number, or a list, tensor or mapping of these"
        )
    return str(value)


def text(label: object) -> str | None:
    """Text of a plain label, as a store keeps it.

    Lists and mappings are JSON, in which equal numbers are written alike: whole ones without a
    point, booleans as 0 and 1.

    Raises
    ------
    InputError
        If it is too long.

    Examples
    --------
    >>> text(3), text("cat"), text([1.0, False, 0.5]), text(["cat", "dog"])
    ('3', 'cat', '[1, 0, 0.5]', '["cat", "dog"]')
    """
    if label is None:
        return None
    is_nested = isinstance(label, list | dict)
    written = (
        json.dumps(_alike(label), ensure_ascii=False, sort_keys=True) if is_nested else str(label)
    )
    if len(written) > MAX_TEXT:
        raise InputError(
            f"a label of {len(written):,} characters is too long to be stored, expected at most "
            f"{MAX_TEXT:,}: leave it out, or give a name"
        )
    return written


def _alike(value: object) -> Any:
    if isinstance(value, list):
        return [_alike(v) for v in value]
    if isinstance(value, dict):
        return {k: _alike(v) for k, v in value.items()}
    if isinstance(value, bool | float) and value == value and abs(value) < _EXACT:
        return int(value) if value == int(value) else value
    return value


def class_index(label: Any, key: str, classes: Sequence[str] | None) -> int:
    """Output that a plain label names.

    Parameters
    ----------
    label : object
        As of :func:`plain`.
    key : str
        Name of the input.
    classes : sequence of str, optional
        Names of the outputs.

    Raises
    ------
    InputError
        If there is no label, or it is no class: never a guess.
    """
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if label is None:
        raise InputError(f"target='label', but input {key!r} has no label")
    if isinstance(label, list | dict):
        raise InputError(
            f"target='label', but the label of input {key!r} is {_shown(label)}: expected one "
            "class, by its name or index"
        )
    if classes is None or label not in classes:
        raise InputError(
            f"the label {label!r} of input {key!r} is not a class name: pass classes= "
            "the names of the outputs in their order"
        )
    return list(classes).index(label)


def _shown(label: object) -> str:
    shown = str(text(label))
    return shown if len(shown) <= 60 else f"{shown[:56]} ..."
