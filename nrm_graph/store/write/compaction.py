"""Compaction: small shards become larger ones, and files that nobody needs are deleted by age."""

from __future__ import annotations

import contextlib
import graphlib
import math
import os
import re
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nrm_graph.errors import InputError, StoreError
from nrm_graph.progress import Progress
from nrm_graph.signals import ending_in_order
from nrm_graph.store.format import settings, unit_names
from nrm_graph.store.format.files import alone, local_path, remove_abandoned, sync_folder
from nrm_graph.store.format.listing import listed
from nrm_graph.store.format.manifest import MAX_MANIFEST_BYTES
from nrm_graph.store.format.metadata import MAX_FIELDS, joined
from nrm_graph.store.format.schema import GROUPS_PER_FILE, ORDER, TABLES
from nrm_graph.store.format.words import counted
from nrm_graph.store.read.conditions import FILE, condition_folders, dropped_folders
from nrm_graph.store.write.rewrite import replace_all, shards_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nrm_graph.store.format.manifest import Manifest
    from nrm_graph.store.write.rewrite import Shards

DAY = 86400.0
UNLOCKED = 3600.0
"""Seconds that unfinished files stay at least of which no lock tells whether their writer lives."""

OPEN = 16
"""Groups that further shards are offered to."""

AT_WORK = "another compaction or deletion"

_DATA = re.compile(rf"([0-9A-Za-z][0-9A-Za-z_-]*)\.({'|'.join(TABLES)})\.parquet(\.tmp)?")
_MANIFEST = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*\.json\.tmp")
_LABELS = re.compile(r"nodes-([0-9a-f]{16})\.safetensors")
_SINGLE = re.compile(
    rf"((program|store|condition|weights|units)\.(json|safetensors)|{_LABELS.pattern})"
    r"\.[0-9a-f]{16}\.tmp"
)


@dataclass(frozen=True)
class Compaction:
    """What a compaction did to a store and its conditions.

    Attributes
    ----------
    path : Path
        The store.
    shards_before, shards_after : int
        Shards that count.
    bytes_before, bytes_after : int
        Their sizes.
    merged, made : int
        How many shards were replaced, and by how many.
    deleted_files, deleted_bytes : int
        Files of replaced shards, and what killed writers left.
    waiting_files, waiting_bytes : int
        Files of replaced shards that are too young to be deleted.
    """

    path: Path
    shards_before: int
    shards_after: int
    bytes_before: int
    bytes_after: int
    merged: int
    made: int
    deleted_files: int
    deleted_bytes: int
    waiting_files: int
    waiting_bytes: int

    def __str__(self) -> str:
        before = f"{counted(self.shards_before, 'shard')} ({_size_text(self.bytes_before)})"
        after = f"became {self.shards_after:,} ({_size_text(self.bytes_after)})"
        deleted = (
            f"; deleted {counted(self.deleted_files, 'file')} ({_size_text(self.deleted_bytes)})"
        )
        waiting = (
            f"; {counted(self.waiting_files, 'replaced file')} ({_size_text(self.waiting_bytes)}) "
            "kept for readers that opened the store before"
        )
        return (
            f"{self.path}: {before} {after if self.merged else 'left as they are'}"
            f"{deleted if self.deleted_files else ''}{waiting if self.waiting_files else ''}"
        )


def _size_text(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def compact(
    path: str | os.PathLike[str],
    *,
    shard_inputs: int = GROUPS_PER_FILE,
    shard_bytes: int = 256 << 20,
    older_than: float = DAY,
    progress: bool = True,
) -> Compaction:
    """Merge the small shards of a store and of its conditions, and delete old files.

    Rows are copied as they are, every checksum compared on the way.  Of pairs that two shards hold
    the one that counts is kept.  Readers and writers may be at work meanwhile: a reader that
    opened the store before goes on with the old files, which are deleted once their shard has been
    replaced for `older_than`.  A process that is killed at any moment leaves a store with the same
    rows.

    Parameters
    ----------
    path : path
        The store.
    shard_inputs, shard_bytes : int
        Largest number of inputs, and about the largest size, of a merged shard; shards of more
        than half of either are left as they are.
    older_than : float
        Seconds.  Replaced files that no reader from before has to find any more: those that were
        replaced so long ago, and those that a killed writer left so long ago, are deleted.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.

    Raises
    ------
    InputError
        If a limit is no positive number.
    StoreError
        If there is no store, a shard is damaged, the disk fails, or another compaction or deletion
        is at work; what was merged before stays merged.
    """
    for name, value in (("shard_inputs", shard_inputs), ("shard_bytes", shard_bytes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a number of at least 1, found {value!r}")
    number = isinstance(older_than, int | float) and not isinstance(older_than, bool)
    if not number or not 0 <= older_than < math.inf:
        raise InputError(f"older_than must be seconds, 0 or more, found {older_than!r}")
    store = local_path(path)
    settings.read_settings(store)
    limit = _Load(shard_inputs, shard_bytes, GROUPS_PER_FILE, MAX_MANIFEST_BYTES // 2)
    with ending_in_order(), alone(store / "shards", AT_WORK):
        # The store last: what a condition holds of it was there before.
        folders = [*condition_folders(store), store]
        all_shards = [shards_of(folder) for folder in folders]
        before = [m for shards in all_shards for m in shards.snapshot.manifests.values()]
        for n, shards in enumerate(all_shards[:-1]):
            if _removed_strays(shards, all_shards[-1]):
                all_shards[n] = shards_of(folders[n])
        work = [(shards, step) for shards in all_shards for step in _steps(shards, limit)]
        merged = [len(group.members) for _, step in work for group in step]
        total = sum(group.load.inputs for _, step in work for group in step)
        with Progress("compact", total, "inputs", progress) as meter:
            for shards, step in work:
                replace_all(shards, [group.members for group in step], meter.advance)
        dropped = dropped_folders(store)
        deleted = [size for f in (*folders, *dropped) for size in _swept(f, older_than)]
        after = [listed(folder / "shards") for folder in (*folders, *dropped)]
    live = [m for listing in after[: len(folders)] for m, by in listing if not by]
    waiting = [i.size for listing in after for m, by in listing if by for i in m.files.values()]
    return Compaction(
        store,
        len(before),
        len(live),
        sum(map(_size, before)),
        sum(map(_size, live)),
        sum(merged),
        len(merged),
        len(deleted),
        sum(deleted),
        len(waiting),
        sum(waiting),
    )


def _removed_strays(condition: Shards, store: Shards) -> bool:
    """Drop what a condition holds of contents that keys of the store no longer have."""
    now = {entry.key: entry.content for entry in store.snapshot.entries.values()}
    entries = condition.snapshot.entries.values()
    strays = {e.key for e in entries if now.get(e.key, e.content) != e.content}
    if strays:
        groups = [[name] for name in condition.holding(strays)]
        replace_all(condition, groups, lambda inputs: None, strays)
    return bool(strays)


def _size(manifest: Manifest) -> int:
    return sum(info.size for info in manifest.files.values())


@dataclass(frozen=True)
class _Load:
    """What shards hold, or what one may."""

    inputs: int = 0
    size: int = 0
    row_groups: int = 0
    manifest: int = 0

    def __add__(self, other: _Load) -> _Load:
        return _Load(*(a + b for a, b in zip(self._all, other._all, strict=True)))

    @property
    def _all(self) -> tuple[int, int, int, int]:
        return self.inputs, self.size, self.row_groups, self.manifest

    def share(self, limit: _Load) -> float:
        """Share of a limit that is used up; over 1 it does not fit."""
        return max(a / b for a, b in zip(self._all, limit._all, strict=True))


@dataclass
class _Merge:
    """Shards that become one."""

    members: list[str] = field(default_factory=list)
    load: _Load = field(default_factory=_Load)
    kinds: dict[str, tuple[str, str]] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)

    def takes(self, manifest: Manifest, contents: dict[str, str]) -> bool:
        """Whether a shard can be merged with those here, none of its values converted.

        One shard has one type for a field and one tensor for a key.
        """
        for name, kind in manifest.metadata.items():
            spelled, known_kind = self.kinds.get(name.casefold(), (name, kind))
            if spelled != name or ("null" not in (kind, known_kind) and kind != known_kind):
                return False
        new = {name.casefold() for name in manifest.metadata} - set(self.kinds)
        if len(self.kinds) + len(new) > MAX_FIELDS:
            return False
        return all(self.contents.get(key, content) == content for key, content in contents.items())

    def add(self, manifest: Manifest, load: _Load, contents: dict[str, str]) -> None:
        """Add a shard that it takes."""
        self.members.append(manifest.name)
        self.load += load
        self.contents |= contents
        for name, kind in manifest.metadata.items():
            _, known_kind = self.kinds.get(name.casefold(), (name, "null"))
            self.kinds[name.casefold()] = name, joined(known_kind, kind)


def _load(shards: Shards, name: str) -> _Load:
    """Measure what counts of a shard."""
    entries = shards.kept(name)
    return _Load(
        len(entries),
        _size(shards.manifests[name]),
        max(sum(getattr(e, table)[1] for e in entries) for table in ORDER),
        (shards.folder / f"{name}.json").stat().st_size,
    )


def _steps(shards: Shards, limit: _Load) -> list[list[_Merge]]:
    """Choose shards that are worth rewriting, in units that must be replaced at one moment."""
    groups: list[_Merge] = []
    place: dict[str, _Merge] = {}
    stale = []
    for name, manifest in shards.snapshot.manifests.items():
        entries, load = shards.kept(name), _load(shards, name)
        if len(entries) < len(manifest.inputs):  # it holds pairs that do not count
            stale.append(name)
        elif load.share(limit) > 0.5:
            continue
        contents = {entry.key: entry.content for entry in entries}
        for group in groups[-OPEN:]:
            if (group.load + load).share(limit) <= 1 and group.takes(manifest, contents):
                break
        else:
            group = _Merge()
            groups.append(group)
        group.add(manifest, load, contents)
        place[name] = group
    steps = {id(group): [group] for group in groups}
    tied = set(stale)
    ahead = list(stale)
    while ahead:
        name = ahead.pop()
        for other in shards.tied(name):
            if other not in place:
                place[other] = _Merge()
                place[other].add(shards.manifests[other], _load(shards, other), {})
                steps[id(place[other])] = [place[other]]
            first, second = steps[id(place[name])], steps[id(place[other])]
            if first is not second:
                first += second
                steps |= {id(group): first for group in second}
            if other not in tied:
                tied.add(other)
                ahead.append(other)
    once = {id(step): step for step in steps.values()}.values()
    return [u for u in once if any(len(g.members) > 1 or g.members[0] in tied for g in u)]


def _swept(folder: Path, older_than: float) -> Iterator[int]:
    """Delete what is old enough of a store's or condition's folder; sizes of what was deleted."""
    shards = folder / "shards"
    try:
        now = _clock(shards)
        present = sorted(shards.iterdir())  # before the manifests, so that each committed is known
        manifests = listed(shards)
        doomed = {
            manifest.name: manifest
            for manifest, by in manifests
            if by and max(_age(shards / f"{name}.json", now) for name in by) >= older_than
        }
        # A shard goes after those that it replaced, which would count again without it; and a
        # manifest before its files, which it promises.
        order = graphlib.TopologicalSorter({m.name: m.replaces for m, _ in manifests})
        for name in order.static_order():
            if name in doomed:
                (shards / f"{name}.json").unlink()
        if doomed:
            sync_folder(shards)
        for manifest in doomed.values():
            for info in manifest.files.values():
                (shards / info.name).unlink(missing_ok=True)
                yield info.size
        named = {info.name for m, _ in manifests for info in m.files.values()}
        unlocked = max(older_than, UNLOCKED)
        unfinished: list[tuple[Path, float, str | None]] = [
            (file, older_than if _DATA.fullmatch(file.name) else unlocked, file.name.split(".")[0])
            for file in present
            if file.name not in named
            and (_DATA.fullmatch(file.name) or _MANIFEST.fullmatch(file.name))
        ]
        unfinished += [
            (file, unlocked, None)
            for file in sorted(folder.iterdir())
            if _SINGLE.fullmatch(file.name)
        ]
        further = (*_unnamed_labels(folder), *unit_names.unfinished(folder))
        unfinished += [(file, unlocked, None) for file in further]
        for file, least_age, shard in unfinished:
            if _age(file, now) >= least_age:
                size = remove_abandoned(file, None if shard is None else shards / f"{shard}.json")
                if size >= 0:
                    yield size
    except OSError as error:
        raise StoreError(
            f"cannot delete old files in {shards}: {error.strerror or error}; what is in the store "
            "is not affected: see its permissions and run the same command again"
        ) from error


def _unnamed_labels(folder: Path) -> list[Path]:
    """Labels of nodes that no ``condition.json`` names: of one that was dropped or never made."""
    files = [file for file in sorted(folder.iterdir()) if _LABELS.fullmatch(file.name)]
    condition = folder / FILE
    text = condition.read_text("utf-8", "replace") if files and condition.is_file() else ""
    return [file for file in files if file.name[6:22] not in text]


def _clock(folder: Path) -> float:
    """Now, by the clock that dates the files of a folder: that of a shared disk may be another.

    Where nothing can be written it is an earlier moment, and nothing can be deleted.
    """
    with contextlib.suppress(OSError):
        os.utime(folder)
    return min(time.time(), folder.stat().st_mtime)


def _age(path: Path, now: float) -> float:
    """Seconds since a plain file was last written, at least 0; below it for what is none or gone.

    Clocks of files differ by a tick.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return -math.inf
    return max(0.0, now - status.st_mtime) if stat.S_ISREG(status.st_mode) else -math.inf
