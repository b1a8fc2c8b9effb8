"""Which stored pair of a key and a target is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.network.weighted_targets import order

if TYPE_CHECKING:
    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View


def pair(db: View, key: str | int, target: Sought | None = None) -> int:
    """Input id of a key and target, which need not be named where there is one.

    Raises
    ------
    InputError
        If there is no such pair, or several.
    """
    identities, entries = db._matching(key), db._snapshot.entries
    if target is not None:
        aim = db.outputs.sought(target)
        identities = tuple(i for i in identities if entries[i].aim == aim)
    if len(identities) != 1:
        aims = sorted((entries[i].aim for i in db._matching(key)), key=order)
        listed = ", ".join(db.outputs.text(aim, db.classes) for aim in aims)
        raise InputError(
            f"input {key!r} has the targets {listed}: name one of them as target; weights such "
            "as {8: 1.0} (8=1 on the command line) explain any output"
        )
    return identities[0]


def pair_or_weights(
    db: View, key: str | int, target: Sought | None
) -> tuple[int, Mapping[Any, float] | None]:
    """Input id to measure, and the weights to explain where they are not those of the pair.

    Raises
    ------
    InputError
        As :func:`pair`, but that weights need not be stored.
    """
    if not isinstance(target, Mapping):
        return pair(db, key, target), None
    identities = db._matching(key)
    try:
        aim = db.outputs.sought(target)
    except InputError:  # the measure itself says what is wrong, if anything
        return identities[0], target
    stored = [i for i in identities if db._snapshot.entries[i].aim == aim]
    # All targets of a key have one input.
    return (stored[0], None) if stored else (identities[0], target)
