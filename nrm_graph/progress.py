"""How far a long call has come: a bar where someone watches, a line every half minute elsewhere.

Nothing is shown of a call before its pace says that more than five seconds lie ahead, and of one
inside of another nothing at all.  No thread watches: whoever computes says how far it has come.
All goes to standard error; ``TQDM_DISABLE=1`` silences it.

A server that computes for a page looks at a call from another thread, and may end it, by
:class:`Watch`: whoever computes looks at it at every layer of a pass.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import warnings
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

T = TypeVar("T")

LONG = 5.0
"""Seconds that must lie ahead of a call that is told of."""

EVERY = 30.0
"""Seconds between lines where standard error is redirected."""

_clock = time.monotonic
_current: ContextVar[Progress | None] = ContextVar("progress", default=None)
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


class Ended(BaseException):
    """Who watches a call has no use for it any more; no error, and not to be caught as one."""


@dataclass(eq=False)
class Watch:
    """What another thread sees of a call that runs under :func:`watched`.

    Attributes
    ----------
    progress : Progress or None
        The outermost that runs, which may say how far the call has come.
    ended : bool
        True ends the call, at the next layer of a pass or while a query runs: there
        :class:`Ended` is raised.
    """

    progress: Progress | None = None
    ended: bool = False


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Let a call be looked at from another thread, and ended there."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
        watch.progress = None


def look() -> bool:
    """Whether this call is watched.

    Raises
    ------
    Ended
        If it is no longer wanted.
    """
    watch = _watch.get()
    if watch is not None and watch.ended:
        raise Ended
    return watch is not None


class Progress:
    """Steps of one call, shown once they turn out to take long.

    Parameters
    ----------
    what : str
        The call, in a few words.
    total : int, optional
        Number of steps, where it is known; it may be set later.
    unit : str
        What is counted, in the plural.
    shown : bool
        Whether anything may be shown.

    Examples
    --------
    >>> with Progress("inputs to verify", 3, "inputs") as progress:
    ...     for _ in range(3):
    ...         progress.advance()
    >>> progress.done
    3
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "steps", shown: bool = True
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._shown = shown
        self._display: _Display | None = None
        self._token: Token[Progress | None] | None = None

    def __enter__(self) -> Self:
        outermost = _current.get() is None
        self._shown = self._shown and outermost
        self._token = _current.set(self)
        self.began = self._before = _clock()
        if outermost and (watch := _watch.get()) is not None:
            watch.progress, self._shown = self, False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._token is not None
        _current.reset(self._token)
        if self._display is not None:
            self._display.close(kind is None)
            self._display = None

    def advance(self, count: int = 1) -> None:
        """Count steps that are done."""
        look()
        self.done += count
        if not self._shown:
            return
        now = _clock()
        latest, self._before = (now - self._before) / count if count else 0.0, now
        if self._display is not None:
            self._display.update()
        elif now - self.began > LONG or self.done > count:
            self._show_if_long(now, latest)

    def expect(self, count: int) -> None:
        """Add steps that turn out to be necessary to the total."""
        self.total = (self.total or 0) + count

    def over(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield steps, and count each when the next is asked for."""
        for step in steps:
            yield step
            self.advance()

    def tick(self) -> None:
        """Let time pass inside of a step."""
        if not self._shown:
            return
        now = _clock()
        if self._display is not None:
            self._display.update()
        elif now - self.began > LONG:
            self._show_if_long(now, None)

    @property
    def seconds(self) -> float:
        """How long the call has taken."""
        return _clock() - self.began

    def opening(self) -> str:
        """Return what to say before anything else; empty for nothing."""
        return ""

    def _show_if_long(self, now: float, latest: float | None) -> None:
        """Show it where more than LONG lies ahead, as far as one can tell."""
        if self.total is not None and self.done:
            each = (now - self.began) / self.done
            if now - self.began <= LONG and latest is not None:
                each = min(each, latest)  # the first steps prepare what all of them need
            if each * (self.total - self.done) <= LONG:
                return
        elif now - self.began <= LONG:
            return
        self._display = _display(self)
        if self._display is None:
            self._shown = False
            return
        if opening := self.opening():
            self._display.say(opening)
        self._display.update()


def current() -> Progress | None:
    """Progress of the call that runs now, if any is kept of it."""
    return _current.get()


def uncounted(count: int) -> None:
    """Take the place of :meth:`Progress.advance` where nobody counts."""


class _Display(Protocol):
    """What shows progress."""

    def say(self, text: str) -> None:
        """Print some lines."""

    def update(self) -> None:
        """Show how far the call has come."""

    def close(self, whole: bool) -> None:
        """End, when all is done or something was raised."""


def _display(progress: Progress) -> _Display | None:
    """Return what shows progress here; None in a worker of Ray, and where nobody listens."""
    if sys.stderr is None or os.environ.get("TQDM_DISABLE") or _in_worker():
        return None
    # The kernel of a notebook gives standard error a stream of its own.
    notebook = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
    return _Bar(progress) if notebook or sys.stderr.isatty() else _Lines(progress)


def _in_worker() -> bool:
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


@functools.cache
def _bars() -> Any:
    """Bars that leave no thread and no lock between processes behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without widgets gets the plain bar
        from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # of the thread that would redraw bars

    Bar.set_lock(threading.RLock())
    return Bar


class _Bar:
    """A bar of tqdm."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar = _bars()(
            total=progress.total,
            desc=progress.what,
            unit=f" {progress.unit}",
            delay=1e-9,  # else it is drawn at 0 first
        )
        self._bar.delay = 0
        # It began before anyone knew that it would take long.
        seconds = progress.seconds
        self._bar.start_t -= seconds
        self._bar.last_print_t -= seconds

    def say(self, text: str) -> None:
        self._bar.write(text, sys.stderr)

    def update(self) -> None:
        self._bar.total = self._progress.total
        if not self._bar.update(self._progress.done - self._bar.n):
            self._bar.refresh()

    def close(self, whole: bool) -> None:
        self._bar.close()


class _Lines:
    """A line now and then, for a file or a pipe."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: float | None = None
        self._before = (0.0, 0)  # seconds and steps of the line before

    def say(self, text: str) -> None:
        # Who reads it may have gone: that ends no computation.
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)

    def update(self) -> None:
        progress, seconds = self._progress, self._progress.seconds
        if self._last is not None and seconds - self._last < EVERY:
            return
        (before, done), self._before = self._before, (seconds, progress.done)
        if done == progress.done:
            before = done = 0  # nothing was completed since: the pace of the whole
        self._last, ahead = seconds, ""
        if progress.total is not None and progress.done:
            each = (seconds - before) / (progress.done - done)
            ahead = f", about {duration(each * (progress.total - progress.done))} to go"
        self.say(f"{progress.what}: {self._counted()} in {duration(seconds)}{ahead}")

    def close(self, whole: bool) -> None:
        if whole:
            self.say(
                f"{self._progress.what}: {self._counted()} in {duration(self._progress.seconds)}"
            )

    def _counted(self) -> str:
        progress = self._progress
        of = "" if progress.total is None else f" of {progress.total:,}"
        return f"{progress.done:,}{of} {progress.unit}"


def duration(seconds: float) -> str:
    """Seconds in words.

    Examples
    --------
    >>> duration(41.7), duration(150), duration(10_000)
    ('42 s', '2.5 min', '2.8 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
