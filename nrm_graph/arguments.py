"""Arguments of the command line as values."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import EventError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.events import Event

MAX_EVENT_BYTES = 64 << 20


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"expected at least {least}, found {value}")
    return value


def target(text: str) -> Any:
    """Read a target, or several with commas."""
    parts = [part.strip() for part in text.split(",")]
    found: list[str | int] = []
    for part in parts:
        number = part.removeprefix("-")
        if part not in ("predicted", "label") and not (number.isascii() and number.isdigit()):
            raise argparse.ArgumentTypeError(
                f"expected predicted, label or a number, found {part!r}"
            )
        found.append(part if part in ("predicted", "label") else int(part))
    return found[0] if len(found) == 1 else found


def resolution(text: str) -> str | dict[str, str]:
    """Read a resolution, or one by layer."""
    if "=" not in text:
        return text
    pairs = [part.rpartition("=") for part in text.split(",")]
    if not all(name and how for name, _, how in pairs):
        raise argparse.ArgumentTypeError(f"expected LAYER=RESOLUTION,..., found {text!r}")
    return {name.strip(): how.strip() for name, _, how in pairs}


def lines(path: str) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the classes in {path}: {error}") from None


def names(text: str) -> list[str]:
    """Read names with commas."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected names with commas between, found {text!r}")
    return found


def which(text: str | None, classes: Sequence[str] | None) -> int | dict[int, float] | None:
    """Read a target of a store: a number, the name of a class, or weights such as ``3=1,5=-1``.

    Raises
    ------
    InputError
        If it is none of these.
    """
    if text is None:
        return None
    known = [] if classes is None else list(classes)

    def one(name: str) -> int | None:
        try:
            return int(name)
        except ValueError:
            return known.index(name) if known.count(name) == 1 else None

    found = one(text)
    if found is not None:
        return found
    weights: dict[int, float] = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        output = one(name.strip())
        try:
            value = float(weight)
        except ValueError:
            output = None
        if output is None or output in weights:
            raise InputError(
                f"--target {text!r}: expected a number{', the name of a class' if known else ''} "
                "or weights such as 3=1,5=-1"
            )
        weights[output] = value
    return weights


def event(text: str) -> Event:
    """Read an event: an expression, or ``@`` and the name of a JSON file.

    Raises
    ------
    EventError
        If it is no event.
    InputError
        If the file cannot be read.
    """
    from nrm_graph import event_json, expressions

    if not text.startswith("@"):
        return expressions.parse(text)
    path = Path(text[1:])
    try:
        with path.open("rb") as file:
            data = file.read(MAX_EVENT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the event in {path}: {error}") from None
    if len(data) > MAX_EVENT_BYTES:
        raise EventError(f"the event in {path} has more than {MAX_EVENT_BYTES:,} bytes")
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise EventError(f"{path} holds no JSON: {error}") from None
    try:
        return event_json.from_json(found)
    except EventError as error:
        raise EventError(f"{path} holds no event: {error}") from None
