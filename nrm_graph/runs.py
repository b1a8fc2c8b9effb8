"""From inputs to records, in batches: one forward run and one relevance pass for each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph import states
from nrm_graph.edges import edge_tables
from nrm_graph.errors import InputError, NrmError, StoreError
from nrm_graph.forms import precision
from nrm_graph.precision import rounded
from nrm_graph.prepare import checked_tokens, output_weights, places
from nrm_graph.samples import Sample, class_index, label_text, sample
from nrm_graph.store.schema import Record
from nrm_graph.targets import outputs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nrm_graph.forms import Form
    from nrm_graph.plan import Plan
    from nrm_graph.store.writer import Writer
    from nrm_graph.targets import Outputs


@dataclass(frozen=True)
class Task:
    """What was asked of an extraction, beside what its store says.

    Attributes
    ----------
    targets : tuple
        What to explain of each input.
    classes : tuple of str or None
        Names of the outputs.
    keep : bool
        Whether the store keeps the inputs.
    bits : int or None
        Mantissa bits of edges.
    on_error : "stop" or "skip"
        What to do with an input that fails.
    size : int
        Inputs of a batch.
    device : str
        Where to compute.
    """

    targets: tuple[Any, ...]
    classes: tuple[str, ...] | None
    keep: bool
    bits: int | None
    on_error: str
    size: int
    device: str


def labelled(choice: Any, found: Sample, classes: Sequence[str] | None) -> Any:
    """Return a target with the label of a sample in the place of ``label``."""
    if isinstance(choice, tuple):
        return tuple(class_index(found, classes) if e == "label" else e for e in choice)
    return class_index(found, classes) if choice == "label" else choice


@dataclass
class Run:
    """An extraction by one process: what stays the same from batch to batch."""

    made: Plan
    task: Task
    writer: Writer
    taken: Form

    @cached_property
    def outputs(self) -> Outputs:
        """What the network returns."""
        return outputs_of(self.made.network.program)

    def take(self, entries: Iterable[tuple[str, Any]], done: Callable[..., Any]) -> None:
        """Explain inputs and hand them to the writer, but for those that are stored.

        Parameters
        ----------
        entries : iterable of (str, item)
            As of :func:`nrm_graph.samples.items`.
        done : callable
            Is told how many inputs are done, and how many seconds they took where they are a whole
            batch.

        Raises
        ------
        NrmError
            If an input fails that may not be skipped, or the store cannot be written.
        """
        net = self.made.network
        kind = precision(net.program)
        batch: list[Sample] = []
        for name, item in entries:
            try:
                found = sample(item, name, self.taken, kind)
                if isinstance(found.metadata.get("tokens"), list | tuple):
                    checked_tokens(net, found.metadata["tokens"])
                stored = self.is_stored(found)
            except StoreError:
                raise
            except Exception as error:
                self._failed(name, item, error)
                done(1)
                continue
            if stored:
                done(1)
                continue
            batch.append(found)
            if len(batch) == self.task.size:
                began = time.perf_counter()
                self.process(batch)
                done(len(batch), time.perf_counter() - began)
                batch = []
        if batch:
            self.process(batch)
            done(len(batch))

    def _failed(self, name: str, item: Any, error: Exception) -> None:
        """Record an input that failed, or stop."""
        if self.task.on_error == "stop":
            if isinstance(error, NrmError):
                raise error
            raise InputError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
        key = item.get("key") if isinstance(item, dict) else None
        self.writer.fail(str(key or name), str(error) or type(error).__name__)

    def is_stored(self, found: Sample) -> bool:
        """Whether every target of an input is stored, so that nothing need be computed.

        The prediction of a key that is there is known from the store: its content is the same.
        """
        for choice in self.task.targets:
            target: int | None
            if choice == "predicted":
                target = self.writer.predicted(found.key)
            elif isinstance(choice, tuple) and "predicted" in choice:
                target = None  # of one position: not known before the network has run
            else:
                target = self.outputs.index(labelled(choice, found, self.task.classes))
            # Without a target this checks the content all the same.
            known = -1 if target is None else target
            if not self.writer.committed(found.key, known, found.content):
                return False
        return True

    def _kept(self, found: Sample) -> Any:
        """Arrays of an input as the store keeps them; None where it does not."""
        names = [name for name, _ in self.made.network.program.inputs]
        if not self.task.keep:
            return None
        return found.arrays[0] if len(names) == 1 else dict(zip(names, found.arrays, strict=True))

    def process(self, batch: list[Sample]) -> None:
        """Explain a batch; where one of its inputs fails, the others go on without it."""
        try:
            self._explain(batch)
        except InputError as error:
            if self.task.on_error == "stop":
                raise
            if len(batch) == 1:
                self.writer.fail(batch[0].key, str(error))
                return
            for found in batch:
                self.process([found])

    def _explain(self, batch: list[Sample]) -> None:
        net, where = self.made.network, torch.device(self.task.device)
        stacked = (np.stack(arrays) for arrays in zip(*(s.arrays for s in batch), strict=True))
        xs = tuple(torch.from_numpy(x).to(where, non_blocking=True) for x in stacked)
        try:
            state = states.forward(net, xs)
        except NrmError as error:
            error.add_note(f"in a batch with the inputs {', '.join(s.key for s in batch)}")
            raise
        predicted = state.output.argmax(1).tolist()
        for choice in self.task.targets:
            named = [labelled(choice, found, self.task.classes) for found in batch]
            chosen = [
                places(one, state.output[i : i + 1], self.outputs)[0] for i, one in enumerate(named)
            ]
            pairs = zip(batch, chosen, strict=True)
            if all(self.writer.committed(found.key, t) for found, t in pairs):
                continue
            weights = torch.cat(
                [
                    output_weights(t, state.output[i : i + 1], self.outputs)
                    for i, t in enumerate(chosen)
                ]
            )
            logits = (weights * state.output).sum(1).tolist()
            tables = edge_tables(state, states.seed(state, weights), self.made)
            for i, (found, (nodes, edges)) in enumerate(zip(batch, tables, strict=True)):
                self.writer.add(
                    Record(
                        found.key,
                        chosen[i],
                        label_text(found),
                        predicted[i],
                        logits[i],
                        found.metadata,
                        found.content,
                        self._kept(found),
                        nodes,
                        edges if self.task.bits is None else rounded(edges, self.task.bits),
                    )
                )
