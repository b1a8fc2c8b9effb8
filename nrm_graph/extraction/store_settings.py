"""What an extraction says of itself: the store's settings, and the size to expect."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nrm_graph.store.format.schema import content_hash
from nrm_graph.tables import pruning

if TYPE_CHECKING:
    import numpy as np

    from nrm_graph.network.ir.input_spec import InputSpec
    from nrm_graph.network.ir.program import Program
    from nrm_graph.tables.plan import Plan


def settings(
    program: Program, plan: Plan, spec: InputSpec, program_hash: str
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return what ``store.json`` says of a network and its tables, and the user's partitions.

    Options that were asked for come from :class:`nrm_graph.extraction.store_options.Store`.

    Parameters
    ----------
    program : Program
        Of the network, as it was traced.
    plan : Plan
        Of the tables.
    spec : InputSpec
        What the network takes.
    program_hash : str
        Of the program.
    """
    net = plan.network
    described = net.layout.topology.to_json()
    layers, parts = net.layout.topology.layers, plan.partitions
    for row, part in zip(described["layers"], parts, strict=True):
        row |= {"resolution": part.resolution, "n_units": part.n_units}
        if part.resolution == "custom":
            row["units"] = content_hash(part.labels)
    custom = {
        layer.name: part.labels
        for layer, part in zip(layers, parts, strict=True)
        if part.resolution == "custom"
    }
    packages = ("nrm-graph", "torch", "pyarrow", "duckdb", "numpy")
    description = {
        "program_hash": program_hash,
        "layers": described["layers"],
        "groups": described["groups"],
        "pruned": [[*key, limit.coverage, limit.top] for key, limit in plan.limits.items()],
        "versions": {name: version(name) for name in packages},
    }
    if not spec.plain:
        description["inputs"] = spec.to_json()
    if program.outputs:
        description["outputs"] = [{"name": n, "shape": list(s)} for n, s in program.outputs]
    return description, custom


BYTES_PER_EDGE = {False: 4.0, True: 8.5}
"""Of grouped edges (VGG16 channels: 3.6) and of edges between neurons, which carry q (8.3)."""

BYTES_OF_THE_STRONGEST = 1.5
"""Of an edge among the strongest alone, whose neighbours are further, over one of all."""


def sizes(plan: Plan) -> str:
    """Say what will be stored of an input: resolutions, and a bound on edges and their bytes."""
    counts: dict[str, int] = {}
    for part in plan.partitions:
        counts[part.resolution] = counts.get(part.resolution, 0) + 1
    edges, size = 0, 0.0
    for group in plan.network.layout.topology.groups:
        number = pruning.table_size(group, plan.partitions)
        single = plan.partitions[group.dst].single and plan.partitions[group.src].single
        edges, size = edges + number, size + number * BYTES_PER_EDGE[single]
    most = plan.max_edges
    if most is not None and edges > most:
        edges, size = most, size * most / edges * BYTES_OF_THE_STRONGEST
    chosen = ", ".join(f"{name} for {n} layers" for name, n in counts.items())
    pruned = f"; {len(plan.limits)} pairs of layers pruned" if plan.limits else ""
    pruned = pruned if most is None else "; the strongest edges of each pair of layers"
    return (
        f"resolution: {chosen}{pruned}; at most {edges:,} edges and about {size / 1e6:,.1f} MB "
        "an input"
    )
