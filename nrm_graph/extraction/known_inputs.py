"""Inputs that were met before, in this call or in the store: compared, and not computed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import StoreError
from nrm_graph.extraction.input_targets import entries_of, labelled
from nrm_graph.extraction.loaders import Marked

if TYPE_CHECKING:
    from nrm_graph.extraction.samples import Sample
    from nrm_graph.network.targets import Outputs
    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.store.write.writer import Writer


class Relabelled(Marked):
    """An input that was there before has another label now."""


@dataclass(frozen=True)
class _Met:
    """An input of this call."""

    place: int
    content: str
    label: str | None


@dataclass
class KnownInputs:
    """What was met before.

    Attributes
    ----------
    writer : Writer
        Of the store.
    targets : tuple
        What to explain of each input.
    classes : tuple of str or None
        Names of the outputs.
    outputs : Outputs
        What the network returns.
    """

    writer: Writer
    targets: tuple[Any, ...]
    classes: tuple[str, ...] | None
    outputs: Outputs
    _met: dict[str, _Met] = field(default_factory=dict, init=False)

    def meet(self, sample: Sample, name: str, place: int) -> bool:
        """Note an input; tell whether there is something to compute of it.

        Parameters
        ----------
        sample : Sample
            The input.
        name : str
            For messages.
        place : int
            In the data set.

        Raises
        ------
        StoreError
            If its key is that of another input.
        Relabelled
            If the same input had another label.
        """
        before = self._met.get(sample.key)
        if before is not None and before.content != sample.content:
            raise StoreError(
                f"{name} has the key {sample.key!r} of item {before.place}, but another content: "
                "give it another key"
            )
        twice = before is not None
        stored = self._is_stored(sample)
        self._check_label(sample, name, before, stored or twice)
        if not twice:
            self._met[sample.key] = _Met(place, sample.content, sample.label_text)
        return not twice and not stored

    def _check_label(self, sample: Sample, name: str, before: _Met | None, skipped: bool) -> None:
        """Refuse an input that was there before with another label.

        One without a label may be any; but a label that would be lost is told.
        """
        label, known_label = sample.label_text, None
        if label is None:
            return
        if before is not None:
            other, known_label = f"item {before.place}", before.label
        elif self.writer.content(sample.key) == sample.content:
            facts, item = self.writer.facts(sample.key), self.writer.items.get(sample.key)
            other = "one that is stored" + ("" if item is None else f" (item {item})")
            known_label = None if facts is None else facts.label
            skipped = skipped and facts is not None
        else:
            return
        if known_label == label or (known_label is None and not skipped):
            return
        key = "" if sample.key == sample.content else f" under the key {sample.key!r}"
        has = "none" if known_label is None else repr(known_label)
        raise Relabelled(
            f"{name} and {other} hold the same input{key} with different labels, {label!r} and "
            f"{has}: an input is known by its content; to keep both give each a key of its own "
            "(key= in a mapping with 'input' and 'label')"
        )

    def _is_stored(self, sample: Sample) -> bool:
        """Whether every target of an input is stored, so that nothing need be computed.

        The prediction of a key that is there is known from the store: its content is the same.
        """
        targets = self.targets if sample.own is None else (sample.own.aim,)
        for choice in targets:
            target: Aim | None
            if choice == "predicted":
                target = self.writer.predicted(sample.key)
            elif "predicted" in entries_of(choice):
                target = None  # of one position: not known before the network has run
            else:
                target = self.outputs.aim(labelled(choice, sample, self.classes))
            # Without a target this checks the content all the same.
            sought = -1 if target is None else target
            if not self.writer.committed(sample.key, sought, sample.content):
                return False
        return True
