"""JSON of a store as typed values: what does not fit is refused in words, with its place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from nrm_graph.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

# JSON may hold lone surrogates, which UTF-8 cannot.
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\ud800-\udfff]*\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]

_PHRASES = {
    r"`str` matching regex '\^\[\^.*": "text of valid Unicode",
    r"`str` matching regex '\^\[0-9a-f\]\{64\}.*": "64 hexadecimal digits",
    r"`str` matching regex '\^\((.*)\).*": r"one of \1",
    r"(?<=\w)\|(?=\w)": ", ",
    "matching regex": "matching",
    "Number out of range": "a number in range",
}
_TYPES = {
    "str": "text",
    "int": "an integer",
    "float": "a number",
    "array": "a list",
    "object": "an object",
}


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
                f"{self.name} is malformed: expected {place} to be {expected}, found "
                f"{repr(found)[:100]}; {self.advice}"
            )

    def version(self, raw: Mapping[str, Any], *known: int) -> int:
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
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            where, expected, found = misfit(str(error), raw)
            self.expect(False, f"{place}{where}".lstrip("."), expected, found)
            raise
        except UnicodeEncodeError as error:  # a lone surrogate, where no text is expected
            self.expect(False, "all text", "valid Unicode", error.object)
            raise


def misfit(message: str, raw: Any) -> tuple[str, str, object]:
    """Place, what was expected and what was found, of what msgspec says about a value.

    Examples
    --------
    >>> misfit("Expected `int | null`, got `str` - at `$.at[1].item`", {"at": [{}, {"item": "x"}]})
    ('.at[1].item', 'null or an integer', 'x')
    """
    said, _, place = message.partition(" - at `$")
    place = place.removesuffix("`")
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place.partition("[...]")[0]):
        raw = raw[name or int(index)]
    field = re.fullmatch("Object .* (required|unknown) field `(.*)`", said, re.DOTALL)
    if field:
        wanted = "there" if field[1] == "required" else "absent"
        return f"{place}.{field[2]}", wanted, raw.get(field[2])
    expected = said.removeprefix("Expected ").partition(", got ")[0]
    for phrase, words in _PHRASES.items():
        expected = re.sub(phrase, words, expected)
    return place, re.sub("`(.*?)`", _types, expected), raw


def _types(union: re.Match[str]) -> str:
    names = sorted(union[1].split(" | "), key="null".__ne__)
    return " or ".join(_TYPES.get(name, name) for name in names)
