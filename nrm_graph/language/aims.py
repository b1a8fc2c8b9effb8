"""Targets as people say them of a language model: a token's text, a class, a difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from nrm_graph.language.tokens import Reader

PREDICTED, LABEL = "predicted", "label"


def aim_of(reader: Reader, target: object, against: object = None) -> Any:
    """Return one target of a language model as the network's own: an output, or weights.

    Parameters
    ----------
    reader : Reader
        Of the model.
    target : str, int or mapping
        Text or number of a token or class, ``"predicted"``, ``"label"`` of a classifier, or
        weights of texts or numbers.
    against : str or int, optional
        What the target is compared with: the difference of the two outputs is explained.

    Raises
    ------
    InputError
        If there is no such token or class.
    """
    if hasattr(target, "item"):  # numbers of NumPy and torch
        target = target.item()
    if isinstance(target, Mapping):
        if against is not None:
            raise InputError(
                "target is a mapping of weights, and against= another: put both into it"
            )
        weights: dict[int, float] = {}
        for name, weight in target.items():
            output = reader.output_of(name)
            weights[output] = weights.get(output, 0.0) + weight
        return weights
    if target == LABEL and reader.classes is None:
        raise InputError(
            "target='label' is for classifiers: give every text a target of its own, as "
            "{'text': ..., 'target': ...}"
        )
    named = isinstance(target, str) and target in (PREDICTED, LABEL)
    if against is None:
        return target if named else reader.output_of(target)
    other = reader.output_of(against)
    first: Any = (target,) if named else reader.output_of(target)
    if first == other:
        raise InputError(
            f"target and against are the same output, {reader.name_of(other)!r}: nothing is left "
            "of the difference"
        )
    return {first: 1.0, other: -1.0}


def aims_of(reader: Reader, target: object, against: object = None) -> Any:
    """Return several targets, or one, as :func:`aim_of` does.

    Raises
    ------
    InputError
        If there is none.
    """
    single = isinstance(target, str | Mapping) or not isinstance(target, Iterable)
    if single or hasattr(target, "item"):
        return aim_of(reader, target, against)
    assert isinstance(target, Iterable)
    return [aim_of(reader, each, against) for each in target]
