"""Arguments of the command line as values."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nrm_graph.errors import InputError


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
