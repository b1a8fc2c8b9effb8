"""Groups of inputs: whose measures a circuit mixes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.store.statement import chosen_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.database import Database

WEIGHTS = ("unit", "logit")


@dataclass(frozen=True, eq=False, repr=False)
class Group:
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
        Flat index of the explained output.
    logits : ndarray of float64, (N,)
        Its value.
    """

    where: str | None
    ids: npt.NDArray[np.int64]
    keys: tuple[str, ...]
    labels: tuple[str | None, ...]
    targets: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        chosen = "all" if self.where is None else f"where {self.where}"
        return f"<Group of {len(self):,} inputs, {chosen}>"

    @property
    def target(self) -> int | None:
        """The one target of all inputs, or None where they differ."""
        return int(self.targets[0]) if len(np.unique(self.targets)) == 1 else None

    def take(self, places: npt.NDArray[np.intp]) -> Group:
        """Keep the inputs at some places, in that order."""
        return replace(
            self,
            ids=self.ids[places],
            keys=tuple(self.keys[i] for i in places),
            labels=tuple(self.labels[i] for i in places),
            targets=self.targets[places],
            logits=self.logits[places],
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
    db: Database,
    where: str | None = None,
    *,
    inputs: Sequence[str | int] | None = None,
    target: int | tuple[Any, ...] | None = None,
    mixed_targets: bool = False,
) -> Group:
    """Choose inputs of a store.

    Parameters
    ----------
    db : Database
        The store.
    where : str, optional
        SQL condition over ``inputs``; all by default.
    inputs : sequence of key or input_id, optional
        Of the chosen inputs only these.
    target : int or tuple, optional
        Keep the pairs of this target: a flat index, or a place such as (position, class).
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
    query = "SELECT input_id, key, label, target, logit FROM inputs"
    if where is not None:
        query += f" WHERE input_id IN ({chosen_inputs(where)})"
    rows = db.sql(f"{query} ORDER BY input_id", inputs=inputs).to_arrow_table()
    if target is not None:
        place = db.outputs.index(target) if isinstance(target, tuple) else target
        if isinstance(place, bool) or not isinstance(place, int | np.integer):
            raise InputError(f"target must be an output's number or place, found {target!r}")
        rows = rows.filter(np.asarray(rows["target"]) == place)
    if not len(rows):
        raise InputError(
            f"no input is chosen by {_chosen(where, inputs, target)}: {db.path} holds "
            f"{len(db):,}; `SELECT key, label, target FROM inputs` lists them"
        )
    found = Group(
        where,
        rows["input_id"].to_numpy(),
        tuple(rows["key"].to_pylist()),
        tuple(rows["label"].to_pylist()),
        rows["target"].to_numpy().astype(np.int64),
        rows["logit"].to_numpy().astype(np.float64),
    )
    if found.target is None and not mixed_targets:
        counts = Counter(found.targets.tolist())
        listed = ", ".join(f"{db.outputs.text(t)} ({n:,})" for t, n in counts.most_common(10))
        raise InputError(
            f"the {len(found):,} inputs explain {len(counts)} different targets: {listed}; choose "
            "one with target=, or pass mixed_targets=True if their mixture is what you mean"
        )
    return found


def _chosen(where: str | None, inputs: object, target: object) -> str:
    asked = [] if where is None else [f"where {where!r}"]
    asked += [] if inputs is None else ["inputs="]
    asked += [] if target is None else [f"target={target!r}"]
    return " with ".join(asked) or "default"
