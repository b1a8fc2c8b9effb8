"""Words that several messages about a store share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.errors import InputError
from nrm_graph.store.format.nearest_keys import nearest_keys

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def counted(number: int, word: str) -> str:
    """Return a number and its word.

    >>> counted(1, "shard"), counted(1200, "file")
    ('1 shard', '1,200 files')
    """
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def no_such_input(key: str, keys: Collection[str], store: Path) -> InputError:
    """Error that names the keys of a store which are nearest to one that it does not hold."""
    close = nearest_keys(key, keys)
    example = f", such as {min(keys)}" if keys else ""
    held = f"it holds {counted(len(keys), 'key')}{example}"
    hint = f"did you mean {', '.join(close)}?" if close else held
    return InputError(f"there is no input {key!r} in {store}: {hint}")
