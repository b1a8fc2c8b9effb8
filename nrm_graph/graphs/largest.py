"""The largest of many values, in an order that nothing else decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


def check_top(top: object) -> None:
    """Refuse what is no number of edges.

    Raises
    ------
    InputError
        If it is not an integer of at least 1.
    """
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise InputError(f"top must be at least 1, found {top!r}")


def largest(
    sizes: npt.NDArray[Any], top: int, ties: Sequence[npt.NDArray[Any]] = ()
) -> npt.NDArray[np.int64]:
    """Return the places of the largest values, the largest first.

    Parameters
    ----------
    sizes : ndarray, (N,)
        Not negative.
    top : int
        Number of places at most.
    ties : sequence of ndarray, (N,)
        Of equal values the one with the smaller of these comes first, then the earlier one.
    """
    # A sort of millions takes ten times as long.  The maxima of blocks are members, so that the
    # last of their strongest is at most that of all: few values are left to choose from.
    least = 0
    maxima = sizes[: len(sizes) // 64 * 64].reshape(64, -1).max(axis=0)
    if len(maxima) > top:
        least = np.partition(maxima, -top)[-top]
    places = np.flatnonzero(sizes >= least)
    if len(places) > top:
        places = places[sizes[places] >= np.partition(sizes[places], -top)[-top]]
    order = np.lexsort([*(tie[places] for tie in reversed(ties)), -sizes[places]])
    return places[order][:top]
