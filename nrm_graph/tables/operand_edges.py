"""The step from a layer to one operand: its relevance, and the edges of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from nrm_graph.network.maps.linear import Jacobian
from nrm_graph.tables.aggregated_edges import down_blocks, probe_blocks, set_blocks, up_blocks
from nrm_graph.tables.dense_edges import (
    Ends,
    SampleTerm,
    channel_blocks,
    feature_blocks,
    triple_blocks,
    vector_blocks,
)
from nrm_graph.tables.edge_methods import edge_method

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from nrm_graph.network.ir.batch_axis import BatchAxis
    from nrm_graph.network.maps.linear import Weighing
    from nrm_graph.propagation.state import State
    from nrm_graph.rules.base import Share, Term
    from nrm_graph.tables.bounded import Piece
    from nrm_graph.tables.dense_edges import OperandKey
    from nrm_graph.tables.edge_methods import Method
    from nrm_graph.tables.plan import Plan
    from nrm_graph.tables.unit_labels import Labels


class WeighedTerm(NamedTuple):
    """A term of an operand, the share it belongs to, and that share's ``s``."""

    term: Term
    share: Share
    s: Tensor


@dataclass(frozen=True)
class Operand:
    """Operand k of the operation that makes a layer.

    Attributes
    ----------
    plan : Plan
        Units of the network's layers.
    layer_id : int
        The layer.
    name : str
        Its value in the program.
    op : Weighing
        The operation.
    k : int
        Number of the operand.
    """

    plan: Plan
    layer_id: int
    name: str
    op: Weighing
    k: int

    @property
    def value(self) -> str:
        """The operand's value in the program."""
        return self.op.operands[self.k]

    @property
    def key(self) -> OperandKey:
        """What tells this operand from all others of the network."""
        return self.name, self.k

    @property
    def kind(self) -> Any:
        """The linear map from the operand to the layer."""
        return self.op.maps[self.k]

    def method(self, labels: Mapping[str, Labels]) -> Method | None:
        """Choose how its edges are computed; once where labels do not depend on the input."""
        plan, key = self.plan, ("mode", *self.key)
        if plan.labels is not None and key in plan.cache:
            method: Method | None = plan.cache[key]
            return method
        dst, source = plan.partitions[self.layer_id].labels, labels[self.value]
        ends = Ends(plan, self.layer_id, source, None)
        fine = ends.single and any(
            plan.partitions[layer].single
            for layer, _ in ends.layers(np.unique(source[source >= 0]))
        )
        method = edge_method(self.op, self.k, plan.network, self.name, dst, source, fine)
        if plan.labels is not None:
            plan.cache[key] = method
        return method

    def batches(self) -> tuple[BatchAxis, BatchAxis]:
        """Where the layer and the operand keep their batch."""
        batches = self.plan.network.layout.batches
        return batches[self.name], batches[self.value]


class Backward(NamedTuple):
    """What a step gives back to an operand.

    Attributes
    ----------
    backs : list of Tensor
        Transpose of every term's s, native.
    gradients : list of list of Tensor, or None
        Weight gradients by sample and term, where they are computed with the transposes.
    """

    backs: list[Tensor]
    gradients: list[list[Tensor]] | None


def backward(
    operand: Operand,
    terms: Sequence[WeighedTerm],
    onward: Sequence[Tensor],
    x: Tensor,
    samples: int | None,
) -> Backward:
    """Send the ``s`` of an operand's terms back to it.

    Parameters
    ----------
    onward : sequence of Tensor
        x' of every term, of what goes on from the operand.
    x : Tensor
        Value of the operand.
    samples : int, optional
        Number of samples whose weight gradients are wanted as well: one by one, as they are
        not summed over the batch.
    """
    kind = operand.kind
    if samples is None:
        return Backward([kind.transpose(s, term.weight, x) for term, _, s in terms], None)
    backs: list[Tensor] = []
    gradients: list[list[Tensor]] = [[] for _ in range(samples)]
    for (term, _, s), ahead in zip(terms, onward, strict=True):
        pairs = [kind.both(s[b : b + 1], term.weight, ahead[b : b + 1]) for b in range(samples)]
        backs.append(pairs[0][0] if samples == 1 else torch.cat([back for back, _ in pairs]))
        for of_sample, (_, gradient) in zip(gradients, pairs, strict=True):
            of_sample.append(gradient)
    return Backward(backs, gradients)


def sample_terms(
    operand: Operand,
    state: State,
    terms: Sequence[WeighedTerm],
    onward: Sequence[Tensor],
    backs: Sequence[Tensor],
    b: int,
) -> list[SampleTerm]:
    """Terms of one sample of a batch."""
    above, below = operand.batches()
    return [
        SampleTerm(
            below.one(ahead, b),
            _weight(operand, state, term, b),
            above.one(share.d.expand_as(s), b),
            share.scale,
            above.one(s, b),
            below.one(back, b),
        )
        for (term, share, s), ahead, back in zip(terms, onward, backs, strict=True)
    ]


def _weight(operand: Operand, state: State, term: Term, b: int) -> Tensor:
    """Weight of a term for one sample."""
    if isinstance(operand.kind, Jacobian):  # a matrix for every sample, whatever the axes
        return term.weight[b : b + 1]
    like = operand.op.like(operand.k)
    if like is None or term.weight.ndim != state.values[like].ndim:
        return term.weight
    return operand.plan.network.layout.batches[like].one(term.weight, b)


def operand_blocks(
    operand: Operand,
    ends: Ends,
    method: Method | None,
    terms: list[SampleTerm],
    gradients: list[Tensor] | None,
) -> Iterator[Piece]:
    """Edges of an operand for one sample.

    Parameters
    ----------
    gradients : list of Tensor, or None
        Weight gradients of the pieces, where they are known.
    """
    kind, key = operand.kind, operand.key
    above, below = operand.batches()
    if method is None:
        z, x = tuple(terms[0].s.shape), tuple(terms[0].x.shape)
        count = operand.op.dense_edges(operand.k, z, x)
        return triple_blocks(ends, key, kind, terms, count)
    dst, src = method.dst, method.src
    if method.name == "channels":
        if gradients is None:
            gradients = [kind.weight_gradient(p.s, p.weight, p.x) for p in terms]
        return channel_blocks(ends, key, kind, terms, gradients, dst, src)
    if method.name == "vector":
        return vector_blocks(ends, key, terms, dst, src)
    if method.name == "features":
        return feature_blocks(ends, key, terms, dst, src)
    if method.name == "up":
        return up_blocks(ends, key, kind, terms, below, dst, src, method.fine)
    if method.name == "down":
        return down_blocks(ends, key, kind, terms, above, dst, src)
    if method.name == "sets":
        return set_blocks(ends, key, kind, terms, dst, src)
    return probe_blocks(ends, key, kind, terms, dst, src)
