"""Texts of an input's positions, as a store holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.errors import StoreError
from nrm_graph.network.token_texts import padded, positions
from nrm_graph.store.format import settings

if TYPE_CHECKING:
    from nrm_graph.store.view import View


def tokens_of(db: View, identity: int) -> tuple[str, ...] | None:
    """Texts of an input's positions, those of padding included, where the store names them.

    Raises
    ------
    StoreError
        If they are no texts.
    """
    if db._snapshot.fields.types.get("tokens") != "strings":
        return None
    tokens = db._snapshot.facts(identity).get("tokens")
    if tokens is None:
        return None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        key = db._snapshot.entries[identity].key
        raise StoreError(f"the tokens of {key!r} in {db.path} are no texts: copy the store again")
    inputs = settings.inputs_of(db.meta)
    return padded(tokens, positions((row["shape"], row["dtype"] != "float") for row in inputs))
