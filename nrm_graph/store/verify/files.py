"""Files of a store: settings, program, manifests, sizes, checksums, and what is left over."""

from __future__ import annotations

import graphlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import StoreError
from nrm_graph.store.format import settings, unit_names
from nrm_graph.store.format.files import file_size, parse_object, read_limited, seal, sha256_of
from nrm_graph.store.format.manifest import MAX_MANIFEST_BYTES, decode, is_name
from nrm_graph.store.format.schema import content_hash
from nrm_graph.store.read import conditions
from nrm_graph.store.verify.report import pair_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Unpack

    from nrm_graph.store.format.manifest import Manifest
    from nrm_graph.store.verify.report import Findings, Place


BROKEN = (OSError, pa.ArrowException, KeyError, UnicodeDecodeError, ValueError)
"""What Arrow raises at a damaged file."""


def check_settings(path: Path, findings: Findings) -> dict[str, Any] | None:
    """Check ``store.json`` and the files that it names; None where it cannot be read."""
    try:
        meta = settings.read_settings(path, sizes=False)
    except StoreError as error:
        findings.error(str(error), file="store.json")
        return None
    check_seal(path / "store.json", settings.MAX_SETTINGS_BYTES, findings, file="store.json")
    for name, info in meta["files"].items():
        check_file(path / name, info["size"], info["sha256"], findings, file=name)
    _check_units(path, meta, findings)
    if not _is_pruned(meta.get("pruned", []), meta["groups"]):
        findings.error(
            "expected pruned to list [dst, src, coverage, top] of groups", file="store.json"
        )
        meta.pop("pruned")
    expected = {"store.json", "shards", conditions.FOLDER, unit_names.FOLDER, *meta["files"]}
    note_left_over([file for file in path.iterdir() if file.name not in expected], findings)
    try:
        unit_names.read(path, meta)
        note_left_over(unit_names.left_over(path), findings)
    except StoreError as error:
        findings.error(str(error), file=unit_names.FOLDER)
    return meta


def _is_pruned(value: object, groups: list[list[int]]) -> bool:
    """Whether a value is a list of pairs of layers with their coverage and number of edges."""
    pairs = [group[:2] for group in groups]
    return isinstance(value, list) and all(
        isinstance(row, list)
        and len(row) == 4
        and row[:2] in pairs
        and (row[3] is None or isinstance(row[3], int))
        for row in value
    )


def check_file(
    path: Path, size: int, sha256: str, findings: Findings, **where: Unpack[Place]
) -> None:
    """Compare size and SHA-256 of one file with what is written about it."""
    try:
        actual = file_size(path)
        digest = sha256_of(path) if actual == size else ""
    except StoreError as error:
        findings.error(str(error), **where)
    except OSError as error:
        findings.error(f"cannot be read: {error.strerror or error}", **where)
    else:
        if actual != size:
            findings.error(f"expected {size} bytes, found {actual}: truncated or changed", **where)
        elif digest != sha256:
            problem = f"SHA-256 is {digest}, expected {sha256}: its bytes were changed"
            findings.error(problem, **where)


def check_seal(path: Path, limit: int, findings: Findings, **where: Unpack[Place]) -> None:
    """Check what a JSON file says about its own content."""
    raw = parse_object(read_limited(path, limit), path.name)
    stated = raw.pop("seal", None)
    if stated is None and any(
        v == seal({k: raw[k] for k in raw if k != name}) for name, v in raw.items()
    ):
        findings.error("its seal bears another name: it was edited", **where)
    elif stated is None:
        findings.note("it bears no checksum of its own: a change in it may go unseen", **where)
    elif stated != seal(raw):
        findings.error("its content is not the one that was sealed: it was edited", **where)


def _check_units(path: Path, meta: Mapping[str, Any], findings: Findings) -> None:
    """Check custom partitions against their hashes and numbers of units."""
    if settings.UNITS_FILE not in meta["files"]:
        return
    try:
        parts = settings.read_units(path, meta)
    except StoreError as error:
        findings.error(str(error), file=settings.UNITS_FILE)
        return
    for row in meta["layers"]:
        if row["resolution"] == "custom":
            labels = parts[row["name"]]
            if content_hash(labels) != row.get("units"):
                problem = "the partition is not the one that store.json describes"
            elif not np.array_equal(np.unique(labels), np.arange(row["n_units"])):
                problem = f"the partition has not the units 0 to {row['n_units'] - 1}"
            else:
                continue
            findings.error(problem, file=settings.UNITS_FILE, layer=row["name"])


def read_shards(path: Path, findings: Findings) -> list[Manifest]:
    """Manifests that count, in order of their names; others and leftovers become findings."""
    folder = path / "shards"
    if folder.is_symlink():
        findings.error("expected a folder, found a symbolic link: do not trust it", file="shards")
        return []
    if not folder.is_dir():
        findings.error("expected a folder, found none", file="shards")
        return []
    files = sorted(folder.iterdir())
    manifests = {}
    for file in (file for file in files if file.suffix == ".json"):
        name = file.stem
        if not is_name(name):
            findings.error(
                "a manifest of such a name no writer of this package makes", file=file.name
            )
            continue
        try:
            manifests[name] = decode(name, read_limited(file, MAX_MANIFEST_BYTES))
            check_seal(file, MAX_MANIFEST_BYTES, findings, shard=name, file=file.name)
        except StoreError as error:
            # A shard that another one replaced may be deleted at any moment.
            if file.exists() or file.is_symlink():
                findings.error(str(error), shard=name, file=file.name)
    try:
        graphlib.TopologicalSorter({m.name: m.replaces for m in manifests.values()}).prepare()
    except graphlib.CycleError as error:
        findings.error(
            f"shards replace each other in a circle: {', '.join(error.args[1][:4])}, ..."
        )
    replaced = {other for m in manifests.values() for other in m.replaces}
    old = replaced & set(manifests)
    if old:
        number = f"{len(old):,} shards were" if len(old) > 1 else f"the shard {min(old)} was"
        findings.note(f"{number} replaced, and may be deleted: a compaction does so, by age")
    named = {f"{name}.json" for name in manifests}
    named |= {info.name for m in manifests.values() for info in m.files.values()}
    unnamed = [file for file in files if file.name not in named and file.suffix != ".json"]
    note_left_over(unnamed, findings)
    return [m for name, m in manifests.items() if name not in replaced]


def note_left_over(files: Iterable[Path], findings: Findings) -> None:
    """Note files that are no part of the store, in the order of their names."""
    for path in sorted(files):
        try:
            age = f"{_words(time.time() - path.lstat().st_mtime)} old"
        except OSError:  # a writer has published or removed it just now
            continue
        if path.suffix == ".tmp":
            text = f"unfinished, {age}: of a writer at work, or of one that was killed"
        elif path.name.endswith(".parquet"):
            text = f"no manifest names it, {age}: of a writer at work, or of one that was killed"
        else:
            text = f"no part of the store, {age}"
        findings.note(f"{text}; readers ignore it", file=path.name)


def _words(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{max(0.0, seconds):.0f} seconds"


def check_identities(manifests: list[Manifest], findings: Findings) -> None:
    """Report pairs that two shards hold, and keys with two contents."""
    pairs: dict[int, tuple[str, str]] = {}
    contents: dict[str, tuple[str, str]] = {}
    for manifest in manifests:
        for entry in manifest.inputs:
            where: Place = {"shard": manifest.name, **pair_of(entry)}
            first = pairs.setdefault(entry.input_id, (manifest.name, entry.key))
            if first[0] != manifest.name:
                findings.note(f"the shard {first[0]} holds the same pair, and counts", **where)
            shard, content = contents.setdefault(entry.key, (manifest.name, entry.content))
            if content != entry.content:
                findings.error(
                    f"one key has two contents: {content[:12]}... in the shard {shard}, "
                    f"{entry.content[:12]}... here",
                    **where,
                )
