"""Measures and graphs that the page asked for, remembered: most clicks ask again of the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from nrm_graph.events.parser import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure

T = TypeVar("T")

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

    def measure(self, db: Database, key: str, target: str = "", event: str = "") -> Measure:
        """Return the exact measure of an input, conditioned on an expression if there is one.

        Raises
        ------
        NrmError
            As :meth:`Database.measure` and :meth:`Measure.given` do.
        """
        whole = self.remembered(
            ("measure", str(db.path), key, target),
            lambda: db.measure(key, target=_target(target)),
        )
        if not event.strip():
            return whole
        return self.remembered(
            ("given", str(db.path), key, target, event), lambda: whole.given(parse(event))
        )


def _target(text: str) -> Any:
    """Target as the address writes it: a number, or the text of weights."""
    return None if not text else int(text) if text.isdigit() else text
