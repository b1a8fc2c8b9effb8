"""The relevance of chosen edges, of a batch of inputs, out of one relevance pass.

The pass makes the tables of those layers alone whose edges are asked for, sends relevance on past
all others, and ends at the lowest of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.network.ir.interpreter import exact
from nrm_graph.propagation.relevance_pass import relevance_pass, shares_of
from nrm_graph.tables.builder import Tables
from nrm_graph.tables.picks import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.events.conjunctions import Clause
    from nrm_graph.propagation.state import State
    from nrm_graph.tables.picks import Picks
    from nrm_graph.tables.plan import Plan


class _Picking(Tables):
    """What one relevance pass over a batch says of chosen edges."""

    def __init__(
        self, state: State, start: Tensor, plan: Plan, clause: Clause, chosen: Picks
    ) -> None:
        self.collectors = [Collector(chosen) for _ in range(start.shape[0])]
        super().__init__(state, start, plan, clause, self.collectors)
        net = state.network
        self.upper = {net.values[dst] for dst, _ in chosen.pairs}
        self.lowest = min((net.position[name] for name in self.upper), default=len(net.order))

    def weigh(self, name: str, relevance: Tensor) -> Iterable[tuple[str, Tensor]]:  # type: ignore[override]
        """Take the step through one operation; below the lowest of them walks may end."""
        if name in self.upper:
            return super().weigh(name, relevance)
        if self.state.network.position[name] < self.lowest:
            return ()
        return shares_of(self.state, name, relevance)


@exact
def picked_edges(
    state: State, start: Tensor, plan: Plan, clause: Clause | None = None
) -> npt.NDArray[np.float64]:
    """Relevance of the edges that a plan picks, of every sample of a batch.

    Parameters
    ----------
    state, start, plan, clause
        See :func:`nrm_graph.tables.builder.edge_tables`; ``plan.picks`` says which edges.

    Returns
    -------
    ndarray of float64, (N, E)
        What :func:`nrm_graph.tables.builder.edge_tables` would list of them; 0 of those that are
        none.
    """
    assert plan.picks is not None
    tables = _Picking(state, start, plan, clause or {}, plan.picks)
    relevance_pass(state, start, clause, weigh=tables.weigh)
    tables.finish()
    return np.stack([collector.values for collector in tables.collectors])
