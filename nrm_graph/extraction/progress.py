"""Progress over the inputs of an extraction: how large the store will be, how long it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable


class InputProgress(Progress):
    """Counts inputs; of a long extraction it first says how long all of them will take.

    Parameters
    ----------
    total : int or None
        Number of inputs, where it is known.
    sizes : callable
        Says what an input will take of the disk.
    shown : bool
        Whether anything may be shown.
    """

    def __init__(self, total: int | None, sizes: Callable[[], str], shown: bool) -> None:
        super().__init__("extract", total, "inputs", shown)
        self._sizes = sizes
        self._pace: str | None = None

    def explained(self, count: int, seconds: float | None = None) -> None:
        """Count inputs, and the seconds that they took where they are a whole batch."""
        if seconds is not None:
            self._pace = _pace(seconds, count, self.total)
        self.advance(count)

    def opening(self) -> str:
        """Return the size of an input's tables, and the pace so far."""
        return "\n".join(filter(None, (self._sizes(), self._pace)))


def _pace(seconds: float, inputs: int, total: int | None) -> str:
    """How long it will take, as a batch went."""
    each = seconds / inputs
    if total is None:
        return f"about {each:.2g} s an input"
    return f"about {each:.2g} s an input, {each * total / 60:,.1f} minutes for {total:,}"
