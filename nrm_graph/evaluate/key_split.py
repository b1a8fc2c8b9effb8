"""Which keys a circuit is computed from, and which are held out to test it on."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import pyarrow as pa

from nrm_graph.circuits.checks import check_count
from nrm_graph.errors import InputError
from nrm_graph.evaluate.held_out import once
from nrm_graph.store.input_group import group
from nrm_graph.tables.html_tables import ROWS, Description, HtmlTable, Tabular

if TYPE_CHECKING:
    from nrm_graph.store.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Split(Tabular):
    """Keys of a store in two parts, which share none.

    Attributes
    ----------
    circuit : tuple of str
        Keys to compute circuits from: ``db.circuit(where, inputs=parts.circuit)``.
    held_out : tuple of str
        Keys to test them on.
    table : pyarrow.Table
        One row per key: ``key``, ``label``, ``held_out``.
    share : float
        Share of every label's keys that was asked for.
    seed : int
        What chose them.
    """

    circuit: tuple[str, ...]
    held_out: tuple[str, ...]
    table: pa.Table
    share: float
    seed: int

    @property
    def held_out_where(self) -> str:
        """SQL condition over ``inputs`` that chooses what is held out, to be joined with others."""
        quoted = ("'" + key.replace("'", "''") + "'" for key in self.held_out)
        return f"key IN ({', '.join(quoted)})"

    def _description(self) -> Description:
        labels = len(set(self.table["label"].to_pylist()))
        return Description(
            f"Split of {len(self.table):,} keys of {labels} label{'s' * (labels != 1)}, seed "
            f"{self.seed}: {len(self.circuit):,} for circuits, {len(self.held_out):,} held out"
        )

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        counts = Counter(
            zip(*(self.table[name].to_pylist() for name in ("label", "held_out")), strict=True)
        )
        by_label = [
            (label, counts[label, False], counts[label, True])
            for label in dict.fromkeys(label for label, _ in counts)
        ]
        columns = ("label", "for circuits", "held out")
        return (HtmlTable(columns, tuple(by_label[:ROWS]), len(by_label), "Keys by label"),)

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table`."""
        return self.table


def split(db: View, where: str | None = None, *, share: float = 0.25, seed: int = 0) -> Split:
    """Hold keys out, the same share of every label, to test circuits on.

    Parameters
    ----------
    db : Database
        The store.
    where : str, optional
        SQL condition over ``inputs`` that chooses the keys to divide; by default all.
    share : float
        Share of every label's keys that is held out, to the nearest whole number; of two keys or
        more at least one is held out and one is not.  Keys without a label are a group of their
        own.
    seed : int
        Another seed chooses others.  Keys are ordered by a hash of seed and key, so that the same
        store gives the same parts everywhere, and more inputs move few keys.

    Returns
    -------
    Split
        Keys of both parts.

    Raises
    ------
    InputError
        If share is not between 0 and 1, or no label has two keys.

    Examples
    --------
    >>> parts = ng.evaluate.split(db, seed=1)  # doctest: +SKIP
    >>> bag = db.circuit("label = 'bag'", inputs=parts.circuit)  # doctest: +SKIP
    >>> where = f"label = 'bag' AND {parts.held_out_where}"  # doctest: +SKIP
    >>> ng.evaluate.faithfulness(db, bag, where)  # doctest: +SKIP
    """
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < 1:
        raise InputError(f"share must be a number between 0 and 1, found {share!r}")
    check_count("seed", seed, 0)
    chosen = once(group(db, where, mixed_targets=True))
    by_label: dict[str | None, list[str]] = defaultdict(list)
    for key, label in zip(chosen.keys, chosen.labels, strict=True):
        by_label[label].append(key)
    apart: set[str] = set()
    for keys in by_label.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
        if len(keys) > 1:
            apart.update(keys[: min(max(int(len(keys) * share + 0.5), 1), len(keys) - 1)])
    if not apart:
        raise InputError(
            f"none of the {len(chosen)} keys can be held out: expected two of a label, found one "
            "of each"
        )
    rows = sorted(zip(chosen.keys, chosen.labels, strict=True), key=lambda row: row[0])
    table = pa.table(
        {
            "key": pa.array([key for key, _ in rows], pa.string()),
            "label": pa.array([label for _, label in rows], pa.string()),
            "held_out": [key in apart for key, _ in rows],
        }
    )
    parts = ([key for key, _ in rows if (key in apart) == out] for out in (False, True))
    circuit, held_out = map(tuple, parts)
    return Split(circuit, held_out, table, float(share), int(seed))
