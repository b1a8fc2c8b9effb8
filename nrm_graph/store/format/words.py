"""Words that several messages about a store share."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError

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
    close = difflib.get_close_matches(key, keys, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"it holds {len(keys)} keys"
    return InputError(f"there is no input {key!r} in {store}: {hint}")
