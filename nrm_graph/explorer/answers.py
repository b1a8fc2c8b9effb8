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

REMEMBERED = 24
"""Answers that are kept; the activations of a measure are kept with it."""


@dataclass(frozen=True)
class Answers:
    """What was computed for the page, the latest last."""

    _kept: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def remembered(self, name: Hashable, compute: Callable[[], T]) -> T:
        """Return what has this name, computed where it is not there; errors are not kept."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]  # type: ignore[no-any-return]
        value = compute()
        with self._lock:
            self._kept[name] = value
            while len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)
        return value

    def knows(self, name: Hashable) -> bool:
        """Whether what has this name is remembered."""
        with self._lock:
            return name in self._kept

    def measure(
        self, db: Database, key: str, target: str = "", event: str = "", by: str = ""
    ) -> Measure:
        """Return the exact measure of an input, conditioned on an expression if there is one.

        Raises
        ------
        NrmError
            As :meth:`Database.measure`, :meth:`Measure.with_units` and :meth:`Measure.given` do.
        """
        stored = self.remembered(
            ("measure", str(db.path), key, target),
            lambda: db.measure(key, target=read_target(target, db.classes, db.outputs)),
        )
        kind = by or usual_units(db)
        whole = stored
        if kind != STORED:
            whole = self.remembered(
                ("units", str(db.path), key, target, kind), lambda: stored.with_units(kind)
            )
        if not event.strip():
            return whole
        return self.remembered(
            ("given", str(db.path), key, target, kind, event), lambda: whole.given(parse(event))
        )


def usual_units(db: Database) -> str:
    """Return the units that a picture shows: channels of a network that has them."""
    return "channel" if "channel" in automatic(db.topology) else STORED
