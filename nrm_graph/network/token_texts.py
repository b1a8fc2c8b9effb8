"""Texts of an input's positions, as users give them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError
from nrm_graph.network import unit_names
from nrm_graph.network.weighted_targets import weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.network.topology import Topology
    from nrm_graph.network.weighted_targets import Aim


PADDING = ""
"""Text of a position behind a text's own."""


def checked_tokens(
    topology: Topology, tokens: Sequence[str] | None, length: int | None = None
) -> tuple[str, ...] | None:
    """Return the texts of an input's positions, those of padding behind them included.

    Parameters
    ----------
    topology : Topology
        Of the network.
    tokens : sequence of str, optional
        The texts.
    length : int, optional
        Positions of a network of ids, which takes shorter texts with padding behind them.

    Raises
    ------
    InputError
        If they are no texts, or no layer has as many positions.
    """
    if tokens is None:
        return None
    check_texts(tokens)
    tokens = padded(tokens, length)
    if not unit_names.fits(topology, len(tokens)):
        raise InputError(
            f"tokens names {len(tokens)} positions, but no layer has as many: expected one text "
            "for each position of the input, padding and special tokens included"
        )
    return tuple(tokens)


def padded(tokens: Sequence[str], length: int | None) -> tuple[str, ...]:
    """Return the texts of a text's positions with those of the padding behind them.

    Examples
    --------
    >>> padded(["a", "cat"], 4), padded(["a", "cat"], None)
    (('a', 'cat', '', ''), ('a', 'cat'))
    """
    rest = 0 if length is None or not tokens else length - len(tokens)
    return (*tokens, *[PADDING] * rest)


def own_tokens(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of a text's own positions, without those of the padding behind them.

    Examples
    --------
    >>> own_tokens(("a", "cat", "", ""))
    ('a', 'cat')
    """
    count = next((i + 1 for i in reversed(range(len(tokens))) if tokens[i] != PADDING), 0)
    return tuple(tokens[:count])


def text_of(tokens: Sequence[str]) -> str:
    """Join tokens to a text as people read it, special tokens included.

    Examples
    --------
    >>> text_of(["A", " cat", "s"]), text_of(["[CLS]", "a", "cat"])
    ('A cats', '[CLS] a cat')
    """
    return ("" if any(token.startswith(" ") for token in tokens) else " ").join(tokens)


def positions(inputs: Iterable[tuple[Sequence[int], bool]]) -> int | None:
    """Return the positions of a network of ids: the length of its first row of whole numbers.

    Parameters
    ----------
    inputs : iterable of (shape, bool)
        Shape of every input without batch axis, and whether it is of whole numbers.
    """
    return next((shape[0] for shape, whole in inputs if whole and len(shape) == 1), None)


def output_texts(aim: Aim, names: Sequence[str]) -> str:
    """Write what is explained in the names of outputs; weights as JSON, in the order of outputs.

    Examples
    --------
    >>> output_texts(1, ["a", "b"]), output_texts('{"0":1.0,"1":-1.0}', ["a", "b"])
    ('b', '{"a": 1.0, "b": -1.0}')
    """
    if not isinstance(aim, str):
        return names[aim]
    weights = weights_of(aim).items()
    return (
        f"{{{', '.join(f'{json.dumps(names[i], ensure_ascii=False)}: {w}' for i, w in weights)}}}"
    )


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
