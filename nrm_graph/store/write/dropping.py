"""Dropping conditions: their tables go at once, their files by age."""

from __future__ import annotations

import os

from nrm_graph.errors import InputError, StoreError
from nrm_graph.signals import ending_in_order
from nrm_graph.store.format import settings
from nrm_graph.store.format.files import alone, local_path, sync_folder
from nrm_graph.store.format.manifest import name_after
from nrm_graph.store.read.conditions import (
    FILE,
    check_name,
    condition_folders,
    folder_of,
    read_content,
)
from nrm_graph.store.write.compaction import AT_WORK
from nrm_graph.store.write.rewrite import shards_of
from nrm_graph.store.write.shard import OpenShard


def drop(path: str | os.PathLike[str], name: str) -> int:
    """Drop a condition and its tables; another event may be materialized under its name then.

    A reader that opened the store before goes on with what it saw; the files are deleted by
    :func:`nrm_graph.store.write.compaction.compact`, by age.  A process that is killed meanwhile
    leaves the condition as it was, or without inputs, or drops it.

    Parameters
    ----------
    path : path
        The store.
    name : str
        The condition.

    Returns
    -------
    int
        Inputs that it held.

    Raises
    ------
    InputError
        If there is none of this name.
    StoreError
        If there is no store, the condition is damaged or being materialized, the disk fails, or a
        compaction or deletion is at work.
    """
    store = local_path(path)
    check_name(name)
    meta = settings.read_settings(store)
    with ending_in_order(), alone(store / "shards", AT_WORK):
        folder = folder_of(store, name)
        exists = os.path.lexists(folder / FILE)
        if not exists or read_content(folder, meta).name != name:
            names = [read_content(other, meta).name for other in condition_folders(store)]
            hint = f"it holds {', '.join(sorted(names))}" if names else "it holds none"
            raise InputError(f"there is no condition {name!r} in {store}: {hint}")
        with alone(folder, f"a materialization of {name}"):
            shards = shards_of(folder)
            try:
                # First a shard that holds nothing in place of all: a condition that is made under
                # this name later must not find them.
                nothing = name_after(max(shards.manifests, default=""))
                everything = shards.replaced_with(shards.manifests)
                OpenShard(shards.folder).commit(nothing, (), everything)
                (folder / FILE).unlink()
                sync_folder(folder)
            except OSError as error:
                raise StoreError(
                    f"cannot drop the condition {name} of {store}: {error.strerror or error}; see "
                    "its permissions and run the same command again"
                ) from error
    return len(shards.snapshot.entries)
