"""Reduced tables against their nodes on record, and against the two laws of their steps.

Steps into a node are its relevance, and steps out of it with what ends below it are; of the target
the relevances sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.network.topology import END_UNITS, PSEUDO_UNITS
from nrm_graph.store.verify.conservation import EPS, ROUNDINGS
from nrm_graph.store.verify.tables import StoreFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from nrm_graph.store.format.recorded_nodes import LayerNodes
    from nrm_graph.store.verify.tables import Rows

    Numbers = npt.NDArray[np.float64]
    Places = npt.NDArray[np.int64]

# Both sides of a law are sums of float32 numbers out of passes of their own, in which what cancels
# between watched layers does not show in the tables: tolerances are ROUNDINGS epsilons of the
# largest total variation of a layer, of these tables or of the store's own of the same input.
# Worst found, in epsilons of that of the tables alone: 5.5 (VGG-11 with random weights, where a
# layer's total variation is 30 times theirs), 0.7 of the larger one, over ResNet-18, VGG-11 and the
# demo network under four composites, with and without a condition.


@dataclass(frozen=True)
class ReducedFacts(StoreFacts):
    """What ``store.json`` says, and the nodes of reduced tables.

    ``watched`` are the nodes of every watched layer, ``variations`` of an input the largest total
    variation of a layer in the store's own tables.
    """

    watched: tuple[LayerNodes, ...] = ()

    @cached_property
    def by_layer(self) -> dict[int, tuple[int, npt.NDArray[np.int32]]]:
        """Place of the first node of a layer where all are counted through, and its units."""
        places, first = {}, 0
        for layer in self.watched:
            places[layer.info.layer_id] = first, layer.units
            first += len(layer.units)
        return places

    @cached_property
    def layer_of(self) -> npt.NDArray[np.int64]:
        """Layer of every node."""
        sizes = [len(layer.units) for layer in self.watched]
        return np.repeat([layer.info.layer_id for layer in self.watched], sizes)

    @cached_property
    def neurons(self) -> npt.NDArray[np.int64]:
        """Neurons of every node."""
        return np.concatenate([layer.sizes for layer in self.watched])

    def places(self, layers: npt.NDArray[Any], units: npt.NDArray[Any]) -> Places:
        """Place of the node that each row names; -1 where it is none."""
        places = np.full(len(layers), -1, np.int64)
        for layer_id, (first, known) in self.by_layer.items():
            own = np.flatnonzero(layers == layer_id)
            at = np.minimum(np.searchsorted(known, units[own]), len(known) - 1)
            places[own] = np.where(known[at] == units[own], first + at, -1)
        return places

    def problems(self, rows: Rows, table: str) -> Iterator[tuple[Any, str]]:
        """Rows that name what is no node, by the problem."""
        yield from self._nodes(rows) if table == "nodes" else self._edges(rows)

    def _nodes(self, rows: Rows) -> Iterator[tuple[Any, str]]:
        layer, unit = rows["layer_id"], rows["unit"]
        yield ~np.isin(layer, list(self.by_layer)), "a layer that is not watched"
        pseudo = np.isin(unit, END_UNITS)
        yield ~pseudo & (self.places(layer, unit) < 0), "a unit that is no node"
        yield pseudo != np.isnan(rows["activation"]), "an activation is null, or a pseudo-unit's"

    def _edges(self, rows: Rows) -> Iterator[tuple[Any, str]]:
        dst, src = rows["dst_layer"], rows["src_layer"]
        watched = list(self.by_layer)
        yield ~(np.isin(dst, watched) & np.isin(src, watched)), "a layer that is not watched"
        yield dst < src, "a step away from the input"
        above = self.places(dst, rows["dst_unit"])
        yield above < 0, "a unit that is no node"
        ends = dst == src
        yield ends & ~np.isin(rows["src_unit"], END_UNITS), "no end below a node, in its own layer"
        yield ~ends & (self.places(src, rows["src_unit"]) < 0), "a unit that is no node"
        shared = ~np.isnan(rows["conditional"])
        yield shared & (self.neurons[above] > 1), "a conditional relevance of several neurons"


def check(
    facts: ReducedFacts, nodes: Rows, edges: Rows, amplification: float, variation: float
) -> Iterator[tuple[int | None, str]]:
    """Everything that must sum to something else: (layer, problem), at most one per kind."""
    sums = _Sums(facts, nodes, edges)
    limit = ROUNDINGS * EPS * max(1.0, amplification) * max(sums.size, variation)
    yield from sums.laws(limit)


class _Sums:
    """Totals by node, in float64."""

    def __init__(self, facts: ReducedFacts, nodes: Rows, edges: Rows) -> None:
        self.facts, self.nodes, self.edges = facts, nodes, edges
        self.count = len(facts.layer_of)
        self.relevance = edges["relevance"].astype(np.float64)
        self.above = facts.places(edges["dst_layer"], edges["dst_unit"])
        self.below = facts.places(edges["src_layer"], edges["src_unit"])
        unit = nodes["unit"] >= 0
        self.node = np.zeros(self.count)
        at = facts.places(nodes["layer_id"][unit], nodes["unit"][unit])
        self.node[at] = nodes["relevance"][unit]
        self.size = max(1.0, self._largest(facts.layer_of, self.node))
        self.size = max(self.size, self._largest(edges["dst_layer"], self.relevance))

    def _largest(self, layers: npt.NDArray[Any], values: Numbers) -> float:
        return float(np.bincount(layers, np.abs(values), 1).max(initial=0.0))

    def laws(self, limit: float) -> Iterator[tuple[int | None, str]]:
        """Check steps into a node, steps out of it with ends, the target as a whole, and shares."""
        facts, top = self.facts, int(self.facts.layer_of[0])
        ends = facts.ends[facts.layer_of]
        steps = self.below >= 0
        into = np.bincount(self.below[steps], self.relevance[steps], self.count)
        out = np.bincount(self.above, self.relevance, self.count)
        for words, sums, told in (
            ("steps into", into, facts.layer_of != top),
            ("steps out of, and ends below,", out, ~ends),
        ):
            off = np.where(told, np.abs(sums - self.node), 0.0)
            at = int(np.argmax(off))
            if not off[at] <= limit:
                layer = int(facts.layer_of[at])
                unit = facts.by_layer[layer][1][at - facts.by_layer[layer][0]]
                yield (
                    layer,
                    f"{words} unit {unit} sum to {sums[at]:.9g}, its relevance is "
                    f"{self.node[at]:.9g} (allowed: {limit:.2g})",
                )
        total = float(self.node[facts.layer_of == top].sum())
        if not abs(total - 1) <= limit:
            yield top, f"the relevance of the target sums to {total:.9g}: expected 1"
        yield from self._ends(limit)
        yield from self._shares(limit)

    def _ends(self, limit: float) -> Iterator[tuple[int | None, str]]:
        """Check that ends below the nodes of a layer sum to what its pseudo-units hold."""
        ended = self.below < 0
        for layer in self.facts.by_layer:
            for kind in END_UNITS:
                mine = ended & (self.edges["dst_layer"] == layer) & (self.edges["src_unit"] == kind)
                held = (self.nodes["layer_id"] == layer) & (self.nodes["unit"] == kind)
                sums = float(self.relevance[mine].sum())
                expected = float(self.nodes["relevance"][held].astype(np.float64).sum())
                if not abs(sums - expected) <= limit:
                    yield (
                        layer,
                        f"ends in its pseudo-unit {PSEUDO_UNITS[kind]} sum to {sums:.9g}, the unit "
                        f"holds {expected:.9g} (allowed: {limit:.2g})",
                    )
                    return

    def _shares(self, limit: float) -> Iterator[tuple[int | None, str]]:
        """Check that a step of a single neuron is its share of the neuron's relevance."""
        q = self.edges["conditional"].astype(np.float64)
        known = np.flatnonzero(~np.isnan(q))
        shares = q[known] * self.node[self.above[known]]
        off = np.abs(self.relevance[known] - shares)
        # The share's own rounding is relative to it.
        excess = off - limit - 4 * EPS * np.abs(shares)
        at = int(np.argmax(excess)) if len(excess) else 0
        if len(excess) and not excess[at] <= 0:
            row = known[at]
            yield (
                int(self.edges["dst_layer"][row]),
                f"a step out of unit {self.edges['dst_unit'][row]} has relevance "
                f"{self.relevance[row]:.9g}, its conditional relevance says {shares[at]:.9g} "
                f"(allowed: {limit:.2g})",
            )
