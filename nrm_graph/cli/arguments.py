"""Arguments of the command line as values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nrm_graph.errors import EventError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.events.sets import Event

MAX_EVENT_BYTES = 64 << 20
_DIGITS = 4000  # Python reads no longer numbers


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def max_edges(text: str) -> str | int:
    """Read a bound on edges: a whole number, ``all`` or ``auto``."""
    return text if text in ("all", "auto") else _whole(text, 1)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise click.BadParameter(f"expected a whole number, found {_short(text)}") from None
    if value < least:
        raise click.BadParameter(f"expected at least {least}, found {value}")
    return value


def target(text: str) -> Any:
    """Read a target, or several with commas; ``-1:464`` is class 464 at the last position.

    ``3=1,5=-1`` is one target, of weighted outputs.
    """
    parts = [part.strip() for part in text.split(",")]
    if all("=" in part for part in parts):
        pairs = [part.rpartition("=") for part in parts]
        return {_target(name): _weight(weight) for name, _, weight in pairs}
    found = [_target(part) for part in parts]
    # A place stays in a list: alone, one of a wrong length would be taken for several targets.
    return found[0] if len(found) == 1 and not isinstance(found[0], tuple) else found


def _target(text: str) -> Any:
    entries: list[str | int] = []
    parts = text.split(":")
    for i, part in enumerate(parts):
        if part in ("predicted", "label") or (i == 0 and len(parts) > 1 and not _is_number(part)):
            entries.append(part)
        elif _is_number(part):
            entries.append(int(part))
        else:
            raise click.BadParameter(
                f"expected predicted, label, a number or POSITION:CLASS, found {_short(text)}"
            )
    return entries[0] if len(entries) == 1 else tuple(entries)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"expected a weight, found {_short(text)}") from None


def _is_number(text: str) -> bool:
    number = text.removeprefix("-")
    return number.isascii() and number.isdigit() and len(number) < _DIGITS


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


def resolution(text: str) -> str | dict[str, str]:
    """Read a resolution, or one by layer."""
    if "=" not in text:
        return text
    pairs = [[side.strip() for side in part.rpartition("=")] for part in text.split(",")]
    if not all(name and how for name, _, how in pairs):
        raise click.BadParameter(f"expected LAYER=RESOLUTION,..., found {_short(text)}")
    chosen = {name: how for name, _, how in pairs}
    if len(chosen) < len(pairs):
        raise click.BadParameter(f"a layer is named twice in {_short(text)}")
    return chosen


def nodes(text: str) -> int | dict[str, int] | None:
    """Read numbers of nodes: one, ``all``, or one by layer."""
    if text == "all":
        return None
    chosen = resolution(text)
    if isinstance(chosen, str):
        return _whole(chosen, 1)
    return {name: _whole(number, 1) for name, number in chosen.items()}


def watched(texts: Sequence[str]) -> list[Any]:
    """Read what is watched: names and patterns, and neuron sets, which have brackets.

    Raises
    ------
    EventError
        If one is neither.
    """
    from nrm_graph.events.sets import NeuronSet

    parts: list[Any] = []
    for text in texts:
        part = event(text) if "[" in text or text.startswith("@") else text
        if not isinstance(part, str | NeuronSet):
            raise EventError(f"expected layers or neurons of one layer to watch, found {text!r}")
        parts.append(part)
    return parts


def lines(path: str) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises
    ------
    InputError
        If it cannot be read, or holds nothing.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            found = [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the classes in {path!r}: {reason}") from None
    if not found:
        raise InputError(f"the file of classes {path!r} is empty: expected a name a line")
    return found


def names(text: str) -> list[str]:
    """Read names with commas."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise click.BadParameter(f"expected names with commas between, found {text!r}")
    return found


def event(text: str) -> Event:
    """Read an event: an expression, or ``@`` and the name of a JSON file.

    Raises
    ------
    EventError
        If it is no event.
    InputError
        If the file cannot be read.
    """
    from nrm_graph.events import parser, serialization

    if not text.startswith("@"):
        return parser.parse(text)
    path = Path(text[1:])
    try:
        with path.open("rb") as file:
            data = file.read(MAX_EVENT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the event in {text[1:]!r}: {reason}") from None
    if len(data) > MAX_EVENT_BYTES:
        raise EventError(f"the event in {path} has more than {MAX_EVENT_BYTES:,} bytes")
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise EventError(f"{path} holds no JSON: {error}") from None
    try:
        return serialization.from_json(found)
    except EventError as error:
        raise EventError(f"{path} holds no event: {error}") from None
