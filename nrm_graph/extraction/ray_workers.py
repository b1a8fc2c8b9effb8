"""Extraction by processes of Ray, which read inputs and write shards of their own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph import _optional
from nrm_graph.database import Database
from nrm_graph.errors import InputError, StoreError
from nrm_graph.extraction.batches import Extraction
from nrm_graph.extraction.samples import items
from nrm_graph.extraction.store_options import stored_plan
from nrm_graph.network import units
from nrm_graph.store.format.listing import listed
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.stored_measure import input_spec_of, network_of
from nrm_graph.store.write.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from nrm_graph.extraction.batches import Task

CHUNK = 100
"""Inputs that a process gets at a time, at most: those of a shard."""

DEATHS = 3
"""Processes that the same inputs may end."""

NOTHING = range(0)

PATIENCE = 60.0
"""Seconds for processes to complete what they are at, once the extraction stops."""


@dataclass(frozen=True)
class Selection:
    """Some inputs of a sequence, with the names that all of them give each."""

    data: Any
    places: range

    @property
    def keys(self) -> Sequence[str]:
        """Names of the inputs."""
        keys = getattr(self.data, "keys", None)
        if isinstance(keys, Sequence):
            return [str(keys[n]) for n in self.places]
        return [f"item {n}" for n in self.places]

    def __iter__(self) -> Iterator[Any]:
        return (self[n] for n in range(len(self)))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> Any:
        return self.data[self.places[position]]


class Worker:
    """What one process does; Ray makes it there.

    Parameters
    ----------
    folder : Path
        The store, whose program it computes with.
    task : Task
        What is asked.
    inputs : list
        Ray's reference to all inputs: taken as an argument they would be read before this begins.
    weights : list
        Ray's reference to the tensors of a store that does not hold them, or nothing.
    """

    def __init__(
        self, folder: Path, task: Task, inputs: list[Any], weights: Sequence[Any] = ()
    ) -> None:
        # Nothing that may fail: what a method raises reaches the caller as it is.
        self._folder, self._task, self._reference = folder, task, inputs
        self._weights = weights
        self._stopped = threading.Event()

    @cached_property
    def _inputs(self) -> Any:
        try:
            return _optional.module().get(self._reference[0])
        except Exception as error:  # a data set's own code can raise anything
            raise InputError(
                f"the inputs cannot be read in other processes: {_first_line(error)}; use "
                "engine='local', or a data set that they can import"
            ) from None

    @cached_property
    def _extraction(self) -> Extraction:
        weights = _optional.module().get(self._weights[0]) if self._weights else None
        db = Database(self._folder, weights)
        net = network_of(db, None, torch.device(self._task.device))
        partitions = units.resolve(net.layout.topology, db.units())
        tables = stored_plan(net, db.meta, partitions)
        return Extraction(tables, self._task, Writer(self._folder), input_spec_of(db.meta))

    def explain(self, places: range) -> list[tuple[str, int, int]]:
        """Explain some inputs, and commit them.

        Returns
        -------
        list of (str, int, int)
            Shards that were committed: name, inputs, failures.
        """
        extraction = self._extraction
        before = len(extraction.writer.shards)
        try:
            extraction.take(self._entries(places), lambda count, seconds=None: None, places.start)
        finally:
            extraction.writer.flush()
        return extraction.writer.shards[before:]

    def _entries(self, places: range) -> Iterator[tuple[str, Any]]:
        for entry in items(Selection(self._inputs, places)):
            if self._stopped.is_set():
                return
            yield entry

    def stop(self) -> None:
        """End after the batch that is being explained."""
        self._stopped.set()


def explain_all(
    folder: Path,
    inputs: Any,
    task: Task,
    workers: int | None,
    advance: Callable[[int], None],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Explain inputs with several processes.

    Parameters
    ----------
    folder : Path
        A store that has been made.
    inputs : sequence
        With length and index; sent to every process once, as it is.
    task : Task
        What is asked.
    workers : int or None
        Number of processes.
    advance : callable
        Is told of every chunk of inputs.
    weights : mapping of str to Tensor, optional
        Of a store that does not hold them.

    Raises
    ------
    NrmError
        As the extraction in one process; and if inputs cannot be sent, or end every process that
        takes them.
    """
    with _optional.started(workers) as ray:
        cores, accelerators = _optional.size(ray)
        gpus = 0.0
        if task.device.startswith("cuda") and accelerators:
            workers = workers or max(1, int(accelerators))
            gpus = min(1.0, accelerators / workers)
        count = len(inputs)
        workers = min(workers or cores, -(-count // task.size))
        options = {"num_cpus": _optional.CPUS, "num_gpus": gpus, "max_concurrency": 2}
        try:
            shared = ray.put(inputs)
        except Exception as error:  # pickling runs a data set's own code, which can raise anything
            raise InputError(
                f"the inputs cannot be sent to other processes: {_first_line(error)}; use "
                "engine='local', or a data set of paths"
            ) from error
        tensors = [] if weights is None else [ray.put({k: w.cpu() for k, w in weights.items()})]
        remote = ray.remote(Worker).options(**options)
        pool = _Pool(ray, lambda: remote.remote(folder, task, [shared], tensors), advance)
        shards = pool.work_off(_chunks(count, task.size, workers), workers)
    # A compaction meanwhile may have replaced some.
    manifests = listed(folder / "shards")
    listed_names = {name for m, _ in manifests for name in (m.name, *m.replaces)}
    lost = {name for name, *_ in shards} - listed_names
    if lost:
        raise StoreError(
            f"processes committed {len(shards):,} shards, of which {len(lost):,} are not in "
            f"{folder}: the folder must be one that all machines of the cluster share"
        )
    new = {name for name, *_ in shards}
    _check_labels(Snapshot(folder, [m for m, by in manifests if m.name in new and not by]))


def _check_labels(committed: Snapshot) -> None:
    """Refuse equal inputs that different processes explained, with different labels."""
    items_by_key: dict[str, dict[str, int | None]] = {}  # by key: item, by shard
    for name, manifest in committed.manifests.items():
        for entry in manifest.inputs:
            items_by_key.setdefault(entry.key, {}).setdefault(name, entry.item)
    repeated = {key: names for key, names in items_by_key.items() if len(names) > 1}
    labels: dict[tuple[str, str], str | None] = {}
    for shard in {name for names in repeated.values() for name in names}:
        labels |= {(key, shard): facts.label for key, facts in committed.known([shard]).items()}
    for key, names in repeated.items():
        (first, counts), *others = ((labels[key, shard], item) for shard, item in names.items())
        lost = [(label, item) for label, item in others if label not in (None, first)]
        if lost:
            label, item = lost[0]
            raise InputError(
                f"item {item} and item {counts} hold the same input with different labels, "
                f"{label!r} and {'none' if first is None else repr(first)}: the store has the "
                f"second, under the key {key!r}; an input is known by its content: to keep both "
                "delete this key, and give each a key of its own (key= in a mapping with 'input' "
                "and 'label')"
            )


def _first_line(error: Exception) -> str:
    """Kind and first line of an error, or of the one that Ray wraps."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"


def _chunks(count: int, size: int, workers: int) -> list[range]:
    """Cut inputs into pieces of whole batches, so small that all processes end about together."""
    batches = -(-count // (size * workers * 4))
    step = size * max(1, min(batches, CHUNK // size))
    return [range(first, min(first + step, count)) for first in range(0, count, step)]


class _Pool:
    """Processes that each work on one chunk, and are replaced when they die."""

    def __init__(self, ray: Any, make: Any, advance: Callable[[int], None]) -> None:
        self._ray, self._make, self._advance = ray, make, advance
        self._busy: dict[Any, tuple[Any, range]] = {}  # by the result: process, and what it does
        self._shards: list[tuple[str, int, int]] = []

    def work_off(self, chunks: Iterable[range], workers: int) -> list[tuple[str, int, int]]:
        """Work on all chunks; the shards that were committed."""
        waiting = deque(chunks)
        deaths: dict[range, int] = {}
        try:
            # Nothing to do at first: where the cluster has no room for one, others do its share.
            for _ in range(min(workers, len(waiting))):
                self._start(self._make(), NOTHING)
            while waiting or self._working:
                (ready,), _ = self._ray.wait(list(self._busy), num_returns=1)
                worker, chunk = self._busy.pop(ready)
                try:
                    self._shards += self._ray.get(ready)
                except self._ray.exceptions.RayActorError as error:
                    deaths[chunk] = deaths.get(chunk, 0) + 1
                    if deaths[chunk] == DEATHS:
                        raise _deadly(chunk) from error
                    # By a new process, which knows what the dead one committed.
                    self._start(self._make(), chunk)
                    continue
                if chunk:
                    self._advance(len(chunk))
                if waiting:
                    self._start(worker, waiting.popleft())
        except BaseException as error:
            self._stop()
            raise _optional.cause_of(error) from None
        return self._shards

    @property
    def _working(self) -> list[Any]:
        """Results of the chunks that are being explained."""
        return [result for result, (_, chunk) in self._busy.items() if chunk]

    def _start(self, worker: Any, chunk: range) -> None:
        self._busy[worker.explain.remote(chunk)] = worker, chunk

    def _stop(self) -> None:
        """Let every process complete and commit its batch."""
        for worker, _ in self._busy.values():
            worker.stop.remote()
        if working := self._working:
            self._ray.wait(working, num_returns=len(working), timeout=PATIENCE)


def _deadly(chunk: range) -> StoreError:
    subject = f"inputs {chunk.start} to {chunk.stop - 1} ended" if chunk else "starting ended"
    return StoreError(
        f"{subject} {DEATHS} processes, perhaps for want of memory: use fewer workers or a smaller "
        "batch_size"
    )
