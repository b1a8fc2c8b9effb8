"""Edges of one sample while a pass goes down: merged, pruned, and the units that they reach."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from nrm_graph.network.topology import PRUNED
from nrm_graph.propagation.kernels import awake
from nrm_graph.tables.bounded import Kept
from nrm_graph.tables.dense_edges import Ends
from nrm_graph.tables.edge_block import Block, merged
from nrm_graph.tables.edge_matrix import Matrix
from nrm_graph.tables.pruning import prune
from nrm_graph.tables.unit_sums import unit_sums

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from nrm_graph.propagation.adjoint_pass import Reach
    from nrm_graph.propagation.state import State
    from nrm_graph.tables.bounded import Budget, Piece
    from nrm_graph.tables.picks import Collector
    from nrm_graph.tables.plan import Plan
    from nrm_graph.tables.unit_labels import Labels

    UnitMask = npt.NDArray[np.bool_]
    """Which units of a layer are meant."""


P = TypeVar("P", Block, Matrix, Block | Matrix)


@dataclass(eq=False)
class SampleEdges:
    """Edges of sample ``b`` of a batch.

    Attributes
    ----------
    plan, state
        Units of the network's layers, and the batch's activations.
    below : Reach
        Relevance that is still to come from each neuron under a conjunction.
    dtype : dtype
        Of the pass.
    labels : mapping of str to ndarray
        Global unit of every element of every value.
    budget : Budget, Collector or None
        What chooses the rows, where not all of them are wanted.
    blocks : list of Block
        Edges so far.
    pruned : dict of int to float
        Relevance of every layer's edges that its limits left out.
    reached : dict of int to ndarray
        By layer of single neurons, which of them a walk of non-zero weight reaches.
    """

    plan: Plan
    state: State
    below: Reach
    dtype: torch.dtype
    b: int
    labels: Mapping[str, Labels]
    budget: Budget | Collector | None = None
    blocks: list[Block] = field(default_factory=list)
    pruned: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    reached: dict[int, UnitMask] = field(default_factory=dict)

    def visit(self, layer_id: int, there: UnitMask, inside: UnitMask) -> None:
        """Note which units of a layer of single neurons hold relevance, inside its literal."""
        known = self.reached.get(layer_id, False)
        self.reached[layer_id] = there | (known & inside)

    def ends(self, layer_id: int, operand: str | None = None) -> Ends:
        """Where the edges of a layer end: in itself and, if one is named, in an operand."""
        source = None if operand is None else self.labels[operand]
        return Ends(self.plan, layer_id, source, self._alive(layer_id))

    def conditional(self, layer_id: int, pieces: Iterable[P]) -> Iterator[P]:
        """Pieces whose q is that of the conjunction: ``q(i|j) h(i) / h(j)``."""
        name = self.plan.network.values[layer_id]
        h = self.below.at(name) if self.plan.partitions[layer_id].single else 1.0
        if isinstance(h, float):  # 1: where it is 0 there are no edges
            yield from pieces
            return
        ahead = self.state.samples(name, h)[self.b : self.b + 1]
        units = unit_sums(self.plan, layer_id, ahead)[0].cpu().numpy()
        units = np.where(units == 0, np.nan, units)
        for piece in pieces:
            if piece.q is None:
                yield piece
            elif isinstance(piece, Matrix):
                onward = torch.from_numpy(units[piece.rows]).to(piece.q)
                yield replace(piece, q=piece.q / onward[:, None])
            else:
                yield replace(piece, q=piece.q / units[piece.dst])

    def add(self, layer_id: int, pieces: list[Piece]) -> None:
        """Merge an operation's edges by source layer and note what they reach."""
        sources: dict[int, list[Piece]] = defaultdict(list)
        for piece in pieces:
            sources[piece.src_layer].append(piece)
        for source, of_source in sorted(sources.items()):
            if self.budget is not None:
                units = sum(self.plan.partitions[i].n_units for i in (layer_id, source))
                self.budget.add(of_source, units)
                continue
            parts = [part for part in of_source if isinstance(part, Block)]
            block = parts[0]
            if len(parts) > 1:  # what several operands give may cancel
                block = merged(parts)
                block = block.where((block.relevance if block.q is None else block.q) != 0)
            self.blocks.append(self._pruned(block))
            below = self.plan.partitions[source]
            if below.single:
                reached = self.reached.setdefault(source, np.zeros(below.n_units, bool))
                if self.plan.partitions[layer_id].single:
                    reached[block.src[block.src >= 0]] = True
                else:
                    # From a group, of which it is not known which neuron read it.
                    reached |= self._awake(source)

    def chosen(self) -> Kept | float | None:
        """Let the budget choose the rows: what it kept, or the share that it lacks."""
        if self.budget is None:
            return None
        kept = self.budget.keep()
        if isinstance(kept, Kept):
            self.blocks = kept.blocks
            self.pruned |= kept.lost
        return kept

    def _alive(self, layer_id: int) -> UnitMask | None:
        """Units of a layer that a walk reaches; None where units are groups."""
        part = self.plan.partitions[layer_id]
        if not part.single or self.budget is not None:  # which keeps no row without relevance
            return None
        return self.reached.setdefault(layer_id, np.zeros(part.n_units, bool))

    def _awake(self, layer_id: int) -> UnitMask | bool:
        """Units that may hold relevance, of a layer of single neurons."""
        neurons = awake(self.state, self.plan.network.values[layer_id])
        if neurons is None:
            return True
        alive = neurons[self.b : self.b + 1].to(self.dtype)
        return unit_sums(self.plan, layer_id, alive)[0].cpu().numpy() > 0

    def _pruned(self, block: Block) -> Block:
        """Keep what the limit of the block's layers allows."""
        key = (block.dst_layer, block.src_layer)
        limit = self.plan.limits.get(key)
        if limit is None:
            return block
        if not (block.src == PRUNED).any():  # not done already, in chunks
            block = prune(block, limit)
        lost = block.relevance[(block.src == PRUNED) & (block.dst >= 0)].sum(dtype=np.float64)
        self.pruned[block.dst_layer] += float(lost)
        return block
