"""Deletion of keys: their shards are replaced by ones without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError
from nrm_graph.progress import Progress
from nrm_graph.signals import ending_in_order
from nrm_graph.store.format import settings
from nrm_graph.store.format.files import alone, local_path
from nrm_graph.store.format.words import counted, no_such_input
from nrm_graph.store.read.conditions import condition_folders
from nrm_graph.store.write.compaction import AT_WORK
from nrm_graph.store.write.rewrite import replace_all, shards_of

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from nrm_graph.store.write.rewrite import Shards


@dataclass(frozen=True)
class Deletion:
    """What was deleted.

    Attributes
    ----------
    path : Path
        The store.
    keys : tuple of str
        What was asked for, each once.
    inputs : int
        (key, target) pairs of the store that are no longer there.
    conditioned : int
        Inputs of conditions that are no longer there.
    failures : int
        Keys of the table ``failures`` that are no longer there.
    shards : int
        Shards that were replaced, those of conditions too.
    """

    path: Path
    keys: tuple[str, ...]
    inputs: int
    conditioned: int
    failures: int
    shards: int

    def __str__(self) -> str:
        counts = [(self.conditioned, "conditioned input"), (self.failures, "failure")]
        others = "".join(f", {counted(count, word)}" for count, word in counts if count)
        return (
            f"{self.path}: deleted {counted(self.inputs, 'input')} of "
            f"{counted(len(self.keys), 'key')}{others}; a compaction deletes the replaced files "
            "once they are old enough"
        )


def delete(
    path: str | os.PathLike[str], keys: str | Iterable[str], *, progress: bool = True
) -> Deletion:
    """Delete keys from a store and its conditions, so that they can be extracted again.

    All targets of a key are deleted, and its failure.  The same key may be extracted again, also
    with another content.  A reader that opened the store before goes on with what it saw; the old
    files are deleted by :func:`nrm_graph.store.write.compaction.compact`, by age.  All keys go from
    the store's tables at once, after they went from those of conditions: a process that is killed
    leaves all of them in the store, or none.

    Parameters
    ----------
    path : path
        The store.
    keys : str or iterable of str
        What to delete.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.

    Raises
    ------
    InputError
        If a key is not there; nothing is deleted then.
    StoreError
        If there is no store, a shard is damaged, the disk fails, or another compaction or deletion
        is at work.

    Notes
    -----
    Extractions and materializations that are at work keep what they have yet to commit.
    """
    store = local_path(path)
    unique_keys = _unique(keys)
    settings.read_settings(store)
    with ending_in_order(), alone(store / "shards", AT_WORK):
        # Conditions first: none may hold an input that the store has not.
        folders = [shards_of(folder) for folder in (*condition_folders(store), store)]
        _check_known(store, unique_keys, folders)
        gone = set(unique_keys)
        plans = [(shards, shards.holding(gone)) for shards in folders]
        total = sum(len(shards.kept(n, gone)) for shards, names in plans for n in names)
        with Progress("delete", total, "inputs", progress) as meter:
            for shards, names in plans:
                if names:
                    replace_all(shards, [[name] for name in names], meter.advance, gone)
    *conditions, store_shards = folders
    return Deletion(
        store,
        unique_keys,
        _pairs(store_shards, gone),
        sum(_pairs(shards, gone) for shards in conditions),
        len(gone & set(store_shards.failures)),
        sum(len(names) for _, names in plans),
    )


def _unique(keys: str | Iterable[str]) -> tuple[str, ...]:
    """Keys, each once."""
    if isinstance(keys, str):
        return (keys,)
    unique_keys = tuple(dict.fromkeys(keys)) if isinstance(keys, Iterable) else ()
    if not unique_keys or not all(isinstance(key, str) for key in unique_keys):
        raise InputError(f"expected keys to delete, found {repr(keys)[:100]}")
    return unique_keys


def _check_known(store: Path, keys: tuple[str, ...], folders: list[Shards]) -> None:
    """Refuse keys that neither the store, nor its failures, nor a condition hold."""
    known_keys = {key for s in folders for key in (*s.snapshot.by_key, *s.failures)}
    for key in keys:
        if key not in known_keys:
            raise no_such_input(key, known_keys, store)


def _pairs(shards: Shards, gone: set[str]) -> int:
    return sum(entry.key in gone for entry in shards.snapshot.entries.values())
