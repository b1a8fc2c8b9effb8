"""From inputs to records, in batches: one forward run and one relevance pass for each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError, NrmError, StoreError
from nrm_graph.extraction import samples
from nrm_graph.extraction.input_targets import entries_of, labelled
from nrm_graph.extraction.item_numbers import Numbering
from nrm_graph.extraction.known_inputs import KnownInputs, Relabelled
from nrm_graph.extraction.loaders import Ended, refusal
from nrm_graph.network.ir.input_spec import precision
from nrm_graph.network.targets import outputs_of
from nrm_graph.network.token_texts import checked_tokens, output_texts, positions
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.propagation.flags import flags_of
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.output_scale import added_up
from nrm_graph.propagation.output_weights import initial_relevance, output_weights
from nrm_graph.store.format.schema import Record
from nrm_graph.store.token_names import TEXTS
from nrm_graph.tables.arrow import absorbed, unplaced
from nrm_graph.tables.builder import sample_tables
from nrm_graph.tables.rounding import rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nrm_graph.extraction.samples import Sample
    from nrm_graph.network.ir.input_spec import InputSpec
    from nrm_graph.network.targets import Outputs
    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.propagation.state import State
    from nrm_graph.store.write.writer import Writer
    from nrm_graph.tables.builder import SampleTables
    from nrm_graph.tables.plan import Plan


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
    start : int
        Item of the first place of the data set; see :mod:`nrm_graph.extraction.item_numbers`.
    names : sequence of str or None
        Texts of the tokens that are a language model's outputs.
    """

    targets: tuple[Any, ...]
    classes: tuple[str, ...] | None
    keep: bool
    bits: int | None
    on_error: str
    size: int
    device: str
    start: int = 0
    names: Sequence[str] | None = None


@dataclass
class Extraction:
    """An extraction by one process: what stays the same from batch to batch.

    Attributes
    ----------
    plan : Plan
        Of the tables, with the network.
    task : Task
        What was asked.
    writer : Writer
        Of the store.
    spec : InputSpec
        What the network takes.
    first : State or None
        Of the first input, where the network has run on it; dropped with the first batch.
    """

    plan: Plan
    task: Task
    writer: Writer
    spec: InputSpec
    first: State | None = None

    @cached_property
    def _precision(self) -> torch.dtype:
        return precision(self.plan.network.program)

    @cached_property
    def _numbering(self) -> Numbering:
        """Items of the places of this call."""
        return Numbering(self.task.start, self.writer.items)

    @cached_property
    def _outputs(self) -> Outputs:
        """What the network returns."""
        return outputs_of(self.plan.network.program)

    @cached_property
    def _positions(self) -> int | None:
        """Positions of a network of ids."""
        program = self.plan.network.program
        return positions((shape, name in program.integers) for name, shape in program.inputs)

    @cached_property
    def _known(self) -> KnownInputs:
        """Inputs that were met before."""
        return KnownInputs(self.writer, self.task.targets, self.task.classes, self._outputs)

    def take(
        self, entries: Iterable[tuple[str, Any]], advance: Callable[..., None], first: int = 0
    ) -> None:
        """Explain inputs and hand them to the writer, but for those that are stored.

        Parameters
        ----------
        entries : iterable of (str, item)
            As of :func:`nrm_graph.extraction.samples.items`.
        advance : callable
            Is told how many inputs are done, and how many seconds they took where they are a whole
            batch.
        first : int
            Place of the first one in the data set.

        Raises
        ------
        NrmError
            If an input fails that may not be skipped, or the store cannot be written.
        """
        batch: list[Sample] = []
        ended: Ended | None = None
        for place, (name, item) in enumerate(entries, first):
            if isinstance(item, Ended):
                ended = item
                break
            try:
                sample = self._sample(item, name, place)
            except StoreError:
                raise
            except Exception as error:
                self._failed(name, item, error)
                sample = None
            if sample is None:
                advance(1)
                continue
            batch.append(sample)
            if len(batch) == self.task.size:
                began = time.perf_counter()
                self.process(batch)
                advance(len(batch), time.perf_counter() - began)
                batch = []
        if batch:
            self.process(batch)
            advance(len(batch))
        if ended is not None:
            raise refusal(ended, "")

    def _sample(self, item: object, name: str, place: int) -> Sample | None:
        """Sample of an item; None where there is nothing to compute."""
        sample = samples.sample(item, name, self.spec, self._precision)
        if isinstance(sample.metadata.get("tokens"), list | tuple):
            topology = self.plan.network.layout.topology
            checked_tokens(topology, sample.metadata["tokens"], self._positions)
        if not self._known.meet(sample, name, place):
            return None
        return replace(sample, item=self._numbering.item(sample.key, place))

    def _failed(self, name: str, item: Any, error: Exception) -> None:
        """Record an input that failed, or stop."""
        if self.task.on_error == "stop":
            raise refusal(error, name)
        # Under the key of an input that is stored the failure would not count.
        keyed = isinstance(item, Mapping) and not isinstance(error, Relabelled)
        key = item.get("key") if keyed else None
        self.writer.fail(str(key or name), str(refusal(error, name)))

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
            for sample in batch:
                self.process([sample])

    def _explain(self, batch: list[Sample]) -> None:
        """Run the network on a batch, and pass relevance back once for each target."""
        device = torch.device(self.task.device)
        stacked = (np.stack(arrays) for arrays in zip(*(s.arrays for s in batch), strict=True))
        xs = tuple(torch.from_numpy(x).to(device, non_blocking=True) for x in stacked)
        try:
            state = self._run(xs)
        except NrmError as error:
            error.add_note(f"in a batch with the inputs {', '.join(s.key for s in batch)}")
            raise
        for choice in self.task.targets:
            aims = self._aims(choice, batch, state.output)
            pairs = zip(batch, aims, strict=True)
            if not all(self.writer.committed(sample.key, aim) for sample, aim in pairs):
                self._add(batch, aims, state)

    def _run(self, xs: Sequence[torch.Tensor]) -> State:
        """Run the network on a batch, unless it has run on just that before."""
        first, self.first = self.first, None
        if first is not None:
            before = [first.values[name] for name, _ in self.plan.network.program.inputs]
            if all(torch.equal(x, y) for x, y in zip(xs, before, strict=True)):
                return first
        return forward(self.plan.network, xs)

    def _aims(self, choice: object, batch: Sequence[Sample], output: torch.Tensor) -> list[Aim]:
        """Return what a target is of each input of a batch, whose outputs are ``(N, outputs)``."""
        aims = []
        for i, sample in enumerate(batch):
            asked = labelled(choice, sample, self.task.classes)
            unknown = "predicted" in entries_of(asked)
            values = output[i].cpu().double().numpy() if unknown else None
            aims.append(self._outputs.aim(asked, values))
        return aims

    def _add(self, batch: Sequence[Sample], aims: Sequence[Aim], state: State) -> None:
        """Hand the tables of a batch to the writer.

        Raises
        ------
        InputError
            If a weighted sum of outputs is zero.
        """
        weights = torch.cat(
            [
                output_weights(
                    weights_of(aim) if isinstance(aim, str) else aim,
                    state.output[i : i + 1],
                    self._outputs,
                )
                for i, aim in enumerate(aims)
            ]
        )
        logits = (weights * state.output).sum(1).tolist()
        for sample, aim, logit in zip(batch, aims, logits, strict=True):
            if isinstance(aim, str) and not logit:
                raise InputError(
                    f"input {sample.key!r}: the weighted sum of the target outputs is zero: "
                    "shares are undefined"
                )
        tables = sample_tables(state, initial_relevance(state, weights), self.plan)
        added = added_up(state, weights).tolist()
        predicted = state.output.argmax(1).tolist()
        for i, (sample, aim, stored) in enumerate(zip(batch, aims, tables, strict=True)):
            flags = flags_of(
                logits[i],
                added[i],
                stored.variation,
                absorbed(stored.nodes),
                bias=state.network.composite.bias,
                unplaced=unplaced(stored.nodes),
            )
            edges = stored.edges
            self.writer.add(
                Record(
                    sample.key,
                    None if isinstance(aim, str) else aim,
                    sample.label_text,
                    predicted[i],
                    logits[i],
                    {**sample.metadata, **self._texts(aim, predicted[i])},
                    sample.content,
                    self._tensors(sample),
                    stored.nodes,
                    edges if self.task.bits is None else rounded(edges, self.task.bits),
                    sample.item,
                    aim if isinstance(aim, str) else None,
                    tuple(flag.name for flag in flags),
                    *self._kept(stored),
                )
            )

    def _texts(self, aim: Aim, predicted: int) -> dict[str, str]:
        """Texts of the tokens that are explained and predicted, of a language model."""
        names = self.task.names
        if names is None:
            return {}
        return dict(zip(TEXTS, (output_texts(aim, names), names[predicted]), strict=True))

    def _kept(self, tables: SampleTables) -> tuple[float | None, tuple[float, ...] | None]:
        """Share that every pair of layers keeps, and the thresholds of all of them."""
        kept = tables.kept
        if kept is None:
            return None if self.plan.limits else 1.0, None
        groups = self.plan.network.layout.topology.groups
        return kept.share, kept.bounds((group.dst, group.src) for group in groups)

    def _tensors(self, sample: Sample) -> Any:
        """Arrays of an input as the store keeps them; None where it does not."""
        if not self.task.keep:
            return None
        names = [name for name, _ in self.plan.network.program.inputs]
        if len(names) == 1:
            return sample.arrays[0]
        return dict(zip(names, sample.arrays, strict=True))
