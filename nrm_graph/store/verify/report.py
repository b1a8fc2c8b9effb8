"""What ``verify`` says: findings, each with its place in the store."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa

from nrm_graph.store.format.words import counted
from nrm_graph.tables.html_tables import ROWS, Description, HtmlTable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from nrm_graph.store.format.manifest import Entry

ERROR, NOTE = "error", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (``error``) or worth knowing (``note``), and where.

    Attributes
    ----------
    severity : str
        ``error`` or ``note``; a store with notes alone is sound.
    problem : str
        What was expected and found.
    shard, file, key, target, layer, weights
        Where; None for what does not apply.  An input has a target or weights.
    """

    severity: str
    problem: str
    shard: str | None = None
    file: str | None = None
    key: str | None = None
    target: int | None = None
    layer: str | None = None
    weights: str | None = None

    @property
    def where(self) -> str:
        """The place in words; empty for the store as a whole."""
        parts = []
        if self.file is not None or self.shard is not None:
            parts.append(self.file or f"shard {self.shard}")
        if self.key is not None:
            aim = self.weights if self.target is None else self.target
            target = "" if aim is None else f" (target {aim})"
            parts.append(f"input {self.key!r}{target}")
        if self.layer is not None:
            parts.append(f"layer {self.layer}")
        return ", ".join(parts)

    def __str__(self) -> str:
        place = self.where
        return " ".join(f"{self.severity}: {f'{place}: ' if place else ''}{self.problem}".split())


class Place(TypedDict, total=False):
    """Where a finding lies: attributes of :class:`Finding`."""

    shard: str | None
    file: str | None
    key: str | None
    target: int | None
    weights: str | None


def pair_of(entry: Entry) -> Place:
    """Return an input as findings name it."""
    return {"key": entry.key, "target": entry.target, "weights": entry.weights}


@dataclass(frozen=True)
class Report:
    """What was checked, and what was found.

    Attributes
    ----------
    path : Path
        The store.
    findings : tuple of Finding
        Errors first.
    shards, inputs, recomputed, conditions : int
        How many were checked; ``recomputed`` inputs were computed again from the stored program.
    """

    path: Path
    findings: tuple[Finding, ...]
    shards: int = 0
    inputs: int = 0
    recomputed: int = 0
    conditions: int = 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are errors."""
        return tuple(f for f in self.findings if f.severity == ERROR)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that are notes."""
        return tuple(f for f in self.findings if f.severity == NOTE)

    @property
    def sound(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def __str__(self) -> str:
        state = "sound" if self.sound else f"DAMAGED, {counted(len(self.errors), 'error')}"
        notes = f", {counted(len(self.notes), 'note')}" if self.notes else ""
        conditions = f", {counted(self.conditions, 'condition')}" if self.conditions else ""
        return (
            f"{self.path}: {counted(self.inputs, 'input')} in {counted(self.shards, 'shard')}"
            f"{conditions}, {self.recomputed:,} recomputed: {state}{notes}"
        )

    def _repr_html_(self) -> str:
        if not self.findings:
            return Description(str(self)).html()
        columns = [
            field.name
            for field in fields(Finding)
            if any(getattr(finding, field.name) is not None for finding in self.findings)
        ]
        rows = [tuple(getattr(finding, n) for n in columns) for finding in self.findings[:ROWS]]
        table = HtmlTable(tuple(columns), tuple(rows), len(self.findings))
        return Description(str(self)).html(table)

    def to_table(self) -> pa.Table:
        """Arrow table of the findings, one column per attribute."""
        names = [field.name for field in fields(Finding)]
        schema = pa.schema([(n, pa.int32() if n == "target" else pa.string()) for n in names])
        return pa.Table.from_pylist(list(map(asdict, self.findings)), schema)


class Findings:
    """Collects findings in the order of their discovery.

    Parameters
    ----------
    folder : str
        Folder inside the store that files are named in; empty for that of the store.
    collected : list of Finding, optional
        Where they are added.
    """

    def __init__(self, folder: str = "", collected: list[Finding] | None = None) -> None:
        self._folder = folder
        self._collected = [] if collected is None else collected

    def within(self, folder: str) -> Findings:
        """Add to these what is wrong in a folder of the store."""
        return Findings(folder, self._collected)

    def error(self, problem: str, *, layer: str | None = None, **where: Unpack[Place]) -> None:
        """Add an error; ``where`` are the attributes of :class:`Finding`."""
        self._add(ERROR, problem, layer, where)

    def note(self, problem: str, *, layer: str | None = None, **where: Unpack[Place]) -> None:
        """Add a note."""
        self._add(NOTE, problem, layer, where)

    def _add(self, severity: str, problem: str, layer: str | None, where: Place) -> None:
        if self._folder:
            file = where.get("file") or where.get("shard")
            where["file"] = self._folder if file is None else f"{self._folder}/{file}"
        self._collected.append(Finding(severity, problem, layer=layer, **where))

    def count(self) -> int:
        """Count what was found so far."""
        return len(self._collected)

    def forget(self, count: int) -> None:
        """Drop what was found after the first `count`."""
        del self._collected[count:]

    def sorted(self) -> tuple[Finding, ...]:
        """Errors first, else in the order of their discovery."""
        return tuple(sorted(self._collected, key=lambda f: f.severity != ERROR))
