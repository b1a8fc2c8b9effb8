"""Measures and graphs that the page asked for, remembered: most clicks ask again of the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from nrm_graph.events.parser import parse
from nrm_graph.network.target_texts import read_target
from nrm_graph.network.units import automatic

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure

T = TypeVar("T")

STORED = "stored"
"""In the place of a kind of units: those that the store's tables have."""

INPUTS = 4
"""Inputs of which answers are kept, and with them the activations, in two precisions."""
REMEMBERED = 48
"""Answers that are kept of an input, and of the stores as a whole."""

Owner = tuple[str, str, str]
"""Store, key and target of an input."""


@dataclass(frozen=True)
class Answers:
    """What was computed for the page: of the stores as a whole, and of the latest inputs."""

    _whole: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    _inputs: OrderedDict[Owner, OrderedDict[Hashable, Any]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def remembered(self, name: Hashable, compute: Callable[[], T], of: Owner | None = None) -> T:
        """Return what has this name, computed where it is not there; errors are not kept.

        ``of`` names the input whose measure it holds, directly or not.
        """
        with self._lock:
            kept = self._of(of)
            if name in kept:
                kept.move_to_end(name)
                return kept[name]  # type: ignore[no-any-return]
        value = compute()
        with self._lock:
            kept = self._of(of)
            kept[name] = value
            while len(kept) > REMEMBERED:
                kept.popitem(last=False)
        return value

    def knows(self, name: Hashable, of: Owner | None = None) -> bool:
        """Whether what has this name is remembered."""
        with self._lock:
            return name in self._of(of)

    def _of(self, owner: Owner | None) -> OrderedDict[Hashable, Any]:
        """Return the answers of an input, which becomes the latest."""
        if owner is None:
            return self._whole
        kept = self._inputs.setdefault(owner, OrderedDict())
        self._inputs.move_to_end(owner)
        while len(self._inputs) > INPUTS:
            self._inputs.popitem(last=False)
        return kept

    def measure(
        self, db: Database, key: str, target: str = "", event: str = "", by: str = ""
    ) -> Measure:
        """Return the exact measure of an input, conditioned on an expression if there is one.

        Raises
        ------
        NrmError
            As :meth:`Database.measure`, :meth:`Measure.with_units` and :meth:`Measure.given` do.
        """
        owner = (str(db.path), key, target)
        stored = self.remembered(
            "measure",
            lambda: db.measure(key, target=read_target(target, db.classes, db.outputs)),
            owner,
        )
        kind = by or usual_units(db)
        whole = stored
        if kind != STORED:
            whole = self.remembered(("units", kind), lambda: stored.with_units(kind), owner)
        if not event.strip():
            return whole
        return self.remembered(("given", kind, event), lambda: whole.given(parse(event)), owner)


def usual_units(db: Database) -> str:
    """Return the units that a picture shows: channels of a network that has them."""
    return "channel" if "channel" in automatic(db.topology) else STORED
