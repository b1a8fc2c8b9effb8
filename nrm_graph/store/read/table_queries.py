"""SQL that gives the tables of a snapshot, whatever its files are read by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from nrm_graph.store.format.metadata import ARROW_TYPES, SQL_TYPES
from nrm_graph.store.format.schema import CONDITION_FACTS, INPUTS, OWN, SCHEMAS, VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from nrm_graph.store.read.snapshot import FileGroup, Snapshot
    from nrm_graph.store.read.unit_views import UnitViews

    Files = Callable[[Sequence[str], pa.Schema], str]
    """What stands after FROM for files of one schema."""

VIEW_OF = {"flows": ("inputs", "edges"), "units": ()}
"""Views, with the tables of files that each reads."""

_IDS = [("input_id", "BIGINT")]
_THRESHOLDS = """
SELECT input_id, CAST(dst_layer AS SMALLINT) AS dst_layer,
       CAST(src_layer AS SMALLINT) AS src_layer, CAST(threshold AS FLOAT) AS threshold
FROM (SELECT input_id, unnest([{dst}]) AS dst_layer, unnest([{src}]) AS src_layer,
             unnest(thresholds) AS threshold FROM ({inputs}))
WHERE threshold IS NOT NULL
"""


class TableQueries:
    """The tables of a store and its conditions.

    Parameters
    ----------
    snapshot : Snapshot
        What is committed.
    layers : pyarrow.Table
        The table ``layers``.
    pairs : sequence of (dst layer, src layer)
        What edges link, in the order of thresholds.
    conditions : mapping of name to Snapshot, optional
        Shards of conditions, whose tables are ``<name>_inputs``, ``<name>_nodes`` and
        ``<name>_edges``.
    tables : mapping of name to pyarrow.Table, optional
        Further tables of the store.
    units : UnitViews, optional
        The views of units and what joins them; without it there are no views.

    Attributes
    ----------
    snapshots : tuple of Snapshot
        The store's, and those of its conditions.
    loaded : dict of str to pyarrow.Table
        Tables that stand in no file of a shard, by name.
    views : mapping of str to str
        Queries of the views over all of these, by name.
    of_files : dict of str to (Snapshot, str)
        For every table that is read from files, whose it is and which of theirs.
    names : frozenset of str
        All tables that SQL sees, in lower case.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        layers: pa.Table,
        pairs: Sequence[tuple[int, int]],
        conditions: Mapping[str, Snapshot] | None = None,
        tables: Mapping[str, pa.Table] | None = None,
        units: UnitViews | None = None,
    ) -> None:
        conditions = conditions or {}
        self._snapshot, self._pairs = snapshot, pairs
        self.views = {} if units is None else units.queries()
        self.snapshots = (snapshot, *conditions.values())
        self.loaded = {"layers": layers, "failures": snapshot.failures}
        self.loaded |= {name.lower(): table for name, table in (tables or {}).items()}
        kinds = ("inputs", "nodes", "edges", "thresholds")
        self.of_files = {kind: (snapshot, kind) for kind in kinds} | {
            f"{name.lower()}_{kind}": (shards, kind)
            for name, shards in conditions.items()
            for kind in kinds
        }
        self.names = frozenset({*VIEWS, *self.of_files, *self.loaded})

    def query(self, table: str, files: Files, ids: Collection[int] | None = None) -> str:
        """Query of the rows of a table that count.

        Parameters
        ----------
        table : str
            One of ``of_files``.
        files : callable
            Takes paths and their schema, and returns what stands after FROM for them.
        ids : collection of int, optional
            These inputs only.
        """
        snapshot, table = self.of_files[table]
        if snapshot is not self._snapshot:
            ids = None if ids is None else [i for i in ids if i in snapshot.entries]
        groups = snapshot.file_groups("inputs" if table == "thresholds" else table, ids)
        if table == "thresholds":
            dst, src = (", ".join(str(pair[end]) for pair in self._pairs) for end in (0, 1))
            listed = _inputs(snapshot, groups, files, thresholds=True)
            return _THRESHOLDS.format(dst=dst, src=src, inputs=listed)
        if table == "inputs":
            if snapshot is self._snapshot:
                return _inputs(snapshot, groups, files)
            return _facts(snapshot, groups, files)
        if not groups:
            return _empty(table)
        schema = SCHEMAS[table]
        columns = ", ".join(schema.names)
        return " UNION ALL ".join(
            f"SELECT {columns} FROM {files(group.paths, schema)}{_where(group.ids)}"
            for group in groups
        )


def _facts(snapshot: Snapshot, groups: Sequence[FileGroup], files: Files) -> str:
    """Query of ``<name>_inputs``: what is known of the inputs of a condition."""
    kinds = [(name, SQL_TYPES[kind]) for name, kind in CONDITION_FACTS.items()]
    if not groups:
        return f"SELECT {', '.join(f'NULL::{k} AS {n}' for n, k in _IDS + kinds)} WHERE false"
    stored_fields = {name.casefold() for name in snapshot.fields.types}
    columns = ", ".join(
        f"CAST({name if name in stored_fields else 'NULL'} AS {kind}) AS {name}"
        for name, kind in kinds
    )
    return f"SELECT input_id, {columns} FROM ({_inputs(snapshot, groups, files)})"


def _inputs(
    snapshot: Snapshot, groups: Sequence[FileGroup], files: Files, *, thresholds: bool = False
) -> str:
    """Query of ``inputs``: metadata of all shards, of one type each.

    The list of thresholds is left out, or there alone: it is a table of its own.
    """
    types = _columns(snapshot)
    if thresholds:
        types = {"thresholds": SQL_TYPES[OWN["thresholds"]]}
    elif "thresholds" not in snapshot.foreign:
        types.pop("thresholds")
    if not groups:
        return _empty("inputs", [f"NULL::{k} AS {quoted(n)}" for n, k in types.items()])
    # Files whose fields are alike are read together; mostly that is all of them.
    by_fields: dict[tuple[tuple[str, str], ...], dict[tuple[int, ...] | None, list[str]]] = {}
    for group in groups:
        for path in group.paths:
            shard = Path(path).name.split(".")[0]
            alike = tuple(sorted(snapshot.manifests[shard].metadata.items()))
            by_fields.setdefault(alike, {}).setdefault(group.ids, []).append(path)
    queries = []
    for alike, paths_by_ids in by_fields.items():
        spelled = {name.casefold(): (name, kind) for name, kind in alike}
        columns = list(INPUTS.names)
        for name, kind in types.items():
            column, stored_kind = spelled.get(name.casefold(), (name, "null"))
            value = "NULL" if stored_kind == "null" else quoted(column)
            columns.append(f"CAST({value} AS {kind}) AS {quoted(name)}")
        # Explicit columns: a field may bear a name that DuckDB gives a meaning, such as
        # filename.
        stored = [(name, ARROW_TYPES[kind]) for name, kind in alike if kind != "null"]
        schema = pa.schema([*INPUTS, *(pa.field(name, kind) for name, kind in stored)])
        queries += [
            f"SELECT {', '.join(columns)} FROM {files(paths, schema)}{_where(ids)}"
            for ids, paths in paths_by_ids.items()
        ]
    return " UNION ALL ".join(queries)


def _columns(snapshot: Snapshot) -> dict[str, str]:
    """Columns of ``inputs`` beside the fixed ones, with their types: the format's, the user's."""
    fields = snapshot.fields
    columns = {fields.spelling(name) or name: SQL_TYPES[kind] for name, kind in OWN.items()}
    return columns | {name: SQL_TYPES[kind] for name, kind in fields.types.items()}


def _where(ids: Sequence[int] | None) -> str:
    return "" if ids is None else f" WHERE input_id IN ({', '.join(str(int(i)) for i in ids)})"


def _empty(table: str, extra: Sequence[str] = ()) -> str:
    kinds = {"int64": "BIGINT", "int32": "INTEGER", "int16": "SMALLINT", "float": "FLOAT"}
    columns = [
        f"NULL::{kinds.get(str(field.type), 'VARCHAR')} AS {field.name}" for field in SCHEMAS[table]
    ]
    return f"SELECT {', '.join([*columns, *extra])} WHERE false"


def quoted(value: str) -> str:
    """Return a name as SQL writes it, whatever it holds."""
    return '"' + value.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL writes it, whatever it holds.

    Examples
    --------
    >>> literal("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"
