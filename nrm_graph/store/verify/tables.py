"""Rows of a shard: schema, counts, row groups, order, references, finite numbers."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrm_graph.network.topology import BIAS, ENDS, PRUNED, REMAINDER
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.store.format.metadata import ARROW_TYPES
from nrm_graph.store.format.schema import (
    INPUTS,
    NAMED_TENSORS,
    ORDER,
    ROWS_PER_GROUP,
    SCHEMAS,
)
from nrm_graph.store.format.settings import inputs_of
from nrm_graph.store.verify import tensors
from nrm_graph.store.verify.files import BROKEN, check_file
from nrm_graph.store.verify.report import pair_of
from nrm_graph.tables.rounding import round_mantissa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from nrm_graph.store.format.manifest import Entry, Manifest
    from nrm_graph.store.verify.report import Findings

Rows = dict[str, Any]  # column name to ndarray; null floats are NaN, see `read_rows`


@dataclass(frozen=True)
class Facts:
    """What ``store.json`` says about layers, and whether the tables are those of a condition.

    ``labels`` collects shard and label of the keys that were seen.
    """

    meta: Mapping[str, Any]
    conditioned: bool = False
    labels: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def name(self, layer_id: int) -> str:
        """Name of a layer, or its number where there is none."""
        layers = self.meta["layers"]
        inside = 0 <= layer_id < len(layers)
        return str(layers[layer_id]["name"]) if inside else f"number {layer_id}"

    @cached_property
    def units(self) -> Any:
        """Number of units by layer."""
        return np.array([row["n_units"] for row in self.meta["layers"]], np.int64)

    @cached_property
    def first(self) -> Any:
        """First unit of every layer where all are counted through, and their number."""
        return np.concatenate([[0], np.cumsum(self.units)])

    @cached_property
    def single(self) -> Any:
        """By layer, whether its units are single neurons."""
        sizes = [math.prod(row["shape"]) for row in self.meta["layers"]]
        return self.units == np.array(sizes, np.int64)

    @cached_property
    def ends(self) -> Any:
        """By layer, whether walks end there: inputs."""
        return np.array([row["kind"] in ENDS for row in self.meta["layers"]])

    @cached_property
    def groups(self) -> Any:
        """Boolean (dst, src): whether a layer reads another."""
        found = np.zeros((len(self.units), len(self.units)), bool)
        for dst, src, _ in self.meta["groups"]:
            found[dst, src] = True
        return found

    @cached_property
    def pruned(self) -> Any:
        """Boolean (dst, src): pairs that may hold pruned rows; all if the store does not say."""
        listed = self.meta.get("pruned")
        if not isinstance(listed, list):
            return self.groups
        found = np.zeros_like(self.groups)
        for pair in listed:
            found[pair[0], pair[1]] = True
        return found

    @property
    def bits(self) -> int | None:
        """Mantissa bits of edges; None for lossless."""
        bits: int | None = self.meta.get("mantissa_bits")
        return bits


def check_tables(
    folder: Path,
    manifest: Manifest,
    facts: Facts,
    found: Findings,
    content: Callable[[Rows, Rows, dict[str, Any]], None],
    done: Callable[[], None],
) -> None:
    """Check the bytes and every row of a shard; memory is bounded by the rows of one input.

    A shard that another one replaced, and whose files were deleted meanwhile, is a note.

    Parameters
    ----------
    content : callable
        Gets nodes, edges and the place of every input whose rows are well formed.
    done : callable
        Called after every input.
    """
    before = found.count()
    _check_shard(folder, manifest, facts, found, content, done)
    if found.count() > before and not os.path.lexists(folder / f"{manifest.name}.json"):
        found.forget(before)
        found.note(
            "replaced and deleted while it was checked: verify again to check what took its place",
            shard=manifest.name,
        )


def _check_shard(
    folder: Path,
    manifest: Manifest,
    facts: Facts,
    found: Findings,
    content: Callable[[Rows, Rows, dict[str, Any]], None],
    done: Callable[[], None],
) -> None:
    for info in manifest.files.values():
        path = folder / info.name
        check_file(path, info.size, info.sha256, found, shard=manifest.name, file=info.name)
    if not manifest.files:
        return
    _check_inputs(folder, manifest, facts, found)
    tensors_file = _opened(folder, manifest, "tensors", found)
    if tensors_file is not None:
        tensors.check(tensors_file, manifest, inputs_of(facts.meta), found)
    files = {}
    try:
        for table in ORDER:
            files[table] = _opened(folder, manifest, table, found)
            if files[table] is not None:
                _check_groups(files[table], manifest, table, found)
        for entry in manifest.inputs:
            rows = {}
            where = {"shard": manifest.name, **pair_of(entry)}
            for table, file in files.items():
                place = where | {"file": manifest.files[table].name}
                found_rows = None if file is None else read_rows(file, entry, table, found, place)
                if found_rows is not None and check_rows(
                    found_rows, table, entry.input_id, facts, found, place
                ):
                    rows[table] = found_rows
            if len(rows) == len(files):
                content(rows["nodes"], rows["edges"], where)
            done()
    finally:
        for file in files.values():
            if file is not None:
                file.close()


def _opened(folder: Path, manifest: Manifest, table: str, found: Findings) -> Any:
    """Open a file of the right schema and number of rows, else None; damage is a finding."""
    info = manifest.files[table]
    where = {"shard": manifest.name, "file": info.name}
    try:
        file = pq.ParquetFile(folder / info.name, page_checksum_verification=True)
    except BROKEN as error:
        found.error(f"cannot be read: {error}", **where)
        return None
    if file.metadata.num_rows != info.rows:
        found.error(f"expected {info.rows} rows, found {file.metadata.num_rows}", **where)
    expected = SCHEMAS[table]
    if table == "tensors" and "name" in file.schema_arrow.names:
        expected = NAMED_TENSORS  # whether they may have names, their rows tell
    if table == "inputs":
        for name, kind in manifest.metadata.items():
            if kind != "null":
                expected = expected.append(pa.field(name, ARROW_TYPES[kind]))
    columns = [(field.name, field.type) for field in file.schema_arrow]
    wanted = [(field.name, field.type) for field in expected]
    if columns != wanted:
        odd = sorted(f"{name} {kind}" for name, kind in {*columns} ^ {*wanted}) or ["their order"]
        found.error(f"the columns are not those of the format: {', '.join(odd)}", **where)
        file.close()
        return None
    return file


def _check_groups(file: Any, manifest: Manifest, table: str, found: Findings) -> None:
    """Row groups: each belongs to one input, as the manifest says."""
    where = {"shard": manifest.name, "file": manifest.files[table].name}
    count = file.num_row_groups
    owners = np.zeros(count, np.int64)
    for entry in manifest.inputs:
        first, number = getattr(entry, table)
        if first + number > count:
            found.error(
                f"row groups {first} to {first + number - 1} are its own, but there are {count}",
                **where,
                **pair_of(entry),
            )
        owners[first : first + number] += 1
    for group in np.flatnonzero(owners != 1)[:5].tolist():
        owned = "no input" if owners[group] == 0 else f"{owners[group]} inputs"
        found.error(f"row group {group} belongs to {owned}: expected one", **where)
    for group in range(count):
        rows = file.metadata.row_group(group).num_rows
        if not 0 < rows <= ROWS_PER_GROUP:
            found.error(f"row group {group} holds {rows} rows", **where)


def read_rows(
    file: Any, entry: Entry, table: str, found: Findings, where: dict[str, Any]
) -> Rows | None:
    """Rows of one input as arrays, page checksums verified.

    Nulls of a nullable column become NaN; any other number that is not finite is a finding.
    """
    first, number = getattr(entry, table)
    if first + number > file.num_row_groups:
        return None
    try:
        read = file.read_row_groups(list(range(first, first + number)))
    except BROKEN as error:
        found.error(f"cannot be read: {error}", **where)
        return None
    rows: Rows = {}
    for field in SCHEMAS[table]:
        column = read[field.name]
        if column.null_count and not field.nullable:
            found.error(f"{column.null_count} values of {field.name} are null", **where)
            return None
        values = column.to_numpy()
        if pa.types.is_floating(field.type):
            bad = column.is_valid().to_numpy() & ~np.isfinite(values)
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                found.error(f"{field.name} of row {row} is {values[row]}: not finite", **where)
                return None
        rows[field.name] = values
    return rows


def check_rows(
    rows: Rows, table: str, identity: int, facts: Facts, found: Findings, where: dict[str, Any]
) -> bool:
    """Check order and references of one input's rows; whether their content can be judged."""
    foreign = np.flatnonzero(rows["input_id"] != identity)
    if len(foreign):
        found.error(
            f"{len(foreign)} rows are of another input, the first of {rows['input_id'][foreign[0]]}"
            f" instead of {identity}",
            **where,
        )
        return False
    sound = True
    check = _node_problems if table == "nodes" else _edge_problems
    for wrong, problem in check(rows, facts):
        at = np.flatnonzero(wrong)
        if len(at):
            row = int(at[0])
            keys = {k: int(rows[k][row]) for k in ORDER[table]}
            layer = facts.name(next(iter(keys.values())))
            shown = ", ".join(f"{k} {v}" for k, v in keys.items())
            found.error(f"{problem}: {shown} ({len(at)} such rows)", **where, layer=layer)
            sound = False
            break  # what follows relies on it
    if sound:
        sound = _check_order(rows, table, facts, found, where)
    return sound


def _check_order(
    rows: Rows, table: str, facts: Facts, found: Findings, where: dict[str, Any]
) -> bool:
    """Rows ascend strictly: sorted, and none twice."""
    keys = [rows[name] for name in ORDER[table]]
    later = np.zeros(max(0, len(keys[0]) - 1), bool)
    equal = np.ones_like(later)
    for key in keys:
        later |= equal & (key[1:] > key[:-1])
        equal &= key[1:] == key[:-1]
    at = np.flatnonzero(~later)
    if not len(at):
        return True
    twice = np.flatnonzero(equal)
    row = int(twice[0] if len(twice) else at[0]) + 1
    names = {name: int(rows[name][row]) for name in ORDER[table]}
    shown = ", ".join(f"{name} {value}" for name, value in names.items())
    text = f"{shown} is there twice" if len(twice) else f"rows are not sorted, the first: {shown}"
    found.error(text, **where, layer=facts.name(next(iter(names.values()))))
    return False


def _node_problems(rows: Rows, facts: Facts) -> Iterator[tuple[Any, str]]:
    layer, unit = rows["layer_id"], rows["unit"]
    known = (layer >= 0) & (layer < len(facts.units))
    yield ~known, "a layer that the store has not"
    yield (unit >= facts.units[layer]) | (unit < REMAINDER), "a unit that its layer has not"
    yield (unit < 0) != np.isnan(rows["activation"]), "an activation is null, or a pseudo-unit's"


def _edge_problems(rows: Rows, facts: Facts) -> Iterator[tuple[Any, str]]:
    dst, src = rows["dst_layer"], rows["src_layer"]
    upper, lower = rows["dst_unit"], rows["src_unit"]
    count = len(facts.units)
    yield (dst < 0) | (dst >= count) | (src < 0) | (src >= count), "a layer that the store has not"
    own = dst == src
    yield ~own & ~facts.groups[dst, src], "a layer does not read this one"
    yield (upper >= facts.units[dst]) | (lower >= facts.units[src]), "a unit that its layer has not"
    absorbed = (lower <= BIAS) & (lower >= REMAINDER) & (lower != PRUNED) & (upper >= 0)
    yield own & ~absorbed, "no step to a pseudo-unit of the same layer"
    plain = (upper >= 0) & (lower >= 0)
    pruned = facts.pruned[dst, src] & ((upper == PRUNED) | (lower == PRUNED))
    pruned &= (upper >= PRUNED) & (lower >= PRUNED) & ((upper >= 0) | (upper == PRUNED))
    pruned &= (lower >= 0) | (lower == PRUNED)
    yield ~own & ~plain & ~pruned, "a pruned row where nothing is pruned"
    q = rows["conditional"]
    neurons = facts.single[dst] & facts.single[src] & (plain | own)
    yield ~np.isnan(q) & ~neurons, "a conditional relevance of what are no single neurons"
    if not facts.conditioned:
        yield np.isnan(q) & neurons, "the conditional relevance is missing"
    if facts.bits is not None:
        for name in ("relevance", "conditional"):
            values = rows[name][~np.isnan(rows[name])]
            wrong = np.zeros(len(dst), bool)
            wrong[~np.isnan(rows[name])] = round_mantissa(values, facts.bits) != values
            yield wrong, f"the {name} has more than {facts.bits} mantissa bits"


def _check_inputs(folder: Path, manifest: Manifest, facts: Facts, found: Findings) -> None:
    """Table ``inputs`` against the manifest."""
    file = _opened(folder, manifest, "inputs", found)
    if file is None:
        return
    place = {"shard": manifest.name, "file": manifest.files["inputs"].name}
    with file:
        try:
            rows = file.read().to_pylist()
        except BROKEN as error:
            found.error(f"cannot be read: {error}", **place)
            return
    own = "weights" not in manifest.foreign  # else the field is a user's
    held = [
        (row["input_id"], row["key"], row["target"], row.get("weights") if own else None)
        for row in rows
    ]
    listed = {(e.input_id, e.key, e.target, e.weights) for e in manifest.inputs}
    for which, text in (
        (listed - set(held), "the manifest lists it, the table does not"),
        (set(held) - listed, "the table holds it, the manifest does not"),
    ):
        for _, key, target, weights in sorted(which, key=str):
            found.error(text, **place, key=key, target=target, weights=weights)
    if len(set(held)) != len(held):
        found.error("the table holds an input twice", **place)
    outputs = math.prod(facts.meta["layers"][-1]["shape"])
    listed_own = {
        name: {e.input_id: getattr(e, name) for e in manifest.inputs}
        for name in ("item", "flags")
        if name not in manifest.foreign
    }
    for row, pair in zip(rows, held, strict=True):
        identity, key, target, weights = pair
        where = place | {"key": key, "target": target, "weights": weights}
        for name, value in row.items():
            null = name == "label" or (name == "target" and weights is not None)
            if value is None and name in INPUTS.names and not null:
                found.error(f"{name} is null", **where)
            elif isinstance(value, list) and not all(isinstance(text, str) for text in value):
                found.error(f"{name} lists what is no text", **where)
            elif isinstance(value, float) and not math.isfinite(value):
                found.error(f"{name} is {value}: not finite", **where)
        for name in ("target", "predicted"):
            if row[name] is not None and row[name] >= outputs:
                found.error(f"{name} {row[name]}: the network has {outputs} outputs", **where)
        if weights is not None and pair in listed and max(weights_of(weights)) >= outputs:
            found.error(f"weights of outputs that are none: the network has {outputs}", **where)
        for name, values in listed_own.items():
            value = tuple(row[name]) if isinstance(row.get(name), list) else row.get(name)
            said = values.get(identity, value)
            if value != said:
                found.error(f"{name} is {value}, the manifest says {said}", **where)
        _check_label(row, manifest.name, facts, found, where)


def _check_label(
    row: Mapping[str, Any], shard: str, facts: Facts, found: Findings, where: dict[str, Any]
) -> None:
    """Note a key that has two labels: of one content, one of them is lost or in doubt."""
    if row["label"] is None or row["key"] is None:
        return
    first, label = facts.labels.setdefault(row["key"], (shard, row["label"]))
    if label != row["label"]:
        found.note(f"its label is {row['label']!r}, in the shard {first} {label!r}", **where)
