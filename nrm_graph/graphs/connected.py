r"""Which edges make a connected graph: every node is reached, and leads on to an end.

The strongest edges alone stand wherever relevance happens to be large, in islands.  Here edges are
taken one after another, each with the edges that link it to what is there: upwards on the way that
most of its relevance came from the target, downwards on the way that most goes to an end, until a
node that is there.  Most is the product of each node's shares, edge by edge, whatever their signs.
So a graph of fewer edges is part of that of more.

The edges out of a layer are taken from the strongest down, and the layers keep pace by rank x
(share + 1/4), where share is what the edges of the layer up to that rank hold of its sum of
\|relevance\|.  A layer of which few edges hold nearly everything thus gets fewer edges than one of
which many hold little each, but no less than about a fifth as many: neither ten outputs nor a
hundred thousand pixels take the whole graph.  For each of its ends that is not there yet, an edge
has its turn four times later: edges between the units that are there come first, rather than ever
more units with one edge each.

A pseudo-unit (bias, stabilizer, remainder, what was pruned) is an end.  Its edges come after those
between units, but for the strongest of a unit from which no other way leads to an end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.graphs.largest import largest
from nrm_graph.network.topology import PSEUDO_UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence, Set

    from numpy.typing import NDArray

_PACE = 0.25
_LATER = 4.0
_PSEUDO = -min(PSEUDO_UNITS)


@dataclass(frozen=True, eq=False)
class Ends:
    """Both ends of every edge, and how strong it is.

    Attributes
    ----------
    dst_layer, dst_unit, src_layer, src_unit : ndarray of int, (E,)
        Where it comes from, nearer the target, and where it leads, nearer the input: layers are
        numbered in execution order, pseudo-units below zero.
    size : ndarray of float, (E,)
        Its abs(relevance); edges of 0 are none.
    """

    dst_layer: NDArray[np.integer]
    dst_unit: NDArray[np.integer]
    src_layer: NDArray[np.integer]
    src_unit: NDArray[np.integer]
    size: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Choice:
    """Edges of a connected graph.

    Attributes
    ----------
    places : ndarray of int64
        Where they stand, the strongest first; of equal ones that with the smaller ends.
    cut : frozenset of (layer, unit)
        Units that lead nowhere: the budget ends there, or there are no edges that lead on.
    """

    places: NDArray[np.int64]
    cut: frozenset[tuple[int, int]]


def connected(ends: Ends, pairs: Iterable[tuple[int, int]], top: int) -> Choice:
    """Choose at most so many edges that are reached from the target and lead to ends.

    Parameters
    ----------
    ends : Ends
        All edges.
    pairs : iterable of (dst, src)
        Layers that read each other.  The target's units are those of the layers that no other one
        reads among those that have edges; walks end at the layers that read none.
    top : int
        Number of edges.  What is chosen is part of what is chosen with more; with as many as there
        are it is every edge that can be reached.  It may be fewer: an edge comes with those that
        link it, or not at all.

    Notes
    -----
    The edges make one component, where the target is one unit.  Its several units count as joined.
    An edge that no way from the target reaches, such as one of which a store holds nothing above,
    is never chosen.  Time is linear in the number of edges, but for sorting those of each layer
    that come into question, at most 80 times ``top``.
    """
    sources = defaultdict(list)
    for dst, src in pairs:
        sources[dst].append(src)
    net = _Net.of(ends, sources)
    chosen = net.grown(top)
    by_size = largest(net.size[chosen], len(chosen), [net.dst[chosen], net.src[chosen]])
    chosen = chosen[by_size]
    return Choice(net.places[chosen], net.cut(chosen))


def _tops(present: Iterable[int], sources: dict[int, list[int]]) -> list[int]:
    """Return the layers, of those present, that no other one reads, directly or not."""
    left = set(present)
    tops: list[int] = []
    below: set[int] = set()
    for layer in range(max(left | sources.keys(), default=-1), -1, -1):
        if layer in left and layer not in below:
            tops.append(layer)
        if layer in left or layer in below:
            below.update(sources.get(layer, ()))
    return tops


@dataclass(frozen=True, eq=False)
class _Net:
    """The edges that can be reached, between numbered nodes, by falling layer of dst.

    ``leads`` says of edges between units that they lead to an end, ``absorbs`` of the others that
    they lead to a pseudo-unit.  ``into`` and ``out_of`` are the edge that leads to a node and on
    from it on the best way, or -1; a way that ends at no pseudo-unit goes before any other.
    """

    places: NDArray[np.int64]
    layer: NDArray[np.int16]  # of dst
    dst: NDArray[np.int32]
    src: NDArray[np.int32]
    size: NDArray[np.floating]
    first: NDArray[np.int64]  # number of the first node of every layer
    tops: list[int]
    is_end: NDArray[np.bool_]
    leads: NDArray[np.bool_]
    absorbs: NDArray[np.bool_]
    into: NDArray[np.int64]
    out_of: NDArray[np.int64]

    @classmethod
    def of(cls, ends: Ends, sources: dict[int, list[int]]) -> _Net:
        columns = ((ends.dst_layer, ends.dst_unit), (ends.src_layer, ends.src_unit))
        widths = np.zeros(max(int(layer.max(initial=-1)) for layer, _ in columns) + 1, np.int64)
        for layer, unit in columns:
            _raise_at(widths, layer, unit.astype(np.int64) + (1 + _PSEUDO))
        first = np.concatenate([[0], np.cumsum(widths)])
        # Nothing leads on from a pseudo-unit.
        places = np.flatnonzero((ends.size > 0) & (ends.dst_unit >= 0))
        layers = ends.dst_layer[places].astype(np.int16)
        order = np.argsort(-layers, kind="stable")
        places, layers = places[order], layers[order]
        del order
        dst, src = (_numbers(layer[places], unit[places], first) for layer, unit in columns)
        present = np.zeros(len(widths), bool)
        present[layers] = present[ends.src_layer[places]] = True
        tops = _tops(np.flatnonzero(present).tolist(), sources)
        reached = np.zeros(first[-1], bool)
        for top in tops:
            reached[first[top] : first[top + 1]] = True
        for block in _blocks(layers):
            reached[src[block][reached[dst[block]]]] = True
        if not (here := reached[dst]).all():
            places, dst, src, layers = places[here], dst[here], src[here], layers[here]
        absorbs, size = ends.src_unit[places] < 0, ends.size[places]
        is_end = np.zeros(first[-1], bool)
        for bottom in np.flatnonzero(widths).tolist():
            if not sources.get(bottom):
                is_end[first[bottom] : first[bottom + 1]] = True
        onward = is_end.copy()
        onward[src[absorbs]] = False
        ending = onward.copy()
        ending[dst[absorbs]] = True
        for block in reversed(_blocks(layers)):
            for ways in (onward, ending):
                ways[dst[block][ways[src[block]] & ~absorbs[block]]] = True
        leads, further = ending[src] & ~absorbs, onward[src] & ~absorbs
        blocks, every = _blocks(layers), np.ones(len(src), bool)
        at_top, at_end = (np.full(len(reached), -np.inf) for _ in range(2))
        for top in tops:
            at_top[first[top] : first[top + 1]] = 0.0
        at_end[is_end] = 0.0
        into = _best(src, _ways(src, dst, size, every, blocks, at_top), dst, every, first[-1])
        down = _ways(dst, src, size, further, blocks[::-1], at_end)
        out_of = np.full(len(reached), -1)
        for value, kind in ((down, further), (size, absorbs), (size, leads)):
            out_of = np.where(out_of < 0, _best(dst, value, src, kind, first[-1]), out_of)
        return cls(
            places, layers, dst, src, size, first, tops, is_end, leads, absorbs, into, out_of
        )

    def _candidates(self, top: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the edges that lead to an end, as many as may be needed, by their turn."""
        # An edge of a higher rank never has its turn before ``top`` of its layer had theirs.
        most = math.ceil(top * _LATER**2 * (1 + _PACE) / _PACE)
        members, turns = [np.zeros(0, np.int64)], [np.zeros(0)]
        for block in _blocks(self.layer):
            edges = block.start + np.flatnonzero(self.leads[block])
            total = self.size[edges].sum(dtype=np.float64)
            edges = self._strongest(edges, most)
            share = np.cumsum(self.size[edges], dtype=np.float64) / total
            # Rounded, so that turns that are equal but for the order of sums are.
            turns.append(np.round(np.arange(1, len(edges) + 1) * (share + _PACE), 9))
            members.append(edges)
        edges, turn = np.concatenate(members), np.concatenate(turns)
        order = np.lexsort([self.src[edges], self.dst[edges], turn])
        return edges[order], turn[order]

    def _in_turn(self, top: int, inside: Set[int]) -> Iterator[int]:
        """Yield edges in the order to take them; what is inside meanwhile decides who waits."""
        # The first way begins with the strongest edge of the target.
        at_top = np.isin(self.layer, self.tops)
        yield from self._strongest(np.flatnonzero(at_top & self.leads), 1).tolist()
        waiting: list[tuple[float, int, int]] = []
        for place, (edge, turn) in enumerate(zip(*self._candidates(top), strict=True)):
            while waiting and waiting[0][0] <= turn:
                yield heappop(waiting)[-1]
            outside = (int(self.dst[edge]) not in inside) + (int(self.src[edge]) not in inside)
            if outside:
                heappush(waiting, (float(turn) * _LATER**outside, place, int(edge)))
            else:
                yield int(edge)
        while waiting:
            yield heappop(waiting)[-1]
        for kind in (self.absorbs, ~self.leads & ~self.absorbs):
            yield from self._strongest(np.flatnonzero(kind), top).tolist()

    def _strongest(self, edges: NDArray[np.int64], top: int) -> NDArray[np.int64]:
        return edges[largest(self.size[edges], top, [self.dst[edges], self.src[edges]])]

    def grown(self, top: int) -> NDArray[np.int64]:
        """Take edges in turn, each with those that link it, until one does not fit."""
        if top >= len(self.src):
            return np.arange(len(self.src))
        inside: set[int] = set()
        chosen: dict[int, None] = {}
        for edge in self._in_turn(top, inside):
            if edge in chosen:
                continue
            bundle = [*self._upwards(edge, inside), edge, *self._downwards(edge, inside)]
            if len(chosen) + len(bundle) > top:
                if not chosen:  # the upper part of the first way
                    chosen = dict.fromkeys(bundle[:top])
                break
            chosen.update(dict.fromkeys(bundle))
            for link in bundle:
                inside.update((int(self.dst[link]), int(self.src[link])))
        return np.array(list(chosen), np.int64)

    def _upwards(self, edge: int, inside: set[int]) -> Sequence[int]:
        """Return the edges from what is inside, or the target, to where an edge begins."""
        ways = []
        node = int(self.dst[edge])
        while node not in inside and (above := int(self.into[node])) >= 0:
            ways.append(above)
            node = int(self.dst[above])
        return ways[::-1]

    def _downwards(self, edge: int, inside: set[int]) -> Iterator[int]:
        """Yield the edges from where an edge ends to what is inside, or an end."""
        node = int(self.src[edge])
        while node not in inside and (below := int(self.out_of[node])) >= 0:
            yield below
            node = int(self.src[below])

    def cut(self, chosen: NDArray[np.int64]) -> frozenset[tuple[int, int]]:
        """Name the units that edges lead to and none leads on from, where no end is."""
        last = self.src[chosen[~self.absorbs[chosen]]]
        nodes = np.setdiff1d(last[~self.is_end[last]], self.dst[chosen])
        layers = np.searchsorted(self.first, nodes, side="right") - 1
        units = nodes - self.first[layers] - _PSEUDO
        return frozenset(zip(layers.tolist(), units.tolist(), strict=True))


def _blocks(layer: NDArray[np.int16]) -> list[slice]:
    """Return where the edges out of each layer stand, in the order that they have."""
    bounds = [0, *(np.flatnonzero(np.diff(layer)) + 1).tolist(), len(layer)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _numbers(
    layer: NDArray[np.integer], unit: NDArray[np.integer], first: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return numbers of nodes, given by layer and unit."""
    numbers: NDArray[np.int32] = first.astype(np.int32)[layer]
    numbers += unit
    numbers += _PSEUDO
    return numbers


def _raise_at(most: NDArray[Any], index: NDArray[np.integer], values: NDArray[Any]) -> None:
    """Raise values at places to at least others; several may be of one place."""
    np.maximum.at(most, index.astype(np.intp), values)  # five times faster than with int32


def _ways(
    near: NDArray[np.int32],
    far: NDArray[np.int32],
    size: NDArray[np.floating],
    passable: NDArray[np.bool_],
    blocks: list[slice],
    best: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the logarithm of the most that goes from an edge's near end over it all the way.

    That is the product, along a way, of the shares of each node's sum of sizes.  ``best`` is 0 at
    the nodes where ways end; ``blocks`` begin there.
    """
    share = size / np.bincount(near, size, len(best))[near]
    np.log(share, out=share)
    ways = np.full(len(near), -np.inf)
    for block in blocks:
        edges = block.start + np.flatnonzero(passable[block])
        # Rounded, so that ways that are equal but for the order of sums are.
        ways[edges] = np.round(share[edges] + best[far[edges]], 9)
        _raise_at(best, near[edges], ways[edges])
    return ways


def _best(
    node: NDArray[np.int32],
    value: NDArray[np.floating],
    other: NDArray[np.int32],
    eligible: NDArray[np.bool_],
    count: int,
) -> NDArray[np.int64]:
    """Return the edge of the largest value at every node, or -1; ties by the other end."""
    edges = np.flatnonzero(eligible)
    most = np.full(count, -np.inf, value.dtype)
    _raise_at(most, node[edges], value[edges])
    edges = edges[value[edges] == most[node[edges]]]
    edges = edges[np.lexsort([other[edges], node[edges]])]
    nodes, at = np.unique(node[edges], return_index=True)
    best = np.full(count, -1)
    best[nodes] = edges[at]
    return best
