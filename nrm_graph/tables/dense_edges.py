"""Edges of one operand of one operation, for one sample of a batch.

With ``s = R * factor`` an edge is ``x'_i w'_ij s_j``, summed over the neurons of two units
(arXiv:2606.00557).  No autograd is needed: a convolution's channel table is
``w * conv_weight(x, s)`` summed over the window, which is one weight gradient.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.network.maps.linear import Dense
from nrm_graph.propagation.tensor_sums import total
from nrm_graph.tables.bounded import strongest_of
from nrm_graph.tables.edge_block import Block, merged
from nrm_graph.tables.edge_matrix import Matrix
from nrm_graph.tables.plan import ColumnUnits, along, column_units
from nrm_graph.tables.pruning import select

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from nrm_graph.network.maps.convolution import Triples
    from nrm_graph.network.maps.linear import Map
    from nrm_graph.tables.bounded import Piece
    from nrm_graph.tables.edge_block import Values
    from nrm_graph.tables.plan import Plan
    from nrm_graph.tables.unit_labels import Labels

    OperandKey = tuple[str, int]
    """What tells an operand from all others of the network: a layer's value, and a number."""

T = TypeVar("T")

MAX_TRIPLES = 60_000_000
"""Neuron-level edges of one operation that fit in memory at once."""

CHUNK = 1 << 22
"""Table entries that are worked on at once."""


class SampleTerm(NamedTuple):
    """A term of one sample: x' and w', ``factor = scale / d``, ``s``, and the transpose of s.

    Tensors are native values of a batch of one (see :mod:`nrm_graph.network.ir.batch_axis`).
    """

    x: Tensor
    weight: Tensor
    d: Tensor
    scale: float
    s: Tensor
    back: Tensor

    @property
    def factor(self) -> Tensor:
        """What the products of a neuron are multiplied by."""
        return self.scale / self.d


class Ends(NamedTuple):
    """Where an operand's edges begin and end.

    ``dst_layer`` is the layer of the operation; ``src`` gives the global unit of every element
    of the operand; ``alive`` the units of ``dst_layer`` that a walk reaches (None: all).
    """

    plan: Plan
    dst_layer: int
    src: Any
    alive: Any

    @property
    def single(self) -> bool:
        """Whether the upper ends are single neurons."""
        return self.plan.partitions[self.dst_layer].single

    def layers(self, units: Labels) -> list[tuple[int, slice]]:
        """Split ascending global units by layer."""
        layer_ids = np.searchsorted(self.plan.first, units, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(layer_ids)) + 1).tolist(), len(layer_ids)]
        return [(int(layer_ids[a]), slice(a, b)) for a, b in itertools.pairwise(cuts) if a < b]

    def finish(self, block: Block) -> Block:
        """Drop what no walk reaches, and exact zeros of what is not a single neuron's."""
        if block.q is None:
            return block.where(block.relevance != 0)
        keep = block.q != 0
        if self.alive is not None:
            keep &= self.alive[block.dst]
        return block.where(keep)


def matrix_blocks(
    ends: Ends, table: Tensor, q: Tensor | None, rows: ColumnUnits, cols: ColumnUnits
) -> Iterator[Piece]:
    """Pieces of a dense (dst, src) table of one sample; rows, but where a budget chooses them."""

    def by_unit(values: Tensor) -> Tensor:
        return rows.sum(cols.sum(values).T).T

    values = by_unit(table)
    shares = None if q is None else by_unit(q)
    above = rows.units.astype(np.int32)
    for layer, part in ends.layers(cols.units):
        share = shares if ends.plan.partitions[layer].single else None
        below = (cols.units[part] - ends.plan.first[layer]).astype(np.int32)
        matrix = Matrix(
            ends.dst_layer,
            layer,
            above,
            below,
            values[:, part],
            None if share is None else share[:, part],
        )
        yield ends.finish(matrix.block()) if not ends.plan.chosen else matrix


def cached(plan: Plan, key: tuple[object, ...], make: Callable[[], T]) -> T:
    """Return what follows from static labels, made once."""
    if plan.labels is None:
        return make()
    if key not in plan.cache:
        plan.cache[key] = make()
    value: T = plan.cache[key]
    return value


def both_sides(
    plan: Plan, key: OperandKey, dst: Labels, src: Labels
) -> tuple[ColumnUnits, ColumnUnits]:
    """Units of the rows and of the columns of an operand's table."""
    rows = cached(plan, (*key, "dst"), lambda: column_units(dst))
    return rows, cached(plan, (*key, "src"), lambda: column_units(src))


def channel_blocks(
    ends: Ends,
    key: OperandKey,
    kind: Convolution,
    terms: Sequence[SampleTerm],
    tables: Sequence[Tensor],
    dst: Labels,
    src: Labels,
) -> Iterator[Piece]:
    """Blocks of a convolution between whole channels; ``tables`` are its weight gradients."""
    weighed = [kind.channel_blocks(term.weight * g) for term, g in zip(terms, tables, strict=True)]
    relevance, q = total(weighed), None
    if ends.single and dst.size == math.prod(ends.plan.partitions[ends.dst_layer].labels.shape):
        gradients = (kind.weight_gradient(term.factor, term.weight, term.x) for term in terms)
        shares = zip(terms, gradients, strict=True)
        q = total([kind.channel_blocks(term.weight * share) for term, share in shares])
    groups, outputs, operands = relevance.shape
    if relevance.numel() <= 2 * (len(dst) + len(src)) < len(dst) * len(src):  # by depth, mostly
        group, output, operand = np.indices((groups, outputs, operands)).reshape(3, -1)
        upper, lower = dst[group * outputs + output], src[group * operands + operand]
        there = (upper >= 0) & (lower >= 0)
        share = None if q is None else _flat(q)[there]
        yield from loose_rows(ends, upper[there], lower[there], _flat(relevance)[there], share)
        return
    rows, cols = both_sides(ends.plan, key, dst, src)
    q = None if q is None else kind.channel_table(q)
    yield from matrix_blocks(ends, kind.channel_table(relevance), q, rows, cols)


def vector_blocks(
    ends: Ends, key: OperandKey, terms: Sequence[SampleTerm], dst: Labels, src: Labels
) -> Iterator[Piece]:
    """Blocks of a dense layer between vectors, some rows at a time."""
    rows, cols = both_sides(ends.plan, key, dst, src)
    n_out, n_in = terms[0].weight.shape
    step = max(1, CHUNK // n_in)
    sources = [ends.plan.partitions[layer] for layer, _ in ends.layers(cols.units)]
    single = ends.single and any(part.single for part in sources)
    values, shares = [], []
    for a in range(0, n_out, step):
        part = slice(a, a + step)
        # Summed by unit first: what is left is small.
        sums = [cols.sum(term.weight[part] * term.x[0]) for term in terms]
        pairs = list(zip(sums, terms, strict=True))
        values.append(total([summed * term.s[0, part, None] for summed, term in pairs]))
        if single:
            shares.append(total([summed * term.factor[0, part, None] for summed, term in pairs]))
    done = ColumnUnits(cols.units, len(cols.units))
    q = torch.cat(shares) if single else None
    yield from matrix_blocks(ends, torch.cat(values), q, rows, done)


def feature_blocks(
    ends: Ends, key: OperandKey, terms: Sequence[SampleTerm], dst: Labels, src: Labels
) -> Iterator[Piece]:
    """Blocks of a dense layer between features, summed over tokens."""

    def table(term: SampleTerm) -> Tensor:
        s, x, weight = term.s.flatten(0, -2), term.x.flatten(0, -2), term.weight
        if weight.is_contiguous():
            return (s.T @ x).mul_(weight)
        return (x.T @ s).mul_(weight.T).T  # in the order of the weight's memory

    tables = [table(term) for term in terms]
    rows, cols = both_sides(ends.plan, key, dst, src)
    yield from matrix_blocks(ends, total(tables), None, rows, cols)


def triple_blocks(
    ends: Ends, key: OperandKey, kind: Map, terms: Sequence[SampleTerm], count: int
) -> Iterator[Piece]:
    """Blocks from every single neuron-level edge.

    Where the strongest are kept alone, a large operation is taken in chunks whose outputs are
    its own, so that memory is bounded by a chunk and by what is kept.
    """
    z, x = tuple(terms[0].s.shape), tuple(terms[0].x.shape)
    shape, plan, layer = tuple(terms[0].weight.shape), ends.plan, ends.dst_layer
    chunks = None
    chunked = chunked_by(plan, layer)
    if count > CHUNK and chunked and isinstance(kind, Convolution | Dense):
        sources = [s for s, _ in ends.layers(np.unique(ends.src[ends.src >= 0]))]
        limits = {(layer, s): plan.limits.get((layer, s)) for s in sources}
        if plan.chosen or all(limits.values()):
            chunks = kind.chunks(z, x, shape, CHUNK, whole=chunked == "channels")
    if chunks is not None:

        def chunk_blocks() -> Iterator[Block]:
            for channels, lines in chunks:
                edges = kind.triples(z, x, shape, channels, lines)  # type: ignore[call-arg]
                yield from _triples(ends, terms, edges)

        if plan.picks is not None:
            yield from plan.picks.inside(chunk_blocks())
        elif plan.max_edges is None:
            yield from select(chunk_blocks, {k: v for k, v in limits.items() if v is not None})
        else:
            yield from strongest_of(chunk_blocks(), plan.max_edges)
        return
    if count > MAX_TRIPLES:
        raise _too_large(plan.network.layout.topology.layers[layer].name, count)
    triples = plan.cache.get((key, "triples"))
    if triples is None:
        triples = kind.triples(z, x, shape)
        if count <= CHUNK:
            plan.cache[key, "triples"] = triples
    yield from _triples(ends, terms, triples)


def chunked_by(plan: Plan, layer: int) -> str:
    """Which parts of a layer share no unit: ``neurons``, whole ``channels``, or none."""
    part = plan.partitions[layer]
    if part.single:
        return "neurons"
    channels = along(part.labels, 0) if part.labels.ndim > 1 else None
    return "channels" if channels is not None and len(channels) == part.n_units else ""


def refuse_too_large(plan: Plan) -> None:
    """Refuse tables that would not fit in memory, before anything is computed for them.

    Raises
    ------
    InputError
        If an operation has too many neuron-level edges to hold and none of them is left out.
    """
    layout = plan.network.layout
    for group in layout.topology.groups:
        upper, lower = layout.topology.layers[group.dst], layout.topology.layers[group.src]
        vectors = upper.kind == "dense" and len(upper.shape) == 1
        fine = plan.partitions[group.dst].single or plan.partitions[group.src].single
        limited = plan.max_edges is not None or (group.dst, group.src) in plan.limits
        limited = limited and bool(chunked_by(plan, group.dst))
        if fine and not vectors and not limited and group.dense_edges > MAX_TRIPLES:
            raise _too_large(f"{upper.name} and {lower.name}", group.dense_edges)


def _too_large(name: str, count: int) -> InputError:
    return InputError(
        f"{name}: {count:,} neuron-level edges are more than {MAX_TRIPLES:,}: choose the "
        "resolution 'channel' for the layer and for what it reads, or keep the strongest edges "
        "alone with max_edges=, coverage= or top="
    )


def _triples(ends: Ends, terms: Sequence[SampleTerm], triples: Triples) -> Iterator[Block]:
    o, i, e = triples
    dst = ends.plan.partitions[ends.dst_layer].labels.ravel()[o]
    if ends.alive is not None and ends.single:
        chosen = np.flatnonzero(ends.alive[dst])
        o, i, e, dst = o[chosen], i[chosen], e[chosen], dst[chosen]
    relevance: Any = 0
    q: Any = 0
    for term in terms:
        part = _flat(term.weight)[e] * _flat(term.x)[i]
        relevance = relevance + part * _flat(term.s)[o]
        q = q + part * _flat(term.factor)[o]
    src = ends.src.ravel()[i]
    keep = (q != 0) & (src >= 0)
    yield from loose_rows(ends, dst[keep], src[keep], relevance[keep], q[keep])


def _flat(values: Tensor) -> Values:
    return values.cpu().numpy().ravel()


def loose_rows(
    ends: Ends, dst: Labels, src: Labels, relevance: Values, q: Values | None
) -> Iterator[Block]:
    """Blocks of loose rows, whose ``src`` are global units (negative: constants)."""
    layer = np.searchsorted(ends.plan.first, src, side="right") - 1
    for source in np.unique(layer[src >= 0]):
        mine = np.flatnonzero(layer == source)
        alone = ends.single and ends.plan.partitions[source].single
        block = Block(
            ends.dst_layer,
            int(source),
            dst[mine],
            src[mine] - ends.plan.first[source],
            relevance[mine],
            q[mine] if alone and q is not None else None,
        )
        yield ends.finish(merged([block]))
