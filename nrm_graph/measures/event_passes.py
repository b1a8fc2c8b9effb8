"""Values and node relevances of events: signed sums of conjunctions, batched.

An event is a signed sum of conjunctions (:mod:`nrm_graph.events.conjunctions`); each is one
relevance pass and, where relevance above its lowest set is asked for, one adjoint pass
(:mod:`nrm_graph.propagation.adjoint_pass`).  Many conjunctions about one input make one batch,
which shares the activations and the kernels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nrm_graph.events.conjunctions import Literal
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.network.topology import ENDS
from nrm_graph.progress import uncounted
from nrm_graph.propagation.adjoint_pass import reach
from nrm_graph.propagation.relevance_pass import relevance_pass
from nrm_graph.propagation.state import repeated
from nrm_graph.propagation.tensor_sums import accumulate
from nrm_graph.tables.arrow import blocks_of, edge_rows, with_left_out
from nrm_graph.tables.bounded import bounded
from nrm_graph.tables.builder import edge_tables, sample_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.propagation.adjoint_pass import Reach
    from nrm_graph.propagation.state import State
    from nrm_graph.tables.bounded import Kept
    from nrm_graph.tables.plan import Plan

    Nodes = tuple[dict[int, Tensor], dict[tuple[int, str], Tensor]]
    """Relevance of every layer's neurons; sums of what its pseudo-neurons hold, by kind."""

Terms = tuple[tuple[float, "Clause"], ...]
"""Conjunctions with their coefficients, those of a conditioned measure already over R(B)."""

MEMORY = 1 << 30
"""Bytes that the events of one batch may hold by default."""

READ = 4
"""Values of the largest size that a step upwards has at once."""


def per_pass(
    state: State, memory: int, lowest: int = 0, highest: int = -1, kept: bool = True
) -> int:
    """How many events of one input go through a pass at once, between two layers.

    ``kept`` says whether all of the pass is kept, or only what is still to be read.
    """
    net = state.network
    first, last = (net.position[net.values[i]] for i in (lowest, highest))
    sizes, itemsize = net.program.shapes(), state.output.element_size()
    # About what an adjoint pass keeps, which is more than a relevance pass does.
    values = [math.prod(sizes.get(name, ())) for name, _ in net.order[first : last + 1]]
    one = sum(values) if kept else min(sum(values), READ * max(values))
    return max(1, memory // max(one * itemsize, 1))


@exact
def values(
    state: State,
    start: Tensor,
    clauses: Sequence[Clause],
    known: Callable[[int], Tensor] | None = None,
    memory: int = MEMORY,
    advance: Callable[[int], object] = uncounted,
) -> npt.NDArray[np.float64]:
    """Relevance of conjunctions.

    Parameters
    ----------
    state : State
        Activations of one input.
    start : Tensor, (1, outputs)
        Initial relevance.
    clauses : sequence of Clause
        Conjunctions.
    known : callable, optional
        Relevance ``(1, *shape)`` of a layer without literals, where it was computed before.
    memory : int
        Bytes that a batch may hold.
    advance : callable
        Told how many conjunctions are done, batch by batch.
    """
    relevance = np.zeros(len(clauses))
    alike: dict[tuple[tuple[int, bool], ...], list[int]] = defaultdict(list)
    for i, clause in enumerate(clauses):
        alike[tuple((layer, clause[layer].passes) for layer in sorted(clause))].append(i)
    size = per_pass(state, memory)
    for key, members in alike.items():
        top, passes = key[-1] if key else (-1, False)
        for first in range(0, len(members), size):
            chosen = members[first : first + size]
            stacked = {
                layer: Literal(goes, np.stack([clauses[i][layer].mask for i in chosen]))
                for layer, goes in key
            }
            n = len(chosen)
            # What passes through the topmost set begins there: nothing else is left.
            begin, at = start, None
            if known is not None and passes:
                begin, at = known(top), top
            begin = begin.expand(n, *begin.shape[1:])
            outcome = relevance_pass(repeated(state, n), begin, stacked, at=at)
            relevance[chosen] = outcome.value.cpu().double().numpy()
            advance(n)
    return relevance


@exact
def arrived(
    state: State,
    start: Tensor,
    clause: Clause,
    layer_id: int,
    known: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Relevance ``(1, *shape)`` of what arrives at a layer under the literals down to it.

    ``known`` gives that of any layer without literals, where it was computed before.
    """
    above = {i: literal for i, literal in clause.items() if i >= layer_id}
    if known is not None and not above:
        return known(layer_id)
    shape = state.network.layout.topology.layers[layer_id].shape
    relevance = start.new_zeros(1, *shape)

    def visit(i: int, r: Tensor) -> None:
        nonlocal relevance
        if i == layer_id:
            relevance = r

    relevance_pass(state, start, above, until=layer_id, visit=visit)
    return relevance


@exact
def nodes(state: State, start: Tensor, terms: Terms) -> Nodes:
    """Relevance of every neuron, and what the pseudo-neurons of layers hold, under an event.

    Returns
    -------
    relevance : dict of layer id to Tensor, the layer's shape
        ``R(n & event)``.  A layer that no walk reaches is not there.
    absorbed : dict of (layer id, kind) to Tensor, ()
        The sum of ``R(n, its bias, stabilizer or remainder & event)`` over the layer's neurons.
    """
    relevance: dict[int, Tensor] = {}
    absorbed: dict[tuple[int, str], Tensor] = {}
    for coefficient, clause in terms:
        below = reach(state, clause)

        def visit(layer_id: int, r: Tensor, below: Reach = below) -> None:
            accumulate(relevance, layer_id, below.times(state, layer_id, r)[0])

        relevance_pass(
            state,
            start * coefficient,
            clause,
            visit=visit,
            absorb=lambda layer_id, kind, r: accumulate(absorbed, (layer_id, kind), _sum(r)),
        )
    return relevance, absorbed


def _sum(relevance: Tensor) -> Tensor:
    """Sum of all, as exact as the device can (Apple's have no float64); nothing waits for it."""
    exact_type = torch.float32 if relevance.device.type == "mps" else torch.float64
    return relevance.sum(dtype=exact_type)


@exact
def cut(
    state: State, start: Tensor, terms: Terms, layer_id: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Relevance at a layer and at those where walks that bypass it arrive; what ended above.

    Another input of the network bypasses the layer wherever it stands.
    """
    layers = state.network.layout.topology.layers
    arrived: dict[int, float] = defaultdict(float)
    absorbed: dict[int, float] = defaultdict(float)
    for coefficient, clause in terms:
        below = reach(state, clause)

        def stop(i: int, r: Tensor, below: Reach = below) -> bool:
            if i > layer_id and layers[i].kind not in ENDS:
                return False
            arrived[i] += float(below.times(state, i, r).sum())
            return True

        def absorb(i: int, kind: str, r: Tensor) -> None:
            absorbed[i] += float(r.sum())

        relevance_pass(state, start * coefficient, clause, absorb=absorb, stop=stop)
    return dict(arrived), dict(absorbed)


def tables(state: State, start: Tensor, terms: Terms, plan: Plan) -> tuple[pa.Table, pa.Table]:
    """Node and edge tables under an event; see :func:`nrm_graph.tables.builder.edge_tables`.

    Of an event that is no single conjunction, walks do not go on independently of where they
    came from: ``conditional`` is null.
    """
    pairs = [
        edge_tables(state, start * coefficient, plan, clause)[0] for coefficient, clause in terms
    ]
    if len(pairs) == 1:
        return pairs[0]
    return _summed([pair[0] for pair in pairs], ["layer_id", "unit"]), _summed(
        [pair[1] for pair in pairs], ["dst_layer", "src_layer", "dst_unit", "src_unit"]
    )


def bounded_tables(
    state: State, start: Tensor, terms: Terms, plan: Plan, rows: int
) -> tuple[pa.Table, pa.Table, Kept]:
    """Return the tables under an event, of so many edges at most, and what was kept.

    See :mod:`nrm_graph.tables.bounded`.  Of an event that is no single conjunction the complete
    tables are made and summed first.
    """
    if len(terms) == 1:
        ((coefficient, clause),) = terms
        few = replace(plan, max_edges=rows)
        (of_sample,) = sample_tables(state, start * coefficient, few, clause)
        assert of_sample.kept is not None
        return of_sample.nodes, of_sample.edges, of_sample.kept
    nodes, edges = tables(state, start, terms, plan)
    kept = bounded(blocks_of(edges), [part.n_units for part in plan.partitions], rows)
    kind = edges.schema.field("relevance").type.to_pandas_dtype()
    return with_left_out(nodes, kept.lost), edge_rows(kept.blocks, kind), kept


def _summed(parts: list[pa.Table], keys: list[str]) -> pa.Table:
    """Sum the relevance of tables by key."""
    schema = parts[0].schema
    joined = pa.concat_tables(parts)
    other = next(name for name in schema.names if name not in (*keys, "relevance"))
    sums = joined.group_by(keys).aggregate([("relevance", "sum"), (other, "max")])
    sums = sums.rename_columns([*keys, "relevance", other])
    sums = sums.sort_by([(key, "ascending") for key in keys])
    if other == "conditional":
        nothing = pa.nulls(len(sums), schema.field(other).type)
        sums = sums.set_column(sums.schema.get_field_index(other), other, nothing)
        sums = sums.filter(pc.not_equal(sums["relevance"], 0.0))
    return sums.select(schema.names).cast(schema)
