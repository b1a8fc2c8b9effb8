"""Node and edge tables of the unconditional measure, out of one relevance pass.

An edge is the event "the walk steps directly from j to i": R(j -> i) = q(i|j) R(j), summed
over the neurons of two units and over parallel routes (arXiv:2606.00557).  Tables are made
while the pass goes down, so that a layer's relevance is not kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.network.ir.interpreter import exact
from nrm_graph.network.maps.linear import Jacobian
from nrm_graph.network.topology import BIAS, PRUNED, REMAINDER, STABILIZER
from nrm_graph.propagation import relevance_pass
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.kernels import awake, flow
from nrm_graph.tables.aggregated_edges import down_blocks, probe_blocks, set_blocks, up_blocks
from nrm_graph.tables.arrow import edge_rows, node_columns, node_rows
from nrm_graph.tables.dense_edges import (
    Ends,
    Piece,
    channel_blocks,
    feature_blocks,
    triple_blocks,
    vector_blocks,
)
from nrm_graph.tables.edge_block import Block, merged
from nrm_graph.tables.plan import mode
from nrm_graph.tables.pruning import prune
from nrm_graph.tables.unit_sums import mean_activations, regular, unit_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    import pyarrow as pa
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.network.maps.linear import Weighing
    from nrm_graph.propagation.state import State
    from nrm_graph.rules.base import Flow
    from nrm_graph.tables.plan import Plan


def edge_tables(
    state: State, start: Tensor, plan: Plan, clause: Clause | None = None
) -> list[tuple[pa.Table, pa.Table]]:
    """Complete node and edge tables of every sample of a batch.

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
        which the walks of the conjunction go on from j; null where h(j) is 0.
    """
    return tables_and_variation(state, start, plan, clause)[0]


@exact
def tables_and_variation(
    state: State, start: Tensor, plan: Plan, clause: Clause | None = None
) -> tuple[list[tuple[pa.Table, pa.Table]], npt.NDArray[np.float64]]:
    """Return the tables of :func:`edge_tables`, and the largest sum of |R| over a layer, (N,)."""
    tables = Tables(state, start, plan, clause or {})
    relevance_pass.relevance_pass(state, start, clause, visit=tables.visit, weigh=tables.weigh)
    for call in tables.later:
        call()
    variation = tables.variation.cpu().double().numpy()
    return [(tables.nodes(b), tables.edges(b)) for b in range(start.shape[0])], variation


def _is(h: Any, number: float) -> bool:
    return isinstance(h, float) and h == number


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


class Tables:
    """What one relevance pass over a batch leaves behind.

    Rows are made on the host.  On an accelerator that waits until the pass is over (``later``),
    so that the pass never waits for the host; on a CPU it is done at once, and a layer's
    relevance need not be kept.
    """

    def __init__(self, state: State, start: Tensor, plan: Plan, clause: Clause) -> None:
        self.state, self.start, self.plan, self.clause = state, start, plan, clause
        self.below = reach(state, clause)
        self.n = start.shape[0]
        self.relevance: dict[int, Any] = {}
        self.absorbed: dict[int, list[tuple[int, Any]]] = defaultdict(list)
        self.blocks: list[list[Block]] = [[] for _ in range(self.n)]
        # Units of single neurons that a walk of non-zero weight reaches, by sample and layer.
        self.reached: list[dict[int, Any]] = [{} for _ in range(self.n)]
        self.pruned: list[dict[int, float]] = [defaultdict(float) for _ in range(self.n)]
        self.labels = [plan.sample_labels(state, b) for b in range(self.n)]
        self.later: list[Callable[[], None]] = []
        self.variation = start.new_zeros(self.n)

    def _do(self, call: Callable[[], None]) -> None:
        if _on_host(self.start):
            call()
        else:
            self.later.append(call)

    def visit(self, layer_id: int, relevance: Tensor) -> None:
        """Keep a layer's relevance by unit."""
        size = relevance.abs().reshape(self.n, -1).sum(1)
        self.variation = torch.maximum(self.variation, size)
        arrived = unit_sums(self.plan, layer_id, relevance)
        onward = self.below.times(self.state, layer_id, relevance)
        kept = arrived if onward is relevance else unit_sums(self.plan, layer_id, onward)
        allowed = None
        literal = self.clause.get(layer_id)
        if literal is not None:
            own = relevance_pass.only(literal, torch.ones_like(relevance))
            allowed = unit_sums(self.plan, layer_id, own)
        self._do(partial(self._visited, layer_id, arrived, kept, allowed))

    def _visited(
        self, layer_id: int, arrived: Tensor, kept: Tensor, allowed: Tensor | None
    ) -> None:
        self.relevance[layer_id] = kept.cpu().numpy()
        if self.plan.partitions[layer_id].single:
            there = arrived.cpu().numpy() != 0
            inside = np.ones_like(there) if allowed is None else allowed.cpu().numpy() > 0
            for b in range(self.n):
                known = self.reached[b].get(layer_id, False)
                self.reached[b][layer_id] = there[b] | (known & inside[b])

    def weigh(self, name: str, relevance: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Take the step through one operation: its edges, and the relevance of its operands."""
        net, state = self.plan.network, self.state
        layer_id, op = net.layout.layer_of[name], net.layout.weighings[name]
        kernel = flow(state, name)
        weighed = [share.weigh(relevance) for share in kernel.shares]
        made: list[list[Block]] = [[] for _ in range(self.n)]
        for k, operand in enumerate(op.operands):
            terms = [
                (term, share, s)
                for share, s in zip(kernel.shares, weighed, strict=True)
                for term in share.terms
                if term.operand == k
            ]
            # Of a walk that steps over a set it must pass through, nothing is in the event.
            if not terms or _is(self.below.below(name, operand), 0.0):
                continue
            total = self._operand(name, op, k, terms, made)
            yield operand, total
        for b, blocks in enumerate(made):
            self._do(partial(self._finish, b, layer_id, blocks))
        self._absorb(name, relevance, kernel, weighed)

    def _operand(
        self, name: str, op: Weighing, k: int, terms: list[Any], made: list[list[Block]]
    ) -> Tensor:
        """Relevance of operand k; its edges are appended to ``made``."""
        kind, x = op.maps[k], self.state.values[op.operands[k]]
        layer_id = self.plan.network.layout.layer_of[name]
        dst = self.plan.partitions[layer_id].labels
        modes = [self._mode(name, op, k, dst, labels) for labels in self.labels]
        h = self.below.below(name, op.operands[k])
        # What goes on from the operand: x' h in place of x'.
        onward = [term.x if _is(h, 1.0) else term.x * h for term, _, _ in terms]
        constant = self.state.constant.get(op.operands[k])
        if constant is not None:  # what a rule gives to constants is bias, and no edge
            onward = [ahead.masked_fill(constant != 0, 0) for ahead in onward]
        fused = all(found is not None and found[0] == "channels" for found in modes)
        backs: list[Tensor] = []
        tables: list[list[Tensor]] = []
        for (term, _, s), ahead in zip(terms, onward, strict=True):
            if fused:
                pairs = [
                    kind.both(s[b : b + 1], term.weight, ahead[b : b + 1])  # type: ignore[union-attr]
                    for b in range(self.n)
                ]
                backs.append(pairs[0][0] if self.n == 1 else torch.cat([p[0] for p in pairs]))
                tables.append([p[1] for p in pairs])
            else:
                backs.append(kind.transpose(s, term.weight, x))
        batches = self.plan.network.layout.batches
        above, below = batches[name], batches[op.operands[k]]
        like = op.like(k)

        def weight_of(term: Any, b: int) -> Tensor:
            if isinstance(kind, Jacobian):  # a matrix for every sample, whatever the operand's axes
                return term.weight[b : b + 1]  # type: ignore[no-any-return]
            if like is None or term.weight.ndim != self.state.values[like].ndim:
                return term.weight  # type: ignore[no-any-return]
            return batches[like].one(term.weight, b)

        for b in range(self.n):
            pieces = [
                Piece(
                    below.one(ahead, b),
                    weight_of(term, b),
                    above.one(share.d.expand_as(s), b),
                    share.scale,
                    above.one(s, b),
                    below.one(back, b),
                )
                for (term, share, s), ahead, back in zip(terms, onward, backs, strict=True)
            ]
            gradients = [table[b] for table in tables] if fused else None
            self._do(partial(self._rows, b, name, op, k, modes[b], pieces, gradients, made[b]))
        shares = [term.x * back for (term, _, _), back in zip(terms, backs, strict=True)]
        total: Tensor = sum(shares[1:], shares[0])
        return total

    def _rows(
        self,
        b: int,
        name: str,
        op: Weighing,
        k: int,
        how: Any,
        pieces: list[Piece],
        gradients: list[Tensor] | None,
        made: list[Block],
    ) -> None:
        """Edges of operand k for one sample, appended to ``made``."""
        layer_id, kind = self.plan.network.layout.layer_of[name], op.maps[k]
        ends = Ends(self.plan, layer_id, self.labels[b][op.operands[k]], self._alive(b, layer_id))
        if how is None:
            count = op.dense_edges(k, tuple(pieces[0].s.shape), tuple(pieces[0].x.shape))
            blocks = triple_blocks(ends, (name, k), kind, pieces, count)
        elif how[0] == "channels":
            if gradients is None:
                gradients = [kind.weight_gradient(p.s, p.weight, p.x) for p in pieces]  # type: ignore[union-attr]
            blocks = channel_blocks(ends, (name, k), kind, pieces, gradients, *how[1:])  # type: ignore[arg-type]
        elif how[0] == "vector":
            blocks = vector_blocks(ends, (name, k), pieces, *how[1:])
        elif how[0] == "features":
            blocks = feature_blocks(ends, (name, k), pieces, *how[1:])
        elif how[0] == "up":
            below = self.plan.network.layout.batches[op.operands[k]]
            blocks = up_blocks(ends, (name, k), kind, pieces, below, *how[1:])
        elif how[0] == "down":
            above = self.plan.network.layout.batches[name]
            blocks = down_blocks(ends, (name, k), kind, pieces, above, *how[1:])
        elif how[0] == "sets":
            blocks = set_blocks(ends, (name, k), kind, pieces, *how[1:])  # type: ignore[arg-type]
        else:
            blocks = probe_blocks(ends, (name, k), kind, pieces, *how[1:])
        made += self._onward(b, layer_id, blocks)

    def _onward(self, b: int, layer_id: int, blocks: Iterable[Block]) -> Iterator[Block]:
        """Blocks whose q is that of the conjunction: ``q(i|j) h(i) / h(j)``."""
        name = self.plan.network.values[layer_id]
        h = self.below.at(name) if self.plan.partitions[layer_id].single else 1.0
        if isinstance(h, float):  # 1: where it is 0 there are no edges
            yield from blocks
            return
        own = self.state.samples(name, h)[b : b + 1]
        units = unit_sums(self.plan, layer_id, own)[0].cpu().numpy()
        units = np.where(units == 0, np.nan, units)
        for block in blocks:
            yield block if block.q is None else replace(block, q=block.q / units[block.dst])

    def _mode(self, name: str, op: Weighing, k: int, dst: Any, labels: Any) -> Any:
        key = ("mode", name, k)
        if self.plan.labels is not None and key in self.plan.kept:
            return self.plan.kept[key]
        source, net = labels[op.operands[k]], self.plan.network
        ends = Ends(self.plan, net.layout.layer_of[name], source, None)
        fine = ends.single and any(
            self.plan.partitions[layer].single
            for layer, _ in ends.layers(np.unique(source[source >= 0]))
        )
        found = mode(op, k, net, name, dst, source, fine)
        if self.plan.labels is not None:
            self.plan.kept[key] = found
        return found

    def _alive(self, b: int, layer_id: int) -> Any:
        """Units of a layer that a walk reaches; None where units are groups."""
        part = self.plan.partitions[layer_id]
        if not part.single:
            return None
        return self.reached[b].setdefault(layer_id, np.zeros(part.n_units, bool))

    def _finish(self, b: int, layer_id: int, made: list[Block]) -> None:
        """Merge an operation's blocks by source layer and note what they reach."""
        sources: dict[int, list[Block]] = defaultdict(list)
        for block in made:
            sources[block.src_layer].append(block)
        for source, blocks in sorted(sources.items()):
            block = blocks[0]
            if len(blocks) > 1:  # what several operands give may cancel
                block = merged(blocks)
                block = block.where((block.relevance if block.q is None else block.q) != 0)
            self.blocks[b].append(self._pruned(b, block))
            below = self.plan.partitions[source]
            if below.single:
                reached = self.reached[b].setdefault(source, np.zeros(below.n_units, bool))
                if self.plan.partitions[layer_id].single:
                    reached[block.src[block.src >= 0]] = True
                else:
                    # From a group, of which it is not known which neuron read it.
                    reached |= self._awake(b, source)

    def _awake(self, b: int, layer_id: int) -> Any:
        """Units that may hold relevance, of a layer of single neurons."""
        neurons = awake(self.state, self.plan.network.values[layer_id])
        if neurons is None:
            return True
        own = neurons[b : b + 1].to(self.start.dtype)
        return unit_sums(self.plan, layer_id, own)[0].cpu().numpy() > 0

    def _pruned(self, b: int, block: Block) -> Block:
        """Keep what the limit of the block's layers allows."""
        key = (block.dst_layer, block.src_layer)
        limit = self.plan.limits.get(key)
        if limit is None:
            return block
        if not (block.src == PRUNED).any():  # not done already, in chunks
            block = prune(block, limit)
        lost = block.relevance[(block.src == PRUNED) & (block.dst >= 0)].sum(dtype=np.float64)
        self.pruned[b][block.dst_layer] += float(lost)
        return block

    def _absorb(self, name: str, relevance: Tensor, kernel: Flow, weighed: list[Tensor]) -> None:
        """Pseudo-edges of a layer, and their totals."""
        layer_id, see = self.plan.network.layout.layer_of[name], self.state.samples
        if not self.below.absorbs(layer_id):
            return
        part = self.plan.partitions[layer_id]
        found: list[tuple[int, Tensor, Tensor | None]] = []
        sums = [unit_sums(self.plan, layer_id, see(name, s)) for s in weighed]
        whole = dict(kernel.absorbed()) if part.single else {}
        rest = ((STABILIZER, kernel.unplaced), (BIAS, kernel.held), (REMAINDER, kernel.remainder))
        for unit, extra in rest:
            parts: list[Tensor] = []
            q = None
            for share, s, own_sums in zip(kernel.shares, weighed, sums, strict=True):
                if unit == BIAS and share.bias is not None:
                    parts.append(self._bias(name, s, own_sums, share.bias))
                elif unit == STABILIZER and share.eps and share.sign:
                    # s is R scale / d, and d has this sign wherever R is: R scale / |d| is s.
                    parts.append(own_sums * (share.sign * share.eps))
                elif unit == STABILIZER and share.eps:
                    lost = relevance * (share.eps * share.scale) / share.d.abs()
                    parts.append(unit_sums(self.plan, layer_id, see(name, lost)))
            if extra is not None:
                parts.append(unit_sums(self.plan, layer_id, see(name, relevance * extra)))
            if not parts:
                continue
            if part.single:
                own = see(name, whole[unit].expand_as(relevance))
                q = unit_sums(self.plan, layer_id, own)
            found.append((unit, sum(parts[1:], parts[0]), q))
        self._do(partial(self._absorbed, layer_id, found))

    def _absorbed(self, layer_id: int, tensors: list[tuple[int, Tensor, Tensor | None]]) -> None:
        part = self.plan.partitions[layer_id]
        found = [
            (unit, total.cpu().numpy(), None if q is None else q.cpu().numpy())
            for unit, total, q in tensors
        ]
        units = np.arange(part.n_units)
        for b in range(self.n):
            ends = Ends(self.plan, layer_id, None, self._alive(b, layer_id))
            blocks = [
                Block(
                    layer_id,
                    layer_id,
                    units,
                    np.full_like(units, unit),
                    total[b],
                    None if q is None else q[b],
                )
                for unit, total, q in found
            ]
            if blocks:
                self.blocks[b] += self._onward(b, layer_id, [ends.finish(merged(blocks))])
        self.absorbed[layer_id] = [
            (unit, total.sum(1, dtype=np.float64)) for unit, total, _ in found
        ]

    def _bias(self, name: str, s: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
        """Sum ``s * bias`` by unit, from the sums of s where a unit has one bias."""
        layer_id = self.plan.network.layout.layer_of[name]
        per_channel = bias.ndim == s.ndim and bias.numel() == bias.shape[1] == s.shape[1]
        plain = self.plan.network.layout.batches[name].plain
        if plain and per_channel and regular(self.plan, layer_id):
            return sums * bias.flatten()
        return unit_sums(self.plan, layer_id, self.state.samples(name, s * bias))

    def edges(self, b: int) -> pa.Table:
        """Edge table of a sample."""
        return edge_rows(self.blocks[b], self.start.cpu().numpy().dtype)

    def nodes(self, b: int) -> pa.Table:
        """Node table of a sample."""
        kind = self.start.cpu().numpy().dtype
        columns: list[tuple[Any, ...]] = []
        for i, name in enumerate(self.plan.network.values):
            part = self.plan.partitions[i]
            sums = self.relevance[i][b] if i in self.relevance else np.zeros(part.n_units, kind)
            means = mean_activations(self.plan, self.state, name)[b]
            lost = [(u, t[b]) for u, t in self.absorbed.get(i, ())]
            columns += node_columns(i, sums, means, [*lost, (PRUNED, self.pruned[b][i])])
        return node_rows(columns, kind)
