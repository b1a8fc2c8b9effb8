"""A snapshot of a store: SQL over it, its layers and units; what lower rooms read it through."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from nrm_graph.errors import InputError, QueryError, StoreError
from nrm_graph.network.targets import stored_outputs
from nrm_graph.network.topology import EdgeGroup, Topology
from nrm_graph.network.units import resolve, with_outputs
from nrm_graph.store.format import settings, unit_names
from nrm_graph.store.format.files import local_path
from nrm_graph.store.format.schema import LAYERS
from nrm_graph.store.format.words import no_such_input
from nrm_graph.store.read.conditions import read_conditions
from nrm_graph.store.read.snapshot import Snapshot, layers_table
from nrm_graph.store.token_names import query, token_names
from nrm_graph.tables.html_tables import Description, Displayed, HtmlTable, pairs_of, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    import pyarrow as pa

    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.targets import Outputs
    from nrm_graph.network.units import Partition
    from nrm_graph.store.named_weights import Given, Weights
    from nrm_graph.store.read.conditions import Condition
    from nrm_graph.store.read.interruptible import Call
    from nrm_graph.store.read.relation import Relation
    from nrm_graph.store.read.sql import SqlReader
    from nrm_graph.store.read.table_queries import TableQueries


class View(Displayed):
    """A snapshot of a store: what :class:`nrm_graph.database.Database` binds its questions to."""

    def __init__(self, path: str | os.PathLike[str], weights: Given = None) -> None:
        self.path = local_path(path)
        self.meta = settings.read_settings(self.path)
        self.weights: Weights = None
        if weights is not None:
            self.weights = _sources(self.path, self.meta, weights)
        self._begin()
        self._see(Snapshot(self.path))

    @property
    def bias(self) -> str:
        """Reading of all its measures: biases and constants ``absorbed`` or ``ignored``."""
        return str(self.meta["composite"].get("bias", "absorbed"))

    def _begin(self) -> None:
        """Begin without what only one process can use, or can compute again."""
        self._program: Program | None = None
        self._network: Any = None
        self._compared: set[int] = set()  # inputs whose stored logit was compared
        self._reader: SqlReader | None = None
        self._running: set[Call] = set()  # queries, in any thread
        self._limits: dict[Any, dict[int, float]] = {}  # by inputs, what circuits asked before
        self._exact: dict[str, dict[int, Any]] = {}  # edges that were computed, by input
        self._joints: dict[str, Any] = {}  # joint relevances that were averaged so far
        self._tokens: tuple[str, ...] | None = None  # names of outputs that are tokens

    def __getstate__(self) -> dict[str, Any]:
        omitted = {
            "_program",
            "_network",
            "_compared",
            "_reader",
            "_running",
            "_limits",
            "_exact",
            "_joints",
            "_tokens",
            "topology",
            "partitions",
        }
        if isinstance(self.weights, Mapping):  # files are opened again, tensors are not sent
            omitted.add("weights")
        return {name: value for name, value in vars(self).items() if name not in omitted}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update({"weights": None, **state})
        self._begin()

    def refresh(self) -> None:
        """Take a new snapshot of the committed shards.

        Raises
        ------
        StoreError
            If the store is no longer there, or another one is; or a manifest, its files or a
            condition are damaged.  The database goes on with the snapshot that it has.
        """
        if settings.read_settings(self.path) != self.meta:
            raise StoreError(
                f"another store is at {self.path} than the one that was opened: open it anew"
            )
        self._see(Snapshot(self.path))

    def _refresh_conditions(self) -> None:
        """See what conditions are committed now; the inputs stay those of the snapshot."""
        self._see(self._snapshot)

    def _see(self, snapshot: Snapshot) -> None:
        """Answer from a snapshot and the conditions that are committed now."""
        conditions = read_conditions(self.path, self.meta, snapshot.entries)
        self._names = unit_names.read(self.path, self.meta)
        vars(self).pop("partitions", None)
        self._snapshot = snapshot
        self._conditions: dict[str, Condition] = conditions
        self._limits = {}
        self._exact = {}
        self._joints = {}
        self._tokens = None
        # Relations of before keep their own hold on the old reader.
        self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the connection; relations made from it end."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __len__(self) -> int:
        """Count the (key, target) pairs."""
        return len(self._snapshot.entries)

    def _description(self) -> Description:
        return Description(f"nrm_graph store {self.path}: {len(self)} inputs")

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        from nrm_graph.store.read.relation import first_rows

        try:
            by_label = self.sql(
                "SELECT label, count(*) AS inputs, count(DISTINCT key) AS keys "
                "FROM inputs GROUP BY label ORDER BY inputs DESC, label"
            )
            labels = first_rows(by_label, "By label")
        except QueryError as error:  # files may be gone, what else is known is not
            labels = pairs_of([("labels", str(error))])
        failures = self._snapshot.failures.num_rows
        further = [
            ("conditions", ", ".join(sorted(self._conditions)) or None),
            ("failures", failures or None),
        ]
        columns = [name for name in LAYERS.names if name != "depth"]
        layers = table_of(layers_table(self.meta["layers"]), columns, caption="By layer")
        return *(t for t in (pairs_of(further), labels) if t.rows), layers

    @cached_property
    def topology(self) -> Topology:
        """Layers and edge groups."""
        return Topology(
            settings.layers_of(self.meta), tuple(EdgeGroup(*group) for group in self.meta["groups"])
        )

    @property
    def outputs(self) -> Outputs:
        """What the network returns, which targets are places in."""
        return stored_outputs(self.meta)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the outputs, where they are known; of tokens, those that the inputs name."""
        names = self.meta.get("classes")
        if names is None and "language" in self.meta:
            if self._tokens is None:
                rows = self.sql(query(self._snapshot.fields.types)).fetchall()
                self._tokens = token_names(rows, self.outputs.count)
            return self._tokens
        return None if names is None else tuple(names)

    def sql(
        self,
        query: str,
        *,
        inputs: Sequence[str | int] | None = None,
        params: object = None,
        tables: Mapping[str, pa.Table] | None = None,
        timeout: float | None = None,
    ) -> Relation:
        """Run one SELECT over the store.

        Parameters
        ----------
        query : str
            A single SELECT (set operations and CTEs included); anything that writes, attaches
            or reads other files is refused.
        inputs : sequence of key or input_id, optional
            See only these inputs, and open only their files.
        params : sequence or mapping, optional
            Values for ``?`` or ``$name``.
        tables : mapping of name to pyarrow.Table, optional
            Further tables for this call.
        timeout : float, optional
            Seconds that this call may take, and then each that fetches rows of what it returns.

        Returns
        -------
        Relation
            With the methods of ``duckdb.DuckDBPyRelation``: ``fetchall``, ``to_arrow_table``,
            ``df``, ...; Ctrl-C stops them, and ``cancel`` does from another thread.

        Raises
        ------
        QueryError
            If the query is refused or fails, takes too long or is cancelled, now or when its rows
            are fetched.
        InputError
            If an input is not there, a further table cannot bear its name, or the timeout is no
            number of seconds.

        Notes
        -----
        A process that was forked since, such as a worker of a data loader, answers from the same
        snapshot.  Relations stay with the process that made them.
        """
        if not isinstance(query, str):
            raise QueryError(f"expected SQL text, found {type(query).__name__}")
        ids = None if inputs is None else self._identities(inputs)
        if self._reader is None or self._reader.process != os.getpid():
            from nrm_graph.store.read.sql import SqlReader

            self._reader = SqlReader(self._tables(), self._running)
        return self._reader.query(query, params, ids, tables, timeout)

    def _tables(self) -> TableQueries:
        """Return the tables that SQL sees."""
        from nrm_graph.store.read.table_queries import TableQueries
        from nrm_graph.store.read.unit_views import UnitViews

        conditions = self._conditions.items()
        return TableQueries(
            self._snapshot,
            layers_table(self.meta["layers"]),
            [(dst, src) for dst, src, _ in self.meta["groups"]],
            {name: condition.snapshot for name, condition in conditions},
            {
                f"{name}_layers": condition.nodes.table()
                for name, condition in conditions
                if condition.nodes is not None
            },
            UnitViews(self.topology, self.resolutions, self._names),
        )

    def cancel(self) -> None:
        """Stop every query that runs on this database now, in other threads.

        The calls there raise :class:`QueryError`, those of circuits and statistics too; later ones
        are not affected.  ``cancel`` of a relation stops its own calls alone.
        """
        for call in list(self._running):
            call.cancel()

    def _identities(self, inputs: Sequence[str | int]) -> list[int]:
        """Input ids of several choices, each once."""
        if isinstance(inputs, str) or not isinstance(inputs, Iterable):
            raise InputError(f"inputs must be a list of keys or input_ids, found {inputs!r}")
        return list(dict.fromkeys(i for choice in inputs for i in self._matching(choice)))

    def _matching(self, choice: str | int) -> tuple[int, ...]:
        """Input ids of a key, or of an input_id itself."""
        if not isinstance(choice, str):
            identity = choice.__index__() if hasattr(choice, "__index__") else None
            if identity in self._snapshot.entries and not isinstance(choice, bool):
                return (identity,)
            raise InputError(f"there is no input_id {choice!r} in {self.path}")
        identities = self._snapshot.by_key.get(choice, ())
        if not identities:
            raise no_such_input(choice, self._snapshot.by_key, self.path)
        return identities

    @property
    def resolutions(self) -> tuple[str, ...]:
        """What the units of every layer are, by ``layer_id``: neuron, channel, ..."""
        return tuple(row["resolution"] for row in self.meta["layers"])

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        """Units of every layer, by ``layer_id``, with the user's names."""
        parts = resolve(self.topology, self.units())
        parts = with_outputs(parts, self.outputs.names(self.classes))
        return tuple(replace(part, names=self._names.get(i, {})) for i, part in enumerate(parts))

    def units(self) -> dict[str, Any]:
        """Resolution of every layer: a name, or the user's own partition."""
        return settings.read_units(self.path, self.meta)


def _sources(path: Path, meta: Mapping[str, Any], weights: Given) -> Weights:
    """Check weights that are given, where the store has a use for them."""
    if "named" not in meta:
        raise InputError(f"{path} holds the weights of its network itself: leave weights= out")
    from nrm_graph.store.named_weights import checked_sources

    return checked_sources(weights)
