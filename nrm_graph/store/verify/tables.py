"""Rows of a shard: schema, counts, row groups, order, references, finite numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

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
    ascents,
)
from nrm_graph.store.format.settings import inputs_of
from nrm_graph.store.verify import tensors
from nrm_graph.store.verify.files import BROKEN, check_file
from nrm_graph.store.verify.report import pair_of
from nrm_graph.tables.rounding import round_mantissa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from nrm_graph.store.format.manifest import Entry, Manifest
    from nrm_graph.store.verify.report import Findings, Place

Rows = dict[str, "npt.NDArray[Any]"]  # column name to ndarray; null floats are NaN, see `read_rows`


@dataclass(frozen=True)
class StoreFacts:
    """What ``store.json`` says about layers, and whether the tables are those of a condition.

    ``labels`` collects shard and label of the keys that were seen, ``thresholds`` those of inputs,
    by input_id, and ``variations`` the largest sum of |R| of a layer of theirs.
    """

    meta: Mapping[str, Any]
    conditioned: bool = False
    labels: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    thresholds: dict[int, object] = dataclasses.field(default_factory=dict)
    variations: dict[int, float] = dataclasses.field(default_factory=dict)

    def name(self, layer_id: int) -> str:
        """Name of a layer, or its number where there is none."""
        layers = self.meta["layers"]
        inside = 0 <= layer_id < len(layers)
        return str(layers[layer_id]["name"]) if inside else f"number {layer_id}"

    @cached_property
    def units(self) -> npt.NDArray[np.int64]:
        """Number of units by layer."""
        return np.array([row["n_units"] for row in self.meta["layers"]], np.int64)

    @cached_property
    def first(self) -> npt.NDArray[np.int64]:
        """First unit of every layer where all are counted through, and their number."""
        return np.concatenate([[0], np.cumsum(self.units)])

    @cached_property
    def single(self) -> npt.NDArray[np.bool_]:
        """By layer, whether its units are single neurons."""
        layers = self.meta["layers"]
        return np.array([row["n_units"] == math.prod(row["shape"]) for row in layers])

    @cached_property
    def ends(self) -> npt.NDArray[np.bool_]:
        """By layer, whether walks end there: inputs."""
        return np.array([row["kind"] in ENDS for row in self.meta["layers"]])

    @cached_property
    def groups(self) -> npt.NDArray[np.bool_]:
        """Boolean (dst, src): whether a layer reads another."""
        return self._matrix(self.meta["groups"])

    @cached_property
    def pruned(self) -> npt.NDArray[np.bool_]:
        """Boolean (dst, src): pairs that may hold pruned rows; all if the store does not say."""
        listed = self.meta.get("pruned")
        if not isinstance(listed, list) or self.most is not None:
            return self.groups
        return self._matrix(listed)

    @property
    def most(self) -> int | None:
        """Most edges of an input; None where no number is set."""
        return cast("int | None", self.meta.get("max_edges"))

    def _matrix(self, pairs: list[list[int]]) -> npt.NDArray[np.bool_]:
        matrix = np.zeros((len(self.units), len(self.units)), bool)
        for dst, src, *_ in pairs:
            matrix[dst, src] = True
        return matrix

    def problems(self, rows: Rows, table: str) -> Iterator[tuple[Any, str]]:
        """Rows that refer to what the store has not, by the problem."""
        yield from _node_problems(rows, self) if table == "nodes" else _edge_problems(rows, self)

    @property
    def bits(self) -> int | None:
        """Mantissa bits of edges; None for lossless."""
        return cast("int | None", self.meta.get("mantissa_bits"))


def check_tables(
    folder: Path,
    manifest: Manifest,
    facts: StoreFacts,
    findings: Findings,
    content: Callable[[Rows, Rows, Place], None],
    advance: Callable[[], object],
) -> None:
    """Check the bytes and every row of a shard; memory is bounded by the rows of one input.

    A shard that another one replaced, and whose files were deleted meanwhile, is a note.

    Parameters
    ----------
    content : callable
        Gets nodes, edges and the place of every input whose rows are well formed.
    advance : callable
        Called after every input.
    """
    before = findings.count()
    for info in manifest.files.values():
        path = folder / info.name
        check_file(path, info.size, info.sha256, findings, shard=manifest.name, file=info.name)
    if manifest.files:
        _check_inputs(folder, manifest, facts, findings)
        tensors_file = _opened(folder, manifest, "tensors", findings)
        if tensors_file is not None:
            tensors.check(tensors_file, manifest, inputs_of(facts.meta), findings)
        _check_rows_of_inputs(folder, manifest, facts, findings, content, advance)
    if findings.count() > before and not os.path.lexists(folder / f"{manifest.name}.json"):
        findings.forget(before)
        findings.note(
            "replaced and deleted while it was checked: verify again to check what took its place",
            shard=manifest.name,
        )


def _check_rows_of_inputs(
    folder: Path,
    manifest: Manifest,
    facts: StoreFacts,
    findings: Findings,
    content: Callable[[Rows, Rows, Place], None],
    advance: Callable[[], object],
) -> None:
    """Check nodes and edges, an input at a time."""
    files: dict[str, pq.ParquetFile] = {}
    with contextlib.ExitStack() as stack:
        for table in ORDER:
            file = _opened(folder, manifest, table, findings)
            if file is not None:
                files[table] = stack.enter_context(file)
                _check_groups(file, manifest, table, findings)
        for entry in manifest.inputs:
            tables: dict[str, Rows] = {}
            where: Place = {"shard": manifest.name, **pair_of(entry)}
            for table, file in files.items():
                place = where | {"file": manifest.files[table].name}
                rows = read_rows(file, entry, table, findings, place)
                if rows and check_rows(rows, table, entry.input_id, facts, findings, place):
                    tables[table] = rows
            if len(tables) == len(ORDER):
                content(tables["nodes"], tables["edges"], where)
            advance()


def _opened(
    folder: Path, manifest: Manifest, table: str, findings: Findings
) -> pq.ParquetFile | None:
    """Open a file of the right schema and number of rows, else None; damage is a finding."""
    info = manifest.files[table]
    where: Place = {"shard": manifest.name, "file": info.name}
    try:
        file = pq.ParquetFile(folder / info.name, page_checksum_verification=True)
    except BROKEN as error:
        findings.error(f"cannot be read: {error}", **where)
        return None
    if file.metadata.num_rows != info.rows:
        findings.error(f"expected {info.rows} rows, found {file.metadata.num_rows}", **where)
    expected = SCHEMAS[table]
    if table == "tensors" and "name" in file.schema_arrow.names:
        expected = NAMED_TENSORS  # whether they may have names, their rows tell
    if table == "inputs":
        for name, kind in manifest.metadata.items():
            if kind != "null":
                expected = expected.append(pa.field(name, ARROW_TYPES[kind]))
    columns = [(field.name, field.type) for field in file.schema_arrow]
    expected_columns = [(field.name, field.type) for field in expected]
    if columns != expected_columns:
        unexpected = sorted(
            f"{name} {kind}" for name, kind in {*columns} ^ {*expected_columns}
        ) or ["their order"]
        findings.error(f"the columns are not those of the format: {', '.join(unexpected)}", **where)
        file.close()
        return None
    return file


def _check_groups(file: pq.ParquetFile, manifest: Manifest, table: str, findings: Findings) -> None:
    """Row groups: each belongs to one input, as the manifest says."""
    where: Place = {"shard": manifest.name, "file": manifest.files[table].name}
    count = file.num_row_groups
    owners = np.zeros(count, np.int64)
    for entry in manifest.inputs:
        first, number = getattr(entry, table)
        if first + number > count:
            findings.error(
                f"row groups {first} to {first + number - 1} are its own, but there are {count}",
                **where | pair_of(entry),
            )
        owners[first : first + number] += 1
    for group in np.flatnonzero(owners != 1)[:5].tolist():
        owned = "no input" if owners[group] == 0 else f"{owners[group]} inputs"
        findings.error(f"row group {group} belongs to {owned}: expected one", **where)
    for group in range(count):
        rows = file.metadata.row_group(group).num_rows
        if not 0 < rows <= ROWS_PER_GROUP:
            findings.error(f"row group {group} holds {rows} rows", **where)


def read_rows(
    file: pq.ParquetFile, entry: Entry, table: str, findings: Findings, where: Place
) -> Rows | None:
    """Rows of one input as arrays, page checksums verified.

    Nulls of a nullable column become NaN; any other number that is not finite is a finding.
    """
    first, number = getattr(entry, table)
    if first + number > file.num_row_groups:
        return None
    try:
        content = file.read_row_groups(list(range(first, first + number)))
    except BROKEN as error:
        findings.error(f"cannot be read: {error}", **where)
        return None
    rows: Rows = {}
    for field in SCHEMAS[table]:
        column = content[field.name]
        if column.null_count and not field.nullable:
            findings.error(f"{column.null_count} values of {field.name} are null", **where)
            return None
        values = column.to_numpy()
        if pa.types.is_floating(field.type):
            bad = column.is_valid().to_numpy() & ~np.isfinite(values)
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                findings.error(f"{field.name} of row {row} is {values[row]}: not finite", **where)
                return None
        rows[field.name] = values
    return rows


def check_rows(
    rows: Rows,
    table: str,
    identity: int,
    facts: StoreFacts,
    findings: Findings,
    where: Place,
) -> bool:
    """Check order and references of one input's rows; whether their content can be judged."""
    foreign = np.flatnonzero(rows["input_id"] != identity)
    if len(foreign):
        findings.error(
            f"{len(foreign)} rows are of another input, the first of {rows['input_id'][foreign[0]]}"
            f" instead of {identity}",
            **where,
        )
        return False
    for wrong, problem in facts.problems(rows, table):
        at = np.flatnonzero(wrong)
        if len(at):
            shown, layer = _shown(rows, table, int(at[0]), facts)
            findings.error(f"{problem}: {shown} ({len(at)} such rows)", **where, layer=layer)
            return False  # what follows relies on it
    return _check_order(rows, table, facts, findings, where)


def _check_order(
    rows: Rows, table: str, facts: StoreFacts, findings: Findings, where: Place
) -> bool:
    """Rows ascend strictly: sorted, and none twice."""
    later, equal = ascents([rows[name] for name in ORDER[table]])
    at = np.flatnonzero(~later)
    if not len(at):
        return True
    twice = np.flatnonzero(equal)
    row = int(twice[0] if len(twice) else at[0]) + 1
    shown, layer = _shown(rows, table, row, facts)
    text = f"{shown} is there twice" if len(twice) else f"rows are not sorted, the first: {shown}"
    findings.error(text, **where, layer=layer)
    return False


def _shown(rows: Rows, table: str, row: int, facts: StoreFacts) -> tuple[str, str]:
    """Keys of a row in words, and the layer that it is of."""
    keys = {name: int(rows[name][row]) for name in ORDER[table]}
    layer = facts.name(next(iter(keys.values())))
    return ", ".join(f"{name} {value}" for name, value in keys.items()), layer


def _node_problems(rows: Rows, facts: StoreFacts) -> Iterator[tuple[Any, str]]:
    layer, unit = rows["layer_id"], rows["unit"]
    yield (layer < 0) | (layer >= len(facts.units)), "a layer that the store has not"
    yield (unit >= facts.units[layer]) | (unit < REMAINDER), "a unit that its layer has not"
    yield (unit < 0) != np.isnan(rows["activation"]), "an activation is null, or a pseudo-unit's"


def _edge_problems(rows: Rows, facts: StoreFacts) -> Iterator[tuple[Any, str]]:
    dst, src = rows["dst_layer"], rows["src_layer"]
    upper, lower = rows["dst_unit"], rows["src_unit"]
    count = len(facts.units)
    yield (dst < 0) | (dst >= count) | (src < 0) | (src >= count), "a layer that the store has not"
    within = dst == src
    yield ~within & ~facts.groups[dst, src], "a layer does not read this one"
    yield (upper >= facts.units[dst]) | (lower >= facts.units[src]), "a unit that its layer has not"
    absorbed = (lower <= BIAS) & (lower >= REMAINDER) & (lower != PRUNED) & (upper >= 0)
    absorbed &= facts.most is None  # else their totals stand in nodes
    yield within & ~absorbed, "no step to a pseudo-unit of the same layer"
    plain = (upper >= 0) & (lower >= 0)
    pruned = facts.pruned[dst, src] & ((upper == PRUNED) | (lower == PRUNED))
    pruned &= (upper >= PRUNED) & (lower >= PRUNED) & ((upper >= 0) | (upper == PRUNED))
    pruned &= (lower >= 0) | (lower == PRUNED)
    if facts.most is not None:
        pruned &= upper == lower
    yield ~within & ~plain & ~pruned, "a pruned row where nothing is pruned"
    q = rows["conditional"]
    neurons = facts.single[dst] & facts.single[src] & (plain | within)
    yield ~np.isnan(q) & ~neurons, "a conditional relevance of what are no single neurons"
    if not facts.conditioned:
        yield np.isnan(q) & neurons, "the conditional relevance is missing"
    if facts.bits is not None:
        for name in ("relevance", "conditional"):
            values = rows[name][~np.isnan(rows[name])]
            wrong = np.zeros(len(dst), bool)
            wrong[~np.isnan(rows[name])] = round_mantissa(values, facts.bits) != values
            yield wrong, f"the {name} has more than {facts.bits} mantissa bits"


def _check_inputs(folder: Path, manifest: Manifest, facts: StoreFacts, findings: Findings) -> None:
    """Table ``inputs`` against the manifest."""
    file = _opened(folder, manifest, "inputs", findings)
    if file is None:
        return
    place: Place = {"shard": manifest.name, "file": manifest.files["inputs"].name}
    with file:
        try:
            rows = file.read().to_pylist()
        except BROKEN as error:
            findings.error(f"cannot be read: {error}", **place)
            return
    has_weights = "weights" not in manifest.foreign  # else the field is a user's
    stored_pairs = [
        (row["input_id"], row["key"], row["target"], row.get("weights") if has_weights else None)
        for row in rows
    ]
    listed = {(e.input_id, e.key, e.target, e.weights) for e in manifest.inputs}
    for pairs, text in (
        (listed - set(stored_pairs), "the manifest lists it, the table does not"),
        (set(stored_pairs) - listed, "the table holds it, the manifest does not"),
    ):
        for _, key, target, weights in sorted(pairs, key=str):
            findings.error(text, **place | {"key": key, "target": target, "weights": weights})
    if len(set(stored_pairs)) != len(stored_pairs):
        findings.error("the table holds an input twice", **place)
    outputs = math.prod(facts.meta["layers"][-1]["shape"])
    listed_own = {
        name: {e.input_id: getattr(e, name) for e in manifest.inputs}
        for name in ("item", "flags", "kept")
        if name not in manifest.foreign
    }
    for row, pair in zip(rows, stored_pairs, strict=True):
        identity, key, target, weights = pair
        where: Place = place | {"key": key, "target": target, "weights": weights}
        for name, value in row.items():
            null = name == "label" or (name == "target" and weights is not None)
            if value is None and name in INPUTS.names and not null:
                findings.error(f"{name} is null", **where)
            elif isinstance(value, list) and not _is_list(value):
                findings.error(f"{name} lists what is neither text nor finite numbers", **where)
            elif isinstance(value, float) and not math.isfinite(value):
                findings.error(f"{name} is {value}: not finite", **where)
        for name in ("target", "predicted"):
            if row[name] is not None and row[name] >= outputs:
                findings.error(f"{name} {row[name]}: the network has {outputs} outputs", **where)
        if weights is not None and pair in listed and max(weights_of(weights)) >= outputs:
            findings.error(f"weights of outputs that are none: the network has {outputs}", **where)
        for name, values in listed_own.items():
            value = tuple(row[name]) if isinstance(row.get(name), list) else row.get(name)
            stated = values.get(identity, value)
            if value != stated:
                findings.error(f"{name} is {value}, the manifest says {stated}", **where)
        if "thresholds" not in manifest.foreign:
            facts.thresholds[identity] = row.get("thresholds")
        _check_label(key, row["label"], manifest.name, facts, findings, where)


def _is_list(values: list[object]) -> bool:
    """Whether a list holds texts alone, or finite numbers alone."""
    numbers = all(isinstance(value, float) and math.isfinite(value) for value in values)
    return numbers or all(isinstance(value, str) for value in values)


def _check_label(
    key: str | None,
    label: str | None,
    shard: str,
    facts: StoreFacts,
    findings: Findings,
    where: Place,
) -> None:
    """Note a key that has two labels: of one content, one of them is lost or in doubt."""
    if label is not None and key is not None:
        first, known_label = facts.labels.setdefault(key, (shard, label))
        if known_label != label:
            findings.note(f"its label is {label!r}, in the shard {first} {known_label!r}", **where)
