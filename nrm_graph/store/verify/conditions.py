"""Conditions of a store: their files, and their tables against the laws that hold for all."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from nrm_graph.errors import StoreError
from nrm_graph.network.topology import PRUNED, UNWATCHED
from nrm_graph.store.format.settings import layers_of
from nrm_graph.store.read import conditions
from nrm_graph.store.read.reduced import StoredReduced, recorded
from nrm_graph.store.verify import conservation, reduced
from nrm_graph.store.verify.files import (
    BROKEN,
    check_identities,
    check_seal,
    note_left_over,
    read_shards,
)
from nrm_graph.store.verify.reduced import ReducedFacts
from nrm_graph.store.verify.report import pair_of
from nrm_graph.store.verify.tables import StoreFacts, check_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from nrm_graph.store.format.manifest import Entry, Manifest
    from nrm_graph.store.format.recorded_nodes import LayerNodes
    from nrm_graph.store.verify.report import Findings, Place
    from nrm_graph.store.verify.tables import Rows


FactsByPair = dict[tuple[str | None, int | None, str | None], dict[str, Any]]
"""Rows of ``inputs`` by key, target and weights."""

STRAY = "deleted while the condition was computed? readers ignore it"


@dataclass(frozen=True)
class CheckedCondition:
    """A condition whose ``condition.json`` is as it should be, and nodes of reduced tables."""

    folder: Path
    findings: Findings
    manifests: list[Manifest]
    watched: tuple[LayerNodes, ...] | None


def check_conditions(
    path: Path, meta: Mapping[str, Any], entries: Mapping[int, Entry], findings: Findings
) -> list[CheckedCondition]:
    """Check what the conditions of a store are, and that their inputs are the store's."""
    try:
        folders = conditions.condition_folders(path)
    except StoreError as error:
        findings.error(str(error), file=conditions.FOLDER)
        return []
    if folders or (path / conditions.FOLDER).is_dir():
        others = {*(path / conditions.FOLDER).iterdir()} - {*folders}
        others -= {*conditions.dropped_folders(path)}
        note_left_over(others, findings.within(conditions.FOLDER))
    checked = []
    for folder in folders:
        place = f"{conditions.FOLDER}/{folder.name}"
        file = f"{place}/{conditions.FILE}"
        try:
            stored = conditions.read_content(folder, meta)
            check_seal(
                folder / conditions.FILE, conditions.MAX_CONDITION_BYTES, findings, file=file
            )
        except StoreError as error:
            if (folder / conditions.FILE).exists():  # else it was dropped just now
                findings.error(str(error), file=file)
            continue
        others = {*folder.iterdir()} - {folder / conditions.FILE, folder / "shards"}
        watched = None
        if isinstance(stored, StoredReduced):
            others -= {folder / stored.file.name}
            try:
                watched = recorded(folder, stored, layers_of(meta)).labels
            except StoreError as error:
                findings.error(str(error), file=f"{place}/{stored.file.name}")
                continue
        note_left_over(others, findings.within(place))
        inside = findings.within(f"{place}/shards")
        manifests = read_shards(folder, inside)
        check_identities(manifests, inside)
        for manifest in manifests:
            problem = conditions.facts_problem(manifest)
            if problem:
                inside.error(problem, shard=manifest.name)
            _check_entries(manifest, entries, inside)
        checked.append(CheckedCondition(folder, inside, manifests, watched))
    return checked


def _check_entries(manifest: Manifest, entries: Mapping[int, Entry], findings: Findings) -> None:
    for entry in manifest.inputs:
        where: Place = {"shard": manifest.name, **pair_of(entry)}
        stored = entries.get(entry.input_id)
        if stored is None:
            findings.note(f"the store does not hold this input: {STRAY}", **where)
        elif stored.content != entry.content:
            findings.note(
                f"the store holds another content of this key: {STRAY}, compaction removes it",
                **where,
            )


def check_condition(
    condition: CheckedCondition, of_store: StoreFacts, advance: Callable[[], object]
) -> None:
    """Check the shards of a condition: bytes, rows, and conservation."""
    variations = of_store.variations
    facts = StoreFacts(of_store.meta, conditioned=True)
    if condition.watched is not None:
        facts = ReducedFacts(of_store.meta, True, variations=variations, watched=condition.watched)
    for manifest in condition.manifests:
        content = functools.partial(
            _check_content, facts, _facts(condition.folder, manifest), condition.findings
        )
        check_tables(
            condition.folder / "shards", manifest, facts, condition.findings, content, advance
        )


def _facts(folder: Path, manifest: Manifest) -> FactsByPair:
    """Rows of the inputs of a shard; none where they cannot be read."""
    if not manifest.files or conditions.facts_problem(manifest):
        return {}
    path = folder / "shards" / manifest.files["inputs"].name
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = file.read().to_pylist()
        return {(row["key"], row["target"], row.get("weights")): row for row in rows}
    except BROKEN:
        return {}


def _check_content(
    facts: StoreFacts,
    rows: FactsByPair,
    findings: Findings,
    nodes: Rows,
    edges: Rows,
    where: Place,
) -> None:
    row = rows.get((where["key"], where["target"], where["weights"]))
    if row is None:  # told by the check of the inputs
        return
    status, amplification = row.get("status"), row.get("amplification")
    numbers = [row.get(name) for name in ("relevance", "amplification", "absorbed")]
    if status == "undefined":
        if len(nodes["unit"]) or len(edges["relevance"]):
            findings.error("it is undefined, and has rows of nodes or edges", **where)
        if not row.get("reason"):
            findings.error("it is undefined, without a reason", **where)
        return
    if status != "defined" or amplification is None or None in numbers:
        findings.error(f"its status is {status!r}, with the numbers {numbers}", **where)
        return
    try:
        if isinstance(facts, ReducedFacts):
            variation = facts.variations.get(row["input_id"], 0.0)
            problems = reduced.check(facts, nodes, edges, amplification, variation)
        else:
            variation = 0.0
            problems = conservation.check(facts, nodes, edges, amplification)
        for layer, problem in problems:
            findings.error(problem, **where, layer=None if layer is None else facts.name(layer))
    except MemoryError:  # a stranger's store.json may describe any number of units
        findings.error("not checked: its units do not fit in memory", **where)
        return
    absorbing = (nodes["unit"] < 0) & ~np.isin(nodes["unit"], (PRUNED, UNWATCHED))
    values = nodes["relevance"].astype(np.float64)
    size = max(np.abs(values).sum(), variation)
    limit = conservation.ROUNDINGS * conservation.EPS * amplification * size
    total = float(values[absorbing].sum())
    if abs(total - row["absorbed"]) > limit:
        findings.error(
            f"its pseudo-units hold {total:.9g}, absorbed says {row['absorbed']:.9g} (allowed: "
            f"{limit:.2g})",
            **where,
        )
