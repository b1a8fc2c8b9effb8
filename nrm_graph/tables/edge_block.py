"""Edges of one layer to one other, as sorted arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.tables.unit_labels import Labels

    Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Block:
    """Edges from the layer ``dst_layer`` to the layer ``src_layer``, of one sample.

    Attributes
    ----------
    dst, src : ndarray of int
        Units within their layers; negative ones are pseudo-units.  Pairs are unique, sorted
        by (dst, src).
    relevance : ndarray of float
        Relevance of the direct step.
    q : ndarray of float or None
        Conditional relevance; None unless both ends are single neurons.
    """

    dst_layer: int
    src_layer: int
    dst: Labels
    src: Labels
    relevance: Values
    q: Any = None

    def __len__(self) -> int:
        """Count the edges."""
        return len(self.dst)

    def where(self, keep: npt.NDArray[np.bool_]) -> Block:
        """Return the edges that a boolean mask keeps."""
        if keep.all():
            return self
        q = None if self.q is None else self.q[keep]
        return replace(
            self, dst=self.dst[keep], src=self.src[keep], relevance=self.relevance[keep], q=q
        )

    def at(self, index: npt.NDArray[np.int64]) -> Block:
        """Return the edges at some places."""
        q = None if self.q is None else self.q[index]
        return replace(
            self, dst=self.dst[index], src=self.src[index], relevance=self.relevance[index], q=q
        )


def merged(blocks: list[Block]) -> Block:
    """Sum the edges of blocks between the same two layers, by (dst, src).

    Blocks that come from one place may be unsorted and hold a pair more than once.
    """
    dst, src, relevance = (
        np.concatenate([getattr(b, k) for b in blocks]) for k in ("dst", "src", "relevance")
    )
    q = None if blocks[0].q is None else np.concatenate([b.q for b in blocks])
    low = int(src.min(initial=0))  # pseudo-units are negative
    width = int(src.max(initial=0)) - low + 1
    key = dst.astype(np.int64) * width + (src - low)  # of pruned rows, dst may be negative too
    if bool((key[1:] > key[:-1]).all()):
        return replace(blocks[0], dst=dst, src=src, relevance=relevance, q=q)
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))[: len(key)]
    relevance, q = relevance[order], None if q is None else q[order]
    if len(first) < len(key):
        relevance = np.add.reduceat(relevance, first)
        q = None if q is None else np.add.reduceat(q, first)
    chosen = order[first]
    return replace(blocks[0], dst=dst[chosen], src=src[chosen], relevance=relevance, q=q)
