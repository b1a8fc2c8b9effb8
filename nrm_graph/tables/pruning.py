"""Keep the strongest edges of a group; what is left out stays on record, to the last unit.

Pruned relevance goes to the pseudo-unit -3: a row ``(j, -3)`` holds what unit j of the upper
layer lost, ``(-3, i)`` what unit i of the lower one did, and the corner ``(-3, -3)`` minus the
pruned mass, which would be counted twice otherwise.  Row, column and grand totals of the group
are those of the complete table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError, StoreError
from nrm_graph.network import units
from nrm_graph.network.topology import PRUNED
from nrm_graph.tables.edge_block import Block, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from nrm_graph.network.topology import EdgeGroup, Topology
    from nrm_graph.network.units import Partition
    from nrm_graph.tables.edge_block import Values

DEFAULT_ROWS = 250_000
"""Rows of an input of a large network, at most, where nothing else is asked for."""

MAX_TOP = 1 << 62

_SHIFT = 12  # a bucket is an exponent and the first 11 bits of a float32's mantissa


@dataclass(frozen=True)
class Limit:
    """How much of an edge group is kept.

    Attributes
    ----------
    coverage : float
        Share of the sum of |relevance| that the kept edges have together.
    top : int or None
        Number of edges at most.
    """

    coverage: float = 1.0
    top: int | None = None

    @property
    def complete(self) -> bool:
        """Whether everything is kept."""
        return self.coverage >= 1.0 and self.top is None


def check(coverage: float | None, top: int | None, max_edges: object = "auto") -> Limit:
    """Return a limit of valid numbers.

    Parameters
    ----------
    coverage : float or None
        Share of every pair; all of it by default.
    top : int or None
        Edges of every pair.
    max_edges : "auto", "all" or int
        Edges of an input, which neither of the others may stand beside.

    Raises
    ------
    InputError
        If coverage is not in (0, 1] or top or max_edges is not a positive integer.
    """
    named = max_edges in ("auto", "all") if isinstance(max_edges, str) else False
    number = isinstance(max_edges, int) and not isinstance(max_edges, bool) and max_edges >= 1
    if not named and not number:
        raise InputError(
            f"max_edges must be a positive number of edges, 'all' or 'auto', found {max_edges!r}"
        )
    if number and (coverage is not None or top is not None):
        raise InputError(
            f"max_edges={max_edges} bounds all pairs of layers together, coverage= and top= every "
            "pair: give one of them"
        )
    coverage = 1.0 if coverage is None else coverage
    if isinstance(coverage, bool) or not isinstance(coverage, int | float):
        raise InputError(f"coverage must be a number in (0, 1], found {coverage!r}")
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must be above 0 and at most 1, found {coverage}")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise InputError(f"top must be a positive number of edges, found {top!r}")
    if top is not None and top > MAX_TOP:
        raise InputError(f"top must be at most {MAX_TOP:,}, found {top:,}: leave it out for all")
    return Limit(float(coverage), top)


def stored(meta: Mapping[str, Any], topology: Topology) -> dict[tuple[int, int], Limit]:
    """Limits of the pairs (dst layer, src layer) of which a store leaves edges out.

    Parameters
    ----------
    meta : mapping
        Content of ``store.json``.
    topology : Topology
        Layers and edge groups of the store.

    Raises
    ------
    StoreError
        If what the store lists is no such pairs.
    """
    if meta.get("max_edges") is not None:
        return {(group.dst, group.src): Limit(0.0) for group in topology.groups}
    listed = meta.get("pruned")
    if listed is None:  # a store need not say: what it was asked for holds for every pair
        limit = check(meta["coverage"], meta["top"])
        groups = () if limit.complete else topology.groups
        return {(group.dst, group.src): limit for group in groups}
    try:
        return {(int(d), int(s)): check(c, top) for d, s, c, top in listed}
    except (TypeError, ValueError, InputError) as error:
        raise StoreError(
            "store.json is malformed: expected pruned to list [dst, src, coverage, top], found "
            f"{error}; copy the store again"
        ) from None


def table_size(group: EdgeGroup, partitions: Sequence[Partition]) -> int:
    """Most edges that a group can have at a resolution."""
    return min(group.dense_edges, partitions[group.dst].n_units * partitions[group.src].n_units)


def most_rows(
    topology: Topology, partitions: Sequence[Partition], max_edges: str | int, limit: Limit
) -> int | None:
    """Rows of an input at most; None where all edges are kept, or what the limit says.

    ``auto`` keeps all where the network is small to its last neuron, or its table is.

    Raises
    ------
    InputError
        If there are more pairs of layers than rows for them.
    """
    if max_edges == "all" or not limit.complete:
        return None
    asked = DEFAULT_ROWS if isinstance(max_edges, str) else max_edges
    everything = sum(table_size(group, partitions) for group in topology.groups)
    if everything <= asked or (max_edges == "auto" and units.small(topology)):
        return None
    least = 2 * len(topology.groups)
    if asked < least:
        raise InputError(
            f"max_edges={asked} is too few for {len(topology.groups)} pairs of layers, each of "
            f"which has a row for what it leaves out: give at least {least}"
        )
    return asked


def limits(topology: Topology, limit: Limit) -> dict[tuple[int, int], Limit]:
    """Limit of every pair of layers that is not kept whole."""
    return {} if limit.complete else {(g.dst, g.src): limit for g in topology.groups}


def prune(block: Block, limit: Limit) -> Block:
    """Smallest set of the strongest edges of a block that the limit allows, and pruned rows."""
    (pruned,) = select(lambda: [block], {(block.dst_layer, block.src_layer): limit})
    return pruned


def select(
    make: Callable[[], Iterable[Block]], limits: Mapping[tuple[int, int], Limit]
) -> list[Block]:
    """Prune what ``make`` yields in pieces, which it is asked for twice.

    The first round counts and sums |relevance| in buckets of nearly equal size; the second
    keeps what lies above the bucket in which the limit falls, and sorts that bucket alone.
    Memory is bounded by a piece and by what is kept.

    Returns
    -------
    list of Block
        One per group of layers.
    """
    buckets: dict[tuple[int, int], _Buckets] = {}
    for block in make():
        key = (block.dst_layer, block.src_layer)
        buckets.setdefault(key, _Buckets(limits[key])).count(block)
    for bucket in buckets.values():
        bucket.decide()
    for block in make():
        buckets[block.dst_layer, block.src_layer].keep(block)
    return [bucket.finish() for bucket in buckets.values()]


class _Buckets:
    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.counts = np.zeros(1 << (31 - _SHIFT), np.int64)
        self.sums = np.zeros(1 << (31 - _SHIFT))
        self.above: list[Block] = []
        self.edge: list[Block] = []  # what lies in the bucket where the limit falls
        self.lost = {"dst": np.zeros(0), "src": np.zeros(0)}

    @staticmethod
    def _bucket(block: Block) -> npt.NDArray[np.int32]:
        return np.abs(block.relevance).astype(np.float32).view(np.int32) >> _SHIFT

    def count(self, block: Block) -> None:
        bucket = self._bucket(block)
        size = len(self.counts)
        self.counts += np.bincount(bucket, minlength=size)
        self.sums += np.bincount(bucket, np.abs(block.relevance), minlength=size)

    def decide(self) -> None:
        """Find the bucket in which the limit falls, and what it may still give."""
        total = self.sums.sum()
        counts, sums = np.cumsum(self.counts[::-1]), np.cumsum(self.sums[::-1])
        # Rounding must not ask for more than there is; a share of 1 asks for everything.
        share = self.limit.coverage
        goal = share * total * (1 - 1e-12) if share < 1.0 else np.inf
        reached = sums >= goal
        if self.limit.top is not None:
            reached |= counts >= self.limit.top
        place = int(np.argmax(reached)) if reached.any() else len(counts) - 1
        self.at = len(self.counts) - 1 - place
        self.still = goal - (sums[place] - self.sums[self.at])
        self.room: int | None = None
        if self.limit.top is not None:
            self.room = self.limit.top - int(counts[place] - self.counts[self.at])

    def keep(self, block: Block) -> None:
        bucket = self._bucket(block)
        above, here = bucket > self.at, bucket == self.at
        self.above.append(block.where(above))
        self.edge.append(block.where(here))
        self._lose(block.where(~(above | here)))

    def _lose(self, block: Block) -> None:
        for side in ("dst", "src"):
            units = getattr(block, side)
            if not len(units):
                continue
            sums = np.bincount(units, block.relevance)
            known = self.lost[side]
            if len(known) < len(sums):
                known = np.concatenate([known, np.zeros(len(sums) - len(known))])
            known[: len(sums)] += sums
            self.lost[side] = known

    def finish(self) -> Block:
        edge = merged(self.edge)
        order = np.argsort(-np.abs(edge.relevance), kind="stable")
        sums = np.cumsum(np.abs(edge.relevance[order], dtype=np.float64))
        number = int(np.searchsorted(sums, self.still)) + 1 if self.still > 0 else 0
        if self.room is not None:
            number = min(number, self.room)
        chosen = np.zeros(len(edge), bool)
        chosen[order[:number]] = True
        self._lose(edge.where(~chosen))
        strongest = merged([*self.above, edge.where(chosen)])
        return with_pruned(strongest, self.lost["dst"], self.lost["src"])


def with_pruned(block: Block, dst_lost: Values, src_lost: Values) -> Block:
    """Add the rows of the pseudo-unit ``pruned``."""
    j, i = np.flatnonzero(dst_lost), np.flatnonzero(src_lost)
    corner = -float(dst_lost.sum())
    if not len(j) and not len(i):
        return block
    extra = 1 if corner else 0
    dst = np.concatenate([j, np.full(len(i) + extra, PRUNED)])
    src = np.concatenate([np.full(len(j), PRUNED), i, np.full(extra, PRUNED)])
    values = np.concatenate([dst_lost[j], src_lost[i], [corner] * extra])
    values = values.astype(block.relevance.dtype)
    q = None if block.q is None else np.full(len(dst), np.nan, block.q.dtype)
    rows = replace(block, dst=dst, src=src, relevance=values, q=q)
    return merged([block, rows])
