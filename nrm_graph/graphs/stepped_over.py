"""Layers that an edge steps over: those on other ways between its two layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nrm_graph.network.topology import Topology


def stepped_over(
    topology: Topology, pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], tuple[str, ...]]:
    """Name the layers that an edge between two layers steps over, as a skip connection does.

    Parameters
    ----------
    topology : Topology
        The layers.
    pairs : iterable of (dst, src)
        Layers that edges join.

    Returns
    -------
    dict
        For each pair the layers through which ways lead from dst to src, in order; pairs without
        any are left out.
    """
    # A bit for each layer.
    below, above = ([0] * len(topology.layers) for _ in range(2))
    for group in sorted(topology.groups, key=lambda group: group.dst):
        below[group.dst] |= below[group.src] | 1 << group.src
    for group in sorted(topology.groups, key=lambda group: -group.src):
        above[group.src] |= above[group.dst] | 1 << group.dst
    between = {(dst, src): below[dst] & above[src] for dst, src in pairs}
    return {
        pair: tuple(layer.name for layer in topology.layers if bits >> layer.layer_id & 1)
        for pair, bits in between.items()
        if bits
    }
