"""Groups of inputs: whose measures a circuit mixes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.network.weighted_targets import weights_of
from nrm_graph.propagation import flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.network.targets import Outputs, Sought
    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.store.view import View

WEIGHTS = ("unit", "logit")


@dataclass(frozen=True, eq=False, repr=False)
class InputGroup:
    """Some (key, target) pairs of a store, in the order of their ``input_id``.

    Attributes
    ----------
    where : str or None
        SQL condition over ``inputs`` that chose them.
    ids : ndarray of int64, (N,)
        Their ``input_id``.
    keys : tuple of str
        Their keys; a key stands here once for each of its targets.
    labels : tuple of str or None
        Their labels.
    targets : ndarray of int64, (N,)
        Flat index of the explained output; -1 where several are weighed.
    logits : ndarray of float64, (N,)
        Its value, or the weighted sum.
    weighted : tuple of str or None
        Weights of the explained outputs, as :mod:`nrm_graph.network.weighted_targets` writes them;
        empty where no input has any.
    bias : "absorbed" or "ignored"
        Reading of their measures, see :class:`nrm_graph.rules.composites.Composite`.
    outputs : Outputs or None
        What the network returns.
    classes : tuple of str or None
        Names of the outputs, where they are known.
    """

    where: str | None
    ids: npt.NDArray[np.int64]
    keys: tuple[str, ...]
    labels: tuple[str | None, ...]
    targets: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    weighted: tuple[str | None, ...] = ()
    bias: str = "absorbed"
    outputs: Outputs | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        chosen = "all" if self.where is None else f"where {self.where}"
        return f"<Group of {len(self):,} inputs, {chosen}>"

    @property
    def aims(self) -> tuple[Aim, ...]:
        """What is explained of each input: a target, or the text of weights."""
        targets = self.targets.tolist()
        if not self.weighted:
            return tuple(targets)
        return tuple(t if w is None else w for t, w in zip(targets, self.weighted, strict=True))

    @property
    def target(self) -> Aim | None:
        """The one target of all inputs, or the text of their weights; None where they differ."""
        return self.aims[0] if len(set(self.aims)) == 1 else None

    @property
    def target_text(self) -> str | None:
        """The one target in words, with its class where that is known; None where they differ."""
        if self.target is None or self.outputs is None:
            return None
        return self.outputs.text(self.target, self.classes)

    @property
    def target_facts(self) -> dict[str, Any]:
        """Attributes of a graph: the one target and its text, where all inputs have it."""
        facts = {"target": self.target, "target_text": self.target_text}
        return {name: value for name, value in facts.items() if value is not None}

    def explains(self, aim: Aim) -> npt.NDArray[np.bool_]:
        """Whether a target, or the text of weights, is what is explained of each input, (N,)."""
        if self.weighted:
            return np.array([explained == aim for explained in self.aims], bool)
        return np.zeros(len(self), bool) if isinstance(aim, str) else self.targets == aim

    def seeds(self, start: int, stop: int, outputs: int) -> npt.NDArray[Any]:
        """Targets of some inputs, (n,); or where any has weights, those of all, (n, outputs)."""
        if not self.weighted:
            return self.targets[start:stop]
        rows = np.zeros((len(self.targets[start:stop]), outputs))
        for row, aim in zip(rows, self.aims[start:stop], strict=True):
            weights = weights_of(aim) if isinstance(aim, str) else {aim: 1.0}
            row[list(weights)] = list(weights.values())
        return rows

    def take(self, places: npt.NDArray[np.intp]) -> InputGroup:
        """Keep the inputs at some places, in that order."""
        return replace(
            self,
            ids=self.ids[places],
            keys=tuple(self.keys[i] for i in places),
            labels=tuple(self.labels[i] for i in places),
            targets=self.targets[places],
            logits=self.logits[places],
            weighted=tuple(self.weighted[i] for i in places) if self.weighted else (),
        )

    def weights(self, weight: str) -> npt.NDArray[np.float64]:
        """Return what the relevance of each input is multiplied by, (N,).

        Raises
        ------
        InputError
            If the name is neither ``unit`` nor ``logit``.
        """
        if not isinstance(weight, str) or weight not in WEIGHTS:
            raise InputError(f"weight must be 'unit' or 'logit', found {weight!r}")
        return self.logits if weight == "logit" else np.ones(len(self))


def group(
    db: View,
    where: str | None = None,
    *,
    inputs: Sequence[str | int] | None = None,
    target: Sought | None = None,
    mixed_targets: bool = False,
) -> InputGroup:
    """Choose inputs of a store.

    Parameters
    ----------
    db : Database
        The store.
    where : str, optional
        SQL condition over ``inputs``; all by default.
    inputs : sequence of key or input_id, optional
        Of the chosen inputs only these.
    target : int, tuple, mapping or str, optional
        Keep the pairs of this target: a flat index, a place such as (position, class), or weights
        of these such as ``{3: 1, 5: -1}``, or their text in ``inputs``.
    mixed_targets : bool
        Allow inputs of which different outputs are explained: their measures speak of different
        questions, and a mixture of them of neither.

    Raises
    ------
    InputError
        If no input is chosen, or their targets differ and may not.
    QueryError
        If ``where`` is not one SQL condition over ``inputs``.
    """
    from nrm_graph.store.read.sql_guard import chosen_inputs

    query = "SELECT input_id, key, label, target, logit FROM inputs"
    if where is not None:
        query += f" WHERE input_id IN ({chosen_inputs(where)})"
    rows = db.sql(f"{query} ORDER BY input_id", inputs=inputs).to_arrow_table()
    # Of the manifests: in old stores a user's own field may bear the name of the column.
    weights = [db._snapshot.entries[i].weights for i in rows["input_id"].to_pylist()]
    chosen = InputGroup(
        where,
        rows["input_id"].to_numpy(),
        tuple(rows["key"].to_pylist()),
        tuple(rows["label"].to_pylist()),
        rows["target"].fill_null(-1).to_numpy().astype(np.int64),
        rows["logit"].to_numpy().astype(np.float64),
        tuple(weights) if any(weights) else (),
        db.bias,
        db.outputs,
        db.classes,
    )
    if target is not None:
        chosen = chosen.take(np.flatnonzero(chosen.explains(db.outputs.sought(target))))
    if not len(chosen):
        raise InputError(
            f"no input is chosen by {_chosen(where, inputs, target)}: {db.path} holds "
            f"{len(db):,}; `SELECT key, label, target, weights FROM inputs` lists them"
        )
    if chosen.target is None and not mixed_targets:
        counts = Counter(chosen.aims)
        listed = ", ".join(
            f"{db.outputs.text(t, db.classes)} ({n:,})" for t, n in counts.most_common(10)
        )
        raise InputError(
            f"the {len(chosen):,} inputs explain {len(counts)} different targets: {listed}; choose "
            "one with target=, or pass mixed_targets=True if their mixture is what you mean"
        )
    return chosen


def notes_of(db: View, chosen: InputGroup, weight: str, noun: str = "inputs") -> tuple[str, ...]:
    """Say how many inputs of a group are flagged; see :mod:`nrm_graph.propagation.flags`."""
    names = [db._snapshot.entries[i].flags for i in chosen.ids.tolist()]
    return flags.group_notes(chosen.logits.tolist(), names, weight, noun)


def facts_of(
    db: View, chosen: InputGroup, weight: str, conditioned: bool = False
) -> dict[str, Any]:
    """Attributes of a graph: what a positive number speaks for, and how many inputs are flagged."""
    sense = flags.group_meaning(chosen.logits.tolist(), weight)
    if conditioned:
        sense = "positive relevance has the sign of the condition's own"
    return {
        "meaning": flags.reading(sense, chosen.bias),
        "flags": notes_of(db, chosen, weight),
        "reading": chosen.bias,
    }


def _chosen(where: str | None, inputs: object, target: object) -> str:
    options = ((where, f"where {where!r}"), (inputs, "inputs="), (target, f"target={target!r}"))
    criteria = [text for option, text in options if option is not None]
    return " with ".join(criteria) or "default"
