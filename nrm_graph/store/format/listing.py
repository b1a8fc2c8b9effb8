"""Which shards of a folder count: those with a manifest that no other one replaces."""

from __future__ import annotations

import graphlib
from typing import TYPE_CHECKING

from nrm_graph.errors import StoreError
from nrm_graph.store.format.files import file_size
from nrm_graph.store.format.manifest import is_name, read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nrm_graph.store.format.manifest import Manifest

MAX_LOOKS = 10


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the files of a shard are there with the sizes that its manifest states.

    Raises
    ------
    StoreError
        If a file is missing, a link or of another size.
    """
    for info in manifest.files.values():
        size = file_size(folder / info.name)
        if size != info.size:
            raise StoreError(
                f"expected {info.name} to hold {info.size} bytes, found {size}; "
                "the file was truncated or changed: copy the store again or remove the shard "
                f"{manifest.name} and extract its inputs anew"
            )


def read_manifests(folder: Path) -> tuple[Manifest, ...]:
    """Manifests of a folder in the order of their names, without the replaced ones.

    Raises
    ------
    StoreError
        If the folder is missing or a link, a manifest is not valid, a file is missing or of another
        size, or manifests replace each other in a circle.
    """
    return tuple(m for m, replaced_by in listed(folder) if not replaced_by)


def listed(folder: Path) -> list[tuple[Manifest, tuple[str, ...]]]:
    """Manifests of a folder in the order of their names, each with those that replace it.

    Files of replaced ones are not looked at.

    Raises
    ------
    StoreError
        As :func:`read_manifests`.
    """
    if folder.is_symlink():
        raise StoreError(
            f"expected {folder} to be a folder, found a symbolic link; do not trust it"
        )
    if not folder.is_dir():
        raise StoreError(
            f"expected the folder {folder}, which holds all tables, found none: copy the store "
            "again or extract anew"
        )
    known: dict[str, Manifest] = {}
    related: list[tuple[Manifest, tuple[str, ...]]] = []
    before: list[str] | None = None
    problem: StoreError | None = None
    # A compaction replaces and deletes while this looks, and a list made meanwhile may lack the old
    # and the new: it is right once the next is like it.
    for _ in range(MAX_LOOKS):
        names = _names(folder)
        if names == before:
            break
        before, problem = names, None
        try:
            known = {
                name: known[name] if name in known else read_manifest(folder, name)
                for name in names
            }
            related = _related(known)
            for manifest, replaced_by in related:
                if not replaced_by:
                    check_files(folder, manifest)
        except StoreError as error:
            problem = error
    if problem is not None:
        raise problem
    return related


def _names(folder: Path) -> list[str]:
    """Names of the shards that have a manifest, in order."""
    try:
        names = sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".json"))
    except OSError as error:
        raise StoreError(f"cannot list {folder}: {error.strerror}") from error
    for name in names:
        if not is_name(name):
            raise StoreError(
                f"expected names of manifests to be plain, found {name + '.json'!r} in "
                f"{folder}; remove the file, no writer of this package makes it"
            )
    return names


def _related(manifests: Mapping[str, Manifest]) -> list[tuple[Manifest, tuple[str, ...]]]:
    """Manifests, each with those that replace it."""
    try:
        replaces = {m.name: [o for o in m.replaces if o in manifests] for m in manifests.values()}
        graphlib.TopologicalSorter(replaces).prepare()
    except graphlib.CycleError as error:
        raise StoreError(
            f"shards replace each other in a circle: {', '.join(error.args[1][:4])}, ...; "
            "do not trust this store"
        ) from error
    replaced_by: dict[str, list[str]] = {}
    for manifest in manifests.values():
        for other in manifest.replaces:
            replaced_by.setdefault(other, []).append(manifest.name)
    return [(m, tuple(replaced_by.get(m.name, ()))) for m in manifests.values()]
