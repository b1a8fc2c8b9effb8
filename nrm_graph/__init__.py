"""A relevance database of a neural network: the Normalized Relevance Measure (arXiv:2606.00557)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import (
    CompositeError,
    EventError,
    InputError,
    NrmError,
    QueryError,
    StoreError,
    TraceError,
    UndefinedConditional,
)
from nrm_graph.events import Edge, Event, Layer, stay

if TYPE_CHECKING:
    from nrm_graph import composites, rules
    from nrm_graph.database import Database, open
    from nrm_graph.exact import Measure
    from nrm_graph.extraction import extract
    from nrm_graph.prepare import measure
    from nrm_graph.tracing import trace

__version__ = "0.1.0"

# What needs torch is imported at first use: opening a store and SQL do without.
_LAZY = {
    "Database": "nrm_graph.database",
    "extract": "nrm_graph.extraction",
    "open": "nrm_graph.database",
    "Measure": "nrm_graph.exact",
    "measure": "nrm_graph.prepare",
    "trace": "nrm_graph.tracing",
}
_MODULES = {"composites", "rules"}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"nrm_graph.{name}")
    raise AttributeError(f"module 'nrm_graph' has no attribute {name!r}")


__all__ = [
    "CompositeError",
    "Database",
    "Edge",
    "Event",
    "EventError",
    "InputError",
    "Layer",
    "Measure",
    "NrmError",
    "QueryError",
    "StoreError",
    "TraceError",
    "UndefinedConditional",
    "composites",
    "extract",
    "measure",
    "open",
    "rules",
    "stay",
    "trace",
]
