"""What an extraction says of itself: the store's settings, and the size to expect."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nrm_graph.store.format.schema import content_hash
from nrm_graph.tables import pruning

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from nrm_graph.propagation.state import Network
    from nrm_graph.tables.plan import Plan


def settings(
    net: Network, made: Plan, program_hash: str, classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return what ``store.json`` says of a network and its tables, and the user's partitions."""
    described = net.layout.topology.to_json()
    layers, parts = net.layout.topology.layers, made.partitions
    for row, part in zip(described["layers"], parts, strict=True):
        row |= {"resolution": part.resolution, "n_units": part.n_units}
        if part.resolution == "custom":
            row["units"] = content_hash(part.labels)
    own = {
        layer.name: part.labels
        for layer, part in zip(layers, parts, strict=True)
        if part.resolution == "custom"
    }
    packages = ("nrm-graph", "torch", "pyarrow", "duckdb", "numpy")
    return {
        "program_hash": program_hash,
        "composite": net.composite.to_json(),
        "layers": described["layers"],
        "groups": described["groups"],
        "pruned": [[*key, limit.coverage, limit.top] for key, limit in made.limits.items()],
        "classes": None if classes is None else list(classes),
        "versions": {name: version(name) for name in packages},
    }, own


BYTES_PER_EDGE = {False: 4.0, True: 8.5}
"""Of grouped edges (VGG16 channels: 3.6) and of edges between neurons, which carry q (8.3)."""


def sizes(made: Plan) -> str:
    """Say what will be stored: resolutions, and an upper bound of edges and bytes."""
    counts: dict[str, int] = {}
    for part in made.partitions:
        counts[part.resolution] = counts.get(part.resolution, 0) + 1
    edges, size = 0, 0.0
    for group in made.network.layout.topology.groups:
        number = pruning.table_size(group, made.partitions)
        single = made.partitions[group.dst].single and made.partitions[group.src].single
        edges, size = edges + number, size + number * BYTES_PER_EDGE[single]
    chosen = ", ".join(f"{name} for {n} layers" for name, n in counts.items())
    pruned = f"; {len(made.limits)} pairs of layers pruned" if made.limits else ""
    return (
        f"resolution: {chosen}{pruned}; at most {edges:,} edges and about {size / 1e6:,.1f} MB "
        "an input"
    )
