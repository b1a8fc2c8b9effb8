"""Texts as the inputs of an extraction: read by a language model's tokenizer, padded to one length.

A text is a string, or a mapping with ``text`` and what else is known of it.  A sized data set is
looked through before anything is computed, for its longest text decides how many positions the
store holds; a stream is read as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.extraction.samples import OwnTarget, indexed
from nrm_graph.language.aims import aim_of, aims_of
from nrm_graph.language.language_model import LanguageModel
from nrm_graph.language.tokens import TokenTexts
from nrm_graph.store.format.settings import read_settings
from nrm_graph.store.token_names import TEXTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.language.tokens import Encoded, Reader
    from nrm_graph.network.ir.program import Program
    from nrm_graph.rules.composites import Composite

_RESERVED = ("input", "tokens", *TEXTS)


@dataclass(frozen=True)
class Row:
    """One text with what else is known of it.

    Attributes
    ----------
    text : object
        The text.
    fields : mapping
        Key, label and metadata.
    target, against : object
        Its own target, where it has one.
    """

    text: object
    fields: Mapping[str, Any]
    target: object = None
    against: object = None

    @classmethod
    def of(cls, item: object, name: str) -> Row:
        """Row of an item of a data set of texts.

        Raises
        ------
        InputError
            If it is neither a text nor a mapping with one.
        """
        if isinstance(item, str):
            return cls(item, {})
        if not isinstance(item, Mapping):
            raise InputError(
                f"{name} is a {type(item).__name__}: expected text, or a mapping with 'text'"
            )
        if "text" not in item:
            listed = ", ".join(map(str, item)) or "nothing"
            raise InputError(f"{name} is a mapping with {listed}: expected its text as 'text'")
        taken = [part for part in _RESERVED if part in item]
        if taken:
            raise InputError(
                f"{name} has a field {taken[0]!r}, which the store fills itself: call it otherwise"
            )
        fields = {k: v for k, v in item.items() if k not in ("text", "target", "against")}
        return cls(item["text"], fields, item.get("target"), item.get("against"))

    def name(self, other: str) -> str:
        """Key of the text, or what else to call it."""
        key = self.fields.get("key")
        return other if key is None else str(key)


@dataclass(frozen=True)
class Texts:
    """Texts as items of a store: what both kinds of data sets do with a text.

    Attributes
    ----------
    reader : Reader
        Of the model.
    length : int
        Positions that the store holds.
    target, against : object
        What is explained where a text does not say it itself; None of several targets.
    """

    reader: Reader
    length: int
    target: object
    against: object

    def item(self, item: object, name: str) -> dict[str, Any]:
        """Item of a text, as :func:`nrm_graph.extract` takes it.

        Raises
        ------
        InputError
            If it cannot be read, or is longer than the store holds.
        """
        row = Row.of(item, name)
        subject = f"the text of {row.name(name)!r}"
        encoded = self.reader.encode(row.text, subject)
        if len(encoded.ids) > self.length:
            raise InputError(
                f"{subject} is of {len(encoded.ids):,} tokens, and the store holds "
                f"{self.length:,}: shorten it, or make another store with length="
                f"{len(encoded.ids)}"
            )
        fields = {
            **row.fields,
            "input": encoded.inputs(self.length, self.reader.pad),
            "tokens": list(encoded.tokens),
            "text": row.text,
        }
        if row.target is not None or row.against is not None:
            fields["target"] = OwnTarget(self._own(row, name))
        return fields

    def _own(self, row: Row, name: str) -> Any:
        if self.target is None:
            raise InputError(
                f"{row.name(name)!r} has a target of its own, and the call several: give one "
                "target, for the texts that have none"
            )
        target = self.target if row.target is None else row.target
        against = self.against if row.against is None else row.against
        try:
            return aim_of(self.reader, target, against)
        except InputError as error:
            raise InputError(f"the target of {row.name(name)!r}: {error}") from None


@dataclass(frozen=True)
class SizedTexts:
    """Texts of a data set, with length and index."""

    rows: Any
    texts: Texts
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.texts.item(self.rows[place], self.keys[place])


@dataclass(frozen=True)
class StreamedTexts:
    """Texts of a stream; one that cannot be read leaves its error in its place."""

    rows: Iterable[Any]
    texts: Texts

    def __iter__(self) -> Iterator[Any]:
        for place, row in enumerate(self.rows):
            try:
                yield self.texts.item(row, f"item {place}")
            except InputError as error:
                yield error


@dataclass(frozen=True)
class TextCall:
    """What an extraction of texts becomes: a network, its inputs and its targets.

    Attributes
    ----------
    model : LanguageModel
        The model.
    length : int
        Positions of the store.
    inputs : iterable
        The texts as items.
    targets : object
        As the network's own.
    classes : tuple of str or None
        Names of a classifier's classes; of a store that goes on, its own.
    names : sequence of str or None
        Texts of the tokens that are outputs; None of a classifier.
    weights : "named" or None
        A new store names the weights, which are in the model's own files.
    """

    model: LanguageModel
    length: int
    inputs: Iterable[Any]
    targets: Any
    classes: tuple[str, ...] | None
    names: Sequence[str] | None
    weights: str | None

    def program(self) -> Program:
        """Return the traced network, of as many positions as the store has."""
        return self.model.program(self.length)

    def options(
        self,
        composite: str | Composite | None,
        classes: Sequence[str] | None,
        weights: str | None,
    ) -> tuple[str | Composite | None, Sequence[str] | None, str | None]:
        """Return options of a store, those of a language model where none are asked for."""
        return (
            "auto" if composite is None else composite,
            self.classes if classes is None else classes,
            self.weights if weights is None else weights,
        )

    @property
    def described(self) -> dict[str, Any]:
        """What ``store.json`` says of the model."""
        name = self.model.name
        return {
            "head": self.model.head,
            "family": self.model.family,
            "model": Path(name).expanduser().resolve().name if self.model.local else name,
            "length": self.length,
        }


def text_call(
    model: object,
    rows: Any,
    target: object,
    against: object,
    length: int | None,
    folder: Path,
) -> TextCall | None:
    """Prepare an extraction of texts; None of a model that takes none.

    Parameters
    ----------
    model : LanguageModel
        The model.
    rows : iterable of str or mapping
        The texts.
    target, against : object
        As of :func:`nrm_graph.extract`.
    length : int, optional
        Positions that the store is to hold.
    folder : Path
        Of the store.

    Raises
    ------
    InputError
        If there is no such target, the length is none, or the inputs are no texts.
    """
    if not isinstance(model, LanguageModel):
        if against is not None or length is not None:
            raise InputError("against= and length= are for language models (ng.load_model)")
        return None
    if isinstance(rows, str | bytes | Mapping) or not (
        hasattr(rows, "__iter__") or hasattr(rows, "__getitem__")
    ):
        raise InputError(
            f"a language model takes an iterable of texts, found {type(rows).__name__}: put one "
            "text into a list"
        )
    there = (folder / "store.json").exists()
    stored = read_settings(folder) if there else None
    reader, sized = model.reader, indexed(rows)
    targets = aims_of(reader, target, against)
    encoded = _looked_through(reader, rows) if sized else []
    positions = _length(model, encoded, sized, length, stored)
    single = target
    if isinstance(targets, list):
        (single,) = target if len(targets) == 1 else (None,)  # type: ignore[misc]
    texts = Texts(reader, positions, single, against)
    inputs: Iterable[Any] = StreamedTexts(rows, texts)
    if sized:
        inputs = SizedTexts(rows, texts, [name for name, _ in encoded])  # type: ignore[assignment]
    names = TokenTexts(reader) if model.classes is None else None
    classes = model.classes if stored is None else None
    weights = "named" if stored is None and model.weights else None
    return TextCall(model, positions, inputs, targets, classes, names, weights)


def _looked_through(reader: Reader, rows: Any) -> list[tuple[str, Encoded | None]]:
    """Return names and tokens of a sized data set; None of what cannot be read.

    An item that fails is told when its turn comes, where it may be skipped.
    """
    looked: list[tuple[str, Encoded | None]] = []
    for place in range(len(rows)):
        name = f"item {place}"
        try:
            row = Row.of(rows[place], name)
            name = row.name(name)
            looked.append((name, reader.encode(row.text)))
        except Exception:  # a data set's own code can raise anything
            looked.append((name, None))
    return looked


def _length(
    model: LanguageModel,
    encoded: list[tuple[str, Encoded | None]],
    sized: bool,
    asked: int | None,
    stored: Mapping[str, Any] | None,
) -> int:
    """Positions of a store: as it was made, as it was asked for, or those of the longest text."""
    own = None if stored is None else stored.get("language", {}).get("length")
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
            raise InputError(f"length must be a number of positions, found {asked!r:.80}")
        if model.longest is not None and asked > model.longest:
            raise InputError(
                f"length is {asked:,}, and {model.name} knows {model.longest:,} positions"
            )
        return asked
    if isinstance(own, int):
        return own
    if not sized:
        raise InputError(
            "a stream of texts does not say how long its longest is: give length=, the tokens "
            "that the store holds of a text at most"
        )
    return max((len(text.ids) for _, text in encoded if text is not None), default=1)
