"""Groups of inputs that are compared: which belong together, and what to know of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.network.weighted_targets import order
from nrm_graph.store.input_group import InputGroup, notes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nrm_graph.network.weighted_targets import Aim
    from nrm_graph.store.view import View


def aims_of(g: InputGroup) -> tuple[Aim, ...]:
    """Targets that a group explains, or the texts of their weights."""
    return tuple(sorted(set(g.aims), key=order))


def second_store(db: View, b: str | None, other: View | None, tables: str | None) -> View:
    """Store of the second group.

    Raises
    ------
    InputError
        If both or none of a second group and another store are given.
    """
    if (b is None) == (other is None):
        found = "neither" if b is None else "both"
        raise InputError(
            f"expected a second group, as in db.contrast(a, b), or other=, found {found}"
        )
    if other is not None and tables is not None:
        raise InputError("other= compares the stores' own tables: leave tables= out")
    if other is not None and not hasattr(other, "topology"):
        raise InputError(f"other takes an opened store, of ng.open(path), found {other!r:.100}")
    return db if other is None else other


def pairing(a: InputGroup, b: InputGroup) -> bool:
    """Whether the groups are of the same keys; anything between that and none is refused."""
    ours, theirs = set(a.keys), set(b.keys)
    both = ours & theirs
    if both and ours != theirs:
        raise InputError(
            f"{len(both):,} of {len(ours | theirs):,} keys are in both groups, such as "
            f"{min(both)!r}: expected none (separate groups) or all of them (pairs); let the "
            "conditions exclude each other"
        )
    return bool(both)


def same_inputs(a: InputGroup, b: InputGroup, notes: list[str]) -> tuple[InputGroup, InputGroup]:
    """Keep the keys and targets that are in both groups; count the others in a note.

    Raises
    ------
    InputError
        If there are none.
    """
    names = [list(zip(g.keys, g.aims, strict=True)) for g in (a, b)]
    common = set(names[0]) & set(names[1])
    if not common:
        same = set(a.keys) & set(b.keys)
        hint = "give target=, or extract both stores with the same one" if same else "see db.keys"
        raise InputError(
            f"the stores have {len(same):,} keys in common, and no key whose target is the same in "
            f"both: {hint}"
        )
    kept = [
        g.take(np.flatnonzero([name in common for name in own]))
        for g, own in zip((a, b), names, strict=True)
    ]
    for g, own, place in zip((a, b), names, ("first", "second"), strict=True):
        if left := len(set(own) - common):
            notes.append(
                f"{left:,} of the {len(g):,} inputs of the {place} store have no partner of the "
                "same key and target, and are left out"
            )
    return kept[0], kept[1]


def differences(db: View, other: View, apart: tuple[str, ...]) -> list[str]:
    """Say how two stores differ beside the network's weights."""
    notes = []
    if apart:
        listed = ", ".join(apart[:10]) + (f" and {len(apart) - 10:,} more" * (len(apart) > 10))
        notes.append(
            f"{len(apart):,} layers are in one network alone, or of other units there, and are not "
            f"compared: {listed}"
        )
    if db.meta["composite"] != other.meta["composite"]:
        notes.append("the stores were made with different rules: a difference may be one of rules")
    return notes


def flagged(
    stores: tuple[View, View], groups: tuple[InputGroup, InputGroup], weight: str
) -> Iterator[str]:
    """Say how many inputs of each group are flagged."""
    for db, g, name in zip(stores, groups, ("first", "second"), strict=True):
        yield from notes_of(db, g, weight, f"inputs of the {name} group")


def comparability(
    db: View, a: InputGroup, b: InputGroup, sizes: list[int], unknown: int
) -> list[str]:
    """Say what to know before reading the numbers."""
    notes = []
    if a.target is None or a.target != b.target:
        outputs = [", ".join(map(db.outputs.text, aims_of(g)[:5])) for g in (a, b)]
        notes.append(
            f"the groups explain different outputs, {outputs[0]} and {outputs[1]}: a difference "
            "may be one of the questions; target= fixes one for both"
        )
    if min(sizes) < 2:
        notes.append(
            f"no p-values: the groups have {sizes[0]:,} and {sizes[1]:,} keys, and a test needs "
            "at least 2 in each"
        )
    if unknown:
        notes.append(
            f"{unknown:,} edges are left out: the store prunes their pair of layers, and some "
            "input has no row of them, which is unknown and not zero; exact=True computes them"
        )
    return notes
