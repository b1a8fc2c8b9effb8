"""Names of a language model's outputs, as far as a store holds them: no vocabulary stands there.

The table ``inputs`` holds the texts of the tokens that are explained or predicted.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.network.weighted_targets import weights_of

if TYPE_CHECKING:
    from nrm_graph.store.view import View

TEXTS = ("target_text", "predicted_text")
"""Columns of ``inputs`` that hold the texts of tokens."""

_QUERY = (
    "SELECT DISTINCT target, {weights} AS weights, {target_text} AS target_text, predicted, "
    "{predicted_text} AS predicted_text FROM inputs"
)


def token_names(db: View) -> tuple[str, ...]:
    """Return the texts of all outputs, empty where the store does not know one."""
    types = db._snapshot.fields.types
    columns = {
        name: f'"{name}"' if types.get(name) == "string" else "CAST(NULL AS VARCHAR)"
        for name in ("weights", *TEXTS)
    }
    names = [""] * db.outputs.count
    for target, weights, words, predicted, text in db.sql(_QUERY.format(**columns)).fetchall():
        texts = {predicted: text, **_of_target(target, weights, words)}
        for output, text in texts.items():
            if text and 0 <= output < len(names):
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
