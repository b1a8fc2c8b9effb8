"""Node and edge tables of the unconditional measure, out of one relevance pass.

An edge is the event "the walk steps directly from j to i": R(j -> i) = q(i|j) R(j), summed
over the neurons of two units and over parallel routes (arXiv:2606.00557).  Tables are made
while the pass goes down, so that a layer's relevance is not kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.network.ir.interpreter import exact
from nrm_graph.network.topology import PRUNED
from nrm_graph.propagation import relevance_pass
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.kernels import kernel_of
from nrm_graph.propagation.tensor_sums import total
from nrm_graph.tables.absorbed_shares import absorbed_block, absorbed_shares, to_host
from nrm_graph.tables.arrow import edge_rows, node_columns, node_rows
from nrm_graph.tables.bounded import Budget, guess
from nrm_graph.tables.operand_edges import (
    Operand,
    WeighedTerm,
    backward,
    operand_blocks,
    sample_terms,
)
from nrm_graph.tables.sample_edges import SampleEdges
from nrm_graph.tables.unit_sums import mean_activations, unit_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.propagation.state import State
    from nrm_graph.tables.absorbed_shares import Absorbed
    from nrm_graph.tables.arrow import NodeColumns
    from nrm_graph.tables.bounded import Kept, Piece
    from nrm_graph.tables.dense_edges import SampleTerm
    from nrm_graph.tables.edge_block import Block, Values
    from nrm_graph.tables.edge_methods import Method
    from nrm_graph.tables.picks import Collector
    from nrm_graph.tables.plan import Plan


@dataclass(frozen=True, eq=False)
class SampleTables:
    """Tables of one sample.

    Attributes
    ----------
    nodes, edges : pyarrow.Table
        As of :func:`edge_tables`.
    variation : float
        Largest sum of |R| over a layer.
    kept : Kept or None
        What a budget of rows kept; None where there is none.
    """

    nodes: pa.Table
    edges: pa.Table
    variation: float
    kept: Kept | None


def edge_tables(
    state: State, start: Tensor, plan: Plan, clause: Clause | None = None
) -> list[tuple[pa.Table, pa.Table]]:
    """Node and edge tables of every sample of a batch.

    Parameters
    ----------
    state : State
        Activations of N inputs.
    start : Tensor, (N, outputs)
        Initial relevance.
    plan : Plan
        Units of every layer, see :func:`nrm_graph.tables.plan.plan`.
    clause : Clause, optional
        A conjunction: tables hold R(n & conjunction) and R(j -> i & conjunction).

    Returns
    -------
    list of (nodes, edges)
        Arrow tables with the columns of a store, without ``input_id``; edges are sorted by
        (dst_layer, src_layer, dst_unit, src_unit).  Exact zeros are left out, but where both
        units are single neurons a row with q != 0 stays if any walk reaches its dst.  Under a
        conjunction q is ``q(i|j) h(i) / h(j)`` (see :mod:`nrm_graph.propagation.adjoint_pass`), by
        which the walks of the conjunction go on from j; null where h(j) is 0.  Where the plan
        bounds their number, the strongest are there, see :mod:`nrm_graph.tables.bounded`.
    """
    return [(of.nodes, of.edges) for of in sample_tables(state, start, plan, clause)]


_SHARE = ("share",)
"""Where a plan keeps the share that an input before kept."""


@exact
def sample_tables(
    state: State, start: Tensor, plan: Plan, clause: Clause | None = None
) -> list[SampleTables]:
    """Return the tables of every sample of a batch, see :func:`edge_tables`."""
    share: float | None = plan.cache.get(_SHARE)
    while True:
        budgets = None
        if plan.max_edges is not None:
            budgets = [Budget(plan.max_edges, share) for _ in range(start.shape[0])]
        tables = Tables(state, start, plan, clause or {}, budgets)
        relevance_pass.relevance_pass(state, start, clause, visit=tables.visit, weigh=tables.weigh)
        tables.finish()
        chosen = [sample.chosen() for sample in tables.samples]
        lacking = [share for share in chosen if isinstance(share, float)]
        if not lacking:
            break
        share = max(lacking)
    kept = [None if isinstance(of, float) else of for of in chosen]
    shares = [of.share for of in kept if of is not None]
    if shares:  # of an input before; it speeds up the next one, and changes no number
        plan.cache[_SHARE] = guess(max(shares))
    variation = tables.variation.cpu().double().tolist()
    return [
        SampleTables(tables.nodes(b), tables.edges(b), variation[b], kept[b])
        for b in range(start.shape[0])
    ]


def _is(h: Tensor | float, number: float) -> bool:
    return isinstance(h, float) and h == number


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


class Tables:
    """What one relevance pass over a batch leaves behind.

    Rows are made on the host.  On an accelerator that waits until the pass is over (``later``),
    so that the pass never waits for the host; on a CPU it is done at once, and a layer's
    relevance need not be kept.  What an accelerator holds until then are values that every step
    read and gave, about as much as the activations several times, and weight gradients of
    convolutions, as much as their weights for every sample; whole tables are made after the pass,
    and held one layer at a time.
    """

    def __init__(
        self,
        state: State,
        start: Tensor,
        plan: Plan,
        clause: Clause,
        budgets: Sequence[Budget | Collector] | None = None,
    ) -> None:
        self.state, self.start, self.plan, self.clause = state, start, plan, clause
        self.below = reach(state, clause)
        self.n = start.shape[0]
        self.relevance: dict[int, Values] = {}
        self.absorbed: dict[int, list[tuple[int, Values]]] = defaultdict(list)
        self.samples = [
            SampleEdges(
                plan,
                state,
                self.below,
                start.dtype,
                b,
                plan.sample_labels(state, b),
                None if budgets is None else budgets[b],
            )
            for b in range(self.n)
        ]
        self.later: list[Callable[[], None]] = []
        self.variation = start.new_zeros(self.n)

    @property
    def blocks(self) -> list[list[Block]]:
        """Edges of every sample."""
        return [sample.blocks for sample in self.samples]

    def _do(self, call: Callable[[], None]) -> None:
        if _on_host(self.start):
            call()
        else:
            self.later.append(call)

    def finish(self) -> None:
        """Make what waited until the pass was over; each lets go of what it held."""
        self.later.reverse()
        while self.later:
            self.later.pop()()

    def visit(self, layer_id: int, relevance: Tensor) -> None:
        """Keep a layer's relevance by unit."""
        size = relevance.abs().reshape(self.n, -1).sum(1)
        self.variation = torch.maximum(self.variation, size)
        arrived = unit_sums(self.plan, layer_id, relevance)
        onward = self.below.times(self.state, layer_id, relevance)
        left = arrived if onward is relevance else unit_sums(self.plan, layer_id, onward)
        allowed = None
        literal = self.clause.get(layer_id)
        if literal is not None:
            inside = relevance_pass.only(literal, torch.ones_like(relevance))
            allowed = unit_sums(self.plan, layer_id, inside)
        self._do(partial(self._visited, layer_id, arrived, left, allowed))

    def _visited(
        self, layer_id: int, arrived: Tensor, left: Tensor, allowed: Tensor | None
    ) -> None:
        self.relevance[layer_id] = left.cpu().numpy()
        if self.plan.partitions[layer_id].single and self.plan.max_edges is None:
            there = arrived.cpu().numpy() != 0
            inside = np.ones_like(there) if allowed is None else allowed.cpu().numpy() > 0
            for sample in self.samples:
                sample.visit(layer_id, there[sample.b], inside[sample.b])

    def weigh(self, name: str, relevance: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Take the step through one operation: its edges, and the relevance of its operands."""
        net, state = self.plan.network, self.state
        layer_id, op = net.layout.layer_of[name], net.layout.weighings[name]
        kernel = kernel_of(state, name)
        weighed = [share.weigh(relevance) for share in kernel.shares]
        pieces: list[list[Piece]] = [[] for _ in range(self.n)]
        for k, value in enumerate(op.operands):
            terms = [
                WeighedTerm(term, share, s)
                for share, s in zip(kernel.shares, weighed, strict=True)
                for term in share.terms
                if term.operand == k
            ]
            # Of a walk that steps over a set it must pass through, nothing is in the event.
            if not terms or _is(self.below.below(name, value), 0.0):
                continue
            yield value, self._operand(Operand(self.plan, layer_id, name, op, k), terms, pieces)
        for sample in self.samples:
            self._do(partial(sample.add, layer_id, pieces[sample.b]))
        if self.below.absorbs(layer_id):
            absorbed = absorbed_shares(self.plan, state, name, relevance, kernel, weighed)
            self._do(partial(self._absorbed, layer_id, absorbed))

    def _operand(
        self, operand: Operand, terms: Sequence[WeighedTerm], pieces: list[list[Piece]]
    ) -> Tensor:
        """Relevance of an operand; its edges are appended to the ``pieces`` of every sample."""
        methods = [operand.method(sample.labels) for sample in self.samples]
        onward = self._onward(operand, terms)
        fused = all(method is not None and method.name == "channels" for method in methods)
        x = self.state.values[operand.value]
        backs, gradients = backward(operand, terms, onward, x, self.n if fused else None)
        for b, sample in enumerate(self.samples):
            of_sample = sample_terms(operand, self.state, terms, onward, backs, b)
            tables = None if gradients is None else gradients[b]
            self._do(partial(self._rows, sample, operand, methods[b], of_sample, tables, pieces[b]))
        return total([term.x * back for (term, _, _), back in zip(terms, backs, strict=True)])

    def _onward(self, operand: Operand, terms: Sequence[WeighedTerm]) -> list[Tensor]:
        """Return what goes on from an operand: x' h in place of x', for every term."""
        h = self.below.below(operand.name, operand.value)
        onward = [term.x if _is(h, 1.0) else term.x * h for term, _, _ in terms]
        constant = self.state.constant.get(operand.value)
        if constant is None:
            return onward
        # What a rule gives to constants is bias, and no edge.
        return [ahead.masked_fill(constant != 0, 0) for ahead in onward]

    def _rows(
        self,
        sample: SampleEdges,
        operand: Operand,
        method: Method | None,
        terms: list[SampleTerm],
        gradients: list[Tensor] | None,
        pieces: list[Piece],
    ) -> None:
        """Edges of an operand for one sample, appended to ``pieces``."""
        ends = sample.ends(operand.layer_id, operand.value)
        rows = operand_blocks(operand, ends, method, terms, gradients)
        pieces += sample.conditional(operand.layer_id, rows)

    def _absorbed(self, layer_id: int, absorbed: Sequence[Absorbed]) -> None:
        """Pseudo-edges of a layer, and their totals."""
        arrays = to_host(absorbed)
        for sample in self.samples:
            if arrays and sample.budget is None:  # bounded tables have the totals alone
                block = absorbed_block(sample.ends(layer_id), arrays, sample.b)
                sample.blocks += sample.conditional(layer_id, [block])
        self.absorbed[layer_id] = [
            (unit, share.sum(1, dtype=np.float64)) for unit, share, _ in arrays
        ]

    def edges(self, b: int) -> pa.Table:
        """Edge table of a sample."""
        return edge_rows(self.samples[b].blocks, self.start.cpu().numpy().dtype)

    def nodes(self, b: int) -> pa.Table:
        """Node table of a sample."""
        kind = self.start.cpu().numpy().dtype
        columns: list[NodeColumns] = []
        for i, name in enumerate(self.plan.network.values):
            part = self.plan.partitions[i]
            sums = self.relevance[i][b] if i in self.relevance else np.zeros(part.n_units, kind)
            means = mean_activations(self.plan, self.state, name)[b]
            lost = [(u, t[b]) for u, t in self.absorbed.get(i, ())]
            pruned = self.samples[b].pruned[i]
            columns += node_columns(i, sums, means, [*lost, (PRUNED, pruned)])
        return node_rows(columns, kind)
