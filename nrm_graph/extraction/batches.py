"""From inputs to records, in batches: one forward run and one relevance pass for each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import InputError, NrmError, StoreError
from nrm_graph.extraction.input_labels import class_index
from nrm_graph.extraction.item_numbers import Numbering
from nrm_graph.extraction.loaders import Ended, Marked, refusal
from nrm_graph.extraction.samples import Sample, sample
from nrm_graph.measures.create import checked_tokens, output_weights
from nrm_graph.network.ir.input_spec import precision
from nrm_graph.network.targets import outputs_of
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.propagation import state as states
from nrm_graph.propagation.flags import flags_of, vanished
from nrm_graph.propagation.output_scale import added_up
from nrm_graph.store.format.schema import Record
from nrm_graph.tables.arrow import absorbed
from nrm_graph.tables.builder import tables_and_variation
from nrm_graph.tables.rounding import rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nrm_graph.network.ir.input_spec import Form
    from nrm_graph.network.targets import Outputs
    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.propagation.state import Network
    from nrm_graph.store.write.writer import Writer
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
    """

    targets: tuple[Any, ...]
    classes: tuple[str, ...] | None
    keep: bool
    bits: int | None
    on_error: str
    size: int
    device: str
    start: int = 0


class Relabelled(Marked):
    """An input that was there before has another label now."""


def labelled(choice: Any, found: Sample, classes: Sequence[str] | None) -> Any:
    """Return a target with the label of a sample in the place of ``label``."""
    if isinstance(choice, Mapping):
        weights: dict[Any, float] = {}
        for place, weight in choice.items():
            named = labelled(place, found, classes)
            weights[named] = weights.get(named, 0.0) + weight
        return weights
    if isinstance(choice, tuple):
        return tuple(labelled(entry, found, classes) for entry in choice)
    return class_index(found.label, found.key, classes) if choice == "label" else choice


def entries_of(choice: Any) -> list[Any]:
    """Return what a target is made of: itself, or the entries of its places."""
    if isinstance(choice, Mapping | tuple):
        return [entry for part in choice for entry in entries_of(part)]
    return [choice]


def warn_vanished(
    net: Network,
    found: Sample,
    targets: Sequence[Any],
    classes: Sequence[str] | None,
    device: torch.device,
) -> None:
    """Say before an extraction that the first input's target leaves nothing to explain.

    What cannot be computed is left to the extraction itself.
    """
    outputs = outputs_of(net.program)
    try:
        state = states.forward(
            net, tuple(torch.from_numpy(x)[None].to(device) for x in found.arrays)
        )
        values = state.output[0].double().cpu().numpy()
        aims = [outputs.aim(labelled(c, found, classes), values) for c in targets]
    except InputError:
        return
    for aim in aims:
        entries = weights_of(aim) if isinstance(aim, str) else aim
        weights = output_weights(entries, state.output, outputs)
        logit, added = float((weights * state.output).sum()), float(added_up(state, weights))
        if vanished(logit, added):
            (flag,) = (f for f in flags_of(logit, added, 0.0, 0.0) if f.name == "small_logit")
            warnings.warn(
                f"input {found.key!r}, target {outputs.text(aim, classes)}: {flag}",
                UserWarning,
                stacklevel=4,  # of the caller of extract, which is decorated
            )


@dataclass(frozen=True)
class _Seen:
    """An input of this call."""

    place: int
    content: str
    label: str | None


@dataclass
class Run:
    """An extraction by one process: what stays the same from batch to batch."""

    made: Plan
    task: Task
    writer: Writer
    taken: Form
    _seen: dict[str, _Seen] = field(default_factory=dict)

    @cached_property
    def _kind(self) -> torch.dtype:
        return precision(self.made.network.program)

    @cached_property
    def numbering(self) -> Numbering:
        """Items of the places of this call."""
        return Numbering(self.task.start, self.writer.items)

    @cached_property
    def outputs(self) -> Outputs:
        """What the network returns."""
        return outputs_of(self.made.network.program)

    def take(
        self, entries: Iterable[tuple[str, Any]], done: Callable[..., Any], first: int = 0
    ) -> None:
        """Explain inputs and hand them to the writer, but for those that are stored.

        Parameters
        ----------
        entries : iterable of (str, item)
            As of :func:`nrm_graph.extraction.samples.items`.
        done : callable
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
                found = self._sample(item, name, place)
            except StoreError:
                raise
            except Exception as error:
                self._failed(name, item, error)
                found = None
            if found is None:
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
        if ended is not None:
            raise refusal(ended, "")

    def _sample(self, item: Any, name: str, place: int) -> Sample | None:
        """Sample of an item; None where there is nothing to compute."""
        net = self.made.network
        found = sample(item, name, self.taken, self._kind)
        if isinstance(found.metadata.get("tokens"), list | tuple):
            checked_tokens(net, found.metadata["tokens"])
        before = self._seen.get(found.key)
        if before is not None and before.content != found.content:
            raise StoreError(
                f"{name} has the key {found.key!r} of item {before.place}, but another content: "
                "give it another key"
            )
        twice = before is not None
        stored = self.is_stored(found)
        self._check_label(found, name, before if twice else None, stored or twice)
        if not twice:
            self._seen[found.key] = _Seen(place, found.content, found.label_text)
        if twice or stored:
            return None
        return replace(found, item=self.numbering.item(found.key, place))

    def _check_label(self, found: Sample, name: str, before: _Seen | None, skipped: bool) -> None:
        """Refuse an input that was there before with another label.

        One without a label may be any; but a label that would be lost is told.
        """
        label, known = found.label_text, None
        if label is None:
            return
        if before is not None:
            other, known = f"item {before.place}", before.label
        elif self.writer.content(found.key) == found.content:
            facts, item = self.writer.facts(found.key), self.writer.items.get(found.key)
            other = "one that is stored" + ("" if item is None else f" (item {item})")
            known = None if facts is None else facts.label
            skipped = skipped and facts is not None
        else:
            return
        if known == label or (known is None and not skipped):
            return
        key = "" if found.key == found.content else f" under the key {found.key!r}"
        has = "none" if known is None else repr(known)
        raise Relabelled(
            f"{name} and {other} hold the same input{key} with different labels, {label!r} and "
            f"{has}: an input is known by its content; to keep both give each a key of its own "
            "(key= in a mapping with 'input' and 'label')"
        )

    def _failed(self, name: str, item: Any, error: Exception) -> None:
        """Record an input that failed, or stop."""
        if self.task.on_error == "stop":
            raise refusal(error, name)
        # Under the key of an input that is stored the failure would not count.
        keyed = isinstance(item, Mapping) and not isinstance(error, Relabelled)
        key = item.get("key") if keyed else None
        self.writer.fail(str(key or name), str(refusal(error, name)))

    def is_stored(self, found: Sample) -> bool:
        """Whether every target of an input is stored, so that nothing need be computed.

        The prediction of a key that is there is known from the store: its content is the same.
        """
        for choice in self.task.targets:
            target: Aim | None
            if choice == "predicted":
                target = self.writer.predicted(found.key)
            elif "predicted" in entries_of(choice):
                target = None  # of one position: not known before the network has run
            else:
                target = self.outputs.aim(labelled(choice, found, self.task.classes))
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
            unknown = "predicted" in entries_of(choice)
            chosen = [
                self.outputs.aim(
                    labelled(choice, found, self.task.classes),
                    state.output[i].double().cpu().numpy() if unknown else None,
                )
                for i, found in enumerate(batch)
            ]
            pairs = zip(batch, chosen, strict=True)
            if all(self.writer.committed(found.key, aim) for found, aim in pairs):
                continue
            seeds = [weights_of(aim) if isinstance(aim, str) else aim for aim in chosen]
            weights = torch.cat(
                [
                    output_weights(one, state.output[i : i + 1], self.outputs)
                    for i, one in enumerate(seeds)
                ]
            )
            logits = (weights * state.output).sum(1).tolist()
            for found, aim, logit in zip(batch, chosen, logits, strict=True):
                if isinstance(aim, str) and not logit:
                    raise InputError(
                        f"input {found.key!r}: the weighted sum of the target outputs is zero: "
                        "shares are undefined"
                    )
            tables, variation = tables_and_variation(state, states.seed(state, weights), self.made)
            added = added_up(state, weights).tolist()
            for i, (found, (nodes, edges)) in enumerate(zip(batch, tables, strict=True)):
                aim = chosen[i]
                lost = absorbed(nodes)
                flags = flags_of(logits[i], added[i], float(variation[i]), lost)
                self.writer.add(
                    Record(
                        found.key,
                        None if isinstance(aim, str) else aim,
                        found.label_text,
                        predicted[i],
                        logits[i],
                        found.metadata,
                        found.content,
                        self._kept(found),
                        nodes,
                        edges if self.task.bits is None else rounded(edges, self.task.bits),
                        found.item,
                        aim if isinstance(aim, str) else None,
                        tuple(flag.name for flag in flags),
                    )
                )
