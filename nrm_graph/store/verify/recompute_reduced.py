"""A sample of reduced tables, computed again from the stored program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nrm_graph.measures.measure import Measure
    from nrm_graph.store.format.recorded_nodes import LayerNodes
    from nrm_graph.store.reduced_tables import ReducedForm
    from nrm_graph.store.verify.report import Findings, Place
    from nrm_graph.store.verify.tables import Rows

    Values = dict[tuple[int, ...], float]

_KEYS = {
    "nodes": ("layer_id", "unit"),
    "edges": ("dst_layer", "dst_unit", "src_layer", "src_unit"),
}

COARSE = ("channel", "feature", "head", "layer")
"""Nodes of these stay the same where a nearly tied pool chooses another position."""


@dataclass(frozen=True, eq=False)
class Recomputed:
    """Reduced tables of the nodes on record.

    Attributes
    ----------
    layers : tuple of LayerNodes
        Watched layers.
    form : ReducedForm
        What makes tables of them.
    """

    layers: tuple[LayerNodes, ...]
    form: ReducedForm

    def compare(
        self,
        m: Measure,
        stored: Mapping[str, Rows],
        findings: Findings,
        where: Place,
        tolerance: float,
    ) -> None:
        """Compare nodes, steps and ends with stored ones.

        A difference is relative to the sum of |R| over single neurons of the layers that it is of;
        at nodes that a pool may have left for another position it is a note.
        """
        nodes, edges, _ = self.form.tables(m)
        ids = [layer.info.layer_id for layer in self.layers]
        sizes = {i: float(m._relevance(m.topology.layers[i]).double().abs().sum()) for i in ids}
        coarse = {row.info.layer_id for row in self.layers if row.resolution in COARSE}
        target = ids[0]
        flipped = 0
        for table, rows in (("nodes", nodes), ("edges", edges)):
            names = _KEYS[table]
            again = _values({name: rows[name].to_numpy() for name in (*names, "relevance")}, names)
            before = _values(stored[table], names)
            for key in sorted(again.keys() | before.keys()):
                one, other = before.get(key, 0.0), again.get(key, 0.0)
                layers = set(key[::2])
                limit = tolerance * max(sizes[i] for i in layers)
                if abs(one - other) <= limit:
                    continue
                if not layers <= coarse | {target}:
                    flipped += 1
                    continue
                text = ", ".join(f"{n} {v}" for n, v in zip(names, key, strict=True))
                findings.error(
                    f"recomputed, the relevance of {text} is {other:.9g}, stored is {one:.9g} "
                    f"(allowed: {limit:.2g})",
                    **where,
                    layer=m.topology.layers[key[0]].name,
                )
                return
        if flipped:
            findings.note(
                f"recomputed, {flipped} rows of nodes that are no whole channels differ: near-tied "
                "max-pools may have chosen other neurons",
                **where,
            )


def _values(rows: Rows, names: tuple[str, ...]) -> Values:
    keys = np.stack([rows[name] for name in names], 1).tolist()
    return dict(zip(map(tuple, keys), rows["relevance"].astype(np.float64).tolist(), strict=True))
