"""JSON of a store as typed values: what does not fit is refused in words, with its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from nrm_graph.errors import StoreError
from nrm_graph.foreign_errors import Misfit, typed

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

# JSON may hold lone surrogates, which UTF-8 cannot.
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\ud800-\udfff]*\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


@dataclass(frozen=True)
class JsonFile:
    """What messages call a file, and what they say to do where it is malformed."""

    name: str
    advice: str = "copy the store again, and do not trust one from a stranger"

    def expect(self, holds: bool, place: str, expected: str, found: object) -> None:
        """Refuse the file unless something holds.

        Raises
        ------
        StoreError
            Naming the place, what was expected there and what was found.
        """
        if not holds:
            raise StoreError(
                f"{self.name} is malformed: {Misfit(place, expected, found)}; {self.advice}"
            )

    def version(self, raw: Mapping[str, object], *known: int) -> int:
        """Version of the format, one of those that are known.

        Raises
        ------
        StoreError
            If it is another.
        """
        version = raw.get("format_version")
        if isinstance(version, bool) or not isinstance(version, int) or version not in known:
            raise StoreError(
                f"{self.name} has format version {repr(version)[:100]}; this release reads version "
                f"{' and '.join(map(str, known))}: install the release that wrote it, or "
                f"{self.advice}"
            )
        return version

    def typed(self, raw: object, kind: type[T], place: str = "") -> T:
        """Value of a type, out of what stands at a place of the file.

        Raises
        ------
        StoreError
            If it is of another form.
        """
        try:
            return typed(raw, kind, place)
        except Misfit as error:
            raise StoreError(f"{self.name} is malformed: {error}; {self.advice}") from None
