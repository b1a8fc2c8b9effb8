"""Edges of one operand of one operation, for one sample of a batch.

With ``s = R * factor`` an edge is ``x'_i w'_ij s_j``, summed over the neurons of two units
(arXiv:2606.00557).  No autograd is needed: a convolution's channel table is
``w * conv_weight(x, s)`` summed over the window, which is one weight gradient.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from nrm_graph.errors import InputError
from nrm_graph.network.maps.convolution import Convolution
from nrm_graph.network.maps.linear import Dense
from nrm_graph.tables.edge_block import Block, merged
from nrm_graph.tables.plan import Columns, along, columns
from nrm_graph.tables.pruning import select

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from nrm_graph.network.maps.convolution import Triples
    from nrm_graph.network.maps.linear import Map
    from nrm_graph.tables.plan import Plan

MAX_TRIPLES = 60_000_000
"""Neuron-level edges of one operation that fit in memory at once."""

CHUNK = 1 << 22
"""Table entries that are worked on at once."""


class Piece(NamedTuple):
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

    def layers(self, units: Any) -> list[tuple[int, slice]]:
        """Split ascending global units by layer."""
        found = np.searchsorted(self.plan.first, units, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(found)) + 1).tolist(), len(found)]
        return [(int(found[a]), slice(a, b)) for a, b in itertools.pairwise(cuts) if a < b]

    def finish(self, block: Block) -> Block:
        """Drop what no walk reaches, and exact zeros of what is not a single neuron's."""
        if block.q is None:
            return block.where(block.relevance != 0)
        keep = block.q != 0
        if self.alive is not None:
            keep &= self.alive[block.dst]
        return block.where(keep)


def matrix_blocks(
    ends: Ends, table: Tensor, q: Tensor | None, rows: Columns, cols: Columns
) -> Iterator[Block]:
    """Blocks of a dense (dst, src) table of one sample."""

    def array(values: Tensor) -> Any:
        values = cols.sum(values)
        if rows.run != 1:
            values = rows.sum(values.T).T
        return values.cpu().numpy()

    values = array(table)
    shares = None if q is None else array(q)
    for layer, part in ends.layers(cols.units):
        mine = np.ascontiguousarray(values[:, part]).ravel()
        width = part.stop - part.start
        share = None
        if shares is not None and ends.plan.partitions[layer].single:
            share = np.ascontiguousarray(shares[:, part]).ravel()
        above = rows.units.astype(np.int32)
        below = (cols.units[part] - ends.plan.first[layer]).astype(np.int32)
        block = Block(
            ends.dst_layer,
            layer,
            np.repeat(above, width),
            np.tile(below, len(above)),
            mine,
            share,
        )
        yield ends.finish(block)


def kept(plan: Plan, key: tuple[Any, ...], labels: Any) -> Columns:
    """Columns of static labels, made once."""
    if plan.labels is None:
        return columns(labels)
    found = plan.kept.get(key)
    if found is None:
        found = plan.kept[key] = columns(labels)
    return found


def channel_blocks(
    ends: Ends,
    key: tuple[Any, ...],
    kind: Convolution,
    pieces: Sequence[Piece],
    tables: Sequence[Tensor],
    dst: Any,
    src: Any,
) -> Iterator[Block]:
    """Blocks of a convolution between whole channels; ``tables`` are its weight gradients."""
    weighed = [kind.channel_table(p.weight * g) for p, g in zip(pieces, tables, strict=True)]
    q = None
    if ends.single and dst.size == math.prod(ends.plan.partitions[ends.dst_layer].labels.shape):
        shares = [
            kind.channel_table(p.weight * kind.weight_gradient(p.factor, p.weight, p.x))
            for p in pieces
        ]
        q = sum(shares[1:], shares[0])
    table = sum(weighed[1:], weighed[0])
    rows, cols = kept(ends.plan, (*key, "dst"), dst), kept(ends.plan, (*key, "src"), src)
    yield from matrix_blocks(ends, table, q, rows, cols)


def vector_blocks(
    ends: Ends, key: tuple[Any, ...], pieces: Sequence[Piece], dst: Any, src: Any
) -> Iterator[Block]:
    """Blocks of a dense layer between vectors, some rows at a time."""
    cols = kept(ends.plan, (*key, "src"), src)
    n_out, n_in = pieces[0].weight.shape
    step = max(1, CHUNK // n_in)
    values, shares = [], []
    for a in range(0, n_out, step):
        rows = slice(a, a + step)
        value: Any = 0
        share: Any = 0
        for p in pieces:
            # Summed by unit first: what is left is small.
            part = cols.sum(p.weight[rows] * p.x[0])
            value = value + part * p.s[0, rows, None]
            if ends.single:
                share = share + part * p.factor[0, rows, None]
        values.append(value)
        shares.append(share)
    done = Columns(cols.units, cols.place, 1)
    q = torch.cat(shares) if ends.single else None
    rows_ = kept(ends.plan, (*key, "dst"), dst)
    yield from matrix_blocks(ends, torch.cat(values), q, rows_, done)


def feature_blocks(
    ends: Ends, key: tuple[Any, ...], pieces: Sequence[Piece], dst: Any, src: Any
) -> Iterator[Block]:
    """Blocks of a dense layer between features, summed over tokens."""
    table: Any = 0
    for p in pieces:
        s, x = p.s.flatten(0, -2), p.x.flatten(0, -2)
        table = table + p.weight * (s.T @ x)
    rows, cols = kept(ends.plan, (*key, "dst"), dst), kept(ends.plan, (*key, "src"), src)
    yield from matrix_blocks(ends, table, None, rows, cols)


def triple_blocks(
    ends: Ends, key: tuple[Any, ...], kind: Map, pieces: Sequence[Piece], count: int
) -> Iterator[Block]:
    """Blocks from every single neuron-level edge.

    Where the strongest are kept alone, a large operation is taken in chunks whose outputs are
    its own, so that memory is bounded by a chunk and by what is kept.
    """
    z, x = tuple(pieces[0].s.shape), tuple(pieces[0].x.shape)
    shape, plan, layer = tuple(pieces[0].weight.shape), ends.plan, ends.dst_layer
    chunks = None
    own = chunked_by(plan, layer)
    if count > CHUNK and own and isinstance(kind, Convolution | Dense):
        sources = [s for s, _ in ends.layers(np.unique(ends.src[ends.src >= 0]))]
        limits = {(layer, s): plan.limits.get((layer, s)) for s in sources}
        if all(limits.values()):
            chunks = kind.chunks(z, x, shape, CHUNK, whole=own == "channels")
    if chunks is not None:

        def made() -> Iterator[Block]:
            for channels, lines in chunks:
                found = kind.triples(z, x, shape, channels, lines)  # type: ignore[call-arg]
                yield from _triples(ends, pieces, found)

        yield from select(made, {k: v for k, v in limits.items() if v is not None})
        return
    if count > MAX_TRIPLES:
        raise _too_large(plan.network.layout.topology.layers[layer].name, count)
    found = plan.kept.get((key, "triples"))
    if found is None:
        found = kind.triples(z, x, shape)
        if count <= CHUNK:
            plan.kept[key, "triples"] = found
    yield from _triples(ends, pieces, found)


def chunked_by(plan: Plan, layer: int) -> str:
    """Which parts of a layer share no unit: ``neurons``, whole ``channels``, or none."""
    part = plan.partitions[layer]
    if part.single:
        return "neurons"
    own = along(part.labels, 0) if part.labels.ndim > 1 else None
    return "channels" if own is not None and len(own) == part.n_units else ""


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
        limited = (group.dst, group.src) in plan.limits and chunked_by(plan, group.dst)
        if fine and not vectors and not limited and group.dense_edges > MAX_TRIPLES:
            raise _too_large(f"{upper.name} and {lower.name}", group.dense_edges)


def _too_large(name: str, count: int) -> InputError:
    return InputError(
        f"{name}: {count:,} neuron-level edges are more than {MAX_TRIPLES:,}: choose the "
        "resolution 'channel' for the layer and for what it reads, or keep the strongest edges "
        "alone with coverage= or top="
    )


def _triples(ends: Ends, pieces: Sequence[Piece], triples: Triples) -> Iterator[Block]:
    o, i, e = triples
    dst = ends.plan.partitions[ends.dst_layer].labels.ravel()[o]
    if ends.alive is not None and ends.single:
        chosen = np.flatnonzero(ends.alive[dst])
        o, i, e, dst = o[chosen], i[chosen], e[chosen], dst[chosen]
    relevance: Any = 0
    q: Any = 0
    for p in pieces:
        part = _flat(p.weight)[e] * _flat(p.x)[i]
        relevance = relevance + part * _flat(p.s)[o]
        q = q + part * _flat(p.factor)[o]
    src = ends.src.ravel()[i]
    keep = (q != 0) & (src >= 0)
    yield from loose_rows(ends, dst[keep], src[keep], relevance[keep], q[keep])


def _flat(values: Tensor) -> Any:
    return values.cpu().numpy().ravel()


def loose_rows(ends: Ends, dst: Any, src: Any, relevance: Any, q: Any) -> Iterator[Block]:
    """Blocks of loose rows, whose ``src`` are global units (negative: constants)."""
    layer = np.searchsorted(ends.plan.first, src, side="right") - 1
    for found in np.unique(layer[src >= 0]):
        mine = np.flatnonzero(layer == found)
        alone = q is not None and ends.single and ends.plan.partitions[found].single
        block = Block(
            ends.dst_layer,
            int(found),
            dst[mine],
            src[mine] - ends.plan.first[found],
            relevance[mine],
            q[mine] if alone else None,
        )
        yield ends.finish(merged([block]))
