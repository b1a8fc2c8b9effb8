"""Texts of an input's positions, as users give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError
from nrm_graph.network import unit_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.network.topology import Topology


def checked_tokens(topology: Topology, tokens: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the texts of an input's positions.

    Raises
    ------
    InputError
        If they are no texts, or no layer has as many positions.
    """
    if tokens is None:
        return None
    check_texts(tokens)
    if not unit_names.fits(topology, len(tokens)):
        raise InputError(
            f"tokens names {len(tokens)} positions, but no layer has as many: expected one text "
            "for each position of the input, padding and special tokens included"
        )
    return tuple(tokens)


def check_texts(tokens: object) -> None:
    """Refuse what is no list of texts.

    Raises
    ------
    InputError
        If it is none.
    """
    if (
        not isinstance(tokens, Iterable)
        or isinstance(tokens, str)
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise InputError("tokens must be a list of text, one for each position of the input")
