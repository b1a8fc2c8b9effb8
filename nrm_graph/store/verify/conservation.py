"""Conservation, from the stored tables of one input alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nrm_graph.network.topology import PRUNED, PSEUDO_UNITS
from nrm_graph.store.verify import bounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nrm_graph.store.verify.tables import Rows, StoreFacts

Numbers = npt.NDArray[np.floating[Any]] | npt.NDArray[np.signedinteger[Any]]

EPS = float(np.finfo(np.float32).eps)

ROUNDINGS = 100
"""Tolerances are so many machine epsilons (float32) of the total variation of what is summed.

Both sides of a check come from the same activations, so that their difference is the rounding of
two sums, not that of the network.  Worst found, in epsilons of the total variation: 0.7 at single
neurons; at channels 1.1 in residual nets, ResNet-18 and DenseNet-121 with random weights under four
composites, and under epsilon 6.2 on the demo network and 9.7 on a trained VGG16, where what cancels
inside a channel does not show in the table's total variation; 3.5 for the conditional relevances of
one neuron.  100 is ten times the worst."""


def check(
    facts: StoreFacts, nodes: Rows, edges: Rows, amplification: float = 1.0
) -> Iterator[tuple[int | None, str]]:
    """Everything that must sum to something else: (layer, problem), at most one per kind.

    The tables of a condition obey the same laws, for its walks step and end as all do; rounding
    is amplified there.
    """
    sums = _Sums(facts, nodes, edges, max(1.0, amplification) * ROUNDINGS * EPS)
    laws = [sums.units, sums.cuts, sums.conditionals]
    if facts.most is None:
        laws[1:1] = [sums.pseudo_units, sums.corners]
    else:
        yield from bounded.check(facts, edges)
        laws[1:1] = [sums.layers_as_a_whole]
    for law in laws:
        yield from law()


class _Sums:
    """Totals by unit and by pair of layers, in float64."""

    def __init__(self, facts: StoreFacts, nodes: Rows, edges: Rows, eps: float) -> None:
        self.facts, self.nodes, self.edges = facts, nodes, edges
        self.eps = eps
        self.layers = len(facts.units)
        self.total = int(facts.first[-1])
        bits = facts.bits
        # Every edge may have moved by so much, relative to itself: half a unit in its last place.
        self.rounding = 0.0 if bits is None else 2.0 ** -(bits + 1)
        self.dst = edges["dst_layer"].astype(np.int64)
        self.src = edges["src_layer"].astype(np.int64)
        self.relevance = edges["relevance"].astype(np.float64)
        self.pair = self.dst * self.layers + self.src
        is_unit = nodes["unit"] >= 0
        self.node = np.zeros(self.total)
        place = facts.first[nodes["layer_id"][is_unit]] + nodes["unit"][is_unit]
        self.node[place] = nodes["relevance"][is_unit]
        self.group, self.size = (
            np.bincount(self.pair, values, self.layers**2).reshape(self.layers, self.layers)
            for values in (self.relevance, np.abs(self.relevance))
        )
        if facts.most is not None:  # pseudo-edges of bounded tables are their layer's totals alone
            absorbed = ~is_unit & (nodes["unit"] != PRUNED)
            layer, values = nodes["layer_id"][absorbed], nodes["relevance"][absorbed]
            np.add.at(self.group, (layer, layer), values)
            np.add.at(self.size, (layer, layer), np.abs(values))
        self.variation = self._by_layer(np.abs(self.node))

    def _by_layer(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum over the units of every layer."""
        first = np.minimum(self.facts.first[:-1], self.total)
        sums: npt.NDArray[np.float64] = np.add.reduceat(np.append(values, 0.0), first)
        return sums * (self.facts.units > 0)

    @staticmethod
    def _worst(
        actual: Numbers,
        expected: Numbers,
        limit: Numbers,
    ) -> Iterator[tuple[int, float, float, float]]:
        """Position that is farthest beyond its limit, what is there and should be, the limit.

        Nothing where none is beyond.
        """
        excess = np.abs(actual - expected) - limit
        at = int(np.argmax(excess)) if len(excess) else 0
        if len(excess) and not excess[at] <= 0:
            yield at, float(actual[at]), float(expected[at]), float(limit[at])

    @staticmethod
    def _carried(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """By layer, the largest of its own size and those above it, whose rounding it inherits.

        Of the output this is at least 1: a channel that cancels has no small rounding of its own.
        """
        return np.maximum.accumulate(sizes[::-1])[::-1]

    def units(self) -> Iterator[tuple[int | None, str]]:
        """Edges out of a unit, and edges into it, sum to its relevance."""
        facts = self.facts
        upper, lower = self.edges["dst_unit"], self.edges["src_unit"]
        crossing = self.dst != self.src
        output = np.arange(self.layers) == self.layers - 1
        inputs = facts.ends
        if facts.most is not None:  # what a unit is left out of stands in its pair's one row
            inputs = np.ones_like(output)
            output[self.src[upper == PRUNED]] = True
        size_below = (self.size * (1 - np.eye(self.layers))).sum(0)
        for side, layer, unit, chosen, skip, size in (
            ("out of", self.dst, upper, upper >= 0, inputs, self.size.sum(1)),
            ("into", self.src, lower, crossing & (lower >= 0), output, size_below),
        ):
            place = facts.first[layer[chosen]] + unit[chosen]
            values = self.relevance[chosen]
            sums = np.bincount(place, values, self.total)
            sizes = np.bincount(place, np.abs(values), self.total)
            scale = self._carried(np.maximum(self.variation, size))
            for i in np.flatnonzero(~skip).tolist():
                part = slice(facts.first[i], facts.first[i + 1])
                limit = self.eps * scale[i] + self.rounding * sizes[part]
                beyond = self._worst(sums[part], self.node[part], limit)
                for at, actual, expected, allowed in beyond:
                    yield (
                        i,
                        f"edges {side} unit {at} sum to {actual:.9g}, its relevance is "
                        f"{expected:.9g} (allowed: {allowed:.2g})",
                    )

    def layers_as_a_whole(self) -> Iterator[tuple[int | None, str]]:
        """Edges out of a layer, with what it absorbs, and edges into it sum to its relevance."""
        node = self._by_layer(self.node)
        crossing = 1 - np.eye(self.layers)
        top = np.arange(self.layers) == self.layers - 1
        for side, group, size, skip in (
            ("out of", self.group.sum(1), self.size.sum(1), self.facts.ends),
            ("into", (self.group * crossing).sum(0), (self.size * crossing).sum(0), top),
        ):
            limit = self.eps * self._carried(np.maximum(self.variation, size))
            limit += self.rounding * size
            for at, actual, expected, allowed in self._worst(
                np.where(skip, node, group), node, limit
            ):
                yield (
                    at,
                    f"edges {side} the layer sum to {actual:.9g}, its relevance is {expected:.9g} "
                    f"(allowed: {allowed:.2g})",
                )

    def pseudo_units(self) -> Iterator[tuple[int | None, str]]:
        """Pseudo-edges of a layer sum to what its pseudo-units hold."""
        below = self.nodes["unit"] < 0
        width = len(PSEUDO_UNITS) + 1
        place = self.nodes["layer_id"][below].astype(np.int64) * width - self.nodes["unit"][below]
        unit_sums = np.bincount(place, self.nodes["relevance"][below], self.layers * width)
        unit = self.edges["src_unit"]
        chosen = (unit < 0) & (self.edges["dst_unit"] >= 0)
        place = self.dst[chosen] * width - unit[chosen]
        sums = np.bincount(place, self.relevance[chosen], self.layers * width)
        sizes = np.bincount(place, np.abs(self.relevance[chosen]), self.layers * width)
        scale = self._carried(np.maximum(self.variation, self.size.sum(1))).repeat(width)
        limit = self.eps * scale + self.rounding * sizes
        for at, actual, expected, allowed in self._worst(sums, unit_sums, limit):
            name = PSEUDO_UNITS.get(-(at % width), "?")
            yield (
                at // width,
                f"edges to its pseudo-unit {name} sum to {actual:.9g}, the unit holds "
                f"{expected:.9g} (allowed: {allowed:.2g})",
            )

    def corners(self) -> Iterator[tuple[int | None, str]]:
        """Pruned rows of a pair of layers have one total, the corner is its negative."""
        upper, lower = self.edges["dst_unit"] == PRUNED, self.edges["src_unit"] == PRUNED
        if not (upper | lower).any():
            return
        count = self.layers**2
        corner, rows, columns = (
            np.bincount(self.pair[chosen], self.relevance[chosen], count)
            for chosen in (upper & lower, lower & ~upper, upper & ~lower)
        )
        limit = (self.eps + self.rounding) * self.size.ravel()
        for name, sums in (("out of", rows), ("into", columns)):
            beyond = self._worst(sums * self.facts.pruned.ravel(), -corner, limit)
            for at, actual, expected, allowed in beyond:
                yield (
                    at // self.layers,
                    f"pruned rows {name} its pair with {self.facts.name(at % self.layers)} sum to "
                    f"{actual:.9g}, the corner says {expected:.9g} (allowed: {allowed:.2g})",
                )
        numbers = np.bincount(self.pair[~(upper | lower)], minlength=count)
        top = {(row[0], row[1]): row[3] for row in self.facts.meta.get("pruned") or ()}
        for (dst, src), most in top.items():
            n_edges = int(numbers[dst * self.layers + src])
            if most is not None and n_edges > most:
                yield dst, f"{n_edges} edges to {self.facts.name(src)}: the store keeps {most}"

    def cuts(self) -> Iterator[tuple[int | None, str]]:
        """At every position of the execution order all walks sum to 1.

        A walk visits descending layers.  Below position k it either crosses, by a step from a
        layer above k to one that is not, or has ended above: in a pseudo-unit or an input.
        """
        top = self.layers - 1
        output = float(self.node[self.facts.first[top] :].sum())
        scale = float(self.variation[top])
        if abs(output - 1) > self.eps * scale:
            yield top, f"the relevance of the output sums to {output:.9g}: expected 1"
        layer = np.arange(self.layers)
        for k in range(top - 1, -1, -1):
            crossing = (layer[:, None] > k) & (
                (layer[None] <= k) | self.facts.ends[None] | (layer[:, None] == layer[None])
            )
            total = float(self.group[crossing].sum())
            size = float(self.size[crossing].sum())
            # What rounding did above is carried down: walks neither appear nor vanish.
            scale = max(scale, size)
            limit = self.eps * scale + self.rounding * size
            if abs(total - 1) > limit:
                yield (
                    k,
                    f"the cut at this layer, with what bypasses it and was absorbed above, sums "
                    f"to {total:.9g}: expected 1 (allowed: {limit:.2g})",
                )
                return  # those below are off by the same

    def conditionals(self) -> Iterator[tuple[int | None, str]]:
        """Shares of a neuron sum to 1, and an edge is its share of the neuron's relevance."""
        q = self.edges["conditional"].astype(np.float64)
        chosen = (self.edges["dst_unit"] >= 0) & ~np.isnan(q)
        if not chosen.any():
            return
        place = self.facts.first[self.dst] + self.edges["dst_unit"]
        whole = np.bincount(place[self.edges["dst_unit"] >= 0], minlength=self.total)
        place, q = place[chosen], q[chosen]
        sums, sizes = np.bincount(place, q, self.total), np.bincount(place, np.abs(q), self.total)
        complete = (np.bincount(place, minlength=self.total) == whole) & (whole > 0)
        # Where a unit has no relevance (a hidden score), nothing tells that its edges were pruned.
        pruned = np.repeat(self.facts.pruned.any(1), np.diff(self.facts.first))
        complete &= ((self.node != 0) | ~pruned) & (self.facts.most is None)
        limit = (self.eps + self.rounding) * np.maximum(sizes, 1)
        beyond = self._worst(np.where(complete, sums, 1), np.ones(self.total), limit)
        for at, actual, _, allowed in beyond:
            layer = int(np.searchsorted(self.facts.first, at, side="right")) - 1
            yield (
                layer,
                f"the conditional relevances of unit {at - self.facts.first[layer]} sum to "
                f"{actual:.9g}: expected 1 (allowed: {allowed:.2g})",
            )
        shares = q * self.node[place]
        scale = np.maximum(self.variation, self.size.sum(1))[self.dst[chosen]]
        limit = self.eps * scale + 2.5 * self.rounding * np.abs(shares)
        for at, actual, share, allowed in self._worst(self.relevance[chosen], shares, limit):
            row = int(np.flatnonzero(chosen)[at])
            ends = " to ".join(
                f"{self.facts.name(int(self.edges[f'{end}_layer'][row]))} unit "
                f"{self.edges[f'{end}_unit'][row]}"
                for end in ("dst", "src")
            )
            yield (
                int(self.dst[row]),
                f"the edge from {ends} has relevance {actual:.9g}, its conditional relevance "
                f"says {share:.9g} (allowed: {allowed:.2g})",
            )
