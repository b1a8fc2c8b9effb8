"""A store opened for reading: SQL, and exact measures of its inputs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nrm_graph.circuits.methods import Circuits
from nrm_graph.condition_methods import Conditions
from nrm_graph.errors import InputError, QueryError, StoreError
from nrm_graph.network.targets import stored_outputs
from nrm_graph.network.topology import EdgeGroup, LayerInfo, Topology
from nrm_graph.network.units import resolve
from nrm_graph.store import lookups
from nrm_graph.store.format import settings
from nrm_graph.store.format.files import local_path
from nrm_graph.store.read.conditions import read_conditions
from nrm_graph.store.read.snapshot import Snapshot, layers_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import pyarrow as pa
    import torch

    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.targets import Outputs, Sought
    from nrm_graph.network.units import Partition
    from nrm_graph.store.read.conditions import Condition
    from nrm_graph.store.read.interruptible import Call
    from nrm_graph.store.read.relation import Relation
    from nrm_graph.store.read.sql import Engine
    from nrm_graph.store.verify.report import Report


def open(path: str | os.PathLike[str]) -> Database:
    """Open a store read-only, as a snapshot of what is committed now.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged or of an unknown format.
    """
    return Database(path)


class Database(Circuits, Conditions):
    """A snapshot of a store; a context manager.

    It can be used after a fork, and be pickled and copied: the copy sees the same snapshot, and
    opens files and prepares networks of its own.

    SQL sees the tables ``inputs``, ``layers``, ``nodes``, ``edges``, ``failures`` (inputs that
    failed and were not stored later) and the view ``flows``, and for every condition that was
    materialized ``<name>_inputs``, ``<name>_nodes`` and ``<name>_edges``.

    Parameters
    ----------
    path : path
        Folder of the store.

    Attributes
    ----------
    path : Path
        Folder of the store, absolute.
    meta : dict
        Content of ``store.json``.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged or of an unknown format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_path(path)
        self.meta = settings.read_settings(self.path)
        self._begin()
        self._see(Snapshot(self.path))

    def _begin(self) -> None:
        """Begin without what only one process can use, or can compute again."""
        self._network: Any = None
        self._compared: set[int] = set()  # inputs whose stored logit was compared
        self._engine: Engine | None = None
        self._running: set[Call] = set()  # queries, in any thread
        self._limits: dict[Any, dict[int, float]] = {}  # by inputs, what circuits asked before

    def __getstate__(self) -> dict[str, Any]:
        left = {"_network", "_compared", "_engine", "_running", "_limits", "topology", "partitions"}
        return {name: value for name, value in vars(self).items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
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
        self._snapshot = snapshot
        self._conditions: dict[str, Condition] = conditions
        self._limits = {}
        # Relations of before keep their own hold on the old engine.
        self._engine = None

    def __enter__(self) -> Database:
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
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __len__(self) -> int:
        """Count the (key, target) pairs."""
        return len(self._snapshot.entries)

    def __repr__(self) -> str:
        return f"<nrm_graph store {self.path}: {len(self)} inputs>"

    @cached_property
    def topology(self) -> Topology:
        """Layers and edge groups."""
        layers = tuple(
            LayerInfo(
                row["layer_id"],
                row["name"],
                row["kind"],
                tuple(row["shape"]),
                row["depth"],
                tuple(row["aliases"]),
            )
            for row in self.meta["layers"]
        )
        return Topology(layers, tuple(EdgeGroup(*group) for group in self.meta["groups"]))

    @property
    def outputs(self) -> Outputs:
        """What the network returns, which targets are places in."""
        return stored_outputs(self.meta)

    def sql(
        self,
        query: str,
        *,
        inputs: Sequence[str | int] | None = None,
        params: Any = None,
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
        ids = None
        if inputs is not None:
            ids = self._identities(inputs)
        if self._engine is None or self._engine.process != os.getpid():
            from nrm_graph.store.read.sql import Engine

            self._engine = Engine(
                self._snapshot,
                layers_table(self.meta["layers"]),
                {name: condition.snapshot for name, condition in self._conditions.items()},
                self._running,
            )
        return self._engine.query(query, params, ids, tables, timeout)

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
        found = self._snapshot.by_key.get(choice, ())
        if not found:
            keys = self._snapshot.by_key
            close = difflib.get_close_matches(choice, keys, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"it holds {len(keys)} keys"
            raise InputError(f"there is no input {choice!r} in {self.path}: {hint}")
        return found

    def measure(
        self,
        key: str | int,
        target: Sought | None = None,
        *,
        dtype: str | None = None,
        scale: str = "unit",
        device: str | torch.device = "cpu",
        memory: int = 1 << 30,
        input: Inputs | None = None,
    ) -> Measure:
        """Return the exact measure of one input, computed from the stored program.

        Parameters
        ----------
        key : str or int
            Key or input_id.
        target : int, tuple, mapping of int or tuple to float, or text of weights, optional
            Needed where the key has several targets.  A tuple is a place in an output of several
            axes, such as (position, class); see :func:`nrm_graph.measure`.  Signed weights over
            outputs, such as ``{3: 1, 5: -1}`` for what speaks for 3 and against 5, need not be
            stored; the text of stored ones, as the column ``weights`` of ``inputs`` holds it, will
            do.
        dtype, scale, device, memory
            As in :func:`nrm_graph.measure`.
        input : Tensor, or a tuple or mapping of tensors, optional
            The input itself, with or without a batch axis of 1, in the form that
            :func:`nrm_graph.measure` takes; needed where the store was made
            with ``tensors="omit"``.  It must be the one that was explained.

        Raises
        ------
        InputError
            If there is no such input, it has several targets, or its tensor is missing or another
            one.
        StoreError
            If the store is damaged.

        Warns
        -----
        UserWarning
            If the target's output is not the stored one, beyond the rounding of a forward run.
        """
        from nrm_graph.store.stored_measure import stored_measure

        identity, weights = lookups.pair_or_weights(self, key, target)
        return stored_measure(
            self,
            identity,
            weights,
            dtype=dtype,
            scale=scale,
            device=device,
            memory=memory,
            given=input,
        )

    def verify(self, *, sample: int = 3, progress: bool = False) -> Report:
        """Check the store's bytes, form and content; see :func:`nrm_graph.store.verify.verify`.

        Parameters
        ----------
        sample : int
            Number of inputs to compute again from the stored program; 0 needs no torch.
        progress : bool
            Show a bar where standard error is a terminal.

        Returns
        -------
        Report
            ``sound``, ``errors`` and ``notes``.
        """
        from nrm_graph.store.verify import verify

        return verify(self, sample=sample, progress=progress)

    @property
    def resolutions(self) -> tuple[str, ...]:
        """What the units of every layer are, by ``layer_id``: neuron, channel, ..."""
        return tuple(row["resolution"] for row in self.meta["layers"])

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        """Units of every layer, by ``layer_id``."""
        return resolve(self.topology, self.units())

    def units(self) -> dict[str, Any]:
        """Resolution of every layer: a name, or the user's own partition."""
        return settings.read_units(self.path, self.meta)
