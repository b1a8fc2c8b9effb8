"""What is computed for the page now: one call at a time, and of a tab only the newest."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from nrm_graph.progress import Ended, Watch, watched

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True)
class Jobs:
    """The newest call of every tab that waits or runs."""

    _newest: dict[tuple[str, str], Watch] = field(default_factory=dict)
    _begun: dict[tuple[str, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self, tab: str, compute: Callable[[], T], part: str = "") -> T:
        """Compute; an older call of the same tab ends at its next layer.

        A call for a ``part`` of the page ends older ones for that part alone.

        Raises
        ------
        Ended
            If a newer call of the tab came meanwhile, or all were ended.
        """
        watch, name = Watch(), (tab, part)
        with self._lock:
            if self._over.is_set():
                raise Ended
            for other, older in self._newest.items():
                if other[0] == tab and part in ("", other[1]):
                    older.ended = True
            self._newest[name], self._begun[name] = watch, time.monotonic()
        try:
            # Measures and DuckDB are asked by one thread at a time.
            with self._turn:
                if watch.ended:
                    raise Ended
                with watched(watch):
                    return compute()
        finally:
            with self._lock:
                if self._newest.get(name) is watch:
                    del self._newest[name], self._begun[name]

    def end(self) -> None:
        """End every call at its next layer, and take no more."""
        with self._lock:
            self._over.set()
            for watch in self._newest.values():
                watch.ended = True

    def progress(self, tab: str) -> dict[str, Any]:
        """Return how far the newest call of a tab has come, but for parts; empty where none is."""
        with self._lock:
            watch, begun = self._newest.get((tab, "")), self._begun.get((tab, ""))
        if watch is None or begun is None:
            return {}
        seconds = round(time.monotonic() - begun, 1)
        if (meter := watch.progress) is None:
            return {"what": "computing", "seconds": seconds}
        return {
            "what": meter.what,
            "done": meter.done,
            "total": meter.total,
            "unit": meter.unit,
            "seconds": seconds,
        }
