"""Whether a bar over inputs is shown."""

from __future__ import annotations

import sys


def hidden(progress: bool) -> bool | None:
    """Return what tqdm takes as ``disable``: None asks it to draw on a terminal alone."""
    return None if progress and sys.stderr.isatty() else True
