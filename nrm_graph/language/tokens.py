"""Text and tokens: what a tokenizer makes of a text, and which token a text names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import torch

from nrm_graph.errors import InputError
from nrm_graph.language.heads import MASKED

if TYPE_CHECKING:
    from torch import Tensor

SPACE = "\u2581"
"""What some vocabularies (SentencePiece's) write for a space."""


@dataclass(frozen=True)
class Encoded:
    """A text as a model reads it.

    Attributes
    ----------
    ids : tuple of int
        Of its tokens, special ones included, without padding.
    tokens : tuple of str
        Their texts.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def inputs(self, length: int, pad: int) -> dict[str, Tensor]:
        """Ids and mask of so many positions: padding is on the right."""
        rest = length - len(self.ids)
        return {
            "input_ids": torch.tensor([*self.ids, *[pad] * rest]),
            "attention_mask": torch.tensor([1] * len(self.ids) + [0] * rest),
        }


@dataclass(frozen=True)
class Reader:
    """What reads texts for a model: its tokenizer, and what the model asks of a text.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerFast
        Of transformers.
    head : "causal", "masked" or "classification"
        What the model answers.
    vocabulary : int
        Ids that the model knows.
    outputs : int
        Outputs of the model: tokens, or classes.
    longest : int or None
        Positions that the model knows.
    pad : int
        Id that stands behind a text.
    classes : tuple of str or None
        Names of a classifier's classes.
    """

    tokenizer: Any
    head: str
    vocabulary: int
    outputs: int
    longest: int | None
    pad: int
    classes: tuple[str, ...] | None
    _texts: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def mask(self) -> int | None:
        """Id of the mask token that a masked model is asked for."""
        return int(self.tokenizer.mask_token_id) if self.head == MASKED else None

    def encode(self, text: object, name: str = "the text") -> Encoded:
        """Tokens of a text.

        Parameters
        ----------
        text : str
            The text; special tokens are added as the tokenizer does.
        name : str
            What to call it in messages.

        Raises
        ------
        InputError
            If it is no text, holds no token, more than the model knows, ids that it has not, or,
            of a masked model, not exactly one mask token.
        """
        if not isinstance(text, str):
            raise InputError(f"{name} is a {type(text).__name__}, expected text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{name} is no valid Unicode: {text[:40]!r}") from None
        ids = tuple(map(int, self.tokenizer(text, verbose=False)["input_ids"]))
        if not ids:
            raise InputError(f"{name} holds no token: expected at least one")
        if self.longest is not None and len(ids) > self.longest:
            raise InputError(
                f"{name} is of {len(ids):,} tokens, and the model knows {self.longest:,} "
                "positions: shorten it"
            )
        if max(ids) >= self.vocabulary:
            raise InputError(
                f"{name} holds the token {self.text_of(max(ids))!r} with the id {max(ids):,}, and "
                f"the model knows {self.vocabulary:,}: the tokenizer is another model's"
            )
        if self.head == MASKED:
            mask = self.tokenizer.mask_token
            count = ids.count(self.mask)
            if count != 1:
                raise InputError(
                    f"{name} holds the mask token {mask} {count} times, expected once: it says "
                    "which token a masked model is asked for"
                )
        return Encoded(ids, tuple(map(self.text_of, ids)))

    def text_of(self, token: int) -> str:
        """Text of a token, with the space that it begins with; special tokens by their names."""
        if token not in self._texts:
            self._texts[token] = self._text_of(token)
        return self._texts[token]

    def _text_of(self, token: int) -> str:
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the head of a model may be wider than its vocabulary
            return f"<{token}>"
        if SPACE in piece:
            return str(piece).replace(SPACE, " ")
        if token in self.tokenizer.all_special_ids:
            return str(piece)
        text = str(self.tokenizer.convert_tokens_to_string([piece]))
        return str(piece) if "\ufffd" in text or not text else text

    def output_of(self, asked: object) -> int:
        """Output that a text or a number names: a token's id, or a class.

        Raises
        ------
        InputError
            If there is none; a text that the tokenizer splits is named with its pieces.
        """
        if isinstance(asked, str):
            return self._class_of(asked) if self.classes is not None else self._token_of(asked)
        whole = isinstance(asked, int) and not isinstance(asked, bool)
        if not isinstance(asked, int) or not whole or not 0 <= asked < self.outputs:
            what = "a class" if self.classes is not None else "a token"
            raise InputError(
                f"expected {what} as text or as a number from 0 to {self.outputs - 1:,}, found "
                f"{asked!r:.100}"
            )
        return asked

    def name_of(self, output: int) -> str:
        """Text of an output: a token, or a class."""
        return self.text_of(output) if self.classes is None else self.classes[output]

    def _class_of(self, name: str) -> int:
        assert self.classes is not None
        if self.classes.count(name) != 1:
            raise InputError(
                f"{name!r:.100} is not a class of this model: expected one of "
                f"{', '.join(self.classes)[:200]}"
            )
        return self.classes.index(name)

    def _token_of(self, text: str) -> int:
        pieces = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(pieces) == 1 and self.text_of(pieces[0]) == text:
            return self._known(pieces[0], text)
        vocabulary = self.tokenizer.get_vocab()
        for spelled in (text, text.replace(" ", SPACE)):
            token = vocabulary.get(spelled)
            if token is not None and self.text_of(token) == text:
                return self._known(token, text)
        if len(pieces) == 1:  # the tokenizer writes it in another way, such as without capitals
            return self._known(pieces[0], text)
        if not pieces:
            raise InputError(f"{text!r:.100} holds no token: expected the text of one")
        shown = ", ".join(repr(self.text_of(piece)) for piece in pieces[:8])
        raise InputError(
            f"{text!r:.100} is no token of this model: its tokenizer splits it into {shown}"
            f"{', ...' if len(pieces) > 8 else ''}; give one token, such as the first of them, or "
            "its id"
        )

    def _known(self, token: int, text: str) -> int:
        if token == self.tokenizer.unk_token_id and text != self.tokenizer.unk_token:
            raise InputError(
                f"{text!r:.100} is unknown to this tokenizer: expected the text of a token"
            )
        if token >= self.outputs:
            raise InputError(
                f"the token {text!r:.100} has the id {token:,}, and the model answers "
                f"{self.outputs:,}: the tokenizer is another model's"
            )
        return int(token)


class TokenTexts(Sequence[str]):
    """Texts of all outputs of a model, made when they are asked for."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return self._reader.outputs

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        places = range(len(self))[place]
        if isinstance(places, int):
            return self._reader.name_of(places)
        return [self._reader.name_of(i) for i in places]
