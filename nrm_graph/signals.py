"""SIGTERM and SIGHUP end a run as Ctrl-C does: what is computed is committed first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """A signal asked the process to end: raised where Ctrl-C raises ``KeyboardInterrupt``.

    Where nothing catches it, the interpreter ends with 128 and the signal's number as exit code.

    Attributes
    ----------
    signal : signal.Signals
        Which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"ended by {self.signal.name}"


@dataclass
class _Handler:
    """What a signal does meanwhile, and what it did before."""

    number: int
    before: Any
    process: int = field(default_factory=os.getpid)

    def __call__(self, number: int, frame: object) -> None:
        if self.process != os.getpid():  # a forked process ends as it would have without us
            signal.signal(number, self.before)
            signal.raise_signal(number)
            return
        # The next signal ends the process at once: a commit that it cuts off leaves a sound store.
        for other in (*ENDING, signal.SIGINT):
            if signal.getsignal(other) is not signal.SIG_IGN:
                signal.signal(other, signal.SIG_DFL)
        raise Terminated(number)


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`Terminated`, and a second signal end the process.

    In the main thread alone, for others get no signals, and not where a signal is ignored, as
    SIGHUP is under nohup.  At the end everything is as it was; a handler of before is called then,
    if its signal came.
    """
    handlers = []
    if threading.current_thread() is threading.main_thread():
        handlers = [_Handler(number, signal.getsignal(number)) for number in ENDING]
        # None: of a handler that Python has not installed and cannot install again.
        handlers = [
            handler
            for handler in handlers
            if handler.before not in (signal.SIG_IGN, None)
            and not isinstance(handler.before, _Handler)
        ]
    interrupt = signal.getsignal(signal.SIGINT)
    came: int | None = None
    try:
        for handler in handlers:
            signal.signal(handler.number, handler)
        yield
    except Terminated as ended:
        came = ended.signal
        raise
    finally:
        for handler in handlers:
            signal.signal(handler.number, handler.before)
        if handlers and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, interrupt)
        for handler in handlers:
            if handler.number == came and callable(handler.before):
                signal.raise_signal(handler.number)


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Undo what another library makes of the handlers meanwhile."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
