"""Node and edge tables of the unconditional measure.

An edge is the event "the walk steps directly from j to i": R(j -> i) = q(i|j) R(j), summed
over the neurons of two units and over parallel routes (arXiv:2606.00557).  No autograd is
needed: with ``s = R * factor`` a convolution's channel table is ``w * conv_weight(x, s)``
summed over the window, one weight gradient per sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from nrm_graph import propagate
from nrm_graph.convolution import Convolution
from nrm_graph.errors import InputError
from nrm_graph.linear import Dense
from nrm_graph.operations import MAX_POOL, SAME, function
from nrm_graph.program import Batch, Ref, Weight
from nrm_graph.topology import BIAS, STABILIZER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nrm_graph.linear import Weighing
    from nrm_graph.propagate import Network, State
    from nrm_graph.rules import Flow
    from nrm_graph.units import Partition

MAX_TRIPLES = 60_000_000
"""Neuron-level edges of one operation that fit in memory at once."""


@dataclass
class _Rows:
    """Edges of one layer: dst unit, global src unit, relevance, and q or NaN."""

    dst: Any
    src: Any
    relevance: Any
    q: Any


def _offsets(partitions: Sequence[Partition]) -> Any:
    return np.concatenate([[0], np.cumsum([part.n_units for part in partitions])])


def unit_labels(
    net: Network, partitions: Sequence[Partition], winners: dict[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """For every value, the global unit that each element was selected from; -1 for constants.

    Parameters
    ----------
    winners : dict of str to Tensor, or None
        Max-pool selections of one sample.  With None, the answer is None if a pool selects
        between units (so that labels depend on the input).

    Returns
    -------
    dict of str to Tensor
        float64, native values of a batch of one; exact for fewer than 2^53 units.
    """
    offsets = _offsets(partitions)
    native, batches = net.program.native_shapes(), net.layout.batches
    labels: dict[str, Tensor] = {}

    def of_layer(name: str) -> Tensor:
        i = net.layout.layer_of[name]
        own = torch.from_numpy(partitions[i].labels.astype(np.float64) + offsets[i])
        return batches[name].native(own[None])

    def argument(value: Any) -> Any:
        if isinstance(value, Ref):
            return labels[value.name]
        if isinstance(value, Weight):
            return torch.full_like(
                net.program.weights[value.name], -1.0, dtype=torch.float64, device="cpu"
            )
        if isinstance(value, Batch):
            return value.scale + value.offset
        if isinstance(value, tuple):
            return [argument(v) for v in value]
        return value

    for name, _ in net.program.inputs:
        labels[name] = of_layer(name)
    for node in net.program.nodes:
        references = list(node.references())
        if node.name in net.layout.layer_of:
            labels[node.name] = of_layer(node.name)
        elif not references:
            labels[node.name] = torch.full(native[node.name], -1.0, dtype=torch.float64)
        elif node.op in SAME:
            labels[node.name] = labels[references[0]].expand(native[node.name])
        elif node.op in MAX_POOL:
            source, args = labels[references[0]], [argument(a) for a in node.args[1:]]
            high = propagate.max_pool(node.op, [source, *args])[0]
            low = -propagate.max_pool(node.op, [-source, *args])[0]
            if not torch.equal(high, low):
                if winners is None:
                    return None
                spatial = MAX_POOL[node.op]
                index = winners[node.name].cpu().flatten(-spatial)
                high = source.flatten(-spatial).gather(-1, index).reshape(high.shape)
            labels[node.name] = high
        elif node.op == "aten.masked_fill.Scalar":
            mask = net.program.weights[node.args[1].name].cpu()
            labels[node.name] = labels[references[0]].masked_fill(mask, -1.0)
        elif node.op in ("aten.pad.default", "aten.constant_pad_nd.default") and (
            len(node.args) < 3
            or node.args[2] in ("constant", None)
            or node.op != "aten.pad.default"
        ):
            source = labels[references[0]]
            labels[node.name] = torch.nn.functional.pad(source, list(node.args[1]), value=-1.0)
        else:
            kwargs = {k: argument(v) for k, v in node.kwargs}
            labels[node.name] = function(node.op)(*[argument(a) for a in node.args], **kwargs)
    return labels


def edge_tables(
    state: State, start: Tensor, partitions: Sequence[Partition]
) -> list[tuple[pa.Table, pa.Table]]:
    """Complete node and edge tables of every sample of a batch.

    Parameters
    ----------
    state : State
        Activations of N inputs.
    start : Tensor, (N, outputs)
        Initial relevance.
    partitions : sequence of Partition
        Units of every layer.

    Returns
    -------
    list of (nodes, edges)
        Arrow tables with the columns of a store, without ``input_id``; edges are sorted by
        (dst_layer, src_layer, dst_unit, src_unit).  Exact zeros are left out, but where both
        units are single neurons a row with q != 0 stays if any walk reaches its dst.
    """
    net = state.network
    relevance: dict[int, Tensor] = {}
    lost: dict[tuple[int, str], Tensor] = {}
    with torch.no_grad():
        propagate.relevance_pass(
            state,
            start,
            visit=relevance.__setitem__,
            absorb=lambda i, kind, r: lost.__setitem__((i, kind), r),
        )
        static = unit_labels(net, partitions, None)
        tables = []
        for b in range(start.shape[0]):
            labels = static
            if labels is None:
                own = {
                    name: net.layout.batches[name].one(w, b) for name, w in state.winners.items()
                }
                labels = unit_labels(net, partitions, own)
            assert labels is not None
            nodes = _nodes(state, relevance, lost, partitions, b)
            edges = _edges(state, relevance, partitions, labels, b)
            tables.append((nodes, edges))
    return tables


def _sums(part: Partition, values: Tensor) -> Any:
    flat = values.double().cpu().numpy().ravel()
    return np.bincount(part.labels.ravel(), flat, minlength=part.n_units)


def _nodes(
    state: State,
    relevance: dict[int, Tensor],
    lost: dict[tuple[int, str], Tensor],
    partitions: Sequence[Partition],
    b: int,
) -> pa.Table:
    net = state.network
    kind = state.output.cpu().numpy().dtype
    columns: list[tuple[Any, ...]] = []
    for name, i in net.layout.layer_of.items():
        part = partitions[i]
        sums = _sums(part, relevance[i][b]) if i in relevance else np.zeros(part.n_units)
        after = net.layout.activation[name]
        after = after if after in state.values else name
        value = state.samples(after, state.values[after])[b]
        if tuple(value.shape) != net.layout.topology.layers[i].shape:
            value = state.samples(name, state.values[name])[b]
        means = _sums(part, value) / np.maximum(np.bincount(part.labels.ravel()), 1)
        (kept,) = np.nonzero((sums != 0) | (means != 0))
        columns.append((i, kept, sums[kept], means[kept]))
        pseudo = [(u, lost.get((i, k))) for u, k in ((STABILIZER, "stabilizer"), (BIAS, "bias"))]
        totals = [(u, float(t[b].double().sum())) for u, t in pseudo if t is not None]
        units_, values = [u for u, t in totals if t], [t for _, t in totals if t]
        columns.append(
            (i, np.array(units_, np.int64), np.array(values), np.full(len(values), np.nan))
        )
    layer = np.concatenate([np.full(len(c[1]), c[0], np.int16) for c in columns])
    unit, sums, means = (np.concatenate([c[k] for c in columns]) for k in (1, 2, 3))
    return pa.table(
        {
            "layer_id": layer,
            "unit": unit.astype(np.int32),
            "relevance": sums.astype(kind),
            "activation": pa.array(means.astype(kind), mask=unit < 0),
        }
    )


def _edges(
    state: State,
    relevance: dict[int, Tensor],
    partitions: Sequence[Partition],
    labels: dict[str, Tensor],
    b: int,
) -> pa.Table:
    net = state.network
    offsets = _offsets(partitions)
    # Which neurons any walk reaches; None where units are groups.
    reached: dict[int, Any] = {}
    top = net.layout.topology.output.layer_id
    names = {i: name for name, i in net.layout.layer_of.items()}
    out: list[tuple[Any, ...]] = []
    for i in sorted(names, reverse=True):
        if names[i] not in net.layout.weighings:
            continue
        r = relevance.get(i)
        part = partitions[i]
        if r is None:
            continue
        alive = None
        if part.single:
            alive = reached.get(i, np.zeros(part.n_units, bool)) if i != top else None
            if i == top:
                alive = (r[b] != 0).cpu().numpy().ravel()
        op, kernel = net.layout.weighings[names[i]], propagate.flow(state, names[i])
        rows = _operation(op, kernel, state, names[i], r, part, partitions, labels, b)
        rows += _pseudo(kernel, state, names[i], r, part, b)
        table = _merge(rows, int(offsets[-1]))
        source = np.searchsorted(offsets, table.src, side="right") - 1
        source[table.src < 0] = i
        single = np.array([p.single for p in partitions])[source] & part.single
        keep = table.relevance != 0
        if alive is not None:
            keep |= single & (table.q != 0)
            keep &= alive[table.dst]
        unit = np.where(table.src < 0, table.src, table.src - offsets[source])
        dst, source, unit, rel, q, single = (
            c[keep] for c in (table.dst, source, unit, table.relevance, table.q, single)
        )
        for s in np.unique(source):
            if s == i:
                continue
            below, mine = partitions[s], source == s
            if below.single:
                mark = reached.setdefault(int(s), np.zeros(below.n_units, bool))
                if alive is None:
                    mark[:] = True  # reached from a group: which neurons of it is not known
                else:
                    mark[unit[mine]] = True
        order = np.lexsort((unit, dst, source))
        out.append(
            (
                np.full(len(dst), i, np.int16),
                *(c[order] for c in (dst, source, unit, rel, q)),
                ~single[order],
            )
        )
    kind = state.output.cpu().numpy().dtype
    out.reverse()
    layer, dst, source, unit, rel, q, missing = (
        np.concatenate([o[k] for o in out]) if out else np.zeros(0) for k in range(7)
    )
    return pa.table(
        {
            "dst_layer": layer.astype(np.int16),
            "dst_unit": dst.astype(np.int32),
            "src_layer": source.astype(np.int16),
            "src_unit": unit.astype(np.int32),
            "relevance": rel.astype(kind),
            "conditional": pa.array(q.astype(kind), mask=missing.astype(bool)),
        }
    )


def _merge(rows: list[_Rows], n: int) -> _Rows:
    """Sum the rows of equal (dst, src); src may be a negative pseudo-unit."""
    dst, src, rel, q = (
        np.concatenate([getattr(r, k) for r in rows]) for k in ("dst", "src", "relevance", "q")
    )
    nonzero = (rel != 0) | (q != 0)
    dst, src, rel, q = dst[nonzero], src[nonzero], rel[nonzero], q[nonzero]
    key = dst.astype(np.int64) * (n + 4) + (src + 4)
    found, inverse = np.unique(key, return_inverse=True)
    return _Rows(
        found // (n + 4),
        found % (n + 4) - 4,
        np.bincount(inverse, rel, minlength=len(found)),
        np.bincount(inverse, q, minlength=len(found)),
    )


def _pseudo(
    kernel: Flow, state: State, name: str, r: Tensor, part: Partition, b: int
) -> list[_Rows]:
    rows = []
    for unit, share in ((BIAS, kernel.bias), (STABILIZER, kernel.stabilizer)):
        if share is None:
            continue
        share = state.samples(name, share.expand_as(state.values[name]))[b].double()
        units = np.arange(part.n_units)
        q = _sums(part, share) if part.single else np.zeros(part.n_units)
        rows.append(_Rows(units, np.full_like(units, unit), _sums(part, r[b] * share), q))
    return rows


def _operation(
    op: Weighing,
    kernel: Flow,
    state: State,
    value: str,
    r: Tensor,
    part: Partition,
    partitions: Sequence[Partition],
    labels: dict[str, Tensor],
    b: int,
) -> list[_Rows]:
    rows = []
    # One sample's native values: a batch of one, with neurons in the order of the samples' view.
    batches, like = state.network.layout.batches, state.values[value]
    rb = batches[value].native(r[b : b + 1])
    for k, name in enumerate(op.operands):
        terms = [
            (
                batches[name].one(t.x, b),
                t.weight,
                batches[value].one(t.factor.expand_as(like), b),
            )
            for t in kernel.terms
            if t.operand == k
        ]
        source = batches[name].samples(labels[name]).numpy()[0].astype(np.int64)
        conv = op.maps[k]
        plain = batches[value].plain and batches[name].plain
        if (
            isinstance(conv, Convolution)
            and plain
            and _by_channel(part.labels)
            and _by_channel(source)
        ):
            rows.append(_channels(conv, terms, rb, part.labels, source))
        elif isinstance(conv, Dense) and plain and r.ndim == 2:
            rows.append(_dense(terms, rb, part, source))
        else:
            rows.append(_triples(op, k, terms, rb, part, source, partitions))
    return rows


def _by_channel(labels: Any) -> bool:
    flat = labels.reshape(labels.shape[0], -1)
    return bool((flat == flat[:, :1]).all())


def _table(values: Any, dst: Any, src: Any, q: Any = None) -> _Rows:
    """Rows of a dense (dst, src) table; columns of constants (-1) are bias already."""
    i, j = np.nonzero((values != 0) if q is None else (q != 0))
    real = src[j] >= 0
    i, j = i[real], j[real]
    return _Rows(dst[i], src[j], values[i, j], np.zeros(len(i)) if q is None else q[i, j])


def _channels(conv: Convolution, terms: Any, r: Tensor, labels: Any, source: Any) -> _Rows:
    total: Any = 0
    for x, w, factor in terms:
        gradient = conv.weight_gradient(r * factor, w, x)
        total = total + conv.channel_table(w * gradient).double()
    dst = labels.reshape(labels.shape[0], -1)[:, 0]
    src = source.reshape(source.shape[0], -1)[:, 0]
    values = total.cpu().numpy()
    single = labels[0].size == 1 and source[0].size == 1
    if single:  # 1x1 maps: both ends are neurons
        q: Any = 0
        for x, w, factor in terms:
            gradient = conv.weight_gradient(factor.contiguous(), w, x)
            q = q + conv.channel_table(w * gradient).double()
        return _table(values, dst, src, q.cpu().numpy())
    return _table(values, dst, src)


def _dense(terms: Any, r: Tensor, part: Partition, source: Any) -> _Rows:
    q: Any = 0
    for x, w, factor in terms:
        q = q + (factor[0].double()[:, None] * w.double()) * x[0].double()
    values = (q * r[0].double()[:, None]).cpu().numpy()
    q = q.cpu().numpy()
    src, inverse = np.unique(source, return_inverse=True)
    if len(src) == len(source) and part.single:
        return _table(values, part.labels, source, q)
    # Group the operand's columns by unit before any row is made.
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(src)))
    # A neuron read at several positions (overlapping pools, a concat with itself) counts once.
    values, q = (np.add.reduceat(v[:, order], starts, axis=1) for v in (values, q))
    return _table(values, part.labels, src, q if part.single else None)


def _triples(
    op: Weighing,
    k: int,
    terms: Any,
    r: Tensor,
    part: Partition,
    source: Any,
    partitions: Sequence[Partition],
) -> _Rows:
    z, x = tuple(r.shape), tuple(terms[0][0].shape)
    found = op.weights[k]
    shape = tuple(found.shape) if found is not None else ()
    count = op.maps[k].dense_edges(z, x, shape)
    if count > MAX_TRIPLES:
        raise InputError(
            f"a {op.kind} of output shape {z} has {count:,} neuron-level edges, more than "
            f"{MAX_TRIPLES:,}: choose the resolution 'channel' for it and for what it reads"
        )
    o, i, e = op.maps[k].triples(z, x, shape)
    q = np.zeros(len(o))
    for tx, w, factor in terms:
        flat = [t.double().cpu().numpy().ravel() for t in (factor, w.expand(shape), tx)]
        q += flat[0][o] * flat[1][e] * flat[2][i]
    src = source.ravel()[i]
    kept = (q != 0) & (src >= 0)
    o, q, src = o[kept], q[kept], src[kept]
    rel = q * r.double().cpu().numpy().ravel()[o]
    return _Rows(part.labels.ravel()[o].astype(np.int64), src, rel, q)
