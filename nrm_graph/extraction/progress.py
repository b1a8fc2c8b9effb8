"""A bar over the inputs of an extraction, and how long they will take."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """A bar that counts inputs, and says after the first batch how long all of them will take.

    Parameters
    ----------
    total : int or None
        Number of inputs, where it is known.
    shown : bool
        Whether anything is shown.
    """

    def __init__(self, total: int | None, shown: bool) -> None:
        self.bar = tqdm(total=total, unit=" inputs", disable=None if shown else True)
        self._told = not shown

    def done(self, count: int, seconds: float | None = None) -> None:
        """Count inputs, and the seconds that they took where they are a whole batch."""
        self.bar.update(count)
        if seconds is not None and not self._told:
            tqdm.write(_pace(seconds, count, self.bar.total), sys.stderr)
            self._told = True


def _pace(seconds: float, inputs: int, total: int | None) -> str:
    """How long it will take, as the first batch went."""
    each = seconds / inputs
    if total is None:
        return f"about {each:.2g} s an input"
    return f"about {each:.2g} s an input, {each * total / 60:,.1f} minutes for {total:,}"
