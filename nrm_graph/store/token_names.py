"""Names of a language model's outputs, as far as a store holds them: no vocabulary stands there.

The table ``inputs`` holds the texts of the tokens that are explained or predicted.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.network.weighted_targets import weights_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TEXTS = ("target_text", "predicted_text")
"""Columns of ``inputs`` that hold the texts of tokens."""


def query(types: Mapping[str, str]) -> str:
    """Return the SELECT of a store with such metadata that :func:`token_names` reads."""
    target, predicted = (
        f'"{name}"' if types.get(name) == "string" else "CAST(NULL AS VARCHAR)" for name in TEXTS
    )
    weights = "weights" if types.get("weights") == "string" else "CAST(NULL AS VARCHAR)"
    return f"SELECT DISTINCT target, {weights}, {target}, predicted, {predicted} FROM inputs"


def token_names(rows: Iterable[tuple[Any, ...]], count: int) -> tuple[str, ...]:
    """Return the texts of so many outputs, empty where the store does not know one.

    Parameters
    ----------
    rows : iterable of tuple
        Of :func:`query`.
    count : int
        Outputs of the model.
    """
    names = [""] * count
    for target, weights, words, predicted, predicted_words in rows:
        texts = {predicted: predicted_words, **_of_target(target, weights, words)}
        for output, text in texts.items():
            if text and 0 <= output < count:
                names[output] = text
    return tuple(names)


def _of_target(target: int | None, weights: str | None, words: str | None) -> dict[int, str | None]:
    """Texts of the outputs that are explained; weights stand in the order of their texts."""
    if target is not None:
        return {target: words}
    try:
        texts: Any = json.loads(words or "[]", object_pairs_hook=list)
        listed = [str(text) for text, _ in texts]
        outputs = list(weights_of(weights or ""))
    except (ValueError, TypeError, RecursionError, InputError):  # a stranger's
        return {}
    return dict(zip(outputs, listed, strict=True)) if len(outputs) == len(listed) else {}
