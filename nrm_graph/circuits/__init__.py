"""Circuits: what many inputs have in common, with statistics.

The measure of a group of inputs is the mixture of theirs, so its relevances are means, and its
conditionals ratios of means.  Everything is aggregated from the tables of a store
(:mod:`nrm_graph.circuits.sums` holds the SQL); nothing of this package runs a network but what
says so.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrm_graph.circuits import circuit, clusters, contrast, prototypes, references, stability
    from nrm_graph.circuits.clusters import Clusters
    from nrm_graph.circuits.contrast import Contrast
    from nrm_graph.circuits.references import References
    from nrm_graph.circuits.stability import Stability

_RESULTS = {
    "Clusters": "clusters",
    "Contrast": "contrast",
    "References": "references",
    "Stability": "stability",
}
_MODULES = {"circuit", "prototypes", *_RESULTS.values()}

__all__ = [
    "Clusters",
    "Contrast",
    "References",
    "Stability",
    "circuit",
    "clusters",
    "contrast",
    "prototypes",
    "references",
    "stability",
]


def __getattr__(name: str) -> Any:
    """Import a module of this package, or the class of its answers, when it is first asked for."""
    if name in _RESULTS:
        return getattr(importlib.import_module(f"{__name__}.{_RESULTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
