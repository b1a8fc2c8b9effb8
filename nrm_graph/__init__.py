"""A relevance database of a neural network: the Normalized Relevance Measure (arXiv:2606.00557)."""

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

__version__ = "0.1.0"

__all__ = [
    "CompositeError",
    "Edge",
    "Event",
    "EventError",
    "InputError",
    "Layer",
    "NrmError",
    "QueryError",
    "StoreError",
    "TraceError",
    "UndefinedConditional",
    "stay",
]
